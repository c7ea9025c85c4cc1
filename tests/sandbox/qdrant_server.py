"""A development Qdrant for a test, and HTTP requests to it."""

import json
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import urllib3
from qdrant_client import QdrantClient

from sandbox.qdrant import Qdrant
from sandbox.servers import ServerMissing

SMALL = {"vectors": {"size": 4, "distance": "Dot"}}


@contextmanager
def qdrant_in(folder: Path, **options: Any) -> Iterator[Qdrant]:
    """A running server, which is stopped afterwards."""
    server = Qdrant(folder, **options)
    try:
        server.start()
    except ServerMissing as error:
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def client_of(server: Qdrant) -> Iterator[QdrantClient]:
    # the client's version check runs in a thread, which fails if the server stops meanwhile
    with closing(QdrantClient(url=server.url, timeout=60, check_compatibility=False)) as client:
        yield client


class Curl:
    """Sends requests over persistent connections."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._pool = urllib3.PoolManager(retries=False, timeout=60, maxsize=20)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """The status and the answer's JSON, or its text if it is not JSON. ``body``: bytes are sent as they are."""
        raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        response = self._pool.request(method, self.url + path, body=raw, headers=names)
        if response.headers["Content-Type"].startswith("application/json"):
            return response.status, json.loads(response.data)
        return response.status, response.data.decode()

    def result(self, method: str, path: str, body: Any = None) -> Any:
        """The `result` of a request that must succeed."""
        status, answer = self.ask(method, path, body)
        assert status == 200, answer
        assert answer["status"] == "ok"
        return answer["result"]

    def error(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
        """The status and the error text of a request that must fail."""
        status, answer = self.ask(method, path, body, **headers)
        assert isinstance(answer["time"], float)
        return status, answer["status"]["error"]

    def make(self, name: str, points: int = 0) -> None:
        """Creates a collection of vectors of four numbers with the points 1, 2, ..."""
        self.result("PUT", f"/collections/{name}", SMALL)
        if points:
            self.upsert(name, *range(1, points + 1))

    def upsert(self, name: str, *ids: int) -> None:
        points = [{"id": each, "vector": [1, 2, 3, each], "payload": {"number": each}} for each in ids]
        self.result("PUT", f"/collections/{name}/points?wait=true", {"points": points})

    def count(self, name: str) -> int:
        found: int = self.result("POST", f"/collections/{name}/points/count", {})["count"]
        return found

    def ids(self, name: str) -> set[int]:
        found = self.result("POST", f"/collections/{name}/points/scroll", {"limit": 100_000, "with_payload": False})
        assert found["next_page_offset"] is None
        return {point["id"] for point in found["points"]}
