"""A tenant's business hours: whether a call may start now, in the tenant's local time.

A night that crosses midnight belongs to the business day on which it began: Friday's 22:00-06:00 reaches into
Saturday morning even when Saturday is not a business day. A value that cannot be read is an error and never a guess:
a typing mistake must not let phones ring on a Sunday.
"""

import re
import reprlib
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import Any, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

USUAL_ZONE = "Asia/Kolkata"

_DAY_MINUTES = 24 * 60
_NAMES = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_DAYS = {name[:length]: day for day, name in enumerate(_NAMES) for length in (3, len(name))}
# Each part begins with a letter: ZoneInfo looks names up as modules too, and '__init__/x' is a TypeError there.
_ZONE = re.compile(r"[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z][A-Za-z0-9_+-]*)*")
_TIME = re.compile(r"([01]?[0-9]|2[0-3]):([0-5][0-9])")


@dataclass(frozen=True, slots=True)
class BusinessHours:
    """From ``first_minute`` to ``last_minute``, both included, on each of ``days``, in the time of ``zone``.

    Minutes count from the midnight that begins the day; from 1440 on they lie in the day after it. Monday is 0.
    """

    days: frozenset[int]
    first_minute: int
    last_minute: int
    zone: tzinfo

    @classmethod
    def of(cls, *, enabled: Any = True, start: Any, end: Any, days: Any = None, zone: Any = None) -> Self:
        """The hours that a tenant entered; whatever the values are, they come from columns of "CallSettings".

        The tenant is always open when ``enabled`` is false or ``start`` or ``end`` is missing. '24:00' as end is the
        end of that day, its last minute 23:59; an end that equals the start comes 24 hours later. ``days`` None is
        every day, ``zone`` None is USUAL_ZONE. Raises ValueError that names the column, shows its value and says
        what is allowed.
        """
        start, end = _filled(start), _filled(end)
        if not enabled or start is None or end is None:
            return cls(frozenset(range(7)), 0, _DAY_MINUTES - 1, UTC)
        first, last = _minute("businessHoursStart", start), _minute("businessHoursEnd", end, midnight=True)
        if last in (first, _DAY_MINUTES):
            last -= 1
        if last < first:
            last += _DAY_MINUTES
        return cls(_days(days), first, last, tenant_zone(zone))

    def open_at(self, now: datetime) -> bool:
        """Whether a call may start. ``now``: UTC, without zone."""
        local = _local_time(now, self.zone)
        minute, today = local.hour * 60 + local.minute, local.weekday()
        return (today in self.days and self.first_minute <= minute <= self.last_minute) or (
            (today - 1) % 7 in self.days and minute + _DAY_MINUTES <= self.last_minute
        )


def _local_time(now: datetime, zone: tzinfo) -> datetime:
    try:
        return now.replace(tzinfo=UTC).astimezone(zone)
    except OverflowError:  # in the first and the last hours that a datetime can hold
        return now


def _filled(value: Any) -> Any:
    """A string without the blanks around it, None when nothing is left; any other value as it is."""
    return value.strip() or None if isinstance(value, str) else value


def _minute(column: str, value: Any, *, midnight: bool = False) -> int:
    if midnight and value == "24:00":
        return _DAY_MINUTES
    found = _TIME.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise _wrong(column, value, f"HH:MM from 00:00 to {'24:00' if midnight else '23:59'}")
    return int(found[1]) * 60 + int(found[2])


def _days(value: Any) -> frozenset[int]:
    if value is None:
        return frozenset(range(7))
    listed = value["value"] if isinstance(value, dict) and value.keys() == {"value"} else value
    if not isinstance(listed, list):
        raise _wrong("businessDays", value, "a list of mon, tue, wed, thu, fri, sat, sun, or null for every day")
    return frozenset(map(_day, listed))


def _day(value: Any) -> int:
    day = _DAYS.get(value.strip().lower()) if isinstance(value, str) else None
    if day is None:
        raise _wrong("businessDays", value, "mon, tue, wed, thu, fri, sat or sun", "has a day")
    return day


def tenant_zone(value: Any) -> ZoneInfo:
    """The zone that a tenant entered as CallSettings.timezone; USUAL_ZONE for None. Raises ValueError as ``of``."""
    name = _filled(value)
    if name is None:
        name = USUAL_ZONE
    try:
        if isinstance(name, str) and _ZONE.fullmatch(name):
            return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        pass  # OSError: a folder of zones, such as 'Asia', or a name too long for a file
    raise _wrong("timezone", value, f"a time zone such as {USUAL_ZONE} or UTC")


def _wrong(column: str, value: Any, allowed: str, verb: str = "is") -> ValueError:
    shown = _short.repr(value)[:80]
    return ValueError(f'CallSettings."{column}" {verb} {shown}; allowed: {allowed}')


_short = reprlib.Repr()
_short.maxstring, _short.maxlevel = 60, 2
