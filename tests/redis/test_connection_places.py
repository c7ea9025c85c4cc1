"""SMTP_CONNECTIONS: several real processes share a number of connections to one server, whatever becomes of them."""

import logging
import signal
import time
from collections.abc import Callable, Iterator

import pytest
import redis
from redis_servers import Server, wait_until
from smtp_crowd import Sender, SmtpServer

from worker.providers.places import ConnectionUse
from worker.sending.connection_places import IDLE_SECONDS, LEASE_SECONDS, ConnectionPlaces

KEY = "worker:connections:smtp:test"
NAMES = ("a", "b", "c")
Start = Callable[..., Sender]


@pytest.fixture
def server() -> Iterator[SmtpServer]:
    with SmtpServer() as server:
        yield server


@pytest.fixture
def start(server: SmtpServer, url: str) -> Iterator[Start]:
    senders: list[Sender] = []

    def make(name: str, limit: int, *, threads: int = 8, redis_url: str = url) -> Sender:
        senders.append(Sender(redis_url, server, limit, name, threads))
        senders[-1].say("send")
        return senders[-1]

    yield make
    for each in senders:
        each.kill()
        each.communicate()


def goes_on(server: SmtpServer, *names: str, number: int = 20, within: float = 30.0) -> None:
    """Each of them sends so many messages from now on."""
    before = server.sent(*names)
    wait_until(
        lambda: all(now - then >= number for now, then in zip(server.sent(*names), before, strict=True)),
        f"{names} go on",
        within,
    )


def test_three_processes_share_the_connections(server: SmtpServer, start: Start) -> None:
    """All of them are used, never one more, and each process has its part of them."""
    senders = [start(name, 6) for name in NAMES]
    wait_until(lambda: [server.open[name] for name in NAMES] == [2, 2, 2], "each has two", 30)
    before = server.sent(*NAMES)
    goes_on(server, *NAMES, number=100)
    done = [now - then for now, then in zip(server.sent(*NAMES), before, strict=True)]
    assert max(done) < 3 * min(done)
    assert server.most == 6
    for each in senders:
        assert each.end() == ""
    wait_until(lambda: not server.connections, "none is left")


def test_more_processes_than_connections(server: SmtpServer, start: Start) -> None:
    """They take turns, and none of them waits so long that its message fails."""
    senders = [start(name, 1, threads=2) for name in NAMES]
    for _ in range(2):
        goes_on(server, *NAMES)
    assert server.most == 1
    for each in senders:
        each.say("rest")
        assert each.end() == ""


def test_a_process_that_sends_nothing_gives_its_places_back(
    server: SmtpServer, start: Start, client: redis.Redis
) -> None:
    """At once when another one wants them; after a while also when nobody does. Then nothing is left in Redis."""
    one = start("a", 4)
    wait_until(lambda: server.open["a"] == 4, "it has all")
    one.say("rest")
    other = start("b", 4)
    wait_until(lambda: server.open["b"] == 4, "the other one has all")
    assert server.open["a"] == 0
    other.say("rest")
    wait_until(lambda: not client.exists(KEY), "it gives them back", IDLE_SECONDS + 30)
    assert server.connections == 0
    other.say("send")
    goes_on(server, "b")
    assert server.most == 4


def test_a_process_that_is_killed(server: SmtpServer, start: Start) -> None:
    """kill -9 while it has all places: another one has them when the lease is over."""
    killed = start("a", 3)
    wait_until(lambda: server.open["a"] == 3, "it has all")
    killed.say("rest")
    killed.say("send")
    killed.kill()
    start("b", 3)
    goes_on(server, "b", within=LEASE_SECONDS + 30)
    wait_until(lambda: server.open["b"] == 3, "it has all", LEASE_SECONDS + 30)
    assert server.most == 3


