"""The environment of quickstart: its servers and the worker's programs under one supervisord.

The programs come from conf/supervisord.worker.conf, the production configuration, with other paths of logs and
sockets. Everything is in one folder and on 127.0.0.1.
"""

import hashlib
import json
import os
import shlex
import signal
import sys
import time
import xmlrpc.client
from collections.abc import Mapping
from configparser import RawConfigParser
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import psycopg2
import psycopg2.errors

from sandbox.demo_jobs import OWNER
from sandbox.ports import free_port, is_free
from sandbox.postgres import Postgres
from sandbox.redis import Redis
from sandbox.servers import Child, kept_password
from sandbox.world import World

DATABASE = "bharat_crm_quickstart"
START_SECONDS = 60.0
STOP_SECONDS = 40.0
PROGRAM_SECTIONS = ("program:", "eventlistener:")
PORTS = ("supervisor", "postgres", "redis", "smtp", "http", "web", "public", "qdrant", "qdrant-grpc")


class QuickstartEnvironment:
    """The caller starts it, prepares its database, starts the programs, and stops it."""

    def __init__(self, project: Path, folder: Path, environ: Mapping[str, str]) -> None:
        self.project = project
        self.folder = folder
        self._environ = dict(environ)
        self._ports = _kept_ports(folder / "ports.json")
        self.postgres = None
        self.redis = None
        if not environ.get("DATABASE_URL"):
            self.postgres = Postgres(folder / "postgres", self._ports["postgres"])
        if not environ.get("REDIS_URL"):
            self.redis = Redis(folder / "redis", self._ports["redis"], appendonly=True)
        self.world = World(folder / "world", smtp_port=self._ports["smtp"], http_port=self._ports["http"])
        self._supervisord: Child | None = None

    @property
    def web_url(self) -> str:
        """The address of bin/web."""
        return f"http://127.0.0.1:{self._ports['web']}"

    @property
    def public_url(self) -> str:
        """The address of the page behind unsubscribe links."""
        return f"http://127.0.0.1:{self._ports['public']}"

    @property
    def qdrant_url(self) -> str:
        """The address of Qdrant, whose key is in the file ``qdrant_key``."""
        return f"http://127.0.0.1:{self._ports['qdrant']}"

    @property
    def qdrant_key(self) -> Path:
        return self.folder / "qdrant-key"

    @property
    def logs(self) -> Path:
        return self.folder / "log"

    def start(self) -> None:
        """Starts supervisord and the servers, and waits until they answer. Raises ServerFailed."""
        self.logs.mkdir(exist_ok=True)
        if self.postgres:
            self.postgres.prepare()
        if self.redis:
            self.redis.prepare()
        conf = self.folder / "supervisord.conf"
        conf.touch(0o600)
        with conf.open("w") as file:
            self._configuration().write(file)
        self._write_environment()
        self._supervisord = Child(
            [sys.executable, "-m", "supervisor.supervisord", "-n", "-c", str(conf)],
            self.folder / "supervisord.out",
            at_parents_death="TERM",
            environment=self._environment(),
            directory=self.project,
        )
        self._supervisord.wait_until(self._all_answer, "quickstart's supervisord", START_SECONDS)

    def start_programs(self) -> None:
        """Starts the worker's programs; the database must be ready."""
        rpc = self._rpc().supervisor
        for name in self._programs():
            rpc.startProcess(name, False)  # without waiting: supervisord would observe each start for a second

    def wait(self) -> None:
        """Waits until supervisord ends (bin/supervisorctl shutdown)."""
        while self._supervisord and self._supervisord.running:
            time.sleep(0.2)

    def stop(self) -> None:
        """Stops all programs and supervisord."""
        if self._supervisord and self._supervisord.running:
            self._supervisord.end(signal.SIGTERM, STOP_SECONDS)

    def connect(self) -> psycopg2.extensions.connection:
        """A connection to the demo database; the caller closes it."""
        connection = psycopg2.connect(self._database_url(), application_name="quickstart")
        connection.autocommit = True
        return connection

    def create_database(self) -> bool:
        """Creates the demo database; False if it exists already."""
        with closing(psycopg2.connect(self._server_url())) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                try:
                    cursor.execute(f'CREATE DATABASE "{DATABASE}"')
                except psycopg2.errors.DuplicateDatabase:
                    return False
        return True

    def recreate_database(self) -> None:
        """Replaces the demo database by an empty one."""
        with closing(psycopg2.connect(self._server_url())) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(f'DROP DATABASE IF EXISTS "{DATABASE}" WITH (FORCE)')
                cursor.execute(f'CREATE DATABASE "{DATABASE}"')

    def _server_url(self) -> str:
        return self.postgres.url if self.postgres else self._environ["DATABASE_URL"]

    def _database_url(self) -> str:
        return urlsplit(self._server_url())._replace(path=f"/{DATABASE}").geturl()

    def _environment(self) -> dict[str, str]:
        """The programs' environment: all of the worker's settings."""
        return self._environ | {
            "DATABASE_URL": self._database_url(),
            "REDIS_URL": self.redis.url if self.redis else self._environ["REDIS_URL"],
            "STATE_DIR": str(self.folder / "state"),
            **self.world.environment,
            "APP_URL": "https://app.crm.example.in",
            "PORT": str(self._ports["web"]),
            "PUBLIC_PORT": str(self._ports["public"]),
            "PUBLIC_URL": self.public_url,
            "UNSUBSCRIBE_KEY": hashlib.sha256(kept_password(self.folder / "unsubscribe-key").encode()).hexdigest(),
            "QDRANT_URL": self.qdrant_url,
            "QDRANT_API_KEY": kept_password(self.qdrant_key),
            "QDRANT_DEVELOPMENT": "true",  # used where Qdrant's own program is not installed
            "QDRANT__SERVICE__HOST": "127.0.0.1",
            "QDRANT__SERVICE__HTTP_PORT": str(self._ports["qdrant"]),
            "QDRANT__SERVICE__GRPC_PORT": str(self._ports["qdrant-grpc"]),
            "QDRANT__STORAGE__STORAGE_PATH": str(self.folder / "qdrant" / "storage"),
            "QDRANT__STORAGE__SNAPSHOTS_PATH": str(self.folder / "qdrant" / "snapshots"),
            "OWNER_EMAIL": OWNER,
            "TWILIO_RATE": "2",
            # small batches, so that there is something to watch
            "CAMPAIGN_BATCH_SIZE": "25",
            "CAMPAIGN_BATCH_DELAY": "300ms",
            "PYTHONUNBUFFERED": "1",
        }

    def _write_environment(self) -> None:
        """A file for a shell, to run the programs by hand."""
        settings = {name: value for name, value in self._environment().items() if self._environ.get(name) != value}
        path = self.folder / "environment"
        path.touch(0o600)
        path.write_text("".join(f"export {name}={shlex.quote(value)}\n" for name, value in settings.items()), "utf-8")

    def _production(self) -> RawConfigParser:
        conf = RawConfigParser(inline_comment_prefixes=(";",), strict=True)
        conf.optionxform = str  # type: ignore[assignment, method-assign]
        conf.read(self.project / "conf" / "supervisord.worker.conf")
        return conf

    def _programs(self) -> list[str]:
        return [
            section.partition(":")[2]
            for section in self._production().sections()
            if section.startswith(PROGRAM_SECTIONS)
        ]

    def _configuration(self) -> RawConfigParser:
        conf = self._production()
        address = f"127.0.0.1:{self._ports['supervisor']}"
        account = {"username": "quickstart", "password": kept_password(self.folder / "supervisor-password")}
        conf.remove_section("unix_http_server")
        conf["inet_http_server"] = {"port": address, **account}
        conf["supervisorctl"] = {"serverurl": f"http://{address}", **account}
        for section in conf.sections():
            for key, value in conf.items(section):
                conf[section][key] = self._with_own_paths(value)
            if section.startswith(PROGRAM_SECTIONS):
                conf[section]["autostart"] = "false"  # until the database is ready
            if section.startswith("eventlistener:"):
                # supervisord passes its address to its listeners, but not user and password
                variables = {f"SUPERVISOR_{name.upper()}": value for name, value in account.items()}
                conf[section]["environment"] = ",".join(f'{name}="{value}"' for name, value in variables.items())
        conf["supervisord"]["pidfile"] = _literal(self.folder / "supervisord.pid")
        for name, command in self._servers().items():
            log = {"stdout_logfile": _literal(self.logs / f"{name}.log"), "redirect_stderr": "true"}
            stop = {"stopwaitsecs": "15", "stopasgroup": "false", "killasgroup": "true"}
            line = _literal(shlex.join(command))
            conf[f"program:{name}"] = {"command": line, "priority": "10", "startsecs": "0", **stop, **log}
        return conf

    def _with_own_paths(self, value: str) -> str:
        """A value of the production configuration with the paths of this folder."""
        value = value.replace("/var/log/supervisor", _literal(self.logs))
        return value.replace("%(here)s/..", _literal(self.project))

    def _servers(self) -> dict[str, list[str]]:
        servers = {"world": self.world.command()}
        if self.postgres:
            servers["postgres"] = self.postgres.command()
        if self.redis:
            servers["redis"] = self.redis.command()
        return servers

    def _all_answer(self) -> bool:
        try:
            if self.postgres:
                psycopg2.connect(self.postgres.url, connect_timeout=5).close()
            self._rpc().supervisor.getState()
        except (psycopg2.OperationalError, OSError, xmlrpc.client.Error):
            return False
        if self.redis and not self.redis.answers():
            return False
        return self.world.answers()

    def _rpc(self) -> xmlrpc.client.ServerProxy:
        password = kept_password(self.folder / "supervisor-password")
        return xmlrpc.client.ServerProxy(f"http://quickstart:{password}@127.0.0.1:{self._ports['supervisor']}/RPC2")


def _literal(value: str | os.PathLike[str]) -> str:
    """Escaped for supervisord, which expands percent signs."""
    return str(value).replace("%", "%%")


def _kept_ports(path: Path) -> dict[str, int]:
    """The ports of earlier starts if they are still free, otherwise new ones."""
    kept = json.loads(path.read_text()) if path.exists() else {}
    ports = {name: port if (port := kept.get(name)) and is_free(port) else free_port() for name in PORTS}
    path.write_text(json.dumps(ports))
    return ports
