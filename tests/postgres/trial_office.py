"""The trial job on a database of the test's own, with a clock and a mailbox, for the tests of its rules."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from typing import Any

import redis

from sandbox.crm import Crm
from sandbox.world import World
from worker.runtime.counters import Counters, read_all
from worker.runtime.db import Database
from worker.runtime.job import JobContext, TickResult
from worker.runtime.lock import Lock
from worker.runtime.redis_client import connect
from worker.runtime.settings import load
from worker.runtime.signals import Signals
from worker.trial import TrialJob

NOW = datetime(2026, 1, 31, 12, 0, 7)  # noqa: DTZ001 - UTC without a zone, like all times of the CRM
OWNER = "owner@crm.example.in"


class Clock:
    """A time with a part of a millisecond, which a column would round up; it moves only when the test moves it."""

    def __init__(self) -> None:
        self.now = NOW + timedelta(microseconds=600)

    def __call__(self) -> datetime:
        return self.now

    def pass_by(self, **duration: float) -> None:
        self.now += timedelta(**duration)


class TrialWorker:
    """One process's job, with a lock of its own: only the database keeps two of them apart."""

    def __init__(
        self,
        environ: dict[str, str],
        client: redis.Redis,
        clock: Clock,
        name: str,
        database: Database | None,
    ) -> None:
        self.signals = Signals()
        self.clock = clock
        self.counters = Counters(client, "trial")
        self.lock = Lock([client], name)
        settings = load(environ, "trial")
        self.context = JobContext(
            "trial", settings, connect(settings.redis_url), self.lock, self.counters, self.signals, clock, database
        )
        self.job = TrialJob(self.context)
        self.job.start()
        assert self.lock.acquire()

    def tick(self) -> TickResult:
        return self.job.tick(self.clock())

    def close(self) -> None:
        self.lock.close()
        self.job.close()
        self.context.close()
        self.signals.close()


class TrialOffice:
    """The CRM's tables, the mailbox, and any number of workers."""

    def __init__(
        self, crm: Crm, world: World, environ: dict[str, str], client: redis.Redis, stack: ExitStack
    ) -> None:
        self.crm = crm
        self.world = world
        self.clock = Clock()
        self.environ = environ
        self._client = client
        self._stack = stack
        self._workers: list[TrialWorker] = []

    def worker(self, database: Database | None = None, **environ: str | None) -> TrialWorker:
        merged = {name: value for name, value in (self.environ | environ).items() if value is not None}
        made = TrialWorker(merged, self._client, self.clock, f"trial-{len(self._workers)}", database)
        self._workers.append(made)
        self._stack.callback(made.close)
        return made

    def tenant(self, users: int = 1, **columns: Any) -> str:
        """An expired trial with so many active users."""
        row = {
            "plan": "FREE",
            "status": "TRIAL",
            "subscriptionEnd": self.clock().replace(microsecond=0) - timedelta(hours=1),
        }
        tenant = self.crm.add_tenant(**(row | columns))
        for _ in range(users):
            self.crm.add_user(tenant)
        return tenant

    def many(self, tenants: int, users: int = 2) -> None:
        self.crm.execute(
            """INSERT INTO "Tenant" (id, name, slug, plan, status, "subscriptionEnd", "contactEmail", "updatedAt")
               SELECT 't-' || n, 'Tenant ' || n, 'tenant-' || n, 'FREE', 'TRIAL', %(end)s, 'c' || n || '@t.example',
                      %(end)s
               FROM generate_series(1, %(tenants)s) AS n""",
            {"end": self.clock() - timedelta(hours=1), "tenants": tenants},
        )
        self.crm.execute(
            """INSERT INTO "User" (id, email, name, "tenantId", "updatedAt")
               SELECT 'u-' || n || '-' || m, 'u' || m || '@t.example', 'User', 't-' || n, now()
               FROM generate_series(1, %s) AS n, generate_series(1, %s) AS m""",
            (tenants, users),
        )

    def status(self, tenant: str) -> str:
        return str(self.crm.value('SELECT status::text FROM "Tenant" WHERE id = %s', tenant))

    def active(self, tenant: str) -> int:
        return int(self.crm.value('SELECT count(*) FROM "User" WHERE "tenantId" = %s AND "isActive"', tenant))

    def contact(self, tenant: str) -> str:
        return str(self.crm.value('SELECT "contactEmail" FROM "Tenant" WHERE id = %s', tenant))

    def waiting(self) -> int:
        return int(self.crm.value("SELECT count(*) FROM worker.notice"))

    def mails(self) -> dict[str, int]:
        return dict(self.world.counts("smtp"))

    def counted(self, worker: TrialWorker) -> dict[str, float]:
        """The counters, by their metric and the values of their labels."""
        worker.counters.flush()
        found = read_all(self._client).counters
        return {" ".join([each.metric, *each.labels.values()]): each.value for each in found}


@contextmanager
def opened(crm: Crm, world: World, database_url: str, redis_url: str) -> Iterator[TrialOffice]:
    """An office whose workers know the owner's address and the mail server."""
    environ = {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "SMTP_URL": world.smtp_url,
        "OWNER_EMAIL": OWNER,
        "SHUTDOWN_GRACE_SECONDS": "500ms",
    }
    with connect(redis_url) as client, ExitStack() as stack:
        yield TrialOffice(crm, world, environ, client, stack)
