"""bin/watchdog: supervisord's event listener.

It counts the exits and reports the states of all programs, restarts a job that hangs, and starts a program again that
supervisord gave up on (worker/supervision/program_monitor.py).

One thread only reads and answers supervisord's events, so that every event is answered at once. The main thread does
the rest, a burst of events at a time, and may wait for Redis or PostgreSQL meanwhile.
"""

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from queue import SimpleQueue

from worker.runtime import program
from worker.runtime.db import Database
from worker.supervision.event_listener import EventListener, ProtocolError, SupervisordEvent, reserve_stdout
from worker.supervision.limits import DEFAULT_LIMITS, WatchdogLimits
from worker.supervision.program_monitor import ProgramMonitor
from worker.supervision.supervisord_client import Supervisord

log = logging.getLogger(__name__)

DESCRIPTION = """\
supervisord's event listener, started by supervisord: counts the exits of all programs, restarts a job that hangs, and
starts a program again that supervisord gave up on. stdout carries supervisord's protocol; the log is on stderr."""

BURST_SECONDS = 0.2  # events that come within it are handled together: one request to supervisord for all of them
SUPERVISORD_TIMEOUT_SECONDS = 5.0
REDIS_TIMEOUT_SECONDS = 2.0  # several of them fit into stopwaitsecs

EventQueue = SimpleQueue[SupervisordEvent | None]  # None: the end


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    program.parser("watchdog", DESCRIPTION, "SIGTERM ends it cleanly.").parse_args(arguments)
    return program.run_main(listen)


def listen(limits: WatchdogLimits = DEFAULT_LIMITS) -> int:
    """Runs until supervisord closes stdin or stops it. Returns the exit status; raises SettingsError."""
    source = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - a thread reads it until the process ends
    listener = EventListener(source, reserve_stdout())
    if not program.is_worker():
        log.info("IS_WORKER is false: nothing to do here", {"job": "watchdog"})
        for _ in listener.events():
            pass  # still answered: unanswered events would fill supervisord's buffer
        return 0
    loaded = program.settings_from_environment("watchdog")
    socket.setdefaulttimeout(SUPERVISORD_TIMEOUT_SECONDS)  # supervisor's own client has no time-out
    supervisord = Supervisord(os.environ)  # supervisord puts its address into the environment of its listeners
    client = program.redis_client(loaded, timeout_seconds=REDIS_TIMEOUT_SECONDS)
    monitor = ProgramMonitor(supervisord, client, Database(loaded.database_url, "crm-worker watchdog"), limits)
    return _run(monitor, listener)


def _run(monitor: ProgramMonitor, listener: EventListener) -> int:
    events: EventQueue = SimpleQueue()
    broken: list[ProtocolError] = []

    def pass_on() -> None:
        try:
            for event in listener.events():
                events.put(event)
        except ProtocolError as error:
            broken.append(error)
        finally:
            events.put(None)

    signal.signal(signal.SIGTERM, lambda *_: events.put(None))
    signal.signal(signal.SIGINT, lambda *_: events.put(None))
    threading.Thread(target=pass_on, name="listener", daemon=True).start()
    log.info("started", {"job": "watchdog", "pid": os.getpid()})
    monitor.start()
    ending = False
    while not ending:
        burst, ending = _burst(events)
        monitor.handle(burst)
    monitor.close()
    if broken:
        log.error("cannot follow supervisord's events, the watchdog starts again", {"reason": broken[0]})
    log.info("ended", {"job": "watchdog"})
    return 1 if broken else 0


def _burst(events: EventQueue) -> tuple[list[SupervisordEvent], bool]:
    """Waits for an event; returns all that came within BURST_SECONDS, and whether the end was among them."""
    event = events.get()
    if event is None:
        return [], True
    burst = [event]
    time.sleep(BURST_SECONDS)
    while not events.empty():
        event = events.get()
        if event is None:
            return burst, True
        burst.append(event)
    return burst, False


if __name__ == "__main__":
    sys.exit(main())
