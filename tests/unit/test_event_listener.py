"""The protocol between supervisord and its event listener."""

import io

import pytest
from supervisor.states import ProcessStates

from worker.supervision.event_listener import EventListener, ProtocolError, SupervisordEvent


def sent(event: str, payload: str) -> str:
    head = "ver:3.0 server:supervisor serial:21 pool:watchdog poolserial:10"
    return f"{head} eventname:{event} len:{len(payload)}\n{payload}"


EXITED = sent("PROCESS_STATE_EXITED", "processname:trial groupname:trial from_state:RUNNING expected:0 pid:2766")


def test_the_protocol() -> None:
    """READY, an event, its answer before it is processed; until supervisord closes the connection."""
    answers = io.StringIO()
    listener = EventListener(io.StringIO(EXITED + sent("TICK_60", "when:1769850000") + EXITED), answers)
    events = listener.events()
    assert next(events) == SupervisordEvent("trial", ProcessStates.EXITED)
    assert answers.getvalue() == "READY\nRESULT 2\nOK"
    tick = next(events)
    assert tick.is_tick
    assert [each.state for each in events] == [ProcessStates.EXITED]
    assert answers.getvalue() == "READY\nRESULT 2\nOK" * 3 + "READY\n"


@pytest.mark.parametrize(
    "odd",
    [
        sent("PROCESS_STATE_EXITED", "processname:trial"),
        sent("PROCESS_STATE_EXITED", "no tokens at all"),
        sent("PROCESS_STATE_SLEEPING", "processname:trial groupname:trial from_state:RUNNING"),
        sent("PROCESS_GROUP_ADDED", "groupname:trial\n"),
        "len:0\n",
    ],
)
def test_an_event_that_cannot_be_read_is_ignored(odd: str) -> None:
    """It is still answered with OK, or supervisord would send it endlessly; the next one is read."""
    answers = io.StringIO()
    assert list(EventListener(io.StringIO(odd + EXITED), answers).events()) == [
        SupervisordEvent("trial", ProcessStates.EXITED)
    ]
    assert answers.getvalue() == "READY\nRESULT 2\nOK" * 2 + "READY\n"


@pytest.mark.parametrize("line", ["nonsense\n", "ver:3.0 len:many\n", "ver:3.0 len:-1\n", "a:b:c len:1\n", "\n"])
def test_a_header_without_a_length_ends_the_listener(line: str) -> None:
    """The beginning of the next event is unknown: the event is answered, and a new process listens."""
    answers = io.StringIO()
    with pytest.raises(ProtocolError, match="without a usable length"):
        list(EventListener(io.StringIO(line + EXITED), answers).events())
    assert answers.getvalue() == "READY\nRESULT 2\nOK"
