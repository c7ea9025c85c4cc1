"""The deadline of an exchange: it ends one that drips, and nothing else."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from worker.providers.deadlines import Deadline, DeadlineWatcher

PATIENCE_SECONDS = 30.0


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.settimeout(PATIENCE_SECONDS)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def watcher() -> DeadlineWatcher:
    return DeadlineWatcher()


def read_to_the_end(sock: socket.socket) -> bytes:
    octets = b""
    while more := sock.recv(4096):
        octets += more
    return octets


def test_a_server_that_drips_is_cut_off(pair: tuple[socket.socket, socket.socket], watcher: DeadlineWatcher) -> None:
    """Every single read is quick; the exchange as a whole ends at its deadline."""
    ours, theirs = pair
    ended = threading.Event()

    def drip() -> None:
        try:
            while not ended.wait(0.05):
                theirs.sendall(b".")
        except OSError:
            return  # the other side left

    dripping = threading.Thread(target=drip)
    dripping.start()
    deadline = Deadline(watcher)
    began = time.monotonic()
    deadline.begin(0.3, ours)
    assert set(read_to_the_end(ours)) == {ord(".")}
    took = time.monotonic() - began
    ended.set()
    dripping.join()
    assert 0.3 <= took < PATIENCE_SECONDS
    assert deadline.passed
    reason = deadline.explain(ConnectionError("the server closed the connection"))
    assert reason == "the exchange took longer than 0.3 seconds in all"


def test_an_exchange_in_time_is_left_alone(
    pair: tuple[socket.socket, socket.socket], watcher: DeadlineWatcher
) -> None:
    """A connection that was used and rests is not ended, however long ago its last deadline was."""
    ours, theirs = pair
    deadline = Deadline(watcher)
    for _ in range(3):
        deadline.begin(0.2, ours)
        deadline.end()
    other, its_peer = socket.socketpair()
    with other, its_peer:  # a later deadline of another connection shows that the watcher has looked meanwhile
        late = Deadline(watcher)
        late.begin(0.6, other)
        other.settimeout(PATIENCE_SECONDS)
        assert other.recv(1) == b""
        assert late.passed
    theirs.sendall(b"still there")
    assert ours.recv(100) == b"still there"
    assert not deadline.passed
    assert deadline.explain(ConnectionError("reset")) == "reset"


def test_a_socket_that_comes_too_late_is_cut_off_at_once(
    pair: tuple[socket.socket, socket.socket], watcher: DeadlineWatcher
) -> None:
    """Connecting took the whole time: the new socket must not begin another exchange."""
    ours, _ = pair
    deadline = Deadline(watcher)
    deadline.begin(0.0)
    until = time.monotonic() + PATIENCE_SECONDS
    while not deadline.passed:
        assert time.monotonic() < until, "the watcher does not notice"
        time.sleep(0.01)
    deadline.attach(ours)
    assert ours.recv(1) == b""
    deadline.end()


def test_a_closed_socket_is_no_error(pair: tuple[socket.socket, socket.socket], watcher: DeadlineWatcher) -> None:
    """Its owner closed it before the deadline: the watcher goes on with the others."""
    ours, _ = pair
    gone = Deadline(watcher)
    gone.begin(0.0, ours)
    ours.close()
    other, its_peer = socket.socketpair()
    with other, its_peer:
        deadline = Deadline(watcher)
        deadline.begin(0.1, other)
        other.settimeout(PATIENCE_SECONDS)
        assert other.recv(1) == b""


def test_many_exchanges_at_once(watcher: DeadlineWatcher) -> None:
    """A hundred connections, each with its own deadline: those that end in time survive, the others are cut off."""
    pairs = [socket.socketpair() for _ in range(100)]
    deadlines = [Deadline(watcher) for _ in pairs]
    for number, ((ours, _), deadline) in enumerate(zip(pairs, deadlines, strict=True)):
        deadline.begin(0.2, ours)
        if number % 2:
            deadline.end()
            deadline.begin(PATIENCE_SECONDS, ours)
    for number, ((ours, theirs), deadline) in enumerate(zip(pairs, deadlines, strict=True)):
        ours.settimeout(PATIENCE_SECONDS)
        if number % 2:
            theirs.sendall(b"x")
            assert ours.recv(1) == b"x"
            deadline.end()
        else:
            assert ours.recv(1) == b""
        assert deadline.passed == (number % 2 == 0)
        ours.close()
        theirs.close()
