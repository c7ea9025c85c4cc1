"""A calls job on real servers, with clocks that tests move, for the tests of its rules."""

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import msgpack
import pytest
import redis

from sandbox.crm import Crm, utc_now
from sandbox.world import World
from worker.calling.accounts import CallingAccounts
from worker.calling.claims import CallClaims
from worker.calling.queued_call import ClaimedCall
from worker.calling.reporting import CallReporter
from worker.calling.requests import CallRequests
from worker.calling.selection import CallSelection
from worker.calling.settlement import CallSettlement
from worker.calls import CallsJob
from worker.runtime.counters import Counters, read_all
from worker.runtime.db import Database, Row, queries
from worker.runtime.job import JobContext, TickResult
from worker.runtime.lease import Lease
from worker.runtime.redis_client import connect
from worker.runtime.settings import load

APP_URL = "https://app.crm.example.in"
ASK_SECONDS = 31.0  # after so long Twilio may be asked about an unconfirmed call
NAMES = {statement: name for name, statement in queries("calls").items()}


def name_of(statement: str) -> str:
    """The name in worker/sql/calls.sql, also of a prepared statement; "" for one that is not from there."""
    return statement.split()[1] if statement.startswith("EXECUTE ") else NAMES.get(statement, "")


def account(number: int) -> dict[str, str]:
    """The columns of "CallSettings" for a Twilio account of its own."""
    return {"twilioAccountSid": f"AC{number:032x}", "twilioAuthToken": f"sandbox-token-{number}"}


class WatchedDatabase(Database):
    """The job's connection. A test may act before or after one of the job's statements, or replace its text.

    Keys are the names in worker/sql/calls.sql. ``after["commit"]`` runs after a transaction.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url, "crm-worker calls")
        self.before: dict[str, Callable[[], object]] = {}
        self.after: dict[str, Callable[[], object]] = {}
        self.texts: dict[str, str] = {}

    def execute(self, statement: str, /, **parameters: Any) -> list[Row]:
        name = name_of(statement)
        if name in self.before:
            self.before[name]()
        rows = super().execute(self.texts.get(name, statement), **parameters)
        if name in self.after:
            self.after[name]()
        return rows

    @contextmanager
    def transaction(self) -> Iterator[None]:
        with super().transaction():
            yield
        if "commit" in self.after:
            self.after["commit"]()


class Desk:
    """One worker's calls job, its clocks, and what the database says of the queue."""

    def __init__(
        self,
        crm: Crm,
        database_url: str,
        redis_url: str,
        world: World,
        database: Database | None = None,
        **environ: str,
    ) -> None:
        self.crm = crm
        self.world = world
        self.now = utc_now()
        self._skipped_seconds = 0.0
        self.database_url = database_url
        self.database: Any = database or WatchedDatabase(database_url)
        environment = {
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "APP_URL": APP_URL,
            "TWILIO_RATE": "1000",
            "SHUTDOWN_GRACE_SECONDS": "300ms",
        }
        settings = load(environment | world.environment | environ, "calls")
        self.redis_url = redis_url
        self.redis = connect(redis_url)
        self.counters = Counters(self.redis, "calls")
        # two desks in one test are two workers that both believe that they hold the lock
        self.lock: Any = SimpleNamespace(held=True)
        self.signals: Any = SimpleNamespace(stopping=False)
        context = JobContext(
            "calls", settings, connect(redis_url), self.lock, self.counters, self.signals, lambda: self.now,
            self.database,
        )  # fmt: skip
        self.context = context
        self.job = CallsJob(context, self.monotonic)
        self.job.start()

    def monotonic(self) -> float:
        """The clock that the job's pauses go by."""
        return time.monotonic() + self._skipped_seconds

    def advance(self, seconds: float) -> None:
        """Time goes by, also for the backoffs in Redis."""
        self.now += timedelta(seconds=seconds)
        self._skipped_seconds += seconds
        for key in self.redis.scan_iter("pace:twilio:*") if seconds else ():
            sooner = int(self.redis.get(key) or 0) - round(seconds * 1e6)  # type: ignore[arg-type]
            self.redis.set(key, max(0, sooner), keepttl=True)

    def tick(self, *, seconds: float = 0.0) -> TickResult:
        self.advance(seconds)
        return self.job.tick(self.now)

    def work(self, ticks: int = 100, *, seconds: float = 0.0) -> dict[str, int]:
        """Ticks until nothing is left that only waits for its pace; returns what was counted."""
        self.advance(seconds)
        total: dict[str, int] = {}
        for _ in range(ticks):
            result = self.tick()
            for key, count in result.counts.items():
                total[key] = total.get(key, 0) + count
            if not result.unfinished:
                return {key: count for key, count in total.items() if count}
            self.sleep_until(result.next_at)
        pytest.fail(f"still unfinished after {ticks} ticks: {total}")

    def sleep_until(self, wake_at: datetime | None) -> None:
        """Really sleeps, as the loop does: the pace in Redis goes by Redis's clock."""
        assert wake_at is not None
        time.sleep(max(0.0, (wake_at - self.now).total_seconds()))
        self.now = max(self.now, wake_at)

    def row(self, queue_id: str) -> dict[str, Any]:
        rows = self.crm.execute('SELECT to_jsonb(q) FROM "CallQueue" q WHERE id = %s', (queue_id,))
        found: dict[str, Any] = rows[0][0]
        return found

    def status(self, queue_id: str) -> str:
        return str(self.row(queue_id)["status"])

    def statuses(self) -> dict[str, int]:
        return dict(self.crm.execute('SELECT status, count(*) FROM "CallQueue" GROUP BY 1'))

    def logs(self) -> list[dict[str, Any]]:
        return [row for (row,) in self.crm.execute('SELECT to_jsonb(l) FROM "CallLog" l ORDER BY "createdAt", id')]

    def log_of(self, queue_id: str) -> dict[str, Any]:
        """The CallLog row that a row of the queue is linked to."""
        (log,) = [log for log in self.logs() if log["id"] == self.row(queue_id)["callLogId"]]
        return log

    def claims(self) -> int:
        return int(self.crm.value("SELECT count(*) FROM worker.call_claim"))

    def placed(self) -> list[str]:
        """The numbers that Twilio was asked to call, in their order."""
        return [f"+{call.address}" for call in self.world.deliveries("twilio")]

    def hang_up(self) -> None:
        """All calls on their way end."""
        self.crm.execute("""UPDATE "CallLog" SET "twilioStatus" = 'completed'""")

    def counter(self, metric: str, **labels: str) -> float:
        self.counters.flush()
        found = read_all(self.redis)
        return sum(each.value for each in found.counters if (each.metric, each.labels) == (metric, labels))

    def gauge(self, metric: str) -> float:
        self.counters.flush()
        return sum(each.value for each in read_all(self.redis).gauges if each.metric == metric)


