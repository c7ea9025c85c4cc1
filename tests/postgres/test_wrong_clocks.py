"""Real jobs in the real loop on a machine whose clock is wrong: what they do is right by the database's clock."""

import logging
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
import redis
from one_run import OneRun

from sandbox.crm import Crm
from sandbox.world import World
from worker.call_cleanup import CallCleanupJob
from worker.calls import CallsJob
from worker.campaign import CampaignJob
from worker.reminders import RemindersJob
from worker.runtime.clock import utc_now
from worker.runtime.counter_readings import read_all
from worker.trial import TrialJob

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
WRONG = [HOUR, -HOUR, DAY, -DAY, 365 * DAY, -365 * DAY]


def warnings(caplog: pytest.LogCaptureFixture) -> int:
    return sum("clock differs" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("off", WRONG, ids=str)
def test_trials_end_when_they_end(
    off: timedelta, run_once: OneRun, crm: Crm, caplog: pytest.LogCaptureFixture
) -> None:
    """No tenant is suspended early or late, and the row has the true time."""

    def tenant(end: timedelta) -> str:
        return crm.add_tenant(plan="FREE", status="TRIAL", subscriptionEnd=utc_now() + end)

    early, late = tenant(timedelta(minutes=5)), tenant(-timedelta(minutes=5))
    assert run_once("trial", TrialJob, off) == 0
    statement = 'SELECT status::text, "updatedAt" FROM "Tenant" WHERE id = %s'
    assert crm.execute(statement, (early,))[0][0] == "TRIAL"
    status, at = crm.execute(statement, (late,))[0]
    assert status == "SUSPENDED"
    assert abs(at - utc_now()) < timedelta(minutes=1)
    assert warnings(caplog) == 1


@pytest.mark.parametrize("off", WRONG, ids=str)
def test_fresh_rows_stay(off: timedelta, run_once: OneRun, crm: Crm) -> None:
    """Rows of the call queue are deleted after 30 days, not before and not later."""
    fresh = crm.add_call(status="completed", updatedAt=utc_now() - 30 * DAY + timedelta(minutes=5))
    old = crm.add_call(status="completed", updatedAt=utc_now() - 30 * DAY - timedelta(minutes=5))
    assert run_once("call-cleanup", CallCleanupJob, off) == 0
    assert [row[0] for row in crm.execute('SELECT id FROM "CallQueue"')] == [fresh]
    assert old != fresh


@pytest.mark.parametrize("off", WRONG, ids=str)
def test_campaigns_go_on(off: timedelta, run_once: OneRun, crm: Crm, world: World, redis_url: str) -> None:
    """Due and running campaigns are sent, with the true time in their rows; those of the next minutes are not."""
    due = crm.add_campaign("email", recipients=3, scheduled_at=utc_now() - timedelta(minutes=1))
    later = crm.add_campaign("email", recipients=3, scheduled_at=utc_now() + timedelta(minutes=5))
    assert run_once("campaign", CampaignJob, off) == 0
    assert crm.counts(due) == {"sent": 3}
    assert crm.counts(later) == {"pending": 3}
    assert world.total("smtp") == 3
    times = [
        row[0] for row in crm.execute('SELECT "sentAt" FROM "CampaignRecipient" WHERE "campaignId" = %s', (due,))
    ]
    times += [row[0] for row in crm.execute('SELECT "createdAt" FROM "CampaignLog" WHERE "campaignId" = %s', (due,))]
    assert len(times) >= 5
    assert all(abs(each - utc_now()) < timedelta(minutes=1) for each in times)
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        heartbeat = read_all(client).jobs["campaign"].heartbeat
    assert heartbeat is not None
    assert abs(datetime.fromtimestamp(heartbeat) - datetime.now()) < timedelta(minutes=1)  # noqa: DTZ005, DTZ006


@pytest.mark.parametrize("off", [timedelta(hours=12), -timedelta(hours=12), *WRONG], ids=str)
def test_calls_keep_to_business_hours(off: timedelta, run_once: OneRun, crm: Crm, world: World) -> None:
    """By the true time: a tenant whose hours are now is served, one whose hours are over or to come is not."""

    noon = 12 - utc_now().hour  # hours to a zone where it is about noon: these hours end before midnight

    def call(first: timedelta, last: timedelta) -> str:
        now = utc_now() + noon * HOUR
        hours: dict[str, Any] = {
            "enableBusinessHours": True,
            "timezone": f"Etc/GMT{-noon:+d}",
            "businessHoursStart": f"{now + first:%H:%M}",
            "businessHoursEnd": f"{now + last:%H:%M}",
        }
        tenant = crm.add_tenant()
        crm.add_call_settings(tenant, **hours)
        return crm.add_call(tenant)

    inside = call(-timedelta(minutes=20), timedelta(minutes=20))
    outside = call(timedelta(minutes=20), timedelta(minutes=60))
    status = dict(crm.execute('SELECT id, status FROM "CallQueue"'))
    assert set(status.values()) == {"pending"}
    assert run_once("calls", CallsJob, off) == 0
    status = dict(crm.execute('SELECT id, status FROM "CallQueue"'))
    assert (status[inside] != "pending", status[outside]) == (True, "pending")
    assert world.total("twilio") == 1


@pytest.mark.parametrize("off", WRONG, ids=str)
def test_leads_are_due_when_they_are_due(off: timedelta, run_once: OneRun, crm: Crm, world: World) -> None:
    """A lead is in a digest after 24 quiet hours, and what the worker remembers of its reminder is not forgotten."""
    reminders = {"enabled": True, "recipientEmails": ["boss@tenant.example"], "sendWhatsApp": False}
    tenant = crm.add_tenant(settings={"leadReminders": reminders, "mail": {"smtp": {"fromEmail": "a@t.example"}}})
    crm.add_user(tenant)
    quiet = crm.add_lead(tenant, name="Quiet Lead", createdAt=utc_now() - DAY - timedelta(minutes=5))
    crm.add_lead(tenant, name="Busy Lead", createdAt=utc_now() - DAY + timedelta(minutes=5))
    assert run_once("reminders", RemindersJob, off) == 0
    assert [row[0] for row in crm.execute("SELECT lead_id FROM worker.lead_reminder")] == [quiet]
    assert run_once("reminders", RemindersJob, -off) == 0
    assert world.total("smtp") == 1


@pytest.mark.parametrize("off", [DAY, -DAY], ids=str)
@pytest.mark.parametrize("channel", ["whatsapp", "twilio"])
def test_a_retry_after_that_is_a_date(channel: str, off: timedelta, run_once: OneRun, crm: Crm, world: World) -> None:
    """It is compared with the true time: the account waits neither for a day more nor not at all."""
    date = format_datetime((utc_now() + timedelta(minutes=10)).replace(tzinfo=UTC), usegmt=True)
    world.script(channel, status=429, code=20429 if channel == "twilio" else 130429, retry_after=date)
    if channel == "twilio":
        crm.add_call_settings()
        crm.add_call()
        assert run_once("calls", CallsJob, off) == 0
    else:
        crm.add_campaign("whatsapp", recipients=1)
        assert run_once("campaign", CampaignJob, off) == 0
    assert world.total(channel) == 0
    retry = (
        'SELECT "nextRetryAt" FROM "CallQueue"' if channel == "twilio" else "SELECT due_at FROM worker.campaign_retry"
    )
    assert timedelta(minutes=9) < crm.value(retry) - utc_now() <= timedelta(minutes=10, seconds=1)


def test_a_right_clock_is_not_mentioned(run_once: OneRun, caplog: pytest.LogCaptureFixture) -> None:
    """A difference of less than 30 s is usual."""
    caplog.set_level(logging.INFO)
    assert run_once("trial", TrialJob, timedelta(seconds=20)) == 0
    assert warnings(caplog) == 0
