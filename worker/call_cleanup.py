"""bin/call-cleanup: deletes old rows of the call queue, at local midnight and at every start.

A tick deletes all rows that ended more than 30 days ago. So the first tick also deletes what was missed while the
worker was down.
"""

import logging
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta

from worker.runtime import program
from worker.runtime.db import queries
from worker.runtime.job import JobContext, TickResult
from worker.runtime.migrations import require_current

log = logging.getLogger(__name__)

DESCRIPTION = """\
Deletes rows of the call queue that were completed, failed or cancelled and not changed for 30 days: at every start
and at midnight of CLEANUP_TIMEZONE. The log of calls itself stays."""

KEPT = timedelta(days=30)
BATCH_SIZE = 1_000  # rows in one transaction, which takes milliseconds and locks only these rows


def main(arguments: Sequence[str] | None = None) -> int:
    return program.run_job("call-cleanup", DESCRIPTION, CallCleanupJob, arguments)


class CallCleanupJob:
    def __init__(self, context: JobContext) -> None:
        """Raises SettingsError for a DATABASE_URL that cannot be used."""
        self.interval_seconds = context.settings.call_cleanup_interval_seconds
        self.zone = context.settings.cleanup_timezone
        self._context = context
        self._db = context.database
        self._sql = queries("call_cleanup")

    def start(self) -> None:
        require_current(self._db)

    def tick(self, now: datetime) -> TickResult:
        deleted, ended = 0, False
        try:
            while not ended and self._context.may_continue:
                batch = self._delete_batch(now - KEPT)
                deleted += batch
                ended = batch < BATCH_SIZE
                self._context.counters.heartbeat(self._context.clock())
        finally:  # also for no rows, so that an operator sees that it ran, and after an outage
            log.info("old rows of the call queue deleted", {"rows": deleted, "all": ended})
        return TickResult({"deleted": deleted}, next_at=None if ended else now, unfinished=not ended, may_rest=ended)

    def close(self) -> bool:
        return True

    def _delete_batch(self, before: datetime) -> int:
        found = self._db.execute_one(self._sql["delete_old"], before=before, size=BATCH_SIZE)
        rows = int(found["rows"]) if found else 0
        if rows:
            self._context.counters.add("calls_cleaned_total", rows)
        return rows


if __name__ == "__main__":
    sys.exit(main())
