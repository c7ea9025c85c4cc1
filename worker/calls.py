"""bin/calls: places queued outbound calls through Twilio inside business hours and the hours of the called number.

A tick first asks Twilio about calls that are unconfirmed or whose webhook was lost. Then each tenant that may call
now gets its turn: choose calls, claim them, place them, book them.
"""

import logging
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta, tzinfo

import psycopg2

from worker.calling.accounts import CallingAccounts
from worker.calling.claims import CallClaims
from worker.calling.forgotten_calls import ForgottenCalls
from worker.calling.placement import CallPlacement
from worker.calling.reconciliation import CallReconciliation
from worker.calling.reporting import CallCounts, CallReporter
from worker.calling.requests import POLL_SECONDS, ROUND_SECONDS, CallRequests
from worker.calling.selection import CallSelection
from worker.calling.settlement import CallSettlement
from worker.content.calls import WAITING_FOR_HOURS
from worker.runtime import program
from worker.runtime.db import Row, queries
from worker.runtime.job import JobContext, TickResult
from worker.runtime.lease import Lease
from worker.runtime.migrations import require_current
from worker.runtime.timeline import DOUBT_SECONDS, Timeline
from worker.sending.outcomes import ASK_AFTER_SECONDS
from worker.sending.suppression import SuppressionWatch

log = logging.getLogger(__name__)

DESCRIPTION = """\
Places the queued calls of all tenants through Twilio: inside business hours and the hours of the called number,
highest priority first, never more at once than a tenant may have, each call once. Asks Twilio what became of calls
that a killed worker left unconfirmed or whose webhook was lost."""

REQUEST_THREADS = 8  # requests to Twilio at once
ACCOUNTS_AT_ONCE = 32  # tenants whose next calls are claimed together
TICK_SECONDS = 10.0  # then business hours, slots and settings are looked at again
MEASURE_SECONDS = 10.0  # how old the gauges of the backlog may be: counting a long queue takes a while


def main(arguments: Sequence[str] | None = None) -> int:
    return program.run_job("calls", DESCRIPTION, CallsJob, arguments)


