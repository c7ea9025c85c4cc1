"""bin/calls: places queued outbound calls through Twilio inside business hours.

A tick looks after calls whose fate is unknown (call_doubts.py), and then gives every tenant that may call now a call
or a few: claim, place, book, tell.
"""

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta, tzinfo
from functools import partial

from worker.calling.accounts import CallingAccounts, TwilioAccount
from worker.calling.claims import CallCandidate, CallClaims, ClaimedCall, count_failures
from worker.calling.reconciliation import CallReconciliation
from worker.calling.requests import POLL_SECONDS, ROUND_SECONDS, CallRequests
from worker.content.calls import call_form
from worker.content.hours import BusinessHours
from worker.content.phones import to_e164
from worker.errors import SendError, TransportMissing, Unconfirmed
from worker.providers.twilio import PlacedCall
from worker.runtime import program
from worker.runtime.db import UNAVAILABLE, Row, queries
from worker.runtime.events import LiveEvents
from worker.runtime.job import JobContext, TickResult
from worker.runtime.migrations import require_current

log = logging.getLogger(__name__)

DESCRIPTION = """\
Places the queued calls of all tenants through Twilio: inside business hours, highest priority first, never more at
once than a tenant may have, each call once. Settles what a killed worker or a lost webhook left in doubt."""

LANES = 8  # requests to Twilio at once
LINES_AT_ONCE = 32  # tenants whose next calls are claimed together
CALLS_A_TURN = 5  # of one tenant, then it is the others' turn
SPARE = 20  # calls looked at beyond those wanted, since some cannot be dialled
PLACE_SECONDS = 20.0  # from the claim to the wire; later it may be after hours, or somebody else has taken over
TICK_SECONDS = 10.0  # then hours, slots and settings are looked at again
MEASURE_SECONDS = 10.0  # how old the gauges of the backlog may be: counting a long one takes a while
COUNTS = ("placed", "retried", "failed", "put_back", "asked", "checked")


def main(arguments: Sequence[str] | None = None) -> int:
    return program.run_job("calls", DESCRIPTION, CallsJob, arguments)


