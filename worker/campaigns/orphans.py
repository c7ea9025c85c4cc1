"""Orphaned batches: their holder is gone, and this process settles them from what it wrote into its journal.

Where the journal is not on this machine, from their progress in PostgreSQL. There nothing but the lease says that the
holder is gone, so the batch is taken from it first: if it lives after all, it can let no more of its messages leave.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import uuid4

from worker.campaigns.batch import Batch, Recipient
from worker.campaigns.campaign import Campaign
from worker.campaigns.journal import Journal, JournalDirectory
from worker.campaigns.journal_entries import read_lines
from worker.campaigns.transport import Transport
from worker.runtime.db import Database, queries
from worker.runtime.lease import LEASE_SECONDS
from worker.runtime.process_token import new_token
from worker.sending.outcomes import Outcome, OutcomeKind

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BatchRow:
    """A row of worker.campaign_batch."""

    id: str
    campaign_id: str
    holder: str
    machine: str
    sender: str  # the account's key
    asking: bool  # nothing is sent: a provider is asked about earlier messages
    recipient_ids: list[str]
    may_leave: (
        int | None
    )  # so many of them, from the first one, may have been written to when it was claimed; None: all
    lapsed: bool  # it was not renewed for the time of a lease


@dataclass(frozen=True, slots=True)
class OrphanedBatch:
    """A batch whose holder is gone, and its locked journal; None when that is not on this machine."""

    row: BatchRow
    journal: Journal | None

    def close(self) -> None:
        """If the batch was not settled: leaves it to the next try."""
        if self.journal:
            self.journal.close()


class OrphanedBatches:
    """Finds orphaned batches, and what became of them."""

    def __init__(self, db: Database, journals: JournalDirectory, clock: Callable[[], datetime]) -> None:
        self._db = db
        self._journals = journals
        self._clock = clock
        self._sql = queries("campaign")
        self._holder = new_token()

    def find(self) -> Iterator[OrphanedBatch]:
        """The batches whose holder is gone. A holder that lives keeps its batches, even if it is frozen."""
        for row in self._rows():
            if orphan := self._orphan(row):
                yield orphan

    def recover(self, orphan: OrphanedBatch, campaign: Campaign, transport: Transport) -> Batch | None:
        """The batch with the outcomes that its journal knows, or its progress. None: its holder is not gone."""
        if not orphan.journal:
            taken = self._taken_over(orphan.row)
            if taken is None:
                return None
            orphan = replace(orphan, row=taken)
        row, now = orphan.row, self._clock()
        found = self._db.all(
            self._sql["batch_recipients"],
            ids=row.recipient_ids,
            campaign_id=campaign.id,
            tenant_id=campaign.tenant_id,
        )
        recipients = [Recipient(**each) for each in found]
        # by another name: an empty journal of this batch would tell a successor that nothing was sent
        journal = orphan.journal or self._journals.create(str(uuid4()), 1)
        same_account = row.sender == transport.account_key
        batch = Batch(
            row.id, row.holder, campaign, transport, recipients, journal, same_account=same_account, asking=row.asking
        )
        batch.stop()
        reason = "the worker was stopped while the message was on the wire"
        for recipient_id, outcome in self._known(orphan).items():
            batch.set_outcome(recipient_id, outcome or Outcome(OutcomeKind.UNCONFIRMED, now, reason))
        return batch

    def _taken_over(self, row: BatchRow) -> BatchRow | None:
        taken = self._db.execute_one(
            self._sql["take_over"],
            batch_id=row.id,
            holder=row.holder,
            new_holder=self._holder,
            lease_seconds=LEASE_SECONDS,
        )
        return replace(row, holder=self._holder) if taken else None

    def _known(self, orphan: OrphanedBatch) -> dict[str, Outcome | None]:
        """Who may have been written to, with the outcome where it is known."""
        row = orphan.row
        if row.asking:
            return dict.fromkeys(row.recipient_ids)
        if orphan.journal:
            return orphan.journal.read(row.recipient_ids)
        may_leave = row.may_leave
        outcomes: dict[str, Outcome | None] = {}
        for step in self._db.all(self._sql["progress"], batch_id=row.id):  # in the order of the steps
            may_leave = step["may_leave"]
            outcomes |= read_lines(step["outcomes"].encode(), row.recipient_ids)
        return dict.fromkeys(row.recipient_ids[:may_leave]) | outcomes

    def drop(self, orphan: OrphanedBatch) -> None:
        """Deletes a batch whose campaign was deleted."""
        self._db.execute(self._sql["drop_batch"], batch_id=orphan.row.id)
        if orphan.journal:
            orphan.journal.remove()

    def sweep_journals(self) -> None:
        """Removes journals whose batch was settled just before its holder died, and those that belong to none."""
        self._journals.sweep_spare()
        old = self._journals.abandoned()
        claimed = {row.id for row in self._rows()} if old else set()
        for batch_id in old:
            with suppress(FileNotFoundError):
                if batch_id not in claimed and (journal := self._journals.take_over(batch_id)):
                    journal.remove()

    def _rows(self) -> list[BatchRow]:
        return [BatchRow(**row) for row in self._db.all(self._sql["batches"], lease_seconds=LEASE_SECONDS)]

    def _orphan(self, row: BatchRow) -> OrphanedBatch | None:
        if row.machine == self._journals.machine:
            with suppress(FileNotFoundError):
                journal = self._journals.take_over(row.id)
                return OrphanedBatch(row, journal) if journal else None
        if not row.lapsed:
            return None
        log.warning(
            "orphaned batch has no journal on this machine", {"campaign": row.campaign_id, "holder": row.holder}
        )
        return OrphanedBatch(row, None)
