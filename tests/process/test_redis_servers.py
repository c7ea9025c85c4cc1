"""Redis fails over, moves to another address, or loses a lock server: the jobs go on, nobody gets two copies."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pytest
from books import Books
from web_process import OpenWeb
from workers import Start, wait_for

from sandbox.crm import Crm
from sandbox.forwarder import Forwarder
from sandbox.redis import Redis
from sandbox.redis_sentinel import RedisGroup
from sandbox.world import World

UNAVAILABLE = "a server is unavailable, the job waits for it"
READ_ONLY = "a server takes no writes, the job waits for it"
BACK = "the server is available again, the job continues"
FROZEN_SECONDS = 5.0
# How long nothing may leave. What stood still for the rest of a lock's life did so for 45 s and more.
LONGEST_PAUSE_SECONDS = {"killed": 5.0, "frozen": 15.0, "frozen for good": 15.0}
CALLS = 300
FEW_CALLS_A_SECOND = "4"  # for each account; there are several


@pytest.fixture
def group(tmp_path: Path) -> Iterator[RedisGroup]:
    made = RedisGroup(tmp_path / "redis-group")
    yield made
    made.kill()


def longest_pause(world: World, channel: str) -> float:
    """Seconds between two messages or calls that followed each other."""
    times = [datetime.fromisoformat(each.at) for each in world.deliveries(channel)]
    return max((after - before).total_seconds() for before, after in pairwise(times))


def fail_over(group: RedisGroup, fault: str) -> None:
    """Returns when the replica is the master. A frozen master is thawed after 5 seconds, unless it is so for good."""
    began = time.monotonic()
    if fault == "killed":
        group.master.kill()
    else:
        group.master.freeze()
    wait_for(group.promoted, "the replica is the master")
    if fault == "frozen":
        wait_for(lambda: time.monotonic() - began > FROZEN_SECONDS, "the master was frozen for long enough")
        group.master.thaw()


def add_calls(crm: Crm, count: int) -> None:
    """Of four tenants with an account each."""
    for tenant in range(4):
        tenant_id = crm.add_tenant()
        crm.add_call_settings(tenant_id, twilioAccountSid=f"AC{tenant:032x}", maxConcurrentCalls=1000)
        for number in range(tenant, count, 4):
            crm.add_call(tenant_id, phoneNumber=f"+9198{number:08d}")


@pytest.mark.parametrize("fault", LONGEST_PAUSE_SECONDS)
def test_email_goes_on_after_a_fail_over(
    fault: str, crm: Crm, world: World, books: Books, start: Start, group: RedisGroup
) -> None:
    """Sentinel lets the replica take over: nothing leaves for a moment, nobody gets two copies."""
    group.start()
    world.script("smtp", action="hang", seconds=0.05)
    campaign = crm.add_campaign("email", recipients=400)
    worker = start(REDIS_URL=group.url, CAMPAIGN_CONCURRENCY="2", CAMPAIGN_BATCH_SIZE="20")
    world.wait_for("smtp", 60)
    fail_over(group, fault)
    wait_for(lambda: books.ended(campaign), "the campaign ends")
    assert books.balance(campaign) == 0
    assert longest_pause(world, "smtp") < LONGEST_PAUSE_SECONDS[fault]
    assert worker.said("another worker holds the lock") == 0
    assert worker.said(UNAVAILABLE) == worker.said(BACK) <= 1


@pytest.mark.parametrize("fault", LONGEST_PAUSE_SECONDS)
def test_calls_go_on_after_a_fail_over(fault: str, crm: Crm, world: World, start: Start, group: RedisGroup) -> None:
    """Their paces and their lock are on the new master; no number is called twice."""
    group.start()
    world.set_rates(twilio_rate=0)
    add_calls(crm, CALLS)
    settings = {"TWILIO_RATE": FEW_CALLS_A_SECOND, "CALL_SCHEDULER_INTERVAL": "1s"}
    worker = start(program="calls", REDIS_URL=group.url, **settings)
    world.wait_for("twilio", 20)
    fail_over(group, fault)
    booked = """SELECT count(*) = 0 FROM "CallQueue" WHERE status <> 'completed'"""
    wait_for(lambda: crm.value(booked), "all calls are booked")
    assert world.duplicates("twilio") == {}
    assert world.total("twilio") == CALLS
    assert longest_pause(world, "twilio") < LONGEST_PAUSE_SECONDS[fault]
    assert worker.said("another worker holds the lock") == 0


def test_an_address_that_moves(
    crm: Crm, world: World, books: Books, start: Start, open_web: OpenWeb, group: RedisGroup
) -> None:
    """The former primary is a replica now and keeps its connections: the job and the page find the new one."""
    group.master.start()
    group.replica.start()
    with (
        closing(Forwarder(group.master.port)) as address,
        group.replica.client() as new,
        group.master.client() as old,
    ):
        wait_for(lambda: new.info("replication")["master_link_status"] == "up", "the replica is in step")
        url = group.master.url.replace(str(group.master.port), str(address.port))
        world.script("smtp", action="hang", seconds=0.05)
        campaign = crm.add_campaign("email", recipients=300)
        worker = start(REDIS_URL=url, CAMPAIGN_CONCURRENCY="2", CAMPAIGN_BATCH_SIZE="20")
        web = open_web(REDIS_URL=url)
        world.wait_for("smtp", 60)
        assert web.get("/readyz").status == 200
        address.target = group.replica.port
        new.replicaof("NO", "ONE")
        old.replicaof("127.0.0.1", str(group.replica.port))
        wait_for(lambda: books.ended(campaign), "the campaign ends")
        wait_for(lambda: web.get("/readyz").status == 200, "the page has the new primary")
        assert books.balance(campaign) == 0
        assert worker.said(READ_ONLY) == worker.said(BACK) <= 1
        assert worker.stop() == 0


@pytest.mark.parametrize("fault", ["killed", "frozen"])
def test_lock_servers_that_are_gone(
    fault: str, crm: Crm, world: World, books: Books, start: Start, new_redis: Callable[..., Redis]
) -> None:
    """One of three changes nothing; two of three, and nothing is claimed until one of them is back."""
    servers = [new_redis() for _ in range(3)]
    world.script("smtp", action="hang", seconds=0.02)
    worker = start(LOCK_REDIS_URLS=" ".join(each.url for each in servers), LOCK_TTL_MS="2000")

    def fail(server: Redis) -> None:
        server.kill() if fault == "killed" else server.freeze()

    first = crm.add_campaign("email", recipients=300)
    world.wait_for("smtp", 50)
    fail(servers[0])
    wait_for(lambda: books.ended(first), "the campaign ends with two of three")
    assert worker.said(UNAVAILABLE) == 0
    wait_for(lambda: worker.said('a lock server is unavailable server="1 of 3"') == 1, "it is said")
    fail(servers[1])
    wait_for(
        lambda: worker.said("1 of 3 lock servers (LOCK_REDIS_URLS) are available, the lock needs 2"), "it is said"
    )
    second = crm.add_campaign("whatsapp", recipients=20)
    with servers[2].client() as client:

        def attempts() -> int:
            return int(client.info("commandstats")["cmdstat_set"]["calls"])

        before = attempts()
        wait_for(lambda: attempts() >= before + 2, "it tries to get the lock")
    assert (world.total(), books.held()) == (300, 0)
    servers[1].start() if fault == "killed" else servers[1].thaw()
    wait_for(lambda: books.ended(second), "the next campaign ends")
    assert (books.balance(first), books.balance(second, "whatsapp")) == (0, 0)
    assert worker.said('a lock server is available again server="2 of 3"') == 1
    assert worker.stop() == 0


def test_a_cluster_ends_the_program(start: Start, new_redis: Callable[..., Redis]) -> None:
    """With status 2, which supervisord does not repeat, and what to do instead."""
    cluster = new_redis(options={"cluster-enabled": "yes"})
    for program in ("campaign", "calls", "entrypoint"):
        worker = start(program=program, REDIS_URL=cluster.url)
        assert worker.wait() == 2
        assert worker.said("cannot start") == 1
        assert worker.said("use a server with cluster mode disabled") == 1
    alone = [new_redis().url for _ in range(2)]
    worker = start(LOCK_REDIS_URLS=" ".join([alone[0], cluster.url, alone[1]]))
    assert worker.wait() == 2
    assert worker.said("LOCK_REDIS_URLS, server 2 of 3: it leads to a Redis Cluster") == 1
