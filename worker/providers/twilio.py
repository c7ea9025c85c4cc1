"""Calls through Twilio: placing one, and finding out whether one was placed.

Sources: https://www.twilio.com/docs/voice/api/call-resource and https://www.twilio.com/docs/api/errors, the
codes sorted by what has to happen next as the CRM contract does.
"""

import re
from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlencode

from worker.errors import (
    AccountRejected,
    RecipientDeferred,
    RecipientOptedOut,
    RecipientRefused,
    RetryLater,
    SendError,
    TransportMissing,
    Unconfirmed,
)
from worker.providers.http import Answer, HttpPool
from worker.providers.untrusted import printable

# code -> what is refused; RetryLater: Twilio did not process it
CODES: dict[int, type[SendError]] = {
    20429: RetryLater,  # too many requests
    21211: RecipientRefused,  # not a phone number
    21214: RecipientRefused,  # cannot be reached
    21216: RecipientRefused,  # this account may not call it
    21217: RecipientRefused,  # does not appear to be valid
    21610: RecipientOptedOut,
    20003: AccountRejected,  # wrong sid or token, or suspended
    21205: AccountRejected,  # the webhook's address: APP_URL is the same for all calls
    21210: AccountRejected,  # the tenant's own number is not verified
    21212: AccountRejected,  # ... is no phone number
    21213: AccountRejected,  # ... is missing
    21606: AccountRejected,  # ... is not the account's
}

# Codes that the table does not know go by the HTTP status; the rest of 4xx is taken to mean this one call.
_BY_STATUS: dict[int, type[SendError]] = {
    429: RetryLater,
    **dict.fromkeys((401, 403, 404), AccountRejected),
}

_ACCOUNT_SID = re.compile(r"AC[0-9a-fA-F]{32}")
_CALL_SID = re.compile(r"CA[0-9a-fA-F]{32}")
_STATUS = re.compile(r"[a-z-]{1,32}")
_QUERY = re.compile(r'[!"$-~]+')  # what can stand in a request line, and no '#'
_PAGE_SIZE = 100
_MOST_PAGES = 20


@dataclass(frozen=True, slots=True)
class PlacedCall:
    """A call that Twilio knows. ``status`` is in Twilio's words; 'queued' where it named none."""

    sid: str
    status: str


