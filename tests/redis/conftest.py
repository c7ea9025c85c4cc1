"""Real Redis servers for the tests: one that all tests share, and servers that a test may stop or freeze."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from redis_servers import Server

from worker.runtime.redis_client import connect


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop(kill=True)


@pytest.fixture
def url(shared_server: Server) -> str:
    """The URL of an empty server that runs all the time."""
    with connect(shared_server.url) as client:
        client.flushall()
    return shared_server.url


@pytest.fixture
def client(url: str) -> Iterator[redis.Redis]:
    with connect(url) as client:
        yield client


@pytest.fixture
def new_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts a server that the test may stop, freeze and start again."""
    servers: list[Server] = []

    def start(*options: str, started: bool = True) -> Server:
        folder = tmp_path / f"s{len(servers)}"
        folder.mkdir()
        server = Server(folder, *options)
        servers.append(server)
        if started:
            server.start()
        return server

    yield start
    for server in servers:
        server.stop(kill=True)


@pytest.fixture
def connected() -> Iterator[Callable[..., redis.Redis]]:
    """``connect``, whose clients are closed when the test is over."""
    clients: list[redis.Redis] = []

    def start(url: str, **options: float) -> redis.Redis:
        clients.append(connect(url, **options))
        return clients[-1]

    yield start
    for each in clients:
        each.close()
