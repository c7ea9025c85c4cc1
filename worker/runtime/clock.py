"""Clocks: the machine's, the database's, and one that nobody sets and that also counts while the machine sleeps."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

log = logging.getLogger(__name__)

# Where a system has no CLOCK_BOOTTIME, the clock that stands still while the machine sleeps has to do.
_BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

SKEW_SECONDS = 30.0  # a larger difference between the machine's clock and the database's is reported
READING_SECONDS = 25.0  # a reading serves ticks that follow each other sooner; clocks differ by microseconds then
JITTER = timedelta(seconds=1)  # two readings may disagree by so much: their answers travelled for different times


def utc_now() -> datetime:
    """Now by this machine's clock, as the CRM's database writes it: UTC without a zone."""
    return datetime.now(UTC).replace(tzinfo=None)


def boot_seconds() -> float:
    """Seconds since the machine booted, including the time it slept: shows whether this process was frozen."""
    return time.clock_gettime(_BOOT_CLOCK)


@dataclass(frozen=True, slots=True)
class ClockReading:
    """The database's time ``at``, which arrived when ``boot_seconds`` was ``seconds``."""

    at: datetime
    seconds: float


class DatabaseClock:
    """The database's time: its latest reading, and what has passed since then. Thread-safe.

    Until the first reading it is the machine's clock. After that it does not matter whether the machine's clock is
    right, or is set while the worker runs.
    """

    def __init__(
        self,
        machine_clock: Callable[[], datetime] = utc_now,
        elapsed: Callable[[], float] = boot_seconds,
        reading: ClockReading | None = None,
    ) -> None:
        """``elapsed`` returns seconds that nobody sets back or forward. ``reading``: the latest one before a rest."""
        self._machine_clock = machine_clock
        self._elapsed = elapsed
        self._reading = reading
        self._floor = datetime.min  # noqa: DTZ901 - UTC without a zone
        self._lost = False
        self._reported = False

    def __call__(self) -> datetime:
        """Now, in UTC without a zone."""
        reading = self._reading
        if reading is None:
            return self._machine_clock()
        now = reading.at + timedelta(0, self._elapsed() - reading.seconds)
        return now if now > self._floor else self._floor

    @property
    def reading(self) -> ClockReading | None:
        """The latest reading."""
        return self._reading

    @property
    def agrees(self) -> bool:
        """Whether the machine's clock agreed with the latest reading."""
        return not self._reported

    @property
    def needs_reading(self) -> bool:
        """Whether the latest reading is too old for another tick, or there is none."""
        reading = self._reading
        return self._lost or reading is None or self._elapsed() - reading.seconds > READING_SECONDS

    def forget(self) -> None:
        """The connection was lost: behind the same address there may be another server, with another clock."""
        self._lost = True

    def set(self, at: datetime) -> None:
        """To be called with the database's time as soon as it arrives.

        The clock goes back when the database's does. For less than a second it stands still instead: otherwise a tick
        at 12:00:00.000 could find that it is 11:59:59.998 and run twice.
        """
        before = self()
        is_jitter = self._reading is not None and timedelta(0) < before - at < JITTER
        self._reading, self._floor = ClockReading(at, self._elapsed()), before if is_jitter else at
        self._lost = False
        self._compare(at)

    def _compare(self, at: datetime) -> None:
        ahead_seconds = (self._machine_clock() - at).total_seconds()
        is_off = abs(ahead_seconds) > SKEW_SECONDS
        if is_off and not self._reported:
            log.warning(
                "this machine's clock differs from PostgreSQL's, the job uses PostgreSQL's",
                {
                    "seconds_ahead": round(ahead_seconds),
                    "do": "set the clock that is wrong, and keep both right with NTP (timedatectl, chronyc tracking)",
                },
            )
        elif self._reported and not is_off:
            log.info("this machine's clock agrees with PostgreSQL's again")
        self._reported = is_off
