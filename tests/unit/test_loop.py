"""The loop: when it runs its job, what it logs about an outage, and how it ends."""

import errno
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import pairwise
from pathlib import Path
from zoneinfo import ZoneInfo

import psycopg2
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from sandbox.redis import Redis
from worker.errors import SchemaError, SettingsError, TickFailed, WorkerError
from worker.runtime.backoff import backoff_seconds
from worker.runtime.counters import Counters, read_all
from worker.runtime.job import JobContext, TickResult
from worker.runtime.lock import Lock
from worker.runtime.loop import Loop
from worker.runtime.redis_client import connect
from worker.runtime.rest import LEAST_REST_SECONDS, Rest
from worker.runtime.schedule import next_aligned
from worker.runtime.settings import load
from worker.runtime.signals import Signals

EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - UTC without a zone, like all times of the CRM
NOON = datetime(2026, 1, 31, 12, 0, 7)  # noqa: DTZ001
DEADLINE_SECONDS = 60.0

moments = st.datetimes(datetime(1971, 1, 1), datetime(2200, 1, 1))  # noqa: DTZ001
milliseconds = st.integers(100, 7 * 86_400_000)


@given(moments, milliseconds)
def test_aligned_ticks(now: datetime, interval_ms: int) -> None:
    """The next tick is the first multiple of the interval that is later than now."""
    interval = timedelta(milliseconds=interval_ms)
    tick = next_aligned(now, interval_ms / 1000)
    assert now < tick <= now + interval
    assert (tick - EPOCH) % interval == timedelta(0)
    assert next_aligned(tick, interval_ms / 1000) == tick + interval


def test_ticks_that_people_know() -> None:
    """A 30 s job runs at :00 and :30, a daily one at midnight UTC."""
    assert next_aligned(NOON, 30.0) == NOON.replace(second=30)
    assert next_aligned(NOON.replace(second=30), 30.0) == NOON.replace(minute=1, second=0)
    assert next_aligned(NOON, 86_400.0) == datetime(2026, 2, 1)  # noqa: DTZ001


