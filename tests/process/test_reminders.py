"""bin/reminders as it is shipped: killed at every point, two at once, stopped, without Redis' memory."""

import signal
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg2.extensions
import pytest
import redis
from workers import ANSWERED, THREADS, Start, Worker, wait_for

from sandbox import accounts
from sandbox.crm import Crm, utc_now
from sandbox.world import World

LOCK = "lock:lead-reminder-scheduler"


class Tenants:
    """Tenants with reminders, and what is known of them."""

    def __init__(self, crm: Crm, world: World) -> None:
        self.crm = crm
        self.world = world
        self.made = 0

    def add(self, leads: int = 2, **reminders: Any) -> str:
        self.made += 1
        whatsapp = accounts.whatsapp_settings(phone_id=str(105550000000000 + self.made))
        settings = {"mail": accounts.mail_settings(), "whatsapp": whatsapp}
        settings["leadReminders"] = {"enabled": True} | reminders
        tenant = self.crm.add_tenant(f"Tenant {self.made}", settings=settings)
        self.crm.add_user(tenant, role="ADMIN")
        for _ in range(leads):
            self.crm.add_lead(tenant, createdAt=utc_now() - timedelta(days=3))
        return tenant

    def of_channel(self, channel: str, recipients: int) -> str:
        """One tenant with so many recipients."""
        if channel == "smtp":
            return self.add(recipientEmails=[f"a{number}@x.example" for number in range(recipients)])
        return self.add(recipientPhones=[f"98{number:08}" for number in range(recipients)])

    def notifications(self) -> int:
        return int(self.crm.value("SELECT count(*) FROM worker.notice"))

    def remembered(self) -> int:
        """How many recipients were reminded, or may have been."""
        return int(self.crm.value("SELECT count(DISTINCT (tenant_id, address)) FROM worker.lead_reminder"))

    def ask_now(self) -> None:
        """As if the half minute were over after which a provider knows what it sent."""
        self.crm.execute("UPDATE worker.notice SET due_at = now() AT TIME ZONE 'UTC' WHERE holder IS NULL")


@pytest.fixture
def tenants(crm: Crm, world: World) -> Tenants:
    return Tenants(crm, world)


@pytest.fixture
def remind(start: Start) -> Callable[..., Worker]:
    """Starts bin/reminders."""
    return lambda *arguments, **settings: start(*arguments, program="reminders", **settings)


Remind = Callable[..., Worker]


def waiting_sessions(crm: Crm) -> int:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    return int(crm.value(waiting))


def test_once_and_a_restart(tenants: Tenants, world: World, remind: Remind, redis_client: redis.Redis) -> None:
    """--once sends everything and ends; a second run repeats nothing, not even with an emptied Redis."""
    tenants.add(recipientEmails=["a@x.example"], recipientPhones=["9812345678"])
    assert remind("--once").wait() == 0
    assert (world.total("smtp"), world.total("whatsapp")) == (1, 1)
    redis_client.flushall()
    second = remind("--once")
    assert second.wait() == 0
    assert world.total() == 2
    assert second.said("Traceback") == 0


def test_a_kill_between_claim_and_send(
    tenants: Tenants, world: World, remind: Remind, redis_client: redis.Redis
) -> None:
    """Nothing was sent yet: the next process sends all that the dead one had claimed, each once."""
    tenants.of_channel("whatsapp", 20)
    seconds, microseconds = redis_client.time()
    in_some_seconds = seconds * 1_000_000 + microseconds + 30_000_000
    redis_client.set("pace:whatsapp:105550000000001", in_some_seconds, px=30_000)
    worker = remind()
    wait_for(lambda: tenants.notifications() == 20, "the digests are claimed")
    worker.kill()
    assert world.total() == 0
    redis_client.delete("pace:whatsapp:105550000000001")
    assert remind("--once").wait() == 0
    assert (world.total("whatsapp"), world.duplicates("whatsapp")) == (20, {})
    assert (tenants.notifications(), tenants.remembered()) == (0, 20)


@pytest.mark.parametrize("policy", ["fail", "resend"])
@pytest.mark.parametrize("channel", ["smtp", "whatsapp"])
def test_a_kill_while_sending(channel: str, policy: str, tenants: Tenants, world: World, remind: Remind) -> None:
    """What was being sent is unconfirmed: not repeated, or sent again with UNCONFIRMED_SENDS=resend."""
    tenants.of_channel(channel, 20)
    world.script(channel, action="hang", seconds=60, after=ANSWERED)
    worker = remind()
    world.wait_for(channel, ANSWERED + THREADS)
    wait_for(lambda: tenants.notifications() == 20 - ANSWERED, "those with an answer are settled")
    worker.kill()
    world.clear_script()
    second = remind("--once", UNCONFIRMED_SENDS=policy)
    assert second.wait() == 0
    assert world.total(channel) == 20
    assert tenants.notifications() == THREADS, "they wait until a provider could be asked"
    tenants.ask_now()
    assert remind("--once", UNCONFIRMED_SENDS=policy).wait() == 0
    assert remind("--once", UNCONFIRMED_SENDS=policy).wait() == 0
    assert world.total(channel) == 20 + (THREADS if policy == "resend" else 0)
    assert (tenants.notifications(), tenants.remembered()) == (0, 20)


