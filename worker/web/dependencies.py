"""Whether Redis, PostgreSQL and Qdrant answer, what the jobs told Redis, and what the database says is under way.

All are asked side by side, with short time-outs, and their answers are kept for two seconds, so that a flood of
probes costs the servers nothing. A server that hangs is not asked again before its last question came to an end, and
nobody waits for it longer than ``PATIENCE_SECONDS``.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import psycopg2
import redis
import urllib3
from urllib3.exceptions import HTTPError

from worker.errors import SettingsError
from worker.registry import LOCKS
from worker.runtime.counter_readings import CounterReadings
from worker.runtime.counters import read_all
from worker.runtime.db import Database, is_unavailable
from worker.runtime.redis_client import connect
from worker.runtime.settings import Settings
from worker.web.checks import WarningChecks, clock_warning, database_warnings, redis_warnings
from worker.web.history import RING, MinuteSample, Sampler, parsed
from worker.web.work import CampaignRates, WorkInProgress, read_work

log = logging.getLogger(__name__)

KEPT_SECONDS = 2.0
PATIENCE_SECONDS = 2.0  # a probe is answered in less than three seconds, whatever hangs
QUESTION_SECONDS = 1.5  # for one server to answer one question
SERVICES = ("redis", "database", "qdrant")


@dataclass(frozen=True)
class Service:
    """Whether a server answered, and if not, why."""

    up: bool
    reason: str = ""


@dataclass(frozen=True)
class _Told:
    """What PostgreSQL said."""

    clock_offset_seconds: float = 0.0
    work: WorkInProgress | None = None
    work_refused: str = ""


@dataclass(frozen=True)
class SystemSnapshot:
    """What was known at one moment. ``readings`` is None without Redis; ``holders``: lock name -> who holds it."""

    services: Mapping[str, Service]
    readings: CounterReadings | None = None
    holders: Mapping[str, str] = field(default_factory=dict)
    clock_offset_seconds: float = 0.0  # PostgreSQL's clock less ours
    history: tuple[MinuteSample, ...] = ()  # of the last hour, oldest first
    work: WorkInProgress | None = None  # None: PostgreSQL is away, or
    work_refused: str = ""  # ... answers, and why it does not tell
    warnings: tuple[str, ...] = ()  # what an operator should look at, in plain words

    def runs(self, job: str) -> bool:
        """Whether a tick of this job is under way: as its process said last, as long as its lock is held."""
        state = self.readings.jobs.get(job) if self.readings else None
        return bool(state and state.running and LOCKS[job] in self.holders)


class Dependencies:
    """One process's view of the servers. Thread-safe."""

    def __init__(self, settings: Settings) -> None:
        """Connects to nothing yet. Raises SettingsError for a REDIS_URL or DATABASE_URL that cannot be read."""
        try:
            self._redis = connect(settings.redis_url, timeout_seconds=QUESTION_SECONDS)
        except ValueError as error:
            raise SettingsError(f"REDIS_URL: {error}") from error
        self._db = Database(settings.database_url, "crm-worker web")
        self._paces = CampaignRates(time.monotonic)
        self._checks = WarningChecks()
        self._http = urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(total=QUESTION_SECONDS))
        self._qdrant_url = f"{settings.qdrant_url}/readyz"
        self._qdrant_headers = {"api-key": settings.qdrant_api_key} if settings.qdrant_api_key else {}
        self._threads = ThreadPoolExecutor(len(SERVICES), thread_name_prefix="probe")
        self._asked: dict[str, Future[Any]] = {}
        self._asking = threading.Lock()  # guards the next two, and lets one request ask for all
        self._snapshot: SystemSnapshot | None = None
        self._taken_at = 0.0
        self._said: dict[str, str] = {}

    def sampler(self) -> Sampler:
        """The thread that keeps the last hour; not started."""
        return Sampler(self._redis, lambda: self.snapshot().readings)

    def snapshot(self) -> SystemSnapshot:
        """What is known, at most two seconds old."""
        with self._asking:
            if self._snapshot is None or time.monotonic() - self._taken_at > KEPT_SECONDS:
                self._snapshot = self._ask()
                self._taken_at = time.monotonic()
            return self._snapshot

    def close(self) -> bool:
        """Closes connections; False: a thread still waits for a server, and nobody should wait for it."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if not all(asked.done() for asked in self._asked.values()):
            return False
        self._redis.close()
        self._http.clear()
        self._db.close()
        return True

    def _ask(self) -> SystemSnapshot:
        questions: dict[str, Callable[[], Any]] = {
            "redis": self._ask_redis,
            "database": self._ask_database,
            "qdrant": self._ask_qdrant,
        }
        for name, question in questions.items():
            if name not in self._asked or self._asked[name].done():
                self._asked[name] = self._threads.submit(question)
        wait(self._asked.values(), PATIENCE_SECONDS)
        services = {name: self._service(name) for name in questions}
        readings, holders, ring = self._asked["redis"].result() if services["redis"].up else (None, {}, ())
        told: _Told = self._asked["database"].result() if services["database"].up else _Told()
        return SystemSnapshot(
            services, readings, holders, told.clock_offset_seconds, ring, told.work, told.work_refused,
            self._checks.warnings,
        )  # fmt: skip

    def _service(self, name: str) -> Service:
        asked = self._asked[name]
        if not asked.done():
            return self._told(name, f"no answer within {PATIENCE_SECONDS:g} s")
        error = asked.exception()
        if error is None:
            return self._told(name, "")
        if not isinstance(error, redis.RedisError | psycopg2.Error | HTTPError | OSError):
            log.error("a probe failed: a bug, please report it", exc_info=error)
        text = str(error).strip() or type(error).__name__
        return self._told(name, text.splitlines()[0])

    def _told(self, name: str, reason: str) -> Service:
        """The service's state; a change is logged once."""
        if self._said.get(name, "") != reason:
            if reason:
                log.warning("a server does not answer", {"server": name, "reason": reason})
            else:
                log.info("a server answers again", {"server": name})
        self._said[name] = reason
        return Service(not reason, reason)

    def _ask_redis(self) -> tuple[CounterReadings, dict[str, str], tuple[MinuteSample, ...]]:
        readings = read_all(self._redis)
        names = list(LOCKS.values())
        with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.mget([f"lock:{name}" for name in names])
            pipeline.lrange(RING, 0, -1)
            values, ring = pipeline.execute()
        holders = {name: str(value) for name, value in zip(names, values, strict=True) if value}
        self._checks.look("redis", lambda: redis_warnings(self._redis))
        return readings, holders, parsed(ring)

    def _ask_database(self) -> _Told:
        """How far PostgreSQL's clock is ahead of ours, and what is under way.

        A database that answers is up, also where its tables are locked, missing or not ours to read.
        """
        before = time.time()
        row = self._db.one(
            "SELECT set_config('statement_timeout', %(limit)s, false), "
            "extract(epoch FROM clock_timestamp())::float8 AS at",
            limit=f"{QUESTION_SECONDS * 1000:.0f}ms",
        )
        offset = (row["at"] if row else before) - (before + time.time()) / 2
        self._checks.look("clock", lambda: filter(None, [clock_warning(offset)]))
        try:
            self._checks.look("database", lambda: database_warnings(self._db))
            return _Told(offset, read_work(self._db, self._paces))
        except psycopg2.Error as error:
            if is_unavailable(error):
                raise
            return _Told(offset, work_refused=str(error).strip().splitlines()[0])

    def _ask_qdrant(self) -> None:
        response = self._http.request("GET", self._qdrant_url, headers=self._qdrant_headers, redirect=False)
        if response.status != 200:
            raise HTTPError(f"HTTP {response.status}")
