"""When a campaign starts, how the worker divides its time between campaigns, and which campaigns are its own."""

from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timedelta
from statistics import median

import psycopg2
from books import Books
from workers import Start, wait_for

from sandbox.crm import Crm, apply_schema, utc_now
from sandbox.postgres import Postgres
from sandbox.world import World
from worker.runtime.migrations import migrate


def started_at(crm: Crm, campaign: str) -> datetime:
    statement = """SELECT "createdAt" FROM "CampaignLog" WHERE "campaignId" = %s AND action = 'started'"""
    return crm.value(statement, campaign)


def in_the_crm(crm: Crm, campaign: str, status: str, action: str) -> None:
    """As the CRM's pages do: the new status and its CampaignLog row."""
    now = utc_now()
    crm.execute('UPDATE "Campaign" SET status = %s, "updatedAt" = %s WHERE id = %s', (status, now, campaign))
    row = {"tenantId": crm.tenant_id, "campaignId": campaign, "action": action, "message": action, "createdAt": now}
    crm.insert("CampaignLog", row)


def test_a_campaign_starts_at_its_time_and_not_at_the_next_interval(crm: Crm, books: Books, start: Start) -> None:
    """Within a second and a half of its time, and never before it, although the interval is a minute."""
    scheduled = [utc_now() + timedelta(seconds=seconds) for seconds in (4.0, 5.2, 6.4)]
    campaigns = [crm.add_campaign("email", recipients=2, scheduled_at=at) for at in scheduled]
    start(CAMPAIGN_INTERVAL="60")
    wait_for(lambda: books.ended(*campaigns), "the campaigns end")
    late = [(started_at(crm, each) - at).total_seconds() for each, at in zip(campaigns, scheduled, strict=True)]
    assert all(seconds >= 0 for seconds in late), late
    assert median(late) < 1.5, "one may be late on a busy machine"


def test_a_campaign_of_next_year_does_not_keep_the_worker_asleep(crm: Crm, books: Books, start: Start) -> None:
    """A campaign of a far day does not delay one that becomes due meanwhile."""
    crm.add_campaign("email", recipients=1, scheduled_at=utc_now() + timedelta(days=365))
    worker = start(LOG_LEVEL="debug")
    wait_for(lambda: worker.said("DEBUG tick"), "the first tick is over")
    campaign = crm.add_campaign("email", recipients=1)
    wait_for(lambda: books.ended(campaign), "the campaign ends", 20)


def test_an_idle_worker_asks_the_database_once_an_interval(
    new_postgres: Callable[[], Postgres], start: Start
) -> None:
    """One statement a tick, whatever is scheduled for later and whatever has ended."""
    server = new_postgres()
    url = server.database("idle")
    with closing(psycopg2.connect(url)) as connection:
        apply_schema(connection)
        migrate(connection)
        crm = Crm(connection)
        crm.add_campaign("email", recipients=3, scheduled_at=utc_now() + timedelta(days=1))
        crm.add_campaign("email", recipients=3, status="completed")
        crm.execute("ALTER DATABASE idle SET log_statement = 'all'")
    worker = start(DATABASE_URL=url, CAMPAIGN_INTERVAL="0.2", LOG_LEVEL="debug")

    def statements() -> int:
        return (server.data_dir / "postgres.log").read_text("utf-8").count("LOG:  statement:")

    wait_for(lambda: worker.said("DEBUG tick") > 1, "the worker has connected")
    ticks, asked = worker.said("DEBUG tick"), statements()
    wait_for(lambda: worker.said("DEBUG tick") >= ticks + 10, "ten more ticks")
    ticks, asked = worker.said("DEBUG tick") - ticks, statements() - asked
    assert ticks - 1 <= asked <= ticks + 1


