"""bin/call-cleanup: deletes old rows of the call queue, at local midnight and at every start.

A tick deletes what ended more than 30 days ago, whenever that was: what was missed while the worker was down is done
by its first tick.
"""

import logging
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from worker import migrate, program
from worker.counters import Counters
from worker.db import Database, queries
from worker.lock import Lock
from worker.loop import Result, Signals, utc_now
from worker.settings import Settings

log = logging.getLogger(__name__)

DESCRIPTION = """\
Deletes rows of the call queue that were completed, failed or cancelled and not changed for 30 days: at every start
and at midnight of CLEANUP_TIMEZONE. The log of calls itself stays."""

KEPT = timedelta(days=30)
BATCH_SIZE = 1_000  # rows deleted in one transaction: milliseconds, in which the CRM waits for none but these rows


def main(arguments: Sequence[str] | None = None) -> int:
    return program.run_job("call-cleanup", "call-cleanup", DESCRIPTION, CallCleanupJob, arguments)


class CallCleanupJob:
    name = "call-cleanup"

    def __init__(
        self,
        settings: Settings,
        counters: Counters,
        lock: Lock,
        signals: Signals,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        """Raises SettingsError for a DATABASE_URL that cannot be used."""
        self.interval_seconds = settings.call_cleanup_interval_seconds
        self.zone = settings.cleanup_timezone
        self._counters = counters
        self._lock = lock
        self._signals = signals
        self._clock = clock
        self._db = Database(settings.database_url, "crm-worker call-cleanup")
        self._sql = queries("call_cleanup")

    def start(self) -> None:
        migrate.require_current(self._db)

    def tick(self, now: datetime) -> Result:
        deleted, ended = 0, False
        try:
            while not ended and self._may_go_on():
                batch = self._delete_batch(now - KEPT)
                deleted += batch
                ended = batch < BATCH_SIZE
                self._counters.heartbeat(self._clock())
        finally:  # also of nothing, so that an operator sees that it ran, and of what an outage cut short
            log.info("old rows of the call queue deleted", {"rows": deleted, "all": ended})
        return Result({"deleted": deleted}, next_at=None if ended else now, unfinished=not ended)

    def close(self) -> bool:
        self._db.close()
        return True

    def _may_go_on(self) -> bool:
        return self._lock.held and not self._signals.stopping

    def _delete_batch(self, before: datetime) -> int:
        found = self._db.one(self._sql["delete_old"], before=before, size=BATCH_SIZE)
        rows = int(found["rows"]) if found else 0
        if rows:
            self._counters.add("calls_cleaned_total", rows)
        return rows


if __name__ == "__main__":
    sys.exit(main())