OpenDesk = Callable[..., Desk]


def claim_due(desk: Desk) -> tuple[CallSettlement, list[ClaimedCall]]:
    """All calls that are due, claimed by a process and not placed; and the settlements of that process."""
    lease = Lease()
    settlement = CallSettlement(desk.context, CallReporter(desk.context), lease.holder)
    requests = CallRequests(1, desk.signals, 0.0, settlement)
    with closing(CallingAccounts(desk.context.settings, desk.redis, concurrency=1)) as accounts:
        selection = CallSelection(desk.context, accounts, settlement, requests)
        choice = selection.choose(selection.open_accounts(desk.now), desk.now)
        ready = CallClaims(desk.context, lease, settlement).claim(choice.candidates, desk.now)
    return settlement, [each.claim for each in ready]


def empty(crm: Crm) -> None:
    """Empties the tables that these tests fill."""
    crm.execute(
        """DELETE FROM worker.call_claim; DELETE FROM worker.suppression; DELETE FROM "CallQueue";
           DELETE FROM "CallLog"; DELETE FROM "CallScript"; DELETE FROM "CallSettings"; DELETE FROM "Lead";
           DELETE FROM "Contact"; DELETE FROM "PipelineStage"; DELETE FROM "User"; DELETE FROM "Tenant";"""
    )


@contextmanager
def desks(crm: Crm, database_url: str, redis_url: str, world: World) -> Iterator[OpenDesk]:
    """Opens any number of workers on one database; Twilio has no limit until the test sets one."""
    world.set_rates(twilio_rate=0)
    opened: list[Desk] = []

    with tempfile.TemporaryDirectory() as folder:

        def make(database: Database | None = None, **environ: str) -> Desk:
            environ = {"STATE_DIR": folder} | environ
            opened.append(Desk(crm, database_url, redis_url, world, database, **environ))
            return opened[-1]

        yield make
        world.clear_script()
        for desk in opened:
            desk.job.close()
            desk.context.close()
            desk.redis.close()


class Listener:
    """Receives the live events as the CRM's Socket.IO servers do."""

    def __init__(self, desk: Desk) -> None:
        self._client = redis.Redis.from_url(desk.redis_url)
        self._subscription = self._client.pubsub(ignore_subscribe_messages=True)
        self._subscription.psubscribe("socket.io#/#*")
        self._subscription.get_message(timeout=5)  # the confirmation

    def close(self) -> None:
        self._subscription.close()
        self._client.close()

    def heard(self) -> list[tuple[str, str, dict[str, Any]]]:
        """The room, the name and the payload of each event that was received."""
        events = []
        while message := self._subscription.get_message(timeout=0.2):
            _, packet, whom = msgpack.unpackb(message["data"])
            (room,) = whom["rooms"]
            assert message["channel"] == f"socket.io#/#{room}#".encode()
            events.append((room, *packet["data"]))
        return events


def form_of(world: World, number: str) -> dict[str, str]:
    """The fields of the one call to a number, as Twilio received them."""
    (call,) = world.deliveries("twilio", number)
    return dict(json.loads(call.content))


def another_tenant(crm: Crm, **settings: Any) -> str:
    """A tenant with call settings; its account is the demo tenant's unless ``settings`` names another."""
    tenant_id = crm.add_tenant("Dosa Point")
    crm.add_call_settings(tenant_id, **settings)
    return tenant_id


def number(place: int) -> str:
    """A different phone number for each ``place``."""
    return f"+9198{place:08d}"
