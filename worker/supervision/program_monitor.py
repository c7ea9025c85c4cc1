"""What the watchdog does for supervisord's programs: counts exits, reports states, restarts what hangs or is FATAL.

It reads supervisord's answers (supervisord_client.py) and the jobs' heartbeats in Redis; hang_detector.py and
fatal_restarts.py decide what to restart.
"""

import logging
import socket
import time
from collections.abc import Iterable, Sequence
from datetime import UTC

import redis
from supervisor.states import ProcessStates

from worker.runtime.clock import utc_now
from worker.runtime.counter_readings import CounterReadings, read_all
from worker.runtime.counters import Counters
from worker.runtime.db import UNAVAILABLE, Database
from worker.supervision.event_listener import SupervisordEvent
from worker.supervision.fatal_restarts import FatalRestarts
from worker.supervision.hang_detector import Hang, HangDetector
from worker.supervision.limits import WatchdogLimits
from worker.supervision.pending_restarts import PendingRestarts
from worker.supervision.silent_machines import REPORTED_AT, SilentMachines
from worker.supervision.supervisord_client import (
    ProgramStatus,
    RequestRefused,
    ShuttingDown,
    Supervisord,
    SupervisordError,
)

log = logging.getLogger(__name__)

EXITS = (ProcessStates.EXITED, ProcessStates.BACKOFF)  # by itself; a stop by an operator is not an exit


