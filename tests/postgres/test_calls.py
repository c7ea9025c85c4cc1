"""The calls job against real servers, with a clock passed in."""

import json
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import psycopg2
import psycopg2.extensions
import pytest
import redis

from sandbox import accounts
from sandbox.crm import Crm, utc_now
from sandbox.world import World
from worker.calls import CallsJob
from worker.counters import Counters, read_all
from worker.loop import Result
from worker.redis_client import connect
from worker.settings import load

NOON = datetime(2026, 11, 23, 6, 30)  # a Monday, 12:00 in India  # noqa: DTZ001
APP_URL = "https://app.crm.example.in"


class Desk:
    """One worker's calls job, its clock, and what the database says of its queue."""

    def __init__(self, crm: Crm, database_url: str, redis_url: str, world: World, **environ: str) -> None:
        self.crm = crm
        self.world = world
        self.now = utc_now()
        environment = {
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "APP_URL": APP_URL,
            "TWILIO_RATE": "1000",
        }
        settings = load(environment | world.environment | environ, "calls")
        self.redis = connect(redis_url)
        self.counters = Counters(self.redis, "calls")
        self.signals = SimpleNamespace(stopping=False)
        # two desks in one test are two workers that both believe they hold the lock
        self.job = CallsJob(
            settings,
            self.counters,
            SimpleNamespace(held=True),
            self.signals,
            lambda: self.now,  # type: ignore[arg-type]
        )
        self.job.start()

    def tick(self, *, seconds: float = 0.0) -> Result:
        self.now += timedelta(seconds=seconds)
        return self.job.tick(self.now)

    def work(self, ticks: int = 50) -> dict[str, int]:
        """Ticks until nothing is left that only its pace holds back; returns what was counted."""
        total: dict[str, int] = {}
        for _ in range(ticks):
            result = self.tick()
            for key, count in result.counts.items():
                total[key] = total.get(key, 0) + count
            if not result.unfinished:
                return {key: count for key, count in total.items() if count}
            self.now = max(self.now, result.next_at or self.now)
        pytest.fail(f"still unfinished after {ticks} ticks: {total}")

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

    def claims(self) -> int:
        return int(self.crm.value("SELECT count(*) FROM worker.call_claim"))

    def numbers(self) -> list[str]:
        """Whom Twilio was told to call, in their order."""
        return [call.address for call in self.world.deliveries("twilio")]

    def counter(self, metric: str, **labels: str) -> float:
        self.counters.flush()
        return sum(
            each.value for each in read_all(self.redis).counters if (each.metric, each.labels) == (metric, labels)
        )


OpenDesk = Callable[..., Desk]


@pytest.fixture
def open_desk(crm: Crm, database_url: str, redis_url: str, world: World) -> Iterator[OpenDesk]:
    world.set_rates(twilio_rate=0)
    desks: list[Desk] = []

    def make(**environ: str) -> Desk:
        desks.append(Desk(crm, database_url, redis_url, world, **environ))
        return desks[-1]

    yield make
    for desk in desks:
        desk.job.close()


@pytest.fixture
def desk(open_desk: OpenDesk) -> Desk:
    return open_desk()


def test_a_call_is_placed_and_booked(desk: Desk) -> None:
    """A due call of a lead: to Twilio as the contract says, and everything about it in the CRM's tables."""
    crm = desk.crm
    crm.add_call_settings(callTimeout=45)
    lead = crm.add_lead()
    script = crm.insert("CallScript", {"name": "Hello", "tenantId": crm.tenant_id, "userId": crm.user_id})
    queued = crm.add_call(
        leadId=lead, callScriptId=script, phoneNumber="098765 43210", metadata={"k": 1}, automationRuleId="rule-1"
    )
    assert desk.work() == {"placed": 1}
    (call,) = desk.world.deliveries("twilio")
    form = [(name, value) for name, value in json.loads(call.content)]
    webhook = f"{APP_URL}/api/calls/webhook"
    assert ("To", "+919876543210") in form
    assert ("From", accounts.TWILIO_NUMBER) in form
    assert ("Url", f"{webhook}/twiml?leadId={lead}&callType=ai") in form
    assert [value for name, value in form if name == "StatusCallbackEvent"] == [
        "initiated", "ringing", "answered", "completed",
    ]  # fmt: skip
    assert {("Timeout", "45"), ("Record", "true"), ("MachineDetection", "Enable"), ("AsyncAmd", "true")} <= set(form)
    (log,) = desk.logs()
    row = desk.row(queued)
    wanted = {
        "tenantId": crm.tenant_id, "leadId": lead, "contactId": None, "phoneNumber": "+919876543210",
        "phoneCountryCode": "+91", "direction": "outbound", "callType": "ai", "twilioCallSid": call.external_id,
        "twilioStatus": "queued", "callScriptId": script, "triggerType": "manual", "automationRuleId": "rule-1",
        "callOutcome": "initiated", "metadata": {"k": 1}, "createdById": crm.user_id,
    }  # fmt: skip
    assert {name: log[name] for name in wanted} == wanted
    assert (row["status"], row["callLogId"], row["attempts"], row["errorMessage"]) == (
        "completed",
        log["id"],
        0,
        None,
    )
    assert crm.execute('SELECT "callCount", "lastCalledAt" IS NOT NULL FROM "Lead"') == [(1, True)]
    assert crm.execute('SELECT "usageCount", "lastUsedAt" IS NOT NULL FROM "CallScript"') == [(1, True)]
    assert desk.claims() == 0
    assert desk.counter("calls_total", outcome="placed") == 1
    assert desk.tick().counts["placed"] == 0
