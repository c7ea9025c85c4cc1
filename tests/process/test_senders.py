"""Many senders, one campaign: CAMPAIGN_ENGINE=procrastinate, with real senders that are stopped and killed.

Whatever dies: nobody is written to twice, and nobody is left out.
"""

import json
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg2
import pytest
from books import Books
from machines import Machine, Machines
from web_process import OpenWeb, Web
from workers import THREADS, Start, Worker, wait_for

from sandbox.crm import Crm, apply_schema
from sandbox.postgres import Postgres
from sandbox.redis import Redis
from sandbox.world import World

ENGINE = {
    "CAMPAIGN_ENGINE": "procrastinate",
    "CAMPAIGN_SENDER_TIMEOUT": "2s",
    "LOCK_TTL_MS": "2000",
    "CAMPAIGN_BATCH_SIZE": "20",
    "CAMPAIGN_ADOPT_AFTER": "1s",
}
UNAVAILABLE = "a server is unavailable, the job waits for it"
SLOW_SECONDS = 0.06  # that the provider takes for a message
MORE_THAN_QUEUED = 3000  # recipients: a campaign has four units, each of three seconds, at 8 messages in 0.06 s

Senders = Callable[..., list[Worker]]


@pytest.fixture
def senders(start: Start) -> Senders:
    """bin/migrate, then a scheduler and so many senders: ``senders(3, CAMPAIGN_SPREAD="2")`` returns all of them."""

    def make(number: int, **settings: str) -> list[Worker]:
        environ = ENGINE | settings
        assert start(program="migrate", **environ).wait() == 0
        return [start(**environ), *(start(program="campaign-sender", **environ) for _ in range(number))]

    return make


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
    campaign = crm.add_campaign("email", recipients=2000)
    wait_for(lambda: running(crm) == 3, "three send at the same time")
    status = start("--json", program="status", **ENGINE)
    assert status.wait() in (0, 1)
    [machine] = json.loads(status.log)["senders"]["machines"]
    assert machine == {"host": socket.gethostname(), "senders": 3, "units": 3}
    wait_for(lambda: books.ended(campaign), "the campaign ends")
    assert books.balance(campaign) == 0
    assert books.log(campaign) == ["started", "completed"]
    for worker in everyone:
        assert worker.stop() == 0, worker.log
        assert "Traceback" not in worker.log
    assert crm.value("SELECT count(*) FROM engine.procrastinate_workers") == 0
    assert books.journals() == []


def test_a_killed_sender(crm: Crm, world: World, books: Books, senders: Senders) -> None:
    """Its unit is taken back and runs again, its batches are settled by the others: at most its messages on the wire
    are unconfirmed."""
    world.script("smtp", action="hang", seconds=SLOW_SECONDS)
    scheduler, killed, *_ = senders(3, CAMPAIGN_SPREAD="3")
    campaign = crm.add_campaign("email", recipients=1500)
    wait_for(lambda: running(crm) == 3, "three send at the same time")
    killed.kill()
    wait_for(lambda: scheduler.said("unit taken back"), "its unit is taken back", 40)
    wait_for(lambda: units(crm) >= 3, "its slot has a unit again")
    wait_for(lambda: books.ended(campaign), "the campaign ends")
    assert books.balance(campaign, kills=1) <= THREADS


