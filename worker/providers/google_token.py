"""The access token of one Google account, refreshed before it expires, once for all threads.

Source: https://developers.google.com/identity/protocols/oauth2/web-server#offline
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

from worker.errors import AccountRejected, RetryLater, SendError
from worker.providers.http import Answer, HttpPool
from worker.providers.untrusted import safe_text, text_at

_REFRESH_BEFORE_EXPIRY = timedelta(minutes=5)
# Used when the answer names no lifetime; Google names 3,599 seconds.
_DEFAULT_LIFETIME_SECONDS = 3600.0
# While the token endpoint fails, all threads would ask it at the same time: one request in this time is enough.
_PAUSE_AFTER_FAILURE = timedelta(seconds=10)


class InvalidGrant(AccountRejected):
    """The user withdrew the consent, or it expired: the five gmail columns of the User row have to be cleared."""


@dataclass(frozen=True, slots=True)
class RefreshedToken:
    """A new access token that has to be saved in the User row; ``expires_at`` is aware, in UTC."""

    access_token: str = field(repr=False)
    expires_at: datetime


def aware_utc_now() -> datetime:
    """Now, with the time zone UTC."""
    return datetime.now(UTC)


class GoogleToken:
    """May be used by several threads. The job's main thread saves what ``take_changed`` returns in the database."""

    def __init__(
        self,
        token_url: str,
        client_id: str,
        client_secret: str,
        refresh_token: str,
        access_token: str | None,
        expires_at: datetime | None,
        pool: HttpPool,
        clock: Callable[[], datetime] = aware_utc_now,
    ) -> None:
        """``expires_at`` without a zone is UTC, as in the database; None: refresh at the first use."""
        if expires_at is not None and expires_at.tzinfo is None:
            expires_at = expires_at.replace(tzinfo=UTC)
        self._changed: RefreshedToken | None = None
        self._token_url = token_url
        self._client_id = client_id
        self._client_secret = client_secret
        self._refresh_token = refresh_token
        self._access_token = access_token or ""
        self._expires_at = expires_at if access_token else None
        self._pool = pool
        self._clock = clock
        self._lock = threading.Lock()
        self._invalid_grant: str | None = None
        self._failed_at: datetime | None = None
        self._failed_because = ""

    def __repr__(self) -> str:
        return f"GoogleToken(expires_at={self._expires_at})"

    def current(self) -> str:
        """A valid access token, refreshed 5 minutes before it expires.

        Raises InvalidGrant, AccountRejected (client id or secret refused) and RetryLater.
        """
        with self._lock:
            now = self._clock()
            if self._expires_at is None or now >= self._expires_at - _REFRESH_BEFORE_EXPIRY:
                try:
                    self._refresh(now)
                except RetryLater:
                    if self._expires_at is None or now >= self._expires_at:
                        raise  # otherwise the old token is still valid
            return self._access_token

    def renewed(self, refused: str) -> str:
        """A new token in place of ``refused``, which was answered with 401. Raises as ``current``.

        If several threads were refused at the same time, the first one refreshes and the others get its result.
        """
        with self._lock:
            if self._access_token == refused:
                self._expires_at = None
                self._refresh(self._clock())
            return self._access_token

    def take_changed(self) -> RefreshedToken | None:
        """A refreshed token that has to be saved; each one is returned once. None if there is none."""
        with self._lock:
            changed, self._changed = self._changed, None
            return changed

    def secrets(self) -> list[str]:
        """Values that must not appear in any text."""
        return [self._client_secret, self._refresh_token, self._access_token]

    def _refresh(self, now: datetime) -> None:
        if self._invalid_grant is not None:
            raise InvalidGrant(self._invalid_grant)
        if self._failed_at is not None and now < self._failed_at + _PAUSE_AFTER_FAILURE:
            raise RetryLater(self._failed_because, _PAUSE_AFTER_FAILURE.total_seconds())
        try:
            answer = self._ask()
            self._accept(answer, now)
        except RetryLater as error:
            self._failed_at, self._failed_because = now, str(error)
            raise
        self._failed_at = None

    def _ask(self) -> Answer:
        form = {
            "grant_type": "refresh_token",
            "client_id": self._client_id,
            "client_secret": self._client_secret,
            "refresh_token": self._refresh_token,
        }
        body = urlencode(form).encode("ascii")
        return self._pool.post(self._token_url, body, "application/x-www-form-urlencoded", {}, repeatable=True)

    def _accept(self, answer: Answer, now: datetime) -> None:
        token = text_at(answer.body, "access_token")
        if answer.status != 200 or not token:
            raise self._error(answer)
        seconds = answer.body.get("expires_in")
        if not isinstance(seconds, int | float) or not 0 < seconds <= 7 * 86_400:
            seconds = _DEFAULT_LIFETIME_SECONDS
        self._access_token = token
        self._expires_at = now + timedelta(seconds=seconds)
        self._changed = RefreshedToken(token, self._expires_at)

    def _error(self, answer: Answer) -> SendError:
        error, description = text_at(answer.body, "error"), text_at(answer.body, "error_description")
        text = ": ".join(filter(None, (error, description)))
        reason = safe_text(f"Google token: {text or f'HTTP {answer.status}'}", self.secrets())
        if answer.status < 400 or answer.status == 429 or answer.status >= 500:
            return RetryLater(reason, answer.retry_after_seconds)
        if error == "invalid_grant":
            self._invalid_grant = reason
            return InvalidGrant(reason)
        return AccountRejected(reason)
