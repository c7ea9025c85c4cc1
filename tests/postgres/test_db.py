"""The worker's connection to PostgreSQL: rows, transactions, prepared statements, JSON that Python cannot parse."""

import json
import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import datetime, timedelta
from urllib.parse import urlsplit

import psycopg2
import psycopg2.errors
import psycopg2.extensions
import pytest
from transaction_pooler import TransactionPooler

from worker.runtime import db as db_module
from worker.runtime.clock import utc_now
from worker.runtime.db import (
    UNAVAILABLE,
    Database,
    DatabaseReadOnly,
    StatementTooLarge,
    is_read_only,
    is_unavailable,
)
from worker.runtime.unreadable_json import UnreadableJson, UnreadablePart

Connection = psycopg2.extensions.connection
DIGITS = "SELECT repeat('1', 100000)::{} AS value"
LEVELS = "SELECT (repeat('[', 3000) || repeat(']', 3000))::{} AS value"


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    with closing(Database(database_url, "crm-worker test")) as made:
        made.execute("CREATE TABLE item (id integer PRIMARY KEY, name text)")
        yield made


def test_reading_and_writing(db: Database) -> None:
    """A statement returns its rows by the names of their columns; one without rows returns none."""
    assert db.execute("INSERT INTO item VALUES (1, 'a'), (2, 'b')") == []
    assert db.execute("INSERT INTO item VALUES (%(id)s, %(name)s) RETURNING id", id=3, name="c") == [{"id": 3}]
    assert db.execute_one("UPDATE item SET name = 'd' WHERE id = 3 RETURNING name") == {"name": "d"}
    assert db.execute_one("UPDATE item SET name = 'd' WHERE id = 9 RETURNING name") is None
    assert db.all("SELECT id, name FROM item WHERE id < %(below)s ORDER BY id", below=3) == [
        {"id": 1, "name": "a"},
        {"id": 2, "name": "b"},
    ]
    assert db.one("SELECT name FROM item ORDER BY id") == {"name": "a"}
    assert db.one("SELECT name FROM item WHERE id = 9") is None


def test_a_transaction(db: Database, database_url: str) -> None:
    """What is done in a transaction is there for others at its end, and not at all when it fails."""
    with closing(Database(database_url, "another")) as other:
        with db.transaction():
            db.execute("INSERT INTO item VALUES (1, 'a')")
            assert other.all("SELECT id FROM item") == []
        assert other.all("SELECT id FROM item") == [{"id": 1}]
        with pytest.raises(psycopg2.errors.UniqueViolation):
            insert_in_a_transaction(db, [2, 1])
        assert other.all("SELECT id FROM item") == [{"id": 1}]
    assert db.execute("INSERT INTO item VALUES (3, 'c') RETURNING id") == [{"id": 3}]


def insert_in_a_transaction(db: Database, numbers: list[int]) -> None:
    with db.transaction():
        for number in numbers:
            db.execute("INSERT INTO item VALUES (%(number)s, 'x')", number=number)


def test_a_prepared_statement(db: Database, connection: Connection) -> None:
    """It is prepared once for each connection, takes parameters by name in any order, and more than once."""
    number = "CAST(%(id)s AS integer)"
    statement = (
        f"INSERT INTO item (name, id) VALUES (%(name)s || '-' || {number} || ' 5 %%', {number}) RETURNING name"
    )
    for each in range(3):
        assert db.execute_one_prepared("insert_item", statement, name="x", id=each) == {"name": f"x-{each} 5 %"}
    assert db.one("SELECT count(*) FROM pg_prepared_statements WHERE name = 'insert_item'") == {"count": 1}
    kill(connection)
    with pytest.raises(UNAVAILABLE):
        db.one("SELECT 1")
    assert db.execute_one_prepared("insert_item", statement, name="y", id=3) == {"name": "y-3 5 %"}


