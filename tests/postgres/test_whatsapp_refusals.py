"""What WhatsApp's codes do to a campaign's recipients: who fails, who is tried again and when, who stays pending."""

from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest
from one_run import OneRun

from sandbox.crm import Crm, utc_now
from sandbox.world import World
from worker.campaign import CampaignJob
from worker.campaign_commands.arguments import RETRIABLE
from worker.campaign_commands.failure_commands import FailureCommands
from worker.runtime.db import Database

LIMITED, AMERICAN, OTHER = "919800000001", "12025550123", "919800000002"
BREAKER = 5


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    with closing(Database(database_url, "test")) as made:
        yield made


def campaign_to(crm: Crm, *numbers: str) -> str:
    return crm.add_campaign("whatsapp", recipients=[{"recipientPhone": f"+{number}"} for number in numbers])


def errors(crm: Crm, campaign: str) -> dict[str, tuple[str, str]]:
    """The kind and the reason of each failure, by number."""
    rows = crm.execute(
        """SELECT ltrim(p."recipientPhone", '+'), f.kind, p."errorMessage"
           FROM worker.failure f JOIN "CampaignRecipient" p ON p.id = f.recipient_id
           WHERE f.campaign_id = %s AND p.status = 'failed'""",
        (campaign,),
    )
    return {number: (kind, reason) for number, kind, reason in rows}


def retries(crm: Crm) -> list[tuple[int, timedelta]]:
    """The attempts of those that are tried again, and how long from now that is."""
    now = utc_now()
    rows = crm.execute("SELECT attempts, due_at FROM worker.campaign_retry ORDER BY attempts")
    return [(attempts, due_at - now) for attempts, due_at in rows]


def retry_now(crm: Crm) -> None:
    """The time of the retries has come."""
    crm.execute("UPDATE worker.campaign_retry SET due_at = due_at - interval '100 days'")
    crm.execute("UPDATE worker.campaign_run SET next_batch_at = next_batch_at - interval '100 days'")


def test_a_limit_of_one_persons_marketing_messages(crm: Crm, world: World, run_once: OneRun) -> None:
    """131049: twice more, a day apart, and not again for +1; the others have their message at once."""
    for number in (LIMITED, AMERICAN):
        world.script("whatsapp", number, code=131049)
    campaign = campaign_to(crm, LIMITED, AMERICAN, OTHER)
    for attempts in (1, 2):
        run_once("campaign", CampaignJob)
        assert crm.counts(campaign) == {"sent": 1, "failed": 1, "pending": 1}
        [(tried, pause)] = retries(crm)
        assert tried == attempts
        assert timedelta(hours=23, minutes=55) < pause <= timedelta(hours=24)
        retry_now(crm)
    run_once("campaign", CampaignJob)
    assert crm.counts(campaign) == {"sent": 1, "failed": 2}
    found = errors(crm, campaign)
    assert {number: kind for number, (kind, _) in found.items()} == {LIMITED: "deferred", AMERICAN: "deferred"}
    assert found[LIMITED][1].startswith("given up after 3 tries: WhatsApp 131049")
    assert found[AMERICAN][1].startswith("given up after 1 try: WhatsApp 131049")
    assert sorted(each.address for each in world.refusals("whatsapp")) == [AMERICAN] + 3 * [LIMITED]


def test_too_many_messages_to_one_person(crm: Crm, world: World, run_once: OneRun) -> None:
    """131056: after 6 s, then 16, 64 ...; the others have their message at once."""
    world.script("whatsapp", LIMITED, code=131056, times=3)
    campaign = campaign_to(crm, LIMITED, OTHER)
    for seconds in (6, 16, 64):
        run_once("campaign", CampaignJob)
        assert crm.counts(campaign) == {"sent": 1, "pending": 1}
        [(_, pause)] = retries(crm)
        assert timedelta(0) < pause <= timedelta(seconds=seconds)
        assert pause > timedelta(seconds=seconds / 4)
        retry_now(crm)
    run_once("campaign", CampaignJob)
    assert crm.counts(campaign) == {"sent": 2}


