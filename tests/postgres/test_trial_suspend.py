"""bin/trial: which tenants are suspended, with their users, in one go and whatever else happens to them."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from typing import Any

import psycopg2
import psycopg2.extensions
import pytest
from trial_office import NOW, OWNER, TrialOffice, opened

from sandbox.crm import Crm
from sandbox.world import World
from worker.runtime.db import Database, queries

DEADLINE_SECONDS = 60.0
SQL = queries("trial")
Connection = psycopg2.extensions.connection


@pytest.fixture
def office(crm: Crm, world: World, database_url: str, redis_url: str) -> Iterator[TrialOffice]:
    with opened(crm, world, database_url, redis_url) as made:
        yield made


@pytest.fixture
def other(database_url: str) -> Iterator[Connection]:
    """The CRM's connection, for a transaction that the test keeps open."""
    made = psycopg2.connect(database_url)
    yield made
    made.close()


def run(connection: Connection, statement: str, *parameters: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)


@pytest.mark.parametrize("status", ["ACTIVE", "TRIAL"])
def test_an_expired_trial(office: TrialOffice, status: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is suspended with its users, both say when they were changed, and the log and the counter how many."""
    caplog.set_level(logging.INFO)
    tenant = office.tenant(users=3, status=status)
    off = office.crm.add_user(tenant, isActive=False)
    before = office.crm.value('SELECT "updatedAt" FROM "User" WHERE id = %s', off)
    worker = office.worker()
    assert worker.tick().counts == {"suspended": 1, "users": 3, "told": 2, "failed": 0}
    assert (office.status(tenant), office.active(tenant)) == ("SUSPENDED", 0)
    now = NOW.replace(microsecond=0)
    assert office.crm.value('SELECT "updatedAt" FROM "Tenant" WHERE id = %s', tenant) == now
    changed = 'SELECT count(*) FROM "User" WHERE "tenantId" = %s AND "updatedAt" = %s'
    assert office.crm.value(changed, tenant, now) == 3
    assert office.crm.value('SELECT "updatedAt" FROM "User" WHERE id = %s', off) == before
    assert ("expired trials suspended", {"tenants": 1, "users": 3}) in [
        (record.getMessage(), record.args) for record in caplog.records
    ]
    assert office.counted(worker)["trials_suspended_total"] == 1
    assert worker.tick().counts == {"suspended": 0, "users": 0, "told": 0, "failed": 0}


@pytest.mark.parametrize(
    "columns",
    [
        {"plan": "STANDARD"},
        {"plan": "PROFESSIONAL"},
        {"plan": "ENTERPRISE"},
        {"status": "CANCELLED"},
        {"status": "SUSPENDED"},
        {"subscriptionEnd": None},
        {"subscriptionEnd": NOW + timedelta(milliseconds=1)},
        {"subscriptionEnd": NOW},
    ],
    ids=str,
)
def test_what_stays(office: TrialOffice, columns: dict[str, Any]) -> None:
    """Paid plans, cancelled tenants, trials that go on or have no end: nothing is changed, nobody is notified."""
    tenant = office.tenant(**columns)
    assert office.worker().tick().counts == {"suspended": 0, "users": 0, "told": 0, "failed": 0}
    assert (office.status(tenant), office.active(tenant)) == (columns.get("status", "TRIAL"), 1)
    assert office.mails() == {}


def test_to_the_millisecond(office: TrialOffice) -> None:
    """A trial that ended a millisecond ago is over."""
    tenant = office.tenant(subscriptionEnd=NOW - timedelta(milliseconds=1))
    office.worker().tick()
    assert office.status(tenant) == "SUSPENDED"


def test_others_users_stay(office: TrialOffice) -> None:
    """Users of other tenants stay active."""
    office.tenant()
    paid = office.tenant(users=2, plan="STANDARD")
    office.worker().tick()
    assert office.active(paid) == 2


def test_reactivated(office: TrialOffice) -> None:
    """A tenant that the CRM gives more time keeps it; when that ends it is suspended, and notified, again."""
    tenant = office.tenant()
    worker = office.worker()
    worker.tick()
    extended = office.clock() + timedelta(days=7)
    statement = """UPDATE "Tenant" SET status = 'ACTIVE', "subscriptionEnd" = %s WHERE id = %s"""
    office.crm.execute(statement, (extended, tenant))
    office.crm.execute('UPDATE "User" SET "isActive" = true WHERE "tenantId" = %s', (tenant,))
    office.clock.pass_by(days=6)
    assert worker.tick().counts["suspended"] == 0
    office.clock.pass_by(days=2)
    assert worker.tick().counts == {"suspended": 1, "users": 1, "told": 2, "failed": 0}
    assert office.mails() == {office.contact(tenant): 2, OWNER: 2}


@pytest.mark.parametrize("outcome", ["commit", "rollback"])
def test_extended_in_the_same_moment(office: TrialOffice, other: Connection, outcome: str) -> None:
    """While the CRM is writing to a tenant it is left alone, others are not; then what the CRM wrote counts."""
    extended, expired = office.tenant(), office.tenant()
    end = NOW + timedelta(days=30)
    run(other, 'UPDATE "Tenant" SET "subscriptionEnd" = %s WHERE id = %s', end, extended)
    worker = office.worker()
    result = worker.tick()
    assert (result.counts["suspended"], result.next_at) == (1, NOW + timedelta(seconds=60))
    assert (office.status(extended), office.status(expired)) == ("TRIAL", "SUSPENDED")
    getattr(other, outcome)()
    office.clock.pass_by(seconds=60)
    result = worker.tick()
    assert result.counts["suspended"] == (outcome == "rollback")
    assert result.next_at is None
    assert office.status(extended) == ("TRIAL" if outcome == "commit" else "SUSPENDED")


def test_extended_meanwhile(office: TrialOffice, database_url: str) -> None:
    """A thousand trials are extended one by one while they are suspended: who was extended in time stays."""
    office.many(1_000)
    worker = office.worker(OWNER_EMAIL=None)
    extended: list[str] = []
    began = threading.Event()

    def extend() -> None:
        statement = """UPDATE "Tenant" SET "subscriptionEnd" = %s WHERE id = %s AND status <> 'SUSPENDED'"""
        with closing(psycopg2.connect(database_url)) as connection, connection.cursor() as cursor:
            for number in range(1_000, 0, -1):
                cursor.execute(statement, (NOW + timedelta(days=1), f"t-{number}"))
                connection.commit()
                extended.extend([f"t-{number}"] * cursor.rowcount)
                began.set()

    thread = threading.Thread(target=extend)
    thread.start()
    assert began.wait(DEADLINE_SECONDS)
    suspended, deadline = 0, time.monotonic() + DEADLINE_SECONDS
    while thread.is_alive() or suspended + len(extended) < 1_000:
        assert time.monotonic() < deadline
        suspended += worker.tick().counts["suspended"]
    thread.join(DEADLINE_SECONDS)
    assert suspended + len(extended) == 1_000
    kept = office.crm.execute("""SELECT id FROM "Tenant" WHERE status = 'TRIAL'""")
    assert {tenant for (tenant,) in kept} == set(extended)
    both = """SELECT count(*) FROM "Tenant" t JOIN "User" u ON u."tenantId" = t.id
              WHERE (t.status = 'SUSPENDED') = u."isActive" """
    assert office.crm.value(both) == 0


def test_a_user_that_somebody_has_locked(office: TrialOffice, other: Connection) -> None:
    """Such a tenant waits a minute as a whole; all others are suspended at once."""
    locked, free = office.tenant(users=2), office.tenant(users=2)
    run(other, 'SELECT FROM "User" WHERE "tenantId" = %s LIMIT 1 FOR UPDATE', locked)
    worker = office.worker()
    waits = "SELECT set_config('lock_timeout', '1ms', false)"  # a wait for any lock would be an error
    worker.context.database.execute(waits)
    result = worker.tick()
    assert (result.counts["suspended"], result.next_at) == (1, NOW + timedelta(seconds=60))
    assert [(office.status(each), office.active(each)) for each in (locked, free)] == [("TRIAL", 2), ("SUSPENDED", 0)]
    other.rollback()
    assert worker.tick().counts["suspended"] == 1
    assert (office.status(locked), office.active(locked)) == ("SUSPENDED", 0)


def test_a_user_who_is_being_added(office: TrialOffice, other: Connection) -> None:
    """A user whom the CRM adds in the same moment does not stay active in a suspended tenant."""
    tenant = office.tenant()
    statement = (
        """INSERT INTO "User" (id, email, name, "tenantId", "updatedAt") VALUES ('new', 'n', 'n', %s, now())"""
    )
    run(other, statement, tenant)
    worker = office.worker()
    assert worker.tick().counts["suspended"] == 0
    other.commit()
    assert worker.tick().counts["users"] == 2
    assert office.active(tenant) == 0


def test_a_busy_user(office: TrialOffice, other: Connection) -> None:
    """A user for whom the CRM is just filing a mail (which locks the user's key only) holds up nothing."""
    tenant = office.tenant()
    run(other, 'SELECT FROM "User" WHERE "tenantId" = %s FOR KEY SHARE', tenant)
    assert office.worker().tick().counts == {"suspended": 1, "users": 1, "told": 2, "failed": 0}


class Counting(Database):
    """Counts its statements."""

    statements = 0

    def execute(self, statement: str, /, **parameters: Any) -> list[dict[str, Any]]:
        self.statements += 1
        return super().execute(statement, **parameters)


def test_twenty_thousand(office: TrialOffice, database_url: str) -> None:
    """20,000 expired tenants with 40,000 users are suspended by a handful of statements; each will be notified."""
    office.many(20_000)
    db = Counting(database_url, "test")
    worker = office.worker(db, SMTP_URL=None)
    db.statements = 0
    assert worker.tick().counts == {"suspended": 20_000, "users": 40_000, "told": 0, "failed": 0}
    assert db.statements <= 8
    assert office.crm.value("SELECT count(*) FROM worker.notice WHERE tenant_id IS NOT NULL") == 20_000
    assert office.crm.value("SELECT count(*) FROM worker.notice WHERE tenant_id IS NULL") == 1
    summary = office.crm.value("SELECT content FROM worker.notice WHERE tenant_id IS NULL")
    assert (summary["count"], len(summary["tenants"])) == (20_000, 200)


def test_two_workers_at_once(office: TrialOffice) -> None:
    """Without a lock to keep them apart, each tenant is suspended, and notified, by one of them."""
    office.many(300)
    workers = [office.worker(), office.worker()]
    counts: list[dict[str, int]] = []
    barrier = threading.Barrier(2)

    def work(number: int) -> None:
        barrier.wait(DEADLINE_SECONDS)
        counts.append(workers[number].tick().counts)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_SECONDS)
    counts += [worker.tick().counts for worker in workers]
    assert sum(each["suspended"] for each in counts) == 300
    mails = office.mails()
    summaries = mails.pop(OWNER)
    assert mails == {f"c{number}@t.example": 1 for number in range(1, 301)}
    assert 1 <= summaries <= 2  # one for each tick that suspended any
    assert sum(each["told"] for each in counts) == 300 + summaries
    assert office.waiting() == 0


def test_by_index(office: TrialOffice) -> None:
    """Among many tenants the few expired ones and their users are found by index."""
    office.many(20_000)
    office.crm.execute("""UPDATE "Tenant" SET status = 'ACTIVE', plan = 'STANDARD' WHERE id NOT LIKE 't-1000%'""")
    office.crm.execute("""UPDATE "User" SET "isActive" = false WHERE "tenantId" = 't-1000'""")
    office.crm.execute("VACUUM ANALYZE")
    ids = ["t-10000", "t-10001"]
    for name, more in {"lock_expired": {}, "any_expired": {}, "suspend": {"owner": OWNER, "listed": 200}}.items():
        statement = f"EXPLAIN (FORMAT JSON) {SQL[name]}"
        ((plan,),) = office.crm.execute(statement, {"now": NOW, "ids": ids} | more)
        read = [node for node in nodes(plan[0]["Plan"]) if node["Node Type"] == "Seq Scan"]
        assert read == [], name


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)
