"""How the worker is: what the page and bin/status show, made once for both.

    down        Redis or PostgreSQL is away: nothing can be sent
    degraded    Qdrant is away; the database does not tell what is under way; a job is late, or failed and never
                succeeded (worker/web/jobs.py); supervisord cannot keep a program up, or it has bad settings
    ok          none of these

Warnings are shown, and change no state. /health knows of servers only, so it may say "ok" where this says "degraded".
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import tzinfo

from worker import __version__
from worker.runtime.settings import Settings
from worker.web import history
from worker.web.backlog import Backlog, CampaignView, campaign_view, waiting
from worker.web.dependencies import SystemSnapshot
from worker.web.history import Minute
from worker.web.jobs import ErrorView, JobView, job_errors, job_views
from worker.web.words import ago, one_line, reason

NEEDED = ("redis", "database")
SERVERS = {"database": "PostgreSQL", "redis": "Redis", "qdrant": "Qdrant"}
LOST_WITHOUT = {
    "database": "nothing can be sent",
    "redis": "jobs wait for it",
    "qdrant": "the CRM's AI is without its knowledge",
}
# supervisord's numbers (http://supervisord.org/subprocess.html#process-states) -> words
PROGRAM_STATES = {
    0: "stopped",
    10: "starting",
    20: "running",
    30: "fails to start, is tried again",
    40: "stopping",
    100: "ended",
    200: "failed to start",
}
FAILING_PROGRAMS = (30, 200)


@dataclass(frozen=True)
class ServiceView:
    """A server that the worker needs."""

    name: str
    up: bool
    reason: str  # why not


@dataclass(frozen=True)
class ProgramView:
    """A program under supervisord, as the watchdog saw it."""

    name: str
    state: str
    running: bool
    failing: bool
    bad_settings: bool


@dataclass(frozen=True)
class Overview:
    """All there is to show. Times are Unix seconds."""

    state: str  # ok, degraded, down
    reasons: tuple[str, ...]  # why it is not ok
    warnings: tuple[str, ...]
    at: float
    version: str
    uptime_seconds: float | None  # of the web process; None where that is not asked
    services: tuple[ServiceView, ...]
    jobs: tuple[JobView, ...] | None  # None: Redis is away
    programs: tuple[ProgramView, ...]  # none where no watchdog looks
    campaigns: tuple[CampaignView, ...] | None  # None: the database does not tell
    campaigns_in_all: int
    campaigns_of_others: int  # that the CRM's app servers send
    waiting: Backlog
    errors: tuple[ErrorView, ...]
    last_hour: tuple[Minute, ...]


def zones(settings: Settings) -> dict[str, tzinfo]:
    """The jobs whose interval is not counted in UTC."""
    return {"call-cleanup": settings.cleanup_timezone}


def overview(
    snapshot: SystemSnapshot, now: float, zones: Mapping[str, tzinfo], uptime_seconds: float | None = None
) -> Overview:
    """Sums up a snapshot at ``now`` (Unix seconds); ``zones``: job -> the zone that its interval is counted in."""
    services = tuple(
        ServiceView(name, snapshot.services[key].up, reason(snapshot.services[key].reason))
        for key, name in SERVERS.items()
    )
    jobs = tuple(job_views(snapshot, now, zones)) if snapshot.readings else None
    programs = tuple(_programs(snapshot))
    reasons = tuple(_reasons(snapshot, jobs or (), programs, now))
    down = not all(snapshot.services[key].up for key in NEEDED)
    latest = history.sample(snapshot.readings, now) if snapshot.readings else None
    work = snapshot.work
    return Overview(
        state="down" if down else "degraded" if reasons else "ok",
        reasons=reasons,
        warnings=tuple(map(one_line, snapshot.warnings)),
        at=now,
        version=__version__,
        uptime_seconds=uptime_seconds,
        services=services,
        jobs=jobs,
        programs=programs,
        campaigns=tuple(campaign_view(run, now) for run in work.runs) if work else None,
        campaigns_in_all=work.runs_in_all if work else 0,
        campaigns_of_others=work.others_running if work else 0,
        waiting=waiting(snapshot, now),
        errors=tuple(job_errors(snapshot)),
        last_hour=history.last_hour(snapshot.history, latest),
    )


def _reasons(
    snapshot: SystemSnapshot, jobs: tuple[JobView, ...], programs: tuple[ProgramView, ...], now: float
) -> Iterator[str]:
    for key, name in SERVERS.items():
        if not snapshot.services[key].up:
            yield f"{name} does not answer: {LOST_WITHOUT[key]}"
    if refused := one_line(snapshot.work_refused):
        yield f"The database does not tell what is under way (has bin/migrate run?): {refused}"
    for job in filter(lambda each: each.degrades, jobs):
        success = job.last_success_at
        last = "has never succeeded" if success is None else f"is late: its last success was {ago(success, now)}"
        yield f"{job.name} {last}"
    for program in filter(lambda each: each.failing or each.bad_settings, programs):
        bad = "has bad settings: its error log says which"
        yield f"{program.name} {bad if program.bad_settings else program.state}"


def _programs(snapshot: SystemSnapshot) -> Iterator[ProgramView]:
    gauges = snapshot.readings.gauges if snapshot.readings else []
    bad = {each.labels.get("program") for each in gauges if each.metric == "program_bad_settings" and each.value}
    for each in gauges:
        if each.metric == "program_state" and (name := each.labels.get("program")):
            number = int(each.value)
            state = PROGRAM_STATES.get(number, "unknown")
            yield ProgramView(one_line(name), state, number == 20, number in FAILING_PROGRAMS, name in bad)
