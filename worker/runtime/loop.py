"""The loop that every job runs in: lock, tick, counters, sleep.

Ticks are aligned to the wall clock of the job's zone (a 30 s job runs at :00 and :30, a daily one at midnight).
They never overlap, and several missed ticks are run as one. A tick says when it wants to run next; the next tick is
then or at the next interval, whichever is sooner. While PostgreSQL or Redis cannot work, or the machine lacks
resources, the loop retries with a growing pause; it logs the outage once, and continues by itself when it is over.

All times of a tick are the database's, read at its start (worker/runtime/clock.py).
"""

import logging
import time
from datetime import datetime, timedelta

from worker.errors import SchemaError, SettingsError, TickFailed, WorkerError
from worker.runtime.backoff import backoff_seconds
from worker.runtime.diagnosis import MACHINE, Diagnosis, diagnose
from worker.runtime.job import Job, JobContext, TickResult
from worker.runtime.redis_client import require_no_cluster
from worker.runtime.rest import LEAST_REST_SECONDS, Rest
from worker.runtime.schedule import next_aligned

log = logging.getLogger(__name__)

OUTAGE_PAUSE_SECONDS = 1.0  # doubles with each failure
OUTAGE_PAUSE_LIMIT_SECONDS = 30.0
REPEATED_PAUSE_SECONDS = 1.0  # before the next tick when ticks fail again and again; doubles with each failure
REPEATED_PAUSE_LIMIT_SECONDS = 120.0  # less than the silence after which the watchdog restarts a job
IDLE_PAUSE_SECONDS = 0.05  # before the next tick when a tick did nothing and wants to run again at once


