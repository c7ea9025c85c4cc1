"""bin/migrate makes the worker's own objects once, while the CRM is running, and changes nothing else."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import psycopg2
import psycopg2.extensions
import pytest

from sandbox.crm import Crm, apply_schema
from worker.errors import SchemaError
from worker.runtime import migrations as migrate
from worker.runtime.db import Database

PROJECT = Path(__file__).parents[2]
DEADLINE_SECONDS = 60.0
NAMES = [
    "0001_campaigns",
    "0002_campaign_indexes",
    "0003_jobs",
    "0004_job_indexes",
    "0005_addresses",
    "0006_campaign_log",
    "0007_phone_floats",
    "0008_user_index",
    "0009_consent",
    "0010_bounces",
    "0011_quota",
    "0012_argentine_numbers",
    "0013_batch_progress",
]
INDEXES = {
    "worker_campaign_due",
    "worker_campaign_running",
    "worker_campaign_recipient_pending",
    "worker_campaign_log_changes",
    "worker_lead_quiet",
    "worker_call_queue_pending",
    "worker_call_queue_due",
    "worker_call_queue_processing",
    "worker_call_queue_ended",
    "worker_call_log_live",
    "worker_tenant_trial",
}
Connection = psycopg2.extensions.connection


def connect(url: str) -> Connection:
    connection = psycopg2.connect(url)
    connection.autocommit = True
    return connection


@pytest.fixture
def fresh(crm_only_url: str) -> Iterator[Connection]:
    """A connection to a database that has the CRM's tables only."""
    with closing(connect(crm_only_url)) as connection:
        yield connection


def rows(connection: Connection, statement: str, *parameters: object) -> list[tuple]:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return cursor.fetchall() if cursor.description else []


def indexes(connection: Connection) -> dict[str, bool]:
    """The worker's indexes on the CRM's tables, and whether they are valid."""
    found = rows(
        connection,
        "SELECT c.relname, i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
        "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'public' AND c.relname LIKE 'worker%%'",
    )
    return dict(found)


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.01)


def shape(connection: Connection) -> dict[str, list[tuple]]:
    """The CRM's schema without its indexes: columns, constraints, triggers, types and functions."""
    public = "'public'::regnamespace"
    return {
        "columns": rows(
            connection,
            "SELECT table_name, column_name, data_type, is_nullable, column_default FROM information_schema.columns "
            "WHERE table_schema = 'public' ORDER BY 1, ordinal_position",
        ),
        "constraints": rows(
            connection,
            "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint "
            f"WHERE connamespace = {public} ORDER BY 1, 2",
        ),
        "triggers": rows(connection, "SELECT tgrelid::regclass::text, tgname FROM pg_trigger ORDER BY 1, 2")
        and rows(
            connection,
            "SELECT tgrelid::regclass::text, tgname FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1, 2",
        ),
        "rules": rows(connection, "SELECT tablename, rulename FROM pg_rules WHERE schemaname = 'public'"),
        "functions": rows(connection, f"SELECT proname FROM pg_proc WHERE pronamespace = {public} ORDER BY 1"),
        "relations": rows(
            connection,
            f"SELECT relname, relkind FROM pg_class WHERE relnamespace = {public} AND relname NOT LIKE 'worker%%' "
            "ORDER BY 1",
        ),
    }


def test_once_and_again(fresh: Connection) -> None:
    """The first run makes everything and returns the names; the second has nothing to do."""
    assert migrate.migrate(fresh) == NAMES
    assert migrate.migrate(fresh) == []
    assert indexes(fresh) == dict.fromkeys(INDEXES, True)
    assert rows(fresh, "SELECT version, name FROM worker.migration ORDER BY 1") == [
        (1, "campaigns"),
        (2, "campaign_indexes"),
        (3, "jobs"),
        (4, "job_indexes"),
        (5, "addresses"),
        (6, "campaign_log"),
        (7, "phone_floats"),
        (8, "user_index"),
        (9, "consent"),
        (10, "bounces"),
        (11, "quota"),
        (12, "argentine_numbers"),
        (13, "batch_progress"),
    ]


def test_the_crms_tables(fresh: Connection) -> None:
    """The CRM's tables get no column, trigger or constraint, and its schema only indexes named worker_*."""
    before = shape(fresh)
    assert before["columns"]
    migrate.migrate(fresh)
    assert shape(fresh) == before
    assert set(indexes(fresh)) == INDEXES


def test_a_database_without_an_encoding(postgres_url: str) -> None:
    """A database with SQL_ASCII accepts any bytes; the worker writes UTF-8 there, too."""
    url = urlsplit(postgres_url)._replace(path="/crm_test_ascii").geturl()
    with closing(connect(postgres_url)) as server:
        rows(server, "CREATE DATABASE crm_test_ascii ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0")
        try:
            with closing(connect(url)) as connection:
                connection.set_client_encoding("UTF8")
                apply_schema(connection)
            with closing(Database(url, "test").connect()) as connection:
                assert migrate.migrate(connection) == NAMES
                assert rows(connection, "SELECT 'दीवाली', octet_length('दीवाली')") == [("दीवाली", 18)]
        finally:
            rows(server, "DROP DATABASE crm_test_ascii WITH (FORCE)")


def test_two_at_once(crm_only_url: str) -> None:
    """When several start at the same time, each one succeeds, and everything is done once."""
    barrier = threading.Barrier(3)
    done: list[list[str]] = []

    def run() -> None:
        with closing(connect(crm_only_url)) as connection:
            barrier.wait(DEADLINE_SECONDS)
            done.append(migrate.migrate(connection))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_SECONDS)
    assert sorted(done) == [[], [], NAMES]
    with closing(connect(crm_only_url)) as connection:
        assert indexes(connection) == dict.fromkeys(INDEXES, True)


def test_the_second_waits(crm_only_url: str, fresh: Connection) -> None:
    """The second one waits without holding a snapshot, because building an index would wait for that snapshot."""
    rows(fresh, "SELECT pg_advisory_lock(%s)", migrate.ADVISORY_LOCK)
    done: list[list[str]] = []

    def run() -> None:
        with closing(connect(crm_only_url)) as connection:
            rows(connection, "SET application_name = 'the second'")
            done.append(migrate.migrate(connection))

    thread = threading.Thread(target=run)
    thread.start()
    asking = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'the second' AND state = 'idle'"
    wait_until(lambda: rows(fresh, f"{asking} AND query LIKE '%%pg_try_advisory_lock%%'"), "a second one that waits")
    assert done == []
    assert rows(fresh, "SELECT to_regclass('worker.migration')") == [(None,)]
    rows(fresh, "SELECT pg_advisory_unlock(%s)", migrate.ADVISORY_LOCK)
    thread.join(DEADLINE_SECONDS)
    assert done == [NAMES]


