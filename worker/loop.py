"""The loop that every job runs in: lock, tick, counters, sleep.

Ticks are aligned to the wall clock of the job's zone (a 30 s job runs at :00 and :30, a daily one at midnight),
never overlap, and a missed one is run once. A tick says when it wants to run next; it is woken then or at the next
interval, whichever is sooner. When PostgreSQL or Redis is away the loop waits with a growing pause, says so once,
and goes on by itself when both are back.
"""

import logging
import select
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from types import FrameType
from typing import Protocol

import redis

from worker.alignment import next_aligned
from worker.counters import Counters
from worker.db import AWAY
from worker.errors import SchemaError, ServerAway, SettingsError, TickFailed, WorkerError
from worker.lock import Lock

log = logging.getLogger(__name__)

OUTAGE_PAUSE_SECONDS = 1.0  # doubles up to
OUTAGE_PAUSE_LIMIT_SECONDS = 30.0
IDLE_PAUSE_SECONDS = 0.05  # a tick that did nothing and wants to run at once waits so long all the same


def utc_now() -> datetime:
    """Now, as the CRM's database writes it: UTC without a zone."""
    return datetime.now(UTC).replace(tzinfo=None)


def growing_pause(failures: int, first_seconds: float, limit_seconds: float) -> float:
    """Seconds to wait after ``failures`` (at least 1) failures in a row: doubles, up to the limit."""
    return min(limit_seconds, first_seconds * 2.0 ** min(failures - 1, 30))


@dataclass
class Result:
    """What a tick did and when it wants to run next."""

    counts: dict[str, int] = field(default_factory=dict)  # for the log line; zeros are left out
    next_at: datetime | None = None  # None: at the next interval
    unfinished: bool = False  # work in hand is left that only its pace holds back: --once goes on


class Job(Protocol):
    """What the loop needs of a job."""

    name: str
    interval_seconds: float

    @property
    def zone(self) -> tzinfo:
        """On whose wall clock the interval is counted."""

    def start(self) -> None:
        """Called once before the first tick, again and again until the database can be reached."""

    def tick(self, now: datetime) -> Result:
        """Does what is due at ``now``."""

    def close(self) -> bool:
        """Closes connections; False: threads still wait for a provider, and nobody should wait for them."""


class Signals:
    """SIGTERM, SIGINT and SIGUSR1 as flags; the handlers do nothing else."""

    def __init__(self) -> None:
        self.stopping = False
        self.tick_now = False
        self._woken, self._waker = socket.socketpair()
        self._woken.setblocking(False)
        self._waker.setblocking(False)

    def install(self) -> None:
        """To be called in the main thread."""
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        signal.signal(signal.SIGUSR1, self._tick)

    def close(self) -> None:
        """At the very end: a signal is noted no more."""
        signal.set_wakeup_fd(-1)
        self._woken.close()
        self._waker.close()

    def wait(self, seconds: float) -> None:
        """Sleeps until a signal comes, at most so long."""
        ready, _, _ = select.select([self._woken], [], [], max(0.0, seconds))
        if ready:
            self._woken.recv(4096)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopping = True

    def _tick(self, number: int, frame: FrameType | None) -> None:
        self.tick_now = True


