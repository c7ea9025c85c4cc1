"""Requests to Twilio: the caller's thread settles each answer once, and keeps it while the database is down."""

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from types import SimpleNamespace
from typing import Any

import psycopg2
import pytest

from worker.calling.queued_call import Booking, ClaimedCall
from worker.calling.requests import CallRequests
from worker.providers.twilio import PlacedCall

SIZE = 2
LONG_SECONDS = 30.0


class Booked:
    """The bookings, by statement. The database is unavailable until ``wanted`` of them wait for it.

    A statement with one of those ``refused`` is refused.
    """

    def __init__(self, wanted: int = 1, refused: Collection[str] = ()) -> None:
        self.statements: list[list[str]] = []
        self._wanted = wanted
        self._refused = refused

    def book_together(self, bookings: Sequence[Booking]) -> Sequence[Booking]:
        keys = self._asked(bookings)
        if set(keys) & set(self._refused):
            return bookings
        self.statements.append(keys)
        return []

    def book(self, booking: Booking) -> None:
        keys = self._asked([booking])
        if keys[0] in self._refused:
            raise psycopg2.DataError("value too long")
        self.statements.append(keys)

    def _asked(self, bookings: Sequence[Booking]) -> list[str]:
        if len(bookings) < self._wanted:
            raise psycopg2.OperationalError("server closed the connection")
        self._wanted = 1
        return [each.claim.id for each in bookings]


class BrokenBooker:
    def book_together(self, bookings: Sequence[Booking]) -> Sequence[Booking]:
        raise KeyError("a bug")

    def book(self, booking: Booking) -> None:
        raise KeyError("a bug")


def booking(key: str) -> Booking:
    claim = ClaimedCall(key, "t", "AC", "+911", "+912", 0, datetime(2026, 1, 31, tzinfo=UTC))
    return Booking(claim, PlacedCall(f"CA{key}", "queued"))


def place(requests: CallRequests, *keys: str) -> None:
    """Places calls, and tries to book them until all are booked, or refused."""
    for key in keys:
        requests.submit(key, lambda: None, lambda _, key=key: booking(key))
    while requests.keys:
        with suppress(psycopg2.OperationalError):
            requests.settle_finished(LONG_SECONDS)


@pytest.fixture
def signals() -> Any:
    return SimpleNamespace(stopping=False)


@pytest.fixture
def new_requests(signals: Any) -> Iterator[Callable[..., CallRequests]]:
    opened: list[CallRequests] = []

    def make(grace_seconds: float = LONG_SECONDS, booked: Booked | None = None) -> CallRequests:
        opened.append(CallRequests(SIZE, signals, grace_seconds, booked or Booked()))
        return opened[-1]

    yield make
    for requests in opened:
        requests.close()


class Settled:
    """What was settled, in which thread; raises the given errors first."""

    def __init__(self, *errors: Exception) -> None:
        self.answers: list[Any] = []
        self.threads: set[threading.Thread] = set()
        self._errors = list(errors)

    def __call__(self, request: Future[Any]) -> None:
        self.threads.add(threading.current_thread())
        if self._errors:
            raise self._errors.pop(0)
        self.answers.append("cancelled" if request.cancelled() else request.result())


class Hanging:
    """A request that hangs until ``go`` is set. ``started`` counts those that have a thread."""

    def __init__(self) -> None:
        self.started = threading.Semaphore(0)
        self.go = threading.Event()

    def __call__(self, answer: object) -> object:
        self.started.release()
        self.go.wait(LONG_SECONDS)
        return answer

    def wait_until_started(self, count: int) -> None:
        for _ in range(count):
            assert self.started.acquire(timeout=LONG_SECONDS)


def test_an_answer_is_settled_once_by_the_callers_thread(new_requests: Callable[..., CallRequests]) -> None:
    requests, settled = new_requests(), Settled()
    requests.submit("a", lambda: 1, settled)
    requests.submit("b", lambda: 2, settled)
    assert (requests.keys, requests.free) == ({"a", "b"}, 0)
    requests.finish()
    requests.finish()
    assert sorted(settled.answers) == [1, 2]
    assert settled.threads == {threading.current_thread()}
    assert (requests.keys, requests.free) == (set(), SIZE)


def test_an_answer_is_kept_while_the_database_is_unavailable(new_requests: Callable[..., CallRequests]) -> None:
    """It keeps its key and its place among the requests, and is settled when the database is back."""
    requests = new_requests()
    settled = Settled(psycopg2.OperationalError("server closed the connection"), psycopg2.InterfaceError("closed"))
    requests.submit("a", lambda: 1, settled)
    for _ in range(2):
        with pytest.raises(psycopg2.Error, match="closed"):
            requests.settle_finished(LONG_SECONDS)
        assert (settled.answers, requests.keys, requests.free) == ([], {"a"}, SIZE - 1)
    requests.settle_finished(0.0)
    assert (settled.answers, requests.keys, requests.free) == ([1], set(), SIZE)