def test_the_turn_is_given_back(fresh: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that fails leaves nothing half done, and releases the lock for others."""
    broken = migrate.Migration(1, "broken", "CREATE TABLE worker.half (id text); SELECT 1 / 0")
    with monkeypatch.context() as patched:
        patched.setattr(migrate, "migrations", lambda: [broken])
        with pytest.raises(psycopg2.errors.DivisionByZero):
            migrate.migrate(fresh)
    assert rows(fresh, "SELECT to_regclass('worker.half')") == [(None,)]
    assert rows(fresh, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [(0,)]
    assert migrate.migrate(fresh) == NAMES


def test_an_index_left_behind(crm_only_url: str, fresh: Connection) -> None:
    """An index whose building was interrupted is INVALID, so it is built again."""
    one = "CREATE UNIQUE INDEX CONCURRENTLY {} ON {} ({})"
    insert = 'INSERT INTO "CampaignLog" (id, "tenantId", "campaignId", action, message) VALUES (%s, %s, %s, %s, %s)'
    campaign = Crm(fresh).add_campaign()
    for number in range(2):
        rows(fresh, insert, f"l-{number}", "t", campaign, "paused", "")
    with pytest.raises(psycopg2.errors.UniqueViolation):
        rows(fresh, one.format("worker_campaign_log_changes", '"CampaignLog"', '"campaignId"'))
    assert indexes(fresh) == {"worker_campaign_log_changes": False}
    assert migrate.migrate(fresh) == NAMES
    assert indexes(fresh) == dict.fromkeys(INDEXES, True)
    ((definition,),) = rows(fresh, "SELECT pg_get_indexdef('worker_campaign_log_changes'::regclass)")
    assert "UNIQUE" not in definition
    assert '"createdAt"' in definition


def test_a_terminated_build(crm_only_url: str, fresh: Connection) -> None:
    """After a migration was killed while it built an index, the next run completes it."""
    with closing(psycopg2.connect(crm_only_url)) as busy:
        busy.cursor().execute('LOCK TABLE "CampaignRecipient" IN ROW EXCLUSIVE MODE')
        failure: list[BaseException] = []

        def run() -> None:
            with closing(connect(crm_only_url)) as connection:
                rows(connection, "SET application_name = 'to be killed'")
                try:
                    migrate.migrate(connection)
                except psycopg2.Error as error:
                    failure.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        mine = "FROM pg_stat_activity WHERE application_name = 'to be killed'"
        building = f"SELECT 1 {mine} AND wait_event_type = 'Lock' AND query LIKE '%%recipient_pending%%'"
        wait_until(lambda: rows(fresh, building), "an index that waits for the CRM")
        rows(fresh, f"SELECT pg_terminate_backend(pid) {mine}")
        thread.join(DEADLINE_SECONDS)
        assert failure
    assert indexes(fresh)["worker_campaign_recipient_pending"] is False
    assert migrate.migrate(fresh) == NAMES[1:]
    assert indexes(fresh) == dict.fromkeys(INDEXES, True)


def test_a_long_transaction_of_the_crm(crm_only_url: str, fresh: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index is built also during a long transaction of the CRM: it waits, and the CRM does not wait for it."""
    monkeypatch.setattr(migrate, "LOCK_TIMEOUT", "200ms")
    with closing(psycopg2.connect(crm_only_url)) as busy:
        busy.cursor().execute('LOCK TABLE "CampaignRecipient" IN ROW EXCLUSIVE MODE')
        commit = threading.Timer(1.0, busy.commit)
        commit.start()
        try:
            assert migrate.migrate(fresh) == NAMES
        finally:
            commit.join()


def test_a_large_table(crm_only_url: str) -> None:
    """Building an index of a large table may take long: the statements of bin/migrate have no timeout."""
    with closing(Database(crm_only_url, "crm-worker migrate").connect()) as connection:
        migrate.migrate(connection)
        assert rows(connection, "SHOW statement_timeout") == [("0",)]


def test_the_crm_goes_on_meanwhile(crm_only_url: str, fresh: Connection) -> None:
    """While an index waits to be built, the CRM reads and writes the same table without waiting."""
    campaign = Crm(fresh).add_campaign()
    with closing(psycopg2.connect(crm_only_url)) as busy, closing(connect(crm_only_url)) as crm:
        busy.cursor().execute('LOCK TABLE "CampaignLog" IN ROW EXCLUSIVE MODE')
        failure: list[BaseException] = []

        def run() -> None:
            with closing(connect(crm_only_url)) as connection:
                rows(connection, "SET application_name = 'building'")
                try:
                    migrate.migrate(connection)
                except psycopg2.errors.LockNotAvailable as error:
                    failure.append(error)  # gave way to the CRM

        thread = threading.Thread(target=run)
        thread.start()
        building = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'building' AND wait_event_type = 'Lock'"
        wait_until(lambda: rows(fresh, building), "an index that waits")
        rows(crm, "SET statement_timeout = '2s'")
        insert = 'INSERT INTO "CampaignLog" (id, "tenantId", "campaignId", action, message) '
        rows(crm, insert + "VALUES ('l', 't', %s, 'paused', '')", campaign)
        assert rows(crm, 'SELECT count(*) FROM "CampaignLog"') == [(1,)]
        busy.commit()
        thread.join(DEADLINE_SECONDS)


@pytest.mark.parametrize(
    ("damage", "state"),
    [
        ("DROP SCHEMA worker CASCADE", "missing"),
        ("TRUNCATE worker.migration", "missing"),
        ("DELETE FROM worker.migration WHERE version > 1", "at version 1, this program needs 13"),
    ],
)
def test_missing_or_old(database_url: str, connection: Connection, damage: str, state: str) -> None:
    """A program that finds the tables missing or old names the problem, and the command to run."""
    with closing(Database(database_url, "test")) as db:
        migrate.require_current(db)
        rows(connection, damage)
        with pytest.raises(SchemaError) as caught:
            migrate.require_current(db)
    assert str(caught.value) == f"the worker's own tables are {state}: run bin/migrate"


def test_newer_tables(database_url: str, connection: Connection) -> None:
    """Tables newer than the program, as during an upgrade of several machines, do not stop it."""
    rows(connection, "INSERT INTO worker.migration (version, name) VALUES (9999, 'later')")
    with closing(Database(database_url, "test")) as db:
        migrate.require_current(db)
    assert migrate.migrate(connection) == []


def run_program(module: str, url: str, tmp_path: Path, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(PROJECT),
        "DATABASE_URL": url,
        "STATE_DIR": str(tmp_path),
        **more,
    }
    arguments = ["--once"] if module == "worker.campaign" else []
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_SECONDS,
    )


def test_the_programs(crm_only_url: str, redis_url: str, tmp_path: Path) -> None:
    """bin/campaign ends with status 2 and names bin/migrate; after bin/migrate it works."""
    refused = run_program("worker.campaign", crm_only_url, tmp_path, REDIS_URL=redis_url)
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert line.endswith('reason="the worker\'s own tables are missing: run bin/migrate"')
    done = run_program("worker.migrate", crm_only_url, tmp_path)
    assert (done.returncode, done.stdout.splitlines()) == (0, [f"done: {name}" for name in NAMES])
    again = run_program("worker.migrate", crm_only_url, tmp_path)
    assert (again.returncode, again.stdout) == (0, "nothing to do: the database is up to date\n")
    allowed = run_program("worker.campaign", crm_only_url, tmp_path, REDIS_URL=redis_url)
    assert allowed.returncode == 0, allowed.stderr


def test_no_database(tmp_path: Path) -> None:
    """bin/migrate without a database reports that in one line, not in a traceback."""
    done = run_program("worker.migrate", "postgresql://crm:hunter2@127.0.0.1:1/crm", tmp_path)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "hunter2" not in done.stderr