DAY = 86_400.0
HOUR = 3_600.0


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.mark.parametrize(
    ("zone", "interval_seconds", "now", "ticks"),
    [
        # no change of clocks: 00:00 in India is 18:30 in UTC
        ("Asia/Kolkata", DAY, "2026-01-31T12:00:07", ["2026-01-31T18:30", "2026-02-01T18:30"]),
        ("Asia/Kolkata", DAY, "2026-01-31T18:29:59.999999", ["2026-01-31T18:30"]),
        ("Asia/Kolkata", DAY, "2026-01-31T18:30", ["2026-02-01T18:30"]),
        ("Asia/Kolkata", 12 * HOUR, "2026-01-31T18:30", ["2026-02-01T06:30", "2026-02-01T18:30"]),
        # days of 23 and of 25 hours
        ("Europe/Paris", DAY, "2026-03-28T12:00", ["2026-03-28T23:00", "2026-03-29T22:00", "2026-03-30T22:00"]),
        ("Europe/Paris", DAY, "2026-10-24T12:00", ["2026-10-24T22:00", "2026-10-25T23:00", "2026-10-26T23:00"]),
        # a midnight that does not exist: Cairo puts its clocks from 00:00 to 01:00
        ("Africa/Cairo", DAY, "2026-04-23T12:00", ["2026-04-23T22:00", "2026-04-24T21:00"]),
        ("Africa/Cairo", DAY, "2026-04-23T22:00", ["2026-04-24T21:00"]),
        ("Africa/Cairo", DAY, "2026-04-23T22:30", ["2026-04-24T21:00"]),
        # ... nor does the 30th of December 2011 in Samoa: the clock came from the 29th to the 31st
        ("Pacific/Apia", DAY, "2011-12-30T09:00", ["2011-12-30T10:00", "2011-12-31T10:00"]),
        # a midnight in the middle of the skipped hour: 23:30 to 00:30
        ("America/Toronto", DAY, "1919-03-30T12:00", ["1919-03-31T04:30", "1919-04-01T04:00"]),
        # a midnight that is there twice: Havana puts its clocks from 01:00 back to 00:00; the first one counts
        ("America/Havana", DAY, "2026-10-31T12:00", ["2026-11-01T04:00", "2026-11-02T05:00"]),
        ("America/Havana", DAY, "2026-11-01T04:30", ["2026-11-02T05:00"]),
        ("America/Havana", DAY, "2026-11-01T05:00", ["2026-11-02T05:00"]),
        ("America/Havana", HOUR, "2026-11-01T03:30", ["2026-11-01T04:00", "2026-11-01T06:00"]),
        # ... as do readings in the middle of two hours that come twice: 03:00 back to 01:00
        ("Antarctica/Troll", 2 * HOUR, "2026-10-24T23:30", ["2026-10-25T00:00", "2026-10-25T04:00"]),
        ("Antarctica/Troll", 2 * HOUR, "2026-10-25T01:30", ["2026-10-25T04:00", "2026-10-25T06:00"]),
        ("Antarctica/Troll", HOUR, "2026-10-25T01:30", ["2026-10-25T02:00", "2026-10-25T03:00"]),
        # ... and one that the clock is put back from: 24:00 to 23:00
        ("America/Sao_Paulo", DAY, "2018-02-17T12:00", ["2018-02-18T03:00", "2018-02-19T03:00"]),
        # shorter intervals run on through an hour that comes twice, and do not make up for one that is skipped
        ("America/Havana", 0.5 * HOUR, "2026-11-01T04:00",
         ["2026-11-01T04:30", "2026-11-01T05:00", "2026-11-01T05:30", "2026-11-01T06:00"]),
        ("Europe/Paris", 0.75 * HOUR, "2026-03-29T00:15",
         ["2026-03-29T00:30", "2026-03-29T01:00", "2026-03-29T01:45"]),
        ("Australia/Lord_Howe", 600.0, "2026-10-03T15:25", ["2026-10-03T15:30", "2026-10-03T15:40"]),
    ],
)  # fmt: skip
def test_ticks_on_a_local_clock(zone: str, interval_seconds: float, now: str, ticks: list[str]) -> None:
    """A job with a zone runs when that zone's clock shows a multiple of its interval, also around clock changes."""
    found, at = [], utc(now)
    for _ in ticks:
        at = next_aligned(at, interval_seconds, ZoneInfo(zone))
        found.append(at)
    assert found == [utc(tick) for tick in ticks]


ZONES = ["Asia/Kolkata", "Asia/Kathmandu", "Europe/Paris", "Africa/Cairo", "America/Havana", "America/Sao_Paulo",
         "Australia/Lord_Howe", "Pacific/Apia", "Asia/Beirut", "Africa/Casablanca", "Antarctica/Troll"]  # fmt: skip
intervals = st.sampled_from([60.0, 600.0, 2_700.0, HOUR, 6 * HOUR, 12 * HOUR, DAY, 7 * DAY])


def local(at: datetime, zone: str) -> datetime:
    return at.replace(tzinfo=UTC).astimezone(ZoneInfo(zone))


@given(st.sampled_from(ZONES), moments, intervals)
def test_local_ticks(zone: str, now: datetime, interval_seconds: float) -> None:
    """A tick is later than now, shows a multiple or is the moment when one is skipped, and none is left out."""
    interval = timedelta(seconds=interval_seconds)
    tick = next_aligned(now, interval_seconds, ZoneInfo(zone))
    assert tick > now
    shown, just_before = (
        (local(at, zone).replace(tzinfo=None) - EPOCH) // interval for at in (tick, tick - timedelta.resolution)
    )
    assert shown > just_before or local(tick, zone).fold
    seen = (local(now, zone).replace(tzinfo=None) - EPOCH) // interval
    steps = (tick - now) // timedelta(minutes=30)
    for at in (now + step * timedelta(minutes=30) for step in range(1, min(steps, 400))):
        moment = local(at, zone)
        assert (moment.replace(tzinfo=None) - EPOCH) // interval <= seen or moment.fold or local(now, zone).fold


@given(st.sampled_from(ZONES), moments)
def test_one_midnight_a_day(zone: str, now: datetime) -> None:
    """Each day of a zone's calendar gets one tick, also when its clocks are changed."""
    days = []
    for _ in range(4):
        now = next_aligned(now, DAY, ZoneInfo(zone))
        days.append(local(now, zone).date())
    skipped = timedelta(days=1) if zone == "Pacific/Apia" else timedelta(0)
    for day, following in pairwise(days):
        assert timedelta(days=1) <= following - day <= timedelta(days=1) + skipped


