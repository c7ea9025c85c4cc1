"""bin/call-cleanup: deletes old rows of the call queue and old failures, at local midnight and at every start.

A tick deletes all calls that ended more than 30 days ago, and all failures of recipients that are older than
FAILURES_KEEP. So the first tick also deletes what was missed while the worker was down.
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
and at midnight of CLEANUP_TIMEZONE. The log of calls itself stays. Also deletes failures of campaigns' recipients
that are older than FAILURES_KEEP."""

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
        calls, ended = self._delete("delete_old", now - KEPT, "old rows of the call queue deleted")
        failures, all_ended = 0, False
        if ended:
            kept = timedelta(days=self._context.settings.failures_keep_days)
            failures, all_ended = self._delete("delete_failures", now - kept, "old failures of recipients deleted")
        counts = {"deleted": calls} | ({"failures": failures} if failures else {})
        return TickResult(counts, next_at=None if all_ended else now, unfinished=not all_ended, may_rest=all_ended)

    def close(self) -> bool:
        return True

    def _delete(self, statement: str, before: datetime, message: str) -> tuple[int, bool]:
        """Deletes in batches; how many rows, and whether those were all."""
        deleted, ended = 0, False
        try:
            while not ended and self._context.may_continue:
                batch = self._delete_batch(statement, before)
                deleted += batch
                ended = batch < BATCH_SIZE
                if batch:
                    self._context.counters.heartbeat(self._context.clock())
        finally:  # also for no rows, so that an operator sees that it ran, and after an outage
            log.info(message, {"rows": deleted, "all": ended})
        return deleted, ended

    def _delete_batch(self, statement: str, before: datetime) -> int:
        found = self._db.execute_one(self._sql[statement], before=before, size=BATCH_SIZE)
        rows = int(found["rows"]) if found else 0
        if rows and statement == "delete_old":
            self._context.counters.add("calls_cleaned_total", rows)
        return rows


if __name__ == "__main__":
    sys.exit(main())
