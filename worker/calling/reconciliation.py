"""Asks Twilio what became of calls: unconfirmed ones, and those whose webhook was lost.

A call is unconfirmed when its process died after the claim, or when Twilio's answer never came.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from functools import partial

import psycopg2

from worker.calling.accounts import CallingAccounts, CallSettings, TwilioAccount
from worker.calling.claims import CLOCK_SKEW_SECONDS, CallClaims
from worker.calling.queued_call import Booking, ClaimedCall, QueuedCall, StaleCall
from worker.calling.refusals import concerns_row, reason_of
from worker.calling.reporting import CallReporter
from worker.calling.requests import CallRequests
from worker.calling.settlement import CallSettlement
from worker.content.calls import crm_status
from worker.content.phones import to_e164
from worker.errors import SendError, TransportMissing
from worker.providers.twilio import PlacedCall
from worker.runtime.db import queries
from worker.runtime.job import JobContext
from worker.runtime.lease import LEASE_SECONDS

log = logging.getLogger(__name__)

SKIP_SECONDS = 600.0  # a tenant whose calls could not be checked is skipped for so long


class CallReconciliation:
    """The questions that one process asks."""

    def __init__(
        self,
        context: JobContext,
        accounts: CallingAccounts,
        claims: CallClaims,
        settlement: CallSettlement,
        requests: CallRequests,
        reporter: CallReporter,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._context = context
        self._db = context.database
        self._accounts = accounts
        self._claims = claims
        self._settlement = settlement
        self._requests = requests
        self._reporter = reporter
        self._monotonic = monotonic
        self._sql = queries("calls")
        self._skip_until: dict[str, float] = {}  # tenant -> monotonic() when its calls may be checked again

    def ask_about_unconfirmed(self, now: datetime) -> None:
        """Asks whether unconfirmed calls were placed, and settles them by the answers."""
        self._claims.mark_orphans_unconfirmed(self._requests.keys)
        before = now - timedelta(seconds=LEASE_SECONDS)
        for stuck in self._claims.stuck_calls(before):
            self._adopt(stuck, before)
        while self._context.may_continue and self._requests.free:
            taken = self._claims.take_unconfirmed(self._context.clock(), self._requests.free, self._requests.keys)
            if not taken:
                return
            for claim in taken:
                self._ask(claim)
            self._requests.finish()

    def check_stale(self, now: datetime) -> None:
        """Asks for the status of calls whose webhook was lost, so that they do not keep a slot for ever."""
        before = -1
        while self._context.may_continue and self._requests.free and before < self._progress():
            before = self._progress()
            rows = self._db.all(
                self._sql["stale_calls"], now=now, skipped_tenants=self._skipped(), size=self._requests.free
            )
            for row in rows:
                self._check(StaleCall(**row))
            self._requests.finish()

    def _adopt(self, stuck: QueuedCall, before: datetime) -> None:
        try:
            account = self._account_of(stuck.tenant_id)
            number = to_e164(stuck.phone_number, stuck.phone_country_code)
        except (TransportMissing, ValueError) as error:
            self._settlement.unclaimed.fail_stuck(stuck, str(error), before)
        else:
            self._claims.adopt(
                stuck, before, account_sid=account.account_sid, from_number=account.from_number, to_number=number
            )

    def _ask(self, claim: ClaimedCall) -> None:
        try:
            account = self._account_of(claim.tenant_id)
        except TransportMissing as error:
            self._ask_later(claim, str(error))
            return
        if account.account_sid != claim.account_sid:
            self._ask_later(claim, "the tenant's Twilio account has changed")
            return
        since = (claim.claimed_at - timedelta(seconds=CLOCK_SKEW_SECONDS)).replace(tzinfo=UTC)
        question = partial(account.provider.placed_since, claim.to_number, claim.from_number, since)
        self._requests.submit(claim.id, question, partial(self._settle_question, claim))

    def _settle_question(self, claim: ClaimedCall, request: Future[list[PlacedCall]]) -> None:
        if request.cancelled():
            return  # asked again when its time comes
        self._reporter.counts.asked += 1
        try:
            possible = self._claims.possible_calls(claim, request.result())
        except SendError as error:
            self._ask_later(claim, str(error))
            return
        if possible.own:
            self._settlement.book(Booking(claim, possible.own[-1]))
        elif possible.doubtful:
            sid = possible.doubtful[-1].sid
            self._settlement.give_up(claim, f"Twilio's call {sid} is in the log already, for no row of the queue")
        elif claim.reason is None:  # its process died, which is no fault of the call
            self._settlement.release(claim)
        else:
            self._settlement.fail(claim, SendError(f"Twilio knows of no call: {claim.reason}"))

    def _ask_later(self, claim: ClaimedCall, reason: str) -> None:
        """Twilio could not be asked: it is asked again later, until the call is given up."""
        if self._settlement.is_overdue(claim):
            self._settlement.give_up(claim, reason)
            return
        self._settlement.mark_unconfirmed(claim, claim.reason, asked=claim.asked + 1)
        self._accounts.report_problem(claim.tenant_id, f"Twilio cannot be asked about a call: {reason}")

    def _progress(self) -> int:
        """Grows with each call that was checked, and with each tenant that has to be skipped."""
        return self._reporter.counts.checked + len(self._skip_until)

    def _skipped(self) -> list[str]:
        now = self._monotonic()
        self._skip_until = {tenant_id: until for tenant_id, until in self._skip_until.items() if until > now}
        return list(self._skip_until)

    def _skip(self, tenant_id: str) -> None:
        self._skip_until[tenant_id] = self._monotonic() + SKIP_SECONDS

    def _check(self, call: StaleCall) -> None:
        try:
            account = self._account_of(call.tenant_id)
        except TransportMissing:
            self._skip(call.tenant_id)
            return
        if call.id not in self._requests.keys:
            request = partial(account.provider.status, call.sid)
            self._requests.submit(call.id, request, partial(self._settle_check, call))

    def _settle_check(self, call: StaleCall, request: Future[str | None]) -> None:
        if request.cancelled():
            return
        try:
            answer = request.result() or "failed"  # Twilio has no such call
        except SendError as error:
            self._report_unchecked(call, str(error))
            return
        status = crm_status(answer, otherwise=call.status)
        try:
            self._db.execute(
                self._sql["refresh_status"],
                id=call.id,
                tenant_id=call.tenant_id,
                status=status,
                old_status=call.status,
                now=self._context.clock(),
            )
        except psycopg2.Error as error:
            if not concerns_row(error):
                raise
            self._report_unchecked(call, f"the database refuses it: {reason_of(error)}")
            return
        log.info("call checked, its webhook was lost", {"sid": call.sid, "tenant": call.tenant_id, "is": status})
        self._reporter.counts.checked += 1

    def _report_unchecked(self, call: StaleCall, reason: str) -> None:
        log.warning("a call's status cannot be checked", {"tenant": call.tenant_id, "reason": reason})
        self._skip(call.tenant_id)

    def _account_of(self, tenant_id: str) -> TwilioAccount:
        """Raises TransportMissing."""
        row = self._db.one(self._sql["call_settings"], tenant_id=tenant_id)
        if row is None:
            raise TransportMissing("Twilio is not configured: the tenant has no call settings")
        return self._accounts.account(CallSettings.from_row(row))
