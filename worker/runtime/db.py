"""PostgreSQL: one kept connection, named statements, short transactions.

A connection runs in autocommit: a single statement is its own transaction, and ``transaction()`` groups several.
Sessions run in UTC, because the CRM's times have no zone. When the server is lost or cannot work (read-only, too few
resources), the call that notices it raises an error for which ``is_unavailable`` is true, and the next call connects
again: behind the same address there may be another server by then.

Through a connection pooler in transaction mode (DATABASE_URL with ``?pgbouncer=true``, or noticed by itself) each
transaction may run in another session. Then nothing is left in sessions: each statement brings its settings along.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import datetime
from functools import cache
from importlib import resources
from typing import Any

import psycopg2
import psycopg2.extensions

from worker.runtime.database_url import parse_database_url
from worker.runtime.sessions import Sessions

UNAVAILABLE = (psycopg2.OperationalError, psycopg2.InterfaceError)  # what a lost or missing server raises
READ_ONLY_CODE = "25006"
# SQLSTATEs of a server that cannot work: connection failed, too few resources, shut down; takes no writes, disk error
# 25P03, 25P04: PostgreSQL ended the session, because the process stood still in a transaction for too long
_UNAVAILABLE_CODES = ("08", "53", "57P", READ_ONLY_CODE, "58030", "25P03", "25P04")
_TEMPORARY_FILES_CODE = "53400"  # a limit that one statement exceeded
_ABORTED_TRANSACTION_CODE = "25P02"
_PREPARED_ELSEWHERE_CODES = ("26000", "42P05")  # a prepared statement is missing, or is there already

STATEMENT_TIMEOUT_SECONDS = 300  # building the targets of a million recipients takes about 20
# PostgreSQL closes the connection at 1 GB, which looks like an outage, and needs several times as much memory before
STATEMENT_MAX_BYTES = 256 << 20

_PARAMETER = re.compile(r"%\((\w+)\)s")

Row = dict[str, Any]


class DatabaseReadOnly(psycopg2.OperationalError):
    """The server answers and takes no writes: a standby, or a session that began while it was read-only."""


class StatementTooLarge(psycopg2.DataError):
    """A statement is larger than what PostgreSQL can be sent: the fault of its rows, not of the server."""


def is_unavailable(error: psycopg2.Error) -> bool:
    """Whether the server itself cannot work now: lost, missing, read-only, or without resources.

    False: it has only refused a statement (a timeout, a lock, a row or a statement that is too large), and other
    statements can be expected to work.
    """
    code = error.pgcode
    if code is None:
        return isinstance(error, UNAVAILABLE) and "invalid message length" not in str(error)
    return code.startswith(_UNAVAILABLE_CODES) and code != _TEMPORARY_FILES_CODE


def is_read_only(error: psycopg2.Error) -> bool:
    """Whether the server answers and takes no writes; ``is_unavailable`` is true, too."""
    return isinstance(error, DatabaseReadOnly) or error.pgcode == READ_ONLY_CODE


@cache
def queries(job: str) -> Mapping[str, str]:
    """The named statements of ``worker/sql/<job>.sql``: blocks that begin with ``-- name: <name>``."""
    source = _sql(job)
    blocks = re.split(r"^-- name: (\w+).*$", source, flags=re.MULTILINE)[1:]
    return dict(zip(blocks[::2], (block.strip() for block in blocks[1::2]), strict=True))


def _sql(name: str) -> str:
    """The text of ``worker/sql/<name>.sql``. A line ``-- include: <file>`` is replaced by the text of that file."""
    source = resources.files("worker").joinpath(f"sql/{name}.sql").read_text(encoding="utf-8")
    return re.sub(r"^ *-- include: (\w+)$", lambda found: _sql(found[1]).rstrip(), source, flags=re.MULTILINE)


class Database:
    """One program's connection to the CRM's database."""

    def __init__(
        self,
        url: str,
        application_name: str,
        *,
        statement_seconds: float = STATEMENT_TIMEOUT_SECONDS,
        pooled: bool = False,
    ) -> None:
        """Does not connect yet. Raises SettingsError.

        ``statement_seconds``: the limit of one statement. ``pooled``: it is known that a pooler is in between.
        """
        self._sessions = Sessions(parse_database_url(url), application_name, statement_seconds, pooled=pooled)
        self._connection: psycopg2.extensions.connection | None = None
        self._connections = 0  # how many were made
        self.timeline = ""  # that claims rely on, see timeline.py; empty: any
        self._backend_pid = 0  # of the server's process behind the connection when it was made
        self._prepared: dict[str, str] = {}  # EXECUTE statements of what this connection has prepared, by name
        self._in_transaction = False
        self._first_error: psycopg2.Error | None = None  # of the present transaction

    def all(self, statement: str, /, **parameters: Any) -> list[Row]:
        """Runs one statement that reads, and returns its rows."""
        return self.execute(statement, **parameters)

    def one(self, statement: str, /, **parameters: Any) -> Row | None:
        """Runs one statement that reads, and returns its first row, None when there is none."""
        return self.execute_one(statement, **parameters)

    def execute(self, statement: str, /, **parameters: Any) -> list[Row]:
        """Runs one statement that writes, and returns the rows that its RETURNING or SELECT names."""
        connection = self._connected()
        with self._errors_seen(), connection.cursor() as cursor:
            text: bytes = cursor.mogrify(statement, parameters)
            if len(text) > STATEMENT_MAX_BYTES:
                raise StatementTooLarge(f"a statement of {len(text):,} bytes, of at most {STATEMENT_MAX_BYTES:,}")
            if self._sessions.pooled and not self._in_transaction:
                text = self._sessions.of_transaction(connection) + b"; " + text  # together one transaction
            cursor.execute(text)
            if cursor.description is None:
                return []
            names = [column.name for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def execute_one(self, statement: str, /, **parameters: Any) -> Row | None:
        """Runs one statement that writes, and returns its first row, None when there is none."""
        rows = self.execute(statement, **parameters)
        return rows[0] if rows else None

    def execute_prepared(self, name: str, statement: str, /, **parameters: Any) -> list[Row]:
        """As ``execute``, for a long statement that runs often: PostgreSQL parses it once for each connection.

        PostgreSQL infers the type of each parameter from its first use in the statement.
        """
        connection = self._connected()
        if self._sessions.pooled:
            return self.execute(statement, **parameters)
        try:
            if name not in self._prepared:
                self._prepare(connection, name, statement)
            return self.execute(self._prepared[name], **parameters)
        except psycopg2.Error as error:
            if error.pgcode not in _PREPARED_ELSEWHERE_CODES or self._in_transaction:
                raise
            self._use_pooler()  # nothing was done
            return self.execute(statement, **parameters)

    def execute_one_prepared(self, name: str, statement: str, /, **parameters: Any) -> Row | None:
        """As ``execute_prepared``: its first row, None when there is none."""
        rows = self.execute_prepared(name, statement, **parameters)
        return rows[0] if rows else None

    def read_time(self) -> datetime:
        """The database's time, in UTC without a zone. Raises DatabaseReadOnly when the session takes no writes."""
        row = self.one(
            "SELECT statement_timestamp() AT TIME ZONE 'UTC' AS now, pg_backend_pid() AS pid, "
            "current_setting('transaction_read_only') = 'on' AS read_only"
        )
        assert row is not None  # noqa: S101 - a SELECT without FROM has one row
        if row["read_only"]:
            self.close()
            raise DatabaseReadOnly("the session is read-only")
        if row["pid"] != self._backend_pid and not self._sessions.pooled:
            self._use_pooler()
        now: datetime = row["now"]
        return now

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Groups the statements inside into one transaction.

        When one of them fails, the transaction fails with that error, whatever happens afterwards.
        """
        connection = self._connected()
        with connection.cursor() as cursor:
            self._in_transaction, self._first_error = True, None
            try:
                settings = self._sessions.of_transaction(connection) if self._sessions.pooled else b""
                with self._errors_seen():
                    cursor.execute(b"BEGIN; " + settings)
                yield
                self._commit(cursor)
            except BaseException:
                self._roll_back(cursor)
                raise
            finally:
                self._in_transaction, self._first_error = False, None

    @contextmanager
    def long_transaction(self) -> Iterator[psycopg2.extensions.cursor]:
        """A transaction whose statements have no time limit, over a connection of its own, for COPY and the like."""
        with closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(b"BEGIN; " + self._sessions.of_transaction(connection, statement_seconds=0))
            yield cursor
            cursor.execute("COMMIT")

    def connect(self) -> psycopg2.extensions.connection:
        """A new connection, which the caller has to close. Through a pooler it may have another session each time."""
        return self._sessions.open()[0]

    def connection_number(self) -> int:
        """Another one for each connection; connects if there is none."""
        self._connected()
        return self._connections

    @property
    def pooled(self) -> bool:
        """Whether each transaction may run in another session: known once connected."""
        return self._sessions.pooled

    @property
    def schema(self) -> str | None:
        """The schema that DATABASE_URL names."""
        return self._sessions.schema

    def close(self) -> None:
        """Closes the connection; the next call connects again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextmanager
    def _errors_seen(self) -> Iterator[None]:
        """Raises a transaction's first error, not what follows from it; gives up the connection to a server that
        cannot work."""
        try:
            yield
        except psycopg2.Error as error:
            if is_unavailable(error):
                self.close()
            if not self._in_transaction:
                raise
            if self._first_error is not None and error.pgcode == _ABORTED_TRANSACTION_CODE:
                raise self._first_error from None
            self._first_error = self._first_error or error
            raise

    def _commit(self, cursor: psycopg2.extensions.cursor) -> None:
        if self._first_error is not None:  # PostgreSQL would answer COMMIT with a silent ROLLBACK
            raise self._first_error
        with self._errors_seen():
            cursor.execute("COMMIT")

    def _roll_back(self, cursor: psycopg2.extensions.cursor) -> None:
        """Raises nothing: what made the transaction fail matters more."""
        try:
            if not cursor.connection.closed:
                cursor.execute("ROLLBACK")
        except psycopg2.Error:
            self.close()  # ends the transaction, too

    def _connected(self) -> psycopg2.extensions.connection:
        if self._connection is None or self._connection.closed:
            if self._in_transaction:  # the rest of it must not run on its own
                raise self._first_error or psycopg2.InterfaceError("the transaction's connection is lost")
            self._connection, self._backend_pid = self._sessions.open()
            self._connections += 1
            self._prepared = {}
        return self._connection

    def _prepare(self, connection: psycopg2.extensions.connection, name: str, statement: str) -> None:
        order = list(dict.fromkeys(_PARAMETER.findall(statement)))
        numbered = _PARAMETER.sub(lambda found: f"${order.index(found[1]) + 1}", statement).rstrip(";")
        with self._errors_seen(), connection.cursor() as cursor:
            cursor.execute(f"PREPARE {name} AS " + numbered.replace("%%", "%"))
        self._prepared[name] = f"EXECUTE {name} (" + ", ".join(f"%({each})s" for each in order) + ")"

    def _use_pooler(self) -> None:
        self._sessions.use_pooler()
        self._prepared = {}
