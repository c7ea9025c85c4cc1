"""All programs as production runs them: supervisord with conf/supervisord.worker.conf, against servers of our own."""

import os
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator
from configparser import RawConfigParser
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, cast
from xmlrpc.client import Error, ServerProxy

import redis
from supervisor.states import ProcessStates
from supervisor.xmlrpc import SupervisorTransport

from benchmarks.report import Failure, Progress
from benchmarks.sinks import PROJECT
from benchmarks.world import World, world
from sandbox.accounts import ENCRYPTION_KEY
from sandbox.ports import free_port
from sandbox.servers import Child
from sandbox.world import World as OutsideWorld
from worker.registry import JOBS
from worker.runtime.counter_readings import read_all

OFF = {"bounces", "campaign-sender"}  # ends by itself, since no mailbox is set; is not started, as by default
SUPERVISORD = "supervisord"
SERVER = "qdrant"  # a server, like PostgreSQL and Redis, and not measured
TICK_SECONDS = 60.0  # at most until every job has ended its first tick
STOP_SECONDS = 40.0
_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Surroundings:
    """What the programs run against: servers with an empty database, and the outside world."""

    servers: World
    outside: OutsideWorld
    database_url: str


@dataclass(frozen=True)
class ProgramSet:
    """A supervisord that runs, and where it and its programs are reached."""

    folder: Path
    port: int  # of bin/web
    supervisord: Child
    redis_url: str

    def running(self) -> dict[str, int]:
        """The pids of the programs that supervisord says are running, by their names."""
        with closing(SupervisorTransport(serverurl=f"unix://{self.folder}/supervisor.sock")) as transport:
            server = ServerProxy("http://127.0.0.1", cast(Any, transport))
            try:
                programs = cast(list[dict[str, Any]], server.supervisor.getAllProcessInfo())
            except (OSError, HTTPException, Error):
                return {}
        return {each["name"]: each["pid"] for each in programs if each["state"] == ProcessStates.RUNNING}

    def processes(self) -> dict[str, list[int]]:
        """The processes of each program and of supervisord itself; Qdrant's are left out."""
        children: dict[int, list[int]] = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = path.read_text("ascii", "replace").rpartition(")")[2].split()[1]
            except OSError:
                continue  # it has ended
            children.setdefault(int(parent), []).append(int(path.parent.name))

        def tree(pid: int) -> list[int]:
            return [pid, *(each for child in children.get(pid, []) for each in tree(child))]

        programs = {name: tree(pid) for name, pid in self.running().items() if name != SERVER}
        return {SUPERVISORD: [self.supervisord.pid], **programs}

    def wait_until_running(self) -> None:
        names = program_names() - OFF
        self._wait(lambda: names <= self.running().keys(), "all programs run")

    def wait_for_ticks(self, progress: Progress) -> None:
        """Waits until each job has ended its first tick, and bin/web answers."""
        progress.say("waiting for the first tick of each job ...")
        with closing(redis.Redis.from_url(self.redis_url, decode_responses=True)) as client:
            self._wait(lambda: _ticked(client), "each job has ended a tick")
        self._wait(self.answers, "bin/web answers")

    def answers(self) -> bool:
        """Whether bin/web reports that all is well."""
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=5)) as connection:
            try:
                connection.request("GET", "/health")
                return connection.getresponse().status == 200
            except (OSError, HTTPException):
                return False

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + TICK_SECONDS
        while not condition():
            if not self.supervisord.running or time.monotonic() > deadline:
                raise Failure(f"not within {TICK_SECONDS:.0f} s: {what}{self._tails()}")
            time.sleep(_POLL_SECONDS)

    def _tails(self) -> str:
        """The last line of each program's error log."""
        logs = sorted(self.folder.glob("*-error.log"))
        lines = [(path.name, path.read_text("utf-8", "replace").strip().splitlines()[-1:]) for path in logs]
        return "".join(f"\n{name}: {line[0]}" for name, line in lines if line)


def _ticked(client: redis.Redis) -> bool:
    states = read_all(client).jobs
    return all(name in states and states[name].last_success for name in JOBS if name not in OFF)


@contextmanager
def surroundings(progress: Progress) -> Iterator[Surroundings]:
    """Starts the servers and the stand-ins of the providers; ends them, whatever happens inside."""
    progress.say("starting PostgreSQL, Redis and the outside world ...")
    with world() as servers:
        url = servers.fresh_database("program_set")
        outside = OutsideWorld(servers.folder / "world")
        outside.start()
        try:
            yield Surroundings(servers, outside, url)
        finally:
            outside.stop()


@contextmanager
def program_set(around: Surroundings) -> Iterator[ProgramSet]:
    """Starts supervisord, which starts the programs; stops all of them, whatever happens inside."""
    folder = around.servers.folder / f"programs-{secrets.token_hex(2)}"
    folder.mkdir()
    port = free_port()
    conf = folder / "supervisord.conf"
    with conf.open("w", encoding="utf-8") as file:
        configuration(folder).write(file)
    supervisord = Child(
        [sys.executable, "-m", "supervisor.supervisord", "-c", str(conf)],
        folder / "out.log",
        at_parents_death="TERM",
        environment=environment(around, folder, port),
        directory=PROJECT,
    )
    try:
        yield ProgramSet(folder, port, supervisord, around.servers.redis.url)
    finally:
        if supervisord.running:
            supervisord.end(signal.SIGTERM, STOP_SECONDS)


def configuration(folder: Path) -> RawConfigParser:
    """The production configuration, with its sockets and logs in ``folder``."""
    conf = RawConfigParser(inline_comment_prefixes=(";",))
    conf.read(PROJECT / "conf" / "supervisord.worker.conf")
    for section in conf.sections():
        for key, value in conf.items(section):
            placed = value.replace("/run/crm-worker", str(folder)).replace("/var/log/supervisor", str(folder))
            conf[section][key] = placed.replace("%(here)s/..", str(PROJECT))
    return conf


def program_names() -> set[str]:
    """The programs of the production configuration."""
    sections = configuration(Path("/")).sections()
    return {each.partition(":")[2] for each in sections if each.startswith(("program:", "eventlistener:"))}


def environment(around: Surroundings, folder: Path, port: int) -> dict[str, str]:
    """All that the programs read; of this process's environment they get only the path. Intervals are the default."""
    qdrant, grpc = free_port(), free_port()
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "DATABASE_URL": around.database_url,
        "REDIS_URL": around.servers.redis.url,
        "STATE_DIR": str(folder / "state"),
        **around.outside.environment,
        "ENCRYPTION_KEY": ENCRYPTION_KEY,
        "APP_URL": "https://app.crm.example.in",
        "PORT": str(port),
        "QDRANT_URL": f"http://127.0.0.1:{qdrant}",
        "QDRANT_DEVELOPMENT": "true",  # used where Qdrant's own program is not installed
        "QDRANT__SERVICE__HOST": "127.0.0.1",
        "QDRANT__SERVICE__HTTP_PORT": str(qdrant),
        "QDRANT__SERVICE__GRPC_PORT": str(grpc),
        "QDRANT__STORAGE__STORAGE_PATH": str(folder / "qdrant" / "storage"),
        "QDRANT__STORAGE__SNAPSHOTS_PATH": str(folder / "qdrant" / "snapshots"),
    }
