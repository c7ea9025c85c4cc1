"""E-mail through the Gmail API of the user who owns the campaign.

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
from worker.providers.google_token import GoogleToken, InvalidGrant, RefreshedToken, utc_now
from worker.providers.http import Answer, HttpPool, bearer, json_body
from worker.providers.untrusted import printable

__all__ = ["GmailProvider", "GoogleToken", "InvalidGrant", "RefreshedToken"]

# The contract's "tomorrow". Limits on sending count the last 24 hours; the API's own quota starts anew
# at midnight Pacific time, which is sooner. So a day is right for both, without a table of time zones.
_A_DAY_SECONDS = 24 * 3600.0

# 403 or 429 with one of these reasons (in the old spelling or ErrorInfo's) -> seconds to wait, None: unknown
_LIMITS: dict[str, float | None] = {
    "ratelimitexceeded": None,
    "userratelimitexceeded": None,
    "dailylimitexceeded": _A_DAY_SECONDS,
}
_RETRY_AFTER = re.compile(r"Retry after (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z)", re.IGNORECASE)
_BAD_RECIPIENT = re.compile(r"invalid to\b|recipient address", re.IGNORECASE)


class GmailProvider:
    """Sends as one user. Safe for many threads at once."""

    def __init__(
        self, api_url: str, token: GoogleToken, pool: HttpPool, clock: Callable[[], datetime] = utc_now
    ) -> None:
        """``pool`` is shared and stays the caller's; ``clock`` returns aware times."""
        self._messages = f"{api_url.rstrip('/')}/gmail/v1/users/me/messages"
        self._token = token
        self._pool = pool
        self._clock = clock

    def __repr__(self) -> str:
        return f"GmailProvider({self._messages})"

    def send(self, message: Email) -> Accepted:
        """Hand one message over. Raises the SendError kinds, InvalidGrant when the user's consent is gone."""
        raw = base64.urlsafe_b64encode(message.content).decode("ascii")
        answer = self._ask("POST", f"{self._messages}/send", json_body({"raw": raw}))
        if not 200 <= answer.status < 300:
            raise self._error(answer)
        accepted = _accepted(message.message_id, answer.body)
        if accepted is None:
            raise Unconfirmed(f"Gmail answered {answer.status} without a message id")
        return accepted

    def find(self, message_id: str) -> Accepted | None:
        """Whether Gmail has the message with this Message-ID (with its angle brackets); None: it has not.

        Source: https://support.google.com/mail/answer/7190, operator rfc822msgid. Raises RetryLater when
        the question was not answered, else as ``send``. Gmail's index may lag behind by some seconds.
        """
        answer = self._ask("GET", f"{self._messages}?q={quote(f'rfc822msgid:{message_id}', safe='')}")
        if not 200 <= answer.status < 300:
            raise self._error(answer)
        found = answer.body.get("messages")
        if isinstance(found, list) and found:
            accepted = _accepted(message_id, found[0])
            if accepted is not None:
                return accepted
        elif answer.body and not found:
            return None
        # An empty or unreadable body must not pass for "not sent": a second copy would follow.
        raise RetryLater("Gmail's answer to the search cannot be read")

    def close(self) -> None:
        """Nothing to close: the pool is the caller's."""

    def _ask(self, method: str, url: str, body: bytes = b"") -> Answer:
        """The answer; after a 401, which processed nothing, that to a second try with a new token."""
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
        message, reasons = _said(answer.body)
        text = ": ".join([f"Gmail {answer.status}", *([message] if message else [])])
        reason = printable(text, self._token.secrets())
        delay = answer.retry_after_seconds
        if delay is None:
            delay = _named_delay(message, self._clock())
        if answer.status in (403, 429):
            for limit in reasons & _LIMITS.keys():
                return RetryLater(reason, max(_LIMITS[limit] or 0.0, delay or 0.0) or None)
        if answer.status in (401, 403):
            return AccountRejected(reason)
        if answer.status == 400 and _BAD_RECIPIENT.search(message):
            return RecipientRefused(reason)
        if 400 <= answer.status < 500 and answer.status != 429:
            return CampaignRejected(reason)
        # 429 and 5xx by the contract. A redirect was not processed either: GMAIL_API_URL may be wrong.
        return RetryLater(reason, delay)


def _accepted(message_id: str, body: Any) -> Accepted | None:
    gmail_id = body.get("id") if isinstance(body, dict) else None
    if not isinstance(gmail_id, str) or not gmail_id:
        return None
    thread_id = body.get("threadId")
    return Accepted(message_id, gmail_id, thread_id if isinstance(thread_id, str) else None)


def _said(body: dict[str, Any]) -> tuple[str, set[str]]:
    """The error's text, and its reasons in lower case without underscores (rateLimitExceeded and
    RATE_LIMIT_EXCEEDED are one).
    """
    error = body.get("error")
    if not isinstance(error, dict):
        return "", set()
    lists = [entries for entries in (error.get("errors"), error.get("details")) if isinstance(entries, list)]
    reasons = {
        str(entry.get("reason")).replace("_", "").lower()
        for entries in lists
        for entry in entries
        if isinstance(entry, dict)
    }
    message = error.get("message")
    return message if isinstance(message, str) else "", reasons


def _named_delay(message: str, now: datetime) -> float | None:
    """Gmail names the end of a user's limit in the text: "Retry after 2026-01-31T08:00:00.000Z"."""
    named = _RETRY_AFTER.search(message)
    if named is None:
        return None
    try:
        until = datetime.fromisoformat(named[1])
    except ValueError:
        return None
    return min(max((until - now).total_seconds(), 0.0), _A_DAY_SECONDS)
