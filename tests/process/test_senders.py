"""Many senders, one campaign: CAMPAIGN_ENGINE=procrastinate, with real senders that are stopped and killed.

Whatever dies: nobody is written to twice, and nobody is left out.
"""

import json
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg2
from books import Books
from workers import ENGINE, THREADS, Senders, Start, wait_for

from sandbox.crm import Crm, apply_schema
from sandbox.postgres import Postgres
from sandbox.redis import Redis
from sandbox.world import World

UNAVAILABLE = "a server is unavailable, the job waits for it"
SLOW_SECONDS = 0.06  # that the provider takes for a message
MORE_THAN_QUEUED = 3000  # recipients: a campaign has four units, each of three seconds, at 8 messages in 0.06 s

# the claims of a process
EXPIRE = """
UPDATE worker.campaign_batch SET renewed_at = renewed_at - interval '6 min'
WHERE split_part(holder, ':', 2) = %s AND renewed_at > now() AT TIME ZONE 'UTC' - interval '5 min'
RETURNING cardinality(recipient_ids)
"""


def running(crm: Crm) -> int:
    """How many processes have a batch now."""
    holders = "SELECT count(DISTINCT split_part(holder, ':', 2)) FROM worker.campaign_batch"
    return int(crm.value(holders))


def test_three_senders_share_one_campaign(
    crm: Crm, world: World, books: Books, senders: Senders, start: Start
) -> None:
    """All three send at the same time, and bin/status shows them; SIGTERM ends all with status 0."""
    world.script("smtp", action="hang", seconds=SLOW_SECONDS)
    everyone = senders(3)
    campaign = crm.add_campaign("email", recipients=MORE_THAN_QUEUED)
    wait_for(lambda: running(crm) == 3, "three send at the same time")
    machine = {"host": socket.gethostname(), "senders": 3, "units": 3}
    wait_for(lambda: senders_of_status(start) == [machine], "bin/status shows them, when none is between two units")
    wait_for(lambda: books.ended(campaign), "the campaign ends")
    assert books.balance(campaign) == 0
    assert books.log(campaign) == ["started", "completed"]
    for worker in everyone:
        assert worker.stop() == 0, worker.log
        assert "Traceback" not in worker.log
    assert crm.value("SELECT count(*) FROM engine.procrastinate_workers") == 0
    assert books.journals() == []


def senders_of_status(start: Start) -> list[dict[str, object]]:
    """The machines with senders, as bin/status --json shows them."""
    status = start("--json", program="status", **ENGINE)
    assert status.wait() in (0, 1)
    machines: list[dict[str, object]] = json.loads(status.log)["senders"]["machines"]
    return machines


def test_a_killed_sender(crm: Crm, world: World, books: Books, senders: Senders) -> None:
    """Its unit is taken back and runs again, its batches are settled by the others: at most its messages on the wire
    are unconfirmed."""
    world.script("smtp", action="hang", seconds=SLOW_SECONDS)
    scheduler, killed, *_ = senders(3, CAMPAIGN_SPREAD="3")
    campaign = crm.add_campaign("email", recipients=MORE_THAN_QUEUED)
    wait_for(lambda: running(crm) == 3, "three send at the same time")
    killed.kill()
    wait_for(lambda: scheduler.said("unit taken back"), "its unit is taken back", 40)
    wait_for(lambda: units(crm) >= 3, "its slot has a unit again")
    wait_for(lambda: books.ended(campaign), "the campaign ends")
    assert books.balance(campaign, kills=1) <= THREADS


def test_the_machine_of_a_sender_is_lost(
    crm: Crm, world: World, books: Books, senders: Senders, start: Start, tmp_path: Path
) -> None:
    """Killed together with its journals: once its claims have expired, the others settle them, nobody twice."""
    world.script("smtp", action="hang", seconds=SLOW_SECONDS)
    senders(2)
    lost = start(program="campaign-sender", **ENGINE, STATE_DIR=str(tmp_path / "other"))
    campaign = crm.add_campaign("email", recipients=MORE_THAN_QUEUED)
    wait_for(lambda: running(crm) == 3, "three send at the same time")
    lost.kill()
    (tmp_path / "other").rename(tmp_path / "gone")
    held: list[int] = []

    def ended() -> bool:
        """Its last claim may be committed after the kill: PostgreSQL was still at it."""
        held.extend(size for (size,) in crm.execute(EXPIRE, (str(lost.pid),)))
        return books.ended(campaign)

    wait_for(ended, "the campaign ends")
    books.nobody_twice("smtp")
    assert books.unconfirmed(campaign) <= sum(held)
    assert sum(crm.counts(campaign).values()) == MORE_THAN_QUEUED
    assert set(crm.counts(campaign)) <= {"sent", "failed"}


