"""Campaigns with CAMPAIGN_WINDOW: outside it nothing leaves, nothing is counted, and they go on by themselves."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from one_run import OneRun

from sandbox import accounts
from sandbox.crm import Crm
from sandbox.world import World
from worker.campaign import CampaignJob

NOW = "now() AT TIME ZONE 'UTC'"
INDIA = ZoneInfo("Asia/Kolkata")


def window(zone: ZoneInfo, *, hours: int) -> str:
    """Two hours long, beginning so many hours after the present one, by the clock of ``zone``."""
    begins = datetime.now(zone).replace(minute=0) + timedelta(hours=hours)
    return f"{begins:%H:%M}-{begins + timedelta(hours=2):%H:%M}"


def run(run_once: OneRun, **environ: str) -> None:
    assert run_once("campaign", CampaignJob, **environ) == 0


def states(crm: Crm) -> Counter[str]:
    return Counter(state for [state] in crm.execute('SELECT status FROM "CampaignRecipient"'))


def told(crm: Crm) -> list[str]:
    return [text for [text] in crm.execute("""SELECT message FROM "CampaignLog" WHERE action = 'scheduled'""")]


def let_pass(crm: Crm) -> None:
    """As if the time had come that everybody waits for."""
    crm.execute(f"UPDATE worker.campaign_run SET next_batch_at = {NOW}")
    crm.execute(f"UPDATE worker.campaign_retry SET due_at = {NOW}")


def waiting(crm: Crm) -> dict[str, Any]:
    [(row,)] = crm.execute("SELECT to_jsonb(r) FROM worker.campaign_run r")
    found: dict[str, Any] = row
    return found


def test_an_e_mail_campaign_at_night(crm: Crm, world: World, run_once: OneRun) -> None:
    """By its tenant's clock: nothing is claimed, its user is told once until when, and it goes on in the morning."""
    crm.add_call_settings(timezone="UTC")
    crm.add_campaign(recipients=30)
    closed = window(ZoneInfo("UTC"), hours=3)
    for _ in range(3):
        run(run_once, CAMPAIGN_WINDOW=closed)
        crm.execute(f"UPDATE worker.campaign_run SET next_batch_at = {NOW}")
    assert (world.total("smtp"), states(crm)) == (0, {"pending": 30})
    row = waiting(crm)
    opens = datetime.fromisoformat(row["waits_until"])
    assert (row["waits_for"], f"{opens:%H:%M}") == ("window", closed[:5])
    assert timedelta(0) < opens - datetime.now(UTC).replace(tzinfo=None) < timedelta(hours=3)
    assert told(crm) == [f"Waits until {opens:%Y-%m-%d %H:%M} UTC: outside CAMPAIGN_WINDOW ({closed})"]
    assert crm.value("SELECT count(*) FROM worker.campaign_retry") == 0
    run(run_once, CAMPAIGN_WINDOW=window(ZoneInfo("UTC"), hours=0))
    assert (world.total("smtp"), states(crm)) == (30, {"sent": 30})
    assert crm.value('SELECT status FROM "Campaign"') == "completed"
    assert len(told(crm)) == 1


@pytest.mark.parametrize("hours", [0, 5])
def test_a_tenant_without_a_zone_has_indias(hours: int, crm: Crm, world: World, run_once: OneRun) -> None:
    """As for business hours."""
    crm.add_campaign(recipients=3)
    run(run_once, CAMPAIGN_WINDOW=window(INDIA, hours=hours))
    assert world.total("smtp") == (0 if hours else 3)


def test_a_tenants_zone_that_cannot_be_read(crm: Crm, world: World, run_once: OneRun) -> None:
    """Nothing is sent on a guess: the campaign's log says what is wrong, once; corrected, it goes on."""
    crm.add_call_settings(timezone="Mars/Olympus")
    crm.add_campaign(recipients=3)
    for _ in range(2):
        run(run_once, CAMPAIGN_WINDOW=window(INDIA, hours=0))
        let_pass(crm)
    assert (world.total("smtp"), states(crm)) == (0, {"pending": 3})
    (text,) = told(crm)
    assert "CallSettings.\"timezone\" is 'Mars/Olympus'" in text
    crm.execute("""UPDATE "CallSettings" SET timezone = 'Asia/Kolkata'""")
    run(run_once, CAMPAIGN_WINDOW=window(INDIA, hours=0))
    assert world.total("smtp") == 3


def test_questions_about_messages_are_asked_at_any_hour(crm: Crm, world: World, run_once: OneRun) -> None:
    """Also when nobody can tell the tenant's hours: asking Gmail writes to nobody."""
    mail = accounts.mail_settings(client_secret=accounts.GOOGLE_CLIENT_SECRET)
    tenant = crm.add_tenant(settings={"mail": mail})
    user = crm.add_user(tenant, **accounts.gmail_columns("asha@shop.example"))
    crm.add_campaign(recipients=1, tenant_id=tenant, user_id=user)
    world.script("gmail", action="cut-after", times=1)
    run(run_once)
    assert crm.value("SELECT count(*) FROM worker.unconfirmed_send") == 1
    crm.execute(f"UPDATE worker.unconfirmed_send SET ask_at = {NOW}")
    crm.add_call_settings(tenant, timezone="Mars/Olympus")
    run(run_once, CAMPAIGN_WINDOW=window(INDIA, hours=3))
    assert states(crm) == {"sent": 1}
    assert world.total("gmail") == 1


