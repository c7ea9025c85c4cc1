"""kill -9 at any instant, then a new start: no recipient gets two copies, none is left out."""

import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

import psycopg2
import psycopg2.extensions
import pytest
import redis
from books import Books
from workers import ANSWERED, THREADS, Start, wait_for

from sandbox import accounts
from sandbox.crm import Crm, utc_now
from sandbox.world import World
from worker.campaigns.claim_size import FIRST_CLAIM
from worker.sending.requests import FIRST_THREADS


@pytest.mark.parametrize(
    ("channel", "recipients", "kills"),
    [("smtp", 2000, 14), ("whatsapp", 800, 6)],
)
def test_kills_at_random_instants_lose_no_message_and_repeat_none(
    channel: str, recipients: int, kills: int, crm: Crm, world: World, books: Books, start: Start
) -> None:
    """However often the worker is killed, each recipient gets one message or is marked as unconfirmed."""
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")  # noqa: T201 - pytest shows it when the test fails
    chance = random.Random(seed)  # noqa: S311 - instants, no secrets
    campaign = crm.add_campaign("email" if channel == "smtp" else channel, recipients=recipients)
    done = 0
    for kill in range(kills):
        worker = start(CAMPAIGN_BATCH_DELAY=chance.choice(["0", "20ms"]))
        goal = min(world.total(channel) + chance.randrange(recipients // kills), recipients - 1)
        if kill % 4 == 3:  # in the middle of its own start
            time.sleep(chance.uniform(0, 0.5))
        else:
            wait_for(lambda goal=goal: world.total(channel) > goal or books.ended(campaign), "progress")
            time.sleep(chance.uniform(0, 0.02))
        worker.kill()
        done += not books.ended(campaign)
    start()
    wait_for(lambda: books.ended(campaign), "the campaign ends", 60)
    lost = books.balance(campaign, channel, kills=kills)
    assert lost <= THREADS * done
    print(f"{channel}: {done} kills, {lost} unconfirmed, at most {THREADS * done} allowed")  # noqa: T201


def test_what_was_reserved_at_a_kill_stays_counted(
    crm: Crm, world: World, books: Books, start: Start, database_url: str
) -> None:
    """Killed between the reservation and the claim: the account sends less in this day, and never more."""
    campaign = crm.add_campaign("email", recipients=200)
    used = "SELECT coalesce(sum(used), 0) FROM worker.quota"
    with closing(psycopg2.connect(database_url)) as connection, connection.cursor() as cursor:
        cursor.execute("LOCK TABLE worker.campaign_batch IN EXCLUSIVE MODE")
        worker = start(SMTP_DAILY_LIMIT="100")
        wait_for(lambda: crm.value(used) and statements_waiting(crm), "it has reserved, and cannot claim")
        reserved = crm.value(used)
        assert 0 < reserved < 100
        worker.kill()
    start(SMTP_DAILY_LIMIT="100")
    waits = "SELECT count(*) FROM worker.campaign_run WHERE waits_for = 'quota'"
    wait_for(lambda: crm.value(waits), "the campaign waits")
    assert crm.value(used) == 100
    assert world.total("smtp") == 100 - reserved
    assert crm.counts(campaign) == {"sent": 100 - reserved, "pending": 100 + reserved}
    assert world.duplicates("smtp") == {}


@pytest.fixture
def silent_smtp() -> Iterator[str]:
    """The URL of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield f"smtp://127.0.0.1:{listener.getsockname()[1]}"


def lock_claimed(connection: psycopg2.extensions.connection) -> None:
    """Locks the claimed recipients until the transaction ends: every settlement waits."""
    with connection.cursor() as cursor:
        cursor.execute("""SELECT id FROM "CampaignRecipient" WHERE status = 'sending' FOR UPDATE""")


def statements_waiting(crm: Crm) -> int:
    """How many sessions wait for a lock."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    return int(crm.value(waiting))


@pytest.mark.parametrize("channel", ["smtp", "whatsapp"])
@pytest.mark.parametrize(
    ("answered", "on_the_wire"), [(0, FIRST_THREADS), (ANSWERED, THREADS)], ids=["new account", "busy account"]
)
def test_messages_on_the_wire_at_a_kill_are_unconfirmed_and_all_others_are_sent_once(
    answered: int, on_the_wire: int, channel: str, crm: Crm, world: World, books: Books, start: Start
) -> None:
    """Those whose answer was awaited fail as unconfirmed and are not sent again, since they may have arrived."""
    world.script(channel, action="hang", seconds=60, after=answered)
    campaign = crm.add_campaign("email" if channel == "smtp" else channel, recipients=60)
    worker = start()
    world.wait_for(channel, answered + on_the_wire)
    worker.kill()
    world.clear_script()
    start()
    wait_for(lambda: books.ended(campaign), "the campaign ends")
    assert books.balance(campaign, channel) == on_the_wire
    assert world.total(channel) == 60


@pytest.mark.parametrize("channel", ["smtp", "whatsapp"])
def test_a_kill_between_the_last_answer_and_the_settlement_loses_no_result(
    channel: str,
    crm: Crm,
    world: World,
    books: Books,
    start: Start,
    second_connection: psycopg2.extensions.connection,
) -> None:
    """What was accepted is settled as sent from the journal, although the worker that sent it could not write it."""
    world.script(channel, action="hang", seconds=0.5, times=1)
    campaign = crm.add_campaign("email" if channel == "smtp" else channel, recipients=30)
    worker = start()
    world.wait_for(channel, 1)
    lock_claimed(second_connection)
    world.wait_for(channel, 30)
    wait_for(lambda: statements_waiting(crm) == 1, "the settlement waits for the lock")
    worker.kill()
    second_connection.rollback()
    start()
    wait_for(lambda: books.ended(campaign), "the campaign ends")
    assert books.balance(campaign, channel, kills=1) == 0


def test_journals_of_settled_batches_are_removed_in_the_end(books: Books, start: Start) -> None:
    """A kill between a settlement and the removal of its journal leaves the file; a later start removes it."""
    assert start("--once").wait() == 0
    journal = books.state_dir / "journals" / f"{uuid.uuid4()}.journal"
    journal.write_bytes(b'["somebody"]\n'.ljust(4096, b"\0"))
    long_ago = time.time() - 86_400
    os.utime(journal, (long_ago, long_ago))
    assert start("--once").wait() == 0
    assert not journal.exists()


def test_a_kill_before_any_message_left_releases_the_whole_batch(
    crm: Crm, world: World, books: Books, start: Start, redis_client: redis.Redis
) -> None:
    """A batch that was claimed and waits for its pace is pending again after a kill, and then sent."""
    seconds, microseconds = redis_client.time()
    in_four_seconds = seconds * 1_000_000 + microseconds + 4_000_000
    redis_client.set(f"pace:whatsapp:{accounts.WHATSAPP_PHONE_ID}", in_four_seconds, px=4000)
    campaign = crm.add_campaign("whatsapp", recipients=FIRST_CLAIM)
    worker = start(WHATSAPP_RATE="20")
    wait_for(books.held, "a batch is claimed")
    worker.kill()
    assert crm.counts(campaign) == {"sending": FIRST_CLAIM}
    start(WHATSAPP_RATE="40")
    wait_for(lambda: books.ended(campaign), "the campaign ends")
    assert books.balance(campaign, "whatsapp") == 0


def test_a_kill_while_the_server_does_not_greet_costs_at_most_the_open_connections(
    crm: Crm, world: World, books: Books, start: Start, silent_smtp: str
) -> None:
    """Of a batch that got no further than connecting, at most one recipient a connection is unconfirmed."""
    campaign = crm.add_campaign("email", recipients=50)
    worker = start(SMTP_URL=silent_smtp, CAMPAIGN_BATCH_DELAY="50ms")
    wait_for(lambda: crm.counts(campaign) == {"sending": 50}, "a batch is claimed")
    wait_for(books.journals, "the first message is handed over")
    worker.kill()
    start()
    wait_for(lambda: books.ended(campaign), "the campaign ends")
    assert books.balance(campaign) <= THREADS
    assert world.total("smtp") >= 50 - THREADS


def test_a_claim_that_commits_after_its_worker_was_killed_is_released(
    crm: Crm, world: World, books: Books, start: Start, second_connection: psycopg2.extensions.connection
) -> None:
    """The server may finish a dead worker's claim long after its successor has started: no recipient is lost."""
    campaign = crm.add_campaign("email", recipients=20, status="running")
    crm.execute(
        """INSERT INTO worker.campaign_run (campaign_id, tenant_id, started_at, prepared, next_batch_at)
           VALUES (%s, %s, now() AT TIME ZONE 'UTC', true, now() AT TIME ZONE 'UTC')""",
        (campaign, crm.tenant_id),
    )
    with second_connection.cursor() as cursor:
        cursor.execute('SELECT FROM "Campaign" WHERE id = %s FOR UPDATE', (campaign,))
    worker = start()
    wait_for(lambda: statements_waiting(crm) == 1, "the claim waits for the lock")
    worker.kill()
    start()
    wait_for(lambda: statements_waiting(crm) == 2, "the successor's claim waits, too")
    second_connection.rollback()
    wait_for(lambda: books.ended_early(campaign), "the campaign ends")
    assert world.total("smtp") == 20
    assert books.unconfirmed(campaign) == 0


@pytest.fixture
def gmail_user(crm: Crm) -> str:
    """A user whose campaigns leave through Gmail."""
    tenant = crm.add_tenant(
        settings={"mail": accounts.mail_settings(client_secret=accounts.GOOGLE_CLIENT_SECRET)},
    )
    expiry = utc_now() + timedelta(hours=1)
    return crm.add_user(tenant, **accounts.gmail_columns("asha@shop.example"), gmailTokenExpiry=expiry)


def gmail_campaign(crm: Crm, user: str, recipients: int) -> str:
    tenant = crm.value('SELECT "tenantId" FROM "User" WHERE id = %s', user)
    return crm.add_campaign("email", recipients=recipients, tenant_id=tenant, user_id=user)


def waiting_to_ask(crm: Crm) -> int:
    return int(crm.value("SELECT count(*) FROM worker.unconfirmed_send"))


def ask_now(crm: Crm) -> None:
    """The half minute is over after which Gmail has filed what it sent."""
    crm.execute("UPDATE worker.unconfirmed_send SET ask_at = now() AT TIME ZONE 'UTC'")


def test_gmail_is_asked_about_messages_on_the_wire_and_has_them(
    crm: Crm, world: World, books: Books, start: Start, gmail_user: str
) -> None:
    """Those that Gmail sent are settled as sent, with Gmail's ids, and not sent again."""
    world.script("gmail", action="hang", seconds=60, after=ANSWERED)
    campaign = gmail_campaign(crm, gmail_user, 30)
    worker = start()
    world.wait_for("gmail", ANSWERED + THREADS)
    worker.kill()
    world.clear_script()
    start()
    wait_for(lambda: waiting_to_ask(crm) == THREADS, "the dead worker's batch is settled")
    wait_for(lambda: books.sent(campaign) == 30 - THREADS, "the others are sent")
    assert books.status(campaign) == "running"
    ask_now(crm)
    wait_for(lambda: books.ended_early(campaign), "the campaign ends")
    assert books.balance(campaign, "gmail") == 0
    assert world.total("gmail") == 30
    assert crm.value('SELECT count(DISTINCT "gmailMessageId") FROM "EmailLog"') == 30


def test_messages_that_gmail_does_not_have_are_sent_again_once(
    crm: Crm, world: World, books: Books, start: Start, gmail_user: str
) -> None:
    """The connection broke before Gmail had the message: it is asked, does not have it, and gets it again."""
    world.script("gmail", action="cut-before", seconds=60, after=ANSWERED)
    campaign = gmail_campaign(crm, gmail_user, 30)
    worker = start()
    wait_for(lambda: journal_lines(books) == 2 * ANSWERED + THREADS, "messages are on the wire")
    worker.kill()
    world.clear_script()
    start()
    wait_for(lambda: waiting_to_ask(crm) == THREADS, "the dead worker's batch is settled")
    wait_for(lambda: books.sent(campaign) == 30 - THREADS, "the others are sent")
    ask_now(crm)
    wait_for(lambda: books.ended_early(campaign), "the campaign ends")
    assert books.balance(campaign, "gmail") == 0
    assert world.total("gmail") == 30


def journal_lines(books: Books) -> int:
    """One for each message on the wire, two for each one with an answer."""
    return sum(path.read_bytes().count(b"\n") for path in books.state_dir.rglob("*.journal"))


@pytest.fixture
def send_only_gmail() -> Iterator[str]:
    """A Gmail that does not let us look into the mailbox."""

    class Refusal(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(403, "Insufficient Permission")

        def log_message(self, *_: object) -> None:
            """Says nothing on the terminal."""

    with HTTPServer(("127.0.0.1", 0), Refusal) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("revoked", [True, False])
def test_a_gmail_that_cannot_be_asked_ends_the_waiting(
    revoked: bool, crm: Crm, world: World, books: Books, start: Start, gmail_user: str, send_only_gmail: str
) -> None:
    """The grant was withdrawn, or allows sending only: the recipients are unconfirmed, nothing waits any longer."""
    world.script("gmail", action="hang", seconds=60, after=ANSWERED)
    campaign = gmail_campaign(crm, gmail_user, ANSWERED + THREADS)
    worker = start()
    world.wait_for("gmail", ANSWERED + THREADS)
    worker.kill()
    world.clear_script()
    if revoked:
        world.revoke(accounts.GMAIL_ACCESS_TOKEN)
        world.revoke(accounts.GMAIL_REFRESH_TOKEN)
    start(**({} if revoked else {"GMAIL_API_URL": send_only_gmail}))
    wait_for(lambda: waiting_to_ask(crm) == THREADS, "the dead worker's batch is settled")
    ask_now(crm)
    wait_for(lambda: crm.counts(campaign) == {"sent": ANSWERED, "failed": THREADS}, "the recipients fail", 20)
    assert books.unconfirmed(campaign) == THREADS
    assert waiting_to_ask(crm) == 0
    wait_for(lambda: books.ended(campaign) or not revoked, "the campaign fails")
    connected = crm.value('SELECT "gmailRefreshToken" IS NOT NULL FROM "User" WHERE id = %s', gmail_user)
    assert connected == (not revoked)
    assert world.total("gmail") == ANSWERED + THREADS
