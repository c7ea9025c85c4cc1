"""Campaigns and the quotas of their accounts: exactly the limit is sent, the rest waits and goes on by itself."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta

import pytest
from one_run import OneRun

from sandbox import accounts
from sandbox.crm import Crm
from sandbox.world import World
from worker.campaign import CampaignJob
from worker.campaign_commands.campaign_state import read_state
from worker.runtime.counters import read_all
from worker.runtime.db import Database
from worker.runtime.redis_client import connect
from worker.runtime.settings import load
from worker.web.campaign_forecasts import CampaignForecasts
from worker.web.warning_checks import NUMBERS, WarningChecks, database_warnings, number_warnings
from worker.web.work_in_progress import CampaignRates, read_work_in_progress


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    with closing(Database(database_url, "test")) as made:
        yield made


def states(crm: Crm) -> Counter[str]:
    return Counter(state for [state] in crm.execute('SELECT status FROM "CampaignRecipient"'))


def waits(crm: Crm) -> list[str]:
    """What the campaigns' users were told about waiting."""
    return [text for [text] in crm.execute("""SELECT message FROM "CampaignLog" WHERE action = 'scheduled'""")]


def let_pass(crm: Crm, hours: int) -> None:
    """As if so many hours had passed."""
    crm.execute("UPDATE worker.quota SET hour = hour - make_interval(hours => %s)", (hours,))
    crm.execute("UPDATE worker.campaign_run SET next_batch_at = now() AT TIME ZONE 'UTC'")


def test_two_campaigns_send_the_limit_in_all(crm: Crm, world: World, run_once: OneRun) -> None:
    """Of two tenants, with half each. The others stay pending without an attempt, and go on when a day has passed."""
    other = crm.add_tenant()
    crm.add_user(other)
    for tenant in (crm.tenant_id, other):
        crm.add_campaign(recipients=80, tenant_id=tenant)
    for _ in range(2):  # a wait is told once
        assert run_once("campaign", CampaignJob, SMTP_DAILY_LIMIT="100") == 0
        assert world.total("smtp") == 100
        assert states(crm) == {"sent": 100, "pending": 60}
        crm.execute("UPDATE worker.campaign_run SET next_batch_at = now() AT TIME ZONE 'UTC'")
    sent = crm.execute("""SELECT "tenantId", count(*) FROM "CampaignRecipient" WHERE status = 'sent' GROUP BY 1""")
    assert dict(sent) == {crm.tenant_id: 50, other: 50}
    assert crm.value("SELECT coalesce(max(attempts), 0) FROM worker.campaign_retry") == 0
    assert len(waits(crm)) == 2
    assert all(text.startswith("Waits until ") and "limit" in text for text in waits(crm))
    let_pass(crm, 25)
    assert run_once("campaign", CampaignJob, SMTP_DAILY_LIMIT="100") == 0
    assert states(crm) == {"sent": 160}
    assert crm.execute('SELECT DISTINCT status FROM "Campaign"') == [("completed",)]
    assert world.total("smtp") == 160


def test_a_campaign_of_exactly_the_limit_ends(crm: Crm, world: World, run_once: OneRun) -> None:
    """Nothing is left for it to wait for."""
    campaign = crm.add_campaign(recipients=30)
    assert run_once("campaign", CampaignJob, SMTP_DAILY_LIMIT="30") == 0
    assert crm.value('SELECT status FROM "Campaign" WHERE id = %s', campaign) == "completed"
    assert waits(crm) == []


def test_a_higher_limit_is_used_within_a_minute(crm: Crm, world: World, run_once: OneRun) -> None:
    """The run is looked at again long before the time that it is told to wait until."""
    crm.add_campaign(recipients=30)
    run_once("campaign", CampaignJob, SMTP_DAILY_LIMIT="10")
    assert states(crm) == {"sent": 10, "pending": 20}
    [[minute, hours]] = crm.execute(
        "SELECT next_batch_at <= now() AT TIME ZONE 'UTC' + interval '1 minute', "
        "waits_until >= now() AT TIME ZONE 'UTC' + interval '23 hours' "
        "FROM worker.campaign_run WHERE waits_for = 'quota'"
    )
    assert (minute, hours) == (True, True)
    crm.execute("UPDATE worker.campaign_run SET next_batch_at = now() AT TIME ZONE 'UTC'")
    run_once("campaign", CampaignJob, SMTP_DAILY_LIMIT="15")
    assert states(crm) == {"sent": 15, "pending": 15}


