"""Opens sessions of PostgreSQL, and decides where their settings go: into the session, or into each transaction.

A connection pooler in transaction mode (PgBouncer) gives each transaction another session, which it shares with other
clients. What is left in such a session meets them, so nothing is: no setting, no prepared statement, no lock.
"""

import logging
from typing import Any

import psycopg2
import psycopg2.extensions
import psycopg2.extras

from worker.runtime.database_url import DatabaseUrl
from worker.runtime.unreadable_json import parse_json

log = logging.getLogger(__name__)

LOCK_TIMEOUT_SECONDS = 30
# For each host and address. A server whose machine vanished is given up after 10 s, not two hours.
CONNECTING: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
# Between two statements of a transaction, where nothing takes long. Else a process that is frozen there, or whose
# machine vanished, would keep its locks. Less than LOCK_TIMEOUT_SECONDS, so that whoever waits for them gets them.
IDLE_SECONDS = 20


class Sessions:
    """The sessions of one program. ``pooled``: each transaction may run in another one."""

    def __init__(self, url: DatabaseUrl, application_name: str, statement_seconds: float) -> None:
        """``statement_seconds``: the limit of one statement; 0: none."""
        self._url = url
        self._application_name = application_name
        self._statement_seconds = statement_seconds
        self.pooled = bool(url.pooled)

    @property
    def schema(self) -> str | None:
        """The schema that DATABASE_URL names, None when it is the server's choice."""
        return self._url.schema

    def open(self) -> tuple[psycopg2.extensions.connection, int]:
        """A new connection in autocommit, and the pid of the server's process behind it."""
        connection = psycopg2.connect(self._url.libpq, application_name=self._application_name, **CONNECTING)
        connection.autocommit = True
        psycopg2.extras.register_default_json(connection, loads=parse_json)
        psycopg2.extras.register_default_jsonb(connection, loads=parse_json)
        connection.set_client_encoding("UTF8")  # also for a database without an encoding (SQL_ASCII)
        if self.pooled:
            return connection, 0
        # A pooler announces a pid of its own. Then the settings are for this one transaction, and harm nobody.
        announced = connection.info.backend_pid if self._url.pooled is None else None
        with connection.cursor() as cursor:
            cursor.execute(self._settings(connection, announced, self._statement_seconds))
            pid = int(cursor.fetchall()[0][0])
        if announced not in (None, pid):
            self.use_pooler()
        return connection, pid

    def use_pooler(self) -> None:
        """From now on settings are sent with each transaction."""
        self.pooled = True
        log.warning(
            "DATABASE_URL leads through a connection pooler, settings are sent with each statement",
            {
                "do": "add pgbouncer=true to the parameters of DATABASE_URL, or pgbouncer=false if the pooler is in "
                "session mode"
            },
        )

    def of_transaction(
        self, connection: psycopg2.extensions.connection, statement_seconds: float | None = None
    ) -> bytes:
        """The statement that sets up the present transaction alone. ``statement_seconds``: another limit."""
        limit = self._statement_seconds if statement_seconds is None else statement_seconds
        return self._settings(connection, 0, limit)

    def _settings(
        self, connection: psycopg2.extensions.connection, pid: int | None, statement_seconds: float
    ) -> bytes:
        """Sets up the session if its pid is ``pid`` or that is None, else the present transaction; returns the pid.

        Set after connecting, because connection poolers refuse start-up options. A claim that the server forgets in a
        crash would be made and sent again, therefore synchronous_commit.
        """
        statement = (
            "SELECT pg_backend_pid(), set_config('TimeZone', 'UTC', is_local), "
            "set_config('statement_timeout', %(statement)s, is_local), "
            "set_config('lock_timeout', %(lock)s, is_local), "
            "set_config('idle_in_transaction_session_timeout', %(idle)s, is_local), "
            "set_config('synchronous_commit', CASE current_setting('synchronous_commit') "
            "WHEN 'off' THEN 'on' ELSE current_setting('synchronous_commit') END, is_local)"
        )
        if self._url.schema:
            statement += ", set_config('search_path', quote_ident(%(schema)s), is_local)"
        statement += " FROM (SELECT pg_backend_pid() <> coalesce(%(pid)s, pg_backend_pid()) AS is_local) AS scope"
        values = {
            "pid": pid,
            "statement": f"{statement_seconds * 1000:.0f}ms",
            "lock": f"{LOCK_TIMEOUT_SECONDS}s",
            "idle": f"{IDLE_SECONDS}s",
            "schema": self._url.schema,
        }
        with connection.cursor() as cursor:
            text: bytes = cursor.mogrify(statement, values)
            return text
