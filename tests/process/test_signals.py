"""Signals, exit statuses and messages of bin/campaign."""

import signal
import socket
import time
from datetime import timedelta

import psycopg2
import pytest
import redis
from books import Books
from workers import ANSWERED, LOCK, THREADS, Start, wait_for

from sandbox.crm import Crm, utc_now
from sandbox.ports import free_port
from sandbox.world import World


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("channel", ["smtp", "whatsapp"])
def test_a_stop_during_a_batch_finishes_what_is_on_the_wire_and_releases_the_rest(
    number: signal.Signals,
    channel: str,
    crm: Crm,
    world: World,
    books: Books,
    start: Start,
    redis_client: redis.Redis,
) -> None:
    """Status 0, well within the grace time; the recipients without a message are pending, and no batch is claimed."""
    world.script(channel, action="hang", seconds=1.0)
    campaign = crm.add_campaign("email" if channel == "smtp" else channel, recipients=100)
    worker = start(SHUTDOWN_GRACE_SECONDS="20")
    world.wait_for(channel, 10)
    began = time.monotonic()
    assert worker.stop(number) == 0
    assert time.monotonic() - began < 10
    sent = world.total(channel)
    assert crm.counts(campaign) == {"sent": sent, "pending": 100 - sent}
    assert 10 <= sent < 50
    assert books.held() == 0
    assert not redis_client.exists(LOCK)
    assert books.journals() == []
    assert worker.log.splitlines()[-1].split(" ", 2)[2] == "ended job=campaign status=0"
    world.clear_script()
    assert start("--once").wait() == 0
    assert books.balance(campaign, channel) == 0


@pytest.mark.parametrize("channel", ["smtp", "whatsapp"])
def test_a_provider_that_hangs_longer_than_the_grace_time_does_not_delay_the_end(
    channel: str, crm: Crm, world: World, books: Books, start: Start, redis_client: redis.Redis
) -> None:
    """Messages without an answer are unconfirmed, the rest is pending, the status is 0 and the lock is free."""
    world.script(channel, action="hang", seconds=60, after=ANSWERED)
    campaign = crm.add_campaign("email" if channel == "smtp" else channel, recipients=30)
    worker = start(SHUTDOWN_GRACE_SECONDS="1")
    world.wait_for(channel, ANSWERED + THREADS)
    began = time.monotonic()
    assert worker.stop() == 0
    assert 0.9 < time.monotonic() - began < 10
    assert crm.counts(campaign) == {"sent": ANSWERED, "failed": THREADS, "pending": 30 - ANSWERED - THREADS}
    assert books.unconfirmed(campaign) == THREADS
    assert books.held() == 0
    assert not redis_client.exists(LOCK)
    world.clear_script()
    assert start("--once").wait() == 0
    assert books.balance(campaign, channel) == THREADS


def test_a_stop_while_postgresql_is_unavailable_ends_at_once(start: Start) -> None:
    """A worker that waits for a server reacts to signals all the same."""
    worker = start(DATABASE_URL=f"postgresql://crm:secret@127.0.0.1:{free_port()}/crm")
    wait_for(lambda: worker.said("a server is unavailable"), "the outage is noticed")
    assert worker.stop(seconds=5) == 0


def test_sigusr1_runs_a_tick_now(crm: Crm, books: Books, start: Start) -> None:
    """A campaign that was added meanwhile starts at the signal, not at the next interval."""
    worker = start(CAMPAIGN_INTERVAL="1h", LOG_LEVEL="debug")
    wait_for(lambda: worker.said("DEBUG tick"), "the first tick is over")
    campaign = crm.add_campaign("email", recipients=3)
    worker.send(signal.SIGUSR1)
    wait_for(lambda: books.ended(campaign), "the campaign ends")
    assert books.balance(campaign) == 0


def test_once_does_all_that_is_due_and_leaves_the_rest(crm: Crm, books: Books, start: Start) -> None:
    """Several rounds with a pause between batches; what is due tomorrow stays scheduled. Status 0."""
    due = [crm.add_campaign("email", recipients=30), crm.add_campaign("whatsapp", recipients=10)]
    tomorrow = crm.add_campaign("email", recipients=3, scheduled_at=utc_now() + timedelta(days=1))
    assert start("--once", CAMPAIGN_BATCH_SIZE="10", CAMPAIGN_BATCH_DELAY="200ms").wait() == 0
    assert books.ended(*due)
    assert books.status(tomorrow) == "scheduled"


def test_once_says_with_its_status_that_postgresql_is_unavailable(start: Start) -> None:
    """Status 1, and a line that names the server but no password."""
    worker = start("--once", DATABASE_URL=f"postgresql://crm:s3cret@127.0.0.1:{free_port()}/crm")
    assert worker.wait() == 1
    assert worker.said("a server is unavailable") == 1
    assert "s3cret" not in worker.log


