"""How each tenant calls: its settings, its Twilio account, and which accounts are in backoff.

A process remembers itself what its own calls were answered, and tells the others through Redis.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, Self
from zoneinfo import ZoneInfo

import redis

from worker.content.calls import WHAT_TO_DO
from worker.content.hours import BusinessHours, tenant_zone
from worker.content.phones import country_of, to_e164
from worker.errors import AccountRejected, CountryRejected, RetryLater, SendError, TransportMissing
from worker.providers.http import HttpPool
from worker.providers.twilio import TwilioProvider
from worker.runtime.backoff import backoff_seconds
from worker.runtime.clock import utc_now
from worker.runtime.settings import Settings
from worker.sending.pacing import Pace

log = logging.getLogger(__name__)

USUAL_TIMEOUT_SECONDS = 300
FIRST_BACKOFF_SECONDS = 15.0  # of an account that Twilio defers; doubles with each time in a row up to
LONGEST_BACKOFF_SECONDS = 300.0
REFUSED_BACKOFF_SECONDS = 600.0  # of credentials that Twilio refused; a tenant's new settings have no backoff


class CountryBackoff(NamedTuple):
    """Until when (UTC) an account does not call a country, and what Twilio's answer was."""

    until: datetime
    reason: str


@dataclass(frozen=True, slots=True)
class CallSettings:
    """A row of "CallSettings". A text is "" where the tenant entered none.

    The business hours are as the tenant entered them, not checked yet.
    """

    tenant_id: str
    account_sid: str
    auth_token: str = field(repr=False)
    phone_number: str
    timeout_seconds: int
    recording: bool
    hours_enabled: Any
    hours_start: Any
    hours_end: Any
    business_days: Any
    timezone: Any

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        recording, timeout_seconds = row["enableRecording"], row["callTimeout"]
        return cls(
            tenant_id=row["tenant_id"],
            account_sid=(row["twilioAccountSid"] or "").strip(),
            auth_token=(row["twilioAuthToken"] or "").strip(),
            phone_number=(row["twilioPhoneNumber"] or "").strip(),
            timeout_seconds=USUAL_TIMEOUT_SECONDS if timeout_seconds is None else timeout_seconds,
            recording=True if recording is None else recording,
            hours_enabled=row["enableBusinessHours"],
            hours_start=row["businessHoursStart"],
            hours_end=row["businessHoursEnd"],
            business_days=row["businessDays"],
            timezone=row["timezone"],
        )

    def business_hours(self) -> BusinessHours:
        """Raises ValueError, which names the column, for hours that cannot be read."""
        return BusinessHours.of(
            enabled=self.hours_enabled,
            start=self.hours_start,
            end=self.hours_end,
            days=self.business_days,
            zone=self.timezone,
        )

    def zone(self) -> ZoneInfo:
        """The tenant's time zone. Raises ValueError, which names the column, for one that cannot be read."""
        return tenant_zone(self.timezone)


@dataclass(frozen=True, slots=True)
class TwilioAccount:
    """One tenant's Twilio account and number."""

    tenant_id: str
    provider: TwilioProvider
    account_sid: str
    from_number: str  # E.164
    timeout_seconds: int
    recording: bool
    pace: Pace
    refusal: Pace  # no token is taken of it: it is in backoff while Twilio refuses exactly these settings
    settings_key: str  # changes when the tenant corrects SID, token or number


class CallingAccounts:
    """The Twilio accounts of all tenants; remembers in this process which of them are in backoff."""

    def __init__(
        self,
        settings: Settings,
        client: redis.Redis,
        concurrency: int,
        monotonic: Callable[[], float] = time.monotonic,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        """``concurrency``: requests at once. ``monotonic``: the clock, in seconds, that backoff goes by.

        ``clock``: UTC without a zone, for a Retry-After that is a date.
        """
        self._settings = settings
        self._redis = client
        self._pool = HttpPool(concurrency, clock=lambda: clock().replace(tzinfo=UTC).timestamp())
        self._monotonic = monotonic
        self._deferrals: dict[str, int] = {}  # account SID -> deferrals in a row
        self._backoff_until: dict[str, float] = {}  # account SID or settings_key -> monotonic()
        self._clock = clock
        self._reported: dict[str, str] = {}  # tenant -> the problem that was reported last
        self._advised: set[tuple[str, str]] = set()  # settings_key and the problem
        self._countries: dict[tuple[str, str], CountryBackoff] = {}  # settings_key and country

    def account(self, settings: CallSettings) -> TwilioAccount:
        """The account that these settings describe. Raises TransportMissing."""
        sid, token, number = settings.account_sid, settings.auth_token, settings.phone_number
        if not (sid and token and number):
            raise TransportMissing("Twilio is not configured: enter account SID, auth token and phone number")
        provider = TwilioProvider(self._settings.twilio_api_url, sid, token, self._pool)
        try:
            from_number = to_e164(number)
        except ValueError as error:
            raise TransportMissing(f"Twilio is not configured: twilioPhoneNumber is {error}") from None
        settings_key = hashlib.sha256(f"{sid}\0{token}\0{number}".encode()).hexdigest()
        rate = self._settings.twilio_rate
        return TwilioAccount(
            tenant_id=settings.tenant_id,
            provider=provider,
            account_sid=sid,
            from_number=from_number,
            timeout_seconds=settings.timeout_seconds,
            recording=settings.recording,
            pace=Pace(self._redis, f"pace:twilio:{sid}", rate),
            refusal=Pace(self._redis, f"pace:twilio:{sid}:{settings_key[:16]}", rate),
            settings_key=settings_key,
        )

    def is_in_backoff(self, account: TwilioAccount) -> bool:
        """Whether Twilio deferred or refused the account a short time ago, in an answer to this process."""
        ends = (self._backoff_until.get(key) for key in (account.account_sid, account.settings_key))
        return any(end is not None and self._monotonic() < end for end in ends)

    def is_refused(self, account: TwilioAccount) -> bool:
        """As ``is_in_backoff``, for a refusal in an answer to any process. Raises redis.RedisError."""
        _, wait_seconds = account.refusal.take(0)
        return wait_seconds > 0

    def country_backoff(self, account: TwilioAccount, number: str) -> CountryBackoff | None:
        """Whether Twilio did not permit the account to call the country of this E.164 number, a short time ago."""
        now = self._clock()
        self._countries = {key: each for key, each in self._countries.items() if each.until > now}
        return self._countries.get((account.settings_key, country_of(number))) if self._countries else None

    def report_problem(self, tenant_id: str, reason: str) -> None:
        """Writes to the log what keeps a tenant from calling; the same reason only once."""
        if self._reported.get(tenant_id) != reason:
            log.warning("a tenant's calls wait", {"tenant": tenant_id, "reason": reason})
        self._reported[tenant_id] = reason

    def record_answer(self, account: TwilioAccount, error: SendError | None, to_number: str = "") -> None:
        """Puts an account that Twilio refused or deferred in backoff, for all processes.

        ``error`` None: Twilio took the call.

        ``to_number``: E.164, for an account that may not call its country.
        """
        if error and error.advice:
            self._advise(account, f"Twilio {error.code}: {error.advice}")  # Twilio's own words may have the number
        if isinstance(error, CountryRejected):
            until = self._clock() + timedelta(seconds=REFUSED_BACKOFF_SECONDS)
            reason = f"not called yet: Twilio {error.code}{WHAT_TO_DO}{error.advice}"
            self._countries[account.settings_key, country_of(to_number)] = CountryBackoff(until, reason)
        elif isinstance(error, AccountRejected):
            self._back_off(account.settings_key, account.refusal, REFUSED_BACKOFF_SECONDS)
            self.report_problem(account.tenant_id, str(error))
        elif type(error) is RetryLater:
            deferrals = self._deferrals[account.account_sid] = self._deferrals.get(account.account_sid, 0) + 1
            backoff = backoff_seconds(deferrals, FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS)
            self._back_off(account.account_sid, account.pace, max(error.delay_seconds or 0.0, backoff))
            self.report_problem(account.tenant_id, str(error))
        elif error is None:
            self._deferrals.pop(account.account_sid, None)
            self._reported.pop(account.tenant_id, None)

    def _back_off(self, key: str, pace: Pace, seconds: float) -> None:
        self._backoff_until[key] = self._monotonic() + seconds
        with suppress(redis.RedisError):  # then Twilio refuses another process once more
            pace.back_off(seconds)

    def _advise(self, account: TwilioAccount, advice: str) -> None:
        """Writes once to the log what the tenant's settings at Twilio or in the CRM lack."""
        if (account.settings_key, advice) not in self._advised:
            self._advised.add((account.settings_key, advice))
            log.warning("Twilio refuses calls of a tenant", {"tenant": account.tenant_id, "reason": advice})

    def close(self) -> None:
        self._pool.close()