@given(st.integers(1, 10_000), st.floats(0.001, 100.0), st.floats(0.001, 10_000.0))
def test_growing_pauses(failures: int, first: float, limit: float) -> None:
    """The first pause is as given, it doubles with each failure, and never exceeds the limit."""
    pause = backoff_seconds(failures, first, limit)
    assert 0 < pause <= limit
    assert backoff_seconds(1, first, limit) == min(first, limit)
    assert backoff_seconds(failures + 1, first, limit) in (pause * 2, limit)


class Clock:
    """A clock that moves only when the loop sleeps or a tick works."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class Sleeper(Signals):
    """Signals whose ``wait`` takes no real time; ``meanwhile`` is called during each one."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.slept: list[float] = []
        self.meanwhile: Callable[[], None] = lambda: None

    def wait(self, seconds: float) -> None:
        assert seconds <= 60.0  # in pieces, since the wall clock may be set
        self.slept.append(seconds)
        self.clock.pass_by(seconds)
        self.meanwhile()


class Ledger:
    """A job that does one step of its script in each tick, records the times, and stops the loop at the end."""

    interval_seconds = 30.0
    zone: tzinfo = UTC

    def __init__(
        self, clock: Clock, signals: Signals, *script: TickResult | Exception | Callable[[], TickResult]
    ) -> None:
        self._clock, self._signals = clock, signals
        self._script = list(script)
        self.ticks: list[datetime] = []
        self.starts = 0
        self.start_errors: list[Exception] = []
        self.closed = 0

    def start(self) -> None:
        self.starts += 1
        if self.start_errors:
            raise self.start_errors.pop(0)

    def tick(self, now: datetime) -> TickResult:
        self.ticks.append(now)
        step = self._script.pop(0)
        if not self._script:
            self._signals.stopping = True
        if isinstance(step, Exception):
            raise step
        return step() if callable(step) else step

    def close(self) -> bool:
        self.closed += 1
        return True

    def seconds(self) -> list[float]:
        """When it ran, in seconds since the first tick."""
        return [(tick - self.ticks[0]).total_seconds() for tick in self.ticks]


class Bench:
    """A loop with a Ledger as its job, on a real Redis."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self.clock = Clock()
        self.signals = Sleeper(self.clock)
        self.lock = Lock([client], "ledger", 60_000)
        self.counters = Counters(client, "ledger")
        self.job: Ledger | None = None
        self.environ: dict[str, str] = {}

    def run(self, *script: TickResult | Exception | Callable[[], TickResult], once: bool = False) -> Ledger:
        """Runs the script to its end and returns the job; ``status`` has the exit status."""
        self.job = Ledger(self.clock, self.signals, *script)
        self.status = self.again(once=once)
        return self.job

    def again(self, *, once: bool, after: Rest | None = None) -> int:
        assert self.job
        settings = load({"DATABASE_URL": "postgresql://127.0.0.1:1/none"} | self.environ, "campaign")
        context = JobContext("ledger", settings, self.client, self.lock, self.counters, self.signals, self.clock)
        self.loop = Loop(self.job, context)
        return self.loop.run(once=once, after=after)


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with connect(redis_url) as client:
        yield client


@pytest.fixture
def bench(client: redis.Redis) -> Iterator[Bench]:
    made = Bench(client)
    yield made
    made.signals.close()


def said(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


def after(seconds: float) -> TickResult:
    return TickResult(next_at=NOON + timedelta(seconds=seconds))


def test_at_once_and_then_aligned(bench: Bench) -> None:
    """The first tick is at the start, all others at multiples of the interval: 12:00:07, 12:00:30, 12:01:00."""
    assert bench.run(TickResult(), TickResult(), TickResult()).seconds() == [0.0, 23.0, 53.0]
    assert bench.status == 0


def test_woken_early(bench: Bench) -> None:
    """When a tick says when it wants to run next, the next tick is then and not at the next interval."""
    assert bench.run(after(5.25), TickResult(), TickResult()).seconds() == [0.0, 5.25, 23.0]


def test_never_later_than_the_interval(bench: Bench) -> None:
    """When a tick wants to run next week, the next tick is at the next interval: new work may be there by then."""
    assert bench.run(after(7 * 86_400), after(7 * 86_400), TickResult()).seconds() == [0.0, 23.0, 53.0]


def test_a_missed_tick_is_run_once(bench: Bench) -> None:
    """After a tick that took three intervals comes one aligned tick, not one for each missed interval."""

    def slow() -> TickResult:
        bench.clock.pass_by(100.0)
        return TickResult()

    assert bench.run(slow, TickResult(), TickResult()).seconds() == [0.0, 113.0, 143.0]


def test_work_continues_at_once(bench: Bench) -> None:
    """While there is work, ticks follow at once; a tick that did nothing is followed by a short pause."""
    busy, idle = TickResult({"sent": 5}, next_at=NOON), TickResult({"sent": 0}, next_at=NOON)
    assert bench.run(busy, idle, TickResult()).seconds() == [0.0, 0.0, 0.05]


def test_at_local_midnight(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daily job with a zone runs at its start, and then at each midnight of that zone."""
    monkeypatch.setattr(Ledger, "interval_seconds", DAY)
    monkeypatch.setattr(Ledger, "zone", ZoneInfo("Asia/Kolkata"))
    ticks = bench.run(TickResult(), TickResult(), TickResult()).ticks
    assert ticks == [NOON, utc("2026-01-31T18:30"), utc("2026-02-01T18:30")]


