"""The client of Qdrant, against servers that do not end their answers: each exchange has a deadline and a limit."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import datetime
from pathlib import Path

import pytest

from worker.errors import ServerUnavailable, WorkerError
from worker.vectors import client as client_module
from worker.vectors.bounded_transport import LONGEST_ANSWER
from worker.vectors.client import VectorStore
from worker.vectors.collection import CollectionSnapshot, VectorStoreError

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
SNAPSHOT = CollectionSnapshot("x.snapshot", datetime(2026, 1, 31), 1000, None)  # noqa: DTZ001
Serve = Callable[[socket.socket], None]


def read(store: VectorStore) -> None:
    store.names()


def write(store: VectorStore) -> None:
    store.drop("x")


class RawServer:
    """Answers each connection's request with what ``serve`` sends."""

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ended = threading.Event()
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._ended.set()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._answer, args=(self._listener.accept()[0],), daemon=True).start()

    def _answer(self, sock: socket.socket) -> None:
        with suppress(OSError), sock:
            received = b""
            while b"\r\n\r\n" not in received:
                received += sock.recv(65536)
            self._serve(sock)

    def drip(self, sock: socket.socket) -> None:
        """A byte every 50 ms, for ever."""
        while not self._ended.wait(0.05):
            sock.sendall(b"a")


@pytest.fixture
def serve() -> Iterator[Callable[[Serve], RawServer]]:
    servers: list[RawServer] = []

    def start(function: Serve) -> RawServer:
        servers.append(RawServer(function))
        return servers[-1]

    yield start
    for each in servers:
        each.close()


@pytest.mark.parametrize("request_", [read, write])
@pytest.mark.parametrize("start", [b"HTTP/1.1 200 OK\r\nX: ", HEAD + b"Content-Length: 100000\r\n\r\n", b""])
def test_an_answer_that_drips(
    serve: Callable[[Serve], RawServer],
    start: bytes,
    request_: Callable[[VectorStore], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However the bytes arrive: after the deadline for all of it, Qdrant counts as unavailable."""
    monkeypatch.setattr(client_module, "WRITE_EXCHANGE_SECONDS", 1.0)

    def answer(sock: socket.socket) -> None:
        sock.sendall(start)
        server.drip(sock)

    server = serve(answer)
    with closing(VectorStore(server.url, None, read_exchange_seconds=1.0)) as store:
        began = time.monotonic()
        with pytest.raises((ServerUnavailable, VectorStoreError)) as caught:
            request_(store)
        assert time.monotonic() - began < 10
    if start:
        assert isinstance(caught.value, ServerUnavailable)
        assert "the exchange took longer than 1 seconds in all" in str(caught.value)


def test_a_slow_exchange_ends_soon_after_the_head(serve: Callable[[Serve], RawServer]) -> None:
    """A snapshot may take an hour; its short answer may not, once it has begun."""

    def answer(sock: socket.socket) -> None:
        sock.sendall(HEAD + b"Content-Length: 100000\r\n\r\n")
        server.drip(sock)

    server = serve(answer)
    with closing(VectorStore(server.url, None, read_exchange_seconds=1.0)) as store:
        began = time.monotonic()
        with pytest.raises(ServerUnavailable, match="longer than 1 seconds"):
            store.take_snapshot("x")
        assert time.monotonic() - began < 10


@pytest.mark.parametrize(("request_", "error"), [(read, ServerUnavailable), (write, VectorStoreError)])
def test_an_answer_without_end(
    serve: Callable[[Serve], RawServer], request_: Callable[[VectorStore], None], error: type[WorkerError]
) -> None:
    """What is longer than any answer of Qdrant is not read to its end."""
    sent = 0

    def answer(sock: socket.socket) -> None:
        nonlocal sent
        sock.sendall(HEAD + b"\r\n")
        while True:
            sock.sendall(b" " * 65536)
            sent += 65536

    with closing(VectorStore(serve(answer).url, None)) as store, pytest.raises(error, match="longer than"):
        request_(store)
    assert sent < 4 * LONGEST_ANSWER


@pytest.mark.parametrize(("request_", "error"), [(read, ServerUnavailable), (write, VectorStoreError)])
def test_a_compressed_answer(
    serve: Callable[[Serve], RawServer], request_: Callable[[VectorStore], None], error: type[WorkerError]
) -> None:
    """Nobody asks for it, and it could be unpacked to any size."""

    def answer(sock: socket.socket) -> None:
        sock.sendall(HEAD + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}")

    with closing(VectorStore(serve(answer).url, None)) as store, pytest.raises(error, match="encod"):
        request_(store)


def test_a_snapshot_that_drips(
    serve: Callable[[Serve], RawServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy has a deadline in all, too; nothing is left of it."""
    monkeypatch.setattr(client_module, "WRITE_EXCHANGE_SECONDS", 1.0)

    def answer(sock: socket.socket) -> None:
        sock.sendall(HEAD + b"Content-Length: 1000\r\n\r\n")
        server.drip(sock)

    server = serve(answer)
    with closing(VectorStore(server.url, None)) as store, pytest.raises(ServerUnavailable, match="longer than 1 sec"):
        store.download("x", SNAPSHOT, tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []


def test_a_snapshot_larger_than_listed(serve: Callable[[Serve], RawServer], tmp_path: Path) -> None:
    """A copy is never larger than its snapshot, whatever arrives."""

    def answer(sock: socket.socket) -> None:
        sock.sendall(HEAD + b"\r\n")
        while True:
            sock.sendall(b"x" * 65536)

    with closing(VectorStore(serve(answer).url, None)) as store, pytest.raises(VectorStoreError, match="1000 bytes"):
        store.download("x", SNAPSHOT, tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []
