"""Migrations: they make and update the worker's own tables, and its indexes on the CRM's tables.

A migration is a numbered file in worker/sql/migrations; each runs once, in the order of the numbers. Most run in
one transaction. Those that begin with ``-- concurrently`` run statement by statement, so that indexes on the CRM's
tables are built without blocking the CRM. Migrating twice is safe; of two at the same time, the second one waits.

Through a connection pooler in transaction mode the lock belongs to a transaction that stays open, over a connection
of its own, and settings belong to the transactions: a pooled session has neither afterwards.
"""

import time
from contextlib import closing
from dataclasses import dataclass
from importlib import resources

import psycopg2
import psycopg2.extensions

from worker.errors import SchemaError, SettingsError, WorkerError
from worker.runtime.db import Database
from worker.runtime.engine import migrate_engine

ADVISORY_LOCK = 0x63726D77  # one number for all migrations of this product
WAIT_SECONDS = 600
LOCK_TIMEOUT = "5s"  # then the migration fails, so that the CRM's users do not queue behind it
_NO_LIMITS = "set_config('TimeZone', 'UTC', {is_local}), set_config('statement_timeout', '0', {is_local})"


@dataclass(frozen=True)
class Migration:
    """One numbered file."""

    version: int
    name: str
    sql: str

    @property
    def concurrently(self) -> bool:
        return self.sql.startswith("-- concurrently")

    def statements(self) -> list[str]:
        """The single statements of a ``-- concurrently`` file."""
        code = "\n".join(line for line in self.sql.splitlines() if not line.startswith("--"))
        return [statement.strip() for statement in code.split(";") if statement.strip()]


def migrations() -> list[Migration]:
    """All migrations, in their order."""
    folder = resources.files("worker").joinpath("sql/migrations")
    paths = sorted((path for path in folder.iterdir() if path.name.endswith(".sql")), key=lambda path: path.name)
    return [Migration(int(path.name[:4]), path.name[5:-4], path.read_text("utf-8")) for path in paths]


def require_current(db: Database) -> None:
    """Raises SchemaError when the worker's tables are missing or older than this program."""
    newest = migrations()[-1].version
    found = db.one("SELECT to_regclass('worker.migration') IS NOT NULL AS present")
    row = db.one("SELECT max(version) AS version FROM worker.migration") if found and found["present"] else None
    version = (row and row["version"]) or 0
    if version < newest:
        state = f"at version {version}, this program needs {newest}" if version else "missing"
        raise SchemaError(f"the worker's own tables are {state}: run bin/migrate")


def migrate_database(database: Database, *, engine: bool = False) -> list[str]:
    """As ``migrate``, also through a connection pooler in transaction mode. Raises SettingsError if it cannot."""
    with closing(database.connect()) as connection:
        if not database.pooled:
            return migrate(connection, engine=engine)
        with closing(database.connect()) as turn, connection.cursor() as cursor, turn.cursor() as lock:
            _require_no_limits(cursor, database.schema)
            # Idle without a snapshot: building an index does not wait for this transaction.
            lock.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
            lock.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
            _take_turn(lock, "pg_try_advisory_xact_lock")
            return _run(cursor, lock, engine=engine)


def migrate(connection: psycopg2.extensions.connection, *, engine: bool = False) -> list[str]:
    """Brings the database up to date and returns the names of the migrations that were run.

    ``engine``: also the tables of CAMPAIGN_ENGINE=procrastinate.
    """
    connection.autocommit = True
    with connection.cursor() as cursor:
        # No limits: indexes are built concurrently, so nobody waits for them, and a large one takes long.
        cursor.execute(f"SELECT {_NO_LIMITS.format(is_local='false')}, set_config('lock_timeout', '0', false)")
        _take_turn(cursor, "pg_try_advisory_lock")
        try:
            return _run(cursor, cursor, engine=engine)
        finally:
            cursor.execute("SELECT pg_advisory_unlock(%s)", (ADVISORY_LOCK,))


