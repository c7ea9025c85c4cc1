"""Whether Redis, PostgreSQL and Qdrant answer, and what the jobs told Redis.

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
from types import MappingProxyType
from typing import Any

import psycopg2
import redis
import urllib3
from urllib3.exceptions import HTTPError

from worker.counters import read_all
from worker.db import Database
from worker.readings import Readings
from worker.redis_client import connect
from worker.settings import Settings

log = logging.getLogger(__name__)

KEPT_SECONDS = 2.0
PATIENCE_SECONDS = 2.0  # a probe is answered in less than three seconds, whatever hangs
QUESTION_SECONDS = 1.5  # for one server to answer one question
LOCKS = MappingProxyType(
    {
        "campaign": "campaign-scheduler",
        "reminders": "lead-reminder-scheduler",
        "calls": "call-scheduler",
        "call-cleanup": "call-cleanup",
        "trial": "trial-expiration",
        "knowledge": "knowledge",
    }
)
SERVICES = ("redis", "database", "qdrant")


@dataclass(frozen=True)
class Service:
    """Whether a server answered, and if not, why."""

    up: bool
    reason: str = ""


@dataclass(frozen=True)
class Snapshot:
    """What was known at one moment. ``readings`` is None without Redis; ``holders``: lock name -> who holds it."""

    services: Mapping[str, Service]
    readings: Readings | None = None
    holders: Mapping[str, str] = field(default_factory=dict)
    clock_offset_seconds: float = 0.0  # PostgreSQL's clock less ours

    def runs(self, job: str) -> bool:
        """Whether a tick of this job is under way: as its process said last, as long as its lock is held."""
        state = self.readings.jobs.get(job) if self.readings else None
        return bool(state and state.running and LOCKS[job] in self.holders)


class Dependencies:
    """One process's view of the servers. Thread-safe."""

    def __init__(self, settings: Settings) -> None:
        """Connects to nothing yet. Raises ValueError for a REDIS_URL, SettingsError for a DATABASE_URL."""
        self._redis = connect(settings.redis_url, timeout_seconds=QUESTION_SECONDS)
        self._db = Database(settings.database_url, "crm-worker web")
        self._http = urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(total=QUESTION_SECONDS))
        self._qdrant_url = f"{settings.qdrant_url}/readyz"
        self._qdrant_headers = {"api-key": settings.qdrant_api_key} if settings.qdrant_api_key else {}
        self._threads = ThreadPoolExecutor(len(SERVICES), thread_name_prefix="probe")
        self._asked: dict[str, Future[Any]] = {}
        self._asking = threading.Lock()  # guards the next two, and lets one request ask for all
        self._snapshot: Snapshot | None = None
        self._taken_at = 0.0
        self._said: dict[str, str] = {}

    def snapshot(self) -> Snapshot:
        """What is known, at most two seconds old."""
        with self._asking:
            if self._snapshot is None or time.monotonic() - self._taken_at > KEPT_SECONDS:
                self._snapshot = self._ask()
                self._taken_at = time.monotonic()
            return self._snapshot

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._redis.close()
        self._http.clear()
        self._db.close()

    def _ask(self) -> Snapshot:
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
        readings, holders = self._asked["redis"].result() if services["redis"].up else (None, {})
        offset = self._asked["database"].result() if services["database"].up else 0.0
        return Snapshot(services, readings, holders, offset)

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

    def _ask_redis(self) -> tuple[Readings, dict[str, str]]:
        readings = read_all(self._redis)
        names = list(LOCKS.values())
        values = self._redis.mget([f"lock:{name}" for name in names])
        return readings, {name: str(value) for name, value in zip(names, values, strict=True) if value}

    def _ask_database(self) -> float:
        """Seconds that PostgreSQL's clock is ahead of ours."""
        before = time.time()
        row = self._db.one(
            "SELECT set_config('statement_timeout', %(limit)s, false), "
            "extract(epoch FROM clock_timestamp())::float8 AS at",
            limit=f"{QUESTION_SECONDS * 1000:.0f}ms",
        )
        return (row["at"] if row else before) - (before + time.time()) / 2

    def _ask_qdrant(self) -> None:
        response = self._http.request("GET", self._qdrant_url, headers=self._qdrant_headers, redirect=False)
        if response.status != 200:
            raise HTTPError(f"HTTP {response.status}")
