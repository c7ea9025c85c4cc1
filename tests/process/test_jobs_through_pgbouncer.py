"""Every job through a real PgBouncer in transaction mode, beside web, and with PostgreSQL lost behind it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg2
import pytest
from books import Books
from every_job import every_job_works
from web_process import OpenWeb, Web
from workers import Start, wait_for

from sandbox.crm import Crm, apply_schema
from sandbox.dovecot import Dovecot
from sandbox.pgbouncer import PgBouncer
from sandbox.postgres import Postgres
from sandbox.world import World
from worker.runtime.migrations import migrate

SAID = "DATABASE_URL leads through a connection pooler, settings are sent with each statement"
UNAVAILABLE = "a server is unavailable, the job waits for it"
BACK = "the server is available again, the job continues"
NewBouncer = Callable[..., PgBouncer]


@contextmanager
def asked_all_the_time(web: Web) -> Iterator[None]:
    """Somebody has the status page open."""
    over = threading.Event()

    def ask() -> None:
        while not over.wait(0.1):
            web.get("/health")

    visitor = threading.Thread(target=ask)
    visitor.start()
    try:
        yield
    finally:
        over.set()
        visitor.join()


def left_behind(url: str) -> list[tuple]:
    """The settings and prepared statements that another client finds in the session that it gets."""
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT name FROM pg_settings WHERE source = 'session' AND name IN ('statement_timeout', 'lock_timeout', "
            "'synchronous_commit', 'search_path', 'idle_in_transaction_session_timeout') "
            "UNION ALL SELECT name FROM pg_prepared_statements"
        )
        return cursor.fetchall()


@pytest.mark.parametrize("parameters", ["", "?pgbouncer=true"])
def test_every_job_works(
    parameters: str,
    new_bouncer: NewBouncer,
    database_url: str,
    crm: Crm,
    world: World,
    start: Start,
    open_web: OpenWeb,
    mailbox: Dovecot,
    tmp_path: Path,
) -> None:
    """All of them share one session with web, which is asked all the time; nothing is left in it."""
    url = new_bouncer(default_pool_size="1").url_of(urlsplit(database_url).path[1:])
    web = open_web(DATABASE_URL=url + parameters)
    with asked_all_the_time(web):
        for worker in every_job_works(crm, world, start, mailbox, tmp_path, url + parameters):
            assert worker.said(SAID) == (0 if parameters else 1)
            assert worker.said("a bug, please report it") == 0
            assert left_behind(url) == []
        wait_for(lambda: web.get("/readyz").status == 200, "/readyz is ok")
    assert web.get("/health").json["services"]["database"] == "connected"
    assert web.worker.said("a bug, please report it") == 0


def test_a_postgresql_that_is_killed_behind_it(
    new_bouncer: NewBouncer, new_postgres: Callable[[], Postgres], world: World, start: Start, state_dir: Path
) -> None:
    """The job says so once and goes on when it is back; nobody gets two messages, nobody is left out."""
    server = new_postgres()
    with closing(psycopg2.connect(server.database("crm"))) as connection:
        apply_schema(connection)
        migrate(connection)
        crm = Crm(connection)
        campaigns = [crm.add_campaign("email", recipients=300, textContent=f"Text {n}") for n in range(2)]
        crm.execute("CHECKPOINT")
    # PgBouncer lets clients wait so long for a server that is gone, two minutes unless it is told otherwise
    url = new_bouncer(postgres_url=server.url, query_wait_timeout="3").url_of("crm")
    worker = start(DATABASE_URL=f"{url}?pgbouncer=true", CAMPAIGN_BATCH_SIZE="20", CAMPAIGN_BATCH_DELAY="20ms")
    world.wait_for("smtp", 100)
    server.kill()
    wait_for(lambda: worker.said(UNAVAILABLE), "the job says that a server is unavailable")
    server.start()
    with closing(psycopg2.connect(server.url_of("crm"))) as connection:
        books = Books(Crm(connection), world, state_dir)
        wait_for(lambda: books.ended(*campaigns), "the campaigns end")
        assert [books.crm.counts(each) for each in campaigns] == [{"sent": 300}, {"sent": 300}]
        assert set(world.counts("smtp").values()) == {2}, "one message of each campaign"
    wait_for(lambda: worker.said(BACK), "it is over")
    assert [worker.said(UNAVAILABLE), worker.said(BACK), worker.said(SAID)] == [1, 1, 0]
    assert worker.stop() == 0