def test_what_was_not_offered_to_the_provider_is_given_back(crm: Crm, world: World, run_once: OneRun) -> None:
    """Suppressed recipients use nothing, and neither does what a batch claimed less than it had reserved."""
    people = [{"recipientEmail": f"p{number}@a.example"} for number in range(12)]
    crm.execute(
        "INSERT INTO worker.suppression (tenant_id, channel, address, reason, created_at, source) "
        "SELECT %s, 'email', 'p' || n || '@a.example', 'no more', now(), 'unsubscribe' FROM generate_series(0, 4) n",
        (crm.tenant_id,),
    )
    crm.add_campaign(recipients=people)
    run_once("campaign", CampaignJob, SMTP_DAILY_LIMIT="100")
    assert states(crm) == {"sent": 7, "failed": 5}
    assert crm.value("SELECT sum(used) FROM worker.quota") == 7


def test_a_provider_that_defers_everything_uses_nothing_up(crm: Crm, world: World, run_once: OneRun) -> None:
    """The campaign backs off; what counts no attempt counts no message."""
    world.script("smtp", stage="mail", status=451, text="4.3.2 later")
    crm.add_campaign(recipients=20)
    run_once("campaign", CampaignJob, SMTP_DAILY_LIMIT="100")
    assert states(crm) == {"pending": 20}
    assert crm.value("SELECT sum(used) FROM worker.quota") == 0


@pytest.mark.parametrize(("domain", "limit"), [("gmail.com", 5), ("shop.example", 8)])
def test_gmail_accounts_have_a_limit(
    crm: Crm, world: World, run_once: OneRun, monkeypatch: pytest.MonkeyPatch, domain: str, limit: int
) -> None:
    """The operator's, and Google's lower one for private accounts."""
    monkeypatch.setattr("worker.sending.account_quotas.PRIVATE_GMAIL_LIMIT", 5)
    mail = accounts.mail_settings(client_secret=accounts.GOOGLE_CLIENT_SECRET)
    tenant = crm.add_tenant(settings={"mail": mail})
    user = crm.add_user(tenant, **accounts.gmail_columns(f"Asha@{domain}"))
    crm.add_campaign(recipients=10, tenant_id=tenant, user_id=user)
    run_once("campaign", CampaignJob, GMAIL_DAILY_LIMIT="8", GMAIL_RATE="100")
    assert states(crm) == {"sent": limit, "pending": 10 - limit}
    assert crm.execute("SELECT account_kind, account FROM worker.quota") == [("gmail", f"{tenant} asha@{domain}")]


def test_without_a_limit_nothing_is_counted(crm: Crm, world: World, run_once: OneRun) -> None:
    crm.add_campaign(recipients=30)
    run_once("campaign", CampaignJob)
    assert states(crm) == {"sent": 30}
    assert crm.value("SELECT count(*) FROM worker.quota") == 0


def test_a_lost_claim_gives_back_what_it_reserved(crm: Crm, world: World, run_once: OneRun, db: Database) -> None:
    """Where the database refuses the claim, the reservation is free again; the campaign waits."""
    crm.add_campaign(recipients=5)
    crm.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no batches today'; END $$; "
        "CREATE TRIGGER refuse BEFORE INSERT ON worker.campaign_batch FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    run_once("campaign", CampaignJob, SMTP_DAILY_LIMIT="100")
    assert states(crm) == {"pending": 5}
    assert crm.value("SELECT sum(used) FROM worker.quota") == 0


def people(number: int, first: int = 0) -> list[dict[str, str]]:
    """Recipients whom no other campaign has."""
    return [{"recipientPhone": f"+919812{300_000 + first + place}"} for place in range(number)]


def whatsapp_campaign(crm: Crm, world: World, recipients: int, tier: str, quality: str = "GREEN") -> str:
    """Of a tenant whose number Meta describes so."""
    world.set_rates(whatsapp_rate=0)
    body = {"whatsapp_business_manager_messaging_limit": tier, "quality_rating": quality}
    world.script("number", status=200, body=body)
    return crm.add_campaign("whatsapp", recipients=recipients)


