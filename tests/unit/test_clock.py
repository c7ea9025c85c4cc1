"""The database's clock: what it shows between two readings, and what is said about a machine whose clock is wrong."""

import logging
from datetime import datetime, timedelta

import pytest

from worker.runtime.clock import ClockReading, DatabaseClock

NOON = datetime(2026, 1, 31, 12)  # noqa: DTZ001 - UTC without a zone, like all times of the CRM
DAY, SECOND, MILLISECOND = timedelta(days=1), timedelta(seconds=1), timedelta(milliseconds=1)


class Machine:
    """Its wall clock, which anyone may set, and the seconds since it booted."""

    def __init__(self, wall: datetime) -> None:
        self.wall = wall
        self.seconds = 1000.0

    def pass_by(self, seconds: float) -> None:
        self.wall += timedelta(seconds=seconds)
        self.seconds += seconds

    def clock(self, reading: ClockReading | None = None) -> DatabaseClock:
        return DatabaseClock(lambda: self.wall, lambda: self.seconds, reading)


@pytest.mark.parametrize("off", [DAY, -DAY, timedelta(hours=1), timedelta(seconds=31), timedelta(0)])
def test_a_wrong_machine(off: timedelta, caplog: pytest.LogCaptureFixture) -> None:
    """The time is the database's, and goes on as the machine's does; a difference above 30 s is reported once."""
    machine = Machine(NOON + off)
    clock = machine.clock()
    assert clock() == NOON + off  # nothing else is known yet
    for minute in range(3):
        clock.set(NOON + timedelta(minutes=minute))
        machine.pass_by(12.5)
        assert clock() == NOON + timedelta(minutes=minute, seconds=12.5)
        machine.pass_by(47.5)
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.args["seconds_ahead"] for record in warnings] == ([round(off.total_seconds())] if off else [])
    assert all("do" in record.args for record in warnings)


def test_a_clock_that_is_set_during_a_tick(caplog: pytest.LogCaptureFixture) -> None:
    """Setting the machine's clock changes nothing; the next reading reports it, and also when it is right again."""
    caplog.set_level(logging.INFO)
    machine = Machine(NOON)
    clock = machine.clock()
    clock.set(NOON)
    machine.wall += 365 * DAY
    assert clock() == NOON
    for _ in range(2):
        clock.set(NOON + SECOND)
    machine.wall = NOON + SECOND
    clock.set(NOON + SECOND)
    assert [record.getMessage() for record in caplog.records] == [
        "this machine's clock differs from PostgreSQL's, the job uses PostgreSQL's",
        "this machine's clock agrees with PostgreSQL's again",
    ]


def test_small_steps_back() -> None:
    """A reading a moment behind does not set the clock back: it stands still until the database is there, too."""
    machine = Machine(NOON)
    clock = machine.clock()
    clock.set(NOON)
    machine.pass_by(60)
    clock.set(NOON + timedelta(seconds=60) - 5 * MILLISECOND)
    assert clock() == NOON + timedelta(seconds=60)
    machine.pass_by(0.004)
    assert clock() == NOON + timedelta(seconds=60)
    machine.pass_by(0.006)
    assert clock() == NOON + timedelta(seconds=60) + 5 * MILLISECOND


def test_large_steps() -> None:
    """When the database's clock is set back or forward, this one follows."""
    machine = Machine(NOON)
    clock = machine.clock()
    for at in (NOON, NOON - DAY, NOON + DAY, NOON - SECOND):
        clock.set(at)
        assert clock() == at


def test_when_to_read_it() -> None:
    """At first, after 25 s (also while the machine slept), and after a lost connection."""
    machine = Machine(NOON)
    clock = machine.clock()
    assert clock.needs_reading
    clock.set(NOON)
    machine.pass_by(25)
    assert not clock.needs_reading
    machine.pass_by(0.1)
    assert clock.needs_reading
    clock.set(NOON)
    clock.forget()
    assert clock.needs_reading
    clock.set(NOON)
    assert not clock.needs_reading


def test_a_clock_after_a_rest() -> None:
    """It goes on from the reading before the rest, whatever the machine's clock says, and wants another reading."""
    machine = Machine(NOON)
    before = machine.clock()
    before.set(NOON + DAY)
    machine.pass_by(3600)
    clock = machine.clock(before.reading)
    assert (clock(), clock.needs_reading) == (NOON + DAY + timedelta(hours=1), True)
    clock.set(NOON + DAY + timedelta(hours=1) - MILLISECOND)  # the clocks drifted: the tick is not due once more
    assert clock() == NOON + DAY + timedelta(hours=1)


def test_a_clock_that_agrees() -> None:
    """It does, unless a difference was reported: that must not be forgotten."""
    machine = Machine(NOON)
    right, wrong = machine.clock(), machine.clock()
    right.set(NOON)
    wrong.set(NOON + DAY)
    assert (right.agrees, wrong.agrees) == (True, False)
