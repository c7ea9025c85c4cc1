"""When a program that supervisord gave up (FATAL) is started again. Pure: the clock is passed in."""

from collections.abc import Iterable
from dataclasses import dataclass

from supervisor.states import ProcessStates

from worker.runtime.backoff import backoff_seconds
from worker.supervision.hang_detector import USUAL, Limits
from worker.supervision.supervisord_client import Program


@dataclass(slots=True)
class _Fall:
    """How often a program was started again in vain, and since when it is down (monotonic seconds)."""

    tries: int = 0
    since: float | None = None  # None: it is not down just now


class FatalRestarts:
    """Remembers the falls of each program until it ran for long, or somebody stopped it."""

    def __init__(self, limits: Limits = USUAL) -> None:
        self._limits = limits
        self._falls: dict[str, _Fall] = {}

    def look(self, programs: Iterable[Program], clock: float) -> list[str]:
        """The names of those that have been down for long enough. ``clock`` are monotonic seconds."""
        due = []
        for program in programs:
            if program.state == ProcessStates.FATAL:
                fall = self._falls.setdefault(program.name, _Fall())
                fall.since = clock if fall.since is None else fall.since
                if clock - fall.since >= self.pause_seconds(program.name):
                    due.append(program.name)
            elif self._is_over(program):
                self._falls.pop(program.name, None)
            elif program.name in self._falls:
                self._falls[program.name].since = None
        return due

    def started(self, program: str) -> int:
        """Notes a start; returns how many there were in a row. If it does not help, the next pause is longer."""
        fall = self._falls.setdefault(program, _Fall())
        fall.tries += 1
        fall.since = None
        return fall.tries

    def pause_seconds(self, program: str) -> float:
        """How long a program that falls now is left down."""
        fall = self._falls.get(program, _Fall())
        limits = self._limits
        return backoff_seconds(fall.tries + 1, limits.fatal_pause_seconds, limits.fatal_pause_limit_seconds)

    def _is_over(self, program: Program) -> bool:
        if program.state == ProcessStates.RUNNING:
            return program.running_seconds >= self._limits.settled_seconds
        return bool(program.state == ProcessStates.STOPPED)  # by an operator, who decides from here on
