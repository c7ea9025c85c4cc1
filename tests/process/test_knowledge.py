"""bin/knowledge against a real engine: the collection, its snapshots, and restoring one."""

import io
import logging
import os
import pty
import secrets
import select
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import redis
import urllib3
from qdrant_client import QdrantClient, models
from workers import PROJECT, Start, Worker, wait_for

from sandbox.qdrant import Qdrant
from sandbox.servers import ServerMissing
from worker.knowledge import main
from worker.runtime.counter_readings import read_all
from worker.vectors.client import VectorStore
from worker.vectors.collection import VectorStoreError

SIZE = 4
KEY = "a-key-that-must-not-be-logged"
LOCK = "lock:knowledge"


def started(folder: Path, port: int | None = None) -> Qdrant:
    server = Qdrant(folder, port, api_key=KEY)
    try:
        server.start()
    except ServerMissing as error:
        pytest.fail(str(error)) if os.environ.get("CI") else pytest.skip(str(error))
    return server


@pytest.fixture(scope="module")
def qdrant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Qdrant]:
    server = started(tmp_path_factory.mktemp("qdrant"))
    yield server
    server.kill()


def connected(server: Qdrant) -> QdrantClient:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a key without TLS, on 127.0.0.1
        return QdrantClient(url=server.url, api_key=KEY, check_compatibility=False)


@pytest.fixture
def client(qdrant: Qdrant) -> Iterator[QdrantClient]:
    made = connected(qdrant)
    yield made
    made.close()


@pytest.fixture
def name() -> str:
    """The test's own collection."""
    return f"knowledge_{secrets.token_hex(4)}"


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    return tmp_path / "copies"


@pytest.fixture
def settings(redis_url: str, qdrant: Qdrant, name: str, copies: Path) -> dict[str, str]:
    inherited = {key: os.environ[key] for key in ("PATH", "HOME", "COVERAGE_PROCESS_CONFIG") if key in os.environ}
    return inherited | {
        "REDIS_URL": redis_url,
        "QDRANT_URL": qdrant.url,
        "QDRANT_API_KEY": KEY,
        "VECTOR_COLLECTION_NAME": name,
        "KNOWLEDGE_VECTOR_SIZE": str(SIZE),
        "KNOWLEDGE_SNAPSHOT_DIR": str(copies),
    }


@dataclass
class Done:
    """The result of a run of bin/knowledge."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def knowledge(settings: dict[str, str], capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs bin/knowledge to its end: ``knowledge("verify", KNOWLEDGE_SNAPSHOT_KEEP="2")``.

    In this process: starting Python with qdrant-client takes a second, and the tests run it forty times.
    """

    def run(*arguments: str, **changed: str) -> Done:
        capsys.readouterr()
        with pytest.MonkeyPatch.context() as patch, signals_and_logs_restored():
            patch.setattr(os, "environ", settings | changed)
            patch.setattr(sys, "stdin", io.StringIO())
            status = main(arguments)
        done = Done(status, *capsys.readouterr())
        assert KEY not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    return run


