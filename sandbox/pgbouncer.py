"""A real PgBouncer on 127.0.0.1 before a PostgreSQL of the sandbox, in transaction mode unless told otherwise.

    pooler = PgBouncer(folder, postgres_url)
    pooler.start()
    url = pooler.url_of("crm")

A missing PgBouncer is installed from Debian's packages when this runs as root. No service is started. Clients log in
with the server's own user and password.
"""

import shutil
import signal
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

import psycopg2

from sandbox.debian_programs import require
from sandbox.ports import free_port
from sandbox.postgres_paths import cluster_home, server_user
from sandbox.servers import Child, ManagedServer

PROGRAM = "pgbouncer"


class PgBouncer(ManagedServer):
    """``options`` are further settings, such as pool_mode="session" and default_pool_size="1"."""

    stop_signal = signal.SIGQUIT  # from 1.23 on SIGTERM waits for the clients

    def __init__(self, folder: Path, postgres_url: str, **options: str) -> None:
        super().__init__()
        self.port = free_port()
        self._folder = folder.absolute()
        self._server = urlsplit(postgres_url)
        self._options = options
        self._user = server_user()  # PgBouncer refuses to run as root

    def url_of(self, name: str) -> str:
        """The URL of a database of the PostgreSQL behind it."""
        credentials = self._server.netloc.rpartition("@")[0]
        return urlunsplit(self._server._replace(netloc=f"{credentials}@127.0.0.1:{self.port}", path=f"/{name}"))

    def answers(self) -> bool:
        """Whether it answers, and PostgreSQL through it."""
        try:
            psycopg2.connect(self.url_of("postgres"), connect_timeout=5).close()
        except psycopg2.OperationalError:
            return False
        return True

    def start(self) -> None:
        require(PROGRAM)
        home = cluster_home(self._folder, self._user)
        users, configuration = home / "users.txt", home / "pgbouncer.ini"
        users.write_text(f'"{self._server.username}" "{unquote(self._server.password or "")}"\n', "utf-8")
        lines = [f"{name} = {value}" for name, value in self._settings(users).items()]
        server = f"* = host={self._server.hostname} port={self._server.port or 5432}"
        configuration.write_text("\n".join(["[databases]", server, "[pgbouncer]", *lines, ""]), "utf-8")
        for each in (users, configuration):
            each.chmod(0o600)
            if self._user:
                shutil.chown(each, *self._user)
        program = shutil.which(PROGRAM) or PROGRAM
        self._child = Child([program, configuration], home / "pgbouncer.log", user=self._user, directory=Path("/"))
        self._child.wait_until(self.answers, PROGRAM)

    def _settings(self, users: Path) -> dict[str, str]:
        return {
            "listen_addr": "127.0.0.1",
            "listen_port": str(self.port),
            "unix_socket_dir": "",
            "auth_type": "scram-sha-256",
            "auth_file": str(users),
            "pool_mode": "transaction",
            "default_pool_size": "4",
            "server_login_retry": "1",
            **self._options,
        }