class ProgramMonitor:
    """Watches the programs of one supervisord."""

    def __init__(
        self,
        supervisord: Supervisord,
        client: redis.Redis,
        database: Database,
        limits: WatchdogLimits,
    ) -> None:
        self._supervisord = supervisord
        self._client = client
        self._database = database
        self._counters = Counters(client, "watchdog")
        self._host = host = socket.gethostname()
        self._hang_detector = HangDetector(host, limits)
        self._fatal_restarts = FatalRestarts(limits)
        self._pending_restarts = PendingRestarts(client, host)
        self._silent_machines = SilentMachines(limits.machine_kept_seconds)
        self._known: set[str] = set()
        self._with_bad_settings: set[str] = set()
        self._reported_unavailable: set[str] = set()  # servers

    def start(self) -> None:
        """Reads the present states: the events before the start of this process are lost."""
        self._pending_restarts.load()
        self.handle([])

    def handle(self, events: Sequence[SupervisordEvent]) -> None:
        """Counts exits and reports states; on a tick also restarts what hangs or is FATAL."""
        for event in events:
            self._count(event)
        programs = self._programs()
        due = self._fatal_restarts.due(programs, time.monotonic())
        self._report(programs)
        self._finish_restarts(programs)
        if any(event.is_tick for event in events):
            self._restart_programs(programs, due)
            self._counters.heartbeat(utc_now())  # shows readers of the states how old they are
        else:
            self._counters.flush()

    def close(self) -> None:
        self._client.close()

    def _count(self, event: SupervisordEvent) -> None:
        if event.state is None:
            return
        self._counters.gauge("program_state", event.state, program=event.program, host=self._host)
        if event.state in EXITS:
            self._counters.add("program_exits_total", program=event.program)
        if event.state == ProcessStates.FATAL:
            pause = self._fatal_restarts.pause_seconds(event.program)
            log.warning(
                "supervisord gave up on a program, it will be started again",
                {"program": event.program, "after_seconds": pause},
            )

    def _programs(self) -> list[ProgramStatus]:
        """Empty while supervisord does not answer."""
        try:
            programs = self._supervisord.programs()
        except ShuttingDown:
            return []  # and this process is about to be stopped
        except SupervisordError as error:
            self._warn_unavailable("supervisord", str(error))
            return []
        self._reported_unavailable.discard("supervisord")
        return programs

    def _report(self, programs: Iterable[ProgramStatus]) -> None:
        self._counters.gauge(REPORTED_AT, utc_now().replace(tzinfo=UTC).timestamp(), host=self._host)
        for each in programs:
            self._counters.gauge("program_state", each.state, program=each.name, host=self._host)
            self._counters.gauge("program_bad_settings", each.has_bad_settings, program=each.name, host=self._host)
            if each.name not in self._known:
                self._known.add(each.name)
                # Prometheus sees an increase only between two samples: without this zero it would miss the first exit
                self._counters.add("program_exits_total", 0, program=each.name)
            if not each.has_bad_settings:
                self._with_bad_settings.discard(each.name)
            elif each.name not in self._with_bad_settings:
                self._with_bad_settings.add(each.name)
                log.warning(
                    "program stays down because of bad settings, its error log names them", {"program": each.name}
                )

    def _finish_restarts(self, programs: Iterable[ProgramStatus]) -> None:
        for each in programs:
            if each.name not in self._pending_restarts or each.state == ProcessStates.STOPPING:
                continue
            if each.state == ProcessStates.STOPPED and not self._start(each.name, "it was stopped because it hung"):
                continue  # tried again at the next event
            self._pending_restarts.remove(each.name)

    def _restart_programs(self, programs: Sequence[ProgramStatus], due: Sequence[str]) -> None:
        readings = self._readings()
        if readings:
            self._drop_silent_machines(readings)
        else:
            self._silent_machines.forget()
        jobs = readings.jobs if readings else None
        hung = self._hang_detector.check(programs, jobs, time.time(), time.monotonic())
        if not (hung or due) or readings is None:
            return
        now = self._database_time()
        if now is None:
            return  # a job that waits for a server does not hang, and starting one would not help
        if hung:  # by this machine's clock, which may be wrong: heartbeats have the database's time
            confirmed = self._hang_detector.check(programs, jobs, now, time.monotonic())
            hung = [hang for hang in hung if hang.program in {each.program for each in confirmed}]
        for hang in hung:
            self._restart(hang)
        for name in due:
            starts = self._fatal_restarts.record_start(name)
            self._start(name, f"supervisord gave up on it, attempt {starts}")

    def _drop_silent_machines(self, readings: CounterReadings) -> None:
        dropped = self._silent_machines.dropped(readings.gauges, time.monotonic())
        for each in dropped:
            self._counters.drop_gauge(each.metric, **each.labels)
        for host in sorted({each.labels["host"] for each in dropped}):
            log.info("a machine reports nothing any more, what it reported is dropped", {"host": host})

    def _restart(self, hang: Hang) -> None:
        try:
            self._pending_restarts.add(hang.program)
            self._supervisord.stop(hang.program)
        except (redis.RedisError, SupervisordError) as error:
            log.error("a hung program could not be stopped", {"program": hang.program, "reason": error})
            if isinstance(error, redis.RedisError | RequestRefused):
                self._pending_restarts.remove(hang.program)  # otherwise supervisord may be stopping it
            return
        restarts = self._hang_detector.record_restart(hang.program, time.monotonic())
        log.warning(
            "program hangs, it is restarted",
            {
                "program": hang.program,
                "pid": hang.pid,
                "heartbeat_seconds_ago": round(hang.silent_seconds),
                "interval_seconds": hang.interval_seconds,
                "restarts": restarts,
            },
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
            self._warn_unavailable("Redis", str(error))
            return None
        self._reported_unavailable.discard("Redis")
        return readings

    def _database_time(self) -> float | None:
        """In Unix seconds; None while PostgreSQL cannot work."""
        try:
            now = self._database.read_time()
        except UNAVAILABLE as error:
            self._warn_unavailable("PostgreSQL", str(error).strip())
            return None
        finally:
            self._database.close()
        self._reported_unavailable.discard("PostgreSQL")
        return now.replace(tzinfo=UTC).timestamp()

    def _warn_unavailable(self, server: str, reason: str) -> None:
        """Once for each outage."""
        if server not in self._reported_unavailable:
            log.warning("programs cannot be checked: a server is unavailable", {"server": server, "reason": reason})
        self._reported_unavailable.add(server)