@contextmanager
def signals_and_logs_restored() -> Iterator[None]:
    """Restores the signal and log handlers that a program replaces."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    handlers = [signal.getsignal(number) for number in numbers]
    root = logging.getLogger()
    logs, level = list(root.handlers), root.level
    try:
        yield
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)
        root.handlers[:] = logs
        root.setLevel(level)


def fill(client: QdrantClient, name: str, points: int, first: int = 1) -> None:
    """Points of three tenants, as the CRM writes them."""
    client.upsert(
        name,
        [
            models.PointStruct(
                id=number,
                vector=[1.0, number, 0.5, 2.0],
                payload={"metadata": {"tenantId": f"tenant-{number % 3}"}, "pageContent": f"page {number}"},
            )
            for number in range(first, first + points)
        ],
        wait=True,
    )


def of_tenant(client: QdrantClient, name: str, tenant: str) -> int:
    condition = models.FieldCondition(key="metadata.tenantId", match=models.MatchValue(value=tenant))
    return client.count(name, count_filter=models.Filter(must=[condition]), exact=True).count


def snapshots(client: QdrantClient, name: str) -> list[str]:
    """Newest first."""
    return sorted((each.name for each in client.list_snapshots(name)), reverse=True)


def scratch(client: QdrantClient, name: str) -> list[str]:
    return [each.name for each in client.get_collections().collections if each.name.startswith(f"{name}-")]


def next_second() -> None:
    """Waits, because Qdrant names a snapshot by the second in which it is taken."""
    begun = int(time.time())
    wait_for(lambda: int(time.time()) > begun, "the next second")


def test_it_creates_the_collection_and_takes_a_snapshot(
    knowledge: Run, client: QdrantClient, name: str, copies: Path, redis_client: redis.Redis
) -> None:
    """Once; a second run does nothing. The metrics agree with what Qdrant has."""
    done = knowledge("--once")
    assert (done.returncode, done.stderr) == (0, "")
    made = client.get_collection(name)
    assert made.config.params.vectors == models.VectorParams(size=SIZE, distance=models.Distance.COSINE)
    index = made.payload_schema["metadata.tenantId"]
    assert index.data_type == models.PayloadSchemaType.KEYWORD
    assert isinstance(index.params, models.KeywordIndexParams)
    assert index.params.is_tenant is True
    (taken,) = client.list_snapshots(name)
    assert [path.name for path in copies.iterdir()] == [taken.name]
    assert (copies / taken.name).stat().st_size == taken.size
    assert (copies / taken.name).stat().st_mode & 0o777 == 0o600
    gauges = {each.metric: each.value for each in read_all(redis_client).gauges}
    assert gauges["knowledge_points"] == 0
    assert gauges["knowledge_snapshot_size_bytes"] == taken.size
    assert abs(gauges["knowledge_snapshot_timestamp_seconds"] - time.time()) < 120
    fill(client, name, 30)
    again = knowledge("--once")
    assert (again.returncode, again.stderr) == (0, "")
    assert "snapshot taken" not in again.stdout
    assert snapshots(client, name) == [taken.name]
    assert {each.metric: each.value for each in read_all(redis_client).gauges}["knowledge_points"] == 30


def test_a_tick_with_nothing_to_do(settings: dict[str, str], knowledge: Run) -> None:
    """It does not import qdrant-client, which would take most of its time: there is one every few minutes."""
    knowledge("--once")
    argv = [sys.executable, "-X", "importtime", "-m", "worker.knowledge", "--once"]
    done = subprocess.run(argv, cwd=PROJECT, env=settings, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "worker.vectors.reader" in imported
    assert imported & {"worker.vectors.client", "qdrant_client", "httpx", "numpy", "pydantic", "grpc"} == set()


@pytest.mark.parametrize(
    ("vectors", "problem"),
    [
        (models.VectorParams(size=9, distance=models.Distance.COSINE), "has vectors of 9, Cosine"),
        (models.VectorParams(size=SIZE, distance=models.Distance.DOT), "has vectors of 4, Dot"),
    ],
)
def test_an_existing_collection_is_never_changed(
    knowledge: Run, client: QdrantClient, name: str, vectors: models.VectorParams, problem: str
) -> None:
    """A wrong size or distance: both values and what to do, status 1; snapshots are still taken."""
    client.create_collection(name, vectors_config=vectors)
    client.upsert(name, [models.PointStruct(id=1, vector=[1.0] * vectors.size)], wait=True)
    before = client.get_collection(name).config
    done = knowledge("--once")
    assert done.returncode == 1
    for words in (problem, f"need vectors of {SIZE}, Cosine", "set KNOWLEDGE_VECTOR_SIZE", "has no payload index"):
        assert words in done.stderr, words
    found = client.get_collection(name)
    assert found.config == before
    assert found.payload_schema == {}
    assert len(snapshots(client, name)) == 1


def test_a_collection_without_its_index(knowledge: Run, client: QdrantClient, name: str) -> None:
    """If the program died after it created the collection, the next run creates the index."""
    client.create_collection(name, models.VectorParams(size=SIZE, distance=models.Distance.COSINE))
    assert knowledge("--once").returncode == 0
    assert list(client.get_collection(name).payload_schema) == ["metadata.tenantId"]


def test_only_the_newest_snapshots_are_kept(
    knowledge: Run, client: QdrantClient, name: str, copies: Path, redis_client: redis.Redis
) -> None:
    """KNOWLEDGE_SNAPSHOT_KEEP of them, in Qdrant and in the folder; other files in the folder are not touched."""
    knowledge("--once")
    (copies / "notes.txt").write_text("mine", "utf-8")
    fill(client, name, 1)
    next_second()
    client.create_snapshot(name)
    next_second()
    done = knowledge("snapshot")
    kept = snapshots(client, name)[:2]
    assert f"Snapshot {kept[0]}: " in done.stdout
    assert ", 1 points." in done.stdout
    assert f"Copied to {copies / kept[0]}." in done.stdout
    assert (copies / kept[0]).stat().st_size > 0
    (copies / kept[1]).write_bytes(b"")  # as an earlier run would have copied it
    assert knowledge("--once", KNOWLEDGE_SNAPSHOT_KEEP="2").returncode == 0
    assert snapshots(client, name) == kept
    assert sorted(path.name for path in copies.iterdir()) == sorted([*kept, "notes.txt"])
    recorded = set(redis_client.hkeys(f"worker:knowledge:{name}")) - {"accepted"}
    assert recorded == {kept[0]}, "the points of the other one are unknown"


def test_verify(knowledge: Run, client: QdrantClient, name: str, redis_client: redis.Redis) -> None:
    """It restores the newest into a scratch collection, counts, and deletes that; a difference is status 1."""
    knowledge("--once")
    fill(client, name, 120)
    next_second()
    knowledge("snapshot")
    fill(client, name, 5, first=1000)
    done = knowledge("verify")
    assert (done.returncode, "Good: 120 points restored, 120 when it was taken." in done.stdout) == (0, True)
    assert scratch(client, name) == []
    assert client.count(name).count == 125
    redis_client.hset(f"worker:knowledge:{name}", snapshots(client, name)[0], f"{time.time():.0f} 119 119")
    done = knowledge("verify")
    assert (done.returncode, "NOT GOOD: 120 points restored, 119 when" in done.stdout) == (1, True)
    redis_client.delete(f"worker:knowledge:{name}")
    done = knowledge("verify")
    assert (done.returncode, "Unclear: 120 points restored, 125 in the collection" in done.stdout) == (1, True)
    assert scratch(client, name) == []


def test_the_scratch_collection_of_a_killed_verification(knowledge: Run, client: QdrantClient, name: str) -> None:
    """The job deletes it, and no other collection."""
    vectors = models.VectorParams(size=SIZE, distance=models.Distance.COSINE)
    for each in (f"{name}-verify-0a1b2c3d", f"{name}-verify-of-mine"):
        client.create_collection(each, vectors)
    done = knowledge("--once")
    assert (done.returncode, f"collection={name}-verify-0a1b2c3d" in done.stderr) == (0, True)
    assert scratch(client, name) == [f"{name}-verify-of-mine"]


def test_a_deleted_collection_is_restored(
    knowledge: Run, client: QdrantClient, name: str, redis_client: redis.Redis
) -> None:
    """All points with vectors and payloads. Until then the snapshot is kept, however many come after it."""
    knowledge("--once")
    fill(client, name, 300)
    next_second()
    knowledge("snapshot")
    (newest, *_) = snapshots(client, name)
    recorded = redis_client.hgetall(f"worker:knowledge:{name}")
    assert recorded["accepted"] == recorded[newest], "it is itself not older, however long it took"
    client.delete_collection(name)
    for _ in range(2):
        next_second()
        done = knowledge("--once", KNOWLEDGE_SNAPSHOT_INTERVAL="1s", KNOWLEDGE_SNAPSHOT_KEEP="1")
        assert done.returncode == 1, done.stderr
        assert f"has 0 points, and snapshot {newest} has 300 points" in done.stderr
    fill(client, name, 1)  # the CRM may write before the operator restores
    done = knowledge("--once", KNOWLEDGE_SNAPSHOT_KEEP="1")
    assert (done.returncode, f"bin/knowledge restore {newest}" in done.stderr) == (1, True)
    assert snapshots(client, name)[-1] == newest
    assert len(snapshots(client, name)) == 2
    done = knowledge("restore", newest, "--yes")
    assert (done.returncode, f"{name} has 300 points" in done.stdout) == (0, True)
    assert (client.count(name).count, of_tenant(client, name, "tenant-1")) == (300, 100)
    (point,) = client.retrieve(name, [7], with_vectors=True)
    assert point.payload == {"metadata": {"tenantId": "tenant-1"}, "pageContent": "page 7"}
    assert isinstance(point.vector, list)
    assert [value / point.vector[0] for value in point.vector] == pytest.approx([1.0, 7.0, 0.5, 2.0], rel=1e-4)
    assert "metadata.tenantId" in client.get_collection(name).payload_schema
    assert knowledge("--once").returncode == 0
    client.delete_collection(name)  # before there is another snapshot of what was restored
    next_second()
    done = knowledge("--once", KNOWLEDGE_SNAPSHOT_INTERVAL="1s", KNOWLEDGE_SNAPSHOT_KEEP="1")
    assert (done.returncode, f"bin/knowledge restore {newest}" in done.stderr) == (1, True)
    assert snapshots(client, name)[-1] == newest


def test_restoring_can_be_undone(knowledge: Run, client: QdrantClient, name: str) -> None:
    """A snapshot of the present collection is taken first, and its name is written."""
    knowledge("--once")
    fill(client, name, 10)
    next_second()
    knowledge("snapshot")
    (ten, *_) = snapshots(client, name)
    fill(client, name, 5, first=100)
    next_second()
    done = knowledge("restore", ten, "--yes")
    assert (done.returncode, client.count(name).count) == (0, 10)
    (first,) = [line.removeprefix("Taken first: ") for line in done.stdout.splitlines() if line.startswith("Taken")]
    assert knowledge("restore", first, "--yes").returncode == 0
    assert client.count(name).count == 15


def test_a_snapshot_that_is_being_restored_is_not_deleted(
    knowledge: Run, client: QdrantClient, name: str, redis_client: redis.Redis, copies: Path
) -> None:
    """The snapshot that is taken first may be one too many; if the restore fails, the good one still exists."""
    knowledge("--once")
    fill(client, name, 10)
    next_second()
    knowledge("snapshot", KNOWLEDGE_SNAPSHOT_KEEP="1")
    (good, *_) = snapshots(client, name)
    redis_client.sadd(f"worker:knowledge:{name}:pinned", good)  # as by a restore that was killed afterwards
    next_second()
    knowledge("--once", KNOWLEDGE_SNAPSHOT_INTERVAL="1s", KNOWLEDGE_SNAPSHOT_KEEP="1")
    assert good in snapshots(client, name)
    assert len(snapshots(client, name)) == 2
    assert knowledge("restore", good, "--yes").returncode == 0
    assert redis_client.smembers(f"worker:knowledge:{name}:pinned") == set()
    fill(client, name, 50, first=100)
    broken = copies / f"{name}-1-2026-01-31-09-30-00.snapshot"
    broken.write_bytes(b"no snapshot at all")
    assert knowledge("restore", broken.name, "--yes").returncode == 1
    assert redis_client.smembers(f"worker:knowledge:{name}:pinned") == {broken.name}
    assert client.count(name).count == 60
    assert all(each.startswith(name) for each in snapshots(client, name)), "the uploaded file does not stay in Qdrant"


def test_a_failed_snapshot_does_not_let_a_good_one_be_deleted(
    knowledge: Run, client: QdrantClient, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk after the collection has lost its points: the snapshot that has them is kept."""
    knowledge("--once")
    fill(client, name, 50)
    settings = {"KNOWLEDGE_SNAPSHOT_INTERVAL": "1s", "KNOWLEDGE_SNAPSHOT_KEEP": "1"}
    next_second()
    knowledge("--once", **settings)
    (good,) = snapshots(client, name)
    client.delete_collection(name)
    next_second()
    knowledge("--once", **settings)
    assert len(snapshots(client, name)) == 2

    def full(*_: object) -> None:
        raise VectorStoreError("No space left on device")

    monkeypatch.setattr(VectorStore, "take_snapshot", full)
    next_second()
    done = knowledge("--once", **settings)
    assert (done.returncode, "No space left" in done.stderr, good in done.stderr) == (1, True, True)
    assert good in snapshots(client, name)


