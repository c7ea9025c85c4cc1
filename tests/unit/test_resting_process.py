"""The small process that a resting job is: it wakes in time, loses no signal, and needs hardly any memory."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from worker.runtime.clock import ClockReading, boot_seconds
from worker.runtime.rest import Rest
from worker.runtime.resting_process import SIGNALS
from worker.runtime.signals import HANDLED

PROJECT = Path(__file__).resolve().parents[2]
RESTING = PROJECT / "worker" / "runtime" / "resting_process.py"
NOON = datetime(2026, 1, 31, 12)  # noqa: DTZ001 - UTC without a zone
DEADLINE_SECONDS = 60.0

# what follows the rest: says when it began and which signals are pending
PROGRAM = """
import json, signal, time
print(json.dumps([time.clock_gettime(time.CLOCK_BOOTTIME), *signal.sigpending()]))
"""


def block() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def rest(wake_at: float, *arguments: str, prepare: Callable[[], None] = block) -> "subprocess.Popen[str]":
    argv = [sys.executable, "-I", "-S", str(RESTING), str(wake_at), sys.executable, *arguments]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, preexec_fn=prepare)


def test_it_becomes_the_program_in_time() -> None:
    """Not before the time that it was told, and with no signal pending."""
    wake_at = boot_seconds() + 0.5
    out, _ = rest(wake_at, "-c", PROGRAM).communicate(timeout=DEADLINE_SECONDS)
    began, *pending = json.loads(out)
    assert began >= wake_at
    assert pending == []


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_the_rest_and_stays_pending(number: signal.Signals) -> None:
    """The program finds it when it has its handlers."""
    process = rest(boot_seconds() + 3600, "-c", PROGRAM)
    process.send_signal(number)
    out, _ = process.communicate(timeout=DEADLINE_SECONDS)
    assert json.loads(out)[1:] == [number]


def test_signals_that_came_before() -> None:
    """Both stay pending that came while the process was about to rest."""

    def interrupted() -> None:
        block()
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGUSR1)

    process = rest(boot_seconds() + 3600, "-c", PROGRAM, prepare=interrupted)
    out, _ = process.communicate(timeout=DEADLINE_SECONDS)
    assert set(json.loads(out)[1:]) == {signal.SIGTERM, signal.SIGUSR1}


def test_all_handled_signals_are_waited_for() -> None:
    """The two lists are one: the small process cannot import the other module."""
    assert set(SIGNALS) == set(HANDLED)


@pytest.mark.parametrize("known", [Rest(NOON), Rest(NOON, ClockReading(NOON, 12.5)), Rest(NOON, pooled=True)])
def test_what_the_program_is_told(known: Rest) -> None:
    assert Rest.from_text(known.as_text()) == known


@pytest.mark.parametrize("text", ["", "[]", "{}", "1", '{"wake_at": 1}', '{"wake_at": "2026-01-31", "read": "now"}'])
def test_what_no_program_was_told(text: str) -> None:
    """A person who types the hidden argument gets a message."""
    with pytest.raises(ValueError, match=r".+"):
        Rest.from_text(text)
