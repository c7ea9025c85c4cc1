"""When a program that supervisord gave up on (FATAL) is started again. Pure: the clock is passed in."""

from collections.abc import Iterable
from dataclasses import dataclass

from supervisor.states import ProcessStates

from worker.runtime.backoff import backoff_seconds
from worker.supervision.limits import DEFAULT_LIMITS, WatchdogLimits
from worker.supervision.supervisord_client import ProgramStatus


@dataclass(slots=True)
class _History:
    """How often the watchdog started a program without lasting success, and since when it is FATAL."""

    starts: int = 0
    fatal_since: float | None = None  # monotonic seconds; None: it is not FATAL now


class FatalRestarts:
    """Keeps the history of each program until the program has run for long, or an operator stopped it."""

    def __init__(self, limits: WatchdogLimits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._histories: dict[str, _History] = {}

    def due(self, programs: Iterable[ProgramStatus], clock: float) -> list[str]:
        """The names of the programs to start now. ``clock`` is in monotonic seconds."""
        names = []
        for program in programs:
            if program.state == ProcessStates.FATAL:
                history = self._histories.setdefault(program.name, _History())
                history.fatal_since = clock if history.fatal_since is None else history.fatal_since
                if clock - history.fatal_since >= self.pause_seconds(program.name):
                    names.append(program.name)
            elif self._is_over(program):
                self._histories.pop(program.name, None)
            elif program.name in self._histories:
                self._histories[program.name].fatal_since = None
        return names

    def record_start(self, program: str) -> int:
        """Returns how many starts there were in a row. If this one does not help, the next pause is longer."""
        history = self._histories.setdefault(program, _History())
        history.starts += 1
        history.fatal_since = None
        return history.starts

    def pause_seconds(self, program: str) -> float:
        """How long a program that becomes FATAL now stays down."""
        history = self._histories.get(program, _History())
        limits = self._limits
        return backoff_seconds(history.starts + 1, limits.fatal_pause_seconds, limits.fatal_pause_limit_seconds)

    def _is_over(self, program: ProgramStatus) -> bool:
        if program.state == ProcessStates.RUNNING:
            return program.running_seconds >= self._limits.stable_seconds
        return bool(program.state == ProcessStates.STOPPED)  # by an operator, who decides from here on
