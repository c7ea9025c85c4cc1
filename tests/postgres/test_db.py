"""The worker's connection to PostgreSQL: rows, transactions, prepared statements, JSON that Python cannot parse."""

from collections.abc import Iterator
from contextlib import closing
from datetime import datetime

import psycopg2
import psycopg2.errors
import psycopg2.extensions
import pytest

from worker.runtime.db import UNAVAILABLE, Database, UnreadableJson, is_unavailable

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
        assert db.execute_prepared("insert_item", statement, name="x", id=each) == {"name": f"x-{each} 5 %"}
    assert db.one("SELECT count(*) FROM pg_prepared_statements WHERE name = 'insert_item'") == {"count": 1}
    kill(connection)
    with pytest.raises(UNAVAILABLE):
        db.one("SELECT 1")
    assert db.execute_prepared("insert_item", statement, name="y", id=3) == {"name": "y-3 5 %"}


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


def test_a_refused_statement_is_not_an_outage(db: Database) -> None:
    """A lock or statement timeout is an OperationalError of psycopg2, but the server is there."""
    db.execute("SET statement_timeout = '20ms'")
    with pytest.raises(psycopg2.errors.QueryCanceled) as caught:
        db.one("SELECT pg_sleep(60)")
    assert isinstance(caught.value, UNAVAILABLE)
    assert not is_unavailable(caught.value)


def test_the_session(db: Database) -> None:
    """Sessions have UTC, a limit for each statement, a name, and commits that survive a crash."""
    shown = {name: db.one(f"SHOW {name}") for name in ("TimeZone", "statement_timeout", "lock_timeout")}
    assert [value for row in shown.values() if row for value in row.values()] == ["UTC", "5min", "30s"]
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


def test_other_json(db: Database) -> None:
    """All other JSON has Python's types."""
    text = '{"a": [1, 2.5, null, true, "é"]}'
    row = db.one("SELECT %(text)s::json AS plain, %(text)s::jsonb AS binary", text=text)
    assert row == {name: {"a": [1, 2.5, None, True, "é"]} for name in ("plain", "binary")}
