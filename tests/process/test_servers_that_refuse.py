"""PostgreSQL or Redis answers and does not let the job work: read-only, no connection left, no memory, no disk."""

import resource
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import psycopg2
import psycopg2.extensions
import pytest
import redis
from books import Books
from web_process import OpenWeb
from workers import Start, wait_for

from sandbox.redis import Redis

READ_ONLY = "a server takes no writes, the job waits for it"
EXHAUSTED = "a server has not enough resources, the job waits for it"
BACK = "the server is available again, the job continues"


def set_read_only(connection: psycopg2.extensions.connection, value: str) -> None:
    """For sessions that begin from now on; ends those of the worker."""
    with connection.cursor() as cursor:
        name = connection.info.dbname
        cursor.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = {value}')
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name LIKE 'crm-worker%'"
        )


@pytest.mark.parametrize("program", ["campaign", "trial", "calls", "reminders", "call-cleanup"])
def test_a_session_that_met_a_reader(
    program: str, books: Books, connection: psycopg2.extensions.connection, start: Start
) -> None:
    """After a fail-over the connection leads to a reader: the job says so once, and connects again."""
    set_read_only(connection, "on")
    intervals = {f"{name}_INTERVAL": "1s" for name in ("CALL_SCHEDULER", "TRIAL_CHECK", "LEAD_REMINDER")}
    worker = start(program=program, **intervals)
    wait_for(lambda: worker.said(READ_ONLY), "it says that PostgreSQL takes no writes")
    assert worker.said("DATABASE_URL must lead to the primary") == 1
    with connection.cursor() as cursor:  # writable for those who connect now; the worker's session is not ended
        cursor.execute(f'ALTER DATABASE "{connection.info.dbname}" RESET default_transaction_read_only')
    wait_for(lambda: worker.said(BACK), "it goes on")
    if program == "campaign":
        campaign = books.crm.add_campaign("email", recipients=3)
        wait_for(lambda: books.ended(campaign), "a campaign is sent")
        assert books.crm.counts(campaign) == {"sent": 3}
    assert (worker.said(READ_ONLY), worker.said("a bug, please report it")) == (1, 0)
    assert worker.stop() == 0


def test_a_fail_over_during_a_run(books: Books, connection: psycopg2.extensions.connection, start: Start) -> None:
    """The running session becomes read-only and then lost: nothing is lost, nothing is sent twice."""
    campaign = books.crm.add_campaign("email", recipients=400)
    worker = start(CAMPAIGN_BATCH_SIZE="20", CAMPAIGN_BATCH_DELAY="50ms")
    books.world.wait_for("smtp", 40)
    set_read_only(connection, "on")
    wait_for(lambda: worker.said(READ_ONLY), "it says that PostgreSQL takes no writes")
    with connection.cursor() as cursor:
        cursor.execute(f'ALTER DATABASE "{connection.info.dbname}" RESET default_transaction_read_only')
    wait_for(lambda: books.ended(campaign), "the campaign ends")
    assert books.crm.counts(campaign) == {"sent": 400}
    assert books.world.total("smtp") == 400
    assert worker.said("a bug, please report it") == 0
    assert worker.stop() == 0


def test_a_full_disk_of_postgresql(books: Books, start: Start, open_web: OpenWeb) -> None:
    """Reads work, writes fail: the job says what to do, and /readyz is not ok until the job can write again."""
    books.crm.execute(
        """CREATE FUNCTION disk_full() RETURNS trigger LANGUAGE plpgsql AS
           $$BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full'; END$$"""
    )
    books.crm.execute("CREATE TRIGGER disk_full BEFORE INSERT ON worker.campaign_run EXECUTE FUNCTION disk_full()")
    campaign = books.crm.add_campaign("email", recipients=3)
    worker = start()
    web = open_web()
    wait_for(lambda: worker.said(READ_ONLY), "it says that PostgreSQL takes no writes")
    assert worker.said("free space on PostgreSQL's disk") == 1
    wait_for(lambda: web.get("/readyz").status == 503, "/readyz is not ok")
    assert "the job campaign cannot write" in web.get("/readyz").json["reasons"]["database"]
    books.crm.execute("DROP TRIGGER disk_full ON worker.campaign_run")
    wait_for(lambda: books.ended(campaign), "the campaign ends")
    wait_for(lambda: web.get("/readyz").status == 200, "/readyz is ok again")
    assert books.crm.counts(campaign) == {"sent": 3}
    assert worker.said("a bug, please report it") == 0