def test_a_killed_scheduler(crm: Crm, world: World, books: Books, senders: Senders, start: Start) -> None:
    """The senders finish what is queued; the next scheduler queues more, and ends the campaign."""
    world.script("smtp", action="hang", seconds=SLOW_SECONDS)
    scheduler, *_ = senders(3)
    campaign = crm.add_campaign("email", recipients=MORE_THAN_QUEUED)
    wait_for(lambda: running(crm) == 3, "three send at the same time")
    scheduler.kill()
    wait_for(lambda: not units(crm), "no unit is left")
    sent = books.sent(campaign)
    assert sent < MORE_THAN_QUEUED
    start(**ENGINE)
    wait_for(lambda: books.ended(campaign), "the campaign ends")
    assert books.balance(campaign) == 0


def test_senders_that_are_stopped_and_a_pause(crm: Crm, world: World, books: Books, senders: Senders) -> None:
    """SIGTERM finishes the messages on the wire; a pause ends the sending of all, and a resume goes on."""
    world.script("smtp", action="hang", seconds=SLOW_SECONDS)
    scheduler, stopped, *_ = senders(3)
    campaign = crm.add_campaign("email", recipients=MORE_THAN_QUEUED)
    wait_for(lambda: running(crm) == 3, "three send at the same time")
    assert stopped.stop(signal.SIGTERM) == 0
    assert "Traceback" not in stopped.log
    change(crm, campaign, "paused", "paused")
    wait_for(lambda: not books.held() and not units(crm), "nothing is sent any more")
    assert books.sent(campaign) == world.total("smtp") < MORE_THAN_QUEUED
    change(crm, campaign, "running", "resumed")
    wait_for(lambda: books.ended(campaign), "the campaign ends")
    books.nobody_twice("smtp")
    assert crm.counts(campaign) == {"sent": MORE_THAN_QUEUED}
    assert scheduler.said("campaign given up") == scheduler.said("campaign adopted") == 1


def test_postgresql_is_killed(
    crm: Crm, world: World, senders: Senders, new_postgres: Callable[[], Postgres], state_dir: Path
) -> None:
    """With three senders at it: they wait, and go on by themselves when it is there again."""
    world.script("smtp", action="hang", seconds=SLOW_SECONDS)
    server = new_postgres()
    url = server.database("engine")
    with closing(psycopg2.connect(url)) as connection:
        apply_schema(connection)
    everyone = senders(3, DATABASE_URL=url)
    with opened(url, world, state_dir) as books:
        campaign = books.crm.add_campaign("email", recipients=1500)
        wait_for(lambda: running(books.crm) == 3, "three send at the same time")
    server.kill()
    wait_for(lambda: all(each.said(UNAVAILABLE) for each in everyone), "all say that a server is unavailable")
    server.start()
    with opened(url, world, state_dir) as books:
        wait_for(lambda: books.ended(campaign), "the campaign ends", 120)
        assert books.balance(campaign) == 0
    assert all("Traceback" not in each.log for each in everyone)


def test_redis_is_killed(
    crm: Crm, world: World, books: Books, senders: Senders, new_redis: Callable[..., Redis]
) -> None:
    """With three senders at it: what is on the wire finishes, and they go on when it is there again."""
    world.script("smtp", action="hang", seconds=SLOW_SECONDS)
    server = new_redis()
    everyone = senders(3, REDIS_URL=server.url)
    campaign = crm.add_campaign("email", recipients=1500)
    wait_for(lambda: running(crm) == 3, "three send at the same time")
    server.kill()
    wait_for(lambda: all(each.said(UNAVAILABLE) for each in everyone), "all say that a server is unavailable")
    server.start()
    wait_for(lambda: books.ended(campaign), "the campaign ends", 120)
    assert books.balance(campaign) == 0
    assert all("Traceback" not in each.log for each in everyone)


