"""Each form of REDIS_URL with a server of that kind, and the errors for invalid URLs."""

import contextlib
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import redis
import trustme
from redis_servers import Server, renewals, wait_until

from sandbox.ports import free_port
from worker.runtime.lock import Lock
from worker.runtime.redis_client import connect

Connected = Callable[..., redis.Redis]
NewServer = Callable[..., Server]


def test_redis_url_with_password(new_server: NewServer, connected: Connected) -> None:
    """User, password and database number of a redis:// URL are used, and percent-encoded characters decoded."""
    server = new_server("--requirepass", "p@ss/wo#rd?")
    address = f"127.0.0.1:{server.port}"
    for user in ("", "default"):
        client = connected(f"redis://{user}:{quote('p@ss/wo#rd?', safe='')}@{address}/3")
        client.set("a", "ä")
        assert client.get("a") == "ä"
        assert client.client_info()["db"] == 3
    assert connected(f"redis://:{quote('p@ss/wo#rd?', safe='')}@{address}").exists("a") == 0
    with pytest.raises(redis.AuthenticationError):
        connected(f"redis://:wrong@{address}").ping()


def test_unix_url(new_server: NewServer, connected: Connected) -> None:
    """A unix:// URL connects through the socket file."""
    server = new_server()
    client = connected(f"unix://{server.socket}?db=2")
    assert client.ping()
    info = client.client_info()
    assert info["db"] == 2
    assert str(server.socket) in info["addr"]


class TlsProxy:
    """Accepts TLS connections on loopback and forwards them without TLS, as stunnel does."""

    def __init__(self, port: int, certificate: trustme.LeafCert) -> None:
        self._target = port
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(self._context)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # close() ends it
            while True:
                connection, _ = self._listener.accept()
                self._threads.append(threading.Thread(target=self._serve, args=[connection]))
                self._threads[-1].start()

    def _serve(self, raw: socket.socket) -> None:
        with raw, contextlib.suppress(OSError):  # a client that does not trust us, or that is gone
            raw.settimeout(5)
            with (
                self._context.wrap_socket(raw, server_side=True) as outside,
                socket.create_connection(("127.0.0.1", self._target)) as inside,
                selectors.DefaultSelector() as selector,
            ):
                selector.register(outside, selectors.EVENT_READ, inside)
                selector.register(inside, selectors.EVENT_READ, outside)
                while self._pass_on(selector):
                    pass

    @staticmethod
    def _pass_on(selector: selectors.BaseSelector) -> bool:
        for key, _ in selector.select(5):
            assert isinstance(key.fileobj, socket.socket)
            data = key.fileobj.recv(65536)
            while isinstance(key.fileobj, ssl.SSLSocket) and key.fileobj.pending():
                data += key.fileobj.recv(65536)
            if not data:
                return False
            key.data.sendall(data)
        return True

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls_port(url: str, authority: trustme.CA) -> Iterator[Callable[[str], int]]:
    proxies: list[TlsProxy] = []

    def start(name: str) -> int:
        port = int(url.rpartition(":")[2].partition("/")[0])
        proxies.append(TlsProxy(port, authority.issue_cert(name)))
        return proxies[-1].port

    with contextlib.ExitStack() as stack:
        yield start
        for each in proxies:
            stack.callback(each.close)


def test_rediss_url(tls_port: Callable[[str], int], authority: trustme.CA, tmp_path: Path) -> None:
    """A rediss:// URL uses TLS, and accepts a certificate for this host from the given authority."""
    bundle = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(bundle)
    with connect(f"rediss://127.0.0.1:{tls_port('127.0.0.1')}/0?ssl_ca_certs={bundle}") as client:
        lock = Lock([client], "a")
        assert lock.acquire()
        assert client.get(lock.key) == lock.token
        lock.close()


