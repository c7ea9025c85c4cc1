"""The state of each job (running, waiting, failed, late), derived from what its processes reported to Redis.

A job is **late** when it has not succeeded for two of its intervals plus its usual duration, and for at least half a
minute: one missed tick is normal, two are not. It has **failed** when its latest completed tick failed. Both end with
its next success. The worker is degraded only by a job that is late, or that failed and never succeeded: a failed tick
is retried.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo

from worker.content.one_line import one_line
from worker.registry import JOBS, LOCKS
from worker.runtime.counter_readings import JobState
from worker.runtime.schedule import next_aligned
from worker.web.dependencies import SystemSnapshot
from worker.web.formatting import TEXT_LIMIT, plain

LATE_INTERVALS = 2
SHORTEST_LATE_SECONDS = 30.0  # after an outage the loop itself may pause that long
STATES = {
    "running": "running",
    "waiting": "waiting",
    "failed": "failed last time",
    "late": "late",
    "never": "has not run yet",
}


@dataclass(frozen=True)
class JobView:
    """One job. Times are Unix seconds, None when unknown or never."""

    name: str
    purpose: str
    state: str  # one of STATES
    degrades: bool  # the worker is degraded because of this job
    interval_seconds: float | None = None
    last_run_at: float | None = None  # when its latest tick began
    last_success_at: float | None = None
    next_run_at: float | None = None  # at the latest; overdue when it is in the past
    last_seconds: float | None = None  # duration of the latest tick
    usual_seconds: float | None = None  # mean duration of all ticks
    runs: int = 0  # completed ticks since counting began
    failures: int = 0
    stuck: int = 0  # messages whose provider does not answer; its tick does nothing but wait for them
    holder: str | None = None  # host and pid of the process that holds its lock


@dataclass(frozen=True)
class ErrorView:
    """The latest error of a job."""

    job: str
    at: float  # Unix seconds
    text: str
    over: bool  # the job has succeeded since


def job_views(snapshot: SystemSnapshot, now: float, zones: Mapping[str, tzinfo]) -> Iterator[JobView]:
    """All jobs, in the order of the registry; ``zones``: job -> the time zone of its interval, if not UTC."""
    states = snapshot.readings.jobs if snapshot.readings else {}
    for name in LOCKS:
        if name in states:
            yield _view(states[name], snapshot, now, zones.get(name, UTC))
        else:
            yield JobView(name, JOBS[name].purpose, "never", degrades=False, holder=_holder(snapshot, name))


def job_errors(snapshot: SystemSnapshot) -> list[ErrorView]:
    """The latest error of each job, the newest first."""
    states = snapshot.readings.jobs.values() if snapshot.readings else ()
    errors = [
        ErrorView(each.job, each.last_error_at, plain(each.last_error), (each.last_success or 0) > each.last_error_at)
        for each in states
        if each.job in LOCKS and each.last_error is not None and each.last_error_at is not None
    ]
    return sorted(errors, key=lambda error: error.at, reverse=True)


def completed_runs(snapshot: SystemSnapshot, job: str) -> int:
    """How many ticks of the job ran, well or not, since counting began; those left to another worker did not run."""
    return _ended(snapshot, job, "success") + _ended(snapshot, job, "failure")


def _view(job: JobState, snapshot: SystemSnapshot, now: float, zone: tzinfo) -> JobView:
    running = snapshot.is_running(job.job)
    usual = job.duration_sum_seconds / job.duration_count if job.duration_count else None
    failed = (job.last_error_at or 0.0) > (job.last_success or 0.0)
    late = _late(job, usual or 0.0, now)
    took = job.last_success - job.last_run if job.last_success and job.last_run and not (running or failed) else None
    return JobView(
        name=job.job,
        purpose=JOBS[job.job].purpose,
        state="late" if late else "running" if running else "failed" if failed else "waiting",
        degrades=late or (failed and job.last_success is None),
        interval_seconds=job.interval_seconds,
        last_run_at=job.last_run,
        last_success_at=job.last_success,
        next_run_at=_next_run(job, zone),
        last_seconds=took if took is not None and took >= 0 else None,
        usual_seconds=usual,
        runs=completed_runs(snapshot, job.job),
        failures=_ended(snapshot, job.job, "failure"),
        stuck=job.stuck if running else 0,
        holder=_holder(snapshot, job.job),
    )


def _late(job: JobState, usual_seconds: float, now: float) -> bool:
    since = job.last_success if job.last_success is not None else job.last_run
    if since is None or job.interval_seconds is None:
        return False
    return now - since > max(LATE_INTERVALS * job.interval_seconds, SHORTEST_LATE_SECONDS) + usual_seconds


def _next_run(job: JobState, zone: tzinfo) -> float | None:
    if job.last_run is None or not job.interval_seconds:
        return None
    last_run = datetime.fromtimestamp(job.last_run, UTC).replace(tzinfo=None)
    return next_aligned(last_run, job.interval_seconds, zone).replace(tzinfo=UTC).timestamp()


def _ended(snapshot: SystemSnapshot, job: str, outcome: str) -> int:
    labels = {"job": job, "outcome": outcome}
    samples = snapshot.readings.counters if snapshot.readings else []
    return int(sum(each.value for each in samples if each.metric == "job_runs_total" and each.labels == labels))


def _holder(snapshot: SystemSnapshot, job: str) -> str | None:
    """The holder of the job's lock: its token ``host:pid:random`` without the random part."""
    token = snapshot.holders.get(LOCKS[job])
    if token is None:
        return None
    host, _, rest = token.partition(":")
    pid = rest.partition(":")[0]
    return one_line(f"{host}, pid {pid}" if pid else host, TEXT_LIMIT)