class Loop:
    """Runs one job until a signal stops it."""

    def __init__(self, job: Job, context: JobContext) -> None:
        self._job = job
        self._name = context.name
        self._context = context
        self._lock = context.lock
        self._counters = context.counters
        self._signals = context.signals
        self._clock = context.clock
        self._started = False
        self.rest: Rest | None = None  # the loop ended because the job rests
        self.all_ended = True  # False: a thread still waits for a provider
        self._failures = 0  # ticks in a row that failed because a server could not work
        self._outage_reported: Diagnosis | None = None  # the latest one of the present outage
        self._unexpected = 0  # ticks in a row that failed with the same unexpected error
        self._unexpected_error = ""
        self._failed = False  # whether the last tick failed
        self._skipped = False  # whether the last tick was skipped because another worker has the lock
        self._stands_by = False  # whether it was because this machine stands by

    def run(self, *, once: bool, after: Rest | None = None) -> int:
        """Runs ticks until a signal, or with ``once`` until everything due is done. Returns the exit status.

        It also ends when the job can ``rest`` until its next tick. ``after``: continues after a rest.
        """
        try:
            if after is not None:
                self._started = True
                self._sleep_until(after.wake_at)
            while not self._signals.stopping:
                result = self._locked_tick(self._clock())
                if once and not result.unfinished:
                    return 1 if self._failed else 0
                wake_at = result.next_at or self._next_interval()
                if not once and self._may_rest(result, wake_at):
                    self.rest = self._context.rest_until(wake_at)
                if self.rest is not None:
                    return 0
                self._sleep_until(wake_at)
            log.info("signal received, stopping", {"job": self._name})
            return 0
        finally:
            self._lock.close()
            self._counters.flush()
            self.all_ended = self._job.close()
            self._context.close()

    def _locked_tick(self, now: datetime) -> TickResult:
        """Runs one tick under the lock. The result says when the next one is, also after a failure."""
        began = time.monotonic()
        self._failed = False
        try:
            if not self._started:
                require_no_cluster(self._context.redis)
                self._lock.require_no_cluster()
            if self._context.stands_by:
                return self._stand_by(now)
            if not self._lock.acquire():
                return self._skip(now)
            try:
                result = self._tick()
            finally:
                self._lock.release()
        except (SettingsError, SchemaError):
            raise
        except TickFailed as error:
            log.error("tick failed", {"job": self._name, "reason": error})
            self._failure(began, error)
            return TickResult(next_at=self._clock() + timedelta(seconds=error.delay_seconds), may_rest=True)
        except Exception as error:  # noqa: BLE001 - what nobody expects must not end the program either
            return self._failed_tick(began, error)
        self._recovered()
        self._skipped, self._stands_by, self._unexpected = False, False, 0
        self._counters.job_ended(self._clock(), "success", time.monotonic() - began, None)
        self._counters.flush()
        self._report(result, time.monotonic() - began)
        return result

    def _tick(self) -> TickResult:
        self._context.read_time()
        if not self._started:
            self._job.start()
            self._started = True
        now = self._clock()
        self._counters.job_started(now, self._job.interval_seconds)
        return self._job.tick(now)

    def _report(self, result: TickResult, seconds: float) -> None:
        done = {key: count for key, count in result.counts.items() if count}
        result.next_at = min(filter(None, [result.next_at, self._next_interval()]))
        log.debug("tick", {"job": self._name, **done, "seconds": round(seconds, 3), "next": result.next_at})
        at_once = result.next_at is not None and result.next_at <= self._clock()
        if not done and at_once:
            result.next_at = self._clock() + timedelta(seconds=IDLE_PAUSE_SECONDS)

    def _skip(self, now: datetime) -> TickResult:
        """Another worker holds the lock: tries again soon enough to notice when that lock expires."""
        self._recovered()
        if not self._skipped:
            log.info(
                "another worker holds the lock",
                {"job": self._name, "lock": self._lock.key, "holder": self._lock.holder()},
            )
        self._skipped, self._stands_by = True, False
        return self._look_again_soon(now)

    def _stand_by(self, now: datetime) -> TickResult:
        """This machine was told to do nothing: the lock is left to others."""
        self._recovered()
        if not self._stands_by:
            file = self._context.settings.state_dir / "standby"
            log.info("this machine stands by", {"job": self._name, "file": file})
        self._skipped, self._stands_by = False, True
        return self._look_again_soon(now)

    def _look_again_soon(self, now: datetime) -> TickResult:
        self._counters.job_ended(now, "skipped", 0.0, None)
        self._counters.flush()
        pause = min(self._job.interval_seconds, self._lock.ttl_ms / 3000)
        return TickResult(next_at=now + timedelta(seconds=pause))

    def _failed_tick(self, began: float, error: Exception) -> TickResult:
        diagnosis = diagnose(error)
        if diagnosis and diagnosis.waits:
            return self._outage(began, error, diagnosis)
        if not diagnosis and isinstance(error, WorkerError):
            log.error("tick failed", {"job": self._name, "reason": error})
            return self._failure(began, error)
        return self._unexpected_failure(began, error, diagnosis)

    def _outage(self, began: float, error: Exception, diagnosis: Diagnosis) -> TickResult:
        self._failures += 1
        if diagnosis != self._outage_reported:
            details = {"job": self._name, "server": diagnosis.server, "reason": _text(error)}
            log.error(diagnosis.message, details | ({"do": diagnosis.do} if diagnosis.do else {}))
        self._outage_reported = diagnosis
        self._context.disconnect()  # behind the same address there may be another server by now
        self._failure(began, error, diagnosis.server if diagnosis.takes_no_writes else "")
        pause = backoff_seconds(self._failures, OUTAGE_PAUSE_SECONDS, OUTAGE_PAUSE_LIMIT_SECONDS)
        return TickResult(next_at=self._clock() + timedelta(seconds=pause))

    def _unexpected_failure(self, began: float, error: Exception, diagnosis: Diagnosis | None) -> TickResult:
        """The next tick is at the next interval, or later when the same error comes again and again."""
        text = f"{type(error).__name__}: {_text(error)}"
        self._unexpected = self._unexpected + 1 if text == self._unexpected_error else 1
        self._unexpected_error = text
        pause = backoff_seconds(self._unexpected, REPEATED_PAUSE_SECONDS, REPEATED_PAUSE_LIMIT_SECONDS)
        next_at = max(self._next_interval(), self._clock() + timedelta(seconds=pause))
        details = {"job": self._name, "failures": self._unexpected, "next": next_at}
        if diagnosis:
            log.error(
                "tick failed", details | {"reason": _text(error), "server": diagnosis.server, "do": diagnosis.do}
            )
        elif self._unexpected == 1:
            log.error("tick failed: a bug, please report it", {"job": self._name}, exc_info=error)
        else:
            log.error("tick failed again with the same error", details | {"reason": text})
        self._failure(began, error)
        return TickResult(next_at=next_at)

    def _recovered(self) -> None:
        """Called when the servers of a tick answered."""
        if self._outage_reported:
            over = {"job": self._name, "failures": self._failures}
            if self._outage_reported.server == MACHINE:
                log.warning("this machine has enough resources again, the job continues", over)
            else:
                log.warning("the server is available again, the job continues", over)
        self._failures, self._outage_reported = 0, None

    def _failure(self, began: float, error: Exception, refused_by: str = "") -> TickResult:
        """``refused_by``: the server that answers, but takes no writes."""
        self._failed = True
        seconds = time.monotonic() - began
        self._counters.job_ended(self._clock(), "failure", seconds, _text(error), refused_by)
        self._counters.flush()
        return TickResult()

    def _next_interval(self) -> datetime:
        return next_aligned(self._clock(), self._job.interval_seconds, self._job.zone)

    def _may_rest(self, result: TickResult, wake_at: datetime) -> bool:
        """Whether another process can go on after the wait as this one would: it does not know what was reported."""
        reported = self._outage_reported or self._unexpected or self._skipped or self._stands_by
        if not result.may_rest or reported or self._signals.stopping or self._signals.tick_now:
            return False
        return (wake_at - self._clock()).total_seconds() >= LEAST_REST_SECONDS and self._counters.flush()

    def _sleep_until(self, wake_at: datetime) -> None:
        while not (self._signals.stopping or self._signals.tick_now):
            left = (wake_at - self._clock()).total_seconds()
            if left <= 0:
                break
            self._signals.wait(min(left, 60.0))  # not longer, because the wall clock may be changed in the meantime
        self._signals.tick_now = False


def _text(error: Exception) -> str:
    """In one line: libpq writes a line for each host."""
    return " ".join(str(error).split()) or type(error).__name__
