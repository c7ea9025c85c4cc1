"""Lanes: requests to a provider that run side by side, and what is done with their answers.

Requests run in threads; answers are settled in the thread that asks for it, which has the database connection. An
answer that cannot be settled because the database is away is kept, and settled when it is back.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import psycopg2

from worker.runtime.db import is_unavailable
from worker.runtime.signals import Signals

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1  # how soon a signal is noticed
ROUND_SECONDS = 1.0  # a request that hangs does not keep a tick from ending

Settle = Callable[[Future[Any]], None]


class CallRequests:
    """So many requests at once; more wait in line."""

    def __init__(self, size: int, signals: Signals, grace_seconds: float) -> None:
        self.size = size
        self._signals = signals
        self._grace_seconds = grace_seconds
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="lane")
        self._in_flight: dict[Future[Any], tuple[str, Settle]] = {}
        self._drain_until: float | None = None  # time.monotonic()

    @property
    def keys(self) -> set[str]:
        """Whose requests are in line, on their way, or not settled yet."""
        return {key for key, _ in self._in_flight.values()}

    @property
    def free(self) -> int:
        """How many more requests would find a lane at once."""
        return max(0, self.size - len(self._in_flight))

    def submit(self, key: str, request: Callable[[], object], settle: Settle) -> None:
        """``settle`` is called with the ended (or, on a signal, cancelled) request."""
        self._in_flight[self._threads.submit(request)] = key, settle

    def finish(self) -> None:
        """Settles what is in flight; what hangs is left to the next ticks. On a signal: within the grace time."""
        until = time.monotonic() + ROUND_SECONDS
        while self._in_flight and time.monotonic() < until:
            if self._signals.stopping:
                self.drain()
                return
            self.settle_finished(POLL_SECONDS)

    def drain(self) -> bool:
        """Lets nobody else onto the wire; False when somebody is still there after the grace time.

        The grace time runs from the first time that this is called.
        """
        if self._drain_until is None:
            self._drain_until = time.monotonic() + self._grace_seconds
        for lane in list(self._in_flight):
            if lane.cancel():  # wait() would call it done only when a thread comes across it
                self._settle(lane)
        self.settle_finished(0.0)
        while self._in_flight and time.monotonic() < self._drain_until:
            self.settle_finished(POLL_SECONDS)
        return not self._in_flight

    def settle_finished(self, seconds: float) -> None:
        """Settles what has an answer; waits at most so long for one."""
        for lane in wait(self._in_flight, seconds, FIRST_COMPLETED).done:
            self._settle(lane)

    def _settle(self, lane: Future[Any]) -> None:
        key, settle = self._in_flight.pop(lane)
        try:
            settle(lane)
        except psycopg2.Error as error:
            if is_unavailable(error):
                self._in_flight[lane] = key, settle  # its answer is known: settled when the database is back
                raise
            reason = error.diag.message_primary or type(error).__name__  # its details may hold numbers
            log.error("the database refuses what became of a request", {"id": key, "reason": reason})

    def close(self) -> bool:
        """False: threads still wait for their provider."""
        ended = not self._in_flight
        self._threads.shutdown(wait=ended, cancel_futures=True)
        return ended
