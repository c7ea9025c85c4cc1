"""bin/watchdog: supervisord's event listener.

It counts the exits and tells the states of all programs, restarts a job that hangs, and starts a program again that
supervisord gave up (worker/supervision/program_monitor.py).

One thread talks with supervisord and nothing else, so that every event is answered at once; the main thread does the
rest, a burst of events at a time, and may wait for Redis or PostgreSQL meanwhile.
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

from worker.errors import SettingsError
from worker.runtime import program
from worker.runtime.db import Database
from worker.runtime.redis_client import connect
from worker.supervision.event_listener import EventListener, OutOfStep, SupervisordEvent, reserve_stdout
from worker.supervision.hang_detector import USUAL, Limits
from worker.supervision.program_monitor import ProgramMonitor
from worker.supervision.supervisord_client import Supervisord

log = logging.getLogger(__name__)

DESCRIPTION = """\
The event listener of supervisord, which starts it: counts the exits of all programs, restarts a job that hangs, and
starts a program again that supervisord gave up. On stdout it speaks supervisord's protocol; its log is stderr."""

BURST_SECONDS = 0.2  # events that come together are dealt with together: so often is supervisord asked at most
ANSWER_SECONDS = 5.0  # for supervisord's answer
REDIS_SECONDS = 2.0  # for Redis's: a few of them fit into stopwaitsecs

Queue = SimpleQueue[SupervisordEvent | None]  # None: the end


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    program.parser("watchdog", DESCRIPTION, "SIGTERM ends it in good order.").parse_args(arguments)
    return program.run_main(listen)


def listen(limits: Limits = USUAL) -> int:
    """Listens until supervisord hangs up or stops it. Returns the exit status; raises SettingsError."""
    source = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - a thread reads it until the very end
    listener = EventListener(source, reserve_stdout())
    if not program.is_worker():
        log.info("IS_WORKER is false: nothing to do here", {"job": "watchdog"})
        for _ in listener.events():
            pass  # answered all the same: events would pile up in supervisord
        return 0
    loaded = program.settings_from_environment("watchdog")
    socket.setdefaulttimeout(ANSWER_SECONDS)  # supervisor's own client knows no time-out
    supervisord = Supervisord(os.environ)  # which tells its listeners there how to reach it
    try:
        client = connect(loaded.redis_url, timeout_seconds=REDIS_SECONDS)
    except ValueError as error:
        raise SettingsError(f"REDIS_URL: {error}") from error
    upkeep = ProgramMonitor(supervisord, client, Database(loaded.database_url, "crm-worker watchdog"), limits)
    return _run(upkeep, listener)


def _run(upkeep: ProgramMonitor, listener: EventListener) -> int:
    events: Queue = SimpleQueue()
    broken: list[OutOfStep] = []

    def pass_on() -> None:
        try:
            for event in listener.events():
                events.put(event)
        except OutOfStep as error:
            broken.append(error)
        finally:
            events.put(None)

    signal.signal(signal.SIGTERM, lambda *_: events.put(None))
    signal.signal(signal.SIGINT, lambda *_: events.put(None))
    threading.Thread(target=pass_on, name="listener", daemon=True).start()
    log.info("started", {"job": "watchdog", "pid": os.getpid()})
    upkeep.begin()
    ending = False
    while not ending:
        burst, ending = _burst(events)
        upkeep.handle(burst)
    upkeep.close()
    if broken:
        log.error("cannot follow supervisord, begins anew", {"reason": broken[0]})
    log.info("ended", {"job": "watchdog"})
    return 1 if broken else 0


def _burst(events: Queue) -> tuple[list[SupervisordEvent], bool]:
    """Waits for an event; returns all that came with it, and whether it was the end."""
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
