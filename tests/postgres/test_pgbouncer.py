"""PgBouncer: what the worker leaves in sessions that it shares with others (nothing), and bin/migrate through it."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import psycopg2
import psycopg2.errors
import psycopg2.extensions
import pytest
from transaction_pooler import TransactionPooler

from sandbox.pgbouncer import PgBouncer
from worker.runtime import settings
from worker.runtime.db import Database
from worker.runtime.migrations import ADVISORY_LOCK, migrate_database, migrations
from worker.web.dependencies import Dependencies
from worker.web.unsubscriptions import Unsubscriptions

PROJECT = Path(__file__).parents[2]
DEADLINE_SECONDS = 60.0
SAID = "DATABASE_URL leads through a connection pooler, settings are sent with each statement"
NAMES = [f"{each.version:04d}_{each.name}" for each in migrations()]
# what a pooler itself keeps for each client
KEPT = ("application_name", "client_encoding", "DateStyle", "TimeZone", "standard_conforming_strings")


def name_of(url: str) -> str:
    return urlsplit(url).path[1:]


def rows(url: str, statement: str, *parameters: object) -> list[tuple]:
    """Through a connection of its own."""
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []


def left_behind(url: str) -> list[tuple]:
    """What another client finds in the session that it gets: settings, prepared statements, tables and locks."""
    return rows(
        url,
        "SELECT name, setting FROM pg_settings WHERE source = 'session' AND name <> ALL (%s) "
        "UNION ALL SELECT name, statement FROM pg_prepared_statements "
        "UNION ALL SELECT 'table', relname FROM pg_class WHERE relpersistence = 't' "
        "UNION ALL SELECT 'lock', objid::text FROM pg_locks WHERE locktype = 'advisory' "
        "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
        list(KEPT),
    )


def work(database: Database) -> None:
    """All kinds of statements that jobs run."""
    database.read_time()
    insert = "INSERT INTO item VALUES (%(id)s, %(name)s || ' 5 %%') RETURNING name"
    for number in range(3):
        assert database.execute_one_prepared("insert_item", insert, id=number, name="a") == {"name": "a 5 %"}
    with database.transaction():
        database.execute("SELECT pg_advisory_xact_lock(1)")
        assert database.one("SHOW statement_timeout") == {"statement_timeout": "5min"}
        database.execute_prepared("insert_item", insert, id=3, name="b")
    with database.long_transaction() as cursor:
        cursor.execute("SELECT current_setting('statement_timeout'), current_setting('TimeZone')")
        assert cursor.fetchone() == ("0", "UTC")
        cursor.execute("CREATE TEMPORARY TABLE imported (line integer) ON COMMIT DROP")
    with pytest.raises(psycopg2.errors.UniqueViolation):
        database.execute(insert, id=3, name="c")
    shown = database.one("SELECT current_setting('TimeZone') AS zone, current_setting('lock_timeout') AS lock")
    assert shown == {"zone": "UTC", "lock": "30s"}


@pytest.mark.parametrize("parameters", ["", "?pgbouncer=true"])
def test_nothing_is_left_in_a_session_that_others_get(
    parameters: str,
    new_bouncer: Callable[..., PgBouncer],
    database_url: str,
    redis_url: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """All clients have the same one session in turn. The pooler is noticed before anything is left in it."""
    rows(database_url, "CREATE TABLE item (id integer PRIMARY KEY, name text)")
    url = new_bouncer(default_pool_size="1").url_of(name_of(database_url))
    assert left_behind(url) == []
    with closing(Database(url + parameters, "crm-worker test")) as database:
        work(database)
        assert left_behind(url) == []
        environment = {"DATABASE_URL": url + parameters, "REDIS_URL": redis_url, "QDRANT_URL": "http://127.0.0.1:9"}
        web = Dependencies(settings.load(environment, "web"))
        assert web.snapshot().services["database"].up
        assert web.snapshot().work is not None
        assert left_behind(url) == []
        with closing(Unsubscriptions(url + parameters)) as unsubscriptions:
            assert unsubscriptions.sender("nobody") is None
        web.close()
        assert left_behind(url) == []
    said = [record.getMessage() for record in caplog.records]
    assert said.count(SAID) == (0 if parameters else 3), "each of the three connections says it once"


def test_a_limit_of_statements_holds_for_its_program_only(
    new_bouncer: Callable[..., PgBouncer], database_url: str
) -> None:
    """As web has one, which jobs that share its session do not notice."""
    url = new_bouncer(default_pool_size="1").url_of(name_of(database_url))
    for address in (database_url, url):
        with (
            closing(Database(address, "short", statement_seconds=0.2)) as short,
            closing(Database(url, "job")) as job,
        ):
            with pytest.raises(psycopg2.errors.QueryCanceled):
                short.one("SELECT pg_sleep(60)")
            assert job.one("SELECT pg_sleep(0.3), 1 AS one") == {"pg_sleep": "", "one": 1}


def test_a_pooler_in_session_mode(
    new_bouncer: Callable[..., PgBouncer], database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With pgbouncer=false statements are prepared as without a pooler, which is faster."""
    url = new_bouncer(pool_mode="session").url_of(name_of(database_url))
    with closing(Database(url + "?pgbouncer=false", "crm-worker test")) as database:
        assert database.execute_one_prepared("next", "SELECT %(one)s + 1 AS two", one=1) == {"two": 2}
        assert database.one("SELECT name FROM pg_prepared_statements") == {"name": "next"}
        database.read_time()
        assert not database.pooled
    assert caplog.records == []


def test_without_a_pooler_statements_are_prepared(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """A direct connection is not taken for a pooler's."""
    for parameters in ("", "?pgbouncer=false"):
        with closing(Database(database_url + parameters, "crm-worker test")) as database:
            assert database.execute_one_prepared("next", "SELECT %(one)s + 1 AS two", one=1) == {"two": 2}
            assert database.one("SELECT name FROM pg_prepared_statements") == {"name": "next"}
            assert not database.pooled
    assert caplog.records == []


@pytest.mark.parametrize("parameters", ["", "?pgbouncer=true"])
def test_migrations(parameters: str, new_bouncer: Callable[..., PgBouncer], crm_only_url: str) -> None:
    """Of three that start at the same time one does everything; then no session has a lock or a setting."""
    url = new_bouncer(default_pool_size="6").url_of(name_of(crm_only_url))
    barrier = threading.Barrier(3)
    done: list[list[str]] = []

    def run() -> None:
        barrier.wait(DEADLINE_SECONDS)
        done.append(migrate_database(Database(url + parameters, "crm-worker migrate")))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_SECONDS)
    assert sorted(done) == [[], [], NAMES]
    assert left_behind(url) == []
    invalid = "SELECT count(*) FROM pg_index WHERE NOT indisvalid"
    assert rows(crm_only_url, invalid) == [(0,)]


def run_migrate(url: str) -> subprocess.Popen[str]:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT), "DATABASE_URL": url}
    return subprocess.Popen(
        [sys.executable, "-m", "worker.migrate"], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def wait_until(condition: Callable[[], object], what: str) -> None:
    over = threading.Event()
    threading.Timer(DEADLINE_SECONDS, over.set).start()
    while not condition():
        assert not over.wait(0.02), f"not in time: {what}"


def test_a_killed_migration(new_bouncer: Callable[..., PgBouncer], crm_only_url: str) -> None:
    """Its lock ends with it, and does not stay in a pooled session: the next one works."""
    url = new_bouncer().url_of(name_of(crm_only_url))
    locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = %s"
    with closing(psycopg2.connect(crm_only_url)) as busy:
        busy.cursor().execute('LOCK TABLE "CampaignRecipient" IN ROW EXCLUSIVE MODE')
        process = run_migrate(url)
        building = (
            "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%%recipient_pending%%'"
        )
        wait_until(lambda: rows(crm_only_url, building), "an index that waits for the CRM")
        assert rows(crm_only_url, locks, ADVISORY_LOCK) == [(1,)]
        process.kill()
        process.communicate()
        wait_until(lambda: rows(crm_only_url, locks, ADVISORY_LOCK) == [(0,)], "the lock is gone")
    again = run_migrate(url)
    printed, errors = again.communicate(timeout=DEADLINE_SECONDS)
    assert again.returncode == 0, errors
    assert printed.splitlines() == [f"done: {name}" for name in NAMES[1:]]
    assert left_behind(url) == []


@pytest.mark.parametrize(
    ("setting", "parameters", "problem"),
    [
        ("statement_timeout = '30s'", "", "statement_timeout is 30s"),
        ("lock_timeout = '5s'", "?pgbouncer=true", "lock_timeout is 5s"),
        ("search_path = elsewhere", "?schema=public", "search_path does not begin with the schema of DATABASE_URL"),
    ],
)
def test_a_pooler_whose_sessions_are_of_no_use_to_migrations(
    setting: str, parameters: str, problem: str, new_bouncer: Callable[..., PgBouncer], crm_only_url: str
) -> None:
    """What is built concurrently would fail with these: it is refused at once, with what to do."""
    name = name_of(crm_only_url)
    rows(crm_only_url, f'ALTER DATABASE "{name}" SET {setting}')
    process = run_migrate(new_bouncer().url_of(name) + parameters)
    printed, errors = process.communicate(timeout=DEADLINE_SECONDS)
    assert (process.returncode, printed) == (2, "")
    assert problem in errors
    assert "Give bin/migrate a DATABASE_URL that leads to PostgreSQL itself" in errors
    assert rows(crm_only_url, "SELECT to_regclass('worker.migration')") == [(None,)]


def test_migrations_through_the_stand_in(crm_only_url: str) -> None:
    """The same through a pooler that gives every transaction another session than the one before."""
    with closing(TransactionPooler(crm_only_url)) as pooler:
        others = [psycopg2.connect(pooler.url) for _ in range(3)]
        assert migrate_database(Database(pooler.url, "crm-worker migrate")) == NAMES
        for _ in range(4):
            assert left_behind(pooler.url) == []
        for each in others:
            each.close()