def test_no_connection_left(
    books: Books, connection: psycopg2.extensions.connection, start: Start, database_url: str
) -> None:
    """The job says that PostgreSQL has no connection left, and goes on when there is one."""
    with connection.cursor() as cursor, ExitStack() as stack:
        cursor.execute("SHOW max_connections")
        most = int(cursor.fetchone()[0])
        others: list[psycopg2.extensions.connection] = []
        stack.callback(lambda: [each.close() for each in others])
        with pytest.raises(psycopg2.OperationalError, match=r"too many clients|reserved"):
            others.extend(psycopg2.connect(database_url) for _ in range(most + 1))
        worker = start()
        wait_for(lambda: worker.said(EXHAUSTED), "it says that PostgreSQL has no connection left")
        assert worker.said("raise max_connections") == 1
        for each in others:
            each.close()
        wait_for(lambda: worker.said(BACK), "it goes on")
    assert worker.said("a bug, please report it") == 0
    assert worker.stop() == 0


@pytest.fixture
def own_redis(new_redis: Callable[..., Redis]) -> Iterator[tuple[Redis, redis.Redis]]:
    server = new_redis()
    with closing(redis.Redis.from_url(server.url, decode_responses=True)) as client:
        yield server, client


def test_a_redis_without_memory(own_redis: tuple[Redis, redis.Redis], books: Books, start: Start) -> None:
    """OOM is said as what it is; the job goes on when there is memory."""
    server, client = own_redis
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", "1")
    worker = start(REDIS_URL=server.url)
    wait_for(lambda: worker.said(EXHAUSTED), "it says that Redis has no memory")
    assert worker.said("raise Redis's maxmemory") == 1
    client.config_set("maxmemory", "0")
    campaign = books.crm.add_campaign("email", recipients=3)
    wait_for(lambda: books.ended(campaign), "the campaign is sent")
    assert worker.said("a bug, please report it") == 0
    assert worker.stop() == 0


def test_a_redis_that_became_a_replica(own_redis: tuple[Redis, redis.Redis], books: Books, start: Start) -> None:
    """READONLY is said as what it is; the job goes on when the address leads to a master."""
    server, client = own_redis
    worker = start(REDIS_URL=server.url)
    wait_for(lambda: client.smembers("worker:jobs"), "its first tick")
    client.execute_command("REPLICAOF", "127.0.0.1", "1")
    client.config_set("replica-serve-stale-data", "yes")
    wait_for(lambda: worker.said(READ_ONLY), "it says that Redis takes no writes")
    client.execute_command("REPLICAOF", "NO", "ONE")
    campaign = books.crm.add_campaign("email", recipients=3)
    wait_for(lambda: books.ended(campaign), "the campaign is sent")
    assert (worker.said("it must lead to the master"), worker.said("a bug, please report it")) == (1, 0)
    assert worker.stop() == 0


def test_poisoned_keys(redis_client: redis.Redis, books: Books, start: Start) -> None:
    """Keys of wrong types and values, for each lock and pace: the campaign is sent all the same."""
    campaign = books.crm.add_campaign("whatsapp", recipients=3)
    worker = start()
    wait_for(lambda: books.ended(campaign), "the first campaign is sent")
    for value in ("list", "far"):
        redis_client.delete("lock:campaign-scheduler")
        redis_client.rpush("lock:campaign-scheduler", "x")
        tenant = books.crm.value("""SELECT settings #>> '{whatsapp,phoneId}' FROM "Tenant" LIMIT 1""")
        key = f"pace:whatsapp:{tenant}"
        redis_client.delete(key)
        if value == "list":
            redis_client.rpush(key, "x")
        else:
            redis_client.set(key, "9" * 18)
        campaign = books.crm.add_campaign("whatsapp", recipients=3)
        wait_for(lambda: books.ended(campaign), "the campaign is sent")  # noqa: B023 - called at once
        assert books.crm.counts(campaign) == {"sent": 3}
    assert (worker.said("lock put aside"), worker.said("pace put aside")) == (2, 2)
    assert worker.said("a bug, please report it") == 0
    assert worker.stop() == 0


def test_a_machine_without_files(books: Books, start: Start) -> None:
    """With as many open files as it may have, the job says so with what to do, and goes on when it may have more."""
    campaign = books.crm.add_campaign("email", recipients=3)
    worker = start()
    wait_for(lambda: books.ended(campaign), "a campaign is sent")
    usual = resource.prlimit(worker.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (3, usual[1]))
    for kept in (books.state_dir / "journals").glob("*.spare"):
        kept.unlink()  # else all that the next campaign needs is open already
    campaign = books.crm.add_campaign("email", recipients=3)
    wait_for(lambda: worker.said("this machine has not enough resources"), "it says what it lacks")
    assert worker.said("raise the limit of open files")
    resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, usual)
    wait_for(lambda: books.ended(campaign), "the campaign is sent")
    assert books.crm.counts(campaign) == {"sent": 3}
    assert worker.said("a bug, please report it") == 0
    assert worker.stop() == 0
