"""The sinks that messages go into, each a process of its own that counts what it accepted."""

import os
import re
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.tally import Tally
from sandbox.ports import free_port
from sandbox.postgres_paths import server_user
from sandbox.servers import Child

PROJECT = Path(__file__).resolve().parent.parent
_WHERE = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
_TAIL_OCTETS = 200
_MESSAGES = re.compile(rb"mesg=(\d+)")


@dataclass(frozen=True)
class Sink:
    name: str
    port: int
    count: Callable[[], int]  # messages accepted since it was started


@contextmanager
def smtp_sink(folder: Path) -> Iterator[Sink]:
    """Postfix's smtp-sink where it is installed, else our own."""
    program = shutil.which("smtp-sink", path=_WHERE)
    if program is None:
        with _own("smtp_sink", folder, "asyncio") as sink:
            yield sink
        return
    port, output = free_port(), folder / "smtp-sink.txt"
    # as nobody from the start: a program that gives up root's rights itself could outlive us
    with _running([program, "-c", f"127.0.0.1:{port}", "512"], output, port, server_user()):
        yield Sink("smtp-sink", port, lambda: _counted(output))


@contextmanager
def http_sink(folder: Path) -> Iterator[Sink]:
    with _own("http_sink", folder, "asyncio") as sink:
        yield sink


@contextmanager
def slow_smtp_sink(folder: Path, seconds: float) -> Iterator[Sink]:
    """Our own, which takes so long for each message."""
    with _own("smtp_sink", folder, "asyncio", str(seconds)) as sink:
        yield sink


@contextmanager
def _own(module: str, folder: Path, name: str, *arguments: str) -> Iterator[Sink]:
    port, path = free_port(), folder / f"{module}.count"
    tally = Tally(path)
    argv = [sys.executable, "-m", f"benchmarks.{module}", str(port), str(path), *arguments]
    with _running(argv, folder / f"{module}.log", port):
        yield Sink(name, port, lambda: tally.value)


@contextmanager
def _running(argv: list[str], log: Path, port: int, user: tuple[int, int] | None = None) -> Iterator[None]:
    child = Child(argv, log, directory=PROJECT, user=user)
    try:
        child.wait_until(lambda: _listens(port), Path(argv[0]).name)
        yield
    finally:
        child.end(signal.SIGTERM)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _counted(output: Path) -> int:
    """What smtp-sink's running counters say last."""
    with output.open("rb") as file:
        file.seek(max(0, output.stat().st_size - _TAIL_OCTETS))
        found = _MESSAGES.findall(file.read().rpartition(b"\r")[0])
    return int(found[-1]) if found else 0
