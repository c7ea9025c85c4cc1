"""The real bin/trial: killed at any instant, stopped, or beside another one, it notifies everybody once."""

import signal
from datetime import timedelta
from typing import Any

import psycopg2.extensions
import pytest
import redis
from workers import Start, Worker, wait_for

from sandbox.crm import Crm, utc_now
from sandbox.ports import free_port
from sandbox.world import World

LOCK = "lock:trial-expiration"
OWNER = "owner@crm.example.in"


@pytest.fixture
def start_trial(start: Start, environment: dict[str, str]) -> Start:
    """Starts bin/trial for an operator whom mail reaches."""

    def start_one(*arguments: str, **settings: str) -> Worker:
        return start(*arguments, program="trial", **({"OWNER_EMAIL": OWNER} | settings))

    return start_one


def expired(crm: Crm, **columns: Any) -> str:
    tenant = crm.add_tenant(plan="FREE", status="TRIAL", subscriptionEnd=utc_now() - timedelta(hours=1), **columns)
    crm.add_user(tenant)
    crm.add_user(tenant)
    return tenant


def contacts(crm: Crm) -> set[str]:
    return {address for (address,) in crm.execute("""SELECT "contactEmail" FROM "Tenant" WHERE plan = 'FREE'""")}


def suspended(crm: Crm) -> int:
    """Tenants that are suspended with all of their users."""
    return int(
        crm.value(
            """SELECT count(*) FROM "Tenant" t WHERE status = 'SUSPENDED'
               AND NOT EXISTS (SELECT FROM "User" u WHERE u."tenantId" = t.id AND u."isActive")"""
        )
    )


def notifications(crm: Crm) -> int:
    return int(crm.value("SELECT count(*) FROM worker.notice"))


def filed(crm: Crm) -> int:
    return int(crm.value("""SELECT count(*) FROM "EmailLog" WHERE "entityType" = 'Tenant'"""))


