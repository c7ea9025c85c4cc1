"""supervisord's events, read from stdin and answered on stdout.

The protocol is http://supervisord.org/events.html#event-listener-notification-protocol: READY, one event, RESULT.
Every event is answered as soon as it is read, whatever is made of it later: an unanswered one keeps all others in
supervisord's buffer. FAIL is never said, since supervisord would send the same event again, for ever.
"""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TextIO

from supervisor import childutils
from supervisor.states import ProcessStates

from worker.errors import WorkerError
from worker.supervision.supervisord_client import program_name

log = logging.getLogger(__name__)

STATE_EVENT = "PROCESS_STATE_"
TICK_EVENT = "TICK_"
LONGEST_PAYLOAD = 1_000_000  # characters; those of the events that we listen to have less than a thousand


class OutOfStep(WorkerError):
    """What was read cannot be told apart into events any more."""


@dataclass(frozen=True, slots=True)
class SupervisordEvent:
    """A tick, or a program that came into ``state`` (a number of supervisor.states.ProcessStates)."""

    program: str = ""
    state: int | None = None

    @property
    def is_tick(self) -> bool:
        return self.state is None


def reserve_stdout() -> TextIO:
    """The stream that supervisord reads. Whatever else is written to stdout from now on goes to stderr."""
    protocol = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return protocol


class EventListener:
    """Both ends of the conversation with supervisord."""

    def __init__(self, source: TextIO, protocol: TextIO) -> None:
        self._source = source
        self._protocol = protocol

    def events(self) -> Iterator[SupervisordEvent]:
        """Ticks and changes of state, until supervisord hangs up. Raises OutOfStep."""
        try:
            while True:
                childutils.listener.ready(self._protocol)
                line = self._source.readline()
                if not line:
                    return
                header, payload = self._read(line)
                childutils.listener.ok(self._protocol)
                event = _event(header, payload)
                if event:
                    yield event
        except BrokenPipeError:
            return  # supervisord is gone; its end of stdin says the same

    def _read(self, line: str) -> tuple[dict[str, str], str]:
        """The event's header and its payload, whose length only the header knows."""
        try:
            header = dict(childutils.get_headers(line))
            length = int(header["len"])
        except (ValueError, KeyError):
            length = -1
        if not 0 <= length <= LONGEST_PAYLOAD:
            childutils.listener.ok(self._protocol)
            raise OutOfStep(f"supervisord sent a header without a usable length: {line[:200]!r}")
        return header, self._source.read(length)


def _event(header: dict[str, str], payload: str) -> SupervisordEvent | None:
    """None for an event that says nothing to us, and for one that cannot be read."""
    name = header.get("eventname", "")
    if name.startswith(TICK_EVENT):
        return SupervisordEvent()
    if not name.startswith(STATE_EVENT):
        return None
    try:
        fields = childutils.get_headers(payload)
        program = program_name(fields["processname"], fields["groupname"])
        return SupervisordEvent(program, getattr(ProcessStates, name.removeprefix(STATE_EVENT)))
    except (ValueError, KeyError, AttributeError) as error:
        log.error(
            "an event of supervisord cannot be read, it is passed over",
            {"event": name, "payload": payload[:200], "reason": repr(error)},
        )
        return None
