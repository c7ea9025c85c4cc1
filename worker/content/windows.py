"""Windows: the hours of a day in which somebody may be called or written to, by the clocks of the time zones given.

A window begins with its first minute and ends before its end: at 21:00:00 the window 09:00-21:00 is closed. With
several zones it is open while it is open in all of them. ``now`` is UTC without a zone everywhere.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import Self
from zoneinfo import ZoneInfo

# A window that all zones have in common opens at least once in so many days: clocks change twice a year.
LONGEST_SEARCH = timedelta(days=370)

_DAY = timedelta(days=1)
_TIME = "([01]?[0-9]|2[0-3]):([0-5][0-9])"
_WINDOW = re.compile(rf"{_TIME}-(?:{_TIME}|(24:00))")


@dataclass(frozen=True, slots=True)
class Window:
    """From ``start`` until before ``end``: over midnight when ``end`` is earlier, 24 hours when they are the same."""

    start: time
    end: time

    @classmethod
    def parse(cls, text: str) -> Self:
        """The window that is written as 09:00-21:00. Raises ValueError that says what is allowed."""
        found = _WINDOW.fullmatch(text.strip())
        if found is None:
            raise ValueError("hours such as 09:00-21:00, from 00:00 to 24:00")
        end = time() if found[5] else time(int(found[3]), int(found[4]))
        return cls(time(int(found[1]), int(found[2])), end)

    def __str__(self) -> str:
        return f"{self.start:%H:%M}-{f'{self.end:%H:%M}' if self.end != time() else '24:00'}"

    @property
    def is_whole_day(self) -> bool:
        return self.start == self.end

    def holds(self, clock: time) -> bool:
        """Whether a clock that shows this time is inside."""
        if self.start < self.end:
            return self.start <= clock < self.end
        return clock >= self.start or clock < self.end


def is_open(window: Window, zones: Iterable[ZoneInfo], now: datetime) -> bool:
    """Whether the clocks of all zones are inside."""
    return window.is_whole_day or all(window.holds(_local(now, zone).time()) for zone in zones)


def next_open(window: Window, zones: Iterable[ZoneInfo], now: datetime) -> datetime | None:
    """The first moment from ``now`` on at which it is open; None when there is none, or none within a year."""
    if window.is_whole_day:
        return now
    places, at = tuple(zones), now
    while at - now < LONGEST_SEARCH:
        opens = max((_enters(window, zone, at) for zone in places), default=at)
        if opens == at:
            return at
        at = opens
    return None


def closes_at(window: Window, zones: Iterable[ZoneInfo], now: datetime) -> datetime | None:
    """The first moment from ``now`` on at which it is closed; None when there is none."""
    if window.is_whole_day:
        return None
    outside = Window(window.end, window.start)
    return min((_enters(outside, zone, now) for zone in zones), default=None)


def _enters(window: Window, zone: ZoneInfo, now: datetime) -> datetime:
    """The first moment from ``now`` on at which the clock of ``zone`` is inside."""
    while not window.holds(_local(now, zone).time()):
        shown = _local(now, zone)
        start = shown.replace(hour=window.start.hour, minute=window.start.minute, second=0, microsecond=0)
        at = now + (start - shown) % _DAY
        if _offset(at, zone) == _offset(now, zone):
            return at
        now = _clock_change(now, at, zone)  # it may lead into the window, out of it, or past it
    return now


def _clock_change(before: datetime, after: datetime, zone: ZoneInfo) -> datetime:
    """The moment between the two at which the clock of ``zone`` is changed: on a whole second."""
    old = _offset(before, zone)
    while after - before > timedelta(seconds=1):
        middle = before + (after - before) / 2
        before, after = (middle, after) if _offset(middle, zone) == old else (before, middle)
    whole = after.replace(microsecond=0)
    return whole if _offset(whole, zone) != old else after


def _local(now: datetime, zone: ZoneInfo) -> datetime:
    """What the clock of ``zone`` shows, without a zone: differences are those of clocks."""
    return now.replace(tzinfo=UTC).astimezone(zone).replace(tzinfo=None)


def _offset(now: datetime, zone: ZoneInfo) -> timedelta | None:
    return now.replace(tzinfo=UTC).astimezone(zone).utcoffset()
