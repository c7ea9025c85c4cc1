"""Reading from Qdrant, whatever answers at its address."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from worker.errors import ServerUnavailable
from worker.vectors.collection import Collection, CollectionSnapshot, VectorStoreError
from worker.vectors.reader import VectorReader

KEY = "a-key"
DESCRIPTION = {
    "config": {"params": {"vectors": {"size": 4, "distance": "Cosine"}}},
    "payload_schema": {"metadata.tenantId": {"data_type": "keyword", "params": {"is_tenant": True}, "points": 7}},
}
LISTED = {"name": "x-1.snapshot", "creation_time": "2026-01-31T09:30:00", "size": 5, "checksum": "ab"}


class FakeQdrant:
    """Answers each path with a status and a body; other paths with 404."""

    def __init__(self) -> None:
        fake = self
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.keys: list[str | None] = []

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                fake.keys.append(self.headers["api-key"])
                status, body = fake.answers.get(self.path, (404, b""))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = answer

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def say(self, path: str, result: Any, status: int = 200) -> None:
        self.answers[path] = status, json.dumps({"result": result, "status": "ok", "time": 0}).encode()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def qdrant() -> Iterator[FakeQdrant]:
    with closing(FakeQdrant()) as fake:
        yield fake


@pytest.fixture
def reader(qdrant: FakeQdrant) -> Iterator[VectorReader]:
    with closing(VectorReader(qdrant.url, KEY)) as made:
        yield made


def say_collection(qdrant: FakeQdrant, description: Any, points: Any = 7) -> None:
    qdrant.say("/collections/x/exists", {"exists": True})
    qdrant.say("/collections/x", description)
    qdrant.say("/collections/x/points/count", {"count": points})


def test_a_collection(qdrant: FakeQdrant, reader: VectorReader) -> None:
    """Every request has the key."""
    say_collection(qdrant, DESCRIPTION)
    expected = Collection("x", size=4, distance="Cosine", points=7, tenant_index="keyword", by_tenant=True)
    assert reader.collection("x") == expected
    assert qdrant.keys == [KEY] * 3


def test_a_collection_that_does_not_exist(qdrant: FakeQdrant, reader: VectorReader) -> None:
    qdrant.say("/collections/x/exists", {"exists": False})
    assert reader.collection("x") is None


@pytest.mark.parametrize("vectors", [{"text": {"size": 4, "distance": "Dot"}}, {"size": {"size": 4}}, {}, None])
def test_a_collection_of_another_kind(qdrant: FakeQdrant, reader: VectorReader, vectors: Any) -> None:
    """With named vectors, or none, and without an index."""
    say_collection(qdrant, {"config": {"params": {"vectors": vectors}}, "payload_schema": {}})
    assert reader.collection("x") == Collection("x", None, None, 7, None, by_tenant=False)


@pytest.mark.parametrize(
    "description",
    [
        None,
        [],
        {"config": {}, "payload_schema": {}},
        {"config": {"params": []}, "payload_schema": {}},
        {"config": {"params": {}}},
        DESCRIPTION | {"payload_schema": []},
        DESCRIPTION | {"payload_schema": {"metadata.tenantId": "keyword"}},
        DESCRIPTION | {"payload_schema": {"metadata.tenantId": {"data_type": 1}}},
        DESCRIPTION | {"payload_schema": {"metadata.tenantId": {"data_type": "\ud800"}}},
        DESCRIPTION | {"config": {"params": {"vectors": {"size": 4}}}},
        DESCRIPTION | {"config": {"params": {"vectors": {"size": -4, "distance": "Dot"}}}},
    ],
)
def test_a_description_of_the_wrong_shape(qdrant: FakeQdrant, reader: VectorReader, description: Any) -> None:
    """Nothing is decided from an answer that is not Qdrant's: not even that an index is missing."""
    say_collection(qdrant, description)
    with pytest.raises(VectorStoreError, match="collection x: Qdrant's answer is not understood"):
        reader.collection("x")


@pytest.mark.parametrize("points", [None, "7", 7.0, True, -1, 2**63, [7]])
def test_a_number_that_is_none(qdrant: FakeQdrant, reader: VectorReader, points: Any) -> None:
    """A wrong number of points could count as a loss of points."""
    say_collection(qdrant, DESCRIPTION, points)
    with pytest.raises(VectorStoreError, match=r"counting points of collection x: .* is not understood"):
        reader.count("x")