def test_a_number_writes_to_nine_tenths_of_the_people_it_may(crm: Crm, world: World, run_once: OneRun) -> None:
    """The others wait without an attempt, and are written to a day later."""
    campaign = whatsapp_campaign(crm, world, 300, "TIER_250")
    for _ in range(2):
        run_once("campaign", CampaignJob, WHATSAPP_RATE="1000")
        assert states(crm) == {"sent": 225, "pending": 75}
        crm.execute("UPDATE worker.campaign_run SET next_batch_at = now() AT TIME ZONE 'UTC'")
    assert len(waits(crm)) == 1
    let_pass(crm, 25)
    run_once("campaign", CampaignJob, WHATSAPP_RATE="1000")
    assert states(crm) == {"sent": 300}
    assert crm.value('SELECT status FROM "Campaign" WHERE id = %s', campaign) == "completed"
    assert world.duplicates("whatsapp") == {}


def test_all_campaigns_of_a_tenant_count_together(crm: Crm, world: World, run_once: OneRun) -> None:
    """Whatever number they leave from: the limit is the business portfolio's. Another tenant has its own."""
    world.set_rates(whatsapp_rate=0)
    world.script("number", status=200, body={"whatsapp_business_manager_messaging_limit": "TIER_50"})
    other = crm.add_tenant(settings={"whatsapp": accounts.whatsapp_settings(phone_id="105550100100199")})
    crm.add_user(other)
    for number, tenant in enumerate((crm.tenant_id, crm.tenant_id, other)):
        crm.add_campaign("whatsapp", recipients=people(30, first=100 * number), tenant_id=tenant)
    run_once("campaign", CampaignJob, WHATSAPP_RATE="1000")
    sent = crm.execute("""SELECT "tenantId", count(*) FROM "CampaignRecipient" WHERE status = 'sent' GROUP BY 1""")
    assert dict(sent) == {crm.tenant_id: 45, other: 30}


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, {"whatsapp_business_manager_messaging_limit": "TIER_UNLIMITED"}),
        (200, {}),
        (200, {"whatsapp_business_manager_messaging_limit": 7}),
        (400, {"error": {"message": "(#100) Tried accessing nonexisting field"}}),
        (500, "no JSON"),
    ],
)
def test_a_limit_that_is_not_known_is_not_enforced(
    crm: Crm, world: World, run_once: OneRun, status: int, body: object, caplog: pytest.LogCaptureFixture
) -> None:
    """An answer that is an error is said once for a tenant, however many campaigns it has."""
    world.set_rates(whatsapp_rate=0)
    world.script("number", status=status, body=body)
    for _ in range(2):
        crm.add_campaign("whatsapp", recipients=30)
    run_once("campaign", CampaignJob, WHATSAPP_RATE="1000")
    assert states(crm) == {"sent": 60}
    said = [each for each in caplog.records if each.getMessage().startswith("WhatsApp does not say")]
    assert len(said) == (status != 200)
    assert crm.value("SELECT count(*) FROM worker.quota") == 0


def test_a_limit_that_was_known_holds_while_meta_does_not_say(crm: Crm, world: World, run_once: OneRun) -> None:
    whatsapp_campaign(crm, world, 20, "TIER_50")
    run_once("campaign", CampaignJob, WHATSAPP_RATE="1000")
    crm.execute("UPDATE worker.whatsapp_number SET read_at = read_at - interval '2 hours'")
    world.script("number", status=500)
    crm.add_campaign("whatsapp", recipients=people(60))
    run_once("campaign", CampaignJob, WHATSAPP_RATE="1000")
    assert states(crm) == {"sent": 45, "pending": 35}


def test_meta_is_asked_once_an_hour(crm: Crm, world: World, run_once: OneRun) -> None:
    """By the processes together; a new limit holds from then on."""
    whatsapp_campaign(crm, world, 5, "TIER_50")
    run_once("campaign", CampaignJob, WHATSAPP_RATE="1000")
    world.script("number", status=200, body={"whatsapp_business_manager_messaging_limit": "TIER_250"})
    crm.add_campaign("whatsapp", recipients=5)
    run_once("campaign", CampaignJob, WHATSAPP_RATE="1000")
    assert crm.value("SELECT people FROM worker.whatsapp_number") == 50
    crm.execute("UPDATE worker.whatsapp_number SET read_at = read_at - interval '1 hour'")
    crm.add_campaign("whatsapp", recipients=5)
    run_once("campaign", CampaignJob, WHATSAPP_RATE="1000")
    assert crm.execute("SELECT people, quality FROM worker.whatsapp_number") == [(250, "")]