def test_a_small_campaign_beside_a_large_one(crm: Crm, world: World, books: Books, senders: Senders) -> None:
    """Another tenant's campaign has its turn at once, though the large one could use all senders for minutes."""
    world.script("smtp", action="hang", seconds=SLOW_SECONDS)
    senders(2)
    large = crm.add_campaign("email", recipients=20_000)
    wait_for(lambda: running(crm) == 2, "both senders are at the large one")
    tenant = crm.add_tenant()
    small = crm.add_campaign("email", recipients=200, tenant_id=tenant, user_id=crm.add_user(tenant))
    wait_for(lambda: books.ended(small), "the small one ends", 30)
    assert crm.counts(small) == {"sent": 200}
    assert books.status(large) == "running"


def test_one_pace_for_all(crm: Crm, world: World, books: Books, senders: Senders) -> None:
    """Three senders together send no more batches than one may: CAMPAIGN_BATCH_SIZE in each CAMPAIGN_BATCH_DELAY.

    A batch is claimed no sooner; how long its messages then take says nothing.
    """
    senders(3, CAMPAIGN_BATCH_SIZE="10", CAMPAIGN_BATCH_DELAY="500ms")
    campaign = crm.add_campaign("email", recipients=60)
    wait_for(lambda: books.ended(campaign), "the campaign ends")
    assert books.balance(campaign) == 0
    began = crm.value("""SELECT "createdAt" FROM "CampaignLog" WHERE action = 'started'""")
    sent = [at for (at,) in crm.execute('SELECT "sentAt" FROM "CampaignRecipient" ORDER BY 1')]
    assert all((at - began).total_seconds() > number // 10 * 0.5 - 0.1 for number, at in enumerate(sent))


def units(crm: Crm) -> int:
    """How many units wait or run."""
    return int(crm.value("SELECT count(*) FROM engine.procrastinate_jobs WHERE status IN ('todo', 'doing')"))


@contextmanager
def opened(url: str, world: World, state_dir: Path) -> Iterator[Books]:
    """The books of a database, over a connection that did not see the outage."""
    with closing(psycopg2.connect(url)) as connection:
        yield Books(Crm(connection), world, state_dir)


def change(crm: Crm, campaign: str, status: str, action: str) -> None:
    """As the CRM's pages do."""
    crm.execute(
        """UPDATE "Campaign" SET status = %s, "updatedAt" = now() AT TIME ZONE 'UTC' WHERE id = %s;
           INSERT INTO "CampaignLog" (id, "tenantId", "campaignId", action, message, "createdAt")
           SELECT gen_random_uuid()::text, "tenantId", id, %s, '', now() AT TIME ZONE 'UTC'
           FROM "Campaign" WHERE id = %s""",
        (status, campaign, action, campaign),
    )


def test_without_the_tables_of_the_engine(start: Start) -> None:
    """Scheduler and sender end with status 2 and say what to do."""
    for program in ("campaign", "campaign-sender"):
        worker = start(program=program, **ENGINE)
        assert worker.wait() == 2
        assert "run bin/migrate with CAMPAIGN_ENGINE=procrastinate" in worker.log


def test_a_sender_without_the_engine(start: Start) -> None:
    """CAMPAIGN_ENGINE=embedded: there is nothing to do, and that is no failure."""
    worker = start(program="campaign-sender")
    assert worker.wait() == 0
    assert worker.said("nothing to do on this machine") == 1


def test_a_scheduler_without_senders(crm: Crm, books: Books, senders: Senders, start: Start) -> None:
    """It says so once, and the first sender goes to work at once."""
    (scheduler,) = senders(0)
    campaign = crm.add_campaign("email", recipients=20)
    wait_for(lambda: scheduler.said("no bin/campaign-sender takes their units"), "it says so")
    start(program="campaign-sender", **ENGINE)
    wait_for(lambda: books.ended(campaign), "the campaign ends")
    assert books.balance(campaign) == 0
    assert scheduler.said("no bin/campaign-sender takes their units") == 1
