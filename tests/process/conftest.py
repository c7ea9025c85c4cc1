"""The real program, started, signalled and killed by tests that count what arrived and what the database says."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg2
import psycopg2.extensions
import pytest
import redis
from books import Books
from call_queue import Queue
from machines import Machine, Machines
from web_process import OpenWeb, Web
from workers import Start, Worker, wait_for

from sandbox.accounts import ENCRYPTION_KEY
from sandbox.browser import Browser, chromium, opened
from sandbox.crm import Crm
from sandbox.dovecot import Dovecot
from sandbox.ports import free_port
from sandbox.servers import ServerMissing
from sandbox.world import World

# What a program needs to run at all; the rest of our own environment is kept from it.
_INHERITED = ("PATH", "HOME", "LANG", "TMPDIR", "COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG")


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def environment(database_url: str, redis_url: str, world: World, state_dir: Path) -> dict[str, str]:
    """Settings that lead to the test's servers and waste no time."""
    world.set_rates(whatsapp_rate=0)
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return inherited | {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "STATE_DIR": str(state_dir),
        **world.environment,
        "ENCRYPTION_KEY": ENCRYPTION_KEY,
        "APP_URL": "https://app.crm.example.in",
        "CAMPAIGN_INTERVAL": "1",
        "CAMPAIGN_BATCH_DELAY": "0",
        "WHATSAPP_RATE": "1000",
        "GMAIL_RATE": "1000",
        "QDRANT_EMBEDDED": "false",
        "QDRANT_URL": "http://127.0.0.1:9",
        "PYTHONUNBUFFERED": "1",
    }


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """Starts a worker: ``start(CAMPAIGN_CONCURRENCY="2")``, ``start("--once", program="trial")``.

    None outlives the test.
    """
    workers: list[Worker] = []

    def start_one(*arguments: str, program: str = "campaign", **settings: str) -> Worker:
        log = tmp_path / f"worker-{len(workers)}.log"
        worker = Worker(environment | settings, log, *arguments, program=program)
        workers.append(worker)
        return worker

    yield start_one
    for worker in workers:
        worker.thaw()
        worker.kill()
        print(f"--- {worker.log_path.name}\n{worker.log}")  # noqa: T201 - pytest shows it when the test fails


@pytest.fixture
def machines(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """Switches a machine on: ``machines("m1", "campaign", "watchdog", LOCK_TTL_MS="2000")``.

    None outlives the test.
    """
    made: list[Machine] = []

    def switch_on(name: str, *programs: str, **settings: str) -> Machine:
        # a short name: the path of a Unix socket may have at most 107 characters
        made.append(Machine(name, tmp_path_factory.mktemp("m"), environment | settings, *programs))
        return made[-1]

    yield switch_on
    for each in made:
        each.end()
        print(each.logs)  # noqa: T201 - pytest shows it when the test fails


@pytest.fixture
def open_web(start: Start) -> OpenWeb:
    """Starts bin/web and waits until it answers: ``open_web(METRICS_TOKEN="x")``."""

    def make(**settings: str) -> Web:
        port = free_port()
        web = Web(start(program="web", PORT=str(port), **settings), port)
        wait_for(web.answers, "bin/web answers")
        return web

    return make


@pytest.fixture
def open_mailbox() -> Iterator[Callable[..., Dovecot]]:
    """Starts a Dovecot; skips the test where there is none and none can be installed."""
    servers: list[Dovecot] = []
    folders: list[Path] = []

    def start_one(**options: object) -> Dovecot:
        # not in the test's own folder, which only its owner can enter: Dovecot reads mail as another user
        folders.append(Path(tempfile.mkdtemp(prefix="dovecot-")))
        folders[-1].chmod(0o755)
        server = Dovecot(folders[-1] / "server", **options)  # type: ignore[arg-type]
        try:
            server.start()
        except ServerMissing as error:
            if os.environ.get("CI", "").lower() == "true" and os.geteuid() == 0:
                pytest.fail(str(error))
            pytest.skip(str(error))
        servers.append(server)
        return server

    yield start_one
    for server in servers:
        server.stop()
    for folder in folders:
        shutil.rmtree(folder)


@pytest.fixture
def mailbox(open_mailbox: Callable[..., Dovecot]) -> Dovecot:
    return open_mailbox()


@pytest.fixture
def redis_client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


@pytest.fixture
def books(crm: Crm, world: World, state_dir: Path) -> Books:
    return Books(crm, world, state_dir)


@pytest.fixture
def queue(crm: Crm, world: World) -> Queue:
    return Queue(crm, world)


@pytest.fixture
def second_connection(database_url: str) -> Iterator[psycopg2.extensions.connection]:
    """A connection for a transaction that the test keeps open."""
    made = psycopg2.connect(database_url, options="-c TimeZone=UTC")
    yield made
    made.close()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """Skips the test where Chromium is missing and cannot be installed."""
    try:
        chromium()
    except ServerMissing as error:
        if os.environ.get("CI", "").lower() == "true" and os.geteuid() == 0:
            pytest.fail(str(error))
        pytest.skip(str(error))
    with opened(tmp_path) as made:
        yield made
