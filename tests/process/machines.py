"""Machines of a test: each has a host name, processes, a STATE_DIR and logs of its own, and a supervisord.

Where the tests run as root, a machine is a UTS and a PID namespace whose first process is supervisord: nothing in it
can tell whether a process of another machine is alive. Elsewhere it is plain processes under this machine's own name.
"""

import functools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from configparser import RawConfigParser
from contextlib import suppress
from pathlib import Path

from supervised import moved, process_info, production_conf
from workers import PROJECT, wait_for

from sandbox.servers import Child

_UNSHARE = ["/usr/bin/unshare", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child=KILL"]
# sets the host name of its namespace, and becomes the command
_NAMED = "import os, socket, sys; socket.sethostname(sys.argv[1]); os.execv(sys.argv[2], sys.argv[2:])"


class Machine:
    """One machine; it is switched on with ``programs``, names of conf/supervisord.worker.conf."""

    def __init__(self, name: str, folder: Path, environment: Mapping[str, str], *programs: str) -> None:
        self.host = name if separate() else socket.gethostname()
        self.state_dir = folder / "state"
        self._folder = folder
        self._programs = programs
        self._environment = {**environment, "STATE_DIR": str(self.state_dir)}
        self._lost = 0
        with (folder / "supervisord.conf").open("w", encoding="utf-8") as file:
            _configuration(folder, programs).write(file)
        self.switch_on()

    def switch_on(self) -> None:
        """Waits until its supervisord answers; the programs may still be starting."""
        argv = [sys.executable, "-m", "supervisor.supervisord", "-c", str(self._folder / "supervisord.conf")]
        named = [*_UNSHARE, sys.executable, "-c", _NAMED, self.host] if separate() else []
        self._child = Child([*named, *argv], self._folder / "out.log", environment=self._environment)
        self._child.wait_until(lambda: process_info(self._folder, self._process(self._programs[0])) != {}, self.host)

    def cut_power(self) -> None:
        """All of its processes end at once, and nobody sees its STATE_DIR again."""
        self.end()
        self._lost += 1
        if self.state_dir.exists():
            self.state_dir.rename(self._folder / f"lost-{self._lost}")

    def freeze(self) -> None:
        """SIGSTOP to all of its processes: its connections stay open, and nothing of it goes on."""

        def all_stopped() -> bool:
            going_on = [pid for pid in self._processes() if _state(pid) not in ("T", "Z", "")]
            _signal(going_on, signal.SIGSTOP)
            return not going_on

        wait_for(all_stopped, f"{self.host} is frozen")

    def thaw(self) -> None:
        _signal(self._processes(), signal.SIGCONT)

    def stand_by(self) -> None:
        """As an operator tells it to: the file that docs/operating.md names."""
        self.state_dir.mkdir(parents=True, exist_ok=True)
        (self.state_dir / "standby").touch()

    def take_part(self) -> None:
        (self.state_dir / "standby").unlink()

    def end(self) -> None:
        """kill -9 of its first process, which ends all of them."""
        if self._child.running:
            processes = list(self._processes())
            _signal(processes, signal.SIGSTOP)
            _signal(processes, signal.SIGKILL)
            self._child.end(signal.SIGKILL)

    def pid(self, program: str) -> int:
        """As its own supervisord numbers it; 0: it has no process."""
        return int(process_info(self._folder, self._process(program)).get("pid", 0))

    def stop(self, program: str) -> None:
        """As an operator does; waits until its supervisord has stopped the program."""
        argv = [PROJECT / "bin" / "supervisorctl", "-s", f"unix://{self._folder}/supervisor.sock"]
        subprocess.run([*argv, "stop", self._process(program)], capture_output=True, timeout=60, check=True)

    def holder(self, program: str) -> str:
        """What the names of its program's claims and locks begin with."""
        return f"{self.host}:{self.pid(program)}:"

    def log(self, program: str) -> str:
        logs = [self._folder / f"{program}{kind}.log" for kind in ("", "-error")]
        return "".join(path.read_text("utf-8") for path in logs if path.exists())

    def said(self, program: str, text: str) -> int:
        """How many lines of a program's logs hold ``text``."""
        return sum(text in line for line in self.log(program).splitlines())

    @property
    def logs(self) -> str:
        return "".join(f"--- {self.host}: {name}\n{self.log(name)}" for name in ("supervisord", *self._programs))

    def _process(self, program: str) -> str:
        return f"{program}:{program}_00" if program == "campaign-sender" else program

    def _processes(self) -> Iterator[int]:
        """Their numbers outside, supervisord's first."""
        first = list(_children(self._child.pid)) if separate() else [self._child.pid]
        while first:
            yield from first
            first = [child for pid in first for child in _children(pid)]


Machines = Callable[..., Machine]


@functools.cache
def separate() -> bool:
    """Whether this user may make namespaces."""
    if os.geteuid() or not Path(_UNSHARE[0]).exists():
        return False
    return subprocess.run([*_UNSHARE, "/bin/true"], capture_output=True, check=False).returncode == 0


def _configuration(folder: Path, programs: tuple[str, ...]) -> RawConfigParser:
    conf = production_conf()
    for section in conf.sections():
        kind, _, name = section.partition(":")
        if kind in ("program", "eventlistener") and name not in programs:
            conf.remove_section(section)
        elif kind == "program":
            conf[section]["autostart"] = "true"
    moved(conf, folder)
    return conf


def _children(pid: int) -> Iterator[int]:
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # it has ended
            yield from map(int, path.read_text("ascii").split())


def _state(pid: int) -> str:
    """The kernel's letter; empty when the process has ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0]
    return ""


def _signal(pids: "Iterator[int] | list[int]", number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
