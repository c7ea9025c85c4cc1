"""A job whose next tick is far away rests: until then its process needs 4 MB instead of 30 or more.

The program closes everything and replaces itself (execve) by resting_process.py, which waits and replaces itself by
the program again, a moment before the tick or when a signal comes. It stays one process with one pid, so supervisord,
the watchdog, and whoever sends a signal see no difference, and the program continues where it was: it does not say
that it started, and does not do again what a job does at its start.

No signal is lost on the way: the main thread blocks those that a program handles, and a thread that outlives a job's
own ones (providers/deadlines.py) never receives any.
"""

import json
import logging
import os
import signal
import sys
import threading
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NoReturn

from worker.runtime.clock import ClockReading, boot_seconds
from worker.runtime.signals import HANDLED, Signals

LEAST_REST_SECONDS = 60.0  # a shorter wait is not worth another start of Python
EARLY_SECONDS = 5.0  # the program is back so long before the tick: it takes half a second to start
ARGUMENT = "--after-rest"
JOIN_SECONDS = 1.0

_PROCESS = Path(__file__).resolve().with_name("resting_process.py")


@dataclass(frozen=True, slots=True)
class Rest:
    """What a program has to know when it continues."""

    wake_at: datetime  # when the next tick is due, UTC without a zone
    reading: ClockReading | None = None  # the latest one of the database's clock
    pooled: bool = False  # DATABASE_URL leads through a connection pooler, which was said

    def as_text(self) -> str:
        kept: dict[str, str | float | bool] = {"wake_at": self.wake_at.isoformat(), "pooled": self.pooled}
        if self.reading is not None:
            kept |= {"read": self.reading.at.isoformat(), "boot_seconds": self.reading.seconds}
        return json.dumps(kept)

    @classmethod
    def from_text(cls, text: str) -> "Rest":
        """Raises ValueError."""
        try:
            kept = json.loads(text)
            wake_at, pooled = datetime.fromisoformat(kept["wake_at"]), bool(kept.get("pooled"))
            if "read" not in kept:
                return cls(wake_at, pooled=pooled)
            reading = ClockReading(datetime.fromisoformat(kept["read"]), float(kept["boot_seconds"]))
            return cls(wake_at, reading, pooled)
        except (KeyError, TypeError) as error:
            raise ValueError(f"no rest: {text}") from error


def begin(rest: Rest, now: datetime, signals: Signals) -> NoReturn:
    """Replaces this process. A signal that came in the meantime ends the rest at once. Raises OSError."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(JOIN_SECONDS)  # it is about to end; until then it could receive a signal
    for number in signals.received:
        signal.pthread_kill(threading.get_ident(), number)  # now it stays pending until somebody handles it
    wake_at = boot_seconds() + (rest.wake_at - now).total_seconds() - EARLY_SECONDS
    command = [sys.executable, *_without_rest(sys.orig_argv[1:]), ARGUMENT, rest.as_text()]
    logging.shutdown()
    argv = [sys.executable, "-I", "-S", str(_PROCESS), str(wake_at), *command]
    os.execv(sys.executable, argv)  # noqa: S606 - without a shell


def _without_rest(arguments: list[str]) -> list[str]:
    return arguments[: arguments.index(ARGUMENT)] if ARGUMENT in arguments else arguments
