"""When a campaign is expected to end: at its rate, inside its window, and inside what its account may send.

Pure: what is known goes in, a forecast and its words come out. Times are UTC without a zone.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol
from zoneinfo import ZoneInfo

from worker.content.windows import Window, closes_at, next_open

HORIZON = timedelta(days=31)  # what takes longer has no end here
ASSUMED_SECONDS = 0.2  # for a message, where nothing was measured and the account has no rate

NO_ZONE = "the tenant's time zone cannot be read, correct it in its call settings"

_HOUR, _DAY = timedelta(hours=1), timedelta(days=1)
_UTC = ZoneInfo("UTC")


class Allowance(Protocol):
    """What an account may send in any 24 hours."""

    def free_by(self, at: datetime) -> int:
        """How many more it may send at this time, if nothing is sent until then."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Messages a second, and how they are known: ``source`` goes on after "a second, "."""

    per_second: float
    source: str = "as measured"


@dataclass(frozen=True, slots=True)
class LaterRetries:
    """So many recipients were deferred, and are not tried again before ``at``."""

    at: datetime
    number: int


def later_retries(rows: Iterable[Mapping[str, Any]]) -> tuple[LaterRetries, ...]:
    """From the column that ``worker/sql/later_retries.sql`` makes."""
    return tuple(LaterRetries(datetime.fromisoformat(row["at"]), row["number"]) for row in rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemainingSends:
    """What is left of a campaign, and what it is bound to. ``zone``: whose days and clock the words are in."""

    recipients: int
    rate: Rate
    starts_at: datetime  # the next message leaves no sooner
    retries: Sequence[LaterRetries] = ()  # among the recipients, in the order of their time
    window: Window | None = None
    zones: tuple[ZoneInfo, ...] = ()  # of the window
    quotas: Sequence[Allowance] = ()
    zone: ZoneInfo = _UTC
    obstacle: str = ""  # why nothing leaves until somebody changes something


@dataclass(frozen=True, slots=True)
class Forecast:
    """``begins_at``: of the first message. ``resumes_at``: of the first one after today, where there is a pause."""

    recipients: int
    today: int  # so many of them leave before midnight
    begins_at: datetime | None  # None: not within HORIZON
    resumes_at: datetime | None
    ends_at: datetime | None  # None: not within HORIZON
    words: str


def planned_rate(account_per_second: float | None, pause_seconds: float, connections: int) -> Rate:
    """The rate of a campaign that was not measured.

    ``account_per_second``: the account's, None: no limit. ``pause_seconds``: CAMPAIGN_BATCH_DELAY for one recipient.
    """
    sending = ASSUMED_SECONDS / connections
    source = f"assumed: {ASSUMED_SECONDS:g} s for a message, {connections} at a time"
    if account_per_second and 1 / account_per_second > sending:
        sending, source = 1 / account_per_second, "the rate of its account"
    if pause_seconds > sending:
        source = "by CAMPAIGN_BATCH_SIZE and CAMPAIGN_BATCH_DELAY"
    elif pause_seconds > sending / 10:
        source = f"{source}, with the pauses of CAMPAIGN_BATCH_DELAY"
    return Rate(1 / (sending + pause_seconds), source)


def forecast(work: RemainingSends, now: datetime) -> Forecast:
    """What is expected at ``now``: step by step from one limit to the next."""
    if work.obstacle and work.recipients:
        return Forecast(work.recipients, 0, None, None, None, f"{work.recipients:,} wait: {work.obstacle}")
    midnight = _midnight(now, work.zone)
    run = _Simulation(work, now)
    run.until(midnight)
    today = work.recipients - math.ceil(run.left)
    went_on = run.begun_at is not None and run.at >= midnight  # it was sending when the day ended
    run.resumed_at = None
    run.until(now + HORIZON)
    ends_at = run.at if run.left <= 0 else None
    resumes_at = None if went_on or today == work.recipients else run.resumed_at
    result = Forecast(work.recipients, today, run.begun_at, resumes_at, ends_at, "")
    words = f"{_words(result, now, work.zone)} {_zone_name(work.zone)}" if work.recipients else "nothing left to send"
    return Forecast(work.recipients, today, run.begun_at, resumes_at, ends_at, words)


class _Simulation:
    """A campaign that sends. ``at``: when the latest message left."""

    def __init__(self, work: RemainingSends, now: datetime) -> None:
        self._work = work
        self._next = max(now, work.starts_at)
        self._sent: list[tuple[datetime, float]] = []  # hours, and what left in them
        self.left = float(work.recipients)
        self.at = self._next
        self.begun_at: datetime | None = None
        self.resumed_at: datetime | None = None

    def until(self, end: datetime) -> None:
        """Sends on until everything is sent, or until ``end``."""
        work = self._work
        while self.left > 0 and self._next < end:
            if self._due() <= 0:
                self._next = min(end, self._next_retry())
                continue
            opens = next_open(work.window, work.zones, self._next) if work.window else self._next
            if opens is None or opens >= end:
                self._next = opens or end + HORIZON
                return
            self._next = opens
            self._send(min(end, self._step_ends(opens)))

    def _step_ends(self, begin: datetime) -> datetime:
        """The next moment at which a limit may change."""
        work, ends = self._work, begin + HORIZON
        if work.window:
            ends = closes_at(work.window, work.zones, begin) or ends
        ends = min(ends, self._next_retry())
        return min(ends, _next_hour(begin)) if work.quotas else ends

    def _send(self, end: datetime) -> None:
        """What may leave from now on until ``end``."""
        begin, rate = self._next, self._work.rate.per_second
        allowed = min([self._due(), *(quota.free_by(begin) - self._own(begin) for quota in self._work.quotas)])
        number = min(allowed, rate * (end - begin).total_seconds())
        self._next = end
        if number <= 0:
            return
        self.begun_at = self.begun_at or begin
        self.resumed_at = self.resumed_at or begin
        self.left -= number
        self.at = begin + timedelta(seconds=number / rate)
        if self._work.quotas:
            self._sent = [*(each for each in self._sent if each[0] > begin - _DAY), (begin, number)]
        if self.left < 1e-6:
            self.left = 0.0

    def _due(self) -> float:
        """How many of those that are left need not wait for their next attempt."""
        due = self.left - sum(each.number for each in self._work.retries if each.at > self._next)
        return due if due >= 1e-6 else 0.0

    def _next_retry(self) -> datetime:
        return min((each.at for each in self._work.retries if each.at > self._next), default=self._next + HORIZON)

    def _own(self, at: datetime) -> float:
        return sum(number for hour, number in self._sent if hour > at - _DAY)


def _words(found: Forecast, now: datetime, zone: ZoneInfo) -> str:
    """'120 of 10,000 today, the rest tomorrow from 09:00'."""
    if found.begins_at is None:
        return f"{found.recipients:,} not within {HORIZON.days} days"
    if found.today == found.recipients:
        return f"ends today about {_clock(found.ends_at, zone)}"
    rest = f"{found.today:,} of {found.recipients:,} today, the rest" if found.today else f"{found.recipients:,}"
    if found.ends_at is None:
        return f"{rest} takes more than {HORIZON.days} days"
    last = _day(found.ends_at, now, zone)
    if found.resumes_at is None:
        return f"{rest} until {last} {_clock(found.ends_at, zone)}"
    first = _day(found.resumes_at, now, zone)
    if first == last:
        on = "" if first in ("today", "tomorrow") else "on "
        return f"{rest} {on}{first} from {_clock(found.resumes_at, zone)}"
    return f"{rest} from {first} {_clock(found.resumes_at, zone)} until {last} {_clock(found.ends_at, zone)}"


def _clock(at: datetime | None, zone: ZoneInfo) -> str:
    return f"{_local(at, zone):%H:%M}" if at else ""


def _day(at: datetime, now: datetime, zone: ZoneInfo) -> str:
    local, today = _local(at, zone).date(), _local(now, zone).date()
    if local <= today + _DAY:
        return "tomorrow" if local > today else "today"
    return f"{local.day} {local:%B}"


def _zone_name(zone: ZoneInfo) -> str:
    return "UTC" if zone.key == "UTC" else f"({zone.key})"


def _local(at: datetime, zone: ZoneInfo) -> datetime:
    return at.replace(tzinfo=UTC).astimezone(zone)


def _midnight(now: datetime, zone: ZoneInfo) -> datetime:
    """The end of the day that ``zone`` has now."""
    tomorrow = (_local(now, zone) + _DAY).replace(hour=0, minute=0, second=0, microsecond=0)
    return tomorrow.astimezone(UTC).replace(tzinfo=None)


def _next_hour(at: datetime) -> datetime:
    return at.replace(minute=0, second=0, microsecond=0) + _HOUR
