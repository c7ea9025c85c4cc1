"""Which programs hang: their process is alive and writes no heartbeat. Pure: the clocks are passed in."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from supervisor.states import ProcessStates

from worker.runtime.backoff import backoff_seconds
from worker.runtime.counter_readings import JobState
from worker.supervision.limits import DEFAULT_LIMITS, WatchdogLimits
from worker.supervision.supervisord_client import ProgramStatus


@dataclass(frozen=True, slots=True)
class Hang:
    """A program that is alive and has not written a heartbeat for ``silent_seconds``."""

    program: str
    pid: int
    silent_seconds: float
    interval_seconds: float


@dataclass(frozen=True, slots=True)
class _ObservedHeartbeat:
    """The latest heartbeat of a process, and since when the watchdog has seen no newer one (monotonic seconds)."""

    pid: int
    heartbeat: float
    since: float


@dataclass(slots=True)
class _Restarts:
    number: int = 0
    latest: float = 0.0  # monotonic seconds


class HangDetector:
    """Compares the jobs' heartbeats with supervisord's processes on this host."""

    def __init__(self, host: str, limits: WatchdogLimits = DEFAULT_LIMITS) -> None:
        self._host = host
        self._limits = limits
        self._observed: dict[str, _ObservedHeartbeat] = {}
        self._restarts: dict[str, _Restarts] = {}

    def check(
        self, programs: Iterable[ProgramStatus], jobs: Mapping[str, JobState] | None, now: float, clock: float
    ) -> list[Hang]:
        """The programs to restart now. ``now`` is in Unix seconds, ``clock`` in monotonic seconds.

        ``jobs`` is None while Redis is unavailable: then no program counts as hung, and all observations start again.
        """
        before, self._observed = self._observed, {}
        if jobs is None:
            return []
        found = [self._check_one(each, jobs.get(each.name), before.get(each.name), now, clock) for each in programs]
        return [hang for hang in found if hang and self._may_restart(hang.program, clock)]

    def record_restart(self, program: str, clock: float) -> int:
        """Delays the next restart; returns how many there were in a row."""
        past = self._restarts.setdefault(program, _Restarts())
        if past.number and clock - past.latest > 2 * self._pause(past.number):
            past.number = 0  # it worked for a long time
        past.number += 1
        past.latest = clock
        self._observed.pop(program, None)
        return past.number

    def _check_one(
        self,
        program: ProgramStatus,
        job: JobState | None,
        before: _ObservedHeartbeat | None,
        now: float,
        clock: float,
    ) -> Hang | None:
        if program.state != ProcessStates.RUNNING or job is None or job.heartbeat is None or not job.interval_seconds:
            return None
        # a heartbeat of another process: this one stands by, or has not had its first tick yet
        if (job.host, job.pid) != (self._host, program.pid):
            return None
        unchanged = before and (before.pid, before.heartbeat) == (program.pid, job.heartbeat)
        observed = before if before and unchanged else _ObservedHeartbeat(program.pid, job.heartbeat, clock)
        self._observed[program.name] = observed
        observed_seconds = clock - observed.since
        silent = max(now - job.heartbeat, observed_seconds)  # the wall clock may have been set back
        limit = max(self._limits.silent_intervals * job.interval_seconds, self._limits.min_silence_seconds)
        if min(silent, program.running_seconds) <= limit or observed_seconds < self._limits.min_observed_seconds:
            return None
        return Hang(program.name, program.pid, silent, job.interval_seconds)

    def _may_restart(self, program: str, clock: float) -> bool:
        past = self._restarts.get(program)
        return past is None or clock - past.latest >= self._pause(past.number)

    def _pause(self, restarts: int) -> float:
        return backoff_seconds(restarts, self._limits.restart_pause_seconds, self._limits.restart_pause_limit_seconds)
