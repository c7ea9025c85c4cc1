"""The overview: everything that the status page and bin/status show, and the state of the whole worker.

    down        Redis or PostgreSQL is unavailable or takes no writes: nothing can be sent
    degraded    Qdrant is unavailable; the work in progress cannot be read from the database; a job is late, or failed
                and never succeeded (worker/web/job_views.py); a program does not start, or has bad settings
    ok          none of these

Warnings do not change the state. /health looks at the servers only, so it may be "ok" while this is "degraded".
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import tzinfo

from worker import __version__
from worker.content.one_line import one_line
from worker.registry import MANY
from worker.runtime.counter_readings import MetricValue
from worker.runtime.settings import Settings
from worker.web.backlog import Backlog, read_backlog
from worker.web.campaign_failures import CampaignFailures
from worker.web.campaign_views import CampaignView, ScheduledView, campaign_view, failures_view, scheduled_view
from worker.web.counter_history import Minute, last_hour, take_sample
from worker.web.dependencies import SystemSnapshot
from worker.web.formatting import TEXT_LIMIT, ago, reason
from worker.web.job_views import ErrorView, JobView, job_errors, job_views
from worker.web.program_states import of_live_hosts
from worker.web.senders import SendersAtWork
from worker.web.service import Service

NEEDED = ("redis", "database")
SERVERS = {"database": "PostgreSQL", "redis": "Redis", "qdrant": "Qdrant"}
EFFECT_OF_OUTAGE = {
    "database": "nothing can be sent",
    "redis": "jobs wait for it",
    "qdrant": "the CRM's AI has no knowledge base",
}
# supervisord's state numbers (http://supervisord.org/subprocess.html#process-states) -> text
PROGRAM_STATES = {
    0: "stopped",
    10: "starting",
    20: "running",
    30: "failed to start, will be retried",
    40: "stopping",
    100: "exited",
    200: "failed to start",
}
FAILING_PROGRAMS = (30, 200)
NOT_STARTED = 0


@dataclass(frozen=True)
class ServiceView:
    """A server that the worker needs."""

    name: str
    up: bool
    read_only: bool  # it answers, but takes no writes; then it is not ``up``
    reason: str  # why not

    @property
    def state(self) -> str:
        return "answers" if self.up else "takes no writes" if self.read_only else "does not answer"


@dataclass(frozen=True)
class ProgramView:
    """A program under supervisord, as last reported by the watchdog."""

    name: str
    host: str  # '' while only one machine reports
    state: str
    running: bool
    failing: bool
    bad_settings: bool


@dataclass(frozen=True)
class Overview:
    """Everything that is shown. Times are Unix seconds."""

    state: str  # ok, degraded, down
    reasons: tuple[str, ...]  # why it is not ok
    warnings: tuple[str, ...]
    at: float
    version: str
    uptime_seconds: float | None  # of the web process; None in bin/status
    services: tuple[ServiceView, ...]
    jobs: tuple[JobView, ...] | None  # None: Redis is unavailable
    programs: tuple[ProgramView, ...]  # empty where no watchdog runs
    campaigns: tuple[CampaignView, ...] | None  # None: the database could not be queried
    campaigns_in_all: int
    campaigns_of_others: int  # sent by the CRM's app servers
    scheduled: tuple[ScheduledView, ...]  # the campaigns that are due next
    failures: tuple[CampaignFailures, ...]  # of running and just ended campaigns
    senders: SendersAtWork | None  # None: bin/campaign sends by itself, or unknown
    waiting: Backlog
    errors: tuple[ErrorView, ...]
    last_hour: tuple[Minute, ...]


def job_zones(settings: Settings) -> dict[str, tzinfo]:
    """The jobs whose interval is not aligned to UTC, and their time zones."""
    return {"call-cleanup": settings.cleanup_timezone}


def overview(
    snapshot: SystemSnapshot, now: float, zones: Mapping[str, tzinfo], uptime_seconds: float | None = None
) -> Overview:
    """The overview of a snapshot at ``now`` (Unix seconds); ``zones``: as from ``job_zones``."""
    services = {key: _service(name, snapshot.services[key]) for key, name in SERVERS.items()}
    jobs = tuple(job_views(snapshot, now, zones)) if snapshot.readings else None
    programs = tuple(_programs(snapshot, now))
    reasons = (*_outages(services), *_reasons(snapshot, jobs or (), programs, now))
    down = not all(services[key].up for key in NEEDED)
    latest = take_sample(snapshot.readings, now) if snapshot.readings else None
    work = snapshot.work
    return Overview(
        state="down" if down else "degraded" if reasons else "ok",
        reasons=reasons,
        warnings=tuple(one_line(each, TEXT_LIMIT) for each in snapshot.warnings),
        at=now,
        version=__version__,
        uptime_seconds=uptime_seconds,
        services=tuple(services.values()),
        jobs=jobs,
        programs=programs,
        campaigns=tuple(campaign_view(each, now) for each in work.campaigns) if work else None,
        campaigns_in_all=work.campaigns_in_all if work else 0,
        campaigns_of_others=work.campaigns_of_others if work else 0,
        scheduled=tuple(scheduled_view(each, now) for each in work.scheduled) if work else (),
        failures=tuple(map(failures_view, work.failures)) if work else (),
        senders=work.senders if work else None,
        waiting=read_backlog(snapshot, now),
        errors=tuple(job_errors(snapshot)),
        last_hour=last_hour(snapshot.history, latest),
    )


def _service(name: str, service: Service) -> ServiceView:
    return ServiceView(name, service.up, service.read_only, reason(service.reason))


def _outages(services: Mapping[str, ServiceView]) -> Iterator[str]:
    for key, service in services.items():
        if not service.up:
            yield f"{service.name} {service.state}: {EFFECT_OF_OUTAGE[key]}"


def _reasons(
    snapshot: SystemSnapshot, jobs: tuple[JobView, ...], programs: tuple[ProgramView, ...], now: float
) -> Iterator[str]:
    if error := one_line(snapshot.work_error, TEXT_LIMIT):
        yield f"The work in progress cannot be read from the database (has bin/migrate run?): {error}"
    for job in filter(lambda each: each.degrades, jobs):
        success = job.last_success_at
        last = "has never succeeded" if success is None else f"is late: its last success was {ago(success, now)}"
        yield f"{job.name} {last}"
    for program in filter(lambda each: each.failing or each.bad_settings, programs):
        bad = "has bad settings: its error log names them"
        where = f" on {program.host}" if program.host else ""
        yield f"{program.name}{where} {bad if program.bad_settings else program.state}"


def _programs(snapshot: SystemSnapshot, now: float) -> Iterator[ProgramView]:
    gauges = list(of_live_hosts(snapshot.readings.gauges, now)) if snapshot.readings else []
    bad = {_program(each) for each in gauges if each.metric == "program_bad_settings" and each.value}
    states = [each for each in gauges if each.metric == "program_state" and each.labels.get("program")]
    several = len({each.labels["host"] for each in states}) > 1
    for each in states:
        name, host = _program(each)
        number = int(each.value)
        if number == NOT_STARTED and name.partition(":")[0] in MANY:
            continue  # it runs where an operator has started it
        yield ProgramView(
            name=one_line(name, TEXT_LIMIT),
            host=one_line(host, TEXT_LIMIT) if several else "",
            state=PROGRAM_STATES.get(number, "unknown"),
            running=number == 20,
            failing=number in FAILING_PROGRAMS,
            bad_settings=(name, host) in bad,
        )


def _program(gauge: MetricValue) -> tuple[str, str]:
    """The program, and its machine."""
    return gauge.labels.get("program", ""), gauge.labels["host"]
