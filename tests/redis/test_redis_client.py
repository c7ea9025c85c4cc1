"""Each form of REDIS_URL with a server of that kind, and the errors for invalid URLs."""

import contextlib
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

from sandbox.forwarder import Forwarder
from sandbox.ports import free_port
from worker.errors import SettingsError
from worker.runtime.lock import Lock
from worker.runtime.redis_client import connect, require_no_cluster
from worker.sending.pacing import Pace

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


def test_valkey_url(url: str, connected: Connected) -> None:
    """A valkey:// URL means the same as redis://."""
    client = connected(url.replace("redis://", "valkey://").replace("/0", "/2"))
    assert client.ping()
    assert client.client_info()["db"] == 2


def test_unix_url(new_server: NewServer, connected: Connected) -> None:
    """A unix:// URL connects through the socket file."""
    server = new_server()
    client = connected(f"unix://{server.socket}?db=2")
    assert client.ping()
    info = client.client_info()
    assert info["db"] == 2
    assert str(server.socket) in info["addr"]


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def forward() -> Iterator[Callable[..., Forwarder]]:
    """``Forwarder``, which is closed when the test is over."""
    with contextlib.ExitStack() as stack:

        def start(target: int, tls: ssl.SSLContext | None = None) -> Forwarder:
            made = Forwarder(target, tls)
            stack.callback(made.close)
            return made

        yield start


def tls_context(authority: trustme.CA, name: str = "127.0.0.1") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


@pytest.fixture
def tls_port(url: str, authority: trustme.CA, forward: Callable[..., Forwarder]) -> Callable[[str], int]:
    """Puts TLS before the server, as stunnel does, with a certificate for this name."""
    port = int(url.rpartition(":")[2].partition("/")[0])
    return lambda name: forward(port, tls_context(authority, name)).port


@pytest.mark.parametrize("scheme", ["rediss", "valkeys"])
def test_rediss_url(scheme: str, tls_port: Callable[[str], int], authority: trustme.CA, tmp_path: Path) -> None:
    """A rediss:// URL uses TLS, and accepts a certificate for this host from the given authority."""
    bundle = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(bundle)
    with connect(f"{scheme}://127.0.0.1:{tls_port('127.0.0.1')}/0?ssl_ca_certs={bundle}") as client:
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


@pytest.fixture
def sentinel_of(new_server: NewServer) -> Callable[[int], Server]:
    """Starts a Sentinel for the master at a port, which is never down for it."""

    def start(master_port: int) -> Server:
        sentinel = new_server(started=False)
        (sentinel.folder / "sentinel.conf").write_text(
            f"sentinel monitor mymaster 127.0.0.1 {master_port} 1\nsentinel down-after-milliseconds mymaster 600000\n"
        )
        sentinel.start(sentinel=True)
        return sentinel

    return start


@pytest.fixture
def each_form(
    sentinel_of: Callable[[int], Server], forward: Callable[..., Forwarder], authority: trustme.CA, tmp_path: Path
) -> Callable[[str, Server], str]:
    """The URL of a server by its scheme, with whatever has to stand before the server for it."""
    bundle = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(bundle)

    def url(scheme: str, server: Server) -> str:
        if scheme == "unix":
            return f"unix://{server.socket}"
        if not scheme.startswith("rediss"):
            return f"{scheme}://127.0.0.1:{sentinel_of(server.port).port}/mymaster" if "+" in scheme else server.url
        address = forward(server.port, tls_context(authority))
        if "+" in scheme:
            address = forward(sentinel_of(address.port).port, tls_context(authority))
        service = "/mymaster" if "+" in scheme else ""
        return f"{scheme}://127.0.0.1:{address.port}{service}?ssl_ca_certs={bundle}"

    return url


FORMS = ["redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel"]


@pytest.mark.parametrize("scheme", FORMS)
def test_a_reply_that_comes_too_late(
    scheme: str, new_server: NewServer, connected: Connected, each_form: Callable[[str, Server], str]
) -> None:
    """A connection whose reply is outstanding is closed: no later command gets that reply."""
    server = new_server()
    other = connected(server.url)
    other.mset({"a": "of a", "b": "of b"})
    client = connected(each_form(scheme, server), timeout_seconds=0.5)
    lock = Lock([client], "a")
    assert lock.acquire()
    lock.release()
    theirs = Lock([other], "a")
    assert theirs.acquire()
    for question in (lambda: client.get("a"), lambda: client.set("a", "of a")):
        server.freeze()
        with pytest.raises(redis.TimeoutError):
            question()
        server.thaw()
        assert client.get("b") == "of b"
        assert not lock.acquire()
    theirs.close()
    lock.close()


