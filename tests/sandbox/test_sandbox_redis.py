"""The embedded redis-server, and that all servers of the sandbox end with their parent process."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from waiting import wait_until

from sandbox.ports import free_port, is_free
from sandbox.redis import Redis
from sandbox.servers import Child, ServerFailed

PROJECT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("appendonly", "kept"), [(True, "1"), (False, None)])
def test_data_survive_a_restart_with_appendonly(
    new_redis: Callable[..., Redis], appendonly: bool, kept: str | None
) -> None:
    server = new_redis(appendonly=appendonly)
    with server.client() as client:
        client.set("key", "1")
    server.restart()
    with server.client() as client:
        assert client.get("key") == kept


def test_it_requires_the_password_and_evicts_nothing(new_redis: Callable[..., Redis]) -> None:
    server = new_redis()
    with redis.Redis(port=server.port, retry=None) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()
    with server.client() as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("bind") == {"bind": "127.0.0.1"}


def test_a_server_that_cannot_start_reports_the_reason(tmp_path: Path, new_redis: Callable[..., Redis]) -> None:
    running = new_redis()
    second = Redis(tmp_path / "second", running.port)
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "password").write_text("another")
    with pytest.raises(ServerFailed, match="Address already in use"):
        second.start()


def test_servers_end_with_the_program_that_started_them(tmp_path: Path) -> None:
    program = """
import sys, signal
from pathlib import Path
from sandbox.postgres import Postgres
from sandbox.redis import Redis
from sandbox.world import World
folder, ports = Path(sys.argv[1]), [int(port) for port in sys.argv[2:]]
servers = [Postgres(folder / "p", ports[0], fsync=False), Redis(folder / "r", ports[1])]
servers.append(World(folder / "w", ports[2], ports[3]))
for server in servers:
    server.start()
print("started", flush=True)
signal.pause()
"""
    ports = [free_port() for _ in range(4)]
    argv = [sys.executable, "-c", program, str(tmp_path), *map(str, ports)]
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    starter = subprocess.Popen(argv, stdout=subprocess.PIPE, env=environment)
    assert starter.stdout is not None
    with starter, starter.stdout as output:
        assert output.readline() == b"started\n"
        assert not any(is_free(port) for port in ports)
        starter.send_signal(signal.SIGKILL)
    wait_until(lambda: all(is_free(port) for port in ports), "the end of the servers")


def test_a_child_that_does_not_end_in_time_is_killed(tmp_path: Path) -> None:
    deaf = Child(["/bin/sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done"], tmp_path / "log")
    deaf.wait_until(lambda: "ready" in deaf.tail(), "the shell")
    with pytest.raises(ServerFailed, match="still running"):
        deaf.end(signal.SIGTERM, seconds=0.3)
    assert not deaf.running