def test_the_machine_of_a_sender_is_lost(
    crm: Crm, world: World, books: Books, machines: Machines, start: Start, open_web: OpenWeb
) -> None:
    """With its journals: its unit runs again within 40 seconds, and few of its messages are unconfirmed, none is sent
    twice. bin/status and metrics keep the machines apart.
    """
    world.script("smtp", action="hang", seconds=0.2)
    engine = ENGINE | {"CAMPAIGN_SENDER_TIMEOUT": "20s", "CAMPAIGN_SPREAD": "3"}
    assert start(program="migrate", **engine).wait() == 0
    main = machines("m1", "campaign", "campaign-sender", "watchdog", **engine)
    lost, other = (machines(name, "campaign-sender", "watchdog", **engine) for name in ("m2", "m3"))
    every = [main, lost, other]
    campaign = crm.add_campaign("email", recipients=MORE_THAN_QUEUED)
    wait_for(lambda: all(slot_of(crm, each) and has_batches(crm, each) for each in every), "all three send")
    status = start("--json", program="status", **engine)
    assert status.wait() in (0, 1)
    shown = json.loads(status.log)["senders"]["machines"]
    assert sum(each["senders"] for each in shown) == 3
    assert {each["host"] for each in shown} == {each.host for each in every}
    slot = slot_of(crm, lost)
    pid = lost.pid("campaign-sender")
    assert slot
    lost.cut_power()
    since = time.monotonic()
    held = f"{lost.host}:{pid}:"
    wait_for(lambda: slot in (slot_of(crm, main), slot_of(crm, other)), "its unit runs elsewhere", 40)
    again_seconds = time.monotonic() - since
    assert main.said("campaign", "unit taken back") == 1
    world.clear_script()
    crm.execute(
        "UPDATE worker.campaign_batch SET renewed_at = renewed_at - interval '6 min' WHERE starts_with(holder, %s)",
        (held,),
    )
    wait_for(lambda: books.ended_early(campaign), "the campaign ends")
    unconfirmed = books.balance(campaign)
    print(f"unit runs again after {again_seconds:.1f} s, {unconfirmed} unconfirmed")  # noqa: T201
    assert unconfirmed <= 2 * THREADS
    web = open_web(**engine)
    other.stop("campaign-sender")
    states = {each.host: 20.0 for each in every} | {other.host: 0.0}  # as each machine's watchdog last said
    wait_for(lambda: sender_states(web) == states, "the states of programs are kept apart by machine")


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
    campaign = crm.add_campaign("email", recipients=1500)
    wait_for(lambda: running(crm) == 3, "three send at the same time")
    assert stopped.stop(signal.SIGTERM) == 0
    assert "Traceback" not in stopped.log
    change(crm, campaign, "paused", "paused")
    wait_for(lambda: not books.held() and not units(crm), "nothing is sent any more")
    assert books.sent(campaign) == world.total("smtp") < 1500
    change(crm, campaign, "running", "resumed")
    wait_for(lambda: books.ended(campaign), "the campaign ends")
    books.nobody_twice("smtp")
    assert crm.counts(campaign) == {"sent": 1500}
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
        campaign = books.crm.add_campaign("email", recipients=1200)
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
    campaign = crm.add_campaign("email", recipients=1200)
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
    """Three senders together send no more batches than one may: CAMPAIGN_BATCH_SIZE in each CAMPAIGN_BATCH_DELAY."""
    senders(3, CAMPAIGN_BATCH_SIZE="10", CAMPAIGN_BATCH_DELAY="500ms")
    campaign = crm.add_campaign("email", recipients=60)
    wait_for(lambda: books.ended(campaign), "the campaign ends")
    assert books.balance(campaign) == 0
    sent = [at for (at,) in crm.execute('SELECT "sentAt" FROM "CampaignRecipient" ORDER BY 1')]
    assert all((later - earlier).total_seconds() > 0.4 for earlier, later in zip(sent, sent[10:], strict=False))


def has_batches(crm: Crm, machine: Machine) -> bool:
    statement = "SELECT count(*) FROM worker.campaign_batch WHERE starts_with(holder, %s)"
    return bool(crm.value(statement, machine.holder("campaign-sender")))


def slot_of(crm: Crm, machine: Machine) -> str:
    """The slot of the unit that the machine's sender runs; empty when there is none."""
    statement = """SELECT max(j.queueing_lock) FROM engine.procrastinate_jobs j
                   JOIN engine.sender s ON s.worker_id = j.worker_id
                   WHERE j.status = 'doing' AND s.host = %s AND s.pid = %s"""
    return str(crm.value(statement, machine.host, machine.pid("campaign-sender")) or "")


def sender_states(web: Web) -> dict[str, float]:
    """supervisord's number for the state of each machine's sender."""
    return {
        dict(labels)["host"]: state
        for (metric, labels), state in web.samples().items()
        if metric == "crm_worker_program_state" and dict(labels)["program"].startswith("campaign-sender:")
    }


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
