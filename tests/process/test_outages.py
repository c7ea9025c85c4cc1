"""PostgreSQL, Redis or the mail server is unavailable during a run: the job goes on, no recipient gets two copies."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import psycopg2
import pytest
from books import Books
from workers import Start, wait_for

from sandbox.crm import Crm, apply_schema
from sandbox.postgres import Postgres
from sandbox.redis import Redis
from sandbox.servers import ServerMissing
from sandbox.world import World
from worker.runtime.migrations import migrate

UNAVAILABLE = "a server is unavailable, the job waits for it"
BACK = "the server is available again, the job continues"


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A server that the tests of this file may stop and kill, with settings that lose commits when it is killed."""
    server = Postgres(tmp_path_factory.mktemp("fragile") / "data", fsync=False, timezone="Asia/Kolkata")
    try:
        server.start()
    except ServerMissing as error:
        pytest.skip(str(error))
    yield server
    server.remove()


@pytest.fixture
def fragile_url(postgres: Postgres, tmp_path: Path) -> str:
    """A database on it with all tables."""
    if not postgres.running:
        postgres.start()
    url = postgres.database(tmp_path.name.lower().replace("-", "_"))
    with closing(psycopg2.connect(url)) as connection:
        apply_schema(connection)
        migrate(connection)
    return url


@contextmanager
def opened(url: str, world: World, state_dir: Path) -> Iterator[Books]:
    """The books of a database, over a connection that did not see the outage."""
    with closing(psycopg2.connect(url)) as connection:
        yield Books(Crm(connection), world, state_dir)


def stop(server: Postgres) -> None:
    server.stop()


def kill(server: Postgres) -> None:
    server.kill()


@pytest.mark.parametrize("outage", [stop, kill])
def test_the_job_survives_an_outage_of_postgresql_during_a_run(
    outage: Callable[[Postgres], None],
    postgres: Postgres,
    fragile_url: str,
    world: World,
    state_dir: Path,
    start: Start,
) -> None:
    """What was accepted before and during the outage is settled as sent after it; the outage is logged once."""
    with opened(fragile_url, world, state_dir) as books:
        campaigns = [books.crm.add_campaign("email", recipients=300, textContent=f"Text {n}") for n in range(2)]
        campaigns.append(books.crm.add_campaign("whatsapp", recipients=150))
        books.crm.execute("CHECKPOINT")
    worker = start(DATABASE_URL=fragile_url, CAMPAIGN_BATCH_SIZE="50")
    world.wait_for("smtp", 150)
    outage(postgres)
    wait_for(lambda: worker.said(UNAVAILABLE), "the worker says that a server is unavailable")
    postgres.start()
    with opened(fragile_url, world, state_dir) as books:
        wait_for(lambda: books.ended(*campaigns), "the campaigns end")
        assert [books.crm.counts(each) for each in campaigns] == [{"sent": 300}, {"sent": 300}, {"sent": 150}]
        wait_for(lambda: not books.held(), "all batches are settled")
        assert set(world.counts("smtp").values()) == {2}, "one message of each campaign"
        assert set(world.counts("whatsapp").values()) == {1}
        assert books.crm.value('SELECT count(*) FROM "EmailLog"') == 600
    wait_for(lambda: worker.said(BACK), "the worker says that the server is available")
    assert [worker.said(UNAVAILABLE), worker.said(BACK)] == [1, 1]
    assert worker.stop() == 0
    assert books.journals() == []


@pytest.mark.parametrize("outage", [stop, kill])
def test_settlements_that_the_outage_cut_off_are_made_after_it(
    outage: Callable[[Postgres], None],
    postgres: Postgres,
    fragile_url: str,
    world: World,
    state_dir: Path,
    start: Start,
) -> None:
    """Several batches had all their answers when the server stopped: each is settled as sent when it is back."""
    with opened(fragile_url, world, state_dir) as books, ExitStack() as stack:
        campaigns = [books.crm.add_campaign("email", recipients=2) for _ in range(4)]
        world.script("smtp", action="hang", seconds=600)
        worker = start(DATABASE_URL=fragile_url, CAMPAIGN_BATCH_DELAY="1ms")
        wait_for(lambda: books.held() == 4, "each campaign has a batch in progress")
        locks = dict(stack.enter_context(batch_lock(fragile_url, each)) for each in campaigns)
        world.clear_script()  # not before: a batch whose messages have their answers is settled at once
        answered = "SELECT pg_blocking_pids(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        wait_for(lambda: books.crm.value(answered), "the first settlement waits")
        wait_for(lambda: answers(state_dir) == 8, "all messages have their answers")
        locks[books.crm.value(answered)[0]].rollback()
        wait_for(lambda: books.held() == 3 and books.crm.value(answered), "one is settled, the next one waits")
        outage(postgres)
    postgres.start()
    with opened(fragile_url, world, state_dir) as books:
        wait_for(lambda: books.ended(*campaigns), "the campaigns end")
        assert [books.crm.counts(each) for each in campaigns] == [{"sent": 2}] * 4
    assert world.total("smtp") == 8
    assert worker.said("Traceback") == 0