def test_a_whatsapp_campaign_to_two_countries(crm: Crm, world: World, run_once: OneRun) -> None:
    """Those whose clocks allow it are written to; the others wait for their own morning and lose no attempt."""
    people = [{"recipientPhone": f"+9198765432{n:02}", "recipientEmail": None} for n in range(7)]
    people += [{"recipientPhone": f"+121255501{n:02}", "recipientEmail": None} for n in range(9)]
    crm.add_campaign("whatsapp", recipients=people)
    india = window(INDIA, hours=0)
    for _ in range(3):
        run(run_once, CAMPAIGN_WINDOW=india, CAMPAIGN_BATCH_SIZE="4")
        crm.execute(f"UPDATE worker.campaign_run SET next_batch_at = {NOW}")
    assert (world.total("whatsapp"), states(crm)) == (7, {"sent": 7, "pending": 9})
    retries = crm.execute("SELECT DISTINCT attempts, due_at, reason FROM worker.campaign_retry")
    [(attempts, due_at, reason)] = retries
    local = due_at.replace(tzinfo=UTC).astimezone(ZoneInfo("America/New_York"))
    assert (attempts, f"{local:%H:%M}", reason) == (0, india[:5], f"outside CAMPAIGN_WINDOW ({india})")
    row = waiting(crm)
    assert (row["waits_for"], datetime.fromisoformat(row["waits_until"])) == ("window", due_at)
    assert len(told(crm)) == 1
    let_pass(crm)
    run(run_once, CAMPAIGN_WINDOW=window(ZoneInfo("America/New_York"), hours=0))
    assert (world.total("whatsapp"), states(crm)) == (16, {"sent": 16})
    assert crm.value('SELECT status FROM "Campaign"') == "completed"
    assert world.duplicates("whatsapp") == {}


def test_thousands_who_wait_cost_their_claim_once(crm: Crm, world: World, run_once: OneRun) -> None:
    """Then nothing is claimed before their time, however often the campaign is looked at."""
    campaign = crm.add_campaign("whatsapp")
    crm.execute(
        f"""INSERT INTO "CampaignRecipient" (id, "tenantId", "campaignId", "recipientType", "recipientId",
                "recipientName", "recipientPhone", status, "createdAt", "updatedAt")
            SELECT 'p' || lpad(n::text, 6, '0'), %s, %s, 'lead', 'lead' || n, 'Asha',
                   CASE WHEN n <= 2000 THEN '+1212' || 5550000 + n ELSE '+9198' || 76500000 + n END,
                   'pending', {NOW}, {NOW}
            FROM generate_series(1, 2003) n""",
        (crm.tenant_id, campaign),
    )
    india = window(INDIA, hours=0)
    run(run_once, CAMPAIGN_WINDOW=india, WHATSAPP_RATE="1000")
    assert (world.total("whatsapp"), states(crm)) == (3, {"sent": 3, "pending": 2000})
    changed = crm.value('SELECT max("updatedAt") FROM "CampaignRecipient"')
    for _ in range(3):
        crm.execute(f"UPDATE worker.campaign_run SET next_batch_at = {NOW}")
        run(run_once, CAMPAIGN_WINDOW=india, WHATSAPP_RATE="1000")
    assert crm.value('SELECT max("updatedAt") FROM "CampaignRecipient"') == changed
    assert len(told(crm)) == 1


def indian_campaign(crm: Crm, recipients: int) -> str:
    people = [{"recipientPhone": f"+9198765432{n:02}", "recipientEmail": None} for n in range(recipients)]
    return crm.add_campaign("whatsapp", recipients=people)


@pytest.mark.parametrize("other", [0, None])
def test_a_window_that_was_changed_is_obeyed_from_the_next_start_on(
    other: int | None, crm: Crm, world: World, run_once: OneRun
) -> None:
    """Who waits for the one before need not wait for its beginning; without a window nobody waits."""
    indian_campaign(crm, 5)
    run(run_once, CAMPAIGN_WINDOW=window(INDIA, hours=3))
    assert (world.total("whatsapp"), states(crm)) == (0, {"pending": 5})
    crm.execute(f"UPDATE worker.campaign_run SET next_batch_at = {NOW}")
    run(run_once, **({} if other is None else {"CAMPAIGN_WINDOW": window(INDIA, hours=other)}))
    assert (world.total("whatsapp"), states(crm)) == (5, {"sent": 5})


def test_who_waited_for_the_morning_was_not_deferred(crm: Crm, world: World, run_once: OneRun) -> None:
    """An outage on the next day counts no attempts, as for everybody else."""
    indian_campaign(crm, 30)
    run(run_once, CAMPAIGN_WINDOW=window(INDIA, hours=3))
    let_pass(crm)
    crm.execute("UPDATE worker.campaign_run SET holds = 20, accepted_at = started_at + interval '1 second'")
    world.script("whatsapp", status=503, body={"error": {"code": 2, "message": "unavailable"}})
    run(run_once, CAMPAIGN_WINDOW=window(INDIA, hours=0))
    assert states(crm) == {"pending": 30}
    assert crm.value("SELECT max(attempts) FROM worker.campaign_retry") == 0
