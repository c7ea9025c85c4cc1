"""Which programs the watchdog restarts and brings back, with clocks passed in."""

from itertools import pairwise

import pytest
from supervisor.states import ProcessStates

from worker.runtime.counter_readings import JobState
from worker.supervision.fatal_restarts import FatalRestarts
from worker.supervision.hang_detector import Hang, HangDetector, Limits
from worker.supervision.supervisord_client import Program

HOST = "worker-1"
INTERVAL = 60.0
LIMITS = Limits(least_hang_seconds=100.0, watched_seconds=30.0)
TICK = 60.0  # seconds from look to look
NOW = 1_769_850_000.0


def program(
    state: int = ProcessStates.RUNNING, *, pid: int = 7, running: float = 10_000.0, status: int = 0
) -> Program:
    return Program("campaign", state, pid=pid, running_seconds=running)


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


class Watch:
    """Looks at one program every minute, with both clocks going on alike."""

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.hangs = HangDetector(HOST, limits)
        self.clock = 500.0
        self.now = NOW

    def look(self, program: Program, state: JobState | None, *, redis: bool = True) -> list[Hang]:
        jobs = ({"campaign": state} if state else {}) if redis else None
        found = self.hangs.look([program], jobs, self.now, self.clock)
        self.clock += TICK
        self.now += TICK
        return found

    def minutes_until_hang(self, program: Program, state: JobState, most: int = 100) -> int | None:
        return next((minute for minute in range(most) if self.look(program, state)), None)


def test_a_heartbeat_older_than_three_intervals_is_a_hang() -> None:
    """Found at the first look after three intervals, with what there is to say of it."""
    watch = Watch()
    for _ in range(4):  # 0, 60, 120 and 180 seconds old: not older than three intervals
        assert watch.look(program(), job(NOW)) == []
    assert watch.look(program(), job(NOW)) == [Hang("campaign", 7, 240.0, INTERVAL)]


def test_a_short_interval_does_not_make_a_tick_a_hang() -> None:
    """A job that looks every five seconds may be busy for longer than fifteen."""
    assert Watch().minutes_until_hang(program(), job(NOW, interval=5.0)) == 2  # 120 s, the first above 100


def test_a_job_that_says_that_it_is_alive_is_never_restarted() -> None:
    """However long it runs."""
    watch = Watch()
    for _ in range(200):
        assert watch.look(program(), job(watch.now - 20.0)) == []


@pytest.mark.parametrize(
    ("state", "of_it"),
    [
        ("another machine's process is at work", job(NOW - 9999, host="worker-2")),
        ("another process of this machine is at work", job(NOW - 9999, pid=8)),
        ("it never had a tick", job(None)),
        ("its interval is not known", job(NOW - 9999, interval=None)),
        ("nothing is known of it", None),
    ],
)
def test_a_heartbeat_that_is_not_its_own_says_nothing(state: str, of_it: JobState | None) -> None:
    """A standby is not restarted for the worker that has the lock, nor a program without heartbeats (web)."""
    watch = Watch()
    for _ in range(10):
        assert watch.look(program(), of_it) == [], state


@pytest.mark.parametrize(
    "state", [ProcessStates.STARTING, ProcessStates.STOPPING, ProcessStates.STOPPED, ProcessStates.EXITED]
)
def test_only_a_running_program_hangs(state: int) -> None:
    """One that ended, or is about to, is left alone."""
    assert Watch().minutes_until_hang(program(state), job(NOW - 9999), 10) is None


def test_a_program_that_was_just_started_gets_its_three_intervals() -> None:
    """A heartbeat under the same pid may be from before a restart of the machine."""
    watch = Watch()
    for running in (0.0, 60.0, 120.0, 180.0):
        assert watch.look(program(running=running), job(NOW - 9999)) == []
    assert watch.look(program(running=240.0), job(NOW - 9999))


def test_nobody_is_judged_without_redis_or_just_after_it() -> None:
    """Heartbeats grow old while they cannot be written; when Redis is back the jobs get time to write one."""
    watch = Watch()
    for _ in range(10):
        assert watch.look(program(), None, redis=False) == []
    assert watch.look(program(), job(NOW)) == []  # ten minutes old
    assert watch.look(program(), job(watch.now)) == []  # and it has spoken
    assert watch.look(program(), job(watch.now)) == []


def test_an_outage_begins_the_watch_anew() -> None:
    """What was seen before it does not count."""
    watch = Watch()
    assert watch.look(program(), job(NOW - 9999)) == []
    assert watch.look(program(), None, redis=False) == []
    assert watch.look(program(), job(NOW - 9999)) == []
    assert watch.look(program(), job(NOW - 9999))


