"""WhatsApp messages through Meta's Cloud API, and what its error codes mean for a campaign.

Source of the codes: https://developers.facebook.com/docs/whatsapp/cloud-api/support/error-codes, sorted by what has
to happen next, as in the CRM contract.
"""

from worker.errors import (
    AccountRejected,
    CampaignRejected,
    RecipientDeferred,
    RecipientExcluded,
    RecipientOptedOut,
    RecipientRefused,
    RetryLater,
    SendError,
    TransportMissing,
    Unconfirmed,
)
from worker.messages import Accepted, WhatsAppMessage
from worker.providers.http import Answer, HttpPool, bearer, json_body
from worker.providers.untrusted import code_at, id_at, safe_text, text_at

# error.code -> seconds to wait when the answer names none (None: the caller's own backoff)
RETRY: dict[int, float | None] = {
    1: None,  # an unknown error of Meta
    2: None,  # the API is temporarily unavailable
    4: None,  # too many requests of the app
    17: None,  # too many requests of the user
    613: None,  # too many requests
    80007: None,  # too many requests of the business account
    130429: None,  # too many messages of the phone id
    131000: None,  # something went wrong
    131016: None,  # service unavailable
    131057: None,  # the business account is in maintenance
    132069: None,  # the flow in the template is throttled
    133004: None,  # the server is temporarily unavailable
    131056: 6.0,  # too many messages to this recipient: one in 6 seconds is allowed
    131049: 24 * 3600.0,  # Meta limits marketing messages to one person: not before tomorrow
}

# Limits of one recipient, which say nothing about others.
PAIR_LIMIT, ENGAGEMENT_LIMIT = 131056, 131049
PAIR_DELAY_BASE = 4.0  # the nth pause has 4 ** n seconds and at least 6; Meta asks for 4 ** (n - 1)
ENGAGEMENT_ATTEMPTS = 3  # the first one and two more, a day apart
NO_MARKETING = "1"  # Meta delivers no marketing messages to numbers of +1: another try would be in vain

# Refusals of one person, however many in a row. Others that everybody gets are about the campaign or the account: a
# text outside of the 24 hours (131047), a list of a country that the business may not write to (130497).
PERSONAL = {131021, 131026}

# error.code -> what is refused
REFUSED: dict[int, type[SendError]] = {
    131026: RecipientRefused,  # not on WhatsApp, or with an app that is too old
    131047: RecipientRefused,  # the 24-hour window is closed: needs a template
    131050: RecipientOptedOut,  # opted out of marketing messages
    130472: RecipientExcluded,  # takes part in an experiment of Meta: gets no marketing messages
    130497: RecipientRefused,  # the business may not send to this country
    131021: RecipientRefused,  # the number is the sender's own
    131008: CampaignRejected,  # a parameter is missing
    131009: CampaignRejected,  # a parameter has a wrong value
    131030: RecipientRefused,  # not on the list of a number that is for tests only
    131051: CampaignRejected,  # no such kind of message
    131052: CampaignRejected,  # the media cannot be downloaded
    131053: CampaignRejected,  # the media cannot be uploaded
    132000: CampaignRejected,  # wrong number of template parameters
    132001: CampaignRejected,  # no such template in this language
    132007: CampaignRejected,  # the template violates a policy
    132008: CampaignRejected,  # a template parameter has a wrong format
    132012: CampaignRejected,  # a template parameter has a wrong format
    132015: CampaignRejected,  # the template is paused
    132016: CampaignRejected,  # the template is disabled
    132068: CampaignRejected,  # the flow in the template is blocked
    0: AccountRejected,  # authentication failed
    3: AccountRejected,  # the app may not do this
    10: AccountRejected,  # permission denied
    33: AccountRejected,  # the phone number was deleted
    102: AccountRejected,  # the session of the access token has ended
    190: AccountRejected,  # the access token has expired
    368: AccountRejected,  # blocked for violating a policy
    131005: AccountRejected,  # access denied
    131031: AccountRejected,  # the account is locked
    131037: AccountRejected,  # the display name of the number is not approved
    131042: AccountRejected,  # payment
    131044: AccountRejected,  # payment
    131048: AccountRejected,  # too many messages of this number were reported as spam
    131045: AccountRejected,  # the phone number's certificate is wrong
    133005: AccountRejected,  # the PIN of the number is wrong
    133006: AccountRejected,  # the phone number has to be verified again
    133010: AccountRejected,  # the phone number is not registered
    133015: AccountRejected,  # the phone number was deleted just now
    133016: AccountRejected,  # the phone number was registered too often
    134011: AccountRejected,  # the terms of payments are not accepted
    **dict.fromkeys(range(200, 300), AccountRejected),  # permissions of the app
}
# Code 100 means an invalid parameter, unless this subcode says that the phone id itself is not there, or not ours.
NO_SUCH_OBJECT = (100, 33)