def test_without_redis(knowledge: Run, client: QdrantClient, name: str) -> None:
    """An operator may have lost Redis together with Qdrant: the commands work, and warn."""
    knowledge("--once")
    fill(client, name, 10)
    next_second()
    (empty,) = snapshots(client, name)
    nowhere = "redis://127.0.0.1:9/0"
    done = knowledge("restore", empty, "--yes", REDIS_URL=nowhere)
    assert (done.returncode, client.count(name).count) == (0, 0)
    assert "keep the job knowledge stopped" in done.stderr
    next_second()
    assert knowledge("verify", REDIS_URL=nowhere).returncode == 1, (
        "10 points in the snapshot that was taken first, 0 now"
    )
    next_second()
    done = knowledge("snapshot", REDIS_URL=nowhere)
    assert (done.returncode, f"Snapshot {snapshots(client, name)[0]}: " in done.stdout) == (0, True)


@pytest.mark.parametrize("body", [b"<html>hello</html>", b"{}", b'{"result": null, "status": "ok", "time": 0}'])
def test_another_server_answers(knowledge: Run, body: bytes) -> None:
    """A web server at Qdrant's address: one line with the request that failed."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = knowledge("--once", QDRANT_URL=f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    assert (done.returncode, "Qdrant's answer is not understood" in done.stderr) == (1, True)
    assert "a bug" not in done.stderr


def test_a_new_machine_from_a_copy(
    knowledge: Run, client: QdrantClient, name: str, copies: Path, tmp_path: Path
) -> None:
    """Qdrant's disk is lost with all snapshots; the copy restores everything into an empty Qdrant."""
    knowledge("--once")
    fill(client, name, 40)
    next_second()
    knowledge("--once", KNOWLEDGE_SNAPSHOT_INTERVAL="1s")
    (newest, *_) = sorted((path.name for path in copies.iterdir()), reverse=True)
    other = started(tmp_path / "other")
    next_second()
    try:
        done = knowledge("--once", QDRANT_URL=other.url)
        assert (done.returncode, f"snapshot {newest} has 40 points" in done.stderr) == (1, True)
        assert knowledge("verify", QDRANT_URL=other.url).returncode == 0
        done = knowledge("restore", newest, "--yes", QDRANT_URL=other.url)
        assert (done.returncode, f"{name} has 40 points" in done.stdout) == (0, True)
        assert of_tenant(connected(other), name, "tenant-0") == 13
    finally:
        other.kill()


