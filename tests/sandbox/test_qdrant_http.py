"""The development Qdrant over plain HTTP: the examples of the CRM's handbook, refusals, and the API key."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import urllib3
from qdrant_server import SMALL, Curl, qdrant_in

from sandbox.qdrant import Qdrant

POINTS = "/collections/c/points"


def encoded(name: str) -> str:
    """Encoded, so that no client treats it as a part of the path."""
    return quote(name, safe="").replace(".", "%2E")


def places(server: Qdrant) -> set[Path]:
    """The files that a wrong path could reach."""
    collections = server.storage / "collections"
    folders = (
        server.data_dir.parent,
        server.data_dir,
        server.storage,
        collections,
        server.snapshots,
        collections / "c",
    )
    return {path for folder in folders for path in folder.iterdir()}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Qdrant]:
    with qdrant_in(tmp_path_factory.mktemp("qdrant")) as running:
        yield running


@pytest.fixture(scope="module")
def curl(server: Qdrant) -> Curl:
    """Calls to a server with the collection `c` of three points."""
    made = Curl(server.url)
    made.make("c", points=3)
    return made


def test_the_examples_of_the_handbook(curl: Curl) -> None:
    assert {"name": "c"} in curl.result("GET", "/collections")["collections"]
    info = curl.result("GET", "/collections/c")
    assert (info["points_count"], info["config"]["params"]["vectors"]) == (3, SMALL["vectors"])
    made = curl.result("POST", "/collections/c/snapshots")
    assert set(made) == {"name", "creation_time", "size", "checksum"}
    assert made in curl.result("GET", "/collections/c/snapshots")


def test_probes_and_the_title(curl: Curl) -> None:
    assert [curl.ask("GET", path)[0] for path in ("/healthz", "/livez", "/readyz")] == [200, 200, 200]
    status, title = curl.ask("GET", "/")
    assert (status, title["version"]) == (200, "1.19.0")


def test_metrics_have_real_numbers(curl: Curl) -> None:
    curl.make("measured", points=2)
    status, text = curl.ask("GET", "/metrics")
    assert status == 200
    assert 'collection_points{id="measured"} 2.0' in text
    number = len(curl.result("GET", "/collections")["collections"])
    assert f"collections_total {number}.0" in text
    assert 'rest_responses_total{endpoint="/collections/{name}",method="PUT",status="200"}' in text


def test_everything_except_the_probes_needs_the_key(tmp_path: Path) -> None:
    with qdrant_in(tmp_path / "q", api_key="s3cret") as server:
        locked = Curl(server.url)
        assert [locked.ask("GET", path)[0] for path in ("/", "/healthz", "/livez", "/readyz")] == [200] * 4
        for path in ("/collections", "/metrics", "/nowhere", "/collections/c/snapshots/x.snapshot"):
            assert locked.error("GET", path)[0] == 401
        for wrong in ({"api_key": "s3cre"}, {"Authorization": "Bearer x"}, {"Authorization": "Basic s3cret"}):
            assert locked.error("GET", "/collections", **wrong)[0] == 401
        assert locked.ask("GET", "/collections", api_key="s3cret")[0] == 200
        assert locked.ask("GET", "/collections", Authorization="Bearer s3cret")[0] == 200
        assert "s3cret" not in (server.data_dir / "qdrant.log").read_text()


@pytest.mark.parametrize(
    "name", ["..", ".", "../../etc", "a/b", "a\0b", "x" * 256, "é" * 128, "a\\b", "line\nbreak", "a:b"]
)
def test_names_are_not_paths(curl: Curl, server: Qdrant, name: str) -> None:
    before = places(server)
    for path in (f"/collections/{encoded(name)}", f"/collections/{quote(name)}"):
        assert curl.error("PUT", path, SMALL)[0] in (400, 404, 405)
        assert curl.error("PUT", f"{path}/snapshots/recover", {"location": "file:///dev/null"})[0] in (400, 404)
        assert curl.error("GET", f"{path}/snapshots")[0] in (404, 405)
    assert places(server) == before


@pytest.mark.parametrize("name", ["../c/x.snapshot", "..", ".hidden.snapshot", "x\0.snapshot", "x" * 2000, "x"])
def test_names_of_snapshots_are_not_paths(curl: Curl, name: str) -> None:
    assert curl.error("GET", f"/collections/c/snapshots/{encoded(name)}")[0] == 404
    assert curl.error("DELETE", f"/collections/c/snapshots/{encoded(name)}")[0] == 404


def test_a_long_name_and_one_in_another_script_are_valid(curl: Curl) -> None:
    for name in ("x" * 255, "ज्ञान कोष"):
        path = f"/collections/{quote(name)}"
        curl.result("PUT", path, SMALL)
        assert {"name": name} in curl.result("GET", "/collections")["collections"]
        made = curl.result("POST", f"{path}/snapshots") if len(name) < 200 else None
        assert curl.result("GET", f"{path}/snapshots") == ([made] if made else [])
        assert curl.result("DELETE", path) is True


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("GET", "/collections/none", None, 404, "Collection `none` doesn't exist"),
        ("POST", "/collections/none/points/count", {}, 404, "`none`"),
        ("POST", "/collections/none/snapshots", None, 404, "`none`"),
        ("GET", f"{POINTS}/99", None, 404, "99"),
        ("GET", f"{POINTS}/{'9' * 5000}", None, 400, "not a point id"),
        ("GET", "/nowhere", None, 404, "/nowhere"),
        ("PATCH", "/collections/c", {}, 405, "Method Not Allowed"),
        ("PUT", "/collections/c", SMALL, 409, "already exists"),
        ("PUT", "/collections/d", {}, 400, "`vectors`"),
        ("PUT", "/collections/d", {"vectors": {"size": 4, "distance": "dot"}}, 400, "Cosine, Euclid, Dot, Manhattan"),
        ("PUT", "/collections/d", {"vectors": {"size": 0, "distance": "Dot"}}, 400, "1 to 65536, not 0"),
        ("PUT", "/collections/d", {"vectors": {"size": 4, "distance": ["Dot"]}}, 400, "must be a string"),
        ("PUT", "/collections/d", SMALL | {"init_from": {}}, 400, "`init_from`"),
        ("PUT", POINTS, b"{", 400, "line 1 column 2"),
        ("PUT", POINTS, b"\xff", 400, "JSON body"),
        ("PUT", POINTS, b"[" * 100_000, 400, "recursion"),
        ("PUT", POINTS, b'{"points": [{"id": 1, "vector": [NaN, 1, 1, 1]}]}', 400, "NaN is not JSON"),
        ("PUT", POINTS, b'{"points": [{"id": 1, "vector": [1e999, 1, 1, 1]}]}', 400, "does not fit into 32 bits"),
        (
            "PUT",
            POINTS,
            b'{"points": [{"id": 1, "vector": [1, 1, 1, 1], "payload": {"a": "\\ud800"}}]}',
            400,
            "surrogate",
        ),
        ("PUT", POINTS, {"points": [{"id": 9, "vector": [1, 2]}]}, 400, "expected dim: 4, got 2"),
        ("PUT", POINTS, {"points": [{"id": 9, "vector": ["1", 2, 3, 4]}]}, 400, "numbers only"),
        ("PUT", POINTS, {"points": [{"id": 9, "vector": {"a": [1, 2]}}]}, 400, "Not existing vector name error: a"),
        ("PUT", POINTS, {"points": [{"id": -1, "vector": [1, 2, 3, 4]}]}, 400, "-1 is not a point id"),
        ("PUT", POINTS, {"points": [{"id": 2**64, "vector": [1, 2, 3, 4]}]}, 400, "not a point id"),
        ("PUT", POINTS, {"points": [{"id": "x", "vector": [1, 2, 3, 4]}]}, 400, "x is not a point id"),
        ("PUT", POINTS, {"points": [{"id": True, "vector": [1, 2, 3, 4]}]}, 400, "not a point id"),
        ("PUT", POINTS, {"points": [{"vector": [1, 2, 3, 4]}]}, 400, "missing field `id`"),
        ("PUT", POINTS, {"batch": {"ids": [1, 2], "vectors": [[1, 2, 3, 4]]}}, 400, "of one length"),
        ("POST", f"{POINTS}/query", {"query": [1, 2]}, 400, "expected dim: 4, got 2"),
        ("POST", f"{POINTS}/query", {"query": {"fusion": "rrf"}}, 400, "`fusion` in query"),
        ("POST", f"{POINTS}/query", {"query": 1, "prefetch": [{"query": 2}]}, 400, "`prefetch`"),
        ("POST", f"{POINTS}/query", {"query": [1, 2, 3, 4], "limit": 0}, 400, "`limit` must be a number from 1"),
        ("POST", f"{POINTS}/query", {"query": [1, 2, 3, 4], "limit": 10**18}, 400, "`limit`"),
        ("POST", f"{POINTS}/scroll", {"order_by": "number"}, 400, "`order_by`"),
        ("POST", f"{POINTS}/count", {"filter": {"must": [{"key": "a"}]}}, 400, "`a` must have exactly one of match"),
        ("POST", f"{POINTS}/count", {"filter": {"must": [{"nope": 1}]}}, 400, "nope"),
        ("POST", f"{POINTS}/count", {"filter": {"wrong": []}}, 400, "`wrong` in filter"),
        ("POST", f"{POINTS}/count", {"filter": {"must": [{"has_id": ["x"]}]}}, 400, "x is not a point id"),
        (
            "POST",
            f"{POINTS}/count",
            {"filter": {"must": [{"key": "a[", "match": {"value": 1}}]}},
            400,
            "invalid JSON path a[",
        ),
        (
            "POST",
            f"{POINTS}/count",
            {"filter": {"must": [{"key": "a", "range": {"gte": "yesterday"}}]}},
            400,
            "date-time",
        ),
        ("POST", f"{POINTS}/delete", {}, 400, "either `points` or `filter`"),
        ("POST", f"{POINTS}/delete", {"points": [1], "filter": {}}, 400, "either `points` or `filter`"),
        ("PUT", "/collections/c/index", {"field_name": "a", "field_schema": "words"}, 400, "keyword, integer"),
        ("PUT", "/collections/d/snapshots/recover", {"location": "ftp://x"}, 400, "file://"),
        ("PUT", "/collections/d/snapshots/recover", {"location": "file:///none"}, 400, "no file at"),
        ("PUT", "/collections/d/snapshots/recover", {"location": "file:///etc/passwd"}, 400, "not a snapshot"),
        ("PUT", "/collections/d/snapshots/recover", {"location": "http://127.0.0.1:1/x"}, 400, "cannot download"),
        ("PUT", "/collections/d/snapshots/recover", {"location": "http://[x"}, 400, "cannot download"),
        ("POST", "/collections/d/snapshots/upload", b"x", 400, "multipart/form-data"),
    ],
)
def test_a_refusal_has_the_reason(curl: Curl, method: str, path: str, body: Any, status: int, words: str) -> None:
    got, text = curl.error(method, path, body)
    assert (got, words in text) == (status, True), text
    assert curl.count("c") == 3
    assert not curl.result("GET", "/collections/d/exists")["exists"]


def test_nesting_has_a_limit(curl: Curl) -> None:
    deep: Any = {"must": [{"has_id": [1]}]}
    payload: Any = {}
    for _ in range(120):
        deep = {"must": [deep]}
        payload = {"a": payload}
    assert curl.error("POST", f"{POINTS}/count", {"filter": deep}) == (
        400,
        "Wrong input: the filter is nested deeper than 32 levels",
    )
    point = {"id": 1, "vector": [1, 2, 3, 4], "payload": payload}
    assert "nested deeper than 100 levels" in curl.error("PUT", POINTS, {"points": [point]})[1]


def test_the_largest_ids_and_numbers_are_returned_unchanged(curl: Curl) -> None:
    curl.make("large")
    content = {"big": 2**64 - 1, "small": -(2**63), "text": "₹ \u0000 😀", "real": 1.5e300, "none": None, "": 1}
    point = {"id": 2**64 - 1, "vector": [3e38, -3e38, 0, 1], "payload": content}
    curl.result("PUT", "/collections/large/points", {"points": [point]})
    found = curl.result("GET", f"/collections/large/points/{2**64 - 1}")
    assert (found["id"], found["payload"]) == (2**64 - 1, content)
    nearest = curl.result("POST", "/collections/large/points/query", {"query": [3e38, -3e38, 0, 1]})
    assert nearest["points"][0]["score"] is None  # infinite


def test_the_older_search_call(curl: Curl) -> None:
    body = {"vector": [0, 0, 0, 1], "limit": 2, "with_payload": True}
    found = curl.result("POST", f"{POINTS}/search", body)
    assert [(point["id"], point["score"]) for point in found] == [(3, 3.0), (2, 2.0)]
    assert found[0]["payload"] == {"number": 3}
    assert curl.result("POST", f"{POINTS}/search/batch", {"searches": [body, body | {"limit": 1}]})[1] == found[:1]


def test_bodies_have_a_limit_but_not_uploads(curl: Curl, server: Qdrant) -> None:
    large = b" " * (32 * 1024 * 1024 + 1)
    assert curl.error("PUT", POINTS, large)[0] == 413
    assert curl.error("POST", "/collections/d/snapshots/upload", large)[0] == 400


def test_a_snapshot_is_downloaded_and_uploaded(curl: Curl, server: Qdrant) -> None:
    made = curl.result("POST", "/collections/c/snapshots")
    answer = urllib3.request("GET", f"{server.url}/collections/c/snapshots/{made['name']}")
    assert (answer.status, len(answer.data)) == (200, made["size"])
    assert made["name"] in answer.headers["Content-Disposition"]

    def upload(name: str, content: bytes, checksum: str = made["checksum"]) -> tuple[int, Any]:
        address = f"{server.url}/collections/{name}/snapshots/upload?priority=snapshot&checksum={checksum}"
        sent = urllib3.request("POST", address, fields={"snapshot": (made["name"], content)})
        return sent.status, json.loads(sent.data)

    assert upload("sent", answer.data)[0] == 200
    assert curl.ids("sent") == {1, 2, 3}
    assert "checksum mismatch" in upload("other", answer.data[:-1])[1]["status"]["error"]
    curl.result("PUT", "/collections/wide", {"vectors": {"size": 5, "distance": "Dot"}})
    assert "the snapshot's vectors are" in upload("wide", answer.data)[1]["status"]["error"]
    assert curl.count("wide") == 0
