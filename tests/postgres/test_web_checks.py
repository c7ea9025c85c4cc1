"""The warnings of the web process: each with its cause, and none on healthy servers."""

import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.errors
import psycopg2.extensions
import pytest

from sandbox.redis import Redis
from worker.runtime.db import Database, queries
from worker.runtime.redis_client import connect
from worker.web.warning_checks import CONTRACT, WarningChecks, clock_warning, database_warnings, redis_warnings

PROJECT = Path(__file__).resolve().parents[2]
INDEXES = PROJECT / "worker" / "sql" / "migrations"

Connection = psycopg2.extensions.connection


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    with closing(Database(database_url, "test")) as made:
        yield made


def test_a_healthy_pair_of_servers_gives_no_warning(db: Database, redis_url: str) -> None:
    with closing(connect(redis_url)) as client:
        assert redis_warnings(client) == []
    assert database_warnings(db) == []
    assert clock_warning(0.3) is None


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_redis_that_may_evict_locks(new_redis: Callable[..., Redis], policy: str) -> None:
    """The warning names the policy and what to set, also where CONFIG is forbidden."""
    server = new_redis(options={"maxmemory-policy": policy, "rename-command": 'CONFIG ""'})
    with closing(server.client()) as client:
        (warning,) = redis_warnings(client)
    assert f"maxmemory-policy is {policy}" in warning
    assert "set it to noeviction" in warning


def test_a_redis_that_forbids_info(new_redis: Callable[..., Redis]) -> None:
    """There is no warning about a server that forbids INFO, as some hosts do."""
    server = new_redis(options={"maxmemory-policy": "allkeys-lru", "rename-command": 'INFO ""'})
    with closing(server.client()) as client:
        assert redis_warnings(client) == []


@pytest.mark.parametrize(
    ("offset_seconds", "said"),
    [
        (0.0, None),
        (2.0, None),
        (-2.0, None),
        (2.1, "2.1 s behind PostgreSQL's"),
        (-90.0, "90.0 s ahead of PostgreSQL's"),
    ],
)
def test_a_wrong_clock(offset_seconds: float, said: str | None) -> None:
    """By more than two seconds, and in which direction."""
    warning = clock_warning(offset_seconds)
    assert (warning is None) if said is None else (said in str(warning))


def test_commits_that_nobody_waits_for(database_url: str, connection: Connection) -> None:
    """The worker's own sessions have it on; the warning is about what other sessions begin with."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT format('ALTER DATABASE %I SET synchronous_commit = off', current_database())")
        [(statement,)] = cursor.fetchall()
        cursor.execute(statement)
    connection.commit()
    with closing(Database(database_url, "later")) as later:
        assert later.one("SHOW synchronous_commit") == {"synchronous_commit": "on"}
        (warning,) = database_warnings(later)
    assert "synchronous_commit is off" in warning
    assert "set it to on" in warning


def test_missing_columns_are_named(db: Database, connection: Connection) -> None:
    """All columns of a table in one sentence, each by its name; a column that is not needed is not mentioned."""
    with connection.cursor() as cursor:
        cursor.execute('ALTER TABLE "CallSettings" DROP COLUMN "businessDays", DROP COLUMN timezone')
        cursor.execute('ALTER TABLE "CallSettings" DROP COLUMN "openaiModel"')
        cursor.execute('ALTER TABLE "EmailLog" DROP COLUMN "to"')
    settings, log = database_warnings(db)
    assert settings.startswith('The CRM\'s table "CallSettings" lacks columns "businessDays", "timezone", which')
    assert log.startswith('The CRM\'s table "EmailLog" lacks column "to", which')


def test_missing_tables_are_named(db: Database, connection: Connection) -> None:
    with connection.cursor() as cursor:
        cursor.execute('DROP TABLE campaign_links, "EmailTemplate"')
    (warning,) = database_warnings(db)
    assert warning.startswith('The CRM\'s tables "EmailTemplate", "campaign_links" cannot be found:')


def test_another_database_altogether(databases: Any) -> None:
    """One sentence for all of the CRM's tables and one for the worker's."""
    name = databases.create()
    with closing(Database(databases.url_of(name), "test")) as db:
        tables, own = database_warnings(db)
    databases.drop(name)
    assert all(f'"{table}"' in tables for table in CONTRACT)
    assert own == "Jobs do not start: the worker's own tables are missing: run bin/migrate."


def test_tables_of_an_older_release(db: Database, connection: Connection) -> None:
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM worker.migration WHERE version > 1")
    (warning,) = database_warnings(db)
    assert "at version 1, this program needs" in warning
    assert warning.endswith("run bin/migrate.")


def created(name: str) -> tuple[str, str]:
    """The statement that creates an index, and the file that a warning has to name."""
    for path in INDEXES.glob("*.sql"):
        for statement in path.read_text("utf-8").split(";"):
            if f'"{name}"' in statement:
                return statement, f"worker/sql/migrations/{path.name}"
    raise AssertionError(name)


def test_missing_and_half_built_indexes(db: Database, connection: Connection) -> None:
    """Their names, tables and how to create them: after running what the warning says, it is gone."""
    with connection.cursor() as cursor:
        cursor.execute('DROP INDEX "worker_lead_quiet"')
        cursor.execute(
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = to_regclass('\"worker_campaign_due\"')"
        )
    half_built, missing = database_warnings(db)
    assert '"worker_campaign_due" is invalid' in half_built
    assert '"worker_lead_quiet" is missing, so jobs read the whole table "Lead"' in missing
    with connection.cursor() as cursor:
        cursor.execute('DROP INDEX CONCURRENTLY "worker_campaign_due"')
        for name, warning in (("worker_campaign_due", half_built), ("worker_lead_quiet", missing)):
            statement, path = created(name)
            assert warning.endswith(f"its CREATE INDEX in {path}.")
            cursor.execute(statement)
    assert database_warnings(db) == []


def test_every_index_of_the_worker_is_checked(db: Database, connection: Connection) -> None:
    """Also those of later migrations."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT indexname FROM pg_indexes WHERE schemaname = 'public' AND indexname LIKE 'worker\\_%'")
        names = {name for (name,) in cursor.fetchall()}
        assert len(names) > 10
        for name in names:
            cursor.execute(f'DROP INDEX "{name}"')
    assert {name for name in names if any(f'"{name}"' in each for each in database_warnings(db))} == names


