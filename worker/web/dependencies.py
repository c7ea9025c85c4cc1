"""Whether Redis, PostgreSQL and Qdrant answer, what the jobs reported to Redis, and the work in progress.

The three are asked at the same time, with short time-outs, and their answers are kept for two seconds, so that a
flood of probes costs the servers nothing. A server that hangs is not asked again before its last question has ended,
and no request waits for it longer than ``WAIT_SECONDS``.
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
from worker.web.counter_history import HISTORY_KEY, CounterSampler, MinuteSample, parse_samples
from worker.web.warning_checks import WarningChecks, clock_warning, database_warnings, redis_warnings
from worker.web.work_in_progress import CampaignRates, WorkInProgress, read_work_in_progress

log = logging.getLogger(__name__)

KEPT_SECONDS = 2.0
WAIT_SECONDS = 2.0  # a probe is answered in less than three seconds, whichever server hangs
QUESTION_SECONDS = 1.5  # time for a server to answer one question
SERVICES = ("redis", "database", "qdrant")


@dataclass(frozen=True)
class Service:
    """Whether a server answered, and if not, why."""

    up: bool
    reason: str = ""


@dataclass(frozen=True)
class _RedisAnswer:
    readings: CounterReadings | None = None
    holders: Mapping[str, str] = field(default_factory=dict)
    history: tuple[MinuteSample, ...] = ()


@dataclass(frozen=True)
class _DatabaseAnswer:
    work: WorkInProgress | None = None
    work_error: str = ""


@dataclass(frozen=True)
class SystemSnapshot:
    """What was known at one moment."""

    services: Mapping[str, Service]
    readings: CounterReadings | None = None  # None: Redis is unavailable
    holders: Mapping[str, str] = field(default_factory=dict)  # lock name -> the token of its holder
    history: tuple[MinuteSample, ...] = ()  # of the last hour, oldest first
    work: WorkInProgress | None = None  # None: PostgreSQL is unavailable, or it refused the question:
    work_error: str = ""  # its reason, '' otherwise
    warnings: tuple[str, ...] = ()  # one sentence for the operator each

    def is_running(self, job: str) -> bool:
        """Whether a tick of this job is running: its process said so last, and its lock is held."""
        state = self.readings.jobs.get(job) if self.readings else None
        return bool(state and state.running and LOCKS[job] in self.holders)


class Dependencies:
    """One process's view of the servers. Thread-safe."""

    def __init__(self, settings: Settings) -> None:
        """Does not connect yet. Raises SettingsError for a REDIS_URL or DATABASE_URL that cannot be parsed."""
        try:
            self._redis = connect(settings.redis_url, timeout_seconds=QUESTION_SECONDS)
        except ValueError as error:
            raise SettingsError(f"REDIS_URL: {error}") from error
        self._db = Database(settings.database_url, "crm-worker web")
        self._rates = CampaignRates(time.monotonic)
        self._checks = WarningChecks()
        self._http = urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(total=QUESTION_SECONDS))
        self._qdrant_url = f"{settings.qdrant_url}/readyz"
        self._qdrant_headers = {"api-key": settings.qdrant_api_key} if settings.qdrant_api_key else {}
        self._threads = ThreadPoolExecutor(len(SERVICES), thread_name_prefix="probe")
        self._asked: dict[str, Future[Any]] = {}
        self._asking = threading.Lock()  # guards the two below; one request asks, the others wait for its answer
        self._snapshot: SystemSnapshot | None = None
        self._taken_at = 0.0
        self._reasons: dict[str, str] = {}  # service -> why it did not answer last time

    def sampler(self) -> CounterSampler:
        """The thread that records the last hour; not started."""
        return CounterSampler(self._redis, lambda: self.snapshot().readings)

    def snapshot(self) -> SystemSnapshot:
        """The current snapshot, at most two seconds old."""
        with self._asking:
            if self._snapshot is None or time.monotonic() - self._taken_at > KEPT_SECONDS:
                self._snapshot = self._ask()
                self._taken_at = time.monotonic()
            return self._snapshot

    def close(self) -> bool:
        """Closes the connections. Returns False when a thread still waits for a server: then do not wait for it."""
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
        wait(self._asked.values(), WAIT_SECONDS)
        services = {name: self._service(name) for name in questions}
        in_redis: _RedisAnswer = self._asked["redis"].result() if services["redis"].up else _RedisAnswer()
        in_database: _DatabaseAnswer = (
            self._asked["database"].result() if services["database"].up else _DatabaseAnswer()
        )
        return SystemSnapshot(
            services=services,
            readings=in_redis.readings,
            holders=in_redis.holders,
            history=in_redis.history,
            work=in_database.work,
            work_error=in_database.work_error,
            warnings=self._checks.warnings,
        )

    def _service(self, name: str) -> Service:
        asked = self._asked[name]
        if not asked.done():
            return self._state(name, f"no answer within {WAIT_SECONDS:g} s")
        error = asked.exception()
        if error is None:
            return self._state(name, "")
        if not isinstance(error, redis.RedisError | psycopg2.Error | HTTPError | OSError):
            log.error("a probe failed: a bug, please report it", exc_info=error)
        text = str(error).strip() or type(error).__name__
        return self._state(name, text.splitlines()[0])

    def _state(self, name: str, reason: str) -> Service:
        """The service's state; a change is logged once."""
        if self._reasons.get(name, "") != reason:
            if reason:
                log.warning("a server does not answer", {"server": name, "reason": reason})
            else:
                log.info("a server answers again", {"server": name})
        self._reasons[name] = reason
        return Service(not reason, reason)

    def _ask_redis(self) -> _RedisAnswer:
        readings = read_all(self._redis)
        names = list(LOCKS.values())
        with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.mget([f"lock:{name}" for name in names])
            pipeline.lrange(HISTORY_KEY, 0, -1)
            values, history = pipeline.execute()
        holders = {name: str(value) for name, value in zip(names, values, strict=True) if value}
        self._checks.run("redis", lambda: redis_warnings(self._redis))
        return _RedisAnswer(readings, holders, parse_samples(history))

    def _ask_database(self) -> _DatabaseAnswer:
        """Reads the work in progress.

        A database that answers is up, also when its tables are locked or missing, or may not be read.
        """
        before = time.time()
        row = self._db.one(
            "SELECT set_config('statement_timeout', %(limit)s, false), "
            "extract(epoch FROM clock_timestamp())::float8 AS at",
            limit=f"{QUESTION_SECONDS * 1000:.0f}ms",
        )
        offset_seconds = (row["at"] if row else before) - (before + time.time()) / 2
        self._checks.run("clock", lambda: filter(None, [clock_warning(offset_seconds)]))
        try:
            self._checks.run("database", lambda: database_warnings(self._db))
            return _DatabaseAnswer(read_work_in_progress(self._db, self._rates))
        except psycopg2.Error as error:
            if is_unavailable(error):
                raise
            return _DatabaseAnswer(work_error=str(error).strip().splitlines()[0])

    def _ask_qdrant(self) -> None:
        response = self._http.request("GET", self._qdrant_url, headers=self._qdrant_headers, redirect=False)
        if response.status != 200:
            raise HTTPError(f"HTTP {response.status}")
