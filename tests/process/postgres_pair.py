"""A PostgreSQL primary and its standby, which tests make take over."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psycopg2
import pytest
from workers import wait_for

from sandbox.crm import apply_schema
from sandbox.postgres import Postgres
from sandbox.postgres_standby import PRIMARY, Standby
from sandbox.servers import ServerMissing
from worker.runtime.migrations import migrate

TAKES_WRITES = "target_session_attrs=read-write"


@dataclass(frozen=True)
class PostgresPair:
    """A primary and its standby, with the tables of the CRM and the worker."""

    primary: Postgres
    standby: Standby

    def url(self, parameters: str = TAKES_WRITES, *, standby_first: bool = False) -> str:
        """DATABASE_URL with both hosts."""
        servers = [self.standby, self.primary] if standby_first else [self.primary, self.standby]
        parts = urlsplit(self.primary.url_of("crm"))
        hosts = ",".join(f"127.0.0.1:{each.port}" for each in servers)
        return parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@{hosts}", query=parameters).geturl()

    @property
    def password(self) -> str:
        return str(urlsplit(self.primary.url).password)

    def cut_off(self) -> None:
        """From now on the standby gets nothing."""
        with closing(psycopg2.connect(self.standby.url)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("ALTER SYSTEM SET primary_conninfo = ''")
                cursor.execute("SELECT pg_reload_conf()")
                wait_for(lambda: self._receivers() == 0, "the standby is cut off")

    def _receivers(self) -> int:
        with closing(psycopg2.connect(self.primary.url)) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_stat_replication")
            return int(cursor.fetchall()[0][0])

    def catch_up(self) -> None:
        """Waits until the standby has what the primary has."""
        with closing(psycopg2.connect(self.primary.url)) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT pg_current_wal_lsn()")
            [(lsn,)] = cursor.fetchall()
        with closing(psycopg2.connect(self.standby.url)) as connection, connection.cursor() as cursor:

            def has_it() -> bool:
                cursor.execute("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", (lsn,))
                return bool(cursor.fetchall()[0][0])

            wait_for(has_it, "the standby has caught up")

    def fail_over(self) -> None:
        self.primary.kill()
        self.standby.promote()


@contextmanager
def postgres_pair(folder: Path, **options: str) -> Iterator[PostgresPair]:
    """Starts both; the test is skipped where there is no PostgreSQL. ``options``: settings of the primary."""
    primary = Postgres(folder / "primary", fsync=False, timezone="Asia/Kolkata", options=PRIMARY | options)
    standby = Standby(folder / "standby", primary, fsync=False, timezone="Asia/Kolkata")
    try:
        primary.start()
    except ServerMissing as error:
        pytest.skip(str(error))
    with closing(psycopg2.connect(primary.database("crm"))) as connection:
        apply_schema(connection)
        migrate(connection)
    standby.start()
    yield PostgresPair(primary, standby)
    for each in (primary, standby):
        each.kill()
        each.remove()
