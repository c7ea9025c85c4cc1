"""The master of a Redis behind Sentinel is killed or frozen, or its address moves: every job goes on by itself."""

from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pytest
from books import Books
from workers import Start, wait_for

from sandbox.crm import Crm
from sandbox.redis_sentinel import RedisGroup
from sandbox.world import World

KILLED_SECONDS, FROZEN_SECONDS = 5.0, 15.0  # how long nothing leaves, at most
LEFT = 5.0  # how long the frozen master stays so


@pytest.fixture
def group(tmp_path: Path) -> Iterator[RedisGroup]:
    made = RedisGroup(tmp_path / "redis-group")
    made.start()
    yield made
    made.kill()


def longest_pause(world: World, channel: str) -> float:
    """Seconds between two messages or calls that follow each other."""
    times = [datetime.fromisoformat(each.at) for each in world.deliveries(channel)]
    return max((after - before).total_seconds() for before, after in pairwise(times))


@pytest.mark.parametrize("fault", ["killed", "frozen"])
def test_email_pauses_for_a_moment(
    fault: str, crm: Crm, world: World, books: Books, start: Start, group: RedisGroup
) -> None:
    world.script("smtp", action="hang", seconds=0.05)
    campaign = crm.add_campaign("email", recipients=500)
    worker = start(REDIS_URL=group.url, CAMPAIGN_CONCURRENCY="2", CAMPAIGN_BATCH_SIZE="20")
    world.wait_for("smtp", 60)
    if fault == "killed":
        group.master.kill()
    else:
        group.master.freeze()
    wait_for(group.promoted, "the replica is the master")
    print("promoted", world.total("smtp"))
    if fault == "frozen":
        import time; time.sleep(3)
        group.master.thaw()
    wait_for(lambda: books.ended(campaign), "the campaign ends")
    print("pause", fault, longest_pause(world, "smtp"))
    assert books.balance(campaign) == 0
    assert 0


@pytest.mark.parametrize("fault", ["killed", "frozen"])
def test_calls_pause(
    fault: str, crm: Crm, world: World, start: Start, group: RedisGroup
) -> None:
    world.set_rates(twilio_rate=0)
    for n in range(4):
        tenant = crm.add_tenant()
        crm.add_call_settings(tenant, twilioAccountSid=f"AC{n:032x}", maxConcurrentCalls=1000)
        for number in range(100):
            crm.add_call(tenant, phoneNumber=f"+9198{n*1000+number:08d}")
    worker = start(program="calls", REDIS_URL=group.url, TWILIO_RATE="5", CALL_SCHEDULER_INTERVAL="1s")
    world.wait_for("twilio", 40)
    if fault == "killed":
        group.master.kill()
    else:
        group.master.freeze()
    wait_for(group.promoted, "the replica is the master")
    print("promoted", world.total("twilio"))
    if fault == "frozen":
        import time; time.sleep(3)
        group.master.thaw()
    wait_for(lambda: world.total("twilio") == 400, "all calls", 120)
    print("pause", fault, longest_pause(world, "twilio"))
    assert world.duplicates("twilio") == {}
    assert 0
