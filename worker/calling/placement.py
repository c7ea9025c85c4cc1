"""Places claimed calls through Twilio, and settles them by its answers."""

from concurrent.futures import Future
from functools import partial

from worker.calling.accounts import CallingAccounts, TwilioAccount
from worker.calling.claims import CallClaims
from worker.calling.queued_call import CallCandidate, ClaimedCall
from worker.calling.requests import CallRequests
from worker.content.calls import call_form
from worker.errors import SendError, Unconfirmed
from worker.providers.twilio import PlacedCall
from worker.runtime.clock import boot_seconds

PLACE_SECONDS = 20.0  # from the claim to the request; later it may be after hours, or another worker's call


class CallPlacement:
    """Places the calls of one process. ``app_url``: where the CRM takes Twilio's webhooks."""

    def __init__(self, app_url: str, accounts: CallingAccounts, claims: CallClaims, requests: CallRequests) -> None:
        self._app_url = app_url
        self._accounts = accounts
        self._claims = claims
        self._requests = requests

    def submit(self, candidate: CallCandidate, claim: ClaimedCall) -> None:
        """Has a claimed call placed by the next free thread."""
        account, call = candidate.account, candidate.call
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

    def _settle(self, account: TwilioAccount, claim: ClaimedCall, request: Future[PlacedCall | None]) -> None:
        try:
            placed = None if request.cancelled() else request.result()
        except SendError as error:
            self._accounts.record_answer(account, error)
            if isinstance(error, Unconfirmed):
                self._claims.mark_unconfirmed(claim, str(error))
            else:
                self._claims.fail(claim, error)
            return
        if placed is None:
            self._claims.release(claim)
            return
        self._accounts.record_answer(account, None)
        self._claims.book(claim, placed)


def _place(account: TwilioAccount, form: list[tuple[str, str]], place_until: float) -> PlacedCall | None:
    """None when it is too late: another worker may have taken over the claim."""
    if boot_seconds() > place_until:
        return None
    return account.provider.place(form)