def test_who_takes_part_in_an_experiment(crm: Crm, db: Database, world: World, run_once: OneRun) -> None:
    """130472: failed at once, and no retry of this campaign writes to that person; a later campaign may."""
    world.script("whatsapp", LIMITED, code=130472, times=1)
    campaign = campaign_to(crm, LIMITED, OTHER)
    run_once("campaign", CampaignJob)
    assert crm.counts(campaign) == {"sent": 1, "failed": 1}
    kind, reason = errors(crm, campaign)[LIMITED]
    assert kind == "suppressed"
    assert "130472" in reason
    assert FailureCommands(db, utc_now).retry(campaign, RETRIABLE, dry_run=False) == 1
    assert crm.counts(campaign) == {"sent": 1, "failed": 1}
    assert crm.value("SELECT count(*) FROM worker.suppression") == 0
    later = campaign_to(crm, LIMITED)
    run_once("campaign", CampaignJob)
    assert crm.counts(later) == {"sent": 1}


@pytest.mark.parametrize("code", [131047, 130497, 999_001])
def test_what_everybody_gets_ends_the_campaign(crm: Crm, world: World, run_once: OneRun, code: int) -> None:
    """A text outside of the 24 hours, a country, an unknown code: the list is not used up."""
    world.script("whatsapp", code=code, status=403)
    campaign = crm.add_campaign("whatsapp", recipients=40)
    run_once("campaign", CampaignJob, REFUSAL_BREAKER=str(BREAKER), CAMPAIGN_BATCH_SIZE="10")
    assert crm.counts(campaign) == {"pending": 40}
    assert crm.value('SELECT status FROM "Campaign" WHERE id = %s', campaign) == "failed"
    statement = """SELECT message FROM "CampaignLog" WHERE action = 'failed'"""
    assert f"recipients in a row were refused with the same reply: WhatsApp {code}" in crm.value(statement)


@pytest.mark.parametrize("code", [131047, 130497, 131026, 999_001])
def test_what_some_get_ends_nothing(crm: Crm, world: World, run_once: OneRun, code: int) -> None:
    """Those fail, and all others have their message."""
    refused = [f"9198111111{number:02}" for number in range(BREAKER - 1)]
    for number in refused:
        world.script("whatsapp", number, code=code, status=401)
    campaign = campaign_to(crm, *refused, OTHER)
    run_once("campaign", CampaignJob, REFUSAL_BREAKER=str(BREAKER))
    assert crm.counts(campaign) == {"sent": 1, "failed": len(refused)}
    assert {kind for kind, _ in errors(crm, campaign).values()} == {"address" if code == 131026 else "refused"}


@pytest.mark.parametrize("status", [200, 400, 500])
@pytest.mark.parametrize(
    "error",
    [
        {"code": 100, "error_subcode": 33},
        *[{"code": code} for code in (33, 131037, 133010, 131031, 190, 10, 368)],
    ],
    ids=lambda error: str(error["code"]),
)
def test_a_fault_of_the_account_fails_nobody(
    crm: Crm, world: World, run_once: OneRun, error: dict[str, Any], status: int
) -> None:
    """Both campaigns that send through it end; their recipients are pending and no try was counted."""
    world.script("whatsapp", status=status, body={"error": error | {"message": "no"}})
    campaigns = [crm.add_campaign("whatsapp", recipients=6) for _ in range(2)]
    run_once("campaign", CampaignJob)
    assert [crm.counts(each) for each in campaigns] == [{"pending": 6}] * 2
    assert crm.execute('SELECT DISTINCT status FROM "Campaign"') == [("failed",)]
    assert {attempts for attempts, _ in retries(crm)} <= {0}
    assert crm.value("SELECT count(*) FROM worker.failure") == 0
