"""Tenants with lead reminders, workers that tick when the test says so, and a clock that the test moves."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta
from email.message import EmailMessage
from typing import Any

import redis

from sandbox import accounts
from sandbox.crm import Crm
from sandbox.world import World
from worker.reminders import RemindersJob
from worker.runtime.counters import Counters, read_all
from worker.runtime.db import Database
from worker.runtime.job import JobContext, TickResult
from worker.runtime.lock import Lock
from worker.runtime.redis_client import connect
from worker.runtime.settings import load
from worker.runtime.signals import Signals

NOON = datetime(2026, 3, 10, 12)  # noqa: DTZ001 - UTC without a zone, like all times of the CRM
MAIL = accounts.mail_settings()
BOSS, OTHER, PHONE = "boss@x.example", "other@x.example", "919812345678"


class Clock:
    """The test's own time: it moves only when the test moves it."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime:
        return self.now

    def forward(self, **delta: float) -> None:
        self.now += timedelta(**delta)


class Worker:
    """One reminders job in this process."""

    def __init__(
        self,
        environ: dict[str, str],
        client: redis.Redis,
        clock: Clock,
        name: str,
        database: Database | None,
    ) -> None:
        settings = load(environ, "reminders")
        self.clock = clock
        self.signals = Signals()
        self.counters = Counters(client, "reminders")
        self.lock = Lock([client], f"reminders-of-{name}")  # a lock of its own: only the database keeps workers apart
        self.context = JobContext(
            "reminders",
            settings,
            connect(settings.redis_url),
            self.lock,
            self.counters,
            self.signals,
            clock,
            database,
        )
        self.job = RemindersJob(self.context)
        self.job.start()

    def tick(self) -> TickResult:
        self.lock.acquire()
        return self.job.tick(self.clock())

    def ended(self) -> tuple[int, int, int]:
        """Runs a tick; returns how many digests were sent, failed and are unconfirmed."""
        found = self.tick().counts
        return found["digests"], found["failed"], found["unconfirmed"]

    def close(self) -> None:
        self.job.close()
        self.lock.close()
        self.counters.flush()
        self.context.close()
        self.signals.close()


class ReminderOffice:
    """What a test knows about reminders."""

    def __init__(
        self, crm: Crm, world: World, environ: dict[str, str], client: redis.Redis, stack: ExitStack
    ) -> None:
        self.crm = crm
        self.world = world
        self.environ = environ
        self.client = client
        self.clock = Clock()
        self._stack = stack
        self._workers = 0

    def worker(self, database: Database | None = None, **environ: str) -> Worker:
        self._workers += 1
        made = Worker(self.environ | environ, self.client, self.clock, str(self._workers), database)
        self._stack.callback(made.close)
        return made

    def tenant(self, reminders: Any = None, *, leads: int = 0, **settings: Any) -> str:
        """A tenant that sends through SMTP and WhatsApp, with an administrator and stages new, won and lost.

        ``reminders``: leadReminders beside enabled; anything but a dict is saved as it is.
        """
        number = self.one('SELECT count(*) FROM "Tenant"')
        saved = {"enabled": True} | reminders if isinstance(reminders, dict) else reminders
        whatsapp = accounts.whatsapp_settings(phone_id=f"{105550000000000 + number}")
        every = {"mail": MAIL, "whatsapp": whatsapp, "leadReminders": saved} | settings
        tenant = self.crm.add_tenant(f"Tenant {number}", settings=every)
        self.crm.add_user(tenant, role="ADMIN", name="Asha Admin", email=f"admin-{number}@tenant.example")
        for slug in ("new", "won", "lost"):
            self.crm.add_stage(tenant, slug)
        for _ in range(leads):
            self.lead(tenant)
        return tenant

    def lead(self, tenant: str, *, quiet_hours: float = 48.0, stage: str = "new", **columns: Any) -> str:
        """A lead that was created so many hours ago, and never contacted."""
        at = self.clock() - timedelta(hours=quiet_hours)
        return self.crm.add_lead(tenant, stageId=self.stage(tenant, stage), **{"createdAt": at} | columns)

    def stage(self, tenant: str, slug: str) -> str:
        return str(self.one('SELECT id FROM "PipelineStage" WHERE "tenantId" = %s AND slug = %s', tenant, slug))

    def admin(self, tenant: str) -> str:
        return str(self.one("""SELECT id FROM "User" WHERE "tenantId" = %s AND role = 'ADMIN'""", tenant))

    def save(self, tenant: str, **reminders: Any) -> None:
        """Changes keys of leadReminders."""
        statement = """UPDATE "Tenant" SET settings = jsonb_set(settings, '{leadReminders}',
                       settings -> 'leadReminders' || %s::jsonb) WHERE id = %s"""
        self.crm.execute(statement, (json.dumps(reminders), tenant))

    def one(self, statement: str, *parameters: Any) -> Any:
        return self.crm.value(statement, *parameters)

    def arrived(self, channel: str = "smtp") -> dict[str, int]:
        """How many messages each address got."""
        return dict(self.world.counts(channel))

    def texts(self) -> list[str]:
        """The bodies of all WhatsApp messages."""
        return [json.loads(each.content)["text"]["body"] for each in self.world.deliveries("whatsapp")]

    def notifications(self) -> int:
        return int(self.one("SELECT count(*) FROM worker.notice"))

    def remembered(self) -> int:
        return int(self.one("SELECT count(*) FROM worker.lead_reminder"))

    def counted(self, metric: str = "reminders_total") -> dict[tuple[str, ...], float]:
        """The counters of a metric by their labels' values; closes all workers, so that they write them."""
        self._stack.close()
        found = [each for each in read_all(self.client).counters if each.metric == metric]
        return {tuple(each.labels.values()): each.value for each in found}


def parts(message: EmailMessage) -> tuple[str, str]:
    """The text and the HTML of an e-mail."""
    text, html = message.get_body(("plain",)), message.get_body(("html",))
    assert text
    assert html
    return text.get_content().replace("\r\n", "\n"), html.get_content().replace("\r\n", "\n")


def offices(crm: Crm, world: World, database_url: str, redis_url: str) -> Iterator[ReminderOffice]:
    """For a fixture."""
    world.set_rates(whatsapp_rate=0)
    environ = {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "ENCRYPTION_KEY": accounts.ENCRYPTION_KEY,
               "WHATSAPP_RATE": "1000", "GMAIL_RATE": "1000", "SHUTDOWN_GRACE_SECONDS": "1",
               **world.environment}  # fmt: skip
    with redis.Redis.from_url(redis_url, decode_responses=True) as client, ExitStack() as stack:
        yield ReminderOffice(crm, world, environ, client, stack)