def test_a_kill_before_the_settlement(
    tenants: Tenants, world: World, remind: Remind, second_connection: psycopg2.extensions.connection
) -> None:
    """Accepted, but not settled: never sent again."""
    tenants.of_channel("smtp", 5)
    world.script("smtp", action="hang", seconds=1.0)
    worker = remind()
    world.wait_for("smtp", 5)
    with second_connection.cursor() as cursor:
        cursor.execute("SELECT FROM worker.notice FOR UPDATE")
    wait_for(lambda: waiting_sessions(tenants.crm) == 1, "the settlement waits for the lock")
    worker.kill()
    second_connection.rollback()
    world.clear_script()
    wait_for(lambda: waiting_sessions(tenants.crm) == 0, "the dead worker's statement is over")
    assert remind("--once").wait() == 0
    tenants.ask_now()
    assert remind("--once").wait() == 0
    assert (world.total("smtp"), world.duplicates("smtp")) == (5, {})
    assert (tenants.notifications(), tenants.remembered()) == (0, 5)


@pytest.mark.parametrize("arrived", [True, False])
def test_a_kill_while_sending_to_gmail(arrived: bool, tenants: Tenants, world: World, remind: Remind) -> None:
    """Gmail is asked by its Message-ID: what it knows is filed, what it does not know is sent again, once."""
    tenant = tenants.of_channel("smtp", ANSWERED + THREADS)
    mail = accounts.mail_settings(client_secret=accounts.GOOGLE_CLIENT_SECRET)
    columns = accounts.gmail_columns("asha@gmail.example")
    tenants.crm.execute(
        """UPDATE "Tenant" SET settings = jsonb_set(settings, '{mail}', %s) WHERE id = %s""",
        (psycopg2.extras.Json(mail), tenant),
    )
    tenants.crm.execute(
        """UPDATE "User" SET "googleEmail" = %s, "gmailAccessToken" = %s, "gmailRefreshToken" = %s,
           "gmailTokenExpiry" = %s""",
        (columns["googleEmail"], columns["gmailAccessToken"], columns["gmailRefreshToken"], utc_now() + timedelta(1)),
    )
    world.script("gmail", action="hang", seconds=60, after=ANSWERED)
    worker = remind()
    world.wait_for("gmail", ANSWERED + THREADS)
    wait_for(lambda: tenants.notifications() == THREADS, "those with an answer are settled")
    worker.kill()
    world.clear_script()
    if not arrived:
        world.reset()
    remind("--once").wait()
    assert tenants.notifications() == THREADS
    tenants.ask_now()
    assert remind("--once").wait() == 0
    assert world.total("gmail") == THREADS + (ANSWERED if arrived else 0)
    assert tenants.crm.value('SELECT count(DISTINCT "gmailMessageId") FROM "EmailLog"') == ANSWERED + THREADS
    assert tenants.notifications() == 0


def test_two_workers_without_a_lock(
    tenants: Tenants, world: World, remind: Remind, redis_client: redis.Redis
) -> None:
    """Their lock is deleted all the time, so both work: nothing is sent twice."""
    for number in range(20):
        tenants.add(recipientEmails=[f"a{number}.{each}@x.example" for each in range(10)])
    world.script("smtp", action="hang", seconds=0.1)
    pair = [remind(LEAD_REMINDER_INTERVAL="1s") for _ in range(2)]
    wait_for(lambda: all(worker.said("started") for worker in pair), "both run")

    def both_done() -> bool:
        redis_client.delete(LOCK)
        for worker in pair:
            worker.send(signal.SIGUSR1)
        return world.total("smtp") >= 200 and tenants.notifications() == 0

    wait_for(both_done, "all are sent")
    assert [worker.stop() for worker in pair] == [0, 0]
    assert (world.total("smtp"), world.duplicates("smtp")) == (200, {})
    assert sum(worker.said("Traceback") for worker in pair) == 0


def test_a_signal(tenants: Tenants, world: World, remind: Remind, redis_client: redis.Redis) -> None:
    """SIGTERM: what hangs is not waited for, what was not sent is due again, the lock is free."""
    tenants.of_channel("smtp", 30)
    world.script("smtp", action="hang", seconds=60, after=ANSWERED)
    worker = remind(SHUTDOWN_GRACE_SECONDS="1")
    world.wait_for("smtp", ANSWERED + THREADS)
    assert worker.stop(seconds=10) == 0
    assert not redis_client.exists(LOCK)
    assert (tenants.notifications(), tenants.remembered()) == (THREADS, ANSWERED + THREADS)
    world.clear_script()
    assert remind("--once").wait() == 0
    assert (world.total("smtp"), world.duplicates("smtp")) == (30, {})


def test_the_counters(tenants: Tenants, remind: Remind, redis_client: redis.Redis) -> None:
    """What was sent, what failed, for each channel; and one line about it in the log."""
    tenants.add(recipientEmails=["a@x.example", "b@x.example"], recipientPhones=["9812345678"])
    tenants.world.script("smtp", "b@x.example", status=550)
    worker = remind("--once")
    assert worker.wait() == 0
    counters = redis_client.hgetall("worker:counters")
    found = {key: value for key, value in counters.items() if key.startswith("reminders_total")}
    assert found == {
        'reminders_total{channel="email",outcome="sent"}': "1",
        'reminders_total{channel="email",outcome="failed"}': "1",
        'reminders_total{channel="whatsapp",outcome="sent"}': "1",
    }
    assert worker.said("INFO reminded digests=2 leads=4 failed=1") == 1
    assert worker.said("x.example") <= 1, "only the provider's own words name an address"


def test_help(remind: Remind) -> None:
    """--help names the settings and needs none."""
    worker = remind("--help")
    assert worker.wait() == 0
    assert "LEAD_REMINDER_INTERVAL" in worker.log