def test_an_answer_that_the_database_refuses_is_dropped(
    new_requests: Callable[..., CallRequests], caplog: pytest.LogCaptureFixture
) -> None:
    """The log names the request, and the next one is settled."""
    requests, refused, settled = new_requests(), Settled(psycopg2.DataError("value too long")), Settled()
    requests.submit("a", lambda: 1, refused)
    requests.submit("b", lambda: 2, settled)
    requests.finish()
    assert (settled.answers, requests.keys) == ([2], set())
    assert [record.args for record in caplog.records] == [{"id": "a", "reason": "DataError"}]


def test_a_bug_in_a_settlement_is_raised_once(new_requests: Callable[..., CallRequests]) -> None:
    """It must not fail the same way in each later tick."""
    requests = new_requests()
    requests.submit("a", lambda: 1, Settled(KeyError("a bug")))
    with pytest.raises(KeyError):
        requests.settle_finished(LONG_SECONDS)
    requests.settle_finished(0.0)
    assert requests.keys == set()


def test_on_a_signal_waiting_requests_are_cancelled_and_running_ones_settled(
    new_requests: Callable[..., CallRequests], signals: Any
) -> None:
    """Within the grace time; the settlement of a cancelled request sees that it was cancelled."""
    requests, settled, hanging = new_requests(), Settled(), Hanging()
    for number in range(SIZE + 3):
        requests.submit(str(number), partial(hanging, number), settled)
    hanging.wait_until_started(SIZE)
    signals.stopping = True
    threading.Timer(0.05, hanging.go.set).start()
    requests.finish()
    assert sorted(settled.answers, key=str) == [0, 1, *["cancelled"] * 3]
    assert requests.keys == set()
    assert requests.close()


def test_a_request_that_hangs_beyond_the_grace_time_is_left(new_requests: Callable[..., CallRequests]) -> None:
    """``close`` says that a thread still waits; the grace time runs only once."""
    requests, settled, hanging = new_requests(grace_seconds=0.05), Settled(), Hanging()
    requests.submit("a", partial(hanging, 1), settled)
    hanging.wait_until_started(1)
    requests.drain()
    requests.drain()
    assert (settled.answers, requests.keys) == ([], {"a"})
    assert not requests.close()
    hanging.go.set()


def test_calls_that_were_placed_meanwhile_are_booked_together(new_requests: Callable[..., CallRequests]) -> None:
    booked = Booked(wanted=SIZE)
    place(new_requests(booked=booked), *"abcdefgh")
    assert len(booked.statements[0]) >= SIZE
    assert sorted(key for statement in booked.statements for key in statement) == list("abcdefgh")


def test_a_booking_that_is_refused_does_not_stop_the_others(
    new_requests: Callable[..., CallRequests], caplog: pytest.LogCaptureFixture
) -> None:
    """Each is booked alone then, with all that is done for one that the database refuses."""
    booked = Booked(wanted=SIZE, refused={"b"})
    place(new_requests(booked=booked), "a", "b", "c")
    assert sorted(key for statement in booked.statements for key in statement) == ["a", "c"]
    assert [record.args for record in caplog.records] == [{"id": "b", "reason": "DataError"}]


def test_bookings_keep_their_place_while_the_database_is_unavailable(
    new_requests: Callable[..., CallRequests],
) -> None:
    booked = Booked(wanted=2)
    requests = new_requests(booked=booked)
    requests.submit("a", lambda: None, lambda _: booking("a"))
    for _ in range(2):
        with pytest.raises(psycopg2.Error, match="closed"):
            requests.settle_finished(LONG_SECONDS)
        assert (booked.statements, requests.keys, requests.free) == ([], {"a"}, SIZE - 1)
    place(requests, "b")
    assert sorted(booked.statements[0]) == ["a", "b"]
    assert (requests.keys, requests.free) == (set(), SIZE)


def test_a_bug_in_a_booking_is_raised_once(new_requests: Callable[..., CallRequests]) -> None:
    requests = new_requests(booked=BrokenBooker())
    for key in "ab":
        requests.submit(key, lambda: None, lambda _, key=key: booking(key))
    while requests.keys:
        with suppress(KeyError):
            requests.settle_finished(LONG_SECONDS)
    assert requests.free == SIZE


def test_requests_wait_while_answers_are_not_settled(new_requests: Callable[..., CallRequests]) -> None:
    """However many calls are claimed, few are placed that are not booked: no more than there are threads."""
    requests, settled, begun = new_requests(), Settled(*[psycopg2.OperationalError("closed")] * 3), Hanging()
    requests.submit("a", lambda: 1, settled)
    requests.submit("b", lambda: 2, settled)
    for number in range(3):
        requests.submit(str(number), partial(begun, number), settled)
    for _ in range(3):
        with pytest.raises(psycopg2.OperationalError):
            requests.settle_finished(LONG_SECONDS)
    assert sum(begun.started.acquire(blocking=False) for _ in range(3)) <= SIZE
    assert requests.keys == {"a", "b", "0", "1", "2"}
    begun.go.set()
    while requests.keys:
        requests.settle_finished(LONG_SECONDS)
    assert sorted(settled.answers) == [0, 1, 1, 2, 2]
