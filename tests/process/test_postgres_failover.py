"""A PostgreSQL primary is killed, its standby promoted: with both hosts in DATABASE_URL jobs go on by themselves."""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path

import psycopg2
import pytest
from books import Books
from postgres_pair import PostgresPair, postgres_pair
from web_process import OpenWeb
from workers import Start, wait_for

from sandbox.crm import Crm, utc_now
from sandbox.world import World

UNAVAILABLE = "a server is unavailable, the job waits for it"
READ_ONLY = "a server takes no writes, the job waits for it"
BACK = "the server is available again, the job continues"
GIVEN_UP = "PostgreSQL answers nothing any more, its connection is given up"
GAP_SECONDS = 20.0  # without a message, from the kill of the primary on
FROZEN_GAP_SECONDS = 60.0  # ... from its freezing on: it takes about 20, and the watchdog would need six minutes


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[PostgresPair]:
    """The standby has everything that the primary has committed."""
    # off: the CRM's tables are made before there is a standby; the worker's sessions have it on
    with postgres_pair(tmp_path, synchronous_standby_names="*", synchronous_commit="off") as made:
        yield made


@contextmanager
def books_of(pair: PostgresPair, world: World, state_dir: Path) -> Iterator[Books]:
    """Of the standby, once it is the primary."""
    with closing(psycopg2.connect(pair.standby.url_of("crm"))) as connection:
        yield Books(Crm(connection), world, state_dir)


@pytest.fixture
def campaign(pair: PostgresPair) -> str:
    """600 recipients, and a call that is queued for tomorrow, on both servers."""
    with closing(psycopg2.connect(pair.primary.url_of("crm"))) as connection:
        crm = Crm(connection)
        crm.execute("SET synchronous_commit = 'remote_apply'")
        crm.add_call_settings()
        crm.add_call(scheduledFor=utc_now() + timedelta(days=1))
        return crm.add_campaign("email", recipients=600)


@pytest.mark.parametrize("standby_first", [False, True])
def test_the_primary_is_killed_and_the_standby_promoted(
    standby_first: bool,
    pair: PostgresPair,
    campaign: str,
    world: World,
    start: Start,
    open_web: OpenWeb,
    state_dir: Path,
) -> None:
    """The campaign goes on within 20 seconds, nobody gets it twice, nobody is left out; calls are placed again."""
    url = pair.url(standby_first=standby_first)
    web = open_web(DATABASE_URL=url)
    worker = start(DATABASE_URL=url, CAMPAIGN_BATCH_SIZE="20", CAMPAIGN_BATCH_DELAY="50ms")
    calls = start(DATABASE_URL=url, program="calls", CALL_SCHEDULER_INTERVAL="1s")
    world.wait_for("smtp", 100)
    wait_for(lambda: web.get("/readyz").status == 200, "/readyz is ok")

    began = time.monotonic()
    pair.primary.kill()
    wait_for(lambda: worker.said(UNAVAILABLE) or worker.said(READ_ONLY), "the job says that it waits")
    wait_for(lambda: web.get("/readyz").status == 503, "/readyz is not ok")
    pair.standby.promote()
    seen = world.total("smtp")
    wait_for(lambda: world.total("smtp") > seen, "messages leave again")
    assert time.monotonic() - began < GAP_SECONDS

    with books_of(pair, world, state_dir) as books:
        wait_for(lambda: books.ended(campaign), "the campaign ends")
        assert books.balance(campaign, kills=1) == 0, "unconfirmed"
        books.crm.execute(
            """UPDATE "CallQueue" SET "scheduledFor" = now() AT TIME ZONE 'UTC' WHERE status = 'pending'"""
        )
        wait_for(lambda: world.total("twilio") == 1, "a call is placed")
    wait_for(lambda: web.get("/readyz").status == 200, "/readyz is ok again")
    for each in (worker, calls):
        wait_for(lambda each=each: each.said(BACK), "it says that the server is available")
        assert each.said(UNAVAILABLE) <= 1
        assert each.said(READ_ONLY) <= 1
        assert each.said("a bug, please report it") == 0
        assert each.stop() == 0
    for each in (worker, calls, web.worker):
        assert pair.password not in each.log


def test_the_primary_is_frozen_and_the_standby_promoted(
    pair: PostgresPair, campaign: str, world: World, start: Start, open_web: OpenWeb, state_dir: Path
) -> None:
    """Its kernel keeps the connections. They are given up, long before the watchdog would restart the job."""
    web = open_web(DATABASE_URL=pair.url())
    worker = start(DATABASE_URL=pair.url(), CAMPAIGN_BATCH_SIZE="20", CAMPAIGN_BATCH_DELAY="50ms")
    world.wait_for("smtp", 100)
    wait_for(lambda: web.get("/readyz").status == 200, "/readyz is ok")

    began = time.monotonic()
    pair.primary.freeze()
    pair.standby.promote()
    wait_for(lambda: worker.said(UNAVAILABLE), "the job says that it waits")
    seen = world.total("smtp")
    wait_for(lambda: world.total("smtp") > seen, "messages leave again")
    assert time.monotonic() - began < FROZEN_GAP_SECONDS
    with books_of(pair, world, state_dir) as books:
        wait_for(lambda: books.ended(campaign), "the campaign ends")
        assert books.balance(campaign, kills=1) == 0, "unconfirmed"
    wait_for(lambda: web.get("/readyz").status == 200, "/readyz is ok again")
    assert (worker.said(GIVEN_UP), worker.said(UNAVAILABLE), worker.said("a bug, please report it")) == (1, 1, 0)
    assert worker.stop() == 0


def test_hosts_without_target_session_attrs(
    pair: PostgresPair, campaign: str, world: World, start: Start, state_dir: Path
) -> None:
    """The job meets the standby while it is a reader, says so once, and goes on when it is promoted."""
    worker = start(DATABASE_URL=pair.url(""), CAMPAIGN_BATCH_SIZE="20", CAMPAIGN_BATCH_DELAY="50ms")
    world.wait_for("smtp", 100)
    pair.primary.kill()
    wait_for(lambda: worker.said(READ_ONLY), "the job says that PostgreSQL takes no writes")
    assert worker.said("add target_session_attrs=read-write") == 1
    pair.standby.promote()
    with books_of(pair, world, state_dir) as books:
        wait_for(lambda: books.ended(campaign), "the campaign ends")
        assert books.balance(campaign, kills=1) == 0, "unconfirmed"
    assert (worker.said(READ_ONLY), worker.said("a bug, please report it")) == (1, 0)
    assert worker.stop() == 0
