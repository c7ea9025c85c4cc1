"""The supervisord that started this program: the states of its programs, and starting and stopping one of them.

It answers over XML-RPC (http://supervisord.org/api.html), at the address that it puts into the environment of its
children. No call waits for a program: supervisord takes the request, and its events report the result later.
"""

import xmlrpc.client
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from xml.parsers.expat import ExpatError

from supervisor import childutils
from supervisor.states import ProcessStates
from supervisor.xmlrpc import Faults

from worker.errors import SettingsError, WorkerError
from worker.runtime.program import BAD_SETTINGS


class SupervisordError(WorkerError):
    """supervisord did not answer, and may have done what was requested or not; the text is the reason."""


class RequestRefused(SupervisordError):
    """supervisord answered that it does not do that."""


class ShuttingDown(RequestRefused):
    """supervisord is about to end or to reload, and takes no requests."""


@dataclass(frozen=True, slots=True)
class ProgramStatus:
    """One program at one moment, as supervisord reports it."""

    name: str
    state: int  # of supervisor.states.ProcessStates
    pid: int = 0  # 0: it has no process
    exit_status: int = 0  # of its latest end; only meaningful in the state EXITED
    running_seconds: float = 0.0  # since its latest start; only meaningful while it has a process

    @property
    def has_bad_settings(self) -> bool:
        """Whether it ended by itself with the exit status for settings that it cannot run with."""
        return self.state == ProcessStates.EXITED and self.exit_status == BAD_SETTINGS


def program_name(process: str, group: str) -> str:
    """The name by which supervisorctl knows it: the process alone, or ``group:process`` where the two differ."""
    return process if process == group else f"{group}:{process}"


class Supervisord:
    """A client. Every method raises SupervisordError."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Raises SettingsError when ``environ`` does not name supervisord's address."""
        if not environ.get("SUPERVISOR_SERVER_URL", "").startswith(("unix://", "http://")):
            raise SettingsError(
                "SUPERVISOR_SERVER_URL is not set: bin/watchdog is an event listener, which supervisord starts "
                "and whose configuration needs [unix_http_server] or [inet_http_server]"
            )
        self._environ = dict(environ)

    def programs(self) -> list[ProgramStatus]:
        """All of its programs, event listeners included."""
        return [_program_status(info) for info in self._call("getAllProcessInfo")]

    def start(self, name: str) -> None:
        """Requests the start of a program that is not running."""
        self._call("startProcess", name, False)

    def stop(self, name: str) -> None:
        """Requests the stop of a program: its stop signal, and after its ``stopwaitsecs`` SIGKILL."""
        self._call("stopProcess", name, False)

    def _call(self, method: str, *arguments: Any) -> Any:
        # a new connection for each call: a kept one that broke would have to be detected and opened again
        try:
            with childutils.getRPCInterface(self._environ) as server:
                return getattr(server.supervisor, method)(*arguments)
        except xmlrpc.client.Fault as error:
            kind = ShuttingDown if error.faultCode == Faults.SHUTDOWN_STATE else RequestRefused
            raise kind(f"{method}: {error.faultString}") from error
        except (xmlrpc.client.Error, HTTPException, OSError, ExpatError) as error:
            raise SupervisordError(f"{method}: {error!r}") from error


def _program_status(info: Mapping[str, Any]) -> ProgramStatus:
    """From supervisord's own form (http://supervisord.org/api.html, getProcessInfo)."""
    return ProgramStatus(
        name=program_name(info["name"], info["group"]),
        state=info["state"],
        pid=info["pid"],
        exit_status=info["exitstatus"],
        running_seconds=float(info["now"] - info["start"]),
    )
