"""Runs a job's real program to its end and measures what it took."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import Failure
from benchmarks.sinks import PROJECT
from benchmarks.world import World

_SAMPLE_SECONDS = 0.05
_TAIL_CHARACTERS = 2000
_LEAVE_SECONDS = 10.0


@dataclass(frozen=True)
class Usage:
    """What a child process took, as the kernel counts it (wait4), and its PostgreSQL backend (sampled)."""

    cpu_seconds: float
    backend_cpu_seconds: float
    peak_bytes: int
    statements: int


class BackendTime:
    """The CPU time of the sessions with one application name; short of what came after the last sample."""

    def __init__(self, world: World, application: str) -> None:
        self._world = world
        self._application = application
        self._seconds: dict[int, float] = {}
        self._pid: int | None = None

    def sample(self) -> None:
        if self._pid is None:
            self._pid = self._world.backend(self._application)
        if self._pid is None:
            return
        try:
            fields = Path(f"/proc/{self._pid}/stat").read_text("ascii").rpartition(")")[2].split()
        except OSError:
            self._pid = None  # it ended; the program may connect anew
            return
        self._seconds[self._pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # proc(5)

    @property
    def seconds(self) -> float:
        return sum(self._seconds.values())


def run_job(
    argv: list[str], environment: Mapping[str, str], world: World, application: str, each: Callable[[], None]
) -> Usage:
    """Runs ``argv`` to its end; ``each`` is called while it runs. Raises Failure when its status is not 0.

    The kernel's peak counts from the fork, when the child still was a copy of this process: a benchmark has to
    stay smaller than the job it measures.
    """
    output = world.folder / "job.log"
    before = world.statements(application)
    backend = BackendTime(world, application)
    leash = [str(PROJECT / "bin" / "python"), "-m", "sandbox.die_with_parent", "--parent", str(os.getpid()), "--"]
    with output.open("wb") as log:
        process = subprocess.Popen(
            [*leash, *argv],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=PROJECT,
            env=dict(environment),
            start_new_session=True,
        )
    try:
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                process.returncode = os.waitstatus_to_exitcode(status)
                break
            backend.sample()
            each()
            time.sleep(_SAMPLE_SECONDS)
    finally:
        _end(process)
    if process.returncode != 0:
        said = output.read_text("utf-8", "replace")[-_TAIL_CHARACTERS:]
        raise Failure(f"{argv[0]} ended with status {process.returncode}\n{said}")
    statements = world.statements(application) - before
    return Usage(usage.ru_utime + usage.ru_stime, backend.seconds, usage.ru_maxrss * 1024, statements)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ends a program that is still running."""
    if process.returncode is not None:
        return
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(_LEAVE_SECONDS)
    process.kill()
    process.wait()
