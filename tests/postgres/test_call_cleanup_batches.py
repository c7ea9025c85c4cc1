"""bin/call-cleanup: what is deleted, to the millisecond, and in batches that do not wait for locks."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta
from typing import Any

import psycopg2
import psycopg2.extensions
import pytest
import redis

from sandbox.crm import Crm
from worker.call_cleanup import BATCH_SIZE, CallCleanupJob
from worker.runtime import loop as loops
from worker.runtime.counters import Counters, read_all
from worker.runtime.db import queries
from worker.runtime.job import JobContext, TickResult
from worker.runtime.lock import Lock
from worker.runtime.loop import Loop
from worker.runtime.redis_client import connect
from worker.runtime.settings import load
from worker.runtime.signals import Signals

NOW = datetime(2026, 1, 31, 12, 0, 7)  # noqa: DTZ001 - UTC without a zone, like all times of the CRM
DAYS_30 = timedelta(days=30)
MILLISECOND = timedelta(milliseconds=1)
DEADLINE_SECONDS = 60.0

Connection = psycopg2.extensions.connection


class Sleeper(Signals):
    """Signals whose ``wait`` takes no time but moves the clock, and which stop the loop at ``stop_at``."""

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.stop_at = NOW + timedelta(days=365)

    def clock(self) -> datetime:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        self.stopping = self.stopping or self.now >= self.stop_at


class Bench:
    """A call-cleanup job on the test's database; it has the lock."""

    def __init__(self, environ: dict[str, str], client: redis.Redis, lock_name: str) -> None:
        self.client = client
        self.signals = Sleeper()
        self.counters = Counters(client, "call-cleanup")
        self.lock = Lock([client], lock_name)
        settings = load(environ, "call-cleanup")
        self.context = JobContext(
            "call-cleanup", settings, client, self.lock, self.counters, self.signals, self.signals.clock
        )
        self.job = CallCleanupJob(self.context)
        self.job.start()
        assert self.lock.acquire()

    def tick(self, now: datetime = NOW) -> TickResult:
        return self.job.tick(now)

    def close(self) -> None:
        self.lock.close()
        assert self.job.close()
        self.context.close()
        self.signals.close()


@pytest.fixture
def new_bench(database_url: str, redis_url: str) -> Iterator[Callable[..., Bench]]:
    with ExitStack() as stack:
        client = stack.enter_context(connect(redis_url))

        def make(lock_name: str = "call-cleanup", **environ: str) -> Bench:
            made = Bench({"DATABASE_URL": database_url, "REDIS_URL": redis_url} | environ, client, lock_name)
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture
def bench(new_bench: Callable[..., Bench]) -> Bench:
    return new_bench()


@pytest.fixture
def other(database_url: str) -> Iterator[Connection]:
    """The CRM's connection, for a transaction that the test keeps open."""
    made = psycopg2.connect(database_url)
    yield made
    made.close()


def add_old(crm: Crm, count: int, days: float = 31.0) -> None:
    """Adds ended rows, each a millisecond older than the one before."""
    crm.execute(
        """INSERT INTO "CallQueue" (id, "tenantId", "phoneNumber", status, "triggerType", "createdById", "updatedAt")
           SELECT 'old-' || n, %s, '+919800000000', (ARRAY['completed', 'failed', 'cancelled'])[n %% 3 + 1], 'manual',
                  %s, %s::timestamp - n * interval '1 ms'
           FROM generate_series(1, %s) AS n""",
        (crm.tenant_id, crm.user_id, NOW - timedelta(days=days), count),
    )


def left(crm: Crm) -> int:
    return int(crm.value('SELECT count(*) FROM "CallQueue"'))


def ids(crm: Crm) -> set[str]:
    return {row for (row,) in crm.execute('SELECT id FROM "CallQueue"')}


def test_thirty_days_to_the_millisecond(crm: Crm, bench: Bench) -> None:
    """Ended rows are deleted when their last change is more than 30 days ago, not at exactly 30 days."""
    kept = {crm.add_call(status=each, updatedAt=NOW - DAYS_30) for each in ("completed", "failed", "cancelled")}
    for each in ("completed", "failed", "cancelled"):
        crm.add_call(status=each, updatedAt=NOW - DAYS_30 - MILLISECOND)
    assert bench.tick().counts == {"deleted": 3}
    assert ids(crm) == kept
    assert bench.tick(NOW + MILLISECOND).counts == {"deleted": 3}


