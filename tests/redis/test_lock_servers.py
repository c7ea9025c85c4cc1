"""A lock on several independent servers, of which one or two do not answer (LOCK_REDIS_URLS)."""

import logging
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import redis
from redis_servers import Server, wait_until

from worker.errors import SettingsError
from worker.runtime.lock import Lock
from worker.runtime.lock_servers import LOCK_SERVER_TIMEOUT_SECONDS

KEY = "lock:a"
ROUNDS = 40
AWAY = "a lock server is unavailable"
BACK = "a lock server is available again"


@pytest.fixture
def servers(new_server: Callable[..., Server]) -> list[Server]:
    return [new_server() for _ in range(3)]


@pytest.fixture
def clients(servers: list[Server], connected: Callable[..., redis.Redis]) -> list[redis.Redis]:
    return [connected(each.url, timeout_seconds=LOCK_SERVER_TIMEOUT_SECONDS) for each in servers]


@pytest.fixture
def make_lock(clients: list[redis.Redis]) -> Iterator[Callable[..., Lock]]:
    made: list[Lock] = []

    def make(ttl_ms: int = 60_000) -> Lock:
        made.append(Lock(clients, "a", ttl_ms))
        return made[-1]

    yield make
    for each in made:
        each.close()


def said(caplog: pytest.LogCaptureFixture, message: str) -> list[object]:
    """The servers that lines with this message are about."""
    return [each.args["server"] for each in caplog.records if each.getMessage() == message]


def test_a_cluster_among_them_is_refused(
    servers: list[Server], new_server: Callable[..., Server], connected: Callable[..., redis.Redis]
) -> None:
    """The text says which one, also while another one does not answer; servers that are none are not refused."""
    cluster = new_server("--cluster-enabled", "yes")
    others = [connected(each.url) for each in servers]
    good, bad = Lock(others, "a"), Lock([*others[:2], connected(cluster.url)], "a")
    good.require_no_cluster()
    servers[0].stop(kill=True)
    with pytest.raises(SettingsError, match=r"^LOCK_REDIS_URLS, server 3 of 3: it leads to a Redis Cluster"):
        bad.require_no_cluster()
    for lock in (good, bad):
        lock.close()


@pytest.mark.parametrize("fault", ["killed", "frozen"])
def test_one_that_is_gone_costs_one_time_out(
    fault: str, servers: list[Server], make_lock: Callable[..., Lock], caplog: pytest.LogCaptureFixture
) -> None:
    """It is left out then, and asked again as soon as it answers."""
    caplog.set_level(logging.INFO)
    lock = make_lock()
    assert lock.acquire()
    lock.release()
    if fault == "killed":
        servers[2].stop(kill=True)
    else:
        servers[2].freeze()
    began = time.monotonic()
    for _ in range(ROUNDS):
        assert lock.acquire()
        lock.release()
    if fault == "frozen":  # each question to it would have cost one
        assert time.monotonic() - began < ROUNDS * LOCK_SERVER_TIMEOUT_SECONDS
    assert (said(caplog, AWAY), said(caplog, BACK)) == (["3 of 3"], [])
    servers[2].start() if fault == "killed" else servers[2].thaw()

    def is_back() -> bool:
        held = lock.acquire()
        lock.release()
        return held and bool(said(caplog, BACK))

    wait_until(is_back, "it is asked again")
    assert said(caplog, AWAY) == said(caplog, BACK) == ["3 of 3"]


def test_two_that_are_frozen(
    servers: list[Server],
    make_lock: Callable[..., Lock],
    clients: list[redis.Redis],
    connected: Callable[..., redis.Redis],
) -> None:
    """Nobody gets the lock, and the error says how many are needed; as soon as one is back, somebody gets it."""
    lock = make_lock()
    for each in servers[:2]:
        each.freeze()
    for _ in range(2):
        with pytest.raises(redis.ConnectionError, match=r"1 of 3 lock servers \(LOCK_REDIS_URLS\) are available"):
            lock.acquire()
        assert not lock.held
        with pytest.raises(redis.ConnectionError, match=r"1 of 3 lock servers"):
            lock.holder()
    assert connected(servers[2].url).get(KEY) is None
    servers[0].thaw()
    wait_until(lambda: connected(servers[0].url).ping(), "it answers")
    assert lock.acquire()


def test_a_server_that_refuses(
    clients: list[redis.Redis], make_lock: Callable[..., Lock], caplog: pytest.LogCaptureFixture
) -> None:
    """A replica among them is said once, not at each tick."""
    caplog.set_level(logging.INFO)
    lock = make_lock()
    clients[0].replicaof("127.0.0.1", "1")
    for _ in range(3):
        assert lock.acquire()
        lock.release()
    assert said(caplog, AWAY) == ["1 of 3"]
    clients[0].replicaof("NO", "ONE")
    assert lock.acquire()
    lock.release()
    assert said(caplog, BACK) == ["1 of 3"]


def test_a_renewal_while_one_is_frozen(
    servers: list[Server], make_lock: Callable[..., Lock], clients: list[redis.Redis]
) -> None:
    """The lock stays with its holder for much longer than its ttl; nobody else gets it."""
    lock, other = make_lock(ttl_ms=3000), make_lock()
    servers[1].freeze()
    assert lock.acquire()
    until = time.monotonic() + 9.0
    while time.monotonic() < until:
        assert lock.held
        assert not other.acquire()
        time.sleep(0.05)


def test_no_thread_remains(make_lock: Callable[..., Lock], new_threads: Callable[[], set[str]]) -> None:
    """A closed lock has none, and may be used again."""
    lock = make_lock()
    for _ in range(2):
        assert lock.acquire()
        assert new_threads()
        lock.close()
        assert new_threads() == set()


@pytest.fixture
def new_threads() -> Callable[[], set[str]]:
    """The names of the threads that have been started since and run."""
    before = set(threading.enumerate())
    return lambda: {each.name for each in set(threading.enumerate()) - before}
