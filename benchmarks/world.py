"""The servers a benchmark runs against, in a temporary directory, and the counts that PostgreSQL keeps."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg2

from sandbox.crm import Crm, apply_schema
from sandbox.postgres import Postgres
from sandbox.redis import Redis
from worker.runtime.migrations import migrate

_LOG_MARK = "bench app="


@dataclass(frozen=True)
class World:
    """PostgreSQL and Redis on 127.0.0.1."""

    folder: Path
    postgres: Postgres
    redis: Redis

    def fresh_database(self, name: str) -> str:
        """The URL of a new database with the tables of the CRM and of the worker.

        PostgreSQL logs one short line for each statement in it: counting them is exact, where the counters
        of pg_stat_database also hold the transactions of autovacuum.
        """
        url = self.postgres.database(name)
        with closing(psycopg2.connect(url)) as connection:
            apply_schema(connection)
            migrate(connection)
            Crm(connection).execute(f"ALTER DATABASE {name} SET log_duration = on")
        return url

    def statements(self, application: str) -> int:
        """How many statements sessions with this application name have run so far."""
        mark = f"{_LOG_MARK}{application} LOG:  duration: ".encode()
        with (self.postgres.data_dir / "postgres.log").open("rb") as log:
            return sum(line.startswith(mark) for line in log)

    def backend(self, application: str) -> int | None:
        """The process id of the session with this application name."""
        statement = "SELECT pid FROM pg_stat_activity WHERE application_name = %s"
        with closing(psycopg2.connect(self.postgres.url)) as connection:
            pid: int | None = Crm(connection).value(statement, application)
            return pid


@contextmanager
def world() -> Iterator[World]:
    """Starts the servers; ends them and deletes their files, whatever happens inside."""
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="crm-worker-bench-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o711)  # PostgreSQL runs as another user when this is root
        postgres = Postgres(folder / "postgres")
        stack.callback(postgres.remove)
        postgres.start()
        with closing(psycopg2.connect(postgres.url)) as connection:
            crm = Crm(connection)
            crm.execute(f"ALTER SYSTEM SET log_line_prefix = '{_LOG_MARK}%a '")
            crm.execute("SELECT pg_reload_conf()")
        redis = Redis(folder / "redis")
        stack.callback(redis.stop)
        redis.start()
        yield World(folder, postgres, redis)
