"""PostgreSQL: one kept connection, named statements, short transactions.

A connection runs in autocommit: a single statement is its own transaction, and ``transaction()`` groups several.
Sessions run in UTC, because the CRM's times have no zone. When the server is lost or cannot work (read-only, too few
resources), the call that notices it raises an error for which ``is_unavailable`` is true, and the next call connects
again: behind the same address there may be another server by then.

Through a connection pooler in transaction mode (DATABASE_URL with ``?pgbouncer=true``, or noticed by itself) each
transaction may run in another session. Then nothing is left in sessions: each statement brings its settings along.
"""

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from importlib import resources
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import psycopg2
import psycopg2.extensions
import psycopg2.extras

from worker.errors import SettingsError

log = logging.getLogger(__name__)

UNAVAILABLE = (psycopg2.OperationalError, psycopg2.InterfaceError)  # what a lost or missing server raises
READ_ONLY_CODE = "25006"
# SQLSTATEs of a server that cannot work: connection failed, too few resources, shut down; takes no writes, disk error
_UNAVAILABLE_CODES = ("08", "53", "57P", READ_ONLY_CODE, "58030")
_TEMPORARY_FILES_CODE = "53400"  # a limit that one statement exceeded
_ABORTED_TRANSACTION_CODE = "25P02"
_PREPARED_ELSEWHERE_CODES = ("26000", "42P05")  # a prepared statement is missing, or is there already

STATEMENT_TIMEOUT_SECONDS = 300  # building the targets of a million recipients takes about 20
LOCK_TIMEOUT_SECONDS = 30
# PostgreSQL closes the connection at 1 GB, which looks like an outage, and needs several times as much memory before
STATEMENT_MAX_BYTES = 256 << 20

JSON_LEVELS = 100  # of an object in whose parts Python's parser gives up
_JSON_BRACKET = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]')  # or a string, which may have brackets in it

_PARAMETER = re.compile(r"%\((\w+)\)s")
# Parameters that the CRM's Node.js client adds to DATABASE_URL and libpq does not know.
_NODE_ONLY = {"schema", "connection_limit", "pool_timeout", "pgbouncer", "sslaccept", "socket_timeout"}


class UnreadableJson(str):
    """Takes the place of a JSON value that Python cannot parse; it has the wrong type where an object is expected."""

    __slots__ = ()


class UnreadablePart(tuple[str]):
    """Takes the place of what Python cannot parse inside an object: true, and of a type that JSON never has."""

    __slots__ = ()


UNREADABLE = "JSON that cannot be parsed"


def _parse_json(raw: str) -> Any:
    """A number with thousands of digits, or a thousand nested levels, must not make the whole statement fail.

    The other parts of an object (a tenant's settings) stay what they are.
    """
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        if not raw.lstrip().startswith("{"):
            return UnreadableJson(UNREADABLE)
    # PostgreSQL's JSON has no NaN: so it can stand for the parts that were left out
    return json.loads(
        _without_deep_parts(raw), parse_int=_whole_number, parse_constant=lambda _: UnreadablePart([UNREADABLE])
    )


def _whole_number(digits: str) -> int | UnreadablePart:
    try:
        return int(digits)
    except ValueError:  # more digits than Python converts
        return UnreadablePart([UNREADABLE])


def _without_deep_parts(raw: str) -> str:
    """The JSON text with NaN for each list and object that is more than JSON_LEVELS deep."""
    kept: list[str] = []
    depth = copied = 0
    for found in _JSON_BRACKET.finditer(raw):
        bracket = found[0]
        if bracket in ("[", "{"):
            depth += 1
            if depth == JSON_LEVELS + 1:
                kept += raw[copied : found.start()], "NaN"
        elif bracket in ("]", "}"):
            if depth == JSON_LEVELS + 1:
                copied = found.end()
            depth -= 1
    return "".join(kept) + raw[copied:]


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


def libpq_url(url: str) -> tuple[str, str | None]:
    """DATABASE_URL in the form that libpq takes, and the schema that Node.js clients name with ``?schema=``."""
    parts = urlsplit(url)
    pairs = [pair for pair in parts.query.split("&") if pair]  # not decoded: libpq decodes percent signs, but no plus
    kept = [pair for pair in pairs if pair.partition("=")[0] not in _NODE_ONLY]
    schema = next((unquote(pair.partition("=")[2]) for pair in pairs if pair.startswith("schema=")), None)
    return urlunsplit(parts._replace(query="&".join(kept))), schema


