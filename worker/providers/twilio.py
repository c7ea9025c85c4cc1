"""Calls through Twilio: placing a call, and asking whether a call was placed.

Sources: https://www.twilio.com/docs/voice/api/call-resource and https://www.twilio.com/docs/api/errors; the codes are
sorted by what has to happen next, as in the CRM contract. Twilio uses some of them for messages, too.
"""

import re
from base64 import b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlencode

from worker.errors import (
    AccountRejected,
    CountryRejected,
    RecipientDeferred,
    RecipientOptedOut,
    RecipientRefused,
    RetryLater,
    SendError,
    TransportMissing,
    Unconfirmed,
)
from worker.providers.http import Answer, HttpPool, is_header_token
from worker.providers.untrusted import number_at, safe_text, text_at

# code -> what is refused; RetryLater: Twilio did not process the request
CODES: dict[int, type[SendError]] = {
    10004: RetryLater,  # the account has as many calls at once as Twilio allows it
    20429: RetryLater,  # too many requests
    22005: RetryLater,  # the account's queue at Twilio is so long that the call would wait for more than a day
    21211: RecipientRefused,  # not a valid phone number
    21214: RecipientRefused,  # the number cannot be reached
    21216: RecipientRefused,  # this account may not call the number
    21217: RecipientRefused,  # the number does not appear to be valid
    21610: RecipientOptedOut,
    13227: CountryRejected,  # the account's geographic permissions do not allow calls to this country
    21215: CountryRejected,  # ... the same, in the answer to a new call
    21408: CountryRejected,  # ... the same, as for messages
    32205: CountryRejected,  # ... the same, for calls over SIP trunks
    20003: AccountRejected,  # wrong sid or token, or suspended
    21205: AccountRejected,  # invalid URL of the webhook: APP_URL is the same for all calls
    21210: AccountRejected,  # the tenant's own number is not verified
    21212: AccountRejected,  # ... is not a valid phone number
    21213: AccountRejected,  # ... is missing
    21219: AccountRejected,  # it is a trial account, which calls only numbers that it has verified
    21606: AccountRejected,  # ... does not belong to the account
}

_PERMIT = "permit calls to it in Twilio's console: Voice, Settings, Geo permissions"
ADVICE = {
    **dict.fromkeys((13227, 21215, 21408, 32205), _PERMIT),
    10004: "Twilio's console says how to raise the account's limit of calls at once; maxConcurrentCalls may be lower",
    21210: "verify the tenant's twilioPhoneNumber in Twilio's console, or enter a number of the account",
    21212: "correct the tenant's twilioPhoneNumber: +, country code and number",
    21219: "upgrade the Twilio account, or verify the called number in Twilio's console",
    22005: "lower TWILIO_RATE to the calls a second that Twilio has set for the account",
}

# Twilio carries no call from one Indian number to another (https://www.twilio.com/en-us/guidelines/in/voice). What it
# answers is not documented: any refusal of such a call may mean that, except those that clearly say something else.
_INDIA = "+91"
_NOT_ABOUT_INDIA = {10004, 20003, 20429, 21205, 21211, 21213, 21217, 21219, 21610, 22005}
INDIAN_ADVICE = (
    "Twilio carries no calls from Indian to Indian numbers: enter a phone number of another country as the tenant's "
    "twilioPhoneNumber, or call its Indian leads in another way"
)

# For codes that are not in the table the HTTP status decides; other statuses 4xx are taken to concern this call only.
_BY_STATUS: dict[int, type[SendError]] = {
    429: RetryLater,
    **dict.fromkeys((401, 403, 404), AccountRejected),
}

_ACCOUNT_SID = re.compile(r"AC[0-9a-fA-F]{32}")
_CALL_SID = re.compile(r"CA[0-9a-fA-F]{32}")
_STATUS = re.compile(r"[a-z-]{1,32}")
_QUERY = re.compile(r'[!"$-~]+')  # what may stand in a request line, without "#"
_PAGE_SIZE = 100
_MOST_PAGES = 20


@dataclass(frozen=True, slots=True)
class PlacedCall:
    """A call that Twilio has. ``status`` is Twilio's own; 'queued' if the answer has none."""

    sid: str
    status: str


class TwilioProvider:
    """Places calls for one account of one tenant. May be used by several threads at the same time."""

    def __init__(self, api_url: str, account_sid: str | None, auth_token: str | None, pool: HttpPool) -> None:
        """``pool`` is shared, and the caller closes it. Raises TransportMissing for settings that cannot work."""
        if not account_sid or not _ACCOUNT_SID.fullmatch(account_sid):
            raise TransportMissing("Twilio: the tenant's twilioAccountSid must be AC and 32 hexadecimal digits")
        if not auth_token or not is_header_token(auth_token):
            raise TransportMissing(
                "Twilio: the tenant's twilioAuthToken is missing, or contains characters that no token has"
            )
        self._api_url = api_url.rstrip("/")
        self._account_sid = account_sid
        self._calls = f"/2010-04-01/Accounts/{account_sid}/Calls"
        basic = b64encode(f"{account_sid}:{auth_token}".encode("ascii")).decode("ascii")
        self._headers = {"Authorization": f"Basic {basic}"}
        self._secrets = (auth_token, basic)
        self._pool = pool

    def __repr__(self) -> str:
        return f"TwilioProvider(account {self._account_sid})"

    def place(self, form: Iterable[tuple[str, str]]) -> PlacedCall:
        """Places a call with the fields of ``content.calls.call_form``. Raises the kinds of SendError."""
        fields = list(form)
        body = urlencode(fields, errors="replace").encode("ascii")
        answer = self._pool.post(self._url(".json"), body, "application/x-www-form-urlencoded", self._headers)
        if not answer.success:
            raise self._error(answer, dict(fields))
        call = _placed(answer.body)
        if call is None:
            raise Unconfirmed(f"Twilio {answer.without('a call sid')}")
        return call

    def placed_since(self, to: str, from_: str, since: datetime) -> list[PlacedCall]:
        """The calls between two E.164 numbers that were created at ``since`` (aware) or later, newest first.

        Twilio's clock decides, in whole seconds, and the second of ``since`` is included. A call whose date cannot be
        read is included, too. Raises RetryLater when the list is not complete, and AccountRejected.
        """
        since = since.replace(microsecond=0)
        found: list[PlacedCall] = []
        query = urlencode({"To": to, "From": from_, "PageSize": _PAGE_SIZE}, errors="replace")
        for _ in range(_MOST_PAGES):
            body = self._ask(f".json?{query}").body
            dated = _listed(body)
            recent = [(call, at) for call, at in dated if at is None or at >= since]
            if any(call is None for call, _ in recent):
                raise RetryLater("Twilio's list of calls contains one without a sid")
            found += [call for call, _ in recent if call]
            oldest = dated[-1][1] if dated else None
            following = body.get("next_page_uri")
            if following in (None, "") or (oldest is not None and oldest < since):
                return found
            query = self._next_query(following)
        raise RetryLater(f"Twilio lists more than {_MOST_PAGES} pages of calls between the two numbers")

    def status(self, sid: str) -> str | None:
        """Twilio's status of a call; None when Twilio has no such call.

        The same for a ``sid`` that is not CA and 32 hexadecimal digits: Twilio is not asked then. Raises RetryLater
        when there was no clear answer, and AccountRejected.
        """
        if not _CALL_SID.fullmatch(sid):
            return None
        answer = self._ask(f"/{sid}.json", 404)
        if answer.status == 404:
            return None
        status = _readable_status(answer.body)
        if status is None:
            raise RetryLater("Twilio's answer contains no status of the call")
        return status

    def _url(self, rest: str) -> str:
        return f"{self._api_url}{self._calls}{rest}"

    def _ask(self, rest: str, *good: int) -> Answer:
        answer = self._pool.get(self._url(rest), self._headers)
        if answer.success or answer.status in good:
            return answer
        if answer.status == 401 or number_at(answer.body, "code") == 20003:
            raise AccountRejected(self._reason(answer))
        raise RetryLater(self._reason(answer), answer.retry_after_seconds)

    def _next_query(self, uri: Any) -> str:
        """Only the query is taken from the answer, so that the credentials are sent to no other URL."""
        path, _, query = uri.partition("?") if isinstance(uri, str) else ("", "", "")
        if path.lower() != f"{self._calls}.json".lower() or not _QUERY.fullmatch(query):
            raise RetryLater(safe_text(f"Twilio's list of calls continues at another URL: {path}", self._secrets))
        return str(query)

    def _error(self, answer: Answer, form: Mapping[str, str]) -> SendError:
        """What became of a call that was not placed. ``form``: its fields."""
        number = number_at(answer.body, "code")
        kind = CODES.get(number or 0) or _BY_STATUS.get(answer.status)
        if kind is None:
            # 5xx is for later. A redirect was not processed either: TWILIO_API_URL may be wrong.
            kind = RecipientDeferred if 400 <= answer.status < 500 else RetryLater
        reason, code = self._reason(answer), "" if number is None else str(number)
        if issubclass(kind, RetryLater):
            error: SendError = kind(reason, answer.retry_after_seconds, code=code)
        else:
            error = kind(reason, code=code)
        error.advice = _advice(answer.status, number, form)
        return error

    def _reason(self, answer: Answer) -> str:
        code, message = number_at(answer.body, "code"), text_at(answer.body, "message")
        name = f"Twilio HTTP {answer.status}" if code is None else f"Twilio {code}"
        return safe_text(f"{name}: {message}" if message else name, self._secrets)


def _advice(status: int, code: int | None, form: Mapping[str, str]) -> str:
    is_indian = all(form.get(field, "").startswith(_INDIA) for field in ("To", "From"))
    if is_indian and status in range(400, 500) and status not in (401, 404, 429) and code not in _NOT_ABOUT_INDIA:
        return INDIAN_ADVICE
    return ADVICE.get(code or 0, "")


def _listed(body: dict[str, Any]) -> list[tuple[PlacedCall | None, datetime | None]]:
    """Each call of a page with the time when it was created; None for what cannot be read."""
    calls = body.get("calls")
    # A list that cannot be read must not be taken as "no call was placed", or a second call would be placed.
    if not isinstance(calls, list):
        raise RetryLater("Twilio's list of calls cannot be read")
    return [(_placed(call), _date(text_at(call, "date_created"))) for call in calls]


def _placed(body: Any) -> PlacedCall | None:
    sid = text_at(body, "sid")
    return PlacedCall(sid, _readable_status(body) or "queued") if _CALL_SID.fullmatch(sid) else None


def _readable_status(body: Any) -> str | None:
    status = text_at(body, "status")
    return status if _STATUS.fullmatch(status) else None


def _date(value: str) -> datetime | None:
    """An RFC 2822 date, in UTC if it names no zone; None when it cannot be read."""
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)
