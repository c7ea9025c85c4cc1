"""How the watchdog converses with supervisord, and what it makes of a program's state."""

import io

import pytest
from supervisor.states import ProcessStates

from worker.errors import SettingsError
from worker.supervision.event_listener import EventListener, OutOfStep, SupervisordEvent
from worker.supervision.supervisord_client import Program, Supervisord, program_name


def sent(event: str, payload: str) -> str:
    head = "ver:3.0 server:supervisor serial:21 pool:watchdog poolserial:10"
    return f"{head} eventname:{event} len:{len(payload)}\n{payload}"


EXITED = sent("PROCESS_STATE_EXITED", "processname:trial groupname:trial from_state:RUNNING expected:0 pid:2766")


def test_the_conversation() -> None:
    """READY, an event, its answer before anything is made of it; until supervisord hangs up."""
    said = io.StringIO()
    listener = EventListener(io.StringIO(EXITED + sent("TICK_60", "when:1769850000") + EXITED), said)
    events = listener.events()
    assert next(events) == SupervisordEvent("trial", ProcessStates.EXITED)
    assert said.getvalue() == "READY\nRESULT 2\nOK"
    tick = next(events)
    assert tick.is_tick
    assert [each.state for each in events] == [ProcessStates.EXITED]
    assert said.getvalue() == "READY\nRESULT 2\nOK" * 3 + "READY\n"


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
def test_an_event_that_cannot_be_read_is_passed_over(odd: str) -> None:
    """It is answered with OK all the same, or supervisord would send it for ever; the next one is heard."""
    said = io.StringIO()
    assert list(EventListener(io.StringIO(odd + EXITED), said).events()) == [
        SupervisordEvent("trial", ProcessStates.EXITED)
    ]
    assert said.getvalue() == "READY\nRESULT 2\nOK" * 2 + "READY\n"


@pytest.mark.parametrize("line", ["nonsense\n", "ver:3.0 len:many\n", "ver:3.0 len:-1\n", "a:b:c len:1\n", "\n"])
def test_a_header_without_a_length_ends_it(line: str) -> None:
    """Nobody knows where the next event begins: it is answered, and a new process listens."""
    said = io.StringIO()
    with pytest.raises(OutOfStep, match="without a usable length"):
        list(EventListener(io.StringIO(line + EXITED), said).events())
    assert said.getvalue() == "READY\nRESULT 2\nOK"


@pytest.mark.parametrize(
    ("state", "status", "bad"),
    [
        (ProcessStates.EXITED, 2, True),
        (ProcessStates.EXITED, 0, False),
        (ProcessStates.EXITED, 1, False),
        (ProcessStates.RUNNING, 2, False),
        (ProcessStates.STOPPED, 2, False),
    ],
)
def test_bad_settings(state: int, status: int, bad: bool) -> None:
    """Only a program that ended by itself with status 2 is down for its settings."""
    assert Program("campaign", state, exit_status=status).has_bad_settings is bad


def test_the_names_of_programs() -> None:
    """As supervisorctl shows them."""
    assert program_name("campaign", "campaign") == "campaign"
    assert program_name("mail_00", "mail") == "mail:mail_00"


def test_it_is_nothing_to_start_by_hand() -> None:
    """Without supervisord's address it says how it is started."""
    with pytest.raises(SettingsError, match="which supervisord starts"):
        Supervisord({})
