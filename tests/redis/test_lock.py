"""The lock, with real servers that stop, freeze and lose their keys, and with holders that die."""

import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import redis
from redis_servers import Server, renewals, wait_until

from sandbox.ports import free_port
from worker.runtime.lock import Lock
from worker.runtime.process_token import is_from_dead_process, new_token
from worker.runtime.redis_client import READ_TIMEOUT_SECONDS, connect

NAME = "campaign-scheduler"
KEY = f"lock:{NAME}"

# Prints "yes" or "no": first whether it got the lock, then for each line that it reads whether it holds the lock.
HOLDER = """
    import sys
    from worker.runtime.lock import Lock
    from worker.runtime.redis_client import connect
    lock = Lock([connect(sys.argv[1])], sys.argv[2], int(sys.argv[3]))
    print("yes" if lock.acquire() else "no", flush=True)
    for line in sys.stdin:
        print("yes" if lock.held else "no", flush=True)
"""


@pytest.fixture
def make_lock(connected: Callable[..., redis.Redis]) -> Iterator[Callable[..., Lock]]:
    """Makes locks, which are closed before the clients of ``connected``: a renewal may still be under way."""
    made: list[Lock] = []

    def make(*clients: redis.Redis, ttl_ms: int = 60_000, on_lost: Callable[[], None] | None = None) -> Lock:
        made.append(Lock(clients, NAME, ttl_ms, on_lost=on_lost))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def holder() -> Iterator[Callable[..., "Holder"]]:
    started: list[Holder] = []

    def start(url: str, ttl_ms: int = 60_000) -> Holder:
        started.append(Holder(url, ttl_ms))
        return started[-1]

    yield start
    for each in started:
        each.kill()


