"""Places claimed calls through Twilio, and settles them by its answers."""

from concurrent.futures import Future
from functools import partial

from worker.calling.accounts import CallingAccounts, TwilioAccount
from worker.calling.queued_call import Booking, ClaimedCall, ReadyCall
from worker.calling.requests import CallRequests
from worker.calling.settlement import CallSettlement
from worker.content.calls import call_form
from worker.errors import SendError, TooLate, Unconfirmed
from worker.providers.handover import handed_over_while
from worker.providers.twilio import PlacedCall
from worker.runtime.clock import boot_seconds

PLACE_SECONDS = 20.0  # from the claim to the request; later it may be after hours, or another worker's call


class CallPlacement:
    """Places the calls of one process. ``app_url``: where the CRM takes Twilio's webhooks."""

    def __init__(
        self, app_url: str, accounts: CallingAccounts, settlement: CallSettlement, requests: CallRequests
    ) -> None:
        self._app_url = app_url
        self._accounts = accounts
        self._settlement = settlement
        self._requests = requests

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
        request = partial(_place, account, form, boot_seconds() + PLACE_SECONDS)
        self._requests.submit(claim.id, request, partial(self._settle, account, claim))

    def _settle(
        self, account: TwilioAccount, claim: ClaimedCall, request: Future[PlacedCall | None]
    ) -> Booking | None:
        try:
            placed = None if request.cancelled() else request.result()
        except SendError as error:
            self._accounts.record_answer(account, error)
            if isinstance(error, Unconfirmed):
                self._settlement.mark_unconfirmed(claim, str(error))
            else:
                self._settlement.fail(claim, error)
            return None
        if placed is None:
            self._settlement.release(claim)
            return None
        self._accounts.record_answer(account, None)
        return Booking(claim, placed)


def _place(account: TwilioAccount, form: list[tuple[str, str]], place_until: float) -> PlacedCall | None:
    """None when it is too late: another worker may have taken over the claim."""
    if boot_seconds() > place_until:
        return None
    try:
        with handed_over_while(lambda: boot_seconds() <= place_until):
            return account.provider.place(form)
    except TooLate:  # this process was frozen on the way
        return None
