"""The real servers that tests run against: PostgreSQL, Redis, and the stand-ins of the providers.

Each process of pytest has its own servers, so several processes (pytest -n 4) do not disturb each other. Where
DATABASE_URL or REDIS_URL is set, that server is used instead: tests make databases of their own in that PostgreSQL,
but they empty the very database of that Redis, so only one process may run. Tests that need a server which is not
installed are skipped; with CI=true they fail.
"""

import os
import secrets
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit, urlunsplit

import psycopg2
import psycopg2.extensions
import pytest
import redis
from hypothesis import HealthCheck, settings
from psycopg2 import sql

from sandbox.crm import Crm, apply_schema
from sandbox.pgbouncer import PgBouncer
from sandbox.ports import RANGE
from sandbox.postgres import Postgres
from sandbox.redis import Redis
from sandbox.servers import ServerMissing
from sandbox.world import World

MEMORY, PREFIX = Path("/dev/shm"), "crm-worker-tests-"  # noqa: S108 - the name has the process id
PLENTY_BYTES = 6 << 30


def pytest_configure(config: pytest.Config) -> None:
    """Keeps several processes of pytest apart, and does not count a busy machine as an error."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell starts background commands like this. The programs that tests send SIGINT would inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # How long an example takes says more about the machine than about what is tested.
    settings.register_profile("any load", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("any load")
    if getattr(config.option, "numprocesses", None) and any(map(os.environ.get, ("DATABASE_URL", "REDIS_URL"))):
        raise pytest.UsageError("DATABASE_URL and REDIS_URL are for one process: tests empty that Redis (no -n)")
    # The port of a server that a test has stopped must not be taken by a server of another process.
    RANGE.use_share(
        int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")),
        int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")),
    )


class Databases:
    """Makes and drops databases on one server, whoever runs it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._connection = psycopg2.connect(url)
        self._connection.autocommit = True

    def url_of(self, name: str) -> str:
        return urlunsplit(urlsplit(self.url)._replace(path=f"/{name}"))

    def create(self, template: str = "template1") -> str:
        """A new database; returns its name."""
        name = f"crm_test_{secrets.token_hex(6)}"
        self._run("CREATE DATABASE {} TEMPLATE {}", name, template)
        return name

    def drop(self, name: str) -> None:
        """Drops a database whose clients may still be connected."""
        self._run("DROP DATABASE IF EXISTS {} WITH (FORCE)", name)

    def close(self) -> None:
        self._connection.close()

    def _run(self, statement: str, *names: str) -> None:
        with self._connection.cursor() as cursor:
            cursor.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


@contextmanager
def server_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """For PostgreSQL's files, in memory if there is plenty: a test's database has 900 files, and on some disks making
    one takes 20 times as long.
    """
    if not (MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= PLENTY_BYTES):
        yield tmp_path_factory.mktemp("postgres")
        return
    for left in MEMORY.glob(f"{PREFIX}*"):  # by a process that was killed
        if not Path("/proc", left.name.removeprefix(PREFIX)).exists():
            shutil.rmtree(left, ignore_errors=True)
    folder = MEMORY / f"{PREFIX}{os.getpid()}"
    folder.mkdir(mode=0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def missing(error: ServerMissing) -> NoReturn:
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(str(error))
    pytest.skip(str(error))


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The maintenance database of a PostgreSQL server. Its sessions are in India's time unless they ask for UTC."""
    if os.environ.get("DATABASE_URL"):
        yield os.environ["DATABASE_URL"]
        return
    with server_folder(tmp_path_factory) as folder:
        server = Postgres(folder / "data", fsync=False, timezone="Asia/Kolkata")
        try:
            server.start()
        except ServerMissing as error:
            missing(error)
        yield server.url
        server.remove()


@pytest.fixture(scope="session")
def databases(postgres_url: str) -> Iterator[Databases]:
    with closing(Databases(postgres_url)) as made:
        yield made


@pytest.fixture(scope="session")
def crm_only_template(databases: Databases) -> Iterator[str]:
    """Name of a database with the CRM's tables, without the worker's."""
    name = databases.create()
    with closing(psycopg2.connect(databases.url_of(name))) as connection:
        apply_schema(connection)
    yield name
    databases.drop(name)


@pytest.fixture(scope="session")
def template(databases: Databases, crm_only_template: str) -> Iterator[str]:
    """Name of a database with the CRM's and the worker's tables."""
    migrate = pytest.importorskip("worker.runtime.migrations").migrate
    name = databases.create(crm_only_template)
    with closing(psycopg2.connect(databases.url_of(name))) as connection:
        migrate(connection)
    yield name
    databases.drop(name)


@pytest.fixture
def database_url(databases: Databases, template: str) -> Iterator[str]:
    """A database of this test's own with the CRM's tables and the worker's, all empty."""
    name = databases.create(template)
    yield databases.url_of(name)
    databases.drop(name)


@pytest.fixture
def crm_only_url(databases: Databases, crm_only_template: str) -> Iterator[str]:
    """A database of this test's own that bin/migrate has not seen yet."""
    name = databases.create(crm_only_template)
    yield databases.url_of(name)
    databases.drop(name)


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg2.extensions.connection]:
    """A connection to ``database_url`` in autocommit and UTC."""
    with closing(psycopg2.connect(database_url, options="-c TimeZone=UTC")) as made:
        made.autocommit = True
        yield made


