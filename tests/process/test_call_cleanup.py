"""The real bin/call-cleanup: at start, on signals, beside another one, with bad settings."""

import signal
from datetime import timedelta

import psycopg2.extensions
import pytest
import redis
from workers import Start, wait_for

from sandbox.crm import Crm, utc_now

LOCK = "lock:call-cleanup"
PROGRAM = "call-cleanup"
MANY = 60_000


def add_old(crm: Crm, count: int) -> None:
    crm.execute(
        """INSERT INTO "CallQueue" (id, "tenantId", "phoneNumber", status, "triggerType", "createdById", "updatedAt")
           SELECT 'old-' || n, %s, '+919800000000', 'completed', 'manual', %s, %s FROM generate_series(1, %s) AS n""",
        (crm.tenant_id, crm.user_id, utc_now() - timedelta(days=31), count),
    )


def left(crm: Crm) -> int:
    return int(crm.value('SELECT count(*) FROM "CallQueue"'))


def waiting(crm: Crm) -> int:
    """How many sessions wait for a lock."""
    statement = (
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    return int(crm.value(statement))


def test_once(crm: Crm, start: Start, redis_client: redis.Redis) -> None:
    """Deletes the old rows and nothing else, says how many, and ends with status 0."""
    add_old(crm, 2_500)
    young = crm.add_call(status="completed")
    worker = start("--once", program=PROGRAM)
    assert worker.wait() == 0
    assert crm.execute('SELECT id FROM "CallQueue"') == [(young,)]
    assert worker.said("old rows of the call queue deleted rows=2500 all=True") == 1
    assert redis_client.hget("worker:counters", "calls_cleaned_total") == "2500"
    assert not redis_client.exists(LOCK)


def test_at_start_and_on_request(crm: Crm, start: Start) -> None:
    """What was missed is deleted at the start, the next run is at midnight; SIGUSR1 makes it run now."""
    add_old(crm, 10)
    worker = start(program=PROGRAM)
    wait_for(lambda: worker.said("deleted rows=10"), "the first run")
    add_old(crm, 20)
    worker.send(signal.SIGUSR1)
    wait_for(lambda: worker.said("deleted rows=20"), "the second run")
    assert worker.stop() == 0
    assert worker.said("old rows of the call queue deleted") == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_ended_in_the_middle(
    number: signal.Signals, crm: Crm, start: Start, second_connection: psycopg2.extensions.connection
) -> None:
    """A stop ends it after the present batch, a kill at once; batches are whole, and the next start goes on."""
    add_old(crm, MANY)
    with second_connection.cursor() as cursor:  # the third batch waits until the signal has come
        cursor.execute(
            """CREATE FUNCTION third() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                   IF (SELECT count(*) FROM "CallQueue") <= %s THEN PERFORM pg_advisory_xact_lock(7); END IF;
                   RETURN NULL;
               END $$;
               CREATE TRIGGER third AFTER DELETE ON "CallQueue" FOR EACH STATEMENT EXECUTE FUNCTION third()""",
            (MANY - 3_000,),
        )
        second_connection.commit()
        cursor.execute("SELECT pg_advisory_xact_lock(7)")
    worker = start(program=PROGRAM)
    wait_for(lambda: waiting(crm) == 1, "the third batch")
    worker.send(number)
    if number == signal.SIGKILL:
        worker.wait()
    second_connection.rollback()
    assert worker.wait() == (0 if number == signal.SIGTERM else -signal.SIGKILL)
    wait_for(lambda: waiting(crm) == 0, "the statement of the dead process ends")
    assert left(crm) % 1_000 == 0
    assert left(crm) >= MANY - 3_000
    assert worker.said("rows=3000 all=False") == (number == signal.SIGTERM)
    assert start("--once", program=PROGRAM).wait() == 0
    assert left(crm) == 0


def test_two_at_once(crm: Crm, start: Start, redis_client: redis.Redis) -> None:
    """While another worker has the lock it waits, and its log says so."""
    redis_client.set(LOCK, "elsewhere:1:x", px=60_000)
    add_old(crm, 10)
    worker = start(program=PROGRAM)
    wait_for(lambda: worker.said("another worker holds the lock"), "it sees the other one's lock")
    assert left(crm) == 10
    redis_client.delete(LOCK)
    worker.send(signal.SIGUSR1)
    wait_for(lambda: left(crm) == 0, "its turn")
    assert worker.stop() == 0


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"CLEANUP_TIMEZONE": "Mars/Olympus"}, "CLEANUP_TIMEZONE is 'Mars/Olympus'"),
        ({"CALL_CLEANUP_INTERVAL": "never"}, "CALL_CLEANUP_INTERVAL is 'never'"),
    ],
)
def test_bad_settings(settings: dict[str, str], named: str, start: Start) -> None:
    """Status 2 and one line."""
    worker = start(program=PROGRAM, **settings)
    assert worker.wait() == 2
    assert named in worker.log
    assert len(worker.log.splitlines()) == 1


def test_help(start: Start) -> None:
    """Needs no server and no settings."""
    worker = start("--help", program=PROGRAM, DATABASE_URL="", REDIS_URL="")
    assert worker.wait() == 0
    for word in ("30 days", "--once", "CLEANUP_TIMEZONE", "CALL_CLEANUP_INTERVAL", "Asia/Kolkata"):
        assert word in worker.log
    assert "SMTP_URL" not in worker.log


def test_missing_tables(crm_only_url: str, start: Start) -> None:
    """Status 2; the line says what to run."""
    worker = start(DATABASE_URL=crm_only_url, program=PROGRAM)
    assert worker.wait() == 2
    assert worker.said("bin/migrate") == 1
