"""All programs of the worker in one table. A new job gets its row here, and a section in supervisord's file.

What else has to know the programs is derived from this table, or compared with it by tests/unit/test_registry.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramSpec:
    """One program of bin/. A program with a ``lock`` is a job."""

    name: str
    lock: str | None = None  # the job's lock is ``lock:<lock>`` in Redis
    purpose: str = ""  # of a job, as the status page says it
    health_name: str | None = None  # of a job in /health
    summary_name: str | None = None  # of a job among the last runs in the JSON of /metrics
    database: bool = True  # whether it needs DATABASE_URL
    redis: bool = True  # whether it needs REDIS_URL


PROGRAMS = (
    ProgramSpec(
        name="campaign",
        lock="campaign-scheduler",
        purpose="sends due campaigns",
        health_name="campaign",
        summary_name="campaign",
    ),
    ProgramSpec(
        name="reminders",
        lock="lead-reminder-scheduler",
        purpose="reminds of quiet leads",
        health_name="leadReminder",
        summary_name="reminder",
    ),
    ProgramSpec(
        name="calls",
        lock="call-scheduler",
        purpose="places queued calls",
        health_name="callScheduler",
        summary_name="call",
    ),
    ProgramSpec(
        name="call-cleanup",
        lock="call-cleanup",
        purpose="deletes old rows of the call queue",
        health_name="callCleanup",
    ),
    ProgramSpec(
        name="trial",
        lock="trial-expiration",
        purpose="suspends expired trials",
        health_name="trialExpiration",
    ),
    ProgramSpec(
        name="knowledge",
        lock="knowledge",
        purpose="maintains the collection of the CRM's AI and its snapshots",
        database=False,
    ),
    ProgramSpec(name="watchdog"),
    ProgramSpec(name="web"),
    ProgramSpec(name="migrate", redis=False),
    ProgramSpec(name="entrypoint"),
    ProgramSpec(name="qdrant", database=False, redis=False),
    ProgramSpec(name="healthcheck", database=False, redis=False),
)

JOBS: Mapping[str, ProgramSpec] = MappingProxyType({each.name: each for each in PROGRAMS if each.lock})
LOCKS: Mapping[str, str] = MappingProxyType({name: each.lock for name, each in JOBS.items() if each.lock})
# names separated by spaces, as runtime/settings.py takes them
DATABASE_USERS = " ".join(each.name for each in PROGRAMS if each.database)
REDIS_USERS = " ".join(each.name for each in PROGRAMS if each.redis)