def _require_no_limits(cursor: psycopg2.extensions.cursor, schema: str | None) -> None:
    """What is built concurrently runs in no transaction, so it has the settings that pooled sessions begin with."""
    cursor.execute(
        "SELECT current_setting('statement_timeout'), current_setting('lock_timeout'), "
        "%(schema)s IS NULL OR current_schema() IS NOT DISTINCT FROM %(schema)s",
        {"schema": schema},
    )
    statement, lock, is_in_schema = cursor.fetchone() or ("0", "0", True)
    problems = [f"statement_timeout is {statement}"] if statement != "0" else []
    problems += [f"lock_timeout is {lock}"] if lock != "0" else []
    problems += [] if is_in_schema else ["search_path does not begin with the schema of DATABASE_URL"]
    if problems:
        raise SettingsError(
            f"bin/migrate cannot work through this connection pooler: {', '.join(problems)} in its sessions. Give "
            "bin/migrate a DATABASE_URL that leads to PostgreSQL itself, or to a pooler in session mode"
        )


def _take_turn(cursor: psycopg2.extensions.cursor, function: str) -> None:
    """Takes the advisory lock, by polling: a session that waits inside PostgreSQL would hold a snapshot, and
    CREATE INDEX CONCURRENTLY of the other process would wait for that snapshot."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        cursor.execute(f"SELECT {function}(%s)", (ADVISORY_LOCK,))
        if (cursor.fetchone() or (False,))[0]:
            return
        if time.monotonic() > deadline:
            raise WorkerError(f"another bin/migrate has been running for {WAIT_SECONDS} s: check that one first")
        time.sleep(0.2)


def _run(cursor: psycopg2.extensions.cursor, lock: psycopg2.extensions.cursor, *, engine: bool) -> list[str]:
    """Runs what has not run yet, and returns the names. ``lock``: the connection that has the advisory lock."""
    cursor.execute("CREATE SCHEMA IF NOT EXISTS worker")
    cursor.execute(
        "CREATE TABLE IF NOT EXISTS worker.migration (version integer PRIMARY KEY, name text NOT NULL, "
        "applied_at timestamp(3) NOT NULL DEFAULT (now() AT TIME ZONE 'UTC'))"
    )
    cursor.execute("SELECT version FROM worker.migration")
    applied = {version for (version,) in cursor.fetchall()}
    todo = [migration for migration in migrations() if migration.version not in applied]
    for migration in todo:
        lock.execute("SELECT 1")  # fails when the lock is lost with its connection
        _apply(cursor, migration)
    done = [f"{migration.version:04d}_{migration.name}" for migration in todo]
    return done + (migrate_engine(cursor) if engine else [])


def _apply(cursor: psycopg2.extensions.cursor, migration: Migration) -> None:
    record = "INSERT INTO worker.migration (version, name) VALUES (%s, %s)"
    if not migration.concurrently:
        cursor.execute("BEGIN")
        try:
            cursor.execute(
                f"SELECT {_NO_LIMITS.format(is_local='true')}, set_config('lock_timeout', '{LOCK_TIMEOUT}', true)"
            )
            cursor.execute(migration.sql)
            cursor.execute(record, (migration.version, migration.name))
        except psycopg2.Error:
            cursor.execute("ROLLBACK")
            raise
        cursor.execute("COMMIT")
        return
    _drop_invalid_indexes(cursor)
    for statement in migration.statements():
        cursor.execute(statement)
    cursor.execute(record, (migration.version, migration.name))


def _drop_invalid_indexes(cursor: psycopg2.extensions.cursor) -> None:
    """An interrupted CREATE INDEX CONCURRENTLY leaves an unusable index, which has to be built again."""
    cursor.execute(
        "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
        "JOIN pg_namespace n ON n.oid = c.relnamespace WHERE NOT i.indisvalid AND c.relname LIKE 'worker\\_%'"
    )
    for (name,) in cursor.fetchall():
        cursor.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
