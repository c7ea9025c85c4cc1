"""Calls of which nobody knows what became of them: Twilio is asked.

A dead worker's, one without an answer, one whose webhook was lost.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from functools import partial

from worker.calling.accounts import CallingAccounts, TwilioAccount
from worker.calling.claims import (
    CLOCK_SKEW_SECONDS,
    DOUBT_SECONDS,
    LEAST_QUESTIONS,
    CallClaims,
    ClaimedCall,
    count_failures,
    known_status,
)
from worker.calling.requests import CallRequests
from worker.content.phones import to_e164
from worker.errors import SendError, TransportMissing
from worker.providers.twilio import PlacedCall
from worker.runtime.db import Database, Row, queries

log = logging.getLogger(__name__)

SILENT_SECONDS = 600.0  # a tenant whose calls could not be checked is left alone for so long


class CallReconciliation:
    """What one process does about them. ``counts``: the tick's, as CallsJob makes them."""

    def __init__(
        self,
        db: Database,
        claims: CallClaims,
        lines: CallingAccounts,
        lanes: CallRequests,
        clock: Callable[[], datetime],
    ) -> None:
        self.counts: dict[str, int] = {}
        self._db = db
        self._sql = queries("calls")
        self._claims = claims
        self._lines = lines
        self._lanes = lanes
        self._clock = clock
        self._silent: dict[str, float] = {}  # tenant -> time.monotonic() when its calls may be checked again

    def resolve(self, now: datetime, may_claim: Callable[[], bool]) -> None:
        """Asks Twilio about calls of which nobody knows whether they were placed."""
        self._claims.doubt_orphans(self._lanes.keys)
        for item in self._claims.stuck(now):
            self._adopt(item)
        while may_claim() and self._lanes.free:
            claims = self._claims.take_doubtful(self._clock(), self._lanes.free, self._lanes.keys)
            if not claims:
                return
            for claim in claims:
                self._ask(claim)
            self._lanes.finish()

    def _adopt(self, item: Row) -> None:
        try:
            line = self._line_of(item["tenantId"])
            number = to_e164(item["phoneNumber"], item["phoneCountryCode"])
        except (TransportMissing, ValueError) as error:
            count_failures(self.counts, self._claims.fail_stuck(item, str(error)))
            return
        self._claims.adopt(item, line, number)

    def _ask(self, claim: ClaimedCall) -> None:
        try:
            line = self._line_of(claim.tenant_id)
        except TransportMissing as error:
            self._leave_in_doubt(claim, str(error))
            return
        if line.account_sid != claim.account_sid:
            self._leave_in_doubt(claim, "the tenant's Twilio account is another one now")
            return
        since = (claim.claimed_at - timedelta(seconds=CLOCK_SKEW_SECONDS)).replace(tzinfo=UTC)
        question = partial(line.provider.placed_since, claim.to_number, claim.from_number, since)
        self._lanes.submit(claim.id, question, partial(self._settle_doubt, claim))

    def _settle_doubt(self, claim: ClaimedCall, lane: Future[list[PlacedCall]]) -> None:
        if lane.cancelled():
            return  # asked again when its time comes
        self.counts["asked"] += 1
        try:
            calls = self._claims.possible_of(claim, lane.result())
        except SendError as error:
            self._leave_in_doubt(claim, str(error))
            return
        if calls:
            self.counts["placed"] += self._claims.book(claim, calls[-1])
        elif claim.reason is None:  # its worker died: no fault of the call
            self._claims.put_back(claim)
            self.counts["put_back"] += 1
        else:
            status = self._claims.fail(claim, SendError(f"Twilio knows of no call: {claim.reason}"))
            count_failures(self.counts, [status])

    def _leave_in_doubt(self, claim: ClaimedCall, reason: str) -> None:
        asked = claim.asked + 1
        if asked >= LEAST_QUESTIONS and (self._clock() - claim.claimed_at).total_seconds() > DOUBT_SECONDS:
            count_failures(self.counts, [self._claims.give_up(claim, reason)])
            return
        self._claims.doubt(claim, claim.reason, asked=asked)
        self._lines.complain(claim.tenant_id, f"Twilio cannot be asked about a call: {reason}")

    def check_stale(self, now: datetime, may_claim: Callable[[], bool]) -> None:
        """Asks Twilio about calls whose webhook was lost, so that they do not keep a slot for ever."""
        known = -1  # how much was found out before
        while may_claim() and self._lanes.free and known < self.counts["checked"] + len(self._silent):
            known = self.counts["checked"] + len(self._silent)
            for row in self._db.all(self._sql["stale"], now=now, silent=self._silenced(), size=self._lanes.free):
                self._check(row)
            self._lanes.finish()

    def _silenced(self) -> list[str]:
        self._silent = {tenant_id: until for tenant_id, until in self._silent.items() if until > time.monotonic()}
        return list(self._silent)

    def _check(self, row: Row) -> None:
        try:
            line = self._line_of(row["tenant_id"])
        except TransportMissing:
            self._silent[row["tenant_id"]] = time.monotonic() + SILENT_SECONDS
            return
        if row["id"] not in self._lanes.keys:
            request = partial(line.provider.status, row["sid"])
            self._lanes.submit(row["id"], request, partial(self._settle_check, row))

    def _settle_check(self, row: Row, lane: Future[str | None]) -> None:
        if lane.cancelled():
            return
        try:
            status = lane.result() or "failed"  # Twilio has no such call
        except SendError as error:
            log.warning("a call cannot be checked", {"tenant": row["tenant_id"], "reason": error})
            self._silent[row["tenant_id"]] = time.monotonic() + SILENT_SECONDS
            return
        status = known_status(status, row["status"])
        self._db.all(self._sql["refresh"], id=row["id"], status=status, old_status=row["status"], now=self._clock())
        log.info("call checked, its webhook was lost", {"sid": row["sid"], "tenant": row["tenant_id"], "is": status})
        self.counts["checked"] += 1

    def _line_of(self, tenant_id: str) -> TwilioAccount:
        """Raises TransportMissing."""
        row = self._db.one(self._sql["line"], tenant_id=tenant_id)
        if row is None:
            raise TransportMissing("Twilio is not configured: the tenant has no call settings")
        return self._lines.line(row)
