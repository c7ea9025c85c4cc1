"""PostgreSQL: one kept connection, named statements, short transactions.

A connection runs in autocommit: a single statement is its own transaction, and ``transaction()`` groups several.
Sessions run in UTC, because the CRM's times have no zone. When the server is lost, the call that notices it raises
psycopg2.OperationalError or InterfaceError, and the next call connects again.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import resources
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import psycopg2
import psycopg2.extensions
import psycopg2.extras

from worker.errors import SettingsError

UNAVAILABLE = (psycopg2.OperationalError, psycopg2.InterfaceError)  # what a lost or missing server raises
# SQLSTATEs of a server that cannot work: connection failed, too few resources, shut down
_UNAVAILABLE_CODES = ("08", "53", "57P")

STATEMENT_TIMEOUT_SECONDS = 300  # building the targets of a million recipients takes about 20
LOCK_TIMEOUT_SECONDS = 30

_PARAMETER = re.compile(r"%\((\w+)\)s")
# Parameters that the CRM's Node.js client adds to DATABASE_URL and libpq does not know.
_NODE_ONLY = {"schema", "connection_limit", "pool_timeout", "pgbouncer", "sslaccept", "socket_timeout"}


class UnreadableJson(str):
    """Takes the place of a JSON value that Python cannot parse; it has the wrong type where an object is expected."""

    __slots__ = ()


def _parse_json(raw: str) -> Any:
    """A number with thousands of digits, or a thousand nested levels, must not make the whole statement fail."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return UnreadableJson("JSON that cannot be parsed")


Row = dict[str, Any]


def is_unavailable(error: psycopg2.Error) -> bool:
    """Whether the server itself is lost or missing, and has not only refused a statement (a timeout, a lock)."""
    code = error.pgcode
    return isinstance(error, UNAVAILABLE) and (code is None or code.startswith(_UNAVAILABLE_CODES))


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
        self._prepared: dict[str, str] = {}  # EXECUTE statements of what this connection has prepared, by name
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
        with self._connected().cursor() as cursor:
            cursor.execute(statement, parameters)
            if cursor.description is None:
                return []
            names = [column.name for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def execute_one(self, statement: str, /, **parameters: Any) -> Row | None:
        """Runs one statement that writes, and returns its first row, None when there is none."""
        rows = self.execute(statement, **parameters)
        return rows[0] if rows else None

    def execute_prepared(self, name: str, statement: str, /, **parameters: Any) -> Row | None:
        """As ``execute_one``, for a long statement that runs often: PostgreSQL parses it once for each connection.

        PostgreSQL infers the type of each parameter from its first use in the statement.
        """
        connection = self._connected()
        if name not in self._prepared:
            order = list(dict.fromkeys(_PARAMETER.findall(statement)))
            numbered = _PARAMETER.sub(lambda found: f"${order.index(found[1]) + 1}", statement).rstrip(";")
            with connection.cursor() as cursor:
                cursor.execute(f"PREPARE {name} AS " + numbered.replace("%%", "%"))
            self._prepared[name] = f"EXECUTE {name} (" + ", ".join(f"%({each})s" for each in order) + ")"
        return self.execute_one(self._prepared[name], **parameters)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Groups the statements inside into one transaction."""
        connection = self._connected()
        with connection.cursor() as cursor:
            cursor.execute("BEGIN")
            try:
                yield
            except BaseException:
                if not connection.closed:
                    cursor.execute("ROLLBACK")
                raise
            cursor.execute("COMMIT")

    def close(self) -> None:
        """Closes the connection; the next call connects again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connected(self) -> psycopg2.extensions.connection:
        if self._connection is None or self._connection.closed:
            self._connection = self.connect()
            self._prepared = {}
        return self._connection

    def connect(self) -> psycopg2.extensions.connection:
        """A new connection, which the caller has to close."""
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
        with connection.cursor() as cursor:
            # set after connecting, because connection poolers refuse start-up options
            cursor.execute(
                "SELECT set_config('TimeZone', 'UTC', false), set_config('statement_timeout', %s, false), "
                "set_config('lock_timeout', %s, false)",
                (f"{STATEMENT_TIMEOUT_SECONDS}s", f"{LOCK_TIMEOUT_SECONDS}s"),
            )
            # a claim that the server forgets in a crash would be made and sent again
            cursor.execute(
                "SELECT set_config('synchronous_commit', 'on', false) "
                "WHERE current_setting('synchronous_commit') = 'off'"
            )
            if self._schema:
                cursor.execute("SELECT set_config('search_path', quote_ident(%s), false)", (self._schema,))
        return connection