@pytest.mark.parametrize(("name", "trusted"), [("127.0.0.1", False), ("redis.example.com", True)])
def test_rediss_url_of_a_stranger(
    name: str, trusted: bool, tls_port: Callable[[str], int], authority: trustme.CA, tmp_path: Path
) -> None:
    """A certificate of an unknown authority, or for another host, is refused."""
    bundle = tmp_path / "ca.pem"
    (authority if trusted else trustme.CA()).cert_pem.write_to_path(bundle)
    with (
        connect(f"rediss://127.0.0.1:{tls_port(name)}/0?ssl_ca_certs={bundle}") as client,
        pytest.raises(redis.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"),
    ):
        client.ping()


def test_sentinel_failover(new_server: NewServer, connected: Connected) -> None:
    """With Sentinel a lock survives the death of the master: the lock is renewed on the promoted replica."""
    password = ("--requirepass", "geheim", "--masterauth", "geheim", "--repl-diskless-sync", "no")
    master = new_server(*password)
    replica = new_server(*password, "--replicaof", "127.0.0.1", str(master.port))
    sentinel = new_server(started=False)
    (sentinel.folder / "sentinel.conf").write_text(
        f"sentinel monitor mymaster 127.0.0.1 {master.port} 1\n"
        "sentinel auth-pass mymaster geheim\n"
        "sentinel down-after-milliseconds mymaster 400\n"
        "sentinel failover-timeout mymaster 2000\n"
        "requirepass wache\n"
    )
    old, new = (connected(f"redis://:geheim@127.0.0.1:{each.port}") for each in (master, replica))
    wait_until(lambda: new.info("replication").get("master_link_status") == "up", "the replica to be in step")
    sentinel.start(sentinel=True)
    watch = connected(f"redis://:wache@127.0.0.1:{sentinel.port}")
    wait_until(lambda: watch.sentinel_masters()["mymaster"]["num-slaves"] == 1, "Sentinel to know the replica")

    # the first Sentinel does not exist: the next one is asked
    hosts = f"127.0.0.1:{free_port()},127.0.0.1:{sentinel.port}"
    client = connected(f"redis+sentinel://:geheim@{hosts}/mymaster/1?sentinel_password=wache")
    lock = Lock([client], "a", ttl_ms=9000)
    assert lock.acquire()
    assert client.client_info()["db"] == 1
    assert old.wait(1, 5000) == 1
    master.stop(kill=True)
    wait_until(lambda: new.role()[0] == "master", "the replica to be promoted")
    wait_until(lambda: renewals(new) or not lock.held, "a renewal on the new master")
    assert lock.held
    assert client.get(lock.key) == lock.token
    lock.release()
    assert client.exists(lock.key) == 0
    lock.close()


def test_no_sentinel(connected: Connected) -> None:
    """When no Sentinel answers, a command fails at once and names the service that was not found."""
    client = connected(f"redis+sentinel://127.0.0.1:{free_port()}/mymaster/0")
    with pytest.raises(redis.ConnectionError, match="mymaster"):
        client.ping()


def test_restart(new_server: NewServer, connected: Connected) -> None:
    """A connection that broke because the server restarted is replaced without an error."""
    server = new_server()
    client = connected(server.url)
    client.ping()
    server.stop()
    with pytest.raises(redis.ConnectionError):
        client.ping()
    server.start()
    client.ping()
    server.stop()
    server.start()
    client.ping()


def test_broken_in_mid_command(url: str, client: redis.Redis) -> None:
    """When a connection breaks while a command waits for its answer, the command is sent once more."""
    answers: list[object] = []
    victim = connect(url)
    thread = threading.Thread(target=lambda: answers.append(victim.blpop(["list"], timeout=4)))
    thread.start()

    def waiting() -> list[str]:
        return [each["id"] for each in client.client_list() if each["cmd"] == "blpop" and "b" in each["flags"]]

    wait_until(waiting, "the command to wait")
    first = waiting()
    client.client_kill_filter(_id=first[0])
    wait_until(lambda: waiting() and waiting() != first, "the command to wait again")
    client.rpush("list", "a")
    thread.join()
    victim.close()
    assert [tuple(answer) for answer in answers if isinstance(answer, list | tuple)] == [("list", "a")]


def test_frozen_server(new_server: NewServer, connected: Connected) -> None:
    """A command to a server that does not answer fails after one timeout, without a retry."""
    server = new_server()
    client = connected(server.url, timeout_seconds=1.5)
    client.ping()
    server.freeze()
    began = time.monotonic()
    with pytest.raises(redis.TimeoutError):
        client.ping()
    assert 1.4 < time.monotonic() - began < 3.0


BAD = [
    "", "redis", "http://s3cret@h", "redis://", "redis://:s3cret@h:0", "redis://:s3cret@h:99999",
    "redis://:s3cret@h:x", "redis://:pre/s3cret@h:1", "redis://:pre#s3cret@h", "redis://:pre?s3cret@h",
    "redis://:s3cret[@h", "redis://s3cret@h", "redis://:a@h/s3cret", "redis://:a@h/1?s3cret=1",
    "redis://:a@h?db=s3cret", "redis://h1,h2", "rediss://h?ssl_cert_reqs=none", "unix://", "unix://s3cret/x",
    "redis+sentinel://:s3cret@h", "redis+sentinel://:s3cret@h/", "redis+sentinel://:s3cret@h,/mymaster",
    "redis+sentinel://h/mymaster/s3cret", "redis+sentinel://h/mymaster?sentinel_passwort=s3cret",
]  # fmt: skip


@pytest.mark.parametrize("url", BAD)
def test_bad_url(url: str) -> None:
    """An invalid URL is refused when the program starts, with a text that repeats nothing of it."""
    with pytest.raises(ValueError, match=r"(?i)redis|unix") as caught:
        connect(url)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__context__ is None