def test_once_says_with_its_status_that_redis_is_unavailable(start: Start) -> None:
    """Status 1: nothing was done, since another worker may hold the lock."""
    worker = start("--once", REDIS_URL=f"redis://:s3cret@127.0.0.1:{free_port()}/0")
    assert worker.wait() == 1
    assert worker.said("server=Redis") == 1
    assert "s3cret" not in worker.log


def test_a_machine_that_is_no_worker_does_nothing(crm: Crm, books: Books, start: Start) -> None:
    """IS_WORKER=false: says so and ends with status 0, also in the loop."""
    campaign = crm.add_campaign("email", recipients=1)
    worker = start(IS_WORKER="false")
    assert worker.wait() == 0
    assert worker.said("IS_WORKER is false") == 1
    assert books.status(campaign) == "scheduled"


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"CAMPAIGN_BATCH_SIZE": "many"}, "CAMPAIGN_BATCH_SIZE is 'many'"),
        ({"DATABASE_URL": ""}, "DATABASE_URL is not set"),
        ({"DATABASE_URL": "mysql://root:s3cret@127.0.0.1/crm"}, "DATABASE_URL is (a secret, not shown)"),
        ({"DATABASE_URL": "postgresql://root:s3cret@127.0.0.1:port/crm"}, "DATABASE_URL cannot be read"),
        ({"SMTP_URL": "smtp://user:s3cret@127.0.0.1:99999"}, "SMTP_URL (a secret, not shown)"),
        ({"REDIS_URL": "redis://:s3cret@127.0.0.1:port"}, "REDIS_URL"),
        ({"ENCRYPTION_KEY": "s3cret"}, "ENCRYPTION_KEY is (a secret, not shown)"),
        ({"STATE_DIR": "/proc/nowhere"}, "STATE_DIR is '/proc/nowhere'"),
        ({"LOCK_TTL_MS": "10"}, "LOCK_TTL_MS is '10'"),
    ],
)
def test_bad_settings_end_it_with_one_clear_line(settings: dict[str, str], named: str, start: Start) -> None:
    """Status 2, the variable's name, and never a secret."""
    worker = start(**settings)
    assert worker.wait() == 2
    assert len(worker.log.splitlines()) == 1, worker.log
    assert named in worker.log
    assert "s3cret" not in worker.log


def test_missing_tables_end_it_and_name_the_program_that_creates_them(crm_only_url: str, start: Start) -> None:
    """Status 2; the line says what to run."""
    worker = start(DATABASE_URL=crm_only_url)
    assert worker.wait() == 2
    assert worker.said("bin/migrate") == 1
    assert worker.said("Traceback") == 0


def test_help_says_what_it_does_and_what_it_reads(start: Start) -> None:
    """Needs no server and no settings."""
    worker = start("--help", DATABASE_URL="", REDIS_URL="")
    assert worker.wait() == 0
    for word in ("campaigns", "--once", "DATABASE_URL", "CAMPAIGN_BATCH_SIZE", "SIGUSR1", "WHATSAPP_RATE"):
        assert word in worker.log


def test_a_stop_while_a_settlement_waits_for_a_lock_loses_no_batch(
    crm: Crm, world: World, books: Books, start: Start, second_connection: psycopg2.extensions.connection
) -> None:
    """The CRM locks a campaign's row for long: the stop waits for it, and the batch is settled all the same."""
    world.script("smtp", action="hang", seconds=0.3)
    campaign = crm.add_campaign("email", recipients=4)
    worker = start()
    world.wait_for("smtp", 4)
    with second_connection.cursor() as cursor:
        cursor.execute('SELECT FROM "Campaign" WHERE id = %s FOR UPDATE', (campaign,))
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    wait_for(lambda: crm.value(waiting) == 1, "the settlement waits")
    worker.send(signal.SIGTERM)
    second_connection.rollback()
    assert worker.wait() == 0
    assert start("--once").wait() == 0
    assert books.balance(campaign) == 0


def test_a_hung_greeting_does_not_delay_the_end(crm: Crm, books: Books, start: Start) -> None:
    """A mail server that takes connections and says nothing: the stop is in time, the recipients are released."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        url = f"smtp://127.0.0.1:{silent.getsockname()[1]}"
        campaign = crm.add_campaign("email", recipients=30)
        worker = start(SMTP_URL=url, SHUTDOWN_GRACE_SECONDS="500ms")
        wait_for(books.journals, "the first message is handed over")
        assert worker.stop(seconds=10) == 0
    assert books.held() == 0
    assert crm.counts(campaign)["pending"] >= 22
