"""Which programs hang, and which of those that supervisord gave up are due again. Pure: clocks are passed in."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from supervisor.states import ProcessStates

from worker.runtime.backoff import backoff_seconds
from worker.runtime.counter_readings import JobState
from worker.runtime.db import STATEMENT_TIMEOUT_SECONDS
from worker.supervision.supervisord_client import Program


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How long is too long, and how long is waited. All in seconds but the first."""

    intervals: int = 3  # a heartbeat that is older than so many of the job's intervals is too old,
    # but never before this: a job says nothing while a statement runs in the database, which may take so long
    least_hang_seconds: float = STATEMENT_TIMEOUT_SECONDS + 60.0
    # for how long the same heartbeat must have been seen, with Redis at hand: longer than the loop's longest pause
    # after an outage, so that a job can say first that it is alive when Redis, or the whole machine, was away
    watched_seconds: float = 120.0
    restart_pause_seconds: float = 600.0  # after a restart of a program for its hanging; doubles up to
    restart_pause_limit_seconds: float = 7200.0
    fatal_pause_seconds: float = 30.0  # after supervisord gave a program up; doubles with each time up to
    fatal_pause_limit_seconds: float = 900.0
    settled_seconds: float = 600.0  # a program that ran for so long has come back for good


USUAL = Limits()


@dataclass(frozen=True, slots=True)
class Hang:
    """A program that is alive and says nothing."""

    program: str
    pid: int
    silent_seconds: float
    interval_seconds: float


@dataclass(frozen=True, slots=True)
class _Seen:
    """A heartbeat, of which process, and since when it is the latest (monotonic seconds)."""

    pid: int
    heartbeat: float
    since: float


@dataclass(slots=True)
class _Restarts:
    number: int = 0
    latest: float = 0.0  # monotonic seconds


class HangDetector:
    """Compares the jobs' heartbeats with supervisord's processes on this host."""

    def __init__(self, host: str, limits: Limits = USUAL) -> None:
        self._host = host
        self._limits = limits
        self._seen: dict[str, _Seen] = {}
        self._restarts: dict[str, _Restarts] = {}

    def look(
        self, programs: Iterable[Program], jobs: Mapping[str, JobState] | None, now: float, clock: float
    ) -> list[Hang]:
        """The programs to restart now. ``now`` are Unix seconds, ``clock`` monotonic ones.

        ``jobs`` is None while Redis is away: then nobody is judged, and everybody is watched from the beginning.
        """
        before, self._seen = self._seen, {}
        if jobs is None:
            return []
        found = [self._judge(each, jobs.get(each.name), before.get(each.name), now, clock) for each in programs]
        return [hang for hang in found if hang and self._may_restart(hang.program, clock)]

    def restarted(self, program: str, clock: float) -> int:
        """Notes a restart, which puts the next one off; returns how many there were in a row."""
        past = self._restarts.setdefault(program, _Restarts())
        if past.number and clock - past.latest > 2 * self._pause(past.number):
            past.number = 0  # it was well for a long time
        past.number += 1
        past.latest = clock
        self._seen.pop(program, None)
        return past.number

    def _judge(
        self, program: Program, job: JobState | None, before: _Seen | None, now: float, clock: float
    ) -> Hang | None:
        if program.state != ProcessStates.RUNNING or job is None or job.heartbeat is None or not job.interval_seconds:
            return None
        if (job.host, job.pid) != (self._host, program.pid):
            return None  # another process is at work and this one stands by, or it has not had its first tick yet
        unchanged = before and (before.pid, before.heartbeat) == (program.pid, job.heartbeat)
        seen = before if before and unchanged else _Seen(program.pid, job.heartbeat, clock)
        self._seen[program.name] = seen
        watched = clock - seen.since
        silent = max(now - job.heartbeat, watched)  # the wall clock may have been set back
        limit = max(self._limits.intervals * job.interval_seconds, self._limits.least_hang_seconds)
        if min(silent, program.running_seconds) <= limit or watched < self._limits.watched_seconds:
            return None
        return Hang(program.name, program.pid, silent, job.interval_seconds)

    def _may_restart(self, program: str, clock: float) -> bool:
        past = self._restarts.get(program)
        return past is None or clock - past.latest >= self._pause(past.number)

    def _pause(self, restarts: int) -> float:
        return backoff_seconds(restarts, self._limits.restart_pause_seconds, self._limits.restart_pause_limit_seconds)