@pytest.fixture
def crm(connection: psycopg2.extensions.connection) -> Crm:
    return Crm(connection)


@pytest.fixture
def new_postgres(tmp_path: Path) -> Iterator[Callable[[], Postgres]]:
    """Starts a PostgreSQL that the test may stop, kill and start again."""
    servers: list[Postgres] = []

    def start() -> Postgres:
        server = Postgres(tmp_path / f"postgres-{len(servers)}", fsync=False, timezone="Asia/Kolkata")
        try:
            server.start()
        except ServerMissing as error:
            missing(error)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.remove()


@pytest.fixture
def new_bouncer(postgres_url: str, tmp_path: Path) -> Iterator[Callable[..., PgBouncer]]:
    """Starts a PgBouncer (with these settings) before the tests' PostgreSQL, or before ``postgres_url``."""
    started: list[PgBouncer] = []

    def start(**options: str) -> PgBouncer:
        url = options.pop("postgres_url", postgres_url)
        made = PgBouncer(tmp_path / f"pgbouncer-{len(started)}", url, **options)
        try:
            made.start()
        except ServerMissing as error:
            if os.environ.get("CI", "").lower() == "true" and os.geteuid() == 0:
                pytest.fail(str(error))
            pytest.skip(str(error))
        started.append(made)
        return made

    yield start
    for each in started:
        each.stop()


@pytest.fixture(scope="session")
def redis_server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if os.environ.get("REDIS_URL"):
        yield os.environ["REDIS_URL"]
        return
    server = Redis(tmp_path_factory.mktemp("redis"))
    try:
        server.start()
    except ServerMissing as error:
        missing(error)
    yield server.url
    server.kill()


@pytest.fixture
def redis_url(redis_server_url: str) -> str:
    """The URL of an empty database of a Redis server that runs all the time."""
    with redis.Redis.from_url(redis_server_url) as client:
        client.flushdb()
    return redis_server_url


@pytest.fixture
def new_redis(tmp_path: Path) -> Iterator[Callable[..., Redis]]:
    """Starts a Redis (``Redis``'s keyword arguments) that the test may stop, kill and start again."""
    servers: list[Redis] = []

    def start(**options: object) -> Redis:
        server = Redis(tmp_path / f"redis-{len(servers)}", **options)  # type: ignore[arg-type]
        try:
            server.start()
        except ServerMissing as error:
            missing(error)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.kill()


@pytest.fixture(scope="session")
def shared_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    server = World(tmp_path_factory.mktemp("world"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def world(shared_world: World) -> World:
    """The SMTP inbox and the providers' stand-ins: nothing received yet, nothing scripted, usual rates."""
    shared_world.reset()
    return shared_world