@pytest.mark.parametrize("found", [None, {}, "", [None], ["x"], [{"name": 1}], [{"name": "\ud800"}]])
def test_lists_of_the_wrong_shape(qdrant: FakeQdrant, reader: VectorReader, found: Any) -> None:
    """A list that is none does not count as empty: a snapshot would be taken at every tick."""
    qdrant.say("/collections", {"collections": found})
    qdrant.say("/collections/x/snapshots", found)
    with pytest.raises(VectorStoreError, match=r"list of collections: .* is not understood"):
        reader.names()
    with pytest.raises(VectorStoreError, match=r"snapshots of collection x: .* is not understood"):
        reader.snapshots("x")


def test_lists(qdrant: FakeQdrant, reader: VectorReader) -> None:
    """Newest first; by UTC, and long ago where Qdrant names no time that exists."""
    qdrant.say("/collections", {"collections": [{"name": "x"}, {"name": "y"}]})
    times = [None, "2026-01-31T09:30:00+05:30", "soon", "0001-01-01T00:00:00+05:00"]
    later = [LISTED | {"name": f"{number}.snapshot", "creation_time": time} for number, time in enumerate(times)]
    qdrant.say("/collections/x/snapshots", [*later, LISTED])
    assert reader.names() == ["x", "y"]
    first, second, *others = reader.snapshots("x")
    assert first == CollectionSnapshot("x-1.snapshot", datetime(2026, 1, 31, 9, 30), 5, "ab")  # noqa: DTZ001
    assert (second.name, second.taken_at) == ("1.snapshot", datetime(2026, 1, 31, 4))  # noqa: DTZ001
    assert {each.taken_at for each in others} >= {datetime(1970, 1, 1)}  # noqa: DTZ001
    assert len(others) == 3


@pytest.mark.parametrize(
    ("status", "body", "error", "words"),
    [
        (401, b"", VectorStoreError, r"list of collections: Qdrant refuses the key in QDRANT_API_KEY \(HTTP 401\)"),
        (403, b"", VectorStoreError, r"refuses the key in QDRANT_API_KEY \(HTTP 403\)"),
        (
            500,
            b'{"status": {"error": "disk\\nfull"}}',
            VectorStoreError,
            r"list of collections: disk full \(HTTP 500\)",
        ),
        (500, b'{"status": {"error": 7}}', VectorStoreError, r"no reason is given \(HTTP 500\)"),
        (404, b"<html>", VectorStoreError, r"no reason is given \(HTTP 404\)"),
        (301, b"", VectorStoreError, r"\(HTTP 301\)"),
        (200, b"[" * 100_000, VectorStoreError, "is not understood"),
        (200, b"", VectorStoreError, "is not understood"),
        (502, b"", ServerUnavailable, r"127\.0\.0\.1:\d+: HTTP 502"),
        (503, b"", ServerUnavailable, "HTTP 503"),
    ],
)
def test_refusals(
    qdrant: FakeQdrant, reader: VectorReader, status: int, body: bytes, error: type[Exception], words: str
) -> None:
    """What Qdrant says, or that its proxy cannot reach it."""
    qdrant.answers["/collections"] = status, body
    with pytest.raises(error, match=words):
        reader.names()


def test_nobody_answers(qdrant: FakeQdrant) -> None:
    """The text has the address."""
    qdrant.close()
    with (
        closing(VectorReader(qdrant.url, KEY)) as reader,
        pytest.raises(ServerUnavailable, match=qdrant.url) as caught,
    ):
        reader.names()
    assert caught.value.server == "Qdrant"
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("ask", [VectorReader.exists, VectorReader.count, VectorReader.snapshots])
def test_a_name_is_one_part_of_the_path(
    qdrant: FakeQdrant, reader: VectorReader, ask: Callable[[VectorReader, str], object]
) -> None:
    """Whatever it holds: the request does not become another one."""
    with pytest.raises(VectorStoreError, match="HTTP 404"):
        ask(reader, "x?y/../z")
    qdrant.say("/collections/x%3Fy%2F..%2Fz/exists", {"exists": True})
    assert reader.exists("x?y/../z")