class TwilioProvider:
    """Places calls for one account of one tenant. Safe for many threads at once."""

    def __init__(self, api_url: str, account_sid: str | None, auth_token: str | None, pool: HttpPool) -> None:
        """``pool`` is shared and stays the caller's. TransportMissing: settings that cannot work."""
        if not account_sid or not _ACCOUNT_SID.fullmatch(account_sid):
            raise TransportMissing("Twilio: the tenant's twilioAccountSid must be AC and 32 hexadecimal digits")
        if not auth_token or not all("!" <= character <= "~" for character in auth_token):
            raise TransportMissing("Twilio: the tenant's twilioAuthToken is missing or holds what no token has")
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
        """Place a call with the fields of ``content.calls.call_form``. Raises the SendError kinds."""
        body = urlencode(list(form), errors="replace").encode("ascii")
        answer = self._pool.post(self._url(".json"), body, "application/x-www-form-urlencoded", self._headers)
        if not 200 <= answer.status < 300:
            raise self._refusal(answer)
        call = _placed(answer.body)
        if call is None:
            raise Unconfirmed(f"Twilio answered {answer.status} without a call sid")
        return call

    def placed_since(self, to: str, from_: str, since: datetime) -> list[PlacedCall]:
        """The calls between two E.164 numbers that were made at ``since`` (aware) or later, newest first.

        Twilio's clock decides, in whole seconds: the second of ``since`` counts. A call whose date cannot be read
        counts too. Raises RetryLater when the question was not answered to its end, AccountRejected.
        """
        since = since.replace(microsecond=0)
        found: list[PlacedCall] = []
        query = urlencode({"To": to, "From": from_, "PageSize": _PAGE_SIZE}, errors="replace")
        for _ in range(_MOST_PAGES):
            body = self._ask(f".json?{query}").body
            dated = _listed(body)
            recent = [(call, at) for call, at in dated if at is None or at >= since]
            if any(call is None for call, _ in recent):
                raise RetryLater("Twilio's list of calls names one without a sid")
            found += [call for call, _ in recent if call]
            oldest = dated[-1][1] if dated else None
            following = body.get("next_page_uri")
            if following in (None, "") or (oldest is not None and oldest < since):
                return found
            query = self._next_query(following)
        raise RetryLater(f"Twilio lists more than {_MOST_PAGES} pages of calls between the two numbers")

    def status(self, sid: str) -> str | None:
        """The status of a call in Twilio's words; None when Twilio has no such call.

        That is so for a ``sid`` that is not CA and 32 hexadecimal digits, too: Twilio is not asked then. Raises
        RetryLater when the question was not answered, AccountRejected.
        """
        if not _CALL_SID.fullmatch(sid):
            return None
        answer = self._ask(f"/{sid}.json", 404)
        if answer.status == 404:
            return None
        status = _readable_status(answer.body)
        if status is None:
            raise RetryLater("Twilio's answer names no status of the call")
        return status

    def _url(self, rest: str) -> str:
        return f"{self._api_url}{self._calls}{rest}"

    def _ask(self, rest: str, *good: int) -> Answer:
        answer = self._pool.get(self._url(rest), self._headers)
        if 200 <= answer.status < 300 or answer.status in good:
            return answer
        if answer.status == 401 or _code(answer.body) == 20003:
            raise AccountRejected(self._reason(answer))
        raise RetryLater(self._reason(answer), answer.retry_after_seconds)

    def _next_query(self, uri: Any) -> str:
        """Only the query is taken from the answer, so that the credentials go nowhere else."""
        path, _, query = uri.partition("?") if isinstance(uri, str) else ("", "", "")
        if path.lower() != f"{self._calls}.json".lower() or not _QUERY.fullmatch(query):
            raise RetryLater(printable(f"Twilio's list of calls goes on elsewhere: {path}", self._secrets))
        return str(query)

    def _refusal(self, answer: Answer) -> SendError:
        kind = CODES.get(_code(answer.body) or 0) or _BY_STATUS.get(answer.status)
        if kind is None:
            # 5xx by the contract. A redirect was not processed either: TWILIO_API_URL may be wrong.
            kind = RecipientDeferred if 400 <= answer.status < 500 else RetryLater
        reason = self._reason(answer)
        return kind(reason, answer.retry_after_seconds) if issubclass(kind, RetryLater) else kind(reason)

    def _reason(self, answer: Answer) -> str:
        code, said = _code(answer.body), answer.body.get("message")
        name = f"Twilio HTTP {answer.status}" if code is None else f"Twilio {code}"
        return printable(f"{name}: {said}" if isinstance(said, str) and said else name, self._secrets)


def _code(body: dict[str, Any]) -> int | None:
    code = body.get("code")
    return code if isinstance(code, int) else None


def _listed(body: dict[str, Any]) -> list[tuple[PlacedCall | None, datetime | None]]:
    """Each call of a page with the moment it was made; None for what cannot be read."""
    calls = body.get("calls")
    # What cannot be read must not pass for "no call was placed": a second one would follow.
    if not isinstance(calls, list):
        raise RetryLater("Twilio's list of calls cannot be read")
    bodies = [call if isinstance(call, dict) else {} for call in calls]
    return [(_placed(call), _moment(call.get("date_created"))) for call in bodies]


def _placed(body: dict[str, Any]) -> PlacedCall | None:
    sid = body.get("sid")
    if not isinstance(sid, str) or not _CALL_SID.fullmatch(sid):
        return None
    return PlacedCall(sid, _readable_status(body) or "queued")


def _readable_status(body: dict[str, Any]) -> str | None:
    status = body.get("status")
    return status if isinstance(status, str) and _STATUS.fullmatch(status) else None


def _moment(value: Any) -> datetime | None:
    """An RFC 2822 date, in UTC where it names no zone; None when it cannot be read."""
    if not isinstance(value, str):
        return None
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