class Holder:
    """Another process with the lock."""

    def __init__(self, url: str, ttl_ms: int) -> None:
        command = [sys.executable, "-c", textwrap.dedent(HOLDER), url, NAME, str(ttl_ms)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.acquired = self.answer()

    def ask(self) -> None:
        assert self.process.stdin
        self.process.stdin.write("held?\n")
        self.process.stdin.flush()

    def held(self) -> bool:
        self.ask()
        return self.answer()

    def answer(self) -> bool:
        assert self.process.stdout
        line = self.process.stdout.readline().strip()
        assert line in {"yes", "no"}
        return line == "yes"

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()  # reads, closes and waits


def lines(caplog: pytest.LogCaptureFixture, message: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.getMessage() == message]


def wait_for_renewals(*clients: redis.Redis) -> None:
    """Waits for two renewals on each server. The second one shows that the holder counted the first as a success."""
    before = [renewals(client) for client in clients]
    wait_until(
        lambda: all(renewals(client) >= old + 2 for client, old in zip(clients, before, strict=True)), "two renewals"
    )


def test_one_holder(client: redis.Redis, make_lock: Callable[..., Lock]) -> None:
    """While one holds the lock, another one does not get it; after the release it does."""
    first, second = make_lock(client), make_lock(client)
    assert first.acquire()
    assert first.held
    assert not second.acquire()
    assert not second.held
    assert second.holder() == first.token == client.get(KEY)
    assert first.token.split(":")[:2] == [socket.gethostname(), str(os.getpid())]
    first.release()
    assert not first.held
    assert first.holder() is None
    assert second.acquire()


def test_one_of_many_threads(client: redis.Redis, make_lock: Callable[..., Lock]) -> None:
    """When ten threads acquire it at the same moment, exactly one gets the lock."""
    locks = [make_lock(client) for _ in range(10)]
    barrier, got = threading.Barrier(len(locks)), []

    def ask(lock: Lock) -> None:
        barrier.wait()
        got.append(lock.acquire())

    threads = [threading.Thread(target=ask, args=[lock]) for lock in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got.count(True) == 1


def test_renewal(client: redis.Redis, make_lock: Callable[..., Lock]) -> None:
    """A lock stays with its holder for much longer than its ttl."""
    lock, other = make_lock(client, ttl_ms=1200), make_lock(client, ttl_ms=1200)
    assert lock.acquire()
    until = time.monotonic() + 4.8
    while time.monotonic() < until:
        assert lock.held
        assert not other.acquire()
        assert 0 < int(client.pttl(KEY)) <= 1200
        time.sleep(0.01)


def test_expiry(client: redis.Redis, make_lock: Callable[..., Lock]) -> None:
    """A lock of another host is respected while it exists, and is free after its ttl when it is not renewed."""
    lock = make_lock(client)
    began = time.monotonic()
    client.set(KEY, "elsewhere:1:abc", px=1500)
    assert not lock.acquire()
    wait_until(lock.acquire, "the lock of a silent holder")
    assert time.monotonic() - began > 1.4


@pytest.mark.parametrize("theft", ["stolen", "deleted"])
def test_gone(
    theft: str, client: redis.Redis, make_lock: Callable[..., Lock], caplog: pytest.LogCaptureFixture
) -> None:
    """A holder whose lock is taken or deleted notices it soon, reports it once, and deletes no lock of others."""
    losses: list[str] = []
    lock = make_lock(client, ttl_ms=4500, on_lost=lambda: losses.append("lost"))
    assert lock.acquire()
    if theft == "stolen":
        client.set(KEY, "elsewhere:1:abc")
    else:
        client.delete(KEY)
    wait_until(lambda: not lock.held, "the loss to be noticed", 4.5)
    wait_until(lambda: losses, "on_lost")
    lock.release()
    assert losses == ["lost"]
    assert len(lines(caplog, "lock lost")) == 1
    assert client.get(KEY) == ("elsewhere:1:abc" if theft == "stolen" else None)


def test_gone_before_release(
    client: redis.Redis, make_lock: Callable[..., Lock], caplog: pytest.LogCaptureFixture
) -> None:
    """A lock that was deleted by hand and taken by another is not deleted by its former holder's release."""
    lock, other = make_lock(client), make_lock(client)
    assert lock.acquire()
    client.delete(KEY)
    assert other.acquire()
    lock.release()
    assert client.get(KEY) == other.token
    assert other.held
    assert len(lines(caplog, "lock lost")) == 1


def test_frozen_holder(
    new_server: Callable[..., Server],
    holder: Callable[..., Holder],
    make_lock: Callable[..., Lock],
    connected: Callable[..., redis.Redis],
) -> None:
    """A holder that was frozen for longer than the ttl knows that the lock is lost, without asking Redis."""
    server = new_server()
    client = connected(server.url)
    frozen = holder(server.url, ttl_ms=500)
    assert frozen.acquired
    assert frozen.held()
    frozen.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: not client.exists(KEY), "the frozen holder's lock to run out")
    other = make_lock(client)
    assert other.acquire()
    frozen.ask()
    server.freeze()  # so that only the clock can show it
    frozen.process.send_signal(signal.SIGCONT)
    began = time.monotonic()
    assert not frozen.answer()
    assert time.monotonic() - began < READ_TIMEOUT_SECONDS
    server.thaw()
    assert other.held
    assert client.get(KEY) == other.token


def test_dead_holder(
    url: str,
    client: redis.Redis,
    holder: Callable[..., Holder],
    make_lock: Callable[..., Lock],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A lock left by a killed process of this host is taken over at once, with one line in the log."""
    caplog.set_level(logging.INFO)
    dead = holder(url)
    assert dead.acquired
    lock = make_lock(client)
    assert not lock.acquire()
    dead.kill()
    assert lock.acquire()
    assert client.get(KEY) == lock.token
    assert len(lines(caplog, "lock taken over from a dead process")) == 1


def test_dead_or_alive() -> None:
    """Only a process that certainly ran on this host and has ended counts as dead."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    host = socket.gethostname()
    assert is_from_dead_process(f"{host}:{gone.pid}:abc")
    for alive in (
        new_token(),
        f"{host}:{os.getpid()}:abc",
        f"{host}:1:abc",
        f"{host}:{gone.pid}:0000-1.abc",  # another container's pid
        f"elsewhere:{gone.pid}:abc",
        f"{host}:0:abc",
        f"{host}:-1:abc",
        f"{host}:99999999999999999999:abc",
        f"{host}:²:abc",
        host,
        "",
    ):
        assert not is_from_dead_process(alive), alive


def test_one_takes_over_from_a_dead_holder(
    url: str, client: redis.Redis, holder: Callable[..., Holder], make_lock: Callable[..., Lock]
) -> None:
    """When several find the lock of a dead process at the same time, exactly one takes it over."""
    for _ in range(20):
        token = f"{socket.gethostname()}:{2**22 - 1}:abc"
        assert is_from_dead_process(token)
        client.set(KEY, token)
        locks = [make_lock(client) for _ in range(4)]
        barrier, got = threading.Barrier(4), []

        def ask(lock: Lock, barrier: threading.Barrier = barrier, got: list[bool] = got) -> None:
            barrier.wait()
            got.append(lock.acquire())

        threads = [threading.Thread(target=ask, args=[lock]) for lock in locks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert got.count(True) == 1
        for lock in locks:
            lock.close()


def test_restart_with_its_keys(
    new_server: Callable[..., Server],
    make_lock: Callable[..., Lock],
    connected: Callable[..., redis.Redis],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """When a server restarts within the ttl and has kept its keys, the lock is held all the time."""
    caplog.set_level(logging.DEBUG)
    server = new_server("--appendonly", "yes", "--appendfsync", "always")
    client = connected(server.url)
    lock = make_lock(client, ttl_ms=6000)
    assert lock.acquire()
    server.stop(kill=True)
    wait_until(lambda: lines(caplog, "lock not renewed, will be tried again soon"), "a renewal that failed")
    assert lock.held
    server.start()
    wait_for_renewals(client)
    assert lock.held
    assert client.get(KEY) == lock.token


def test_restart_without_its_keys(
    new_server: Callable[..., Server], make_lock: Callable[..., Lock], connected: Callable[..., redis.Redis]
) -> None:
    """When a server has lost its keys in a restart, the holder notices the loss, and can acquire the lock again."""
    server = new_server()
    lock = make_lock(connected(server.url), ttl_ms=4500)
    assert lock.acquire()
    server.stop(kill=True)
    server.start()
    wait_until(lambda: not lock.held, "the loss to be noticed", 4.5)
    assert lock.acquire()


def test_unavailable_server(
    new_server: Callable[..., Server],
    make_lock: Callable[..., Lock],
    connected: Callable[..., redis.Redis],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """While the server is unavailable, a lock is held until its ttl is over and not longer; acquiring raises."""
    server = new_server()
    lock = make_lock(connected(server.url), ttl_ms=3000)
    assert lock.acquire()
    began = time.monotonic()
    server.stop(kill=True)
    stopped = time.monotonic()
    assert lock.held
    looked = stopped
    while lock.held:
        assert looked < stopped + 3.0, "it is held for longer than its ttl"
        looked = time.monotonic()
        time.sleep(0.005)
    assert time.monotonic() - began > 1.3
    # The renewal thread may be the one that reports it.
    wait_until(lambda: lines(caplog, "lock lost"), "the loss is reported")
    assert len(lines(caplog, "lock lost")) == 1
    with pytest.raises(redis.RedisError):
        lock.acquire()
    lock.release()
    server.start()
    assert lock.acquire()


def test_one_report(
    new_server: Callable[..., Server],
    make_lock: Callable[..., Lock],
    connected: Callable[..., redis.Redis],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A loss is reported once, also when several threads notice it at the same moment."""
    server = new_server()
    losses: list[str] = []
    lock = make_lock(connected(server.url), ttl_ms=400, on_lost=lambda: losses.append("lost"))
    switching = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for round_ in range(1, 6):
            wait_until(lock.acquire, "the lock")
            server.freeze()
            threads = [threading.Thread(target=lambda: wait_for_loss(lock)) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            server.thaw()
            assert len(losses) == len(lines(caplog, "lock lost")) == round_
            wait_until(lock.acquire, "the lock again")
            lock.release()
    finally:
        sys.setswitchinterval(switching)


def wait_for_loss(lock: Lock) -> None:
    while lock.held:
        pass


def test_release_while_unavailable(
    new_server: Callable[..., Server], make_lock: Callable[..., Lock], connected: Callable[..., redis.Redis]
) -> None:
    """A holder whose release failed can acquire the lock at once when the server is back."""
    server = new_server()
    lock = make_lock(connected(server.url, timeout_seconds=1.0))
    assert lock.acquire()
    server.freeze()
    lock.release()
    assert not lock.held
    with pytest.raises(redis.TimeoutError):
        lock.acquire()
    server.thaw()
    assert lock.acquire()


def test_a_token_that_was_given_up(
    client: redis.Redis, make_lock: Callable[..., Lock], caplog: pytest.LogCaptureFixture
) -> None:
    """After a fail-over Redis may still have a former token of this lock: only this lock takes it over, at once."""
    caplog.set_level(logging.INFO)
    lock, other = make_lock(client), make_lock(client)
    assert lock.acquire()
    former = lock.token
    lock.release()
    client.set(KEY, former, px=60_000)  # the new master has not heard of the release
    assert not other.acquire()
    assert lock.acquire()
    assert client.get(KEY) == lock.token != former
    client.set(KEY, former, px=60_000)  # while it is held
    lock.release()
    assert len(lines(caplog, "lock lost")) == 1
    assert lock.acquire()
    assert lines(caplog, "lock taken over from a dead process") == []


def test_redlock(
    new_server: Callable[..., Server], make_lock: Callable[..., Lock], connected: Callable[..., redis.Redis]
) -> None:
    """One of three servers may be unavailable; with two unavailable, acquiring raises and nobody gets the lock."""
    servers = [new_server() for _ in range(3)]
    clients = [connected(server.url) for server in servers]
    first, second = make_lock(*clients, ttl_ms=3000), make_lock(*clients, ttl_ms=3000)
    assert first.acquire()
    assert not second.acquire()
    assert [client.get(KEY) for client in clients] == [first.token] * 3

    servers[0].stop(kill=True)
    assert not second.acquire()
    assert second.holder() == first.token
    wait_for_renewals(*clients[1:])
    assert first.held
    first.release()
    assert second.acquire()

    servers[1].stop(kill=True)
    assert second.held
    wait_until(lambda: not second.held, "the end of the ttl", 6.0)
    for lock in (first, second):
        with pytest.raises(redis.RedisError):
            lock.acquire()
    assert clients[2].get(KEY) is None  # a failed attempt leaves nothing behind

    servers[1].start()
    assert first.acquire()


def test_redlock_minority(
    new_server: Callable[..., Server], make_lock: Callable[..., Lock], connected: Callable[..., redis.Redis]
) -> None:
    """With its key on two of three servers a holder keeps the lock; with one it has lost it."""
    clients = [connected(new_server().url) for _ in range(3)]
    lock = make_lock(*clients, ttl_ms=4500)
    assert lock.acquire()
    clients[0].delete(KEY)
    wait_for_renewals(*clients[1:])
    assert lock.held
    clients[1].set(KEY, "elsewhere:1:abc")
    wait_until(lambda: not lock.held, "the loss to be noticed", 4.5)


def test_cheap(url: str, client: redis.Redis, make_lock: Callable[..., Lock]) -> None:
    """Acquiring and releasing takes two round trips, and one thread serves many of them."""
    lock = make_lock(client)
    lock.acquire()
    lock.release()
    threads = {thread.ident for thread in threading.enumerate()}
    before = int(client.info("stats")["total_commands_processed"])
    for _ in range(100):
        assert lock.acquire()
        lock.release()
    commands = int(client.info("stats")["total_commands_processed"]) - before
    assert {thread.ident for thread in threading.enumerate()} == threads
    # SET, and EVALSHA with the GET and DEL in it, for each hold; one INFO
    assert commands <= 100 * 4 + 1


def test_idle_thread_wakes(client: redis.Redis, make_lock: Callable[..., Lock]) -> None:
    """A lock that was not used for three times its ttl is renewed again when it is acquired."""
    lock = make_lock(client, ttl_ms=1200)
    assert lock.acquire()
    lock.release()
    before = renewals(client)
    until = time.monotonic() + 3.6
    while time.monotonic() < until:
        assert renewals(client) == before
        time.sleep(0.05)
    assert lock.acquire()
    until = time.monotonic() + 2.8
    while time.monotonic() < until:
        assert lock.held
        time.sleep(0.01)
    assert renewals(client) > before


def test_close() -> None:
    """A closed lock has no thread, and may be used again."""
    server_less = connect(f"redis://127.0.0.1:{free_port()}")
    with server_less:
        lock = Lock([server_less], NAME)
        with pytest.raises(redis.RedisError):
            lock.acquire()
        lock.close()
    assert not [thread for thread in threading.enumerate() if thread.name == KEY]


@pytest.mark.parametrize(("clients", "ttl_ms"), [(0, 60_000), (1, 50)])
def test_bad_arguments(clients: int, ttl_ms: int, client: redis.Redis) -> None:
    """A lock without a server, or with a ttl too short to renew, is refused."""
    with pytest.raises(ValueError, match="at least"):
        Lock([client] * clients, NAME, ttl_ms)


@pytest.mark.parametrize("kind", ["list", "hash", "set", "zset", "stream"])
def test_a_key_of_another_type(
    kind: str, url: str, connected: Callable[..., redis.Redis], make_lock: Callable[..., Lock],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """No worker can have written it: it is deleted, the log names it, and the lock is acquired at once."""
    client = connected(url)
    writers: dict[str, Callable[[], object]] = {
        "list": lambda: client.rpush(KEY, "a"),
        "hash": lambda: client.hset(KEY, "a", "b"),
        "set": lambda: client.sadd(KEY, "a"),
        "zset": lambda: client.zadd(KEY, {"a": 1}),
        "stream": lambda: client.xadd(KEY, {"a": "b"}),
    }
    writers[kind]()
    lock = make_lock(client)
    assert lock.holder() is None
    assert lock.acquire()
    assert client.get(KEY) == lock.token
    (record,) = caplog.records
    assert record.getMessage() == "lock put aside: no worker can have written it"
    assert record.args == {"lock": KEY, "reason": f"it is a {kind}, not a string", "found": ""}
    client.delete(KEY)
    writers[kind]()  # while the lock is held: it is lost, as if the key had been deleted
    lock.release()
    assert caplog.records[-1].args == {"lock": KEY, "reason": "it was gone before it was released"}
    assert client.type(KEY) == kind


@pytest.mark.parametrize("life_ms", [None, 365 * 86_400_000])
def test_a_key_that_stays(
    life_ms: int | None, url: str, connected: Callable[..., redis.Redis], make_lock: Callable[..., Lock],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """It counts as another worker's lock for the usual time, since its holder would renew it; then it is free."""
    client = connected(url)
    client.set(KEY, "somebody", px=life_ms)
    lock = make_lock(client, ttl_ms=300)
    assert not lock.acquire()
    assert not lock.acquire()
    assert [record.getMessage() for record in caplog.records] == ["lock put aside: no worker can have written it"]
    wait_until(lock.acquire, "the key has expired")


def test_a_machine_without_threads(
    url: str, connected: Callable[..., redis.Redis], make_lock: Callable[..., Lock], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a thread that renews it, the lock is released again; later it is acquired and renewed as ever."""
    client = connected(url)
    lock = make_lock(client, ttl_ms=300)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            lock.acquire()
        assert not lock.held
        assert client.get(KEY) is None
    assert lock.acquire()
    began = time.monotonic()
    wait_until(lambda: time.monotonic() - began > 0.5, "longer than the lock lives without being renewed")
    assert lock.held