@pytest.mark.parametrize("write", ["command", "script", "pipeline"])
def test_an_address_that_moves(
    write: str, new_server: NewServer, connected: Connected, forward: Callable[..., Forwarder]
) -> None:
    """The former master refuses a write on the connection that it kept; then the client connects to the new one."""
    former, master = new_server(), new_server()
    address = forward(former.port)
    client = connected(f"redis://127.0.0.1:{address.port}/0")
    pace = Pace(client, "pace:test:a", 1000)
    assert pace.take(1)[0] == 1
    address.target = master.port
    connected(former.url).replicaof("127.0.0.1", str(master.port))
    connected(master.url).set("b", "of b")

    def do() -> object:
        if write == "pipeline":
            with client.pipeline(transaction=False) as pipeline:
                return pipeline.get("a").set("a", "of a").get("b").execute()
        return pace.take(1) if write == "script" else client.set("a", "of a")

    with pytest.raises(redis.ResponseError, match=r"(?i)read ?only"):
        do()
    do()
    assert client.get("b") == "of b"
    assert client.info("replication")["role"] == "master"


def test_a_retry_asks_sentinel_again(
    new_server: NewServer, connected: Connected, forward: Callable[..., Forwarder]
) -> None:
    """The former master is a replica now, and keeps its connections: the same command is sent to the new master."""
    former, master = new_server(), new_server()
    sentinel = new_server(started=False)
    watch = f"sentinel monitor mymaster 127.0.0.1 {former.port} 1\n"
    (sentinel.folder / "sentinel.conf").write_text(watch)
    sentinel.start(sentinel=True)
    client = connected(f"redis+sentinel://127.0.0.1:{sentinel.port}/mymaster")
    client.set("a", "1")
    connected(former.url).replicaof("127.0.0.1", str(master.port))
    asked = connected(f"redis://127.0.0.1:{sentinel.port}")
    asked.sentinel_remove("mymaster")
    asked.sentinel_monitor("mymaster", "127.0.0.1", master.port, 1)
    client.set("a", "2")
    assert connected(master.url).get("a") == "2"


def test_a_command_waits_for_a_fail_over(new_server: NewServer, connected: Connected) -> None:
    """While the Sentinels know that the master is down, a new one is waited for a moment."""
    former, master = new_server(), new_server()
    sentinel = new_server(started=False)
    (sentinel.folder / "sentinel.conf").write_text(
        f"sentinel monitor mymaster 127.0.0.1 {former.port} 1\nsentinel down-after-milliseconds mymaster 1500\n"
    )
    sentinel.start(sentinel=True)
    asked = connected(f"redis://127.0.0.1:{sentinel.port}")
    client = connected(f"redis+sentinel://127.0.0.1:{sentinel.port}/mymaster")
    client.set("a", "1")
    former.stop(kill=True)
    wait_until(lambda: asked.sentinel_masters()["mymaster"]["is_sdown"], "Sentinel sees that the master is down")

    def waits() -> bool:
        return any(each["cmd"] == "ping" for each in asked.client_list())

    answers: list[object] = []
    thread = threading.Thread(target=lambda: answers.append(client.set("a", "2")))
    thread.start()
    wait_until(waits, "it was told that there is no master, and Sentinel answers")
    asked.sentinel_remove("mymaster")
    asked.sentinel_monitor("mymaster", "127.0.0.1", master.port, 1)
    thread.join()
    assert answers == [True]
    assert connected(master.url).get("a") == "2"


def test_a_cluster_is_refused(new_server: NewServer, connected: Connected) -> None:
    """The text says what to do instead; a server without cluster mode, or one that forbids INFO, is not refused."""
    cluster, alone = new_server("--cluster-enabled", "yes"), new_server()
    with pytest.raises(SettingsError, match=r"REDIS_URL: it leads to a Redis Cluster.*cluster mode disabled"):
        require_no_cluster(connected(cluster.url))
    client = connected(alone.url)
    require_no_cluster(client)
    client.execute_command("ACL", "SETUSER", "few", "on", ">few", "+@all", "-info")
    require_no_cluster(connected(f"redis://few:few@127.0.0.1:{alone.port}/0"))


BAD = [
    "", "redis", "http://s3cret@h", "redis://", "redis://:s3cret@h:0", "redis://:s3cret@h:99999",
    "redis://:s3cret@h:x", "redis://:pre/s3cret@h:1", "redis://:pre#s3cret@h", "redis://:pre?s3cret@h",
    "redis://:s3cret[@h", "redis://s3cret@h", "redis://:a@h/s3cret", "redis://:a@h/1?s3cret=1",
    "redis://:a@h?db=s3cret", "redis://h1,h2", "rediss://h?ssl_cert_reqs=none", "unix://", "unix://s3cret/x",
    "redis+sentinel://:s3cret@h", "redis+sentinel://:s3cret@h/", "redis+sentinel://:s3cret@h,/mymaster",
    "redis+sentinel://h/mymaster/s3cret", "redis+sentinel://h/mymaster?ssl_ca_certs=s3cret", "valkey://h/s3cret",
    "valkeys://h?ssl_cert_reqs=none", "rediss+sentinel://h/mymaster?ssl_cert_reqs=none", "valkey+sentinel://h/m",
    "redis+sentinel://h/mymaster?sentinel_passwort=s3cret",
]  # fmt: skip


@pytest.mark.parametrize("url", BAD)
def test_bad_url(url: str) -> None:
    """An invalid URL is refused when the program starts, with a text that repeats nothing of it."""
    with pytest.raises(ValueError, match=r"(?i)redis|unix") as caught:
        connect(url)
    assert "s3cret" not in str(caught.value)
    assert caught.value.__context__ is None