class CallsJob:
    zone: tzinfo = UTC

    def __init__(self, context: JobContext, monotonic: Callable[[], float] = time.monotonic) -> None:
        """``monotonic``: the clock of pauses, in seconds. Raises SettingsError for a bad DATABASE_URL."""
        settings = context.settings
        self.interval_seconds = settings.call_scheduler_interval_seconds
        self._context = context
        self._monotonic = monotonic
        self._db = context.database
        self._sql = queries("calls")
        self._reporter = CallReporter(context)
        lease = Lease()
        settlement = CallSettlement(context, self._reporter, lease.holder, monotonic)
        self._timeline = Timeline(self._db, settings.state_dir / "timeline.calls", context.clock)
        self._claims = CallClaims(context, lease, settlement)
        self._accounts = CallingAccounts(settings, context.redis, REQUEST_THREADS, monotonic, context.clock)
        self._requests = CallRequests(REQUEST_THREADS, context.signals, settings.shutdown_grace_seconds, settlement)
        self._selection = CallSelection(context, self._accounts, settlement, self._requests, monotonic)
        watch = SuppressionWatch(self._db, monotonic)
        self._placement = CallPlacement(
            settings.app_url or "",
            self._accounts,
            settlement,
            self._requests,
            watch,
            context.clock,
            ForgottenCalls(self._claims, self._timeline),
        )
        self._reconciliation = CallReconciliation(
            context, self._accounts, self._claims, settlement, self._requests, self._reporter, monotonic
        )
        self._measured_at = float("-inf")  # monotonic()

    def start(self) -> None:
        require_current(self._db)
        self._selection.end_other_waits()

    def tick(self, now: datetime) -> TickResult:
        self._reporter.counts = CallCounts()
        self._requests.settle_finished(0.0)
        self._look_at_timeline()
        todo = self._survey(now)
        if not (todo["any_pending"] or todo["any_processing"] or todo["any_claim"] or todo["any_live"]):
            self._set_gauges(due=0.0, oldest_due_seconds=0.0, waiting=0.0)
            return TickResult(self._reporter.counts.as_dict())
        if todo["any_processing"] or todo["any_claim"]:
            self._reconciliation.ask_about_unconfirmed(now)
        if todo["any_live"]:
            self._reconciliation.check_stale(now)
        again_at = self._place_due(now) if todo["any_pending"] else None
        self._requests.finish()
        return self._result(again_at)

    def close(self) -> bool:
        try:
            self._requests.drain()
        except psycopg2.Error as error:
            reason = str(error).strip()
            log.error("placed calls could not be booked, Twilio will be asked about them", {"reason": reason})
        ended = self._requests.close()
        self._context.counters.flush()
        self._accounts.close()
        return ended

    def _place_due(self, now: datetime) -> datetime | None:
        """Gives each tenant that may call now its turn; returns when the next call may be placed, if one is left."""
        if self._timeline.changed_within(ASK_AFTER_SECONDS):  # Twilio does not list all of them yet
            return self._context.clock() + timedelta(seconds=ROUND_SECONDS)
        until = self._monotonic() + TICK_SECONDS
        accounts = self._selection.open_accounts(now)
        waits: list[float] = []  # seconds
        for first in range(0, len(accounts), ACCOUNTS_AT_ONCE):
            while not self._requests.free and self._may_place(until):
                self._requests.settle_finished(POLL_SECONDS)
            if not (self._requests.free and self._may_place(until)):
                waits.append(0.0)
                break
            choice = self._selection.choose(accounts[first : first + ACCOUNTS_AT_ONCE], now)
            self._requests.settle_finished(0.0)  # those that ended meanwhile do not wait for the claim, too
            claimed = self._claims.claim(choice.candidates, now)
            for call in claimed:
                self._placement.submit(call)
            waits += choice.wait_seconds
            if len(claimed) < len(choice.candidates):
                waits.append(ROUND_SECONDS)
        return self._context.clock() + timedelta(seconds=min(waits)) if waits else None

    def _look_at_timeline(self) -> None:
        if self._timeline.has_changed():
            log.warning(
                "PostgreSQL is another server, or was restored: Twilio is asked about each call before it is placed",
                {"minutes": DOUBT_SECONDS / 60, "timeline": self._timeline.name},
            )
            self._timeline.accept()

    def _may_place(self, until: float) -> bool:
        return self._context.may_continue and self._monotonic() < until

    def _result(self, again_at: datetime | None) -> TickResult:
        todo, counts = self._survey(self._context.clock()), self._reporter.counts
        if self._monotonic() - self._measured_at > MEASURE_SECONDS:
            (backlog,) = self._db.all(self._sql["backlog"], now=self._context.clock(), reason=WAITING_FOR_HOURS)
            self._set_gauges(**backlog)
            self._measured_at = self._monotonic()
        soonest = self._context.clock() + timedelta(seconds=POLL_SECONDS)
        # a call that failed, or has to wait, leaves its slot to the next one
        has_free_slot = (
            bool(counts.failed or counts.retried or counts.put_back or counts.put_off) and todo["any_pending"]
        )
        if self._requests.keys or has_free_slot:
            again_at = soonest
        due = [max(at, soonest) for at in (again_at, todo["next_due"], todo["next_ask"]) if at]
        return TickResult(counts.as_dict(), min(due, default=None), unfinished=again_at is not None)

    def _survey(self, now: datetime) -> Row:
        """What there is to do."""
        (row,) = self._db.all(self._sql["survey"], now=now)
        return row

    def _set_gauges(self, due: float, oldest_due_seconds: float, waiting: float) -> None:
        self._context.counters.gauge("calls_due", due)
        self._context.counters.gauge("calls_oldest_due_seconds", oldest_due_seconds)
        self._context.counters.gauge("window_waiting", waiting, kind="calls")


if __name__ == "__main__":
    sys.exit(main())
