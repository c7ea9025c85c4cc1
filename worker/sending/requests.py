"""Threads for requests to providers. Their answers are collected by the one thread that has the database."""

from collections.abc import Callable, Collection
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

Owner = TypeVar("Owner")
Answer = TypeVar("Answer")


class RequestThreads(Generic[Owner, Answer]):
    """A fixed number of threads; more requests wait for a free one.

    Every request has an ``owner``: what it was made for. All methods are for the one thread that owns this object.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="request")
        self._open: dict[Future[Answer], Owner] = {}

    def __len__(self) -> int:
        """How many requests wait, run, or ended without being collected."""
        return len(self._open)

    @property
    def owners(self) -> list[Owner]:
        """Whose requests these are."""
        return list(self._open.values())

    @property
    def free(self) -> int:
        """How many more requests would find a thread at once."""
        return max(0, self.size - len(self._open))

    def submit(self, owner: Owner, request: Callable[[], Answer]) -> None:
        self._open[self._threads.submit(request)] = owner

    def wait(self, seconds: float, *, for_all: bool = False, owners: Collection[Owner] | None = None) -> bool:
        """Waits until a request, or all of them, ended, at most so long. Whether any ended.

        ``owners``: whose requests to wait for; None: everybody's.
        """
        requests = [each for each, owner in self._open.items() if owners is None or owner in owners]
        return bool(wait(requests, seconds, ALL_COMPLETED if for_all else FIRST_COMPLETED).done)

    def collect(self) -> list[tuple[Owner, Future[Answer]]]:
        """The requests that ended since the last call."""
        ended = [(request, owner) for request, owner in self._open.items() if request.done()]
        for request, _ in ended:
            del self._open[request]
        return [(owner, request) for request, owner in ended]

    def cancel_waiting(self) -> None:
        """Cancels the requests that have no thread yet; ``collect`` returns them, cancelled."""
        for request in self._open:
            request.cancel()

    def close(self) -> bool:
        """Ends the threads; False when some of them still wait for a provider."""
        ended = all(request.done() for request in self._open)
        self._threads.shutdown(wait=ended, cancel_futures=True)
        return ended
