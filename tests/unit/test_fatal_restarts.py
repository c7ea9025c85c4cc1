"""When the watchdog starts a program again that supervisord gave up on, with the clock passed in."""

import pytest
from supervisor.states import ProcessStates

from worker.supervision.fatal_restarts import FatalRestarts
from worker.supervision.supervisord_client import ProgramStatus


def due_at(
    restarts: FatalRestarts, *clocks: float, state: int = ProcessStates.FATAL, running: float = 0.0
) -> list[float]:
    """At which of these seconds the program is due."""
    status = ProgramStatus("campaign", state, pid=7, running_seconds=running)
    return [clock for clock in clocks if restarts.due([status], clock)]


def test_a_fatal_program_is_due_after_half_a_minute() -> None:
    """Counted from when it was first seen as FATAL, and due until it is started."""
    assert due_at(FatalRestarts(), 100.0, 129.0, 130.0, 190.0) == [130.0, 190.0]


def test_pauses_between_starts_that_do_not_help_grow() -> None:
    """Each pause is twice as long, up to a quarter of an hour."""
    restarts = FatalRestarts()
    pauses = []
    for _ in range(8):
        pauses.append(restarts.pause_seconds("campaign"))
        restarts.record_start("campaign")
    assert pauses == [30, 60, 120, 240, 480, 900, 900, 900]


def test_a_start_begins_a_new_pause() -> None:
    """A program that became FATAL again, or did not even start, waits from then on."""
    restarts = FatalRestarts()
    assert due_at(restarts, 0.0, 30.0) == [30.0]
    assert restarts.record_start("campaign") == 1
    assert due_at(restarts, 31.0, state=ProcessStates.BACKOFF) == []
    assert due_at(restarts, 40.0, 99.0, 100.0) == [100.0]


def test_ten_minutes_of_running_clear_the_history() -> None:
    """A program that runs for a shorter time keeps its long pause."""
    restarts = FatalRestarts()
    due_at(restarts, 0.0)
    assert [restarts.record_start("campaign") for _ in range(3)] == [1, 2, 3]
    due_at(restarts, 60.0, state=ProcessStates.RUNNING, running=599.0)
    assert restarts.pause_seconds("campaign") == 240
    due_at(restarts, 61.0, state=ProcessStates.RUNNING, running=600.0)
    assert restarts.pause_seconds("campaign") == 30


@pytest.mark.parametrize("state", [ProcessStates.EXITED, ProcessStates.STOPPED, ProcessStates.BACKOFF])
def test_only_a_fatal_program_is_started(state: int) -> None:
    """Not one that ended, with whatever status, nor one that was stopped or that supervisord still retries."""
    assert due_at(FatalRestarts(), 0.0, 10_000.0, state=state) == []


def test_a_stop_by_an_operator_clears_the_history() -> None:
    """From then on the operator decides about the program."""
    restarts = FatalRestarts()
    restarts.record_start("campaign")
    due_at(restarts, 0.0, state=ProcessStates.STOPPED)
    assert restarts.pause_seconds("campaign") == 30
