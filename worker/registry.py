"""All programs of the worker in one table. A new job gets a row here and a section in conf/supervisord.worker.conf.

Other places that need to know the programs derive it from this table; tests/unit/test_registry.py compares it with
supervisord's configuration, bin/ and the settings. bin/status is not a program of its own here: it reads the settings
of ``web``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

SERVER_PRIORITY, JOB_PRIORITY, WATCHDOG_PRIORITY, WEB_PRIORITY = 100, 200, 250, 300


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramSpec:
    """One program of bin/. A program with a ``lock`` is a job."""

    name: str
    lock: str | None = None  # the job's lock is ``lock:<lock>`` in Redis
    purpose: str = ""  # of a job, as the status page shows it
    health_name: str | None = None  # of a job in /health
    summary_name: str | None = None  # of a job among the last runs in the JSON of /metrics
    database: bool = True  # whether it needs DATABASE_URL
    redis: bool = True  # whether it needs REDIS_URL
    priority: int | None = None  # under supervisord: the lowest starts first and stops last; None: not under it
    worker_only: bool = True  # whether it has nothing to do where IS_WORKER=false
    many: bool = False  # a job of which any number of processes run at a time: each has a lock of its own
    settings_of: str | None = None  # it reads all variables that this other program reads


PROGRAMS = (
    ProgramSpec(
        name="campaign",
        lock="campaign-scheduler",
        purpose="sends due campaigns",
        health_name="campaign",
        summary_name="campaign",
        priority=JOB_PRIORITY,
    ),
    ProgramSpec(name="campaign-sender", priority=JOB_PRIORITY, many=True, settings_of="campaign"),
    ProgramSpec(
        name="reminders",
        lock="lead-reminder-scheduler",
        purpose="sends digests of quiet leads",
        health_name="leadReminder",
        summary_name="reminder",
        priority=JOB_PRIORITY,
    ),
    ProgramSpec(
        name="calls",
        lock="call-scheduler",
        purpose="places queued calls",
        health_name="callScheduler",
        summary_name="call",
        priority=JOB_PRIORITY,
    ),
    ProgramSpec(
        name="call-cleanup",
        lock="call-cleanup",
        purpose="deletes old rows of the call queue",
        health_name="callCleanup",
        priority=JOB_PRIORITY,
    ),
    ProgramSpec(
        name="trial",
        lock="trial-expiration",
        purpose="suspends expired trials",
        health_name="trialExpiration",
        priority=JOB_PRIORITY,
    ),
    ProgramSpec(
        name="bounces",
        lock="bounces",
        purpose="reads delivery reports and complaints",
        priority=JOB_PRIORITY,
    ),
    ProgramSpec(
        name="knowledge",
        lock="knowledge",
        purpose="maintains the collection of the CRM's AI and its snapshots",
        database=False,
        priority=JOB_PRIORITY,
    ),
    ProgramSpec(name="qdrant", database=False, redis=False, priority=SERVER_PRIORITY, worker_only=False),
    ProgramSpec(name="watchdog", priority=WATCHDOG_PRIORITY),
    ProgramSpec(name="web", priority=WEB_PRIORITY, worker_only=False),
    ProgramSpec(name="migrate", redis=False),
    ProgramSpec(name="suppress"),
    ProgramSpec(name="entrypoint"),
    ProgramSpec(name="healthcheck", database=False, redis=False),
)

JOBS: Mapping[str, ProgramSpec] = MappingProxyType({each.name: each for each in PROGRAMS if each.lock})
MANY: Mapping[str, ProgramSpec] = MappingProxyType({each.name: each for each in PROGRAMS if each.many})
LOCKS: Mapping[str, str] = MappingProxyType({name: each.lock for name, each in JOBS.items() if each.lock})
SUPERVISED: Mapping[str, ProgramSpec] = MappingProxyType(
    {each.name: each for each in PROGRAMS if each.priority is not None}
)
SETTINGS_OF: Mapping[str, str] = MappingProxyType(
    {each.name: each.settings_of for each in PROGRAMS if each.settings_of}
)
# names separated by spaces, as runtime/settings.py takes them
DATABASE_USERS = " ".join(each.name for each in PROGRAMS if each.database)
REDIS_USERS = " ".join(each.name for each in PROGRAMS if each.redis)
