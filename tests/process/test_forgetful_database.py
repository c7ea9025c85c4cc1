"""A standby takes over that lacks the last seconds: what it forgot is known from journals and from Twilio."""

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import psycopg2
import pytest
from books import Books
from workers import Start, wait_for

from sandbox.crm import Crm, apply_schema, utc_now
from sandbox.postgres import Postgres
from sandbox.postgres_standby import PRIMARY, Standby
from sandbox.servers import ServerMissing
from sandbox.world import World
from worker.runtime.migrations import migrate

FORGOT = "messages that it forgot are settled again"
FORGOTTEN_SECONDS = 2.0
ASKED_AFTER_SECONDS = 120.0  # Twilio is asked 30 s after the fail-over was noticed


@dataclass(frozen=True)
class Pair:
    """A primary, and a standby that nobody waits for."""

    primary: Postgres
    standby: Standby

    @property
    def url(self) -> str:
        """DATABASE_URL with both hosts."""
        parts = urlsplit(self.primary.url_of("crm"))
        hosts = ",".join(f"127.0.0.1:{each.port}" for each in (self.primary, self.standby))
        netloc = f"{parts.netloc.rpartition('@')[0]}@{hosts}"
        return parts._replace(netloc=netloc, query="target_session_attrs=read-write").geturl()

    def cut_off(self) -> None:
        """From now on the standby gets nothing."""
        with closing(psycopg2.connect(self.standby.url)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("ALTER SYSTEM SET primary_conninfo = ''")
                cursor.execute("SELECT pg_reload_conf()")
                wait_for(lambda: self._receivers() == 0, "the standby is cut off")

    def _receivers(self) -> int:
        with closing(psycopg2.connect(self.primary.url)) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_stat_replication")
            return int(cursor.fetchall()[0][0])

    def catch_up(self) -> None:
        """Waits until the standby has what the primary has."""
        with closing(psycopg2.connect(self.primary.url)) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT pg_current_wal_lsn()")
            [(lsn,)] = cursor.fetchall()
        with closing(psycopg2.connect(self.standby.url)) as connection, connection.cursor() as cursor:

            def has_it() -> bool:
                cursor.execute("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", (lsn,))
                return bool(cursor.fetchall()[0][0])

            wait_for(has_it, "the standby has caught up")

    def fail_over(self) -> None:
        self.primary.kill()
        self.standby.promote()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    primary = Postgres(tmp_path / "primary", fsync=False, timezone="Asia/Kolkata", options=PRIMARY)
    standby = Standby(tmp_path / "standby", primary, fsync=False, timezone="Asia/Kolkata")
    try:
        primary.start()
    except ServerMissing as error:
        pytest.skip(str(error))
    with closing(psycopg2.connect(primary.database("crm"))) as connection:
        apply_schema(connection)
        migrate(connection)
    standby.start()
    yield Pair(primary, standby)
    for each in (primary, standby):
        each.kill()
        each.remove()


@pytest.fixture
def primary(pair: Pair) -> Iterator[Crm]:
    with closing(psycopg2.connect(pair.primary.url_of("crm"))) as connection:
        yield Crm(connection)


def lose_two_seconds(pair: Pair, world: World) -> int:
    """Cuts the standby off, and after two seconds in which messages leave has it take over; returns their number."""
    pair.catch_up()
    pair.cut_off()
    before, until = world.total("smtp"), time.monotonic() + FORGOTTEN_SECONDS
    wait_for(lambda: time.monotonic() > until and world.total("smtp") > before + 50, "messages leave")
    forgotten = world.total("smtp") - before
    pair.fail_over()
    return forgotten


@pytest.mark.parametrize("killed", ["", "before it connects again", "in the middle of settling again"])
def test_nobody_gets_a_campaign_twice(
    killed: str, pair: Pair, primary: Crm, world: World, start: Start, state_dir: Path
) -> None:
    """Whether the worker lives on or is killed and started again: nobody twice, nobody left out, the outbox right."""
    world.script("smtp", action="hang", seconds=0.02)
    campaign = primary.add_campaign("email", recipients=2500)
    settings = {"DATABASE_URL": pair.url, "CAMPAIGN_BATCH_SIZE": "20"}
    worker = start(**settings)
    world.wait_for("smtp", 200)
    assert lose_two_seconds(pair, world) > 50
    said = 0
    if killed:
        if killed.startswith("in the middle"):
            wait_for(lambda: worker.said(FORGOT), "the worker has noticed")
            said = 1
        worker.kill()
        worker = start(**settings)
    with closing(psycopg2.connect(pair.standby.url_of("crm"))) as connection:
        books = Books(Crm(connection), world, state_dir)
        wait_for(lambda: books.ended_early(campaign), "the campaign ends")
        assert books.balance(campaign, kills=1) <= 8 + 8, "unconfirmed"
    assert worker.said(FORGOT) in {1 - said, 1}
    assert worker.said("a bug, please report it") == 0
    assert worker.stop() == 0


def test_nobody_is_called_twice(pair: Pair, primary: Crm, start: Start, world: World) -> None:
    """A call was placed and booked, and the new primary has it as pending: it is found at Twilio and booked again."""
    primary.add_call_settings()
    queue_id = primary.add_call(scheduledFor=utc_now() + timedelta(days=1))
    calls = start(DATABASE_URL=pair.url, program="calls", CALL_SCHEDULER_INTERVAL="1s")
    pair.catch_up()
    pair.cut_off()
    due = """UPDATE "CallQueue" SET "scheduledFor" = now() AT TIME ZONE 'UTC'"""
    primary.execute(due)
    wait_for(lambda: primary.value("""SELECT count(*) FROM "CallLog" """) == 1, "the call is placed")
    sid = primary.value("""SELECT "twilioCallSid" FROM "CallLog" """)
    pair.fail_over()
    with closing(psycopg2.connect(pair.standby.url_of("crm"))) as connection:
        promoted = Crm(connection)
        assert promoted.value("""SELECT count(*) FROM "CallLog" """) == 0
        promoted.execute(due)
        wait_for(
            lambda: promoted.value("""SELECT status FROM "CallQueue" WHERE id = %s""", queue_id) == "completed",
            "the call is booked",
            ASKED_AFTER_SECONDS,
        )
        assert promoted.value("""SELECT "twilioCallSid" FROM "CallLog" """) == sid
    assert world.total("twilio") == 1
    assert calls.said("Twilio is asked about each call before it is placed") == 1
    assert calls.stop() == 0
