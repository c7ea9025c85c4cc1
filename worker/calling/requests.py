"""Requests to Twilio on their way, and what has to be done with their answers.

The requests run in threads. Their answers are settled in the thread that owns this object, which has the database
connection. An answer that cannot be settled because the database is unavailable is kept, and settled when the
database is back.
"""

import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import psycopg2

from worker.runtime.db import is_unavailable
from worker.runtime.signals import Signals
from worker.sending.requests import RequestThreads

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1  # how soon a signal is noticed
ROUND_SECONDS = 1.0  # a request that hangs does not keep a tick from ending


@dataclass(frozen=True, slots=True)
class _PendingSettlement:
    """What to do when a request has ended, or was cancelled by a signal. ``key``: what the request is about."""

    key: str
    settle: Callable[[Future[Any]], None]


class CallRequests:
    """The requests of one process; at most ``size`` run at once."""

    def __init__(self, size: int, signals: Signals, grace_seconds: float) -> None:
        self._signals = signals
        self._grace_seconds = grace_seconds
        self._threads: RequestThreads[_PendingSettlement, Any] = RequestThreads(size)
        self._ended: deque[tuple[_PendingSettlement, Future[Any]]] = deque()  # not settled yet
        self._drain_until: float | None = None  # time.monotonic()
        self._look: Callable[[], None] | None = None

    @property
    def keys(self) -> set[str]:
        """The keys of the requests that wait, run, or are not settled yet."""
        return {each.key for each in self._threads.owners} | {each.key for each, _ in self._ended}

    @property
    def free(self) -> int:
        """How many more requests would find a thread at once."""
        return max(0, self._threads.free - len(self._ended))

    def submit(self, key: str, request: Callable[[], object], settle: Callable[[Future[Any]], None]) -> None:
        """``settle`` is called with the request when it has ended, or was cancelled because of a signal."""
        self._threads.submit(_PendingSettlement(key, settle), request)

    def look_before_waiting(self, look: Callable[[], None]) -> None:
        """``look`` is called each time before requests are waited for: a few times a second."""
        self._look = look

    def settle_finished(self, seconds: float) -> None:
        """Settles the requests that have ended; waits at most so long for one.

        Raises psycopg2.Error when the database is unavailable.
        """
        if self._look:
            self._look()
        if not self._ended:
            self._threads.wait(seconds)
        self._ended += self._threads.collect()
        while self._ended:
            self._settle(*self._ended.popleft())

    def finish(self) -> None:
        """Settles all requests; those that hang are left to the next ticks. On a signal: within the grace time."""
        until = time.monotonic() + ROUND_SECONDS
        while self._is_busy and time.monotonic() < until:
            if self._signals.stopping:
                self.drain()
                return
            self.settle_finished(POLL_SECONDS)

    def drain(self) -> None:
        """Starts no more requests, and settles those that end within the grace time.

        The grace time runs from the first call of this method.
        """
        if self._drain_until is None:
            self._drain_until = time.monotonic() + self._grace_seconds
        self._threads.cancel_waiting()
        self.settle_finished(0.0)
        while self._is_busy and time.monotonic() < self._drain_until:
            self.settle_finished(POLL_SECONDS)

    def close(self) -> bool:
        """Ends the threads; False when some of them still wait for Twilio."""
        return self._threads.close()

    @property
    def _is_busy(self) -> bool:
        return bool(self._threads or self._ended)

    def _settle(self, settlement: _PendingSettlement, request: Future[Any]) -> None:
        try:
            settlement.settle(request)
        except psycopg2.Error as error:
            if is_unavailable(error):
                self._ended.appendleft((settlement, request))
                raise
            reason = error.diag.message_primary or type(error).__name__  # its details may hold phone numbers
            log.error("the database refused the outcome of a request", {"id": settlement.key, "reason": reason})
