"""Requests to Twilio on their way, and what has to be done with their answers.

The requests run in threads. Their answers are settled in the thread that owns this object, which has the database
connection. Calls that were placed meanwhile are booked together. Requests wait here while the threads are busy and
answers are not settled: a webhook may ask for a call soon after its answer. An answer that cannot be settled because
the database is unavailable is kept, and settled when the database is back.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import psycopg2

from worker.calling.queued_call import Booking
from worker.runtime.db import is_unavailable
from worker.runtime.signals import Signals
from worker.sending.requests import RequestThreads

_Item = TypeVar("_Item")

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1  # how soon a signal is noticed
ROUND_SECONDS = 1.0  # a request that hangs does not keep a tick from ending


@dataclass(frozen=True, slots=True)
class _PendingSettlement:
    """What to do when a request has ended, or was cancelled by a signal. ``key``: what the request is about."""

    key: str
    settle: Callable[[Future[Any]], Booking | None]


@dataclass(frozen=True, slots=True)
class _WaitingRequest(_PendingSettlement):
    """One that no thread has taken yet."""

    request: Callable[[], object]


@dataclass(frozen=True, slots=True)
class _EndedRequest(_PendingSettlement):
    """One whose request has ended."""

    request: Future[Any]


class Booker(Protocol):
    """See CallSettlement."""

    def book_together(self, bookings: Sequence[Booking]) -> Sequence[Booking]: ...

    def book(self, booking: Booking) -> None: ...


class CallRequests:
    """The requests of one process; at most ``size`` run at once."""

    def __init__(self, size: int, signals: Signals, grace_seconds: float, booker: Booker) -> None:
        self._booker = booker
        self._signals = signals
        self._grace_seconds = grace_seconds
        self._threads: RequestThreads[_PendingSettlement, Any] = RequestThreads(size)
        self._waiting: deque[_WaitingRequest] = deque()
        self._ended: deque[_EndedRequest] = deque()  # not settled yet
        self._placed: deque[Booking] = deque()  # not booked yet
        self._drain_until: float | None = None  # time.monotonic()
        self._look: Callable[[], None] | None = None

    @property
    def keys(self) -> set[str]:
        """The keys of the requests that wait, run, or are not settled yet."""
        placed = {each.claim.id for each in self._placed}
        return placed | {each.key for each in (*self._waiting, *self._threads.owners, *self._ended)}

    @property
    def free(self) -> int:
        """How many more requests would find a thread at once."""
        return max(0, self._threads.free - len(self._waiting) - len(self._ended) - len(self._placed))

    def submit(
        self, key: str, request: Callable[[], object], settle: Callable[[Future[Any]], Booking | None]
    ) -> None:
        """``settle`` is called with the request when it has ended, or was cancelled because of a signal.

        What it returns is booked, together with the other calls that were placed meanwhile.
        """
        self._waiting.append(_WaitingRequest(key, settle, request))
        self._begin_waiting()

    def look_before_waiting(self, look: Callable[[], None]) -> None:
        """``look`` is called each time before requests are waited for: a few times a second."""
        self._look = look

    def settle_finished(self, seconds: float) -> None:
        """Settles the requests that have ended; waits at most so long for one.

        Raises psycopg2.Error when the database is unavailable.
        """
        if self._look:
            self._look()
        is_new = not (self._ended or self._placed)  # else the database was unavailable
        if is_new:
            self._begin_waiting()
            self._threads.wait(seconds)
        self._ended += [_EndedRequest(each.key, each.settle, request) for each, request in self._threads.collect()]
        if is_new:
            self._begin_waiting()  # while those that ended are settled
        while self._ended:
            self._settle(self._ended.popleft())
        self._book()

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
        while self._waiting:
            self._ended.append(_cancelled(self._waiting.popleft()))
        self._threads.cancel_waiting()
        self.settle_finished(0.0)
        while self._is_busy and time.monotonic() < self._drain_until:
            self.settle_finished(POLL_SECONDS)

    def close(self) -> bool:
        """Ends the threads; False when some of them still wait for Twilio."""
        return self._threads.close()

    @property
    def _is_busy(self) -> bool:
        return bool(self._waiting or self._threads or self._ended or self._placed)

    def _begin_waiting(self) -> None:
        """Raises RuntimeError when the machine has no thread for a request; then it goes on waiting."""
        while self._waiting and self._threads.free:
            first = self._waiting[0]
            self._threads.submit(_PendingSettlement(first.key, first.settle), first.request)
            self._waiting.popleft()

    def _settle(self, ended: _EndedRequest) -> None:
        with _put_back([ended], self._ended, ended.key):
            if booking := ended.settle(ended.request):
                self._placed.append(booking)

    def _book(self) -> None:
        """Books all placed calls together, or each alone when the database refuses one of them."""
        if len(self._placed) > 1:
            together = list(self._placed)
            self._placed.clear()
            with _put_back(together, self._placed, together[0].claim.id):
                self._placed += self._booker.book_together(together)
        while self._placed:
            booking = self._placed.popleft()
            with _put_back([booking], self._placed, booking.claim.id):
                self._booker.book(booking)


def _cancelled(waiting: _WaitingRequest) -> _EndedRequest:
    request: Future[Any] = Future()
    request.cancel()
    return _EndedRequest(waiting.key, waiting.settle, request)


@contextmanager
def _put_back(items: Sequence[_Item], queue: deque[_Item], key: str) -> Iterator[None]:
    """Keeps ``items`` for later when the database is unavailable; what it refuses is reported and dropped.

    ``key``: what they are about. Raises psycopg2.Error when the database is unavailable.
    """
    try:
        yield
    except psycopg2.Error as error:
        if is_unavailable(error):
            queue.extendleft(reversed(items))
            raise
        reason = error.diag.message_primary or type(error).__name__  # its details may hold phone numbers
        log.error("the database refused the outcome of a request", {"id": key, "reason": reason})
