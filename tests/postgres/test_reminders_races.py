"""Workers side by side, stopped and cut off, refused rows: nobody gets a digest twice, and nobody is left out."""

import threading
import time
from collections.abc import Callable, Iterator

import psycopg2
import pytest
import redis
from reminder_office import BOSS, OTHER, PHONE, ReminderOffice, Worker, offices

from sandbox.crm import Crm
from sandbox.world import World
from worker.runtime.db import Database


@pytest.fixture
def office(crm: Crm, world: World, database_url: str, redis_url: str) -> Iterator[ReminderOffice]:
    yield from offices(crm, world, database_url, redis_url)


def test_a_new_process(office: ReminderOffice) -> None:
    """A restart, another machine and an emptied Redis repeat nothing."""
    office.tenant({"recipientEmails": [BOSS], "recipientPhones": [PHONE]}, leads=3)
    assert office.worker().ended() == (2, 0, 0)
    office.client.flushall()
    assert office.worker().ended() == (0, 0, 0)
    assert office.world.total() == 2


def test_stopping_releases(office: ReminderOffice) -> None:
    """On a signal what was claimed and not sent is due again, and what is on the wire is settled."""
    office.tenant({"recipientEmails": [f"a{number}@x.example" for number in range(40)]}, leads=1)
    office.world.script("smtp", action="hang", seconds=0.5)
    worker = office.worker(SHUTDOWN_GRACE_SECONDS="10")
    watch = stop_when(worker, lambda: office.world.total("smtp") >= 3)
    sent, failed, unconfirmed = worker.ended()
    watch.join()
    assert (failed, unconfirmed) == (0, 0)
    assert 3 <= sent <= 24
    assert (office.notifications(), office.remembered()) == (0, sent)
    office.world.clear_script()
    assert office.worker().ended() == (40 - sent, 0, 0)
    assert office.world.duplicates("smtp") == {}


def stop_when(worker: Worker, condition: Callable[[], bool]) -> threading.Thread:
    def watch() -> None:
        deadline = time.monotonic() + 20
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.01)
        worker.signals.stopping = True

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def test_without_the_lock(office: ReminderOffice) -> None:
    """A worker that lost its lock claims nothing."""
    office.tenant({"recipientEmails": [BOSS]}, leads=1)
    worker = office.worker()
    assert worker.job.tick(office.clock()).counts["digests"] == 0
    assert (office.notifications(), office.remembered()) == (0, 0)


