"""Whether Redis, PostgreSQL and Qdrant can be used, what the jobs reported to Redis, and the work in progress.

The three are asked at the same time, with short time-outs, and their answers are kept for two seconds, so that a
flood of probes costs the servers nothing. A server that hangs is not asked again before its last question has ended,
and no request waits for it longer than ``WAIT_SECONDS``. A server that takes no writes is of no use to the jobs, but
what it answers is shown.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
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
from worker.runtime.diagnosis import POSTGRESQL
from worker.runtime.poisoned_keys import PoisonedKey, poisoned, read_keys
from worker.runtime.redis_client import connect
from worker.runtime.settings import Settings
from worker.web.campaign_forecasts import CampaignForecasts
from worker.web.counter_history import HISTORY, CounterSampler, MinuteSample, parse_samples
from worker.web.poisoned_redis import poison_warnings, repair
from worker.web.senders import read_senders
from worker.web.service import Service
from worker.web.warning_checks import (
    NUMBERS,
    WarningChecks,
    call_warnings,
    clock_warning,
    database_warnings,
    number_warnings,
    redis_warnings,
)
from worker.web.work_in_progress import CampaignRates, WorkInProgress, read_work_in_progress

log = logging.getLogger(__name__)

KEPT_SECONDS = 2.0
WAIT_SECONDS = 2.0  # a probe is answered in less than three seconds, whichever server hangs
QUESTION_SECONDS = 1.5  # time for a server to answer one question
RENEW_SECONDS = 30.0  # after that the connection to PostgreSQL is made anew: a job may get none, or a read-only one
SERVICES = ("redis", "database", "qdrant")
WRITE_PROBE_KEY = "worker:writable"


@dataclass(frozen=True)
class _RedisAnswer:
    refusal: str = ""  # why it takes no writes, '' when it does
    readings: CounterReadings | None = None
    holders: Mapping[str, str] = field(default_factory=dict)
    history: tuple[MinuteSample, ...] = ()
    poisoned: tuple[PoisonedKey, ...] = ()
    asides: tuple[str, ...] = ()


@dataclass(frozen=True)
class _DatabaseAnswer:
    refusal: str = ""  # as above
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
    poisoned: tuple[PoisonedKey, ...] = ()  # keys in Redis that are not as the worker writes them

    def is_running(self, job: str) -> bool:
        """Whether a tick of this job is running: its process said so last, and its lock is held."""
        state = self.readings.jobs.get(job) if self.readings else None
        return bool(state and state.running and LOCKS[job] in self.holders)


class Dependencies:
    """One process's view of the servers. Thread-safe."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        """Does not connect yet; ``clock`` counts seconds.

        Raises SettingsError for a REDIS_URL or DATABASE_URL that cannot be parsed.
        """
        try:
            self._redis = connect(settings.redis_url, timeout_seconds=QUESTION_SECONDS)
        except ValueError as error:
            raise SettingsError(f"REDIS_URL: {error}") from error
        self._db = Database(settings.database_url, "crm-worker web", statement_seconds=QUESTION_SECONDS)
        self._clock = clock
        self._connected_at = clock()
        self._rates = CampaignRates(clock)
        self._forecasts = CampaignForecasts(settings)
        self._senders = settings.campaign_sender_timeout_seconds if settings.is_spread else None
        self._checks = WarningChecks(clock)
        self._http = urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(total=QUESTION_SECONDS))
        self._qdrant_url = f"{settings.qdrant_url}/readyz"
        self._qdrant_headers = {"api-key": settings.qdrant_api_key} if settings.qdrant_api_key else {}
        self._threads = ThreadPoolExecutor(len(SERVICES), thread_name_prefix="probe")
        self._asked: dict[str, Future[Any]] = {}
        self._asking = threading.Lock()  # guards the two below; one request asks, the others wait for its answer
        self._snapshot: SystemSnapshot | None = None
        self._taken_at = 0.0
        self._services: dict[str, Service] = {}  # as they were last time
        self._poisoned: frozenset[str] = frozenset()  # what was poisoned last time

    def sampler(self) -> CounterSampler:
        """The thread that records the last hour, and puts aside what is poisoned in Redis; not started."""
        return CounterSampler(self._redis, self._repaired)

    def snapshot(self) -> SystemSnapshot:
        """The current snapshot, at most two seconds old."""
        with self._asking:
            if self._snapshot is None or self._clock() - self._taken_at > KEPT_SECONDS:
                self._snapshot = self._ask()
                self._taken_at = self._clock()
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

    def _repaired(self) -> CounterReadings | None:
        snapshot = self.snapshot()
        repair(self._redis, snapshot.poisoned, snapshot.readings)
        return snapshot.readings

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
        services = {name: self._service(name) for name in ("redis", "qdrant")}
        in_redis: _RedisAnswer = self._asked["redis"].result() if services["redis"].answers else _RedisAnswer()
        # only a write shows that a disk is full, and this process has nothing to write
        refused = in_redis.readings.refused_job(POSTGRESQL, time.time()) if in_redis.readings else None
        why = f"the job {refused} cannot write; see its last error" if refused else ""
        services["database"] = self._service("database", why)
        in_database: _DatabaseAnswer = (
            self._asked["database"].result() if services["database"].answers else _DatabaseAnswer()
        )
        self._log_poisoned(in_redis.poisoned)
        return SystemSnapshot(
            services=services,
            readings=in_redis.readings,
            holders=in_redis.holders,
            history=in_redis.history,
            work=in_database.work,
            work_error=in_database.work_error,
            warnings=(*self._checks.warnings, *poison_warnings(in_redis.poisoned, in_redis.asides)),
            poisoned=in_redis.poisoned,
        )

    def _service(self, name: str, refusal_of_jobs: str = "") -> Service:
        """``refusal_of_jobs``: why it takes no writes of the jobs, '' when it does."""
        asked = self._asked[name]
        if not asked.done():
            return self._changed(name, Service(up=False, reason=f"no answer within {WAIT_SECONDS:g} s"))
        error = asked.exception()
        if error is None:
            refusal = getattr(asked.result(), "refusal", "") or refusal_of_jobs
            return self._changed(name, Service(up=not refusal, reason=refusal, read_only=bool(refusal)))
        if not isinstance(error, redis.RedisError | psycopg2.Error | HTTPError | OSError):
            log.error("a probe failed: a bug, please report it", exc_info=error)
        return self._changed(name, Service(up=False, reason=_one_line(error)))

    def _changed(self, name: str, service: Service) -> Service:
        """The service's new state; a change is logged once."""
        before = self._services.get(name, Service(up=True))
        if before != service:
            if not service.up:
                what = "a server takes no writes" if service.read_only else "a server does not answer"
                log.warning(what, {"server": name, "reason": service.reason})
            else:
                log.info("a server answers again", {"server": name})
        self._services[name] = service
        return service

    def _log_poisoned(self, found: tuple[PoisonedKey, ...]) -> None:
        now = {each.own.name: each for each in found}
        for name in now.keys() - self._poisoned:
            log.warning("a key in Redis is poisoned, it is left out", {"key": name, "reason": now[name].reason})
        self._poisoned = frozenset(now)

    def _ask_redis(self) -> _RedisAnswer:
        readings = read_all(self._redis, LOCKS)
        (history,) = read_keys(self._redis, [HISTORY])
        names = list(LOCKS.values())
        with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.mget([f"lock:{name}" for name in names])
            # a no-op that Redis refuses as it would refuse any write: there is no such key, and nothing to write
            pipeline.setrange(WRITE_PROBE_KEY, 0, "")
            values, written = pipeline.execute(raise_on_error=False)
        if isinstance(values, Exception):
            raise values
        holders = {name: str(value) for name, value in zip(names, values, strict=True) if value}
        self._checks.run("redis", lambda: redis_warnings(self._redis))
        bad_history = poisoned(history)
        return _RedisAnswer(
            refusal=_refusal(written),
            readings=readings,
            holders=holders,
            history=parse_samples(history.entries),
            poisoned=(*readings.poisoned, *([bad_history] if bad_history else [])),
            asides=(*readings.asides, *history.asides),
        )

    def _ask_database(self) -> _DatabaseAnswer:
        """Reads the work in progress.

        A database that answers is up, also when its tables are locked or missing, unless it takes no writes.
        """
        if self._clock() - self._connected_at > RENEW_SECONDS:
            self._db.close()
            self._connected_at = self._clock()
        before = time.time()
        row = self._db.one(
            "SELECT extract(epoch FROM clock_timestamp())::float8 AS at, pg_is_in_recovery() AS standby, "
            "current_setting('transaction_read_only')::bool AS read_only"
        ) or {"at": before, "standby": False, "read_only": False}
        offset_seconds = row["at"] - (before + time.time()) / 2
        self._checks.run("clock", lambda: filter(None, [clock_warning(offset_seconds)]))
        work, work_error = self._read_work()
        if row["read_only"]:
            self._db.close()  # the next one may be writable, after a failover
        why = "it is a standby server" if row["standby"] else "default_transaction_read_only is on"
        return _DatabaseAnswer(why if row["read_only"] else "", work, work_error)

    def _read_work(self) -> tuple[WorkInProgress | None, str]:
        """The work in progress, or why it cannot be read."""
        try:
            self._checks.run(NUMBERS, lambda: number_warnings(self._db))
            self._checks.run("database", lambda: database_warnings(self._db))
            work = read_work_in_progress(self._db, self._rates, self._forecasts)
            if self._senders is not None:
                work = replace(work, senders=read_senders(self._db, self._senders))
            self._checks.run("calls", lambda: call_warnings(self._db))
        except psycopg2.Error as error:
            if is_unavailable(error):
                raise
            return None, _one_line(error)
        return work, ""

    def _ask_qdrant(self) -> None:
        response = self._http.request("GET", self._qdrant_url, headers=self._qdrant_headers, redirect=False)
        if response.status != 200:
            raise HTTPError(f"HTTP {response.status}")


def _one_line(error: BaseException) -> str:
    """The first line of its text; of several hosts that libpq tried, a line for each."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return "; ".join(lines[:1] + [each for each in lines[1:] if each.startswith("connection to server at ")])


def _refusal(written: object) -> str:
    """Why Redis refused to write, when it would refuse any write; '' otherwise."""
    refuses_all = isinstance(written, redis.ReadOnlyError | redis.OutOfMemoryError) or (
        isinstance(written, redis.ResponseError) and str(written).startswith(("NOREPLICAS", "MISCONF"))
    )
    return str(written) if refuses_all else ""