def test_microseconds_of_the_clock(crm: Crm, bench: Bench) -> None:
    """The clock's microseconds count: a row of 30 days and a microsecond is old, however the column rounds."""
    crm.add_call(status="failed", updatedAt=NOW - DAYS_30)
    assert bench.tick(NOW - timedelta(microseconds=1)).counts == {"deleted": 0}
    assert bench.tick(NOW + timedelta(microseconds=1)).counts == {"deleted": 1}


def test_what_stays(crm: Crm, bench: Bench) -> None:
    """Rows that have not ended stay, however old they are; so do the log of calls and rows that a claim holds."""
    ancient = NOW - timedelta(days=3650)
    kept = {crm.add_call(status=each, updatedAt=ancient) for each in ("pending", "processing", "odd")}
    log = crm.insert(
        "CallLog",
        {"tenantId": crm.tenant_id, "phoneNumber": "+919800000000", "phoneCountryCode": "+91",
         "triggerType": "manual", "twilioCallSid": "CA1", "twilioStatus": "completed", "direction": "outbound",
         "createdById": crm.user_id, "updatedAt": ancient},
    )  # fmt: skip
    crm.add_call(status="completed", callLogId=log, updatedAt=ancient)
    held = crm.add_call(status="cancelled", updatedAt=ancient)
    crm.execute(
        """INSERT INTO worker.call_claim (queue_id, tenant_id, account_sid, from_number, to_number, item, holder,
               claimed_at)
           VALUES (%s, %s, 'AC', '+1', '+91', '{}', 'h:1:x', %s)""",
        (held, crm.tenant_id, ancient),
    )
    assert bench.tick().counts == {"deleted": 1}
    assert ids(crm) == kept | {held}
    assert crm.value('SELECT count(*) FROM "CallLog"') == 1


def test_batches_beside_the_crm(crm: Crm, bench: Bench, other: Connection, caplog: pytest.LogCaptureFixture) -> None:
    """5,000 rows are deleted although the CRM reads all of them; those that it has locked wait for the next run."""
    caplog.set_level(logging.INFO)
    add_old(crm, 5_000)
    with other.cursor() as cursor:
        cursor.execute('SELECT count(*) FROM "CallQueue"')
        cursor.execute("""SELECT id FROM "CallQueue" WHERE id IN ('old-1', 'old-2500', 'old-5000') FOR UPDATE""")
        result = bench.tick()
    assert result.counts == {"deleted": 4_997}
    assert result.next_at is None
    assert ids(crm) == {"old-1", "old-2500", "old-5000"}
    other.rollback()
    assert bench.tick().counts == {"deleted": 3}
    assert bench.tick().counts == {"deleted": 0}
    assert [record.args for record in caplog.records if "call queue" in record.getMessage()] == [
        {"rows": 4_997, "all": True},
        {"rows": 3, "all": True},
        {"rows": 0, "all": True},
    ]
    bench.counters.flush()
    (counted,) = [each for each in read_all(bench.client).counters if each.metric == "calls_cleaned_total"]
    assert counted.value == 5_000