def test_two_workers(office: ReminderOffice) -> None:
    """No lock keeps them apart: each recipient is reminded of each lead once."""
    emails = [f"a{number}@x.example" for number in range(5)]
    tenants = [office.tenant({"recipientEmails": emails}, leads=2, openai={"companyName": f"T{n}"}) for n in range(8)]
    workers = [office.worker() for _ in range(4)]
    together = threading.Barrier(len(workers))
    found: list[int] = []

    def work(worker: Worker) -> None:
        for _ in range(4):
            together.wait(30)
            found.append(worker.tick().counts["digests"])

    threads = [threading.Thread(target=work, args=[each]) for each in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sum(found) == len(tenants) * len(emails)
    assert dict.fromkeys(emails, len(tenants)) == office.arrived()
    assert office.remembered() == 2 * len(tenants) * len(emails)


HELD_UP = """
CREATE FUNCTION hold_up() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('application_name') = 'slow' THEN PERFORM pg_advisory_xact_lock(42); END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER hold_up BEFORE INSERT ON worker.notice FOR EACH ROW EXECUTE FUNCTION hold_up()
"""


def test_a_claim_that_takes_long(office: ReminderOffice, database_url: str) -> None:
    """A claim that takes long does not claim again what another worker claims, sends and settles in the meantime."""
    office.tenant({"recipientEmails": [BOSS, OTHER]}, leads=1)
    slow, quick = office.worker(database=Database(database_url, "slow")), office.worker()
    office.crm.execute(HELD_UP)
    ticks = [threading.Thread(target=each.tick) for each in (slow, quick)]
    office.crm.execute("SELECT pg_advisory_lock(42)")
    ticks[0].start()
    wait_until(lambda: waiting(office) == 1)  # it has looked, and not written yet
    ticks[1].start()
    wait_until(lambda: waiting(office) == 2 or not ticks[1].is_alive())
    office.crm.execute("SELECT pg_advisory_unlock(42)")
    for tick in ticks:
        tick.join(30)
    assert office.arrived() == {BOSS: 1, OTHER: 1}
    assert (office.notifications(), office.remembered()) == (0, 2)


def waiting(office: ReminderOffice) -> int:
    """Sessions that wait for a lock."""
    return int(
        office.one(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
    )


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


REFUSING = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF {condition} THEN RAISE EXCEPTION 'no such thing' USING ERRCODE = 'check_violation'; END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER refuse BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION refuse()
"""


def test_a_claim_that_is_refused(office: ReminderOffice) -> None:
    """The database refuses one recipient's digest: all others are claimed and sent."""
    for number in range(7):
        office.tenant({"recipientEmails": [f"a{number}@x.example"]}, leads=1)
    office.crm.execute(REFUSING.format(table="worker.notice", condition="NEW.address = 'a3@x.example'"))
    worker = office.worker()
    assert worker.ended() == (6, 0, 0)
    assert "a3@x.example" not in office.arrived()
    office.crm.execute("DROP TRIGGER refuse ON worker.notice")
    assert worker.ended() == (1, 0, 0)


def test_a_row_that_cannot_be_filed(office: ReminderOffice) -> None:
    """The outbox refuses one e-mail that was sent: it counts as sent, and is not sent again; the others are filed."""
    for number in range(5):
        office.tenant({"recipientEmails": [f"a{number}@x.example"]}, leads=1)
    office.crm.execute(REFUSING.format(table='"EmailLog"', condition="NEW.\"to\" = ARRAY['a3@x.example']"))
    worker = office.worker()
    assert worker.ended() == (5, 0, 0)
    assert worker.ended() == (0, 0, 0)
    assert office.one('SELECT count(*) FROM "EmailLog"') == 4
    assert office.world.total("smtp") == 5


def test_an_outage_before_the_settlement(office: ReminderOffice) -> None:
    """The database goes away while messages are on the wire: what was accepted is settled when it is back."""
    office.tenant({"recipientEmails": [f"a{number}@x.example" for number in range(12)]}, leads=1)
    office.world.script("smtp", action="hang", seconds=0.3)
    worker = office.worker()
    cut = threading.Thread(target=cut_off, args=[office])
    cut.start()
    with pytest.raises(psycopg2.OperationalError):
        worker.tick()
    cut.join()
    office.world.clear_script()
    office.clock.forward(minutes=10)  # longer than a lease
    office.crm.execute("UPDATE worker.notice SET renewed_at = renewed_at - interval '10 minutes'")
    assert sum(worker.ended()) == 12
    assert office.one('SELECT count(*) FROM "EmailLog"') == 12
    assert office.world.duplicates("smtp") == {}
    assert len(office.arrived()) == 12
    assert office.notifications() == 0


def cut_off(office: ReminderOffice) -> None:
    """Ends the worker's session once messages are on the wire."""
    wait_until(lambda: office.world.total("smtp") >= 1)
    office.crm.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'crm-worker reminders' "
        "AND datname = current_database()"
    )


def test_redis_unavailable(office: ReminderOffice, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Redis a pace cannot be read: the tick fails, and what it had claimed is sent when Redis is back."""
    office.tenant({"recipientPhones": [PHONE], "recipientEmails": [BOSS]}, leads=1)
    worker = office.worker()
    with monkeypatch.context() as unavailable:
        unavailable.setattr(worker.context.redis, "connection_pool", redis.ConnectionPool(port=1))
        with pytest.raises(redis.RedisError):
            worker.tick()
    assert office.arrived("whatsapp") == {}
    assert worker.ended()[1:] == (0, 0)
    assert [office.arrived(), office.arrived("whatsapp")] == [{BOSS: 1}, {PHONE: 1}]
    assert office.notifications() == 0
