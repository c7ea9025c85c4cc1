"""A worker's calls job against real servers, with a clock passed in, for the tests of its rules."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import msgpack
import pytest
import redis

from sandbox.crm import Crm, utc_now
from sandbox.world import World
from worker.calls import CallsJob
from worker.runtime.counters import Counters, read_all
from worker.runtime.job import JobContext, TickResult
from worker.runtime.redis_client import connect
from worker.runtime.settings import load

APP_URL = "https://app.crm.example.in"
ASK_SECONDS = 31.0  # after so long a call in doubt may be asked about


def account(number: int) -> dict[str, str]:
    """The columns of "CallSettings" for a Twilio account of its own."""
    return {"twilioAccountSid": f"AC{number:032x}", "twilioAuthToken": f"sandbox-token-{number}"}


class Desk:
    """One worker's calls job, its clock, and what the database says of the queue."""

    def __init__(self, crm: Crm, database_url: str, redis_url: str, world: World, **environ: str) -> None:
        self.crm = crm
        self.world = world
        self.now = utc_now()
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
        # two desks in one test are two workers that both believe they hold the lock
        self.lock: Any = SimpleNamespace(held=True)
        self.signals: Any = SimpleNamespace(stopping=False)
        context = JobContext(
            "calls", settings, connect(redis_url), self.lock, self.counters, self.signals, lambda: self.now
        )
        self.context = context
        self.job = CallsJob(context)
        self.job.start()

    def tick(self, *, seconds: float = 0.0) -> TickResult:
        self.now += timedelta(seconds=seconds)
        return self.job.tick(self.now)

    def work(self, ticks: int = 100, *, seconds: float = 0.0) -> dict[str, int]:
        """Ticks until nothing is left that only its pace holds back; returns what was counted."""
        self.now += timedelta(seconds=seconds)
        total: dict[str, int] = {}
        for _ in range(ticks):
            result = self.tick()
            for key, count in result.counts.items():
                total[key] = total.get(key, 0) + count
            if not result.unfinished:
                return {key: count for key, count in total.items() if count}
            self._sleep_until(result.next_at)
        pytest.fail(f"still unfinished after {ticks} ticks: {total}")

    def _sleep_until(self, wake_at: datetime | None) -> None:
        """As the loop does: the pace in Redis goes by the real clock."""
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
        """The CallLog row that a row of the queue leads to."""
        (log,) = [log for log in self.logs() if log["id"] == self.row(queue_id)["callLogId"]]
        return log

    def claims(self) -> int:
        return int(self.crm.value("SELECT count(*) FROM worker.call_claim"))

    def placed(self) -> list[str]:
        """The numbers that Twilio was told to call, in their order."""
        return [f"+{call.address}" for call in self.world.deliveries("twilio")]

    def hang_up(self) -> None:
        """All calls on their way are over."""
        self.crm.execute("""UPDATE "CallLog" SET "twilioStatus" = 'completed'""")

    def counter(self, metric: str, **labels: str) -> float:
        self.counters.flush()
        found = read_all(self.redis)
        return sum(each.value for each in found.counters if (each.metric, each.labels) == (metric, labels))

    def gauge(self, metric: str) -> float:
        self.counters.flush()
        return sum(each.value for each in read_all(self.redis).gauges if each.metric == metric)


OpenDesk = Callable[..., Desk]


def empty(crm: Crm) -> None:
    """Takes everything out of the tables that these tests fill."""
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

    def make(**environ: str) -> Desk:
        opened.append(Desk(crm, database_url, redis_url, world, **environ))
        return opened[-1]

    yield make
    world.clear_script()
    for desk in opened:
        desk.job.close()
        desk.context.close()
        desk.redis.close()


class Listener:
    """What the CRM's Socket.IO servers hear."""

    def __init__(self, desk: Desk) -> None:
        self._client = redis.Redis.from_url(desk.redis_url)
        self._subscription = self._client.pubsub(ignore_subscribe_messages=True)
        self._subscription.psubscribe("socket.io#/#*")
        self._subscription.get_message(timeout=5)  # the confirmation

    def close(self) -> None:
        self._subscription.close()
        self._client.close()

    def heard(self) -> list[tuple[str, str, dict[str, Any]]]:
        """The room, the name and the payload of each event that has come."""
        events = []
        while message := self._subscription.get_message(timeout=0.2):
            _, packet, whom = msgpack.unpackb(message["data"])
            (room,) = whom["rooms"]
            assert message["channel"] == f"socket.io#/#{room}#".encode()
            events.append((room, *packet["data"]))
        return events


def form_of(world: World, number: str) -> dict[str, str]:
    """The fields that Twilio got for the one call to a number."""
    (call,) = world.deliveries("twilio", number)
    return dict(json.loads(call.content))


def another_tenant(crm: Crm, **settings: Any) -> str:
    """A tenant with call settings; the same account as the demo tenant's unless told otherwise."""
    tenant_id = crm.add_tenant("Dosa Point")
    crm.add_call_settings(tenant_id, **settings)
    return tenant_id


def number(place: int) -> str:
    """A number of its own for each place."""
    return f"+9198{place:08d}"