@contextmanager
def batch_lock(url: str, campaign_id: str) -> Iterator[tuple[int, psycopg2.extensions.connection]]:
    """Blocks the settlement of a campaign's batch: the process id of the lock's session, and its connection."""
    with closing(psycopg2.connect(url)) as connection:
        with connection.cursor() as cursor:
            cursor.execute(
                """SELECT FROM "CampaignRecipient" WHERE "campaignId" = %s AND status = 'sending' FOR UPDATE""",
                (campaign_id,),
            )
        yield connection.info.backend_pid, connection


def answers(state_dir: Path) -> int:
    """How many accepted messages are in the journals."""
    return sum(path.read_bytes().count(b'"accepted"') for path in state_dir.rglob("*.journal"))


def test_redis_restarted_during_a_run_stops_no_campaign(
    crm: Crm, world: World, books: Books, start: Start, new_redis: Callable[..., Redis]
) -> None:
    """The lock, the pace and the counters are gone with Redis's memory; the campaigns are sent all the same."""
    server = new_redis()
    email = crm.add_campaign("email", recipients=400)
    whatsapp = crm.add_campaign("whatsapp", recipients=150)
    worker = start(REDIS_URL=server.url, CAMPAIGN_BATCH_SIZE="50", LOCK_TTL_MS="1000", WHATSAPP_RATE="100")
    world.wait_for("smtp", 60)
    server.kill()
    wait_for(lambda: worker.said(UNAVAILABLE), "the worker says that Redis is unavailable")
    arrived = world.total()
    assert books.sent(email) + books.sent(whatsapp) <= arrived
    server.start()
    wait_for(lambda: books.ended(email, whatsapp), "the campaigns end")
    assert [crm.counts(email), crm.counts(whatsapp)] == [{"sent": 400}, {"sent": 150}]
    books.nobody_twice("smtp", "whatsapp")
    wait_for(lambda: worker.said(BACK), "the worker says that the server is available")
    assert [worker.said(UNAVAILABLE), worker.said(BACK)] == [1, 1]
    assert worker.stop() == 0


def test_redis_flushed_again_and_again_repeats_no_message(
    crm: Crm, world: World, books: Books, start: Start, new_redis: Callable[..., Redis]
) -> None:
    """FLUSHALL takes the lock from its holder each time; two workers, and still no recipient gets two copies."""
    server = new_redis()
    campaign = crm.add_campaign("email", recipients=800)
    for _ in range(2):
        start(REDIS_URL=server.url, CAMPAIGN_BATCH_SIZE="40", LOCK_TTL_MS="1000")
    with server.client() as client:

        def flushed_to_the_end() -> bool:
            client.flushall()
            return books.ended(campaign)

        wait_for(flushed_to_the_end, "the campaign ends")
    assert books.balance(campaign) == 0


def test_an_unavailable_mail_server_costs_no_recipient_a_try(
    crm: Crm, books: Books, start: Start, tmp_path: Path
) -> None:
    """The campaign waits as a whole, says so, and goes on when the server is back."""
    late = World(tmp_path / "late")
    campaign = crm.add_campaign("email", recipients=120)
    worker = start(SMTP_URL=late.smtp_url, CAMPAIGN_MAX_ATTEMPTS="1")
    wait_for(lambda: worker.said("campaign waits"), "the worker says that the campaign waits")
    wait_for(lambda: crm.counts(campaign) == {"pending": 120}, "all recipients are pending again")
    assert crm.value("SELECT coalesce(max(attempts), 0) FROM worker.campaign_retry") == 0
    assert crm.value("SELECT next_batch_at > now() AT TIME ZONE 'UTC' + interval '5 s' FROM worker.campaign_run")
    late.start()
    crm.execute("UPDATE worker.campaign_run SET next_batch_at = now() AT TIME ZONE 'UTC'")
    wait_for(lambda: books.ended(campaign), "the campaign ends")
    assert Books(crm, late, books.state_dir).balance(campaign) == 0
    late.stop()
