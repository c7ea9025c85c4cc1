"""What all servers of the sandbox share: a child process that ends with its parent, and passwords."""

import os
import secrets
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from importlib.util import find_spec
from pathlib import Path

START_SECONDS = 30.0
STOP_SECONDS = 20.0
_DIE_WITH_PARENT = Path(__file__).with_name("die_with_parent.py")
_TAIL_BYTES = 2000


class ServerMissing(Exception):
    """The wheel that carries the server is not installed, or its server does not run on this machine."""


class ServerFailed(Exception):
    """A server did not start or stop in time; the text has the end of its log."""


class Child:
    """A child process, which is killed when the thread that started it ends."""

    def __init__(
        self,
        argv: Sequence[str | Path],
        log: Path | None,
        *,
        at_parents_death: str = "KILL",
        user: tuple[int, int] | None = None,
        directory: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Starts ``argv``, whose first item is a path. Its output is appended to ``log``; None: to our own output."""
        self._log = log
        self._log_from = log.stat().st_size if log and log.exists() else 0
        starter: list[str | Path] = [sys.executable, "-I", "-S", _DIE_WITH_PARENT, "--parent", str(os.getpid())]
        starter += ["--signal", at_parents_death]
        if user:
            starter += ["--user", f"{user[0]}:{user[1]}"]
        with log.open("ab") if log else nullcontext() as output:
            self._process = subprocess.Popen(
                [*starter, "--", *argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=directory,
                env=environment,
                start_new_session=True,  # Ctrl-C in a terminal is only for the parent
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        """Sends a signal, unless the process has ended."""
        self._process.send_signal(number)

    def wait(self, seconds: float) -> int:
        """Waits for the end; returns the exit status. Raises subprocess.TimeoutExpired."""
        return self._process.wait(seconds)

    def end(self, number: signal.Signals, seconds: float = STOP_SECONDS) -> None:
        """Sends a signal and waits for the end; a stopped (SIGSTOP) process is continued first."""
        self.send(signal.SIGCONT)
        self.send(number)
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            self._process.kill()
            self._process.wait()
            raise ServerFailed(f"still running {seconds:g} s after {number.name}{self.tail()}") from error

    def foreground(self, stop: signal.Signals) -> int:
        """Forwards SIGTERM and SIGINT as ``stop``, waits for the end, and returns an exit status."""
        stopping = False

        def forward(*_: object) -> None:
            nonlocal stopping
            stopping = True
            self.send(stop)

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, forward)
        status = self._process.wait()
        return 0 if stopping else abs(status)

    def wait_until(self, ready: Callable[[], bool], what: str, seconds: float = START_SECONDS) -> None:
        """Waits for ``ready``; raises ServerFailed with the end of the log if the process ends or takes too long."""
        deadline = time.monotonic() + seconds
        while not ready():
            if not self.running:
                raise ServerFailed(f"{what} ended with status {self._process.returncode}{self.tail()}")
            if time.monotonic() > deadline:
                self.end(signal.SIGKILL)
                raise ServerFailed(f"{what} did not answer within {seconds:g} s{self.tail()}")
            time.sleep(0.01)

    def tail(self) -> str:
        """The end of the log since the start, beginning with a line break."""
        if self._log is None:
            return ""
        with self._log.open("rb") as log:
            log.seek(max(self._log_from, self._log.stat().st_size - _TAIL_BYTES))
            return "\n" + log.read().decode("utf-8", "replace").strip()


class ManagedServer(ABC):
    """A server that a test or quickstart starts, stops and kills. It ends with the thread that starts it."""

    stop_signal = signal.SIGTERM

    def __init__(self) -> None:
        self._child: Child | None = None

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.running

    @abstractmethod
    def answers(self) -> bool:
        """Whether a server answers at the port, no matter which process started it."""

    @abstractmethod
    def start(self) -> None:
        """Starts the server and waits until it answers. Raises ServerMissing and ServerFailed."""

    def stop(self) -> None:
        """Ends the server cleanly and waits for its end."""
        if self._child is not None:
            self._child.end(self.stop_signal)

    def kill(self) -> None:
        """Ends the server as a crash would."""
        if self._child is not None:
            self._child.end(signal.SIGKILL)

    def freeze(self) -> None:
        """Stops the process (SIGSTOP): its connections stay, and nothing is answered."""
        if self._child is not None:
            self._child.send(signal.SIGSTOP)

    def thaw(self) -> None:
        if self._child is not None:
            self._child.send(signal.SIGCONT)

    def restart(self) -> None:
        self.stop()
        self.start()


def wheel_folder(package: str) -> Path:
    """The folder of an installed package, found without importing it; raises ServerMissing."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ServerMissing(f"the package {package} is not installed (bin/install sandbox)")
    return Path(next(iter(spec.submodule_search_locations))).resolve()


def kept_password(path: Path) -> str:
    """The password in ``path``, created when there is none yet; only the file's owner can read it."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        making = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        descriptor = os.open(making, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(16))
        with suppress(FileExistsError):  # another process created it in the meantime
            path.hardlink_to(making)
        making.unlink()
    return path.read_text("ascii")