# Of answers without a code, which are not from Meta's API but from what is before it, or instead of it. With a code
# that is in neither table, 4xx refuses this message only: where it is about the account, everybody gets it, and
# REFUSAL_BREAKER ends the campaign.
_WITHOUT_CODE = {401, 403, 404}


class WhatsAppProvider:
    """Sends from one phone id of one tenant. May be used by several threads at the same time."""

    def __init__(self, api_url: str, phone_id: str, token: str, pool: HttpPool) -> None:
        """``pool`` is shared, and the caller closes it. Raises TransportMissing for settings that cannot work."""
        if not (phone_id.isascii() and phone_id.isdigit()):
            raise TransportMissing("WhatsApp: the tenant's whatsapp.phoneId must be the digits of a phone number id")
        if not token:
            raise TransportMissing("WhatsApp: the tenant's whatsapp.token is missing")
        self._url = f"{api_url.rstrip('/')}/{phone_id}/messages"
        self._phone_id = phone_id
        self._token = token
        self._pool = pool

    def __repr__(self) -> str:
        return f"WhatsAppProvider(phone id {self._phone_id})"

    def send(self, message: WhatsAppMessage) -> Accepted:
        """Sends one message; ``Accepted.message_id`` is the wamid. Raises the kinds of SendError."""
        body = json_body(message.payload)
        answer = self._pool.post(self._url, body, "application/json", bearer(self._token))
        wamid = id_at(answer.body, "messages", 0, "id")
        if not answer.success or (not wamid and self._is_known(answer)):
            raise self._error(answer, message.to)
        if not wamid:
            raise Unconfirmed(f"WhatsApp {answer.without('a message id')}")
        return Accepted(message_id=wamid)

    def close(self) -> None:
        """Does nothing: the caller closes the pool."""

    @staticmethod
    def _is_known(answer: Answer) -> bool:
        """Whether the error in an answer has a code that says what happened, whatever the status says."""
        code = code_at(answer.body, "error", "code")
        return code in RETRY or code in REFUSED or _is_no_such_object(answer)

    def _error(self, answer: Answer, to: str) -> SendError:
        code = code_at(answer.body, "error", "code")
        reason, said = self._reason(answer, code), str(answer.status if code is None else code)
        if code in RETRY:
            waits = [seconds for seconds in (RETRY[code], answer.retry_after_seconds) if seconds is not None]
            return _deferral(code, reason, max(waits, default=None), to)
        if _is_no_such_object(answer):
            return AccountRejected(reason, code=said)
        if code in PERSONAL:
            return RecipientRefused(reason, code=said, address_fault=True)
        if code in REFUSED:
            return REFUSED[code](reason, code=said)
        if code is None and answer.status in _WITHOUT_CODE:
            return AccountRejected(reason, code=said)
        if 400 <= answer.status < 500 and answer.status != 429:
            return RecipientRefused(reason, code=said)
        # 429 and 5xx. A redirect was not processed either: WHATSAPP_API_URL may be wrong.
        return RetryLater(reason, answer.retry_after_seconds, code=said)

    def _reason(self, answer: Answer, code: int | None) -> str:
        name = f"WhatsApp {code}" if code is not None else f"WhatsApp HTTP {answer.status}"
        message = text_at(answer.body, "error", "message")
        details = text_at(answer.body, "error", "error_data", "details")
        return safe_text(": ".join(filter(None, (name, message, details))), [self._token])


def _is_no_such_object(answer: Answer) -> bool:
    return (code_at(answer.body, "error", "code"), code_at(answer.body, "error", "error_subcode")) == NO_SUCH_OBJECT


def _deferral(code: int, reason: str, delay_seconds: float | None, to: str) -> RetryLater:
    """``to``: the recipient, in digits with country code."""
    said = str(code)
    if code == PAIR_LIMIT:
        return RecipientDeferred(reason, delay_seconds, code=said, delay_base=PAIR_DELAY_BASE)
    if code == ENGAGEMENT_LIMIT:
        attempts = 1 if to.startswith(NO_MARKETING) else ENGAGEMENT_ATTEMPTS
        return RecipientDeferred(reason, delay_seconds, code=said, max_attempts=attempts)
    return RetryLater(reason, delay_seconds, code=said)
