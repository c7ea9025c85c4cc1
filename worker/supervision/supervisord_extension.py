"""How supervisord ends: an extension that conf/supervisord.worker.conf loads into it.

Left to itself, supervisord stops its programs one after another and waits for each: with a few seconds of grace for
each job that is far more than the 10 seconds after which `docker stop` kills. Here programs stop together, and only
then the servers that they use. And left to itself, it goes on when none of its programs will ever run again; here it
ends with status 1, so that whoever started it sees that, and may start it anew.

It runs inside of supervisord (http://supervisord.org/xmlrpc.html#extending-the-xml-rpc-interface), and only when the
state of a program changes; it adds nothing to what can be asked of supervisord.
"""

from collections.abc import Sequence
from typing import Any

from supervisor import events
from supervisor.process import EventListenerPool
from supervisor.states import STOPPED_STATES, ProcessStates, SupervisorStates

NOTHING_RUNS = 1  # supervisord's exit status then
BAD_SETTINGS = 2  # of a program: worker/runtime/program.py, which supervisord has no use for


def extension(supervisord: Any, together_from: str) -> "SupervisordExtension":
    """What supervisord calls at its start, and again when it reloads.

    ``together_from``: programs of this priority and above stop at the same time, those below after them, the highest
    first.
    """
    return SupervisordExtension(supervisord, int(together_from))


class SupervisordExtension:
    """Listens to one supervisord's own events."""

    def __init__(self, supervisord: Any, together_from: int) -> None:
        self._supervisord = supervisord
        self._together_from = together_from
        self._in_vain = False
        # a signal, `supervisorctl shutdown` or `reload`, or our own wish
        events.subscribe(events.SupervisorStoppingEvent, lambda _: self._stop_next())
        events.subscribe(events.ProcessStateEvent, self._on_change)

    def _on_change(self, event: Any) -> None:
        if event.process.get_state() not in STOPPED_STATES:
            return
        if self._supervisord.options.mood < SupervisorStates.RUNNING:
            self._stop_next()
        elif nothing_will_run(self._processes()):
            self._in_vain = True
            self._supervisord.options.logger.critical(
                "no program runs any more, and none will without a change: supervisord ends; "
                "the programs' error logs have the reasons"
            )
            self._supervisord.options.mood = SupervisorStates.SHUTDOWN

    def _stop_next(self) -> None:
        """Those that stop together, while there are any; then the next of the others; then supervisord itself."""
        groups = [each for each in self._supervisord.process_groups.values() if each.get_unstopped_processes()]
        if not groups:
            if self._in_vain:
                raise SystemExit(NOTHING_RUNS)  # of its own accord it would end with 0
            return
        lowest = min(self._together_from, max(each.config.priority for each in groups))
        for group in groups:
            if group.config.priority >= lowest:
                group.stop_all()  # passes over those that are stopping already

    def _processes(self) -> list[Any]:
        """All but the event listeners, which do no work of their own."""
        groups = self._supervisord.process_groups.values()
        working = [each for each in groups if not isinstance(each, EventListenerPool)]
        return [process for group in working for process in group.processes.values()]


def nothing_will_run(processes: Sequence[Any]) -> bool:
    """Whether all have ended for good, and not all of them because they had nothing to do.

    A program that an operator stopped, or did not start yet, may be started at any time: then it is for them to say.
    """
    fatal = [each for each in processes if each.get_state() == ProcessStates.FATAL]
    ended = [each for each in processes if each.get_state() == ProcessStates.EXITED]
    if len(fatal) + len(ended) < len(processes):
        return False
    if any(each.exitstatus not in each.config.exitcodes for each in ended):
        return False  # it is about to be started again
    return bool(fatal) or any(each.exitstatus == BAD_SETTINGS for each in ended)