def test_a_long_sleep_follows_the_wall_clock(bench: Bench) -> None:
    """A change of the wall clock during a long sleep is noticed within a minute."""

    def set_the_clock() -> None:
        bench.clock.now = NOON + timedelta(days=1)

    bench.signals.meanwhile = set_the_clock
    Ledger.interval_seconds, usual = 7 * 86_400.0, Ledger.interval_seconds
    try:
        job = bench.run(after(3600.0), TickResult())
    finally:
        Ledger.interval_seconds = usual
    assert job.seconds() == [0.0, 86_400.0]


def test_the_lock_is_held_in_a_tick_only(bench: Bench) -> None:
    """The lock is held during a tick; between ticks, and after the last one, it is free."""
    held: list[bool] = []

    def looks() -> TickResult:
        held.append(bench.lock.held and bench.client.get("lock:ledger") == bench.lock.token)
        return TickResult()

    bench.signals.meanwhile = lambda: held.append(bench.client.get("lock:ledger") is not None)
    bench.run(looks, looks)
    assert held == [True, False, True]
    assert bench.client.get("lock:ledger") is None


def test_another_worker_has_the_lock(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """While another worker holds the lock, no tick runs; this is logged once, and its release is noticed soon."""
    caplog.set_level(logging.INFO)
    with connect_like(bench.client) as other, closing(Lock([other], "ledger", 60_000)) as taken:
        assert taken.acquire()
        waits = 0

        def release_the_lock() -> None:
            nonlocal waits
            waits += 1
            if waits == 3:
                taken.release()

        bench.signals.meanwhile = release_the_lock
        job = bench.run(TickResult())
    assert job.seconds() == [0.0]
    assert job.ticks == [NOON + timedelta(seconds=3 * 20)]  # a third of the lock's life, or the interval
    assert said(caplog, logging.INFO).count("another worker holds the lock") == 1
    outcomes = {each.labels["outcome"]: each.value for each in read_all(bench.client).counters}
    assert outcomes == {"skipped": 3.0, "success": 1.0}


def test_a_machine_that_is_told_to_stand_by(bench: Bench, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """While STATE_DIR has a file 'standby' no tick runs and the lock is left to others; no restart is needed."""
    caplog.set_level(logging.INFO)
    flag = tmp_path / "standby"
    bench.environ["STATE_DIR"] = str(tmp_path)
    waits = 0

    def meanwhile() -> None:
        nonlocal waits
        waits += 1
        assert bench.client.get("lock:ledger") is None
        if waits == 1:
            flag.touch()
        elif waits == 4:
            flag.unlink()

    bench.signals.meanwhile = meanwhile
    # at the interval it stands by, and looks again after a third of the lock's life each time
    assert bench.run(TickResult(), TickResult()).seconds() == [0.0, 23.0 + 3 * 20.0]
    assert said(caplog, logging.INFO).count("this machine stands by") == 1
    outcomes = {each.labels["outcome"]: each.value for each in read_all(bench.client).counters}
    assert outcomes == {"skipped": 3.0, "success": 2.0}


def connect_like(client: redis.Redis) -> redis.Redis:
    """Another client of the same server."""
    return redis.Redis(connection_pool=redis.ConnectionPool(**client.connection_pool.connection_kwargs))


@pytest.mark.parametrize(
    "error", [psycopg2.OperationalError("gone"), psycopg2.InterfaceError("closed"), redis.ConnectionError("gone")]
)
def test_an_outage_is_logged_once(bench: Bench, caplog: pytest.LogCaptureFixture, error: Exception) -> None:
    """While a server is unavailable, the loop waits 1, 2, 4 ... seconds; it logs the outage and its end once."""
    job = bench.run(error, error, error, error, TickResult(), TickResult())
    assert job.seconds() == [0.0, 1.0, 3.0, 7.0, 15.0, 23.0]
    assert said(caplog, logging.ERROR) == ["a server is unavailable, the job waits for it"]
    (line,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert line.args["server"] == ("Redis" if isinstance(error, redis.RedisError) else "PostgreSQL")
    assert said(caplog, logging.WARNING) == ["the server is available again, the job continues"]


def test_a_long_outage(bench: Bench) -> None:
    """The pauses of a long outage grow to 30 seconds and no further."""
    gone = psycopg2.OperationalError("gone")
    job = bench.run(*[gone] * 9, TickResult())
    pauses = [late - early for early, late in zip(job.seconds(), job.seconds()[1:], strict=False)]
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0, 30.0]


def test_a_real_redis_that_goes_and_comes(new_redis: Callable[..., Redis], caplog: pytest.LogCaptureFixture) -> None:
    """When Redis is killed and started again between ticks, some rounds fail and nothing else happens."""
    server = new_redis()
    with connect(server.url) as client:
        bench = Bench(client)
        waits = 0

        def goes_and_comes() -> None:
            nonlocal waits
            waits += 1
            if waits == 1:
                server.kill()
            if waits == 3:
                server.start()

        bench.signals.meanwhile = goes_and_comes
        job = bench.run(TickResult(), TickResult())
        bench.signals.close()
        assert job.seconds()[0] == 0.0
        assert len(job.ticks) == 2
        assert waits == 3
        errors = [line for line in said(caplog, logging.ERROR) if line.startswith("a server is unavailable")]
        assert len(errors) == 1
        assert "the server is available again, the job continues" in said(caplog, logging.WARNING)
        outcomes = {each.labels["outcome"]: each.value for each in read_all(client).counters}
        assert outcomes == {"success": 1.0, "failure": 2.0}  # the failures were kept; the first success died with it


def test_other_failures(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """A tick that fails otherwise is logged (a bug with its traceback); the next one is at the next interval."""
    job = bench.run(WorkerError("no room"), ZeroDivisionError("oops"), TickResult())
    assert job.seconds() == [0.0, 23.0, 53.0]
    assert said(caplog, logging.ERROR) == ["tick failed", "tick failed: a bug, please report it"]
    assert [bool(record.exc_info) for record in caplog.records] == [False, True]
    state = read_all(bench.client).jobs["ledger"]
    assert state.last_error == "oops"
    assert not state.running
    assert bench.client.get("lock:ledger") is None


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("can't start new thread"),
        OSError(errno.EMFILE, "Too many open files"),
        redis.ResponseError("MISCONF Redis is unable to persist to disk"),
    ],
    ids=str,
)
def test_troubles_that_are_no_bugs(bench: Bench, caplog: pytest.LogCaptureFixture, error: Exception) -> None:
    """They are said once, with what to do, and the job waits for their end with growing pauses."""
    job = bench.run(error, error, error, TickResult())
    assert job.seconds() == [0.0, 1.0, 3.0, 7.0]
    (line,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert line.args["do"]
    assert "bug" not in caplog.text
    assert len(said(caplog, logging.WARNING)) == 1


def test_another_trouble_in_an_outage(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """When the reason of an outage changes, that is said, too."""
    gone, full = (
        psycopg2.OperationalError("gone"),
        psycopg2.OperationalError("FATAL: sorry, too many clients already"),
    )
    bench.run(gone, gone, full, full, TickResult())
    assert said(caplog, logging.ERROR) == [
        "a server is unavailable, the job waits for it",
        "a server has not enough resources, the job waits for it",
    ]


def test_the_same_bug_again_and_again(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its traceback is logged once, and the pauses grow to two minutes; another error begins anew."""
    monkeypatch.setattr(Ledger, "interval_seconds", 1.0)
    job = bench.run(*[ZeroDivisionError("oops")] * 10, ValueError("other"), TickResult(), TickResult())
    pauses = [late - early for early, late in pairwise(job.seconds())]
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 120.0, 120.0, 120.0, 1.0, 1.0]
    assert [record.getMessage() for record in caplog.records if record.exc_info] == [
        "tick failed: a bug, please report it"
    ] * 2
    assert said(caplog, logging.ERROR).count("tick failed again with the same error") == 9


@pytest.mark.parametrize("error", [SettingsError("SMTP_URL is bad"), SchemaError("run bin/migrate")])
def test_errors_that_waiting_does_not_solve(bench: Bench, error: Exception) -> None:
    """Invalid settings and missing tables end the loop; the lock is released and the job closed."""
    with pytest.raises(type(error), match=str(error)):
        bench.run(error, TickResult())
    assert bench.job
    assert bench.job.closed == 1
    assert bench.client.get("lock:ledger") is None


def test_start_is_tried_until_it_works(bench: Bench) -> None:
    """The job is started before its first tick: again and again until the database answers, then never again."""
    job = bench.job = Ledger(bench.clock, bench.signals, TickResult(), TickResult())
    job.start_errors = [psycopg2.OperationalError("gone"), psycopg2.OperationalError("gone")]
    assert bench.again(once=False) == 0
    assert job.starts == 3
    assert len(job.ticks) == 2
    assert job.closed == 1


@pytest.mark.parametrize(
    ("script", "status", "ticks"),
    [
        ([TickResult(), TickResult()], 0, 1),
        ([TickResult({"sent": 1}, next_at=NOON), TickResult()], 0, 1),
        ([WorkerError("no"), TickResult()], 1, 1),
        ([ZeroDivisionError("oops"), TickResult()], 1, 1),
        ([psycopg2.OperationalError("gone"), TickResult()], 1, 1),
        ([TickResult(unfinished=True), TickResult(unfinished=True), TickResult(), TickResult()], 0, 3),
        ([TickResult(unfinished=True), WorkerError("no"), TickResult()], 1, 2),
    ],
)
def test_once(bench: Bench, script: list[TickResult | Exception], status: int, ticks: int) -> None:
    """With --once the loop continues while there is unfinished work, and ends with 1 if a tick failed, else 0."""
    job = bench.run(*script, once=True)
    assert (bench.status, len(job.ticks), job.closed) == (status, ticks, 1)


def test_once_keeps_its_pace(bench: Bench) -> None:
    """With --once, the loop waits for work that a rate limit delays."""
    job = bench.run(TickResult(next_at=NOON + timedelta(seconds=4), unfinished=True), TickResult(), once=True)
    assert job.seconds() == [0.0, 4.0]


@pytest.fixture
def daily(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but a tick's own wish makes the job tick before midnight."""
    monkeypatch.setattr(Ledger, "interval_seconds", DAY)


def far(bench: Bench, seconds: float = LEAST_REST_SECONDS) -> datetime:
    """When the tick after the first one is due."""
    return bench.clock() + timedelta(seconds=seconds)


@pytest.mark.usefixtures("daily")
def test_a_job_rests_until_a_tick_that_is_far_away(bench: Bench) -> None:
    """The loop ends with everything closed, and says when it goes on; after the rest the job does not start again."""
    at = far(bench)
    job = bench.run(TickResult(next_at=at, may_rest=True), TickResult())
    assert bench.loop.rest == Rest(at)
    assert (bench.status, len(job.ticks), job.starts, job.closed) == (0, 1, 1, 1)
    assert bench.again(once=False, after=bench.loop.rest) == 0
    assert (job.ticks[1], job.starts, job.closed) == (at, 1, 2)


@pytest.mark.usefixtures("daily")
@pytest.mark.parametrize(
    ("result", "seconds"),
    [(TickResult(may_rest=True), LEAST_REST_SECONDS - 1), (TickResult(), LEAST_REST_SECONDS + 1)],
    ids=["soon", "something is in hand"],
)
def test_a_job_that_does_not_rest(bench: Bench, result: TickResult, seconds: float) -> None:
    """It waits in its own process for a tick that is near, and while something must not be lost."""
    result.next_at = far(bench, seconds)
    job = bench.run(result, TickResult())
    assert (bench.loop.rest, len(job.ticks), job.starts) == (None, 2, 1)


@pytest.mark.usefixtures("daily")
def test_rest_after_a_failure(bench: Bench) -> None:
    """A job whose tick said what was wrong rests until it tries again."""
    at = far(bench, 3600)
    bench.run(TickFailed("Qdrant is full", delay_seconds=3600.0), TickResult())
    assert bench.loop.rest == Rest(at)


@pytest.mark.usefixtures("daily")
@pytest.mark.parametrize("error", [RuntimeError("a bug"), psycopg2.OperationalError("connection refused")])
def test_no_rest_after_what_is_reported_once(bench: Bench, error: Exception) -> None:
    """The loop remembers that, and whether it is over, so it does not end."""
    job = bench.run(error, TickFailed("Qdrant is full", delay_seconds=3600.0), TickResult())
    assert (bench.loop.rest, len(job.ticks)) == (None, 3)


@pytest.mark.usefixtures("daily")
def test_no_rest_with_once(bench: Bench) -> None:
    """It ends by itself."""
    bench.run(TickResult(next_at=far(bench), may_rest=True), TickResult(), once=True)
    assert (bench.loop.rest, bench.status) == (None, 0)


@pytest.mark.usefixtures("daily")
def test_no_rest_while_counters_are_not_written(bench: Bench) -> None:
    """What a tick counted is kept in memory until Redis takes it."""
    bench.counters = Counters(connect("redis://127.0.0.1:1/0"), "ledger")
    job = bench.run(TickResult(next_at=far(bench), may_rest=True), TickResult())
    assert (bench.loop.rest, len(job.ticks)) == (None, 2)


PROGRAM = """
import sys
from datetime import UTC, timedelta
from worker.runtime.counters import Counters
from worker.runtime.lock import Lock
from worker.runtime.loop import Loop
from worker.runtime.job import JobContext, TickResult
from worker.runtime.signals import Signals
from worker.runtime.redis_client import connect
from worker.runtime.settings import load

class Job:
    interval_seconds, zone = 86_400.0, UTC
    def start(self): print("start", flush=True)
    def tick(self, now):
        print("tick", flush=True)
        return TickResult(next_at=now + timedelta(days=1))
    def close(self): print("close", flush=True)

client = connect(sys.argv[1])
signals = Signals()
signals.install()
settings = load({"DATABASE_URL": "postgresql://127.0.0.1:1/none"}, "campaign")
context = JobContext("ledger", settings, client, Lock([client], "ledger"), Counters(client, "ledger"), signals)
status = Loop(Job(), context).run(once=False)
sys.exit(status)
"""


class Program:
    """The program above as a process; ``line`` waits for its next line."""

    def __init__(self, url: str) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", PROGRAM, url], stdout=subprocess.PIPE, text=True)
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self._lines.put(line.strip())

    def line(self) -> str:
        return self._lines.get(timeout=DEADLINE_SECONDS)

    def end(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE_SECONDS)
        self._reader.join(DEADLINE_SECONDS)
        assert self.process.stdout
        self.process.stdout.close()


@pytest.fixture
def program(redis_url: str) -> Iterator[Program]:
    made = Program(redis_url)
    yield made
    made.end()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals(program: Program, client: redis.Redis, number: signal.Signals) -> None:
    """SIGUSR1 makes a sleeping program run a tick now; SIGTERM and SIGINT stop it properly, with status 0."""
    assert [program.line(), program.line()] == ["start", "tick"]
    for _ in range(2):
        os.kill(program.process.pid, signal.SIGUSR1)
        assert program.line() == "tick"
    os.kill(program.process.pid, number)
    assert program.line() == "close"
    assert program.process.wait(DEADLINE_SECONDS) == 0
    assert client.get("lock:ledger") is None
    assert not read_all(client).jobs["ledger"].running
