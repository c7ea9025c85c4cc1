"""Two workers at once, with or without their lock: no recipient gets two copies, none is left out."""

from collections import Counter
from pathlib import Path

import pytest
import redis
from books import Books
from workers import LOCK, Start, lock_deleted_all_the_time, wait_for

from sandbox.crm import Crm
from sandbox.world import World


@pytest.mark.parametrize(("one_state_dir", "batch_delay"), [(True, "0"), (False, "1ms")])
def test_two_workers_that_both_have_the_lock_share_the_work(
    one_state_dir: bool,
    batch_delay: str,
    crm: Crm,
    world: World,
    books: Books,
    start: Start,
    redis_url: str,
    tmp_path: Path,
) -> None:
    """Both claim at the same time, from the same campaigns; each recipient gets one message.

    From a provider that answers at once one of them could take all before the other has looked.
    """
    for channel in ("smtp", "whatsapp"):
        world.script(channel, action="hang", seconds=0.03)
    other_dir = books.state_dir if one_state_dir else tmp_path / "other"
    with lock_deleted_all_the_time(redis_url):
        pair = [
            start(STATE_DIR=str(each), CAMPAIGN_BATCH_SIZE="4", CAMPAIGN_BATCH_DELAY=batch_delay)
            for each in (books.state_dir, other_dir)
        ]
        wait_for(lambda: all(worker.said("started") for worker in pair), "both run")
        email = crm.add_campaign("email", recipients=600)
        whatsapp = crm.add_campaign("whatsapp", recipients=300)
        holders = "SELECT count(DISTINCT split_part(holder, ':', 2)) FROM worker.campaign_batch"
        wait_for(lambda: crm.value(holders) == 2, "both have a batch at the same time")
        wait_for(lambda: books.ended_early(email, whatsapp), "the campaigns end")
    assert [crm.counts(email), crm.counts(whatsapp)] == [{"sent": 600}, {"sent": 300}]
    books.nobody_twice("smtp", "whatsapp")
    assert [books.log(email), books.log(whatsapp)] == [["started", "completed"]] * 2
    for worker in pair:
        assert worker.said("Traceback") == 0
        assert worker.said("a server is unavailable") == 0
        assert worker.stop() == 0
    assert books.journals() == []


def test_two_workers_together_keep_to_one_limit(
    crm: Crm, world: World, books: Books, start: Start, redis_url: str
) -> None:
    """Exactly the limit is sent of both campaigns together; the rest is pending without an attempt, and goes on."""
    world.script("smtp", action="hang", seconds=0.03)
    used = "SELECT coalesce(sum(used), 0) FROM worker.quota"
    with lock_deleted_all_the_time(redis_url):
        pair = [
            start(
                CAMPAIGN_BATCH_SIZE="4", CAMPAIGN_BATCH_DELAY="1ms", SMTP_DAILY_LIMIT="100", SMTP_TENANT_SHARE="100"
            )
            for _ in range(2)
        ]
        wait_for(lambda: all(worker.said("started") for worker in pair), "both run")
        campaigns = [crm.add_campaign("email", recipients=90) for _ in range(2)]
        running = "SELECT count(*) FROM worker.campaign_run WHERE waits_for IS DISTINCT FROM 'quota'"

        def all_used() -> bool:
            books.ended_early(
                *campaigns
            )  # who waits, while a claim of the other one found nothing, looks again at once
            return bool(crm.value(used) == world.total("smtp") == 100)

        wait_for(all_used, "the limit is sent")
        wait_for(lambda: crm.value(running) == 0, "what has not ended waits")  # one may be sent to its end first
        wait_for(lambda: not crm.value("SELECT count(*) FROM worker.campaign_batch"), "nothing is on the wire")
        assert crm.value(used) == world.total("smtp") == 100
        counted = sum((Counter(crm.counts(campaign)) for campaign in campaigns), Counter())
        assert counted == {"sent": 100, "pending": 80}
        assert crm.value("SELECT coalesce(max(attempts), 0) FROM worker.campaign_retry") == 0
        for campaign in campaigns:
            left = crm.counts(campaign).get("pending")
            assert set(books.log(campaign)) == {"started", "scheduled" if left else "completed"}
        crm.execute("UPDATE worker.quota SET hour = hour - interval '25 hours'")
        crm.execute("UPDATE worker.campaign_run SET next_batch_at = now() AT TIME ZONE 'UTC'")
        wait_for(lambda: books.ended_early(*campaigns), "the campaigns end")
    assert [crm.counts(campaign) for campaign in campaigns] == [{"sent": 90}] * 2
    assert world.total("smtp") == 180


