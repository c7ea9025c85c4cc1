"""supervisord's events, read from stdin and answered on stdout.

The protocol is http://supervisord.org/events.html#event-listener-notification-protocol: READY, one event, RESULT.
Every event is answered as soon as it is read, before it is processed: an unanswered event keeps all later ones in
supervisord's buffer. The answer is always OK: after FAIL supervisord would send the same event again, endlessly.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TextIO

from supervisor import childutils
from supervisor.states import ProcessStates

from worker.errors import WorkerError
from worker.supervision.supervisord_client import program_name

log = logging.getLogger(__name__)

STATE_EVENT = "PROCESS_STATE_"
TICK_EVENT = "TICK_"
PAYLOAD_LIMIT = 1_000_000  # characters; the events that we subscribe to have less than a thousand


class ProtocolError(WorkerError):
    """The input can no longer be split into events."""


@dataclass(frozen=True, slots=True)
class SupervisordEvent:
    """A tick, or a program that entered ``state`` (a number of supervisor.states.ProcessStates)."""

    program: str = ""
    state: int | None = None

    @property
    def is_tick(self) -> bool:
        return self.state is None


@dataclass(frozen=True, slots=True)
class _Message:
    """What supervisord sent: the tokens of the header line, and the payload after it."""

    header: Mapping[str, str]
    payload: str


def reserve_stdout() -> TextIO:
    """The stream that supervisord reads. Everything else that is written to stdout from now on goes to stderr."""
    protocol = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return protocol


class EventListener:
    """Reads events from ``source`` and answers them on ``protocol``."""

    def __init__(self, source: TextIO, protocol: TextIO) -> None:
        self._source = source
        self._protocol = protocol

    def events(self) -> Iterator[SupervisordEvent]:
        """Ticks and changes of state, until supervisord closes the connection. Raises ProtocolError."""
        try:
            while True:
                childutils.listener.ready(self._protocol)
                line = self._source.readline()
                if not line:
                    return
                message = self._read(line)
                childutils.listener.ok(self._protocol)
                event = _event(message)
                if event:
                    yield event
        except BrokenPipeError:
            return  # supervisord has ended

    def _read(self, line: str) -> _Message:
        """The message whose header is ``line``; the header holds the length of the payload."""
        try:
            header = dict(childutils.get_headers(line))
            length = int(header["len"])
        except (ValueError, KeyError):
            length = -1
        if not 0 <= length <= PAYLOAD_LIMIT:
            childutils.listener.ok(self._protocol)
            raise ProtocolError(f"supervisord sent a header without a usable length: {line[:200]!r}")
        return _Message(header, self._source.read(length))


def _event(message: _Message) -> SupervisordEvent | None:
    """None for an event of another kind, and for one that cannot be read."""
    name = message.header.get("eventname", "")
    if name.startswith(TICK_EVENT):
        return SupervisordEvent()
    if not name.startswith(STATE_EVENT):
        return None
    try:
        fields = childutils.get_headers(message.payload)
        program = program_name(fields["processname"], fields["groupname"])
        return SupervisordEvent(program, getattr(ProcessStates, name.removeprefix(STATE_EVENT)))
    except (ValueError, KeyError, AttributeError) as error:
        log.error(
            "an event from supervisord cannot be read and is ignored",
            {"event": name, "payload": message.payload[:200], "reason": repr(error)},
        )
        return None