def kill(connection: Connection) -> None:
    """Ends the worker's session, as a server does when it is stopped."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'crm-worker test' AND datname = current_database()"
        )
        assert cursor.fetchall() == [(True,)]


def test_a_lost_connection(db: Database, connection: Connection) -> None:
    """The call that notices it raises, and the next one works on a new connection."""
    before = db.one("SELECT pg_backend_pid() AS pid")
    kill(connection)
    with pytest.raises(UNAVAILABLE) as caught:
        db.one("SELECT 1")
    assert is_unavailable(caught.value)
    assert db.one("SELECT pg_backend_pid() AS pid") != before


def test_a_process_that_is_frozen_in_a_transaction(
    database_url: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its locks are others' after a while; thawed, it has written nothing, and goes on with a new connection."""
    monkeypatch.setattr("worker.runtime.sessions.IDLE_SECONDS", 1)
    with closing(Database(database_url, "crm-worker frozen")) as frozen, connection.cursor() as cursor:
        frozen.execute("CREATE TABLE item (id integer PRIMARY KEY, name text); INSERT INTO item VALUES (1, 'before')")

        def freeze() -> None:
            with frozen.transaction():
                frozen.execute("UPDATE item SET name = 'frozen'")
                cursor.execute("SET lock_timeout = '20s'; UPDATE item SET name = name || ' and after'")
                frozen.execute("UPDATE item SET name = 'thawed'")

        with pytest.raises(UNAVAILABLE) as caught:
            freeze()
        assert is_unavailable(caught.value)
        assert frozen.all("SELECT name FROM item") == [{"name": "before and after"}]


def test_a_refused_statement_is_not_an_outage(db: Database) -> None:
    """A lock or statement timeout is an OperationalError of psycopg2, but the server is there."""
    db.execute("SET statement_timeout = '20ms'")
    with pytest.raises(psycopg2.errors.QueryCanceled) as caught:
        db.one("SELECT pg_sleep(60)")
    assert isinstance(caught.value, UNAVAILABLE)
    assert not is_unavailable(caught.value)