@pytest.mark.parametrize("end", ["thawed", "killed"])
def test_the_batch_of_a_frozen_holder_is_left_alone_until_it_ends(
    end: str, crm: Crm, world: World, books: Books, start: Start, redis_client: redis.Redis
) -> None:
    """Its lock expires, another worker goes on with the rest; the frozen one's batch is settled once."""
    world.script("smtp", action="hang", seconds=0.3, times=8)
    campaign = crm.add_campaign("email", recipients=200)
    settings = {"LOCK_TTL_MS": "1000", "CAMPAIGN_BATCH_SIZE": "40", "CAMPAIGN_BATCH_DELAY": "1ms"}
    frozen = start(**settings)
    world.wait_for("smtp", 4)
    frozen.freeze()
    held = crm.value("SELECT recipient_ids FROM worker.campaign_batch")
    assert len(held) == 40
    wait_for(lambda: not redis_client.exists(LOCK), "the lock expires")
    other = start(**settings)
    wait_for(lambda: books.sent(campaign) == 160, "the other one sends the rest")
    left = 'SELECT count(*) FROM "CampaignRecipient" WHERE status = %s AND id = ANY (%s)'
    assert crm.value(left, "sending", held) == 40
    assert books.status(campaign) == "running"
    if end == "thawed":
        frozen.thaw()
    else:
        frozen.kill()
    wait_for(lambda: books.ended_early(campaign), "the campaign ends")
    lost = books.balance(campaign)
    assert lost == 0 if end == "thawed" else lost <= 8
    assert other.said("orphaned batch settled") == (end == "killed")


def test_a_frozen_holder_that_is_thawed_claims_nothing_without_the_lock(
    crm: Crm, world: World, books: Books, start: Start, redis_client: redis.Redis
) -> None:
    """After the freeze it finishes the batch it has, and leaves the next one to the worker that has the lock now."""
    world.script("smtp", action="hang", seconds=0.3, times=8)
    campaign = crm.add_campaign("email", recipients=60)
    worker = start(LOCK_TTL_MS="1000", CAMPAIGN_BATCH_SIZE="20", CAMPAIGN_BATCH_DELAY="1ms")
    world.wait_for("smtp", 4)
    worker.freeze()
    wait_for(lambda: not redis_client.exists(LOCK), "the lock expires")
    redis_client.set(LOCK, "another:1:abc")
    worker.thaw()
    wait_for(lambda: worker.said("another worker holds the lock"), "the worker sees that another one has the lock")
    assert crm.counts(campaign) == {"sent": 20, "pending": 40}
    assert world.total("smtp") == 20
    redis_client.delete(LOCK)
    wait_for(lambda: books.ended(campaign), "the campaign ends")
    assert books.balance(campaign) == 0


def test_a_lock_that_another_worker_got_during_a_batch_ends_the_claiming(
    crm: Crm, world: World, books: Books, start: Start, redis_client: redis.Redis
) -> None:
    """Noticed at the next renewal: the batch in progress is finished, the next one is not claimed."""
    world.script("smtp", action="hang", seconds=0.6, times=8)
    campaign = crm.add_campaign("email", recipients=60)
    worker = start(LOCK_TTL_MS="1000", CAMPAIGN_BATCH_SIZE="20", CAMPAIGN_BATCH_DELAY="1ms")
    world.wait_for("smtp", 1)
    redis_client.set(LOCK, "another:1:abc")
    wait_for(lambda: worker.said("another worker holds the lock"), "the worker sees that another one has the lock")
    assert crm.counts(campaign) == {"sent": 20, "pending": 40}
    redis_client.delete(LOCK)
    wait_for(lambda: books.ended(campaign), "the campaign ends")
    assert books.balance(campaign) == 0
