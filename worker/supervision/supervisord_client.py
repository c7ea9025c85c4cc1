"""The supervisord that started this program: what its programs do, and starting and stopping one of them.

It is asked over XML-RPC (http://supervisord.org/api.html), at the address that it leaves in the environment of its
children. Nothing here waits for a program: supervisord is told, and its events say later what came of it.
"""

import xmlrpc.client
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from xml.parsers.expat import ExpatError

from supervisor import childutils
from supervisor.states import ProcessStates, getProcessStateDescription
from supervisor.xmlrpc import Faults

from worker.errors import SettingsError, WorkerError
from worker.runtime.program import BAD_SETTINGS


class SupervisordError(WorkerError):
    """supervisord does not answer, and may have done what it was told or not; the text is the reason."""


class RequestRefused(SupervisordError):
    """supervisord answers that it does not do that."""


class ShuttingDown(RequestRefused):
    """It is on its way to its end or to a reload, and takes no orders."""


@dataclass(frozen=True, slots=True)
class Program:
    """One program at one moment, as supervisord knows it."""

    name: str
    state: int  # of supervisor.states.ProcessStates
    pid: int = 0  # 0: it has no process
    exit_status: int = 0  # of its latest end; says something in the state EXITED only
    running_seconds: float = 0.0  # since its latest start; says something while it has a process

    @property
    def state_name(self) -> str:
        return str(getProcessStateDescription(self.state))

    @property
    def has_bad_settings(self) -> bool:
        """Whether it ended by itself with the status that stands for settings it cannot run with."""
        return self.state == ProcessStates.EXITED and self.exit_status == BAD_SETTINGS


def program_name(process: str, group: str) -> str:
    """The name by which supervisorctl knows it: alone, or ``group:process`` where that is not the same."""
    return process if process == group else f"{group}:{process}"


class Supervisord:
    """Asks and tells. Every method raises SupervisordError."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Raises SettingsError when ``environ`` does not say where supervisord listens."""
        if not environ.get("SUPERVISOR_SERVER_URL", "").startswith(("unix://", "http://")):
            raise SettingsError(
                "SUPERVISOR_SERVER_URL is not set: bin/watchdog is an event listener, which supervisord starts "
                "and whose configuration needs [unix_http_server] or [inet_http_server]"
            )
        self._environ = dict(environ)

    def programs(self) -> list[Program]:
        """All of its programs, event listeners included."""
        return list(_programs(self._ask("getAllProcessInfo")))

    def start(self, name: str) -> None:
        """Has a program started that is not running."""
        self._ask("startProcess", name, False)

    def stop(self, name: str) -> None:
        """Has a program stopped: its stop signal, and after its ``stopwaitsecs`` SIGKILL."""
        self._ask("stopProcess", name, False)

    def _ask(self, method: str, *arguments: Any) -> Any:
        # a connection of its own for each question: a kept one that broke would have to be noticed and made anew
        try:
            with childutils.getRPCInterface(self._environ) as server:
                return getattr(server.supervisor, method)(*arguments)
        except xmlrpc.client.Fault as error:
            kind = ShuttingDown if error.faultCode == Faults.SHUTDOWN_STATE else RequestRefused
            raise kind(f"{method}: {error.faultString}") from error
        except (xmlrpc.client.Error, HTTPException, OSError, ExpatError) as error:
            raise SupervisordError(f"{method}: {error!r}") from error


def _programs(infos: Iterable[Mapping[str, Any]]) -> Iterable[Program]:
    for info in infos:
        yield Program(
            name=program_name(info["name"], info["group"]),
            state=info["state"],
            pid=info["pid"],
            exit_status=info["exitstatus"],
            running_seconds=float(info["now"] - info["start"]),
        )
