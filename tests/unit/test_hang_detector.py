"""Which programs the watchdog restarts because they hang, with clocks passed in."""

from itertools import pairwise

import pytest
from supervisor.states import ProcessStates

from worker.runtime.counter_readings import JobState
from worker.supervision.hang_detector import Hang, HangDetector
from worker.supervision.limits import WatchdogLimits
from worker.supervision.supervisord_client import ProgramStatus

HOST = "worker-1"
INTERVAL = 60.0
LIMITS = WatchdogLimits(min_silence_seconds=100.0, min_observed_seconds=30.0)
TICK = 60.0  # seconds between two checks
NOW = 1_769_850_000.0


def program(state: int = ProcessStates.RUNNING, *, pid: int = 7, running: float = 10_000.0) -> ProgramStatus:
    return ProgramStatus("campaign", state, pid=pid, running_seconds=running)


def job(heartbeat: float | None, *, pid: int = 7, host: str = HOST, interval: float | None = INTERVAL) -> JobState:
    return JobState(
        job="campaign",
        running=True,
        interval_seconds=interval,
        last_run=heartbeat,
        last_success=None,
        heartbeat=heartbeat,
        last_error=None,
        last_error_at=None,
        pid=pid,
        host=host,
        duration_buckets=(),
        duration_sum_seconds=0.0,
        duration_count=0,
    )


class Checks:
    """Checks one program every minute; both clocks advance together."""

    def __init__(self, limits: WatchdogLimits = LIMITS) -> None:
        self.detector = HangDetector(HOST, limits)
        self.clock = 500.0
        self.now = NOW

    def check(self, program: ProgramStatus, state: JobState | None, *, redis: bool = True) -> list[Hang]:
        jobs = ({"campaign": state} if state else {}) if redis else None
        found = self.detector.check([program], jobs, self.now, self.clock)
        self.clock += TICK
        self.now += TICK
        return found

    def minutes_until_hang(self, program: ProgramStatus, state: JobState, most: int = 100) -> int | None:
        return next((minute for minute in range(most) if self.check(program, state)), None)


def test_a_heartbeat_older_than_three_intervals_is_a_hang() -> None:
    """Found at the first check after three intervals, with the details for the log line."""
    checks = Checks()
    for _ in range(4):  # 0, 60, 120 and 180 seconds old: not older than three intervals
        assert checks.check(program(), job(NOW)) == []
    assert checks.check(program(), job(NOW)) == [Hang("campaign", 7, 240.0, INTERVAL)]


def test_a_short_interval_does_not_make_a_tick_a_hang() -> None:
    """A job with an interval of five seconds may be busy for longer than fifteen."""
    assert Checks().minutes_until_hang(program(), job(NOW, interval=5.0)) == 2  # 120 s, the first above 100


def test_a_job_that_writes_heartbeats_is_never_restarted() -> None:
    """However long it runs."""
    checks = Checks()
    for _ in range(200):
        assert checks.check(program(), job(checks.now - 20.0)) == []


@pytest.mark.parametrize(
    ("reason", "state"),
    [
        ("another machine's process has the lock", job(NOW - 9999, host="worker-2")),
        ("another process of this machine has the lock", job(NOW - 9999, pid=8)),
        ("it never had a tick", job(None)),
        ("its interval is not known", job(NOW - 9999, interval=None)),
        ("it writes no counters", None),
    ],
)
def test_a_heartbeat_of_another_process_does_not_count(reason: str, state: JobState | None) -> None:
    """A standby is not restarted because of the worker that has the lock, nor a program without heartbeats (web)."""
    checks = Checks()
    for _ in range(10):
        assert checks.check(program(), state) == [], reason


@pytest.mark.parametrize(
    "state", [ProcessStates.STARTING, ProcessStates.STOPPING, ProcessStates.STOPPED, ProcessStates.EXITED]
)
def test_only_a_running_program_hangs(state: int) -> None:
    """A program that has ended, or is about to, is left alone."""
    assert Checks().minutes_until_hang(program(state), job(NOW - 9999), 10) is None


def test_a_program_that_was_just_started_gets_its_three_intervals() -> None:
    """A heartbeat under the same pid may be from before a restart of the machine."""
    checks = Checks()
    for running in (0.0, 60.0, 120.0, 180.0):
        assert checks.check(program(running=running), job(NOW - 9999)) == []
    assert checks.check(program(running=240.0), job(NOW - 9999))


def test_no_program_hangs_without_redis_or_just_after_it() -> None:
    """Heartbeats grow old while they cannot be written; when Redis is available the jobs get time to write one."""
    checks = Checks()
    for _ in range(10):
        assert checks.check(program(), None, redis=False) == []
    assert checks.check(program(), job(NOW)) == []  # ten minutes old
    assert checks.check(program(), job(checks.now)) == []  # and now a new one
    assert checks.check(program(), job(checks.now)) == []


def test_observation_starts_again_after_an_outage() -> None:
    """What was observed before the outage does not count."""
    checks = Checks()
    assert checks.check(program(), job(NOW - 9999)) == []
    assert checks.check(program(), None, redis=False) == []
    assert checks.check(program(), job(NOW - 9999)) == []
    assert checks.check(program(), job(NOW - 9999))


def test_a_clock_that_jumps_ahead_makes_no_hangs() -> None:
    """A machine that slept for an hour wakes with old heartbeats, and jobs that are about to write new ones."""
    checks = Checks(WatchdogLimits(min_silence_seconds=100.0, min_observed_seconds=120.0))
    assert checks.check(program(), job(NOW)) == []
    checks.now += 3600.0
    assert checks.check(program(), job(NOW)) == []  # more than an hour old, but observed for a minute only
    assert checks.check(program(), job(checks.now)) == []
    checks.now += 3600.0
    old = checks.now - 3600.0 - TICK
    assert [bool(checks.check(program(), job(old))) for _ in range(3)] == [False, True, True]


def test_a_clock_that_is_set_back_hides_no_hang() -> None:
    """The heartbeat is in the future then; what counts is for how long it did not change."""
    assert Checks().minutes_until_hang(program(), job(NOW + 3600.0)) == 4


def test_pauses_between_restarts_that_do_not_help_grow() -> None:
    """Ten minutes between the first two, then twice as long each time, up to two hours."""
    checks = Checks()
    restarts: list[float] = []
    for minute in range(10 * 60):
        if checks.check(program(pid=minute // 3), job(NOW - 9999, pid=minute // 3)):
            checks.detector.record_restart("campaign", checks.clock)
            restarts.append(checks.clock)
    gaps = [(later - earlier) / 60 for earlier, later in pairwise(restarts)]
    for gap, least in zip(gaps, [10, 20, 40, 80, 120, 120], strict=False):
        assert least <= gap <= least + 3


def test_old_restarts_are_forgotten() -> None:
    """After a long time without a hang the next one counts as the first."""
    detector = HangDetector(HOST, LIMITS)
    assert [detector.record_restart("campaign", at) for at in (0.0, 700.0, 2000.0)] == [1, 2, 3]
    assert detector.record_restart("campaign", 2000.0 + 2 * 2400.0 + 1.0) == 1


def test_the_default_limits() -> None:
    """A statement may run for five minutes, and the loop pauses for half a minute after an outage."""
    limits = WatchdogLimits()
    assert limits.silent_intervals == 3
    assert limits.min_silence_seconds > 300
    assert limits.min_observed_seconds > 30 + TICK