def test_a_campaign_waits_for_metas_first_answer_and_not_for_ever(
    crm: Crm, world: World, run_once: OneRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While Meta hangs, other campaigns are sent; then the campaign goes on without a limit."""
    monkeypatch.setattr("worker.sending.whatsapp_limits.PATIENCE_SECONDS", 2.0)
    world.script("number", action="hang", seconds=30)
    crm.add_campaign("whatsapp", recipients=5)
    crm.add_campaign(recipients=5)
    run_once("campaign", CampaignJob)
    assert states(crm) == {"sent": 10}


def test_a_number_of_bad_quality_is_the_first_warning(crm: Crm, world: World, run_once: OneRun, db: Database) -> None:
    """While it is known to be so, and no secret is in it."""
    whatsapp_campaign(crm, world, 5, "TIER_250", quality="RED")
    run_once("campaign", CampaignJob, WHATSAPP_RATE="1000")
    crm.execute('DROP INDEX "worker_campaign_due"')
    checks = WarningChecks()
    checks.run("a clock", lambda: ["a clock is wrong"])
    checks.run("database", lambda: database_warnings(db))
    checks.run(NUMBERS, lambda: number_warnings(db))
    first, *others = checks.warnings
    assert accounts.WHATSAPP_PHONE_ID in first
    assert "RED" in first
    assert accounts.WHATSAPP_TOKEN not in first
    assert len(others) == 2
    crm.execute("UPDATE worker.whatsapp_number SET read_at = read_at - interval '2 days'")
    assert number_warnings(db) == []


def test_how_full_the_fullest_account_is(crm: Crm, world: World, run_once: OneRun, redis_url: str) -> None:
    """Of each kind; 0 where nothing was used, also when that was long ago."""

    def ratios() -> dict[str, float]:
        with connect(redis_url) as client:
            found = read_all(client).gauges
        return {each.labels["account_kind"]: each.value for each in found if each.metric == "quota_used_ratio"}

    crm.add_campaign(recipients=5)
    run_once("campaign", CampaignJob, SMTP_DAILY_LIMIT="20")
    assert ratios() == {"smtp": 0.25, "gmail": 0.0, "whatsapp": 0.0}
    let_pass(crm, 25)
    run_once("campaign", CampaignJob, SMTP_DAILY_LIMIT="20")
    assert ratios() == {"smtp": 0.0, "gmail": 0.0, "whatsapp": 0.0}


def test_who_waits_is_shown(crm: Crm, world: World, run_once: OneRun, db: Database) -> None:
    crm.add_campaign(recipients=5)
    run_once("campaign", CampaignJob, SMTP_DAILY_LIMIT="2")
    needed = {"DATABASE_URL": "postgresql://h/crm", "REDIS_URL": "redis://h", "SMTP_DAILY_LIMIT": "2"}
    forecasts = CampaignForecasts(load(needed | {"SMTP_TENANT_SHARE": "100"}, "web"))
    (campaign,) = read_work_in_progress(db, CampaignRates(lambda: 0.0), forecasts).campaigns
    assert campaign.forecast
    assert campaign.forecast.words.startswith("3 from "), "two a day, by hours that count for 25"
    assert campaign.waits_for == "quota"
    assert campaign.waits_seconds
    assert 23 * 3600 < campaign.waits_seconds <= 25 * 3600


def test_retries_that_are_due_later_are_in_the_forecast(
    crm: Crm, world: World, run_once: OneRun, db: Database
) -> None:
    """What is left of the campaign ends with the last retry, not at its rate."""
    campaign_id = crm.add_campaign(recipients=5)
    run_once("campaign", CampaignJob, SMTP_DAILY_LIMIT="2")
    crm.execute("UPDATE worker.campaign_run SET waits_for = NULL, waits_until = NULL")
    crm.execute(
        """INSERT INTO worker.campaign_retry (recipient_id, campaign_id, attempts, due_at, reason)
           SELECT id, "campaignId", 1, (now() + interval '2 days' * row_number() OVER ()) AT TIME ZONE 'UTC', 'later'
           FROM "CampaignRecipient" WHERE status = 'pending'"""
    )
    retries = read_state(db, campaign_id).retries
    latest = crm.value("SELECT max(due_at) FROM worker.campaign_retry")
    assert [(each.number, each.at == latest) for each in retries] == [(1, False), (1, False), (1, True)]
    forecasts = CampaignForecasts(load({"DATABASE_URL": "postgresql://h/crm", "REDIS_URL": "redis://h"}, "web"))
    (campaign,) = read_work_in_progress(db, CampaignRates(lambda: 0.0), forecasts).campaigns
    assert campaign.retries == retries
    assert campaign.forecast
    assert campaign.forecast.today == 0
    assert campaign.forecast.ends_at
    assert timedelta(0) <= campaign.forecast.ends_at - latest < timedelta(minutes=1)


def test_all_processes_keep_to_one_pace(crm: Crm, world: World, run_once: OneRun) -> None:
    """SMTP_RATE is for the mail server; without it there is none."""
    crm.add_campaign(recipients=12)
    began = time.monotonic()
    run_once("campaign", CampaignJob, SMTP_RATE="4")
    assert states(crm) == {"sent": 12}
    assert time.monotonic() - began > 2.0  # (12 - 1) / 4 s, less what the burst saves


def test_who_was_written_to_before_counts_once(crm: Crm, world: World, run_once: OneRun) -> None:
    """Meta counts people. They count for a day after the latest message, and another tenant's do not matter."""
    used_by_hour = "SELECT used FROM worker.quota WHERE used > 0 ORDER BY hour"
    whatsapp_campaign(crm, world, 40, "TIER_50")
    run_once("campaign", CampaignJob, WHATSAPP_RATE="1000")
    crm.execute("UPDATE worker.quota SET hour = hour - interval '20 hours'")
    crm.execute("""UPDATE "CampaignRecipient" SET "sentAt" = "sentAt" - interval '20 hours'""")
    again = crm.add_campaign("whatsapp", recipients=40)
    run_once("campaign", CampaignJob, WHATSAPP_RATE="20")
    assert crm.counts(again) == {"sent": 40}
    assert crm.execute(used_by_hour) == [(40,)]
    let_pass(crm, 20)
    assert crm.execute(used_by_hour) == [(40,)], "the latest message counts"
    third = crm.add_campaign("whatsapp", recipients=people(8))
    run_once("campaign", CampaignJob, WHATSAPP_RATE="1000")
    assert crm.counts(third) == {"sent": 5, "pending": 3}


def test_messages_that_are_deferred_one_by_one_use_nothing_up(crm: Crm, world: World, run_once: OneRun) -> None:
    """The recipient's attempt counts, and no message: exactly the limit is sent."""
    world.script("smtp", stage="mail", status=451, text="4.3.2 later", times=3)
    crm.add_campaign(recipients=20)
    run_once("campaign", CampaignJob, SMTP_DAILY_LIMIT="20", CAMPAIGN_RETRY_DELAY="1")
    crm.execute("UPDATE worker.campaign_retry SET due_at = now() AT TIME ZONE 'UTC'")
    crm.execute("UPDATE worker.campaign_run SET next_batch_at = now() AT TIME ZONE 'UTC'")
    run_once("campaign", CampaignJob, SMTP_DAILY_LIMIT="20")
    assert states(crm) == {"sent": 20}
    assert crm.value("SELECT sum(used) FROM worker.quota") == 20


def test_a_slow_answer_of_meta_ends_no_wait(crm: Crm, world: World, run_once: OneRun) -> None:
    """The limit is read again every hour; the campaign's user is told once."""
    whatsapp_campaign(crm, world, 20, "TIER_10")
    for _ in range(2):
        run_once("campaign", CampaignJob, WHATSAPP_RATE="1000")
        assert states(crm) == {"sent": 9, "pending": 11}
        assert len(waits(crm)) == 1
        crm.execute("UPDATE worker.whatsapp_number SET read_at = read_at - interval '2 hours'")
        crm.execute("UPDATE worker.campaign_run SET next_batch_at = now() AT TIME ZONE 'UTC'")
        body = {"whatsapp_business_manager_messaging_limit": "TIER_10"}
        world.script("number", action="hang", seconds=1.5, status=200, body=body)