def test_the_session(db: Database) -> None:
    """Sessions have UTC, a limit for each statement, a name, and commits that survive a crash."""
    names = ("TimeZone", "statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
    shown = {name: db.one(f"SHOW {name}") for name in names}
    assert [value for row in shown.values() if row for value in row.values()] == ["UTC", "5min", "30s", "20s"]
    assert db.one("SHOW application_name") == {"application_name": "crm-worker test"}
    assert db.one("SHOW synchronous_commit") == {"synchronous_commit": "on"}
    at = db.one("SELECT '2026-01-31T12:00:00+05:30'::timestamptz::timestamp AS at")
    assert at == {"at": datetime.fromisoformat("2026-01-31T06:30:00")}


@pytest.mark.parametrize("statement", [DIGITS, LEVELS], ids=["digits", "levels"])
@pytest.mark.parametrize("kind", ["json", "jsonb"])
def test_json_that_python_cannot_parse(db: Database, connection: Connection, kind: str, statement: str) -> None:
    """A number of 100,000 digits, or 3,000 nested lists, becomes UnreadableJson, on the worker's connection only."""
    row = db.one(statement.format(kind))
    assert row
    assert isinstance(row["value"], UnreadableJson)
    with connection.cursor() as cursor:
        cursor.execute(statement.format(kind))
        with pytest.raises((ValueError, RecursionError)):
            cursor.fetchall()


@pytest.mark.parametrize("kind", ["json", "jsonb"])
@pytest.mark.parametrize(
    "part",
    ["repeat('[', 3000) || repeat(']', 3000)", "repeat('{\"a\":', 2000) || '1' || repeat('}', 2000)",
     "repeat('1', 100000)", "'-' || repeat('1', 5000)"],
    ids=["lists", "objects", "digits", "negative"],
)  # fmt: skip
def test_an_object_with_a_part_that_python_cannot_parse(db: Database, kind: str, part: str) -> None:
    """Its other parts can be used; the part itself has a type that no setting has, and is true."""
    for prefix, depth in (("", 0), ('{"deep": ', 1)):
        text = f"""'{{"a": ["]}}", "\\\\\\"{{["], "bad": {prefix}' || {part} || '{"}" * depth}, "b": {{"c": 2}}}}'"""
        row = db.one(f"SELECT ({text})::{kind} AS value".replace("%", "%%"))
        assert row
        value = row["value"]
        assert value["a"] == ["]}", '\\"{[']
        assert value["b"] == {"c": 2}
        bad = value["bad"]
        for _ in range(200):
            if not isinstance(bad, dict | list):
                break
            bad = bad["a" if "a" in bad else "deep"] if isinstance(bad, dict) else bad[0]
        assert type(bad) is UnreadablePart
        assert bad
        assert json.dumps(bad) == '["JSON that cannot be parsed"]'


def test_other_json(db: Database) -> None:
    """All other JSON has Python's types."""
    text = '{"a": [1, 2.5, null, true, "é"]}'
    row = db.one("SELECT %(text)s::json AS plain, %(text)s::jsonb AS binary", text=text)
    assert row == {name: {"a": [1, 2.5, None, True, "é"]} for name in ("plain", "binary")}


def pid(db: Database) -> object:
    row = db.one("SELECT pg_backend_pid() AS pid")
    return row and row["pid"]


def set_read_only(connection: Connection, value: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_database()")
        name = cursor.fetchone()[0]
        cursor.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = {value}')


@pytest.fixture
def read_only(db: Database, connection: Connection) -> Database:
    """Its session began while the database was read-only, as a reader is; new sessions are not."""
    set_read_only(connection, "on")
    db.close()
    assert db.one("SELECT 1 AS one") == {"one": 1}
    set_read_only(connection, "off")
    return db


WRITE = "INSERT INTO item VALUES (1, 'a')"


def test_a_read_only_session_is_left_at_the_first_write(read_only: Database) -> None:
    """The server cannot work for now, as when it is lost; the next statement connects again."""
    with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction) as caught:
        read_only.execute(WRITE)
    assert is_unavailable(caught.value)
    assert is_read_only(caught.value)
    assert read_only.execute(WRITE + " RETURNING id") == [{"id": 1}]


def test_a_read_only_session_is_left_in_a_transaction(read_only: Database) -> None:
    """The rest of the transaction is not run on its own on the new connection."""

    def careless() -> None:
        with read_only.transaction():
            with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
                read_only.execute(WRITE)
            read_only.execute("INSERT INTO item VALUES (2, 'b')")

    with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
        careless()
    assert read_only.all("SELECT id FROM item") == []
    read_only.execute(WRITE)


def test_a_read_only_session_is_left_when_the_time_is_read(read_only: Database) -> None:
    """So a job that has nothing to write notices it, too."""
    with pytest.raises(DatabaseReadOnly) as caught:
        read_only.read_time()
    assert is_unavailable(caught.value)
    assert is_read_only(caught.value)
    read_only.read_time()
    read_only.execute(WRITE)


def test_the_time_of_the_database(db: Database) -> None:
    """UTC without a zone, at the moment of asking and not of the transaction's begin."""
    assert abs(db.read_time() - utc_now()) < timedelta(seconds=60)
    with db.transaction():
        first = db.read_time()
        assert db.read_time() > first


def ignoring_errors(db: Database, *statements: str) -> None:
    with db.transaction():
        for each in statements:
            try:
                db.execute(each)
            except psycopg2.Error:
                logging.getLogger(__name__).info("ignored")


def test_an_aborted_transaction_fails_with_its_first_error(db: Database) -> None:
    """Also when a careless caller goes on after it, commits, or meets another error; nothing is half done."""
    bad, good = "SELECT 1 / 0", "INSERT INTO item VALUES (1, 'a')"
    for statements in ([bad, good], [good, bad], [bad], [good, bad, "SELECT 'x'::integer", good]):
        with pytest.raises(psycopg2.errors.DivisionByZero):
            ignoring_errors(db, *statements)
        assert db.all("SELECT id FROM item") == []
    ignoring_errors(db, good)
    assert db.all("SELECT id FROM item") == [{"id": 1}]


def after_the_first(db: Database, second: Callable[[], object]) -> None:
    with db.transaction():
        db.execute("INSERT INTO item VALUES (1, 'a')")
        second()


def test_a_rollback_that_fails_hides_nothing(db: Database, connection: Connection) -> None:
    """The error of the code inside comes out, although its connection is lost when the ROLLBACK is sent."""

    def fail() -> None:
        kill(connection)
        raise ZeroDivisionError("the first cause")

    with pytest.raises(ZeroDivisionError, match="the first cause"):
        after_the_first(db, fail)
    assert db.all("SELECT id FROM item") == []


def test_a_connection_lost_in_a_transaction(db: Database, connection: Connection) -> None:
    """The statement that notices it raises, and so does the transaction; nothing of it is done."""

    def careless() -> None:
        kill(connection)
        for number in (2, 3):
            with pytest.raises(UNAVAILABLE):
                db.execute("INSERT INTO item VALUES (%(number)s, 'x')", number=number)

    with pytest.raises(UNAVAILABLE):
        after_the_first(db, careless)
    assert db.all("SELECT id FROM item") == []


def test_a_statement_that_is_too_large(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused before it is sent, and the connection stays: PostgreSQL would close it, as in an outage."""
    monkeypatch.setattr(db_module, "STATEMENT_MAX_BYTES", 1_000_000)
    before = pid(db)
    for size, largest in ((999_900, True), (1_000_001, False)):
        if largest:
            assert db.one("SELECT length(%(text)s) AS length", text="x" * size) == {"length": size}
            continue
        with pytest.raises(StatementTooLarge) as caught:
            db.execute("SELECT length(%(text)s)", text="x" * size)
        assert not is_unavailable(caught.value)
    assert pid(db) == before


@pytest.fixture
def silent_host() -> Iterator[str]:
    """Host and port that answer nothing to those who connect, as a machine does that vanished."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        address = listener.getsockname()
        for _ in range(4):  # more than it takes: from now on the kernel drops what comes
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(address)
        yield f"127.0.0.1:{address[1]}"


def test_a_host_that_does_not_answer(silent_host: str, database_url: str) -> None:
    """After its share of time the next host in DATABASE_URL is asked."""
    parts = urlsplit(database_url)
    user, _, host = parts.netloc.rpartition("@")
    query = "target_session_attrs=read-write&connect_timeout=600"
    url = parts._replace(netloc=f"{user}@{silent_host},{host}", query=query).geturl()
    began = time.monotonic()
    with closing(Database(url, "crm-worker test")) as database:
        database.read_time()
    assert 4 < time.monotonic() - began < 60


@pytest.fixture
def pooler(databases: object, database_url: str) -> Iterator[TransactionPooler]:
    """With three server connections, so that each transaction runs in another session than the one before."""
    with closing(TransactionPooler(database_url)) as made:
        others = [psycopg2.connect(made.url) for _ in range(2)]
        yield made
        for each in others:
            each.close()


@pytest.mark.parametrize("parameters", ["", "pgbouncer=true&schema=crm", "schema=crm"])
def test_a_pooler_in_transaction_mode(
    parameters: str, pooler: TransactionPooler, db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Each statement has the worker's settings, prepared statements work, and sessions stay unchanged."""
    db.execute("CREATE SCHEMA crm")
    db.execute("CREATE TABLE crm.item (id integer PRIMARY KEY, name text)")
    mark = "&" if "?" in pooler.url else "?"
    with closing(Database(pooler.url + mark + parameters, "crm-worker pooled")) as pooled:
        assert abs(pooled.read_time() - utc_now()) < timedelta(seconds=60)
        pids = set()
        for number in range(6):
            row = pooled.one(
                "SELECT current_setting('TimeZone') AS zone, current_setting('statement_timeout') AS most, "
                "current_setting('lock_timeout') AS lock, pg_backend_pid() AS pid"
            )
            assert row
            pids.add(row.pop("pid"))
            assert row == {"zone": "UTC", "most": "5min", "lock": "30s"}
            statement = "INSERT INTO item VALUES (%(id)s, %(name)s || '%%') RETURNING name"
            assert pooled.execute_one_prepared("insert_item", statement, id=number, name="a") == {"name": "a%"}
            with pooled.transaction():
                assert pooled.one("SELECT current_setting('TimeZone') AS zone") == {"zone": "UTC"}
                pooled.execute("UPDATE item SET name = 'b' WHERE id = %(id)s", id=number)
            with pytest.raises(psycopg2.errors.UniqueViolation):
                pooled.execute("INSERT INTO item VALUES (%(id)s, 'c')", id=number)
        assert len(pids) > 1
        assert pooled.one("SELECT count(*) FROM item WHERE name = 'b'") == {"count": 6}
    rows = db.one(f"SELECT count(*) FROM {'crm.' if 'schema' in parameters else ''}item")
    assert rows == {"count": 6}
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == ("pgbouncer" not in parameters)
    with closing(psycopg2.connect(pooler.url)) as other, other.cursor() as cursor:
        for _ in range(4):
            cursor.execute("SHOW TimeZone")
            assert cursor.fetchone() == ("Asia/Kolkata",)
            other.commit()
