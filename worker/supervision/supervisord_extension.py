"""How supervisord ends: an extension that conf/supervisord.worker.conf loads into it.

By default supervisord stops its programs one after another and waits for each: with a few seconds of grace for each
job that takes far longer than the 10 seconds after which `docker stop` kills. With this extension the programs stop
together, and after them the servers that they use. By default supervisord also keeps running when none of its
programs will ever run again; with this extension it ends with status 1, so that Docker or systemd sees that and may
start it again.

It runs inside supervisord (http://supervisord.org/xmlrpc.html#extending-the-xml-rpc-interface), only when a program's
state changes. It adds no methods to supervisord's XML-RPC interface.
"""

from collections.abc import Sequence
from typing import Any

from supervisor import events
from supervisor.process import EventListenerPool
from supervisor.states import STOPPED_STATES, ProcessStates, SupervisorStates

NOTHING_RUNS = 1  # supervisord's exit status then
BAD_SETTINGS = 2  # a program's, as in worker/runtime/program.py; not imported from there to keep supervisord small


def extension(supervisord: Any, together_from: str) -> "SupervisordExtension":
    """supervisord calls this at its start, and again when it reloads.

    ``together_from``: programs of this priority and above stop at the same time, the others after them, the one with
    the highest priority first.
    """
    return SupervisordExtension(supervisord, int(together_from))


class SupervisordExtension:
    """Subscribes to the events inside one supervisord."""

    def __init__(self, supervisord: Any, together_from: int) -> None:
        self._supervisord = supervisord
        self._together_from = together_from
        self._nothing_runs = False
        # after a signal, `supervisorctl shutdown` or `reload`, or our own decision
        events.subscribe(events.SupervisorStoppingEvent, lambda _: self._stop_next_group())
        events.subscribe(events.ProcessStateEvent, self._on_change)

    def _on_change(self, event: Any) -> None:
        if event.process.get_state() not in STOPPED_STATES:
            return
        if self._supervisord.options.mood < SupervisorStates.RUNNING:
            self._stop_next_group()
        elif nothing_will_run(self._processes()):
            self._nothing_runs = True
            self._supervisord.options.logger.critical(
                "no program runs any more, and none will run again without a change: supervisord ends; "
                "the programs' error logs have the reasons"
            )
            self._supervisord.options.mood = SupervisorStates.SHUTDOWN

    def _stop_next_group(self) -> None:
        """Stops those that stop together; when they have ended, the next of the others; then supervisord itself."""
        groups = [each for each in self._supervisord.process_groups.values() if each.get_unstopped_processes()]
        if not groups:
            if self._nothing_runs:
                raise SystemExit(NOTHING_RUNS)  # supervisord itself would end with 0
            return
        lowest = min(self._together_from, max(each.config.priority for each in groups))
        for group in groups:
            if group.config.priority >= lowest:
                group.stop_all()  # ignores those that are stopping already

    def _processes(self) -> list[Any]:
        """All except the event listeners, which do no work of their own."""
        groups = self._supervisord.process_groups.values()
        working = [each for each in groups if not isinstance(each, EventListenerPool)]
        return [process for group in working for process in group.processes.values()]


def nothing_will_run(processes: Sequence[Any]) -> bool:
    """Whether all have ended for good, and at least one of them because of a failure or bad settings.

    An operator may start a program that was stopped, or was not started yet, at any time: then supervisord keeps
    running.
    """
    fatal = [each for each in processes if each.get_state() == ProcessStates.FATAL]
    ended = [each for each in processes if each.get_state() == ProcessStates.EXITED]
    if len(fatal) + len(ended) < len(processes):
        return False
    if any(each.exitstatus not in each.config.exitcodes for each in ended):
        return False  # it is about to be started again
    return bool(fatal) or any(each.exitstatus == BAD_SETTINGS for each in ended)
