"""A statement is given up when its server is frozen, and never because it takes long."""

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg2
import psycopg2.extensions
import pytest

from sandbox.postgres import Postgres
from sandbox.servers import ServerMissing
from worker.runtime.answer_watch import LATE_SECONDS
from worker.runtime.db import Database, is_unavailable

CONNECTIONS = 10
DEADLINE_SECONDS = 60.0
GIVEN_UP = "PostgreSQL answers nothing any more, its connection is given up"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Postgres]:
    made = Postgres(tmp_path / "postgres", fsync=False, options={"max_connections": str(CONNECTIONS)})
    try:
        made.start()
    except ServerMissing as error:
        pytest.skip(str(error))
    yield made
    made.kill()
    made.remove()


@pytest.mark.parametrize("in_transaction", [False, True])
def test_a_frozen_server(in_transaction: bool, server: Postgres, caplog: pytest.LogCaptureFixture) -> None:
    """The statement fails as unavailable, which is said with the server; the next one finds the server again."""
    with closing(Database(server.url, "test")) as database:
        assert database.one("SELECT 1 AS one") == {"one": 1}
        ended = threading.Event()
        errors: list[psycopg2.Error] = []

        def ask() -> None:
            try:
                if in_transaction:
                    with database.transaction():
                        database.execute("SELECT 1")
                else:
                    database.execute("SELECT 1")
            except psycopg2.Error as error:
                errors.append(error)
            ended.set()

        server.freeze()
        asking = threading.Thread(target=ask)
        asking.start()
        assert ended.wait(DEADLINE_SECONDS)
        asking.join()
        server.thaw()
        assert [is_unavailable(error) for error in errors] == [True]
        said = [record.args for record in caplog.records if record.getMessage() == GIVEN_UP]
        assert [dict(each)["server"] for each in said] == [f"127.0.0.1:{server.port}"]  # type: ignore[call-overload]
        assert database.one("SELECT 2 AS two") == {"two": 2}


def connections(server: Postgres) -> list[psycopg2.extensions.connection]:
    """All that the server has left."""
    made: list[psycopg2.extensions.connection] = []
    try:
        while len(made) < CONNECTIONS:
            made.append(psycopg2.connect(server.url))
    except psycopg2.OperationalError:
        return made
    pytest.fail("the server has more connections than it should")


def test_a_statement_that_takes_long(server: Postgres, caplog: pytest.LogCaptureFixture) -> None:
    """It goes on while the server answers newcomers, be it that it has no connection for them."""
    with closing(Database(server.url, "test")) as database:
        assert database.one("SELECT 1 AS one") == {"one": 1}
        others = connections(server)
        slept = database.one("SELECT pg_sleep(%(seconds)s)::text AS slept", seconds=2 * LATE_SECONDS + 2)
        assert slept == {"slept": ""}
    for each in others:
        each.close()
    assert [record for record in caplog.records if record.getMessage() == GIVEN_UP] == []
