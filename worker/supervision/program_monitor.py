"""What the watchdog does for supervisord's programs: count, tell, restart, bring back.

It reads what supervisord (supervisord_client.py) and the jobs' heartbeats say; hang_detector.py and fatal_restarts.py
decide.
"""

import logging
import socket
import time
from collections.abc import Callable, Iterable, Sequence

import redis
from supervisor.states import ProcessStates

from worker.runtime.clock import utc_now
from worker.runtime.counter_readings import CounterReadings, read_all
from worker.runtime.counters import Counters
from worker.runtime.db import UNAVAILABLE, Database
from worker.supervision.event_listener import SupervisordEvent
from worker.supervision.fatal_restarts import FatalRestarts
from worker.supervision.hang_detector import USUAL, Hang, HangDetector, Limits
from worker.supervision.pending_restarts import PendingRestarts
from worker.supervision.supervisord_client import Program, RequestRefused, ShuttingDown, Supervisord, SupervisordError

log = logging.getLogger(__name__)

ENDS = (ProcessStates.EXITED, ProcessStates.BACKOFF)  # by itself; an operator's stop is no exit


class ProgramMonitor:
    """One supervisord's programs."""

    def __init__(
        self,
        supervisord: Supervisord,
        client: redis.Redis,
        database: Database,
        limits: Limits = USUAL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._supervisord = supervisord
        self._client = client
        self._database = database
        self._clock = clock
        self._counters = Counters(client, "watchdog")
        host = socket.gethostname()
        self._hangs = HangDetector(host, limits)
        self._comebacks = FatalRestarts(limits)
        self._restarts = PendingRestarts(client, host)
        self._known: set[str] = set()
        self._with_bad_settings: set[str] = set()
        self._said: set[str] = set()  # what is away, and was said to be

    def begin(self) -> None:
        """What happened before this process was there is only known from the programs' present states."""
        self._restarts.recall()
        self.handle([])

    def handle(self, events: Sequence[SupervisordEvent]) -> None:
        """Counts, tells, and on a tick looks after the programs."""
        for event in events:
            self._count(event)
        programs = self._programs()
        due = self._comebacks.look(programs, self._clock())
        self._tell(programs)
        self._finish_restarts(programs)
        if any(event.is_tick for event in events):
            self._look_after(programs, due)
            self._counters.heartbeat(utc_now())  # a reader of the states may want to know how old they are
        else:
            self._counters.flush()

    def close(self) -> None:
        self._client.close()

    def _count(self, event: SupervisordEvent) -> None:
        if event.state is None:
            return
        self._counters.gauge("program_state", event.state, program=event.program)
        if event.state in ENDS:
            self._counters.add("program_exits_total", program=event.program)
        if event.state == ProcessStates.FATAL:
            pause = self._comebacks.pause_seconds(event.program)
            log.warning(
                "supervisord gave a program up, it will be started again",
                {"program": event.program, "after_seconds": pause},
            )

    def _programs(self) -> list[Program]:
        """None of them while supervisord cannot be asked."""
        try:
            programs = self._supervisord.programs()
        except ShuttingDown:
            return []  # and this process is about to be stopped
        except SupervisordError as error:
            self._say_away("supervisord", str(error))
            return []
        self._said.discard("supervisord")
        return programs

    def _tell(self, programs: Iterable[Program]) -> None:
        for each in programs:
            self._counters.gauge("program_state", each.state, program=each.name)
            self._counters.gauge("program_bad_settings", each.has_bad_settings, program=each.name)
            if each.name not in self._known:
                self._known.add(each.name)
                # Prometheus sees an increase only from one sample to the next: the first exit would go unseen
                self._counters.add("program_exits_total", 0, program=each.name)
            if not each.has_bad_settings:
                self._with_bad_settings.discard(each.name)
            elif each.name not in self._with_bad_settings:
                self._with_bad_settings.add(each.name)
                log.warning("program stays down: bad settings, its error log says which", {"program": each.name})

    def _finish_restarts(self, programs: Iterable[Program]) -> None:
        for each in programs:
            if each.name not in self._restarts.names or each.state == ProcessStates.STOPPING:
                continue
            if each.state == ProcessStates.STOPPED and not self._start(each.name, "it was stopped for its hanging"):
                continue  # tried again at the next event
            self._restarts.done(each.name)

    def _look_after(self, programs: Sequence[Program], due: Sequence[str]) -> None:
        readings = self._readings()
        jobs = readings.jobs if readings else None
        hung = self._hangs.look(programs, jobs, time.time(), self._clock())
        if not (hung or due) or readings is None or not self._database_answers():
            return  # a job that waits for a server does not hang, and starting one would be in vain
        for hang in hung:
            self._restart(hang)
        for name in due:
            tries = self._comebacks.started(name)
            self._start(name, f"supervisord gave it up, try {tries}")

    def _restart(self, hang: Hang) -> None:
        try:
            self._restarts.begin(hang.program)
            self._supervisord.stop(hang.program)
        except (redis.RedisError, SupervisordError) as error:
            log.error("a hung program could not be stopped", {"program": hang.program, "reason": error})
            if isinstance(error, redis.RedisError | RequestRefused):
                self._restarts.done(hang.program)  # else it may be stopping all the same
            return
        restarts = self._hangs.restarted(hang.program, self._clock())
        told = {"program": hang.program, "pid": hang.pid, "heartbeat_seconds_ago": round(hang.silent_seconds)}
        log.warning(
            "program hangs, it is restarted",
            told | {"interval_seconds": hang.interval_seconds, "restarts": restarts},
        )

    def _start(self, name: str, reason: str) -> bool:
        try:
            self._supervisord.start(name)
        except SupervisordError as error:
            log.error("a program could not be started", {"program": name, "reason": error})
            return False
        log.warning("program started", {"program": name, "reason": reason})
        return True

    def _readings(self) -> CounterReadings | None:
        try:
            readings = read_all(self._client)
        except redis.RedisError as error:
            self._say_away("Redis", str(error))
            return None
        self._said.discard("Redis")
        return readings

    def _database_answers(self) -> bool:
        try:
            self._database.connect().close()
        except UNAVAILABLE as error:
            self._say_away("PostgreSQL", str(error).strip())
            return False
        self._said.discard("PostgreSQL")
        return True

    def _say_away(self, server: str, reason: str) -> None:
        if server not in self._said:
            log.warning("cannot check the programs, a server is unavailable", {"server": server, "reason": reason})
        self._said.add(server)
