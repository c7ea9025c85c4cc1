"""bin/bounces: reads delivery reports and complaints from a mailbox, and does what follows from them.

A tick reads the mailbox in batches. What follows from a report is committed first; then its message is moved to a
folder, so that a kill in between only means that it is read once more.
"""

import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from worker.bouncing.effects import POSTPONED, UNRECOGNISED, ReportEffects
from worker.bouncing.report import LARGEST_REPORT
from worker.errors import SettingsError
from worker.providers.imap_url import parse_imap_url
from worker.runtime import program
from worker.runtime.db import queries
from worker.runtime.job import JobContext, TickResult
from worker.runtime.migrations import require_current
from worker.runtime.settings import Settings

if TYPE_CHECKING:
    from worker.providers.imap import Mailbox

log = logging.getLogger(__name__)

DESCRIPTION = """\
Reads delivery reports and complaints from the mailbox of BOUNCE_MAILBOX_URL. Addresses that do not exist, and those
whose owner complains, are not written to any more; recipients whose message was not delivered are marked as failed.
Messages that were read are moved to the folder Processed, others to Unrecognised; none is deleted."""

READ, UNREAD = "Processed", "Unrecognised"  # the folders
BATCH_SIZE = 50
READING_SECONDS = 60.0  # then the tick ends; the next one follows at once
NEXT_TICK_SECONDS = 1.0
KEPT = timedelta(days=90)  # what is remembered of reports
FORGET_SIZE = 10_000


def main(arguments: Sequence[str] | None = None) -> int:
    return program.run_job("bounces", DESCRIPTION, BouncesJob, arguments, _why_off)


def _why_off(settings: Settings) -> str | None:
    """Why there is nothing to do."""
    return None if settings.bounce_mailbox_url else "BOUNCE_MAILBOX_URL is not set"


class BouncesJob:
    zone = UTC

    def __init__(self, context: JobContext) -> None:
        """Raises SettingsError for values that only show themselves in use (BOUNCE_MAILBOX_URL, BOUNCE_ADDRESS)."""
        settings = context.settings
        self.interval_seconds = settings.bounce_interval_seconds
        self._context = context
        self._db = context.database
        try:
            self._url = parse_imap_url(settings.bounce_mailbox_url or "")
        except ValueError as error:
            raise SettingsError(f"BOUNCE_MAILBOX_URL (a secret, not shown): {error}") from None
        return_paths = settings.return_paths
        if return_paths is None:
            raise SettingsError("BOUNCE_ADDRESS is not set: the address that delivery reports are sent to")
        self._effects = ReportEffects(self._db, return_paths, context.counters)
        self._skipped = 0  # messages at the front of the mailbox that were looked at and could not be moved

    def start(self) -> None:
        require_current(self._db)

    def tick(self, now: datetime) -> TickResult:
        # Not at the top: IMAP and TLS cost an idle process memory that it does not need before.
        from worker.providers.imap import Mailbox

        self._db.execute(queries("bounces")["forget"], before=now - KEPT, size=FORGET_SIZE)
        counts: Counter[str] = Counter()
        until, ended = time.monotonic() + READING_SECONDS, False

        def may_go_on() -> bool:
            self._context.counters.heartbeat(self._context.clock())
            return self._context.may_continue and time.monotonic() < until

        try:
            with Mailbox(self._url) as mailbox:
                folders = mailbox.make_folder(READ), mailbox.make_folder(UNREAD)
                while not ended and may_go_on():
                    ended = self._read_batch(mailbox, folders, may_go_on, counts)
        finally:
            if counts:
                log.info("delivery reports read", {"all": ended, **counts})
        next_at = None if ended else now + timedelta(seconds=NEXT_TICK_SECONDS)
        return TickResult(dict(counts), next_at, unfinished=not ended, may_rest=ended)

    def close(self) -> bool:
        return True

    def _read_batch(
        self, mailbox: "Mailbox", folders: tuple[str, str], may_go_on: Callable[[], bool], counts: Counter[str]
    ) -> bool:
        """Reads some messages and moves them; returns whether there were none left.

        What cannot be moved now is passed by, and looked at again in a later tick, from the front.
        """
        window = mailbox.window(self._skipped, BATCH_SIZE)
        if not window.size:
            self._skipped = 0
            return True
        looked_at = 0
        moving: tuple[list[int], list[int]] = [], []
        try:
            for uid in window.uids:
                if not may_go_on():
                    break
                looked_at += 1
                became = self._read(mailbox, uid)
                counts.update([became] if became else [])
                if became and became != POSTPONED:
                    moving[became == UNRECOGNISED].append(uid)
        finally:  # also when one of them could not be read: what followed from the others is committed
            self._skipped += window.size if looked_at == len(window.uids) else looked_at
            for uids, folder in zip(moving, folders, strict=True):
                mailbox.move(uids, folder)
                self._skipped -= len(uids)
        return False

    def _read(self, mailbox: "Mailbox", uid: int) -> str | None:
        """What became of a message, as ReportEffects says it; None: it is gone."""
        raw = mailbox.read(uid, LARGEST_REPORT)
        if raw is None:
            return None
        became = self._effects.apply(raw, self._context.clock())
        if became == UNRECOGNISED:
            self._context.counters.add("bounces_total", kind=UNRECOGNISED)
        return became


if __name__ == "__main__":
    sys.exit(main())
