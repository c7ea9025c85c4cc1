"""The real programs outside the hours of calls and campaigns: what waits is told, loses nothing and goes on."""

import json
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from workers import PROJECT, Start, wait_for

from sandbox.crm import Crm
from sandbox.world import World

NOW = "now() AT TIME ZONE 'UTC'"
INDIA = ZoneInfo("Asia/Kolkata")
LATE_SECONDS = 5.0  # a message may be on its way when the window ends


@pytest.fixture
def status(environment: dict[str, str]) -> Callable[..., str]:
    def run(*arguments: str) -> str:
        done = subprocess.run(
            [PROJECT / "bin" / "status", *arguments],
            env=environment | {"COLUMNS": "150"},
            cwd=PROJECT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return done.stdout

    return run


def test_calls_at_night(crm: Crm, world: World, start: Start, status: Callable[..., str]) -> None:
    """bin/status says until when; a kill in between changes nothing; in the morning each number is called once."""
    opens = datetime.now(INDIA).replace(minute=0) + timedelta(hours=3)
    closed = {"CALL_WINDOWS": f"+91={opens:%H}:00-{opens:%H}:30", "TWILIO_RATE": "1000"}
    crm.add_call_settings(maxConcurrentCalls=100)
    for place in range(60):
        crm.add_call(phoneNumber=f"+9198765{place:05}")
    worker = start(program="calls", **closed)
    waits = f"""SELECT count(*) FROM "CallQueue"
                WHERE status = 'pending' AND attempts = 0 AND "nextRetryAt" > {NOW}"""
    wait_for(lambda: crm.value(waits) == 60, "all calls wait")
    worker.kill()
    assert world.total("twilio") == 0
    assert worker.said("calls wait") >= 1
    waiting: dict[str, Any] = json.loads(status("--json"))["waiting"]
    assert waiting["calls_waiting"] == 60
    until = datetime.fromtimestamp(waiting["calls_wait_until"], INDIA)
    assert (until.hour, until.minute) == (opens.hour, 0)
    assert "Calls outside their hours" in status()
    crm.execute(f'UPDATE "CallQueue" SET "nextRetryAt" = {NOW}')
    opened = closed | {"CALL_WINDOWS": "+91=00:00-24:00"}
    start(program="calls", **opened)
    done = """SELECT count(*) FROM "CallQueue"
              WHERE status = 'completed' AND attempts = 0 AND "errorMessage" IS NULL"""
    wait_for(lambda: crm.value(done) == 60, "all calls are placed")
    assert world.total("twilio") == 60
    assert world.duplicates("twilio") == {}


def test_a_campaign_that_reaches_the_end_of_its_hours(crm: Crm, world: World, start: Start) -> None:
    """It stops when the minute ends, whatever its pace would allow, says so once, and goes on the next morning."""
    crm.add_campaign(recipients=4000)
    crm.add_call_settings(timezone="UTC")
    ends = (datetime.now(UTC) + timedelta(seconds=70)).replace(second=0, microsecond=0)
    begins = ends - timedelta(hours=2)
    worker = start(CAMPAIGN_WINDOW=f"{begins:%H:%M}-{ends:%H:%M}", SMTP_RATE="20", CAMPAIGN_BATCH_SIZE="500")
    wait_for(lambda: crm.value("SELECT waits_for FROM worker.campaign_run") == "window", "it waits", 150)
    states = dict(crm.execute('SELECT status, count(*) FROM "CampaignRecipient" GROUP BY 1'))
    assert states.keys() == {"sent", "pending"}
    assert states["sent"] == world.total("smtp") > 0
    latest = max(datetime.fromisoformat(each.at) for each in world.deliveries("smtp"))
    assert latest < ends + timedelta(seconds=LATE_SECONDS)
    assert crm.value("SELECT coalesce(max(attempts), 0) FROM worker.campaign_retry") == 0
    assert crm.value("SELECT waits_until FROM worker.campaign_run") == begins.replace(tzinfo=None) + timedelta(days=1)
    assert crm.value("""SELECT count(*) FROM "CampaignLog" WHERE message LIKE 'Waits until%%'""") == 1
    assert worker.said("campaign waits for its account or its hours") == 1
    worker.stop()
    crm.execute(f"UPDATE worker.campaign_run SET next_batch_at = {NOW}")
    crm.execute(f"UPDATE worker.campaign_retry SET due_at = {NOW}")
    start(CAMPAIGN_WINDOW="00:00-24:00")
    wait_for(lambda: crm.value('SELECT status FROM "Campaign"') == "completed", "it ends", 120)
    assert world.total("smtp") == 4000
    assert world.duplicates("smtp") == {}
