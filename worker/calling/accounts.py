"""Lines: how each tenant calls, whether it may start a call now, and which accounts have to rest."""

import hashlib
import logging
import time
from dataclasses import dataclass

import redis

from worker.content.phones import to_e164
from worker.errors import AccountRejected, RetryLater, SendError, TransportMissing
from worker.providers.http import HttpPool
from worker.providers.twilio import TwilioProvider
from worker.runtime.backoff import backoff_seconds
from worker.runtime.db import Row
from worker.runtime.settings import Settings
from worker.sending.pacing import Pace

log = logging.getLogger(__name__)

USUAL_TIMEOUT_SECONDS = 300
REST_SECONDS = 15.0  # of an account that Twilio puts off; doubles with each time in a row up to
REST_LIMIT_SECONDS = 300.0
REFUSED_SECONDS = 600.0  # of an account that Twilio refused, unless its settings change


@dataclass(frozen=True)
class TwilioAccount:
    """One tenant's Twilio account and number."""

    tenant_id: str
    provider: TwilioProvider
    account_sid: str
    from_number: str  # E.164
    timeout_seconds: int
    recording: bool
    pace: Pace
    slots: int  # calls it may start now beside those on their way
    settings_key: str  # another one when somebody corrects the account's settings


class CallingAccounts:
    """The lines of all tenants; remembers in this process which accounts rest."""

    def __init__(self, settings: Settings, client: redis.Redis, concurrency: int) -> None:
        self._settings = settings
        self._redis = client
        self._pool = HttpPool(concurrency)
        self._put_off: dict[str, int] = {}  # account -> times in a row
        self._resting: dict[str, float] = {}  # account, or its settings -> time.monotonic() when it may call again
        self._said: dict[str, str] = {}  # tenant -> what was complained of last

    def line(self, row: Row) -> TwilioAccount:
        """The line that a row of "CallSettings" describes. Raises TransportMissing."""
        sid, number = row["twilioAccountSid"], (row["twilioPhoneNumber"] or "").strip()
        if not (sid and row["twilioAuthToken"] and number):
            raise TransportMissing("Twilio is not configured: enter account SID, auth token and phone number")
        provider = TwilioProvider(
            self._settings.twilio_api_url, sid.strip(), row["twilioAuthToken"].strip(), self._pool
        )
        try:
            from_number = to_e164(number)
        except ValueError as error:
            raise TransportMissing(f"Twilio is not configured: twilioPhoneNumber is {error}") from None
        recording, timeout_seconds = row["enableRecording"], row["callTimeout"]
        return TwilioAccount(
            tenant_id=row["tenant_id"],
            provider=provider,
            account_sid=sid.strip(),
            from_number=from_number,
            timeout_seconds=USUAL_TIMEOUT_SECONDS if timeout_seconds is None else timeout_seconds,
            recording=True if recording is None else recording,
            pace=Pace(self._redis, f"pace:twilio:{sid.strip()}", self._settings.twilio_rate),
            slots=row.get("slots", 0),
            settings_key=hashlib.sha256(f"{sid}\0{row['twilioAuthToken']}\0{number}".encode()).hexdigest(),
        )

    def rests(self, line: TwilioAccount) -> bool:
        """Whether its account was put off or refused just now."""
        until = max(self._resting.get(line.account_sid, 0.0), self._resting.get(line.settings_key, 0.0))
        return time.monotonic() < until

    def complain(self, tenant_id: str, reason: str) -> None:
        """Says once what keeps a tenant from calling."""
        if self._said.get(tenant_id) != reason:
            log.warning("a tenant's calls wait", {"tenant": tenant_id, "reason": reason})
        self._said[tenant_id] = reason

    def answered(self, line: TwilioAccount, error: SendError | None) -> None:
        """What Twilio's answer says about the account: refused or put off, it rests."""
        if isinstance(error, AccountRejected):
            self._resting[line.settings_key] = time.monotonic() + REFUSED_SECONDS
            self.complain(line.tenant_id, str(error))
        elif type(error) is RetryLater:
            times = self._put_off[line.account_sid] = self._put_off.get(line.account_sid, 0) + 1
            seconds = max(error.delay_seconds or 0.0, backoff_seconds(times, REST_SECONDS, REST_LIMIT_SECONDS))
            self._resting[line.account_sid] = time.monotonic() + seconds
            self.complain(line.tenant_id, str(error))
        elif error is None:
            self._put_off.pop(line.account_sid, None)
            self._said.pop(line.tenant_id, None)

    def close(self) -> None:
        self._pool.close()