def waiting(crm: Crm) -> int:
    """How many sessions wait for a lock."""
    statement = (
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    return int(crm.value(statement))


def make_due(crm: Crm) -> None:
    """As if the half minute were over after which a dead worker's e-mails are claimed again."""
    crm.execute("UPDATE worker.notice SET due_at = now() AT TIME ZONE 'UTC' - interval '1 s' WHERE holder IS NULL")


def all_notified(crm: Crm, world: World) -> None:
    """Each contact and the owner got exactly one e-mail, and nothing is left to do."""
    assert dict(world.counts("smtp")) == dict.fromkeys(contacts(crm) | {OWNER}, 1)
    assert notifications(crm) == 0


def test_once(crm: Crm, world: World, start_trial: Start, redis_client: redis.Redis) -> None:
    """Suspends all there are, however many, notifies everybody, and ends with status 0."""
    for _ in range(150):
        expired(crm)
    paid = crm.add_tenant(plan="PROFESSIONAL", status="ACTIVE", subscriptionEnd=utc_now() - timedelta(days=1))
    worker = start_trial("--once")
    assert worker.wait() == 0
    assert suspended(crm) == 150
    assert crm.value('SELECT status::text FROM "Tenant" WHERE id = %s', paid) == "ACTIVE"
    all_notified(crm, world)
    assert filed(crm) == 150
    assert worker.said("expired trials suspended tenants=150 users=300") == 1
    assert redis_client.hget("worker:counters", "trials_suspended_total") == "150"
    assert redis_client.hget("worker:counters", 'messages_total{channel="email",outcome="sent"}') == "151"
    assert not redis_client.exists(LOCK)
    assert "@" not in worker.log


def test_at_start_and_on_request(crm: Crm, world: World, start_trial: Start) -> None:
    """Trials that ended while it was down are suspended at its start, later ones at SIGUSR1 or at the full hour."""
    expired(crm)
    worker = start_trial()
    wait_for(lambda: suspended(crm) == 1, "the first tick")
    expired(crm)
    worker.send(signal.SIGUSR1)
    wait_for(lambda: suspended(crm) == 2, "the second tick")
    world.wait_for("smtp", 4)
    assert worker.stop() == 0
    assert dict(world.counts("smtp")) == {**dict.fromkeys(contacts(crm), 1), OWNER: 2}


def test_killed_between_the_commit_and_the_mails(
    crm: Crm, world: World, start_trial: Start, second_connection: psycopg2.extensions.connection
) -> None:
    """What is committed is to be sent: the next start notifies each contact and the owner, once."""
    for _ in range(5):
        expired(crm)
    crm.execute(
        """INSERT INTO worker.notice (id, job, channel, address, content, created_at, due_at, renewed_at)
           VALUES (gen_random_uuid(), 'trial', 'email', 'x', '{}', '2000-01-01', '2000-01-01', '2000-01-01')"""
    )
    with second_connection.cursor() as cursor:  # the job waits for this lock after it has suspended
        cursor.execute("SELECT FROM worker.notice FOR UPDATE")
    worker = start_trial()
    wait_for(lambda: waiting(crm) == 1, "the suspensions are committed")
    assert suspended(crm) == 5
    worker.kill()
    assert world.total("smtp") == 0
    second_connection.rollback()
    assert start_trial("--once").wait() == 0
    all_notified(crm, world)
    assert filed(crm) == 5


def test_killed_while_sending(crm: Crm, world: World, start_trial: Start) -> None:
    """E-mails that the server had got may have arrived and are not sent again; all others are sent once."""
    world.script("smtp", action="hang", seconds=60)
    for _ in range(20):
        expired(crm)
    worker = start_trial()
    world.wait_for("smtp", 8)
    worker.kill()
    world.clear_script()
    second = start_trial()
    wait_for(lambda: world.total("smtp") == 21, "the others are sent")
    wait_for(lambda: notifications(crm) == 8, "only those that were being sent are left")
    make_due(crm)
    second.send(signal.SIGUSR1)
    wait_for(lambda: notifications(crm) == 0, "they are given up")
    all_notified(crm, world)
    assert second.said("given up") == 8
    assert second.said("outcome=unconfirmed") == 8


def test_killed_between_the_answers_and_the_settlement(
    crm: Crm, world: World, start_trial: Start, second_connection: psycopg2.extensions.connection
) -> None:
    """The server has the e-mails, the database does not know: nobody gets a second one."""
    world.script("smtp", action="hang", seconds=0.5)
    for _ in range(5):
        expired(crm)
    worker = start_trial()
    world.wait_for("smtp", 6)
    with second_connection.cursor() as cursor:
        cursor.execute("SELECT FROM worker.notice FOR UPDATE")
    wait_for(lambda: waiting(crm) == 1, "the settlement waits")
    worker.kill()
    second_connection.rollback()
    world.clear_script()
    wait_for(lambda: waiting(crm) == 0, "the dead one's statement ends")
    second = start_trial()
    wait_for(
        lambda: second.said("messages left by a dead process") or notifications(crm) == 0, "the next one looks around"
    )
    make_due(crm)
    second.send(signal.SIGUSR1)
    wait_for(lambda: notifications(crm) == 0, "nothing waits any more")
    all_notified(crm, world)


def test_stopped_while_sending(crm: Crm, world: World, start_trial: Start, redis_client: redis.Redis) -> None:
    """A stop waits for what is being sent, no longer than the grace time; the next start sends the rest."""
    world.script("smtp", action="hang", seconds=1.0)
    for _ in range(30):
        expired(crm)
    worker = start_trial()
    world.wait_for("smtp", 1)
    assert worker.stop() == 0
    assert not redis_client.exists(LOCK)
    told = world.total("smtp")
    assert told < 31
    assert notifications(crm) == 31 - told
    world.clear_script()
    assert start_trial("--once").wait() == 0
    all_notified(crm, world)


def test_a_server_that_hangs_does_not_delay_the_end(crm: Crm, world: World, start_trial: Start) -> None:
    """A stop ends within the grace time; the e-mail that hung is not sent again."""
    world.script("smtp", action="hang", seconds=60)
    expired(crm)
    worker = start_trial(SHUTDOWN_GRACE_SECONDS="500ms")
    world.wait_for("smtp", 2)
    assert worker.stop(seconds=10) == 0
    world.clear_script()
    assert start_trial("--once").wait() == 0
    make_due(crm)
    assert start_trial("--once").wait() == 0
    all_notified(crm, world)


def test_two_at_once(crm: Crm, world: World, start_trial: Start) -> None:
    """Several programs at the same time, one of which is killed: each contact gets one e-mail."""
    workers = [start_trial() for _ in range(4)]
    wait_for(lambda: all(each.said("started") for each in workers), "all of them run")
    for _ in range(100):
        tenant = crm.add_tenant(plan="FREE", status="TRIAL", subscriptionEnd=utc_now() + timedelta(days=1))
        crm.add_user(tenant)
    crm.execute("""UPDATE "Tenant" SET "subscriptionEnd" = '2026-01-01'""")
    workers.pop(0).kill()
    for each in workers:
        each.send(signal.SIGUSR1)
    wait_for(lambda: suspended(crm) == 100 and notifications(crm) == 0, "all are notified")
    counts = dict(world.counts("smtp"))
    assert counts.pop(OWNER) >= 1
    assert counts == dict.fromkeys(contacts(crm), 1)
    assert [each.stop() for each in workers] == [0, 0, 0]


def test_the_mail_server_is_down(crm: Crm, world: World, start_trial: Start) -> None:
    """Trials are suspended all the same, the program goes on, and all are notified once when the server is back."""
    expired(crm)
    down = start_trial(SMTP_URL=f"smtp://127.0.0.1:{free_port()}")
    wait_for(lambda: suspended(crm) == 1, "the suspension")
    wait_for(lambda: crm.value("SELECT sum(attempts) FROM worker.notice") == 2, "both e-mails were tried")
    expired(crm)
    down.send(signal.SIGUSR1)
    wait_for(lambda: suspended(crm) == 2, "the next suspension")
    wait_for(
        lambda: crm.value("SELECT count(*) FROM worker.notice WHERE attempts > 0") == 4, "its e-mails were tried"
    )
    assert down.stop() == 0
    make_due(crm)
    assert start_trial("--once").wait() == 0
    counts = dict(world.counts("smtp"))
    assert counts.pop(OWNER) == 2
    assert counts == dict.fromkeys(contacts(crm), 1)


def test_without_an_owner(crm: Crm, world: World, start_trial: Start) -> None:
    """It suspends, logs once what to set, and does not spin."""
    expired(crm)
    worker = start_trial(OWNER_EMAIL="", LOG_LEVEL="debug")
    wait_for(lambda: worker.said("DEBUG tick"), "the first tick")
    worker.send(signal.SIGUSR1)
    wait_for(lambda: worker.said("DEBUG tick") == 2, "the second tick")
    assert worker.stop() == 0
    assert worker.said("DEBUG tick") == 2
    assert worker.said("set=OWNER_EMAIL") == 1
    assert (suspended(crm), world.total("smtp")) == (1, 0)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"OWNER_EMAIL": "the owner"}, "OWNER_EMAIL is 'the owner'"),
        ({"TRIAL_CHECK_INTERVAL": "0"}, "TRIAL_CHECK_INTERVAL is '0'"),
        ({"SMTP_URL": "smtp://user:s3cret@127.0.0.1:99999"}, "SMTP_URL (a secret, not shown)"),
    ],
)
def test_bad_settings(settings: dict[str, str], named: str, start_trial: Start) -> None:
    """Status 2, one line, and never a secret."""
    worker = start_trial(**settings)
    assert worker.wait() == 2
    assert named in worker.log
    assert "s3cret" not in worker.log
    assert len(worker.log.splitlines()) == 1


def test_help(start_trial: Start) -> None:
    """Needs no server and no settings."""
    worker = start_trial("--help", DATABASE_URL="", REDIS_URL="")
    assert worker.wait() == 0
    for word in ("expired", "--once", "OWNER_EMAIL", "COMPANY_NAME", "TRIAL_CHECK_INTERVAL", "SMTP_URL"):
        assert word in worker.log


def test_missing_tables(crm_only_url: str, start_trial: Start) -> None:
    """Status 2; the line says what to run."""
    worker = start_trial(DATABASE_URL=crm_only_url)
    assert worker.wait() == 2
    assert worker.said("bin/migrate") == 1