class CallsJob:
    zone: tzinfo = UTC

    def __init__(self, context: JobContext) -> None:
        """Raises SettingsError for a DATABASE_URL that cannot be used."""
        settings, clock = context.settings, context.clock
        self.interval_seconds = settings.call_scheduler_interval_seconds
        self._context = context
        self._db = context.database
        self._sql = queries("calls")
        self._lines = CallingAccounts(settings, context.redis, LANES)
        self._claims = CallClaims(self._db, context.counters, LiveEvents(context.redis), clock)
        self._lanes = CallRequests(LANES, context.signals, settings.shutdown_grace_seconds)
        self._doubts = CallReconciliation(self._db, self._claims, self._lines, self._lanes, clock)
        self._served: dict[str, float] = {}  # tenant -> time.monotonic() of its last turn
        self._measure_after = 0.0  # time.monotonic()
        self._counts: dict[str, int] = {}

    def start(self) -> None:
        require_current(self._db)

    def tick(self, now: datetime) -> TickResult:
        self._counts = self._doubts.counts = dict.fromkeys(COUNTS, 0)
        self._lanes.settle_finished(0.0)
        todo = self._db.one(self._sql["survey"], now=now) or {}
        if not (todo["any_pending"] or todo["any_processing"] or todo["any_claim"] or todo["any_live"]):
            self._measure(due=0.0, oldest_due_seconds=0.0)
            return TickResult(self._counts)
        if todo["any_processing"] or todo["any_claim"]:
            self._doubts.resolve(now, lambda: self._context.may_continue)
        if todo["any_live"]:
            self._doubts.check_stale(now, lambda: self._context.may_continue)
        again_at = self._place_due(now) if todo["any_pending"] else None
        self._lanes.finish()
        return self._result(again_at)

    def close(self) -> bool:
        try:
            self._lanes.drain()
        except UNAVAILABLE as error:
            log.error("calls were not booked, Twilio will be asked about them", {"reason": str(error).strip()})
        ended = self._lanes.close()
        self._context.counters.flush()
        self._lines.close()
        return ended

    def _result(self, again_at: datetime | None) -> TickResult:
        todo = self._db.one(self._sql["survey"], now=self._context.clock()) or {}
        if time.monotonic() > self._measure_after:
            self._measure(**(self._db.one(self._sql["backlog"], now=self._context.clock()) or {}))
            self._measure_after = time.monotonic() + MEASURE_SECONDS
        soonest = self._context.clock() + timedelta(seconds=POLL_SECONDS)
        # a call that failed leaves its slot to the next one
        moved = any(self._counts[each] for each in ("failed", "retried", "put_back")) and todo["any_pending"]
        if self._lanes.keys or moved:
            again_at = soonest
        due = [max(at, soonest) for at in (again_at, todo["next_due"], todo["next_ask"]) if at]
        return TickResult(self._counts, min(due, default=None), unfinished=again_at is not None)

    def _measure(self, due: float, oldest_due_seconds: float) -> None:
        self._context.counters.gauge("calls_due", due)
        self._context.counters.gauge("calls_oldest_due_seconds", oldest_due_seconds)

    def _place_due(self, now: datetime) -> datetime | None:
        """Gives each tenant that may call now its turn; returns when the next call may be placed, if one is left."""
        until = time.monotonic() + TICK_SECONDS
        lines = self._open_lines(now)
        wait_seconds: list[float] = []
        for first in range(0, len(lines), LINES_AT_ONCE):
            while not self._lanes.free and self._context.may_continue and time.monotonic() < until:
                self._lanes.settle_finished(POLL_SECONDS)
            if not (self._lanes.free and self._context.may_continue and time.monotonic() < until):
                wait_seconds.append(0.0)
                break
            wanted, more = self._choose(lines[first : first + LINES_AT_ONCE], now)
            claimed = self._claims.claim(wanted, now)
            for line, claim in claimed:
                self._submit_call(line, claim)
            wait_seconds += more + [ROUND_SECONDS] * (len(claimed) < len(wanted))
        return self._context.clock() + timedelta(seconds=min(wait_seconds)) if wait_seconds else None

    def _open_lines(self, now: datetime) -> list[TwilioAccount]:
        """The tenants that may call now, the longest waiting first."""
        lines = []
        for row in self._db.all(self._sql["tenants"], now=now):
            if row["slots"] <= 0 or not self._context.may_continue:
                continue
            try:
                if not BusinessHours.of(row).open_at(now):
                    continue
                line = self._lines.line(row)
            except TransportMissing as error:
                self._fail_unconfigured(row["tenant_id"], str(error), now)
            except ValueError as error:
                self._lines.complain(row["tenant_id"], str(error))
            else:
                if not self._lines.rests(line):
                    lines.append(line)
        return sorted(lines, key=lambda line: self._served.get(line.tenant_id, 0.0))

    def _fail_unconfigured(self, tenant_id: str, reason: str, now: datetime) -> None:
        items = self._db.all(self._sql["candidates"], tenant_ids=[tenant_id], wanted=[SPARE], now=now)
        count_failures(self._counts, self._claims.fail_unclaimed([(item, reason, False) for item in items]))

    def _choose(self, lines: Sequence[TwilioAccount], now: datetime) -> tuple[list[CallCandidate], list[float]]:
        """The calls that these tenants' pace allows, and for each that has more the seconds until its next."""
        wanted: list[CallCandidate] = []
        more: list[float] = []
        dialable = self._dialable(lines, now)
        for line in lines:
            calls = dialable.get(line.tenant_id, [])
            if not calls:
                continue
            granted, wait_seconds = line.pace.take(min(line.slots, CALLS_A_TURN, len(calls)))
            wanted += calls[:granted]
            if granted:
                self._served[line.tenant_id] = time.monotonic()
            if len(calls) > granted and line.slots > granted:
                more.append(wait_seconds)
        return wanted, more

    def _dialable(self, lines: Sequence[TwilioAccount], now: datetime) -> dict[str, list[CallCandidate]]:
        """Each tenant's next calls; those that cannot be dialled fail here, and use no slot."""
        by_tenant = {line.tenant_id: line for line in lines}
        numbers: list[tuple[Row, str]] = []
        failed: list[tuple[Row, str, bool]] = []
        sizes = [min(line.slots, CALLS_A_TURN) + SPARE for line in lines]
        for item in self._db.all(self._sql["candidates"], tenant_ids=list(by_tenant), wanted=sizes, now=now):
            try:
                numbers.append((item, to_e164(item["phoneNumber"], item["phoneCountryCode"])))
            except ValueError as error:
                failed.append((item, str(error), True))
        barred = self._barred(numbers, by_tenant)
        found: dict[str, list[CallCandidate]] = {}
        for item, number in numbers:
            tenant_id = item["tenantId"]
            if (tenant_id, number) not in barred:
                found.setdefault(tenant_id, []).append(CallCandidate(by_tenant[tenant_id], number, item))
            elif reason := barred[tenant_id, number]:
                failed.append((item, f"not called: {reason}", True))
        count_failures(self._counts, self._claims.fail_unclaimed(failed))
        return found

    def _barred(
        self, numbers: Sequence[tuple[Row, str]], lines: Mapping[str, TwilioAccount]
    ) -> dict[tuple[str, str], str | None]:
        """Numbers that want no calls, with the reason, and those of an open call (None), which wait."""
        tenant_ids = [item["tenantId"] for item, _ in numbers]
        rows = self._db.all(
            self._sql["barred"],
            tenant_ids=tenant_ids,
            account_sids=[lines[tenant_id].account_sid for tenant_id in tenant_ids],
            numbers=[number for _, number in numbers],
        )
        return {(row["tenant_id"], row["number"]): row["reason"] for row in rows}

    def _submit_call(self, line: TwilioAccount, claim: ClaimedCall) -> None:
        item = claim.item
        form = call_form(
            app_url=self._context.settings.app_url or "",
            to=claim.to_number,
            from_=claim.from_number,
            lead_id=item["leadId"],
            contact_id=item["contactId"],
            call_type=item["callType"],
            timeout_seconds=line.timeout_seconds,
            tenant_recording=line.recording,
            script_recording=item["script_recording"],
        )
        place_until = time.clock_gettime(time.CLOCK_BOOTTIME) + PLACE_SECONDS
        self._lanes.submit(
            claim.id, partial(_place, line, form, place_until), partial(self._settle_call, line, claim)
        )

    def _settle_call(self, line: TwilioAccount, claim: ClaimedCall, lane: Future[PlacedCall | None]) -> None:
        try:
            placed = None if lane.cancelled() else lane.result()
        except SendError as error:
            self._lines.answered(line, error)
            if isinstance(error, Unconfirmed):
                self._claims.doubt(claim, str(error))
            else:
                count_failures(self._counts, [self._claims.fail(claim, error)])
            return
        if placed is None:
            self._claims.put_back(claim)
            self._counts["put_back"] += 1
            return
        self._lines.answered(line, None)
        self._counts["placed"] += self._claims.book(claim, placed)


def _place(line: TwilioAccount, form: list[tuple[str, str]], place_until: float) -> PlacedCall | None:
    """None: too late, the claim may be another worker's by now."""
    if time.clock_gettime(time.CLOCK_BOOTTIME) > place_until:
        return None
    return line.provider.place(form)


if __name__ == "__main__":
    sys.exit(main())