def test_a_batch_is_a_transaction(crm: Crm, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each batch its rows are deleted for all sessions, and nothing is locked."""
    add_old(crm, 2 * BATCH_SIZE + 1)
    seen: list[int] = []
    monkeypatch.setattr(bench.counters, "heartbeat", lambda at: seen.append(left(crm)))
    bench.tick()
    assert seen == [BATCH_SIZE + 1, 1, 0]


def test_a_row_that_the_crm_makes_pending_again(crm: Crm, bench: Bench, other: Connection) -> None:
    """A row that a user sets to pending again at the same moment stays, whichever transaction commits first."""
    add_old(crm, 1)
    with other.cursor() as cursor:
        cursor.execute("""UPDATE "CallQueue" SET status = 'pending', "updatedAt" = %s""", (NOW,))
    assert bench.tick().counts == {"deleted": 0}
    other.commit()
    assert bench.tick().counts == {"deleted": 0}
    assert left(crm) == 1


@pytest.mark.parametrize("how", ["signal", "lock"])
def test_stopped_between_batches(crm: Crm, bench: Bench, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a signal, or when its lock is lost, the present batch is the last one; the rest is due at once."""
    add_old(crm, 3 * BATCH_SIZE)

    def stop(at: datetime) -> None:
        bench.signals.stopping = how == "signal"
        if how == "lock":
            bench.lock.release()

    monkeypatch.setattr(bench.counters, "heartbeat", stop)
    result = bench.tick()
    assert (result.counts, result.next_at, result.unfinished) == ({"deleted": BATCH_SIZE}, NOW, True)
    assert left(crm) == 2 * BATCH_SIZE


def test_an_outage_in_the_middle(
    crm: Crm, bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the connection breaks after a batch, the log says how many rows went, and the next tick goes on."""
    caplog.set_level(logging.INFO)
    add_old(crm, 2 * BATCH_SIZE)
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'crm-worker call-cleanup'"
    with monkeypatch.context() as patched:
        patched.setattr(bench.counters, "heartbeat", lambda at: crm.execute(end))
        with pytest.raises(psycopg2.OperationalError):
            bench.tick()
    assert caplog.records[-1].args == {"rows": BATCH_SIZE, "all": False}
    assert bench.tick().counts == {"deleted": BATCH_SIZE}


def test_two_workers_at_once(crm: Crm, new_bench: Callable[..., Bench]) -> None:
    """Without a lock to exclude each other, two jobs share the rows, do not wait, and miss none."""
    add_old(crm, 5_500)
    benches = [new_bench("one"), new_bench("two")]
    results: list[int] = []
    threads = [
        threading.Thread(target=lambda each=each: results.append(each.tick().counts["deleted"])) for each in benches
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_SECONDS)
    assert sum(results) == 5_500
    assert left(crm) == 0


def test_at_start_and_at_local_midnight(
    crm: Crm, new_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real loop deletes what was missed at its start, and goes on at each midnight of India, 18:30 in UTC."""
    monkeypatch.setattr(loops, "LEAST_REST_SECONDS", float("inf"))  # a rest would replace this process
    bench = new_bench()
    add_old(crm, 10)
    first_midnight = datetime(2026, 1, 31, 18, 30)  # noqa: DTZ001
    tonight = crm.add_call(status="completed", updatedAt=first_midnight - DAYS_30 - MILLISECOND)
    tomorrow = crm.add_call(status="completed", updatedAt=first_midnight - DAYS_30 + MILLISECOND)
    seen: list[tuple[datetime, set[str]]] = []
    tick = bench.job.tick

    def watched(now: datetime) -> TickResult:
        result = tick(now)
        seen.append((now, ids(crm)))
        return result

    bench.job.tick = watched  # type: ignore[method-assign]
    bench.signals.stop_at = first_midnight + timedelta(days=1, hours=1)
    loop = Loop(bench.job, bench.context)
    assert loop.run(once=False) == 0
    assert seen == [
        (NOW, {tonight, tomorrow}),
        (first_midnight, {tomorrow}),
        (first_midnight + timedelta(days=1), set()),
    ]


def test_the_zone_and_the_interval_are_settings(new_bench: Callable[..., Bench]) -> None:
    """CLEANUP_TIMEZONE and CALL_CLEANUP_INTERVAL reach the loop."""
    job = new_bench(CLEANUP_TIMEZONE="Europe/Paris", CALL_CLEANUP_INTERVAL="12h").job
    assert (str(job.zone), job.interval_seconds) == ("Europe/Paris", 43_200.0)


def test_by_index(crm: Crm) -> None:
    """A batch is found by the index of ended rows, and no other rows are read."""
    add_old(crm, 100_000)
    crm.execute("""UPDATE "CallQueue" SET "updatedAt" = %s WHERE right(id, 1) <> '7'""", (NOW,))
    crm.execute("VACUUM ANALYZE")
    statement = "EXPLAIN (ANALYZE, FORMAT JSON) " + queries("call_cleanup")["delete_old"]
    ((plan,),) = crm.execute(statement, {"before": NOW - DAYS_30, "size": BATCH_SIZE})
    read = [node for node in nodes(plan[0]["Plan"]) if "Scan" in node["Node Type"] and "Relation Name" in node]
    read = [node for node in read if node["Relation Name"] == "CallQueue"]
    assert {node.get("Index Name") for node in read} == {"CallQueue_pkey", "worker_call_queue_ended"}
    assert max(node["Actual Rows"] for node in read) == BATCH_SIZE


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)
