"""Places claimed calls through Twilio, and settles them by its answers."""

import logging
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from datetime import datetime
from functools import partial
from typing import cast

from worker.calling.accounts import CallingAccounts, TwilioAccount
from worker.calling.forgotten_calls import ForgottenCalls
from worker.calling.queued_call import Booking, ClaimedCall, ReadyCall
from worker.calling.requests import CallRequests
from worker.calling.settlement import CallSettlement
from worker.content.calls import call_form
from worker.errors import RecipientRefused, SendError, TooLate, Unconfirmed
from worker.providers.handover import handed_over_while
from worker.providers.twilio import PlacedCall
from worker.runtime.clock import boot_seconds
from worker.sending.suppression import SuppressionList, SuppressionWatch

log = logging.getLogger(__name__)

PLACE_SECONDS = 20.0  # from the claim to the request; later it may be after hours, or another worker's call


class _CallInHand:
    """A claimed call until its request has ended; a thread looks at it just before the request leaves."""

    def __init__(self, claim: ClaimedCall, place_until: float) -> None:
        self.claim = claim
        self.opted_out: str | None = None  # why its number may not be called
        self._place_until = place_until

    def may_leave(self) -> bool:
        return self.opted_out is None and boot_seconds() <= self._place_until


class CallPlacement:
    """Places the calls of one process. ``app_url``: where the CRM takes Twilio's webhooks."""

    def __init__(
        self,
        app_url: str,
        accounts: CallingAccounts,
        settlement: CallSettlement,
        requests: CallRequests,
        suppressions: SuppressionWatch,
        clock: Callable[[], datetime],
        forgotten: ForgottenCalls,
    ) -> None:
        self._app_url = app_url
        self._accounts = accounts
        self._settlement = settlement
        self._requests = requests
        self._suppressions = suppressions
        self._clock = clock
        self._forgotten = forgotten
        self._in_hand: dict[str, _CallInHand] = {}  # by id in the queue
        requests.look_before_waiting(self._stop_suppressed)

    def submit(self, call: ReadyCall) -> None:
        """Has a claimed call placed by the next free thread."""
        account, claim = call.account, call.claim
        form = call_form(
            app_url=self._app_url,
            to=claim.to_number,
            from_=claim.from_number,
            lead_id=call.lead_id,
            contact_id=call.contact_id,
            call_type=call.call_type,
            timeout_seconds=account.timeout_seconds,
            tenant_recording=account.recording,
            script_recording=call.script_recording,
        )
        in_hand = self._in_hand[claim.id] = _CallInHand(claim, boot_seconds() + self._may_wait_seconds(call))
        place = partial(_place, account, form, in_hand)
        if since := self._forgotten.since():
            ask = partial(_ask_and_place, account, claim, since, place)
            self._requests.submit(claim.id, ask, partial(self._settle_answer, account, in_hand, place))
        else:
            self._requests.submit(claim.id, place, partial(self._settle, account, in_hand))

    def _may_wait_seconds(self, call: ReadyCall) -> float:
        """How much later the call may still be placed."""
        if call.closes_at is None:
            return PLACE_SECONDS
        return min(PLACE_SECONDS, (call.closes_at - self._clock()).total_seconds())

    def _stop_suppressed(self) -> None:
        """Looks, if it is time for it, which numbers may not be called any more: those calls do not leave."""
        calls = defaultdict(list)
        for each in self._in_hand.values():
            calls[SuppressionList(each.claim.tenant_id, "call")].append(each)
        for changed in self._suppressions.changed(calls):
            numbers = {each.claim.to_number.removeprefix("+") for each in calls[changed]}
            reasons = self._suppressions.suppressed(changed, list(numbers))
            for each in calls[changed]:
                each.opted_out = reasons.get(each.claim.to_number.removeprefix("+"))

    def _settle_answer(
        self,
        account: TwilioAccount,
        in_hand: _CallInHand,
        place: Callable[[], PlacedCall | None],
        request: "Future[PlacedCall | list[PlacedCall] | None]",
    ) -> Booking | None:
        """Twilio has placed the call, or has listed earlier ones that may be it."""
        if request.cancelled() or request.exception() or not isinstance(listed := request.result(), list):
            return self._settle(account, in_hand, cast("Future[PlacedCall | None]", request))
        claim = in_hand.claim
        if forgotten := self._forgotten.find(claim, listed):
            self._in_hand.pop(claim.id, None)
            log.warning("call was placed before PostgreSQL forgot it", {"id": claim.id, "sid": forgotten.sid})
            return Booking(claim, forgotten)
        self._requests.submit(claim.id, place, partial(self._settle, account, in_hand))
        return None

    def _settle(
        self, account: TwilioAccount, in_hand: _CallInHand, request: Future[PlacedCall | None]
    ) -> Booking | None:
        claim = in_hand.claim
        self._in_hand.pop(claim.id, None)
        try:
            placed = None if request.cancelled() else request.result()
        except SendError as error:
            self._accounts.record_answer(account, error, claim.to_number)
            if isinstance(error, Unconfirmed):
                self._settlement.mark_unconfirmed(claim, str(error))
            else:
                self._settlement.fail(claim, error)
            return None
        if placed is None and in_hand.opted_out:
            self._settlement.fail(claim, RecipientRefused(f"not called: {in_hand.opted_out}"))
            return None
        if placed is None:
            self._settlement.release(claim)
            return None
        self._accounts.record_answer(account, None)
        return Booking(claim, placed)


def _ask_and_place(
    account: TwilioAccount, claim: ClaimedCall, since: datetime, place: Callable[[], PlacedCall | None]
) -> PlacedCall | list[PlacedCall] | None:
    """The calls to the number since then, if Twilio has any; else the call is placed.

    Raises SendError, also when Twilio cannot be asked.
    """
    return account.provider.placed_since(claim.to_number, claim.from_number, since) or place()


def _place(account: TwilioAccount, form: list[tuple[str, str]], in_hand: _CallInHand) -> PlacedCall | None:
    """None when its number was suppressed, when it is too late for its number, or when another worker may have it."""
    if not in_hand.may_leave():
        return None
    try:
        with handed_over_while(in_hand.may_leave):
            return account.provider.place(form)
    except TooLate:  # on the way to the server
        return None
