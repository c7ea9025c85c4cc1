"""Messages that left and that PostgreSQL has forgotten, because a standby took over that lacked the last commits.

Before anything is claimed from such a server, the journals of this machine are compared with it. Recipients that are
to be sent to, though a message to them has left, become an orphaned batch again, which is settled like any other one.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from datetime import datetime
from itertools import chain
from uuid import uuid4

import orjson

from worker.campaigns.journal import JournalDirectory
from worker.campaigns.journal_entries import read_line
from worker.campaigns.kept_journals import KeptBatch
from worker.runtime.db import Database, queries
from worker.runtime.lease import LEASE_SECONDS
from worker.runtime.process_token import new_token
from worker.runtime.timeline import DOUBT_SECONDS, Timeline
from worker.sending.outcomes import Outcome, OutcomeKind

log = logging.getLogger(__name__)

# after these no message of the batch has arrived, and a recipient that is pending may be sent to again
_NOT_ARRIVED = (OutcomeKind.DEFERRED, OutcomeKind.RECIPIENT_DEFERRED, OutcomeKind.REJECTED, OutcomeKind.NOT_SENT)


class BatchInHand(Exception):
    """A living process still has messages on the wire of a batch that the database has forgotten."""


class ForgottenMessages:
    """Claims forgotten messages again, on behalf of one process."""

    def __init__(
        self, db: Database, journals: JournalDirectory, timeline: Timeline, clock: Callable[[], datetime]
    ) -> None:
        self._db = db
        self._journals = journals
        self._timeline = timeline
        self._clock = clock
        self._sql = queries("campaign")
        self._holder = new_token()
        self._is_due: bool | None = None  # None: this process has not looked yet
        self._is_waiting = False

    def claim_again(self, *, built: bool = False) -> bool:
        """Whether all that was forgotten, if anything, is in orphaned batches now. False: to be tried again soon.

        ``built``: recipients were built just now, perhaps for the second time. Raises psycopg2.Error.
        """
        has_changed = self._timeline.has_changed()
        if has_changed or ((built or self._is_due is None) and self._timeline.changed_within(DOUBT_SECONDS)):
            self._is_due = True
        if not self._is_due:
            self._is_due = False
            self._journals.kept.sweep()
            return True
        try:
            recipients = self._claim_all()
        except BatchInHand:
            if not self._is_waiting:
                log.warning("nothing is claimed: messages of a batch that PostgreSQL forgot are still on the wire")
            self._is_waiting = True
            return False
        self._is_waiting = False
        if has_changed:
            log.warning(
                "PostgreSQL is another server, or was restored: messages that it forgot are settled again",
                {"recipients": recipients, "timeline": self._timeline.name},
            )
            self._timeline.accept()
        self._is_due = False
        return True

    def _claim_all(self) -> int:
        """How many recipients were claimed again. The newest word about a recipient counts."""
        batches = {
            row["id"]: row["machine"] for row in self._db.all(self._sql["batches"], lease_seconds=LEASE_SECONDS)
        }
        to_be_sent: set[str] = set()  # the newest message to them did not arrive
        recipients = 0
        for batch in chain(self._unsettled(batches), self._journals.kept.newest_first()):
            if batch.id in batches:
                if batches[batch.id] == self._journals.machine:
                    self._journals.restore(batch.id, batch.lines)
                continue
            said = _entries(batch)
            arrived = {key: outcome for key, outcome in said.items() if _may_have_arrived(outcome)}
            recipients += self._claim({key: arrived[key] for key in arrived.keys() - to_be_sent})
            to_be_sent |= said.keys() - arrived.keys()
        return recipients

    def _unsettled(self, batches: Mapping[str, str]) -> Iterator[KeptBatch]:
        """The journals of batches that the database does not know, or not any more. Raises BatchInHand."""
        for batch_id in self._journals.batch_ids():
            if batch_id in batches:
                continue
            with suppress(FileNotFoundError):
                journal = self._journals.take_over(batch_id)
                if journal is None:
                    # after a lease its holder lets nothing more leave, since it cannot renew that
                    if self._journals.age_seconds(batch_id) < LEASE_SECONDS:
                        raise BatchInHand
                    yield KeptBatch(batch_id, self._journals.lines_of(batch_id))
                    continue
                with closing(journal):
                    yield KeptBatch(batch_id, journal.lines())
                    journal.remove()

    def _claim(self, arrived: Mapping[str, Outcome | None]) -> int:
        if not arrived:
            return 0
        messages = [{"id": key, "at": outcome and outcome.at} for key, outcome in arrived.items()]
        rows = self._db.all(self._sql["forgotten"], messages=orjson.dumps(messages).decode())
        campaigns = defaultdict(list)
        for row in rows:
            campaigns[row["campaign_id"]].append(row["id"])
        return sum(self._make_batch(each, {key: arrived[key] for key in ids}) for each, ids in campaigns.items())

    def _make_batch(self, campaign_id: str, arrived: Mapping[str, Outcome | None]) -> int:
        batch_id = str(uuid4())
        # before the claim, as for every batch: a successor settles it from there
        with closing(self._journals.create(batch_id, len(arrived))) as journal:
            for recipient_id, outcome in arrived.items():
                journal.started(recipient_id)
                if outcome:
                    journal.ended(recipient_id, outcome)
            claimed = self._db.execute_one(
                self._sql["claim_again"],
                campaign_id=campaign_id,
                ids=list(arrived),
                batch_id=batch_id,
                holder=self._holder,
                machine=self._journals.machine,
                now=self._clock(),
            )
        return int(claimed["recipients"]) if claimed else 0


def _entries(batch: KeptBatch) -> dict[str, Outcome | None]:
    """What the batch's journal says, None where no answer is known."""
    return dict(entry for line in batch.lines.split(b"\n") if (entry := read_line(line)))


def _may_have_arrived(outcome: Outcome | None) -> bool:
    """Whether the recipient must not be sent to again: an answer for good, or none."""
    return outcome is None or outcome.kind not in _NOT_ARRIVED
