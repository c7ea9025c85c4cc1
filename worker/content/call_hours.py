"""When a phone number may be called: in its country's window, by the clocks of all places that have such numbers.

Two windows are built in: 09:00-21:00 for India, whose regulator allowed no commercial calls at other hours in its
customer preference regulations of 2010 (those of 2018 add each subscriber's own preferences); 08:00-21:00 for +1,
where the USA allow telephone solicitation by the called person's time (47 CFR 64.1200(c)(1)). No legal advice.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from types import MappingProxyType
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import phonenumbers
from phonenumbers import PhoneNumber
from phonenumbers import timezone as number_zones

from worker.content.calls import WAITING_FOR_HOURS
from worker.content.windows import Window, closes_at, is_open, next_open

UNKNOWN = ("Etc/Unknown",)  # phonenumbers' word for a number of no place
LONGEST_CODE = 3  # digits of a country's calling code
BUILT_IN: Mapping[int, Window] = MappingProxyType({91: Window.parse("09:00-21:00"), 1: Window.parse("08:00-21:00")})


@dataclass(frozen=True, slots=True)
class CallHours:
    """When one number may be called. ``country``: its calling code."""

    country: int
    window: Window
    zones: tuple[ZoneInfo, ...]

    def is_open(self, now: datetime) -> bool:
        return is_open(self.window, self.zones, now)

    def opens_at(self, now: datetime) -> datetime | None:
        """When it may be called: ``now`` or later. None: never, since its zones have no such hour in common."""
        return _opens_at(self.window, self.zones, now)

    def closes_at(self, now: datetime) -> datetime | None:
        """Until when it may be called; None: always."""
        return _closes_at(self.window, self.zones, now)

    @property
    def why_waiting(self) -> str:
        """The reason of a call that waits."""
        return f"{WAITING_FOR_HOURS}+{self.country} are placed {self.window} by the clock of the called number"

    @property
    def why_never(self) -> str:
        """The reason of a call that could wait for ever."""
        zones = ", ".join(zone.key for zone in self.zones[:3])
        return (
            f"not called: it is never {self.window} in all {len(self.zones)} time zones of the number ({zones} ...): "
            f"set CALL_WINDOWS=+{self.country}=..."
        )


@dataclass(frozen=True, slots=True)
class CallWindows:
    """CALL_WINDOW and CALL_WINDOWS: the windows of all countries. ``by_country``: by calling code."""

    usual: Window
    by_country: Mapping[int, Window]

    def hours_of(self, number: PhoneNumber, home: Callable[[], ZoneInfo]) -> CallHours:
        """``home``: the zone of a number that belongs to no place, as +800; raises what it raises."""
        country = number.country_code or 0
        return CallHours(country, self._window_of(country), zones_of(number) or (home(),))

    def is_why_waiting(self, reason: str) -> bool:
        """Whether a call can wait for this reason with these windows, rather than with those of another time."""
        country, _, _ = reason.removeprefix(f"{WAITING_FOR_HOURS}+").partition(" ")
        if not (country.isascii() and country.isdecimal() and len(country) <= LONGEST_CODE):
            return False
        return reason.startswith(CallHours(int(country), self._window_of(int(country)), ()).why_waiting)

    def _window_of(self, country: int) -> Window:
        return self.by_country.get(country) or BUILT_IN.get(country) or self.usual


def is_calling_code(code: int) -> bool:
    """Whether numbers begin with it: of a country, or of none, as 800."""
    return code in phonenumbers.COUNTRY_CODE_TO_REGION_CODE


def zones_of(number: PhoneNumber) -> tuple[ZoneInfo, ...]:
    """The zones of the places that have such numbers; none for one of no place.

    A number in no range that is known to be in use may be new: the longest prefix that is known decides, at worst the
    country's.
    """
    names = number_zones.time_zones_for_number(number)
    if names == UNKNOWN:
        names = number_zones.time_zones_for_geographical_number(number)
    return tuple(filter(None, map(_zone, names)))


# The calls of one tick have the same ``now``, and numbers the same few windows and zones.
_opens_at = lru_cache(maxsize=256)(next_open)
_closes_at = lru_cache(maxsize=256)(closes_at)


@lru_cache
def _zone(name: str) -> ZoneInfo | None:
    """None for Etc/Unknown, and for a zone that this machine does not know yet."""
    try:
        return ZoneInfo(name)
    except ZoneInfoNotFoundError:
        return None
