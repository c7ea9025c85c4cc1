"""Threads for requests to providers. Their answers are collected by the one thread that has the database.

A provider that takes minutes for an answer must not use up the threads of all tenants. So a request that has made no
progress for STUCK_SECONDS does not count any more: another thread takes its place, up to ``most`` in all. An account
begins with few threads and gets one more with each answer; while a request of it is stuck, it gets no other one. The
accounts of one kind of provider never have more than half of all threads.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Future, wait
from contextlib import suppress
from typing import Generic, NamedTuple, TypeVar

Owner = TypeVar("Owner")
Answer = TypeVar("Answer")

STUCK_SECONDS = 3.0  # most providers answer within a second
FIRST_THREADS = 2  # of an account that has not answered yet
MOST_TIMES = 6  # so many times the usual number of threads, while the others are stuck
ACCOUNTS_KEPT = 4096  # whose limits are remembered


class ProviderAccount(NamedTuple):
    """What becomes slow as a whole: ``name`` is an account at a ``kind`` of provider."""

    kind: str
    name: str


class _Request(Generic[Owner, Answer]):
    """A request, from its submission until it is collected."""

    def __init__(self, owner: Owner, account: ProviderAccount | None, call: Callable[[], Answer]) -> None:
        self.owner = owner
        self.account = account
        self.call = call
        self.future: Future[Answer] = Future()
        self.progress_at: float | None = None  # time.monotonic(); None while it waits for a thread
        self.stuck = False  # another thread has taken its place


class RequestThreads(Generic[Owner, Answer]):
    """A number of threads; more requests wait for a free one.

    Every request has an ``owner``: what it was made for. All methods but ``progressed`` are for the one thread that
    owns this object. ``account_of``: the account that a request of an owner goes through; without it all are alike.
    """

    def __init__(
        self,
        size: int,
        account_of: Callable[[Owner], ProviderAccount] | None = None,
        *,
        stuck_seconds: float = STUCK_SECONDS,
        first_threads: int = FIRST_THREADS,
    ) -> None:
        self.size = size
        self.most = MOST_TIMES * size
        self._account_of = account_of
        self._stuck_seconds = stuck_seconds
        self._first_threads = first_threads
        self._of_thread = threading.local()
        self._open: dict[Future[Answer], _Request[Owner, Answer]] = {}
        self._changed = threading.Condition()  # guards all that follows
        self._waiting: deque[_Request[Owner, Answer]] = deque()
        self._running: set[_Request[Owner, Answer]] = set()
        self._limits: dict[ProviderAccount | None, int] = {}
        self._threads: list[threading.Thread] = []
        self._closed = False

    def __len__(self) -> int:
        """How many requests wait, run, or ended without being collected."""
        return len(self._open)

    @property
    def owners(self) -> list[Owner]:
        """Whose requests these are."""
        return [request.owner for request in self._open.values()]

    @property
    def free(self) -> int:
        """How many more requests would find a thread at once."""
        with self._changed:
            self._relieve()
            stuck = sum(request.stuck for request in self._running)
            return max(0, min(self.size - len(self._open) + stuck, self.most - len(self._open)))

    @property
    def stuck(self) -> int:
        """How many requests have made no progress for so long that others have taken their place."""
        with self._changed:
            self._relieve()
            return sum(request.stuck for request in self._running)

    @property
    def only_stuck(self) -> bool:
        """Whether there are requests, and all of them are stuck or wait for a stuck one."""
        with self._changed:
            self._relieve()
            return bool(self._running) and all(request.stuck for request in self._running)

    def has_room(self, account: ProviderAccount, before: int = 0) -> bool:
        """Whether one more request through this account would find a thread after ``before`` others of it."""
        with self._changed:
            self._relieve()
            waits = sum(request.account == account for request in self._waiting)
            return self._admits(account, waits + before)

    def submit(self, owner: Owner, call: Callable[[], Answer]) -> None:
        """Raises RuntimeError when the machine has no thread for it; then the request is never run."""
        request = _Request(owner, self._account_of(owner) if self._account_of else None, call)
        self._open[request.future] = request
        with self._changed:
            self._waiting.append(request)
        try:
            self._begin_waiting()
        except RuntimeError:
            with self._changed:
                if request not in self._waiting:
                    return  # a thread that was there has taken it
                self._waiting.remove(request)
            del self._open[request.future]
            raise

    def progressed(self) -> None:
        """For a request that consists of several exchanges: one of them has just ended."""
        request: _Request[Owner, Answer] | None = getattr(self._of_thread, "request", None)
        if request is None:
            return
        request.progress_at = time.monotonic()
        # without the lock, after every exchange: what is set too late is seen after the next one
        if request.stuck or self._limits.get(request.account, 0) < self.size:
            with self._changed:
                self._answered(request)

    def wait(self, seconds: float, *, for_all: bool = False, owners: Collection[Owner] | None = None) -> bool:
        """Waits until a request, or all of them, ended, at most so long. Whether any ended.

        ``owners``: whose requests to wait for; None: everybody's.
        """
        # Without another thread the requests wait for those that run; the next one that is submitted is refused.
        with suppress(RuntimeError):
            self._begin_waiting()
        requests = [each for each, request in self._open.items() if owners is None or request.owner in owners]
        return bool(wait(requests, seconds, ALL_COMPLETED if for_all else FIRST_COMPLETED).done)

    def collect(self) -> list[tuple[Owner, Future[Answer]]]:
        """The requests that ended since the last call."""
        ended = [request for request in self._open.values() if request.future.done()]
        for request in ended:
            del self._open[request.future]
        return [(request.owner, request.future) for request in ended]

    def cancel_waiting(self) -> None:
        """Cancels the requests that have no thread yet; ``collect`` returns them, cancelled."""
        with self._changed:
            cancelled = list(self._waiting)
            self._waiting.clear()
        for request in cancelled:
            request.future.cancel()

    def close(self) -> bool:
        """Ends the threads; False when some of them still wait for a provider."""
        self.cancel_waiting()
        ended = all(future.done() for future in self._open)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if ended:
            for thread in self._threads:
                thread.join()
        return ended

    def _run(self) -> None:
        """A thread."""
        while request := self._take():
            self._of_thread.request = request
            try:
                request.future.set_result(request.call())
            except BaseException as error:  # noqa: BLE001 - it is raised where the answer is read
                request.future.set_exception(error)
            finally:
                self._of_thread.request = None
                with self._changed:
                    self._running.discard(request)
                    self._answered(request)
                    self._changed.notify()
            del request

    def _take(self) -> "_Request[Owner, Answer] | None":
        """The next request; None when there will be none."""
        with self._changed:
            while True:
                if request := self._next():
                    self._waiting.remove(request)
                    request.future.set_running_or_notify_cancel()
                    request.progress_at = time.monotonic()
                    self._running.add(request)
                    return request
                if self._closed:
                    return None
                self._changed.wait()

    def _next(self) -> "_Request[Owner, Answer] | None":
        """Of those that may begin: the first one of the kind, then of the account, that has the fewest threads."""
        if not self._waiting or not self._places():
            return None
        if self._account_of is None:
            return self._waiting[0]
        admitted = (each for each in self._waiting if each.account and self._admits(each.account, 0))
        return min(admitted, key=self._running_beside, default=None)

    def _running_beside(self, request: "_Request[Owner, Answer]") -> tuple[int, int]:
        account = request.account
        running = [each.account for each in self._running if each.account and account]
        of_kind = sum(each.kind == account.kind for each in running if account)
        return of_kind, running.count(account) if account else 0

    def _places(self) -> int:
        """How many more requests may run now."""
        working = sum(not request.stuck for request in self._running)
        return min(self.size - working, self.most - len(self._running))

    def _admits(self, account: ProviderAccount, waiting: int) -> bool:
        """Whether the account may have one more request beside those that run and so many that wait."""
        own = [request for request in self._running if request.account == account]
        of_kind = sum(
            request.account is not None and request.account.kind == account.kind for request in self._running
        )
        if any(request.stuck for request in own) or of_kind + waiting >= max(self.size, self.most // 2):
            return False
        return len(own) + waiting < self._limits.get(account, self._first_threads)

    def _answered(self, request: "_Request[Owner, Answer]") -> None:
        """The account gets one more thread with each answer, and begins anew after one that took long."""
        if request.account is not None:
            limit = self._limits.pop(request.account, self._first_threads)
            self._limits[request.account] = 1 if request.stuck else min(limit + 1, self.size)
            while len(self._limits) > ACCOUNTS_KEPT:
                del self._limits[next(iter(self._limits))]
        if request.stuck and request in self._running:
            request.stuck = False  # it goes on, and counts again

    def _relieve(self) -> None:
        """Requests without progress do not count any more."""
        latest = time.monotonic() - self._stuck_seconds
        for request in self._running:
            if not request.stuck and request.progress_at is not None and request.progress_at < latest:
                request.stuck = True

    def _begin_waiting(self) -> None:
        """Wakes or starts as many threads as there is work for."""
        with self._changed:
            self._relieve()
            wanted = min(len(self._waiting), self._places())
            idle = len(self._threads) - len(self._running)
            missing = min(wanted - idle, self.most - len(self._threads))
            if wanted > 0:
                self._changed.notify(wanted)
        for _ in range(missing):
            thread = threading.Thread(target=self._run, name=f"request-{len(self._threads)}", daemon=True)
            thread.start()
            self._threads.append(thread)
