"""A standby server that follows a PostgreSQL of the sandbox, made by pg_basebackup, until it is promoted."""

from contextlib import closing
from pathlib import Path

import psycopg2

from sandbox.postgres import Postgres
from sandbox.postgres_paths import run_as
from sandbox.servers import ServerFailed, kept_password

# what a primary needs so that others can follow it, as ``Postgres(options=...)``
PRIMARY = {"wal_level": "replica", "max_wal_senders": "5"}


class Standby(Postgres):
    """A copy of ``primary``, which runs with the options ``PRIMARY``. Users and passwords are the primary's."""

    def __init__(self, data_dir: Path, primary: Postgres, *, fsync: bool = True, timezone: str = "UTC") -> None:
        super().__init__(data_dir, fsync=fsync, timezone=timezone, options=PRIMARY)
        self._primary = primary

    def prepare(self) -> None:
        """Copies the primary, which must run."""
        password = self.data_dir / "password"
        if not password.exists():
            self.data_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
            password.touch(0o600)
            password.write_text(kept_password(self._primary.data_dir / "password"), "ascii")
        super().prepare()

    def promote(self) -> None:
        """Makes it the primary, and waits until it takes writes."""
        with closing(psycopg2.connect(self.url)) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT pg_promote(true, 60)")
            if cursor.fetchone() != (True,):
                raise ServerFailed("the standby was not promoted within 60 s")

    def _fill_cluster(self, cluster: Path, folder: Path, password: str) -> None:
        options = ["--wal-method=stream", "--checkpoint=fast", "--no-sync", "--write-recovery-conf"]
        options += [f"--dbname={self._primary.url_of('')}", f"--pgdata={cluster}"]
        done = run_as(self._user, folder / "pg_basebackup", *options)
        if done.returncode != 0:
            raise ServerFailed("pg_basebackup failed:\n" + done.stderr.decode("utf-8", "replace").strip())