class Database:
    """One program's connection to the CRM's database."""

    def __init__(self, url: str, application_name: str) -> None:
        self._url, self._schema = libpq_url(url)
        self._application_name = application_name
        self._connection: psycopg2.extensions.connection | None = None
        self._backend_pid = 0  # of the server's process behind the connection when it was made
        self._pooled = _names_pooler(url)
        self._prepared: dict[str, str] = {}  # EXECUTE statements of what this connection has prepared, by name
        self._in_transaction = False
        self._first_error: psycopg2.Error | None = None  # of the present transaction
        try:
            ports = psycopg2.extensions.parse_dsn(self._url).get("port", "")
        except psycopg2.ProgrammingError:
            ports = "unknown"
        # libpq's error texts quote the part that is wrong, which may be a piece of the password
        if not all(port == "" or (port.isdecimal() and 0 < int(port) < 65536) for port in str(ports).split(",")):
            raise SettingsError(
                "DATABASE_URL cannot be read by PostgreSQL's client library: check its user, password "
                "(percent-encode special characters), host, port and parameters"
            )

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
            if self._pooled and not self._in_transaction:
                text = self._settings(connection, of_session=False) + b"; " + text  # together one transaction
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
        if self._pooled:
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
        if row["pid"] != self._backend_pid and not self._pooled:
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
                with self._errors_seen():
                    cursor.execute("BEGIN")
                    if self._pooled:
                        cursor.execute(self._settings(connection, of_session=False))
                yield
                self._commit(cursor)
            except BaseException:
                self._roll_back(cursor)
                raise
            finally:
                self._in_transaction, self._first_error = False, None

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
            self._connection, self._backend_pid = self._open()
            self._prepared = {}
        return self._connection

    def _prepare(self, connection: psycopg2.extensions.connection, name: str, statement: str) -> None:
        order = list(dict.fromkeys(_PARAMETER.findall(statement)))
        numbered = _PARAMETER.sub(lambda found: f"${order.index(found[1]) + 1}", statement).rstrip(";")
        with self._errors_seen(), connection.cursor() as cursor:
            cursor.execute(f"PREPARE {name} AS " + numbered.replace("%%", "%"))
        self._prepared[name] = f"EXECUTE {name} (" + ", ".join(f"%({each})s" for each in order) + ")"

    def _use_pooler(self) -> None:
        self._pooled = True
        self._prepared = {}
        log.warning(
            "DATABASE_URL leads through a pooler in transaction mode, settings are sent with each statement",
            {"do": "add pgbouncer=true to the parameters of DATABASE_URL, or use the pooler's session mode"},
        )

    def connect(self) -> psycopg2.extensions.connection:
        """A new connection, which the caller has to close."""
        return self._open()[0]

    def _open(self) -> tuple[psycopg2.extensions.connection, int]:
        """A new connection, and the pid of the server's process behind it (a pooler reports one of its own)."""
        connection = psycopg2.connect(
            self._url,
            application_name=self._application_name,
            connect_timeout=5,
            keepalives=1,
            keepalives_idle=30,
            keepalives_interval=10,
            keepalives_count=3,
            tcp_user_timeout=60_000,
        )
        connection.autocommit = True
        psycopg2.extras.register_default_json(connection, loads=_parse_json)
        psycopg2.extras.register_default_jsonb(connection, loads=_parse_json)
        connection.set_client_encoding("UTF8")  # also for a database without an encoding (SQL_ASCII)
        if self._pooled:
            return connection, 0
        with connection.cursor() as cursor:
            cursor.execute(self._settings(connection, of_session=True))
            return connection, int(cursor.fetchall()[0][0])

    def _settings(self, connection: psycopg2.extensions.connection, *, of_session: bool) -> bytes:
        """The SELECT that sets a session up, or only the present transaction.

        Set after connecting, because connection poolers refuse start-up options. A claim that the server forgets in a
        crash would be made and sent again, therefore synchronous_commit.
        """
        statement = (
            "SELECT pg_backend_pid(), set_config('TimeZone', 'UTC', %(local)s), "
            "set_config('statement_timeout', %(statement)s, %(local)s), "
            "set_config('lock_timeout', %(lock)s, %(local)s), "
            "set_config('synchronous_commit', CASE current_setting('synchronous_commit') "
            "WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END, %(local)s)"
        )
        if self._schema:
            statement += ", set_config('search_path', quote_ident(%(schema)s), %(local)s)"
        values = {
            "local": not of_session,
            "statement": f"{STATEMENT_TIMEOUT_SECONDS}s",
            "lock": f"{LOCK_TIMEOUT_SECONDS}s",
            "schema": self._schema,
        }
        with connection.cursor() as cursor:
            text: bytes = cursor.mogrify(statement, values)
            return text


def _names_pooler(url: str) -> bool:
    """Whether DATABASE_URL has ``pgbouncer=true``, the parameter of the CRM's Node.js client."""
    return any(pair == "pgbouncer=true" for pair in urlsplit(url).query.split("&"))