def test_restore_asks_for_confirmation(
    settings: dict[str, str], knowledge: Run, client: QdrantClient, name: str
) -> None:
    """Without a terminal, and for any answer except the collection's name, nothing is done."""
    knowledge("--once")
    fill(client, name, 3)
    (empty,) = snapshots(client, name)
    done = knowledge("restore", empty)
    assert (done.returncode, "Add --yes to confirm" in done.stdout) == (1, True)
    for answer, points in (("yes", 3), (name, 0)):
        next_second()
        assert answered(settings, answer, "restore", empty) == (0 if points == 0 else 1)
        assert client.count(name).count == points


def answered(settings: dict[str, str], answer: str, *arguments: str) -> int:
    """Runs bin/knowledge in a terminal in which ``answer`` is typed. Returns the exit status."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen([PROJECT / "bin" / "knowledge", *arguments], env=settings, stdin=theirs, stdout=theirs)
    os.close(theirs)
    screen = b""
    with suppress(OSError):  # the other end is closed
        while select.select([ours], [], [], 60)[0] and (chunk := os.read(ours, 4096)):
            screen += chunk
            if screen.endswith(b" to continue: "):
                os.write(ours, f"{answer}\n".encode())
    os.close(ours)
    try:
        return process.wait(60)
    finally:
        process.kill()


def test_a_snapshot_that_does_not_exist(knowledge: Run, client: QdrantClient, name: str, tmp_path: Path) -> None:
    """The refusal has its name, and the names of those that exist."""
    knowledge("--once")
    (known,) = snapshots(client, name)
    done = knowledge("restore", "../../etc/no-such-file", "--yes")
    assert (done.returncode, "There is no snapshot ../../etc/no-such-file" in done.stdout) == (1, True)
    assert known in done.stdout
    broken = tmp_path / "broken.snapshot"
    broken.write_bytes(b"no snapshot at all")
    fill(client, name, 3)
    done = knowledge("restore", str(broken), "--yes")
    assert (done.returncode, "restoring" in done.stdout) == (1, True)
    assert client.count(name).count == 3


def test_commands_wait_for_the_jobs_lock(
    start: Start, settings: dict[str, str], redis_client: redis.Redis, client: QdrantClient, name: str
) -> None:
    """The command names the holder and continues when the lock is free."""
    redis_client.set(LOCK, "elsewhere:77:0a1b")
    worker = start("--once", program="knowledge", **settings)
    wait_for(lambda: worker.said("another worker holds the lock"), "the job stands by")
    worker.kill()
    client.create_collection(name, models.VectorParams(size=SIZE, distance=models.Distance.COSINE))
    command = start("snapshot", program="knowledge", **settings)
    wait_for(lambda: command.said("is held by elsewhere:77:0a1b: waiting"), "the command names the holder")
    redis_client.delete(LOCK)
    assert command.wait() == 0
    assert redis_client.get(LOCK) is None


def test_outages_of_qdrant(
    start: Start, settings: dict[str, str], tmp_path: Path, name: str, redis_client: redis.Redis
) -> None:
    """Each outage is logged once; afterwards the job continues by itself, also if Qdrant was down at its start."""
    server = started(tmp_path / "own")
    server.stop()
    worker = start(
        program="knowledge", **(settings | {"QDRANT_URL": server.url, "KNOWLEDGE_SNAPSHOT_INTERVAL": "1s"})
    )
    wait_for(lambda: worker.said("server=Qdrant"), "it reports that Qdrant is unavailable")
    server.start()
    wait_for(lambda: worker.said("the server is available again"), "it continues")
    assert worker.said("snapshot taken") >= 1
    server.kill()
    wait_for(lambda: worker.said("server=Qdrant") == 2, "it reports that again")
    server.start()
    wait_for(lambda: worker.said("the server is available again") == 2, "it continues")
    assert worker.stop() == 0
    assert redis_client.get(LOCK) is None
    server.kill()


class SlowAnswers:
    """A proxy in front of Qdrant that delays the answers to one kind of request."""

    def __init__(self, url: str, command: str) -> None:
        """``command``: POST for taking a snapshot, or PUT for creating the collection."""
        relay = self
        self.received, self.release = threading.Event(), threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def pass_on(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.command == command and (command != "POST" or "/snapshots" in self.path):
                    relay.received.set()
                    relay.release.wait(60)
                headers = {name: self.headers[name] for name in ("api-key", "Content-Type") if name in self.headers}
                answer = urllib3.request(self.command, url + self.path, body=body, headers=headers, retries=False)
                with suppress(OSError):  # the client does not wait any more
                    self.send_response(answer.status)
                    self.send_header("Content-Type", answer.headers["Content-Type"])
                    self.send_header("Content-Length", str(len(answer.data)))
                    self.end_headers()
                    self.wfile.write(answer.data)

            do_GET = do_PUT = do_POST = do_DELETE = pass_on

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()


def test_stopped_while_qdrant_hangs(
    start: Start, settings: dict[str, str], qdrant: Qdrant, redis_client: redis.Redis
) -> None:
    """The program ends and releases its lock, whatever Qdrant is doing."""
    relay = SlowAnswers(qdrant.url, "PUT")
    try:
        worker: Worker = start(program="knowledge", **(settings | {"QDRANT_URL": relay.url}))
        assert relay.received.wait(30)
        assert worker.stop(seconds=10) == 0
        assert redis_client.get(LOCK) is None
    finally:
        relay.close()


def test_stopped_while_a_snapshot_is_taken(
    start: Start, settings: dict[str, str], qdrant: Qdrant, client: QdrantClient, name: str, redis_client: redis.Redis
) -> None:
    """It does not wait for Qdrant and releases the lock; the next start finds the snapshot and takes no other."""
    relay = SlowAnswers(qdrant.url, "POST")
    try:
        worker: Worker = start(program="knowledge", **(settings | {"QDRANT_URL": relay.url}))
        assert relay.received.wait(30)
        began = time.monotonic()
        assert worker.stop() == 0
        assert time.monotonic() - began < 10, "docker stop does not wait longer"
        assert redis_client.get(LOCK) is None
    finally:
        relay.close()
    wait_for(lambda: len(snapshots(client, name)) == 1, "Qdrant completes the snapshot by itself")
    again = start("--once", program="knowledge", **settings)
    assert again.wait() == 0
    assert again.said("snapshot taken") == 0
    assert again.said("snapshot copied") == 1


def test_a_key_that_is_refused(knowledge: Run) -> None:
    """Status 1 and the name of the variable; the key itself is not in the log."""
    done = knowledge("--once", QDRANT_API_KEY="wrong-key-that-must-not-be-logged")
    assert (done.returncode, "Qdrant refuses the key in QDRANT_API_KEY (HTTP 401)" in done.stderr) == (1, True)
    assert "wrong-key" not in done.stderr + done.stdout


def test_a_copy_that_cannot_be_written(knowledge: Run, client: QdrantClient, name: str, tmp_path: Path) -> None:
    """The snapshot is still taken, and the reason is logged."""
    (tmp_path / "file").touch()
    done = knowledge("--once", KNOWLEDGE_SNAPSHOT_DIR=str(tmp_path / "file" / "x"))
    assert (done.returncode, "Not a directory" in done.stderr) == (1, True)
    assert len(snapshots(client, name)) == 1