def test_a_process_that_is_frozen(server: SmtpServer, start: Start) -> None:
    """Others have its places when its lease is over; when it goes on, it keeps to its part again."""
    frozen = start("a", 2)
    wait_until(lambda: server.open["a"] == 2, "it has all")
    frozen.send_signal(signal.SIGSTOP)
    start("b", 2)
    goes_on(server, "b", within=LEASE_SECONDS + 30)
    frozen.send_signal(signal.SIGCONT)
    wait_until(lambda: server.connections <= 2, "there are no more than two", 30)
    wait_until(lambda: (server.open["a"], server.open["b"]) == (1, 1), "each has one", 30)
    goes_on(server, "a", "b")


def test_redis_is_flushed(server: SmtpServer, start: Start, client: redis.Redis) -> None:
    """Whoever has connections keeps to the limit again within moments, and all go on."""
    start("a", 4)
    start("b", 4)
    wait_until(lambda: (server.open["a"], server.open["b"]) == (2, 2), "each has two")
    client.flushall()
    start("c", 4)
    goes_on(server, *NAMES)
    wait_until(lambda: server.connections <= 4, "there are no more than four", 30)
    wait_until(lambda: min(server.open[name] for name in NAMES) >= 1, "each has one", 30)
    assert server.connections <= 4


def test_redis_is_away(server: SmtpServer, start: Start, new_server: Callable[..., Server]) -> None:
    """Nobody uses a connection whose lease is over; when Redis is back, sending goes on by itself."""
    own = new_server()
    start("a", 2, redis_url=own.url)
    goes_on(server, "a")
    own.stop(kill=True)
    wait_until(lambda: not server.connections, "all are closed", LEASE_SECONDS + 30)
    own.start()
    goes_on(server, "a")
    assert server.most == 2


class Counted:
    """Connections that are opened as soon as they are allowed."""

    def __init__(self, wanted: int) -> None:
        self.open, self.wanted, self.kept = 0, wanted, -1

    def use(self) -> ConnectionUse:
        return ConnectionUse(self.open, self.wanted)

    def keep(self, number: int) -> None:
        self.open = self.kept = min(number, self.wanted)


@pytest.fixture
def shared(client: redis.Redis) -> Iterator[Callable[[int], tuple[ConnectionPlaces, Counted]]]:
    made: list[ConnectionPlaces] = []

    def make(wanted: int) -> tuple[ConnectionPlaces, Counted]:
        places, connections = ConnectionPlaces(client, "smtp:test", 10), Counted(wanted)
        places.serve(connections)
        places.want(wanted)
        made.append(places)
        return places, connections

    yield make
    for each in made:
        each.close()


def test_who_wants_few_gets_them_and_the_others_the_rest(
    shared: Callable[[int], tuple[ConnectionPlaces, Counted]],
) -> None:
    everyone = [shared(wanted)[1] for wanted in (8, 1, 8)]
    wait_until(lambda: sorted(each.kept for each in everyone) == [1, 4, 5], "the fair shares")


@pytest.mark.parametrize("poison", ["a string", "entries", "a list"])
def test_a_key_that_no_worker_has_written(
    poison: str,
    client: redis.Redis,
    shared: Callable[[int], tuple[ConnectionPlaces, Counted]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It counts as absent; one of another type is named in the log."""
    ahead = (int(time.time()) + 86_400) * 1_000_000
    if poison == "entries":
        entries = {"x": "10 10 10 0 nan", "y": "", "z": f"10 10 10 {ahead} {ahead}"}
        client.hset(KEY, mapping=entries)
    elif poison == "a list":
        client.rpush(KEY, "10 10 10 0 0")
    else:
        client.set(KEY, "10")
    places, connections = shared(10)
    wait_until(lambda: connections.kept == 10, "it gets all")
    assert places.number == 10
    assert client.hlen(KEY) == 1
    records = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert [each.getMessage() for each in records] == (
        [] if poison == "entries" else ["connections put aside: no worker can have written it"]
    )