def columns(connection: Connection) -> list[tuple[str, str]]:
    """Table and column of everything in the sandbox's copy of the CRM's schema."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT table_name::text, column_name::text FROM information_schema.columns WHERE table_schema = 'public'"
        )
        return cursor.fetchall()


def statements() -> list[str]:
    """All statements of worker/sql, with nulls as parameters."""
    found = []
    for path in sorted((PROJECT / "worker" / "sql").glob("*.sql")):
        for block in queries(path.stem).values():
            code = re.sub(r"--.*", "", block)
            code = re.sub(r"%\((now|\w+_at)\)s(?!::)", "NULL::timestamp", code)  # PostgreSQL would take some for text
            code = re.sub(r"%\(\w+\)s", "NULL", code).replace("%%", "%")
            found += [
                each
                for each in re.split(r";\s*(?:\n|$)", code)
                if each.strip() and not is_of_bin_suppress(each) and not is_of_the_engine(each)
            ]
    return found


def is_of_bin_suppress(statement: str) -> bool:
    """It copies, or reads a table of its own session: neither can be prepared here, nor reads a table of the CRM."""
    return "pg_temp." in statement or statement.lstrip().startswith(("COPY", "CREATE TEMP"))


def is_of_the_engine(statement: str) -> bool:
    """It makes or reads the tables of CAMPAIGN_ENGINE=procrastinate, which are not in this database."""
    return re.search(r"\bengine\b", statement) is not None


@contextmanager
def undone(connection: Connection) -> Iterator[psycopg2.extensions.cursor]:
    with connection.cursor() as cursor:
        cursor.execute("BEGIN")
        yield cursor
        cursor.execute("ROLLBACK")


def understood(cursor: psycopg2.extensions.cursor, statement: str) -> bool:
    """Whether PostgreSQL finds every column that the statement names; needs a transaction."""
    cursor.execute("SAVEPOINT asked")
    try:
        cursor.execute(f"PREPARE asked AS {statement}")
        cursor.execute("DEALLOCATE asked")
    except psycopg2.errors.UndefinedColumn:
        cursor.execute("ROLLBACK TO SAVEPOINT asked")
        return False
    return True


def test_the_list_is_what_the_statements_need(connection: Connection) -> None:
    """CONTRACT lists exactly the columns without which a statement fails."""
    every = statements()
    needed: dict[str, set[str]] = {}
    for table, column in columns(connection):
        with undone(connection) as cursor:
            cursor.execute(f'ALTER TABLE "{table}" RENAME COLUMN "{column}" TO renamed_by_this_test')
            if not all(understood(cursor, each) for each in every if column in each):
                needed.setdefault(table, set()).add(column)
    assert {table: set(listed.split()) for table, listed in CONTRACT.items()} == needed


def test_checks_run_once_a_minute_and_log_what_is_new(caplog: pytest.LogCaptureFixture) -> None:
    """A warning stays until its check no longer finds it; a check that fails keeps its earlier warnings."""
    now = [0.0]
    checks = WarningChecks(lambda: now[0])
    found = ["too full"]
    checks.run("disk", lambda: found)
    found.append("too slow")
    checks.run("disk", lambda: found)
    assert checks.warnings == ("too full",), "it is not run again within a minute"
    now[0] = 60.0
    checks.run("disk", lambda: found)
    assert checks.warnings == ("too full", "too slow")
    assert [record.getMessage() for record in caplog.records].count("a check found a problem") == 2
    now[0] = 120.0

    def broken() -> list[str]:
        raise psycopg2.OperationalError("no answer")

    with pytest.raises(psycopg2.OperationalError):
        checks.run("disk", broken)
    assert checks.warnings == ("too full", "too slow")
    checks.run("disk", list)
    assert checks.warnings == ()