def test_a_clock_that_jumps_ahead_makes_no_hangs() -> None:
    """A machine that slept for an hour wakes with old heartbeats, and jobs that are about to write new ones."""
    watch = Watch(Limits(least_hang_seconds=100.0, watched_seconds=120.0))
    assert watch.look(program(), job(NOW)) == []
    watch.now += 3600.0
    assert watch.look(program(), job(NOW)) == []  # more than an hour old, but watched for a minute only
    assert watch.look(program(), job(watch.now)) == []
    watch.now += 3600.0
    still = watch.now - 3600.0 - TICK
    assert [bool(watch.look(program(), job(still))) for _ in range(3)] == [False, True, True]


def test_a_clock_that_is_set_back_hides_no_hang() -> None:
    """The heartbeat is from the future then; how long it was seen unchanged counts."""
    assert Watch().minutes_until_hang(program(), job(NOW + 3600.0)) == 4


def test_restarts_that_do_not_help_grow_rare() -> None:
    """Ten minutes between the first two, then twice as long each time, up to two hours."""
    watch = Watch()
    restarts: list[float] = []
    for minute in range(10 * 60):
        if watch.look(program(pid=minute // 3), job(NOW - 9999, pid=minute // 3)):
            watch.hangs.restarted("campaign", watch.clock)
            restarts.append(watch.clock)
    gaps = [(later - earlier) / 60 for earlier, later in pairwise(restarts)]
    for gap, least in zip(gaps, [10, 20, 40, 80, 120, 120], strict=False):
        assert least <= gap <= least + 3


def test_old_restarts_are_forgotten() -> None:
    """After a good while a hang is the first one again."""
    hangs = HangDetector(HOST, LIMITS)
    assert [hangs.restarted("campaign", at) for at in (0.0, 700.0, 2000.0)] == [1, 2, 3]
    assert hangs.restarted("campaign", 2000.0 + 2 * 2400.0 + 1.0) == 1


def test_the_usual_limits() -> None:
    """A statement may run for five minutes, and the loop pauses for half a minute after an outage."""
    usual = Limits()
    assert usual.intervals == 3
    assert usual.least_hang_seconds > 300
    assert usual.watched_seconds > 30 + TICK


def due_at(
    comebacks: FatalRestarts, *clocks: float, state: int = ProcessStates.FATAL, running: float = 0.0
) -> list[float]:
    """At which of these seconds the program is due."""
    return [clock for clock in clocks if comebacks.look([program(state, running=running)], clock)]


def test_a_program_that_was_given_up_is_due_after_half_a_minute() -> None:
    """Counted from when it was seen to be down, and due until it is started."""
    assert due_at(FatalRestarts(), 100.0, 129.0, 130.0, 190.0) == [130.0, 190.0]


def test_starts_that_do_not_help_grow_rare() -> None:
    """Each pause is twice as long, up to a quarter of an hour."""
    comebacks = FatalRestarts()
    pauses = []
    for _ in range(8):
        pauses.append(comebacks.pause_seconds("campaign"))
        comebacks.started("campaign")
    assert pauses == [30, 60, 120, 240, 480, 900, 900, 900]


def test_a_start_begins_a_new_pause() -> None:
    """A program that fell again, or did not even start, waits from then on."""
    comebacks = FatalRestarts()
    assert due_at(comebacks, 0.0, 30.0) == [30.0]
    assert comebacks.started("campaign") == 1
    assert due_at(comebacks, 31.0, state=ProcessStates.BACKOFF) == []
    assert due_at(comebacks, 40.0, 99.0, 100.0) == [100.0]


def test_ten_good_minutes_wipe_the_slate() -> None:
    """A program that only just runs keeps its record."""
    comebacks = FatalRestarts()
    due_at(comebacks, 0.0)
    assert [comebacks.started("campaign") for _ in range(3)] == [1, 2, 3]
    due_at(comebacks, 60.0, state=ProcessStates.RUNNING, running=599.0)
    assert comebacks.pause_seconds("campaign") == 240
    due_at(comebacks, 61.0, state=ProcessStates.RUNNING, running=600.0)
    assert comebacks.pause_seconds("campaign") == 30


@pytest.mark.parametrize("state", [ProcessStates.EXITED, ProcessStates.STOPPED, ProcessStates.BACKOFF])
def test_nobody_else_is_started(state: int) -> None:
    """Neither one that ended, with whatever status, nor one that was stopped or is still tried by supervisord."""
    assert due_at(FatalRestarts(), 0.0, 10_000.0, state=state) == []


def test_an_operators_stop_is_the_last_word() -> None:
    """What was known of a program is forgotten when somebody stops it."""
    comebacks = FatalRestarts()
    comebacks.started("campaign")
    due_at(comebacks, 0.0, state=ProcessStates.STOPPED)
    assert comebacks.pause_seconds("campaign") == 30