class Loop:
    """Runs one job until it is told to stop."""

    def __init__(
        self,
        job: Job,
        lock: Lock,
        counters: Counters,
        signals: Signals,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._job = job
        self._lock = lock
        self._counters = counters
        self._signals = signals
        self._clock = clock
        self._started = False
        self.all_ended = True  # whether no thread is left that waits for a provider
        self._failures = 0  # in a row, for want of PostgreSQL or Redis
        self._failed = False  # the last round
        self._skipped = False  # the last round

    def run(self, *, once: bool) -> int:
        """Runs ticks until a signal, or with ``once`` until all that is due is done. Returns the exit status."""
        try:
            while not self._signals.stopping:
                result = self._round(self._clock())
                if once and not result.unfinished:
                    return 1 if self._failed else 0
                self._sleep_until(result.next_at or self._next_interval())
            log.info("stopping on a signal", {"job": self._job.name})
            return 0
        finally:
            self._lock.close()
            self._counters.flush()
            self.all_ended = self._job.close()

    def _round(self, now: datetime) -> Result:
        """One tick under the lock, and what to do next when it failed."""
        began = time.monotonic()
        self._failed = False
        try:
            if not self._lock.acquire():
                return self._left_to_another(now)
            try:
                result = self._tick(now)
            finally:
                self._lock.release()
        except (SettingsError, SchemaError):
            raise
        except (*AWAY, redis.RedisError, ServerAway) as error:
            return self._outage(began, error)
        except TickFailed as error:
            log.error("tick failed", {"job": self._job.name, "reason": error})
            self._failure(began, error)
            return Result(next_at=self._clock() + timedelta(seconds=error.delay_seconds))
        except WorkerError as error:
            log.error("tick failed", {"job": self._job.name, "reason": error})
            return self._failure(began, error)
        except Exception as error:
            log.exception("tick failed: a bug, please report it", {"job": self._job.name})
            return self._failure(began, error)
        self._back()
        self._skipped = False
        self._counters.job_ended(self._clock(), "success", time.monotonic() - began, None)
        self._counters.flush()
        self._tell(result, time.monotonic() - began)
        return result

    def _tick(self, now: datetime) -> Result:
        if not self._started:
            self._job.start()
            self._started = True
        self._counters.job_started(now, self._job.interval_seconds)
        return self._job.tick(now)

    def _tell(self, result: Result, seconds: float) -> None:
        done = {key: count for key, count in result.counts.items() if count}
        result.next_at = min(filter(None, [result.next_at, self._next_interval()]))
        log.debug("tick", {"job": self._job.name, **done, "seconds": round(seconds, 3), "next": result.next_at})
        at_once = result.next_at is not None and result.next_at <= self._clock()
        if not done and at_once:
            result.next_at = self._clock() + timedelta(seconds=IDLE_PAUSE_SECONDS)

    def _left_to_another(self, now: datetime) -> Result:
        """Another worker holds the lock: try again well before its lock could have run out unnoticed."""
        self._back()
        if not self._skipped:
            log.info(
                "another worker is at it",
                {"job": self._job.name, "lock": self._lock.key, "holder": self._lock.holder()},
            )
        self._skipped = True
        self._counters.job_ended(now, "skipped", 0.0, None)
        self._counters.flush()
        pause = min(self._job.interval_seconds, self._lock.ttl_ms / 3000)
        return Result(next_at=now + timedelta(seconds=pause))

    def _outage(self, began: float, error: Exception) -> Result:
        self._failures += 1
        if self._failures == 1:
            log.error(
                "cannot work for want of a server; goes on by itself when it is back",
                {"job": self._job.name, "server": _server_of(error), "reason": str(error).strip()},
            )
        self._failure(began, error)
        pause = growing_pause(self._failures, OUTAGE_PAUSE_SECONDS, OUTAGE_PAUSE_LIMIT_SECONDS)
        return Result(next_at=self._clock() + timedelta(seconds=pause))

    def _back(self) -> None:
        if self._failures:
            log.warning("server is back, work goes on", {"job": self._job.name, "failures": self._failures})
        self._failures = 0

    def _failure(self, began: float, error: Exception) -> Result:
        self._failed = True
        self._counters.job_ended(self._clock(), "failure", time.monotonic() - began, str(error).strip())
        self._counters.flush()
        return Result()

    def _next_interval(self) -> datetime:
        return next_aligned(self._clock(), self._job.interval_seconds, self._job.zone)

    def _sleep_until(self, wake_at: datetime) -> None:
        while not (self._signals.stopping or self._signals.tick_now):
            left = (wake_at - self._clock()).total_seconds()
            if left <= 0:
                break
            self._signals.wait(min(left, 60.0))  # in pieces: the wall clock may be set meanwhile
        self._signals.tick_now = False


def _server_of(error: Exception) -> str:
    if isinstance(error, ServerAway):
        return error.server
    return "Redis" if isinstance(error, redis.RedisError) else "PostgreSQL"
