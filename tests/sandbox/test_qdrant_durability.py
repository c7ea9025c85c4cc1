"""What the development Qdrant keeps when it is stopped, killed, or used by many clients at once."""

import shutil
import socket
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from io import BytesIO
from pathlib import Path
from threading import Event, Thread

import pytest
import urllib3
from qdrant_edge import CountRequest, EdgeShard, UpdateOperation
from qdrant_server import SMALL, Curl, qdrant_in
from waiting import wait_until

from sandbox.qdrant import Qdrant
from sandbox.qdrant.collection import Collection
from sandbox.qdrant.errors import NotFound
from sandbox.qdrant.storage import Storage

WRITERS = 10


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Qdrant]:
    with qdrant_in(tmp_path / "qdrant") as running:
        yield running


@pytest.fixture
def curl(server: Qdrant) -> Curl:
    return Curl(server.url)


def assert_points_can_be_changed(curl: Curl, name: str) -> None:
    """The engine numbers its operations: if it started to count again, it would ignore changes of known points."""
    for payload in ({"number": 70}, {"number": 71}):
        point = {"id": 1, "vector": [1, 1, 1, 1], "payload": payload}
        curl.result("PUT", f"/collections/{name}/points", {"points": [point]})
        assert curl.result("GET", f"/collections/{name}/points/1")["payload"] == payload
    curl.result("POST", f"/collections/{name}/points/delete", {"points": [2]})
    assert 2 not in curl.ids(name)


def test_everything_survives_a_restart(server: Qdrant, curl: Curl) -> None:
    curl.make("kept", points=3)
    curl.result("PUT", "/collections/kept/index", {"field_name": "number", "field_schema": "integer"})
    curl.make("gone")
    curl.result("DELETE", "/collections/gone")
    snapshot = curl.result("POST", "/collections/kept/snapshots")
    before = curl.result("GET", "/collections/kept")
    server.stop()
    assert not server.running
    server.start()
    assert curl.result("GET", "/collections")["collections"] == [{"name": "kept"}]
    assert curl.result("GET", "/collections/kept") == before
    assert curl.ids("kept") == {1, 2, 3}
    assert curl.result("GET", "/collections/kept/snapshots") == [snapshot]
    assert_points_can_be_changed(curl, "kept")


def test_a_stop_leaves_nothing_to_the_log(server: Qdrant, curl: Curl) -> None:
    curl.make("c", points=3)
    server.stop()
    (shard,) = (server.storage / "collections" / "c").glob("shard-*")
    shutil.rmtree(shard / "wal")
    opened = EdgeShard.load(str(shard))
    assert opened.count(CountRequest()) == 3
    opened.close()


def test_what_was_acknowledged_survives_a_kill(server: Qdrant, curl: Curl) -> None:
    """Ten writers at once; the kill comes while they write."""
    curl.make("c")
    curl.result("PUT", "/collections/c/index", {"field_name": "number", "field_schema": "integer"})
    acknowledged: list[int] = []

    def write(writer: int) -> None:
        number = writer * 1_000_000
        try:
            while True:
                number += 1
                curl.upsert("c", number)
                acknowledged.append(number)
        except urllib3.exceptions.HTTPError:  # the server was killed
            pass

    with ThreadPoolExecutor(WRITERS) as pool:
        writing = [pool.submit(write, each) for each in range(1, WRITERS + 1)]
        wait_until(lambda: len(acknowledged) > 500, "500 points are written", 60)
        server.kill()
        for each in writing:
            each.result()
    server.start()
    found = curl.ids("c")
    assert set(acknowledged) <= found
    assert len(found) <= len(acknowledged) + WRITERS
    body = {"filter": {"must": [{"key": "number", "match": {"value": acknowledged[-1]}}]}}
    assert curl.result("POST", "/collections/c/points/count", body) == {"count": 1}
    curl.upsert("c", 1, 2)
    assert_points_can_be_changed(curl, "c")


def test_a_kill_leaves_nothing_incomplete(server: Qdrant, curl: Curl) -> None:
    curl.make("c", points=5)
    whole = curl.result("POST", "/collections/c/snapshots")
    server.kill()
    half = server.snapshots / "c" / ".0123456789abcdef.part"
    half.write_bytes(b"half")
    left = [server.storage / "tmp" / "left", server.storage / "collections" / "c" / "shard-left"]
    for folder in left:
        shutil.copytree(server.storage / "collections" / "c", folder)
    server.start()
    assert curl.result("GET", "/collections/c/snapshots") == [whole]
    assert curl.result("GET", "/collections")["collections"] == [{"name": "c"}]
    assert not [path for path in (half, *left) if path.exists()]
    assert curl.count("c") == 5


def test_collections_are_made_restored_and_deleted_while_others_read(server: Qdrant, curl: Curl) -> None:
    curl.make("c", points=50)
    location = (server.snapshots / "c" / curl.result("POST", "/collections/c/snapshots")["name"]).as_uri()
    done = Event()

    def read(name: str) -> set[tuple[int, int]]:
        """The statuses, with the number of points where there was an answer."""
        seen = set()
        while not done.is_set():
            status, answer = curl.ask(
                "POST", f"/collections/{name}/points/query", {"query": [1, 2, 3, 4], "limit": 99}
            )
            seen.add((status, len(answer["result"]["points"]) if status == 200 else 0))
        return seen

    with ThreadPoolExecutor(4) as pool:
        reading = {name: [pool.submit(read, name) for _ in range(2)] for name in ("c", "comes-and-goes")}
        try:
            for _ in range(3):
                curl.result("PUT", "/collections/c/snapshots/recover", {"location": location})
                curl.result("PUT", "/collections/comes-and-goes/snapshots/recover", {"location": location})
                curl.result("DELETE", "/collections/comes-and-goes")
        finally:
            done.set()
        assert set().union(*(each.result() for each in reading["c"])) == {(200, 50)}
        assert set().union(*(each.result() for each in reading["comes-and-goes"])) <= {(404, 0), (200, 50)}
    assert len(list((server.storage / "collections" / "c").glob("shard*"))) == 1
    assert "ERROR" not in (server.data_dir / "qdrant.log").read_text()


def test_a_collection_is_created_once_by_many_requests(curl: Curl) -> None:
    body = {"vectors": {"size": 4, "distance": "Dot"}}
    with ThreadPoolExecutor(6) as pool:
        statuses = list(pool.map(lambda _: curl.ask("PUT", "/collections/c", body)[0], range(6)))
    assert sorted(statuses) == [200] + [409] * 5


def test_a_snapshot_is_of_one_moment(curl: Curl) -> None:
    """Points are written in order, so a snapshot that has one has all earlier ones."""
    curl.make("c")
    done = Event()
    highest = 0

    def write() -> None:
        nonlocal highest
        while not done.is_set():
            curl.upsert("c", highest + 1)
            highest += 1

    writer = Thread(target=write)
    writer.start()
    try:
        wait_until(lambda: highest > 20, "there is something to take", 60)
        before = highest
        made = curl.result("POST", "/collections/c/snapshots")
        after = highest + 1
    finally:
        done.set()
        writer.join()
    location = f"{curl.url}/collections/c/snapshots/{made['name']}"
    curl.result("PUT", "/collections/copy/snapshots/recover", {"location": location, "checksum": made["checksum"]})
    copied = curl.ids("copy")
    assert copied == set(range(1, len(copied) + 1))
    assert before <= len(copied) <= after
    assert_points_can_be_changed(curl, "copy")


def test_nothing_changes_while_a_snapshot_is_taken(tmp_path: Path) -> None:
    Collection.make(tmp_path / "c", SMALL)
    collection = Collection("c", tmp_path / "c")
    change = Thread(target=collection.change, args=(UpdateOperation.delete_points([1]),))
    with collection.frozen():
        change.start()
        change.join(0.2)
        assert change.is_alive()
    change.join()
    collection.close()


def test_a_flush_ignores_what_is_deleted_meanwhile(tmp_path: Path) -> None:
    with closing(Storage(tmp_path / "storage", tmp_path / "snapshots")) as storage:
        for name in ("deleted", "kept"):
            storage.create(name, SMALL)
        deleted = storage.get("deleted")
        deleted.forget()
        storage.flush()
        storage.delete("deleted")
        with pytest.raises(NotFound, match="`deleted`"):
            deleted.flush()


def test_a_failure_is_logged_and_the_server_continues(server: Qdrant, curl: Curl) -> None:
    curl.make("c", points=1)
    server.snapshots.rmdir()
    status, text = curl.error("POST", "/collections/c/snapshots")
    assert (status, text) == (500, "Service internal error: see the server's log")
    log = (server.data_dir / "qdrant.log").read_text()
    assert "ERROR call failed method=POST path=/collections/c/snapshots" in log
    assert "FileNotFoundError" in log
    assert curl.count("c") == 1


def test_two_snapshots_in_one_second_are_two(curl: Curl) -> None:
    curl.make("c", points=1)
    made = [curl.result("POST", "/collections/c/snapshots") for _ in range(2)]
    assert curl.result("GET", "/collections/c/snapshots") == sorted(made, key=lambda each: each["name"])
    assert made[0]["name"] != made[1]["name"]


def test_slow_downloads_block_no_other_client(server: Qdrant, curl: Curl) -> None:
    """More clients than threads request a file that is larger than a socket's buffer, and read nothing of it."""
    curl.make("c", points=1)
    name = curl.result("POST", "/collections/c/snapshots")["name"]
    with (server.snapshots / "c" / name).open("ab") as file:
        file.truncate(64 * 1024 * 1024)
    slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(40)]
    try:
        for each in slow:
            each.sendall(f"GET /collections/c/snapshots/{name} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert each.recv(12) == b"HTTP/1.1 200"
        curl.upsert("c", 2)
        assert curl.count("c") == 2
    finally:
        for each in slow:
            each.close()


def test_a_snapshot_cannot_write_outside_its_folder(server: Qdrant, curl: Curl, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    for name, kind in (
        (str(outside), tarfile.REGTYPE),
        ("../../../outside", tarfile.REGTYPE),
        ("x", tarfile.SYMTYPE),
    ):
        evil = tmp_path / "evil.snapshot"
        with tarfile.open(evil, "w:gz") as archive:
            member = tarfile.TarInfo(name)
            member.type = kind
            member.linkname = str(outside)
            member.size = 0 if kind == tarfile.SYMTYPE else 4
            archive.addfile(member, BytesIO(b"evil"))
        status, text = curl.error("PUT", "/collections/c/snapshots/recover", {"location": evil.as_uri()})
        assert (status, "does not belong in a snapshot" in text) == (400, True), text
    assert not outside.exists()
    assert list((server.storage / "tmp").iterdir()) == []


def test_a_snapshot_is_small_and_stays_sparse(server: Qdrant, curl: Curl) -> None:
    """The engine's files have a hundred megabytes of holes."""
    curl.make("c", points=3)
    made = curl.result("POST", "/collections/c/snapshots")
    assert made["size"] < 1_000_000
    location = (server.snapshots / "c" / made["name"]).as_uri()
    curl.result("PUT", "/collections/copy/snapshots/recover", {"location": location})
    segments = [
        path for path in (server.storage / "collections" / "copy").glob("shard/segments/**/*") if path.is_file()
    ]
    assert sum(path.stat().st_size for path in segments) > 30_000_000
    assert sum(path.stat().st_blocks * 512 for path in segments) < 10_000_000