def test_a_small_campaign_is_not_stuck_behind_a_big_one(crm: Crm, world: World, books: Books, start: Start) -> None:
    """Each round gives every campaign a batch: ten recipients get their messages long before two thousand."""
    world.script("smtp", action="hang", seconds=0.02)
    big = crm.add_campaign("email", recipients=2000)
    start(CAMPAIGN_BATCH_SIZE="20")
    world.wait_for("smtp", 60)
    small = [crm.add_campaign("email", recipients=10), crm.add_campaign("whatsapp", recipients=10)]
    wait_for(lambda: books.ended(*small), "the small ones end")
    ended = """SELECT max("createdAt") FROM "CampaignLog" WHERE "campaignId" = ANY (%s) AND action = 'completed'"""
    later = f"""SELECT count(*) FROM "CampaignRecipient"
                WHERE "campaignId" = %s AND ("sentAt" IS NULL OR "sentAt" > ({ended}))"""
    assert crm.value(later, big, small) > 500
    assert [crm.counts(each) for each in small] == [{"sent": 10}] * 2


def test_a_pause_during_a_run_stops_it_within_one_batch(crm: Crm, world: World, books: Books, start: Start) -> None:
    """The batch in progress is finished, all other recipients stay pending; another campaign goes on."""
    campaign = crm.add_campaign("email", recipients=600)
    worker = start(CAMPAIGN_BATCH_SIZE="20", CAMPAIGN_ADOPT_AFTER="1h")
    world.wait_for("smtp", 50)
    in_the_crm(crm, campaign, "paused", "paused")
    taken = 600 - crm.counts(campaign)["pending"]
    other = crm.add_campaign("whatsapp", recipients=30)
    wait_for(lambda: books.ended(other), "the other campaign ends")
    wait_for(lambda: worker.said("campaign given up"), "the worker gives the paused one up")
    wait_for(lambda: not books.held(), "its last batch is settled")
    counts = crm.counts(campaign)
    assert counts == {"sent": counts["sent"], "pending": 600 - counts["sent"]}
    assert counts["sent"] <= taken + 20
    assert books.status(campaign) == "paused"
    assert crm.value('SELECT "sentCount" FROM "Campaign" WHERE id = %s', campaign) == counts["sent"]
    books.nobody_twice("smtp")


def test_a_campaign_that_an_app_server_resumed_is_left_alone_until_the_app_server_dies(
    crm: Crm, world: World, books: Books, start: Start
) -> None:
    """Paused and resumed between two looks, it is the app server's; adopted once nothing has changed for long."""
    campaign = crm.add_campaign("email", recipients=300)
    worker = start(CAMPAIGN_BATCH_SIZE="20", CAMPAIGN_BATCH_DELAY="300ms", CAMPAIGN_ADOPT_AFTER="3")
    world.wait_for("smtp", 20)
    in_the_crm(crm, campaign, "paused", "paused")
    in_the_crm(crm, campaign, "running", "resumed")
    wait_for(lambda: worker.said("campaign given up"), "the worker gives it up")
    wait_for(lambda: not books.held(), "its last batch is settled")
    sent = crm.counts(campaign)["sent"]
    assert crm.counts(campaign) == {"sent": sent, "pending": 300 - sent}
    touched: list[str] = []

    def app_server_sends() -> bool:
        """Two recipients at a time, as long as the worker leaves them alone."""
        rows = crm.execute(
            """UPDATE "CampaignRecipient" SET status = 'sent', "sentAt" = "updatedAt",
                   "updatedAt" = now() AT TIME ZONE 'UTC'
               WHERE id IN (SELECT id FROM "CampaignRecipient" WHERE "campaignId" = %s AND status = 'pending'
                            ORDER BY id DESC LIMIT 2)
               RETURNING lower("recipientEmail")""",
            (campaign,),
        )
        touched.extend(address for (address,) in rows)
        return len(touched) >= 160

    wait_for(app_server_sends, "the app server sends 160")
    assert world.total("smtp") == sent
    wait_for(lambda: worker.said("campaign adopted"), "the worker adopts it when the app server died")
    wait_for(lambda: books.ended(campaign), "the campaign ends")
    assert crm.counts(campaign) == {"sent": 300}
    books.nobody_twice("smtp")
    assert not world.counts("smtp").keys() & set(touched)
    assert books.log(campaign)[-1] == "completed"
