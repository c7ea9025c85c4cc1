"""E-mail through the Gmail API, as the user who connected the account.

Source: https://developers.google.com/gmail/api/guides/handle-errors and the CRM contract's table.
"""

import base64
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any
from urllib.parse import quote

from worker.errors import (
    AccountRejected,
    CampaignRejected,
    RecipientRefused,
    RetryLater,
    SendError,
    Unconfirmed,
)
from worker.messages import Accepted, Email
from worker.providers.google_token import GoogleToken, aware_utc_now
from worker.providers.http import Answer, HttpPool, bearer
from worker.providers.untrusted import id_at, list_at, safe_text, text_at

# "Tomorrow" in the CRM contract. Limits on sending count the last 24 hours; the API's own quota is reset at midnight
# Pacific time, which is sooner. So one day is right for both, and no time zone has to be known.
_A_DAY_SECONDS = 24 * 3600.0

# 403 or 429 with one of these reasons (in the old spelling or that of ErrorInfo) -> seconds to wait, None: unknown
_LIMITS: dict[str, float | None] = {
    "ratelimitexceeded": None,
    "userratelimitexceeded": None,
    "dailylimitexceeded": _A_DAY_SECONDS,
}
_RETRY_AFTER = re.compile(r"Retry after (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z)", re.IGNORECASE)
_BAD_RECIPIENT = re.compile(r"invalid to\b|recipient address", re.IGNORECASE)


class GmailProvider:
    """Sends as one user. May be used by several threads at the same time."""

    def __init__(
        self, api_url: str, token: GoogleToken, pool: HttpPool, clock: Callable[[], datetime] = aware_utc_now
    ) -> None:
        """``pool`` is shared, and the caller closes it; ``clock`` returns aware times."""
        self._messages = f"{api_url.rstrip('/')}/gmail/v1/users/me/messages"
        self._token = token
        self._pool = pool
        self._clock = clock

    def __repr__(self) -> str:
        return f"GmailProvider({self._messages})"

    def send(self, message: Email) -> Accepted:
        """Sends one message. Raises the kinds of SendError; InvalidGrant when the user has withdrawn the consent."""
        body = b'{"raw":"%b"}' % base64.urlsafe_b64encode(message.content)  # without a character that JSON escapes
        answer = self._ask("POST", f"{self._messages}/send", body)
        if not answer.success:
            raise self._error(answer)
        accepted = _accepted(message.message_id, answer.body)
        if accepted is None:
            raise Unconfirmed(f"Gmail {answer.without('a message id')}")
        return accepted

    def find(self, message_id: str) -> Accepted | None:
        """Gmail's ids of the message with this Message-ID (with its angle brackets); None if Gmail does not have it.

        Source: https://support.google.com/mail/answer/7190, operator rfc822msgid. Raises RetryLater when there was no
        clear answer, else as ``send``. Gmail's index may be some seconds behind.
        """
        answer = self._ask("GET", f"{self._messages}?q={quote(f'rfc822msgid:{message_id}', safe='')}")
        if not answer.success:
            raise self._error(answer)
        if found := list_at(answer.body, "messages"):
            accepted = _accepted(message_id, found[0])
            if accepted is not None:
                return accepted
        elif answer.body and not answer.body.get("messages"):
            return None
        # An empty or unreadable body must not be taken as "not sent", or a second copy would be sent.
        raise RetryLater("Gmail's answer to the search cannot be read")

    def close(self) -> None:
        """Does nothing: the caller closes the pool."""

    def _ask(self, method: str, url: str, body: bytes = b"") -> Answer:
        """The answer to a request. After a 401, with which nothing was done, it is repeated with a new token."""
        token = self._token.current()
        answer = self._exchange(method, url, body, token)
        if answer.status == 401:
            answer = self._exchange(method, url, body, self._token.renewed(token))
        return answer

    def _exchange(self, method: str, url: str, body: bytes, token: str) -> Answer:
        if method == "GET":
            return self._pool.get(url, bearer(token))
        return self._pool.post(url, body, "application/json", bearer(token))

    def _error(self, answer: Answer) -> SendError:
        message = text_at(answer.body, "error", "message")
        text = f"Gmail {answer.status}: {message}" if message else f"Gmail {answer.status}"
        reason = safe_text(text, self._token.secrets())
        delay = answer.retry_after_seconds
        if delay is None:
            delay = _delay_in_text(message, self._clock())
        if answer.status in (403, 429):
            for limit in _reasons(answer.body) & _LIMITS.keys():
                return RetryLater(reason, max(_LIMITS[limit] or 0.0, delay or 0.0) or None)
        if answer.status in (401, 403):
            return AccountRejected(reason)
        if answer.status == 400 and _BAD_RECIPIENT.search(message):
            return RecipientRefused(reason, code=str(answer.status), address_fault=True)
        if 400 <= answer.status < 500 and answer.status != 429:
            return CampaignRejected(reason)
        # 429 and 5xx. A redirect was not processed either: GMAIL_API_URL may be wrong.
        return RetryLater(reason, delay)


def _accepted(message_id: str, body: Any) -> Accepted | None:
    gmail_id = id_at(body, "id")
    return Accepted(message_id, gmail_id, id_at(body, "threadId") or None) if gmail_id else None


def _reasons(body: dict[str, Any]) -> set[str]:
    """The error's reasons in lower case without underscores: rateLimitExceeded is also RATE_LIMIT_EXCEEDED."""
    entries = list_at(body, "error", "errors") + list_at(body, "error", "details")
    return {text_at(entry, "reason").replace("_", "").lower() for entry in entries}


def _delay_in_text(message: str, now: datetime) -> float | None:
    """The seconds to wait until the time in a text such as "Retry after 2026-01-31T08:00:00.000Z"."""
    named = _RETRY_AFTER.search(message)
    if named is None:
        return None
    try:
        until = datetime.fromisoformat(named[1])
    except ValueError:
        return None
    return min(max((until - now).total_seconds(), 0.0), _A_DAY_SECONDS)
