"""A standby takes over that lacks the last seconds: what it forgot is known from journals and from Twilio."""

import time
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import psycopg2
import pytest
from books import Books
from postgres_pair import PostgresPair, postgres_pair
from workers import Start, wait_for

from sandbox.crm import Crm, utc_now
from sandbox.world import World

FORGOT = "messages that it forgot are settled again"
FORGOTTEN_SECONDS = 2.0
ASKED_AFTER_SECONDS = 120.0  # Twilio is asked 30 s after the fail-over was noticed


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[PostgresPair]:
    """Nobody waits for the standby."""
    with postgres_pair(tmp_path) as made:
        yield made


@pytest.fixture
def primary(pair: PostgresPair) -> Iterator[Crm]:
    with closing(psycopg2.connect(pair.primary.url_of("crm"))) as connection:
        yield Crm(connection)


def lose_two_seconds(pair: PostgresPair, world: World) -> int:
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
    killed: str, pair: PostgresPair, primary: Crm, world: World, start: Start, state_dir: Path
) -> None:
    """Whether the worker lives on or is killed and started again: nobody twice, nobody left out, the outbox right."""
    world.script("smtp", action="hang", seconds=0.02)
    campaign = primary.add_campaign("email", recipients=2500)
    settings = {"DATABASE_URL": pair.url(), "CAMPAIGN_BATCH_SIZE": "20"}
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


def test_nobody_is_called_twice(pair: PostgresPair, primary: Crm, start: Start, world: World) -> None:
    """A call was placed and booked, and the new primary has it as pending: it is found at Twilio and booked again."""
    primary.add_call_settings()
    queue_id = primary.add_call(scheduledFor=utc_now() + timedelta(days=1))
    calls = start(DATABASE_URL=pair.url(), program="calls", CALL_SCHEDULER_INTERVAL="1s")
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
