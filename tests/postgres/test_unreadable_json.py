"""JSON of the CRM that Python cannot parse (3,000 levels, numbers of thousands of digits), wherever a job reads it.

The campaign or tenant whose value cannot be used has the reason; the other parts of the value, and all others, work.
"""

import pytest
from one_run import OneRun

from sandbox.crm import Crm
from sandbox.world import World
from worker.campaign import CampaignJob
from worker.reminders import RemindersJob

LEVELS = "(repeat('[', 3000) || repeat(']', 3000))"
OBJECTS = """(repeat('{"a":', 3000) || '1' || repeat('}', 3000))"""
DIGITS = "repeat('9', 60000)"
NUMBER = "'1e4999'"  # 5,000 digits in jsonb
BAD = [LEVELS, OBJECTS, DIGITS, NUMBER]
KINDS = ["lists", "objects", "digits", "exponent"]


def put(crm: Crm, table: str, column: str, row_id: str, path: str, bad: str) -> None:
    """Sets a part of a jsonb column, or all of it (path '{}')."""
    value = f"({bad})::jsonb"
    if path != "{}":
        value = f"""jsonb_set(coalesce("{column}", '{{}}'::jsonb), '{path}', {value})"""
    crm.execute(f'UPDATE "{table}" SET "{column}" = {value} WHERE id = %s', (row_id,))


@pytest.mark.parametrize("bad", BAD, ids=KINDS)
@pytest.mark.parametrize(
    ("column", "path", "status"),
    [
        ("platformUtmConfig", "{}", "completed"),
        ("platformUtmConfig", "{email}", "completed"),
        ("platformUtmConfig", "{whatsapp}", "completed"),
        ("targetFilters", "{}", "failed"),
        ("targetFilters", "{priority}", "failed"),
        ("targetFilters", "{junk}", "completed"),
    ],
)
def test_campaigns(column: str, path: str, status: str, bad: str, run_once: OneRun, crm: Crm, world: World) -> None:
    """A value that matters fails its campaign with the reason; one that does not matter is not in the way."""
    lead = crm.add_lead(email="lead@people.example")
    campaign = crm.add_campaign("email", targetType="leads", targetFilters={}, platformUtmConfig={})
    other = crm.add_campaign("email", recipients=2)
    put(crm, "Campaign", column, campaign, path, bad)
    if path == "{}" and bad == OBJECTS:
        status = "completed"  # an object without any filter that is known
    assert run_once("campaign", CampaignJob) == 0
    assert crm.value('SELECT status FROM "Campaign" WHERE id = %s', other) == "completed"
    assert crm.value('SELECT status FROM "Campaign" WHERE id = %s', campaign) == status
    if status == "failed":
        reason = crm.value(
            """SELECT message FROM "CampaignLog" WHERE "campaignId" = %s AND action = 'failed'""", campaign
        )
        assert "targetFilters" in reason
    assert world.total("smtp") == (3 if status == "completed" else 2)
    assert lead


@pytest.mark.parametrize("bad", BAD, ids=KINDS)
@pytest.mark.parametrize("path", ["{}", "{0}"])
def test_template_parameters(path: str, bad: str, run_once: OneRun, crm: Crm, world: World) -> None:
    """A list of parameters, or one parameter, that cannot be read is never sent as something else."""
    template = {"whatsappMessageType": "template", "whatsappTemplateName": "hello", "whatsappTemplateLanguage": "en"}
    campaign = crm.add_campaign("whatsapp", recipients=1, whatsappTemplateParams=["a"], **template)
    good = crm.add_campaign("whatsapp", recipients=1, whatsappTemplateParams=["a"], **template)
    put(crm, "Campaign", "whatsappTemplateParams", campaign, path, bad)
    assert run_once("campaign", CampaignJob) == 0
    assert crm.value('SELECT status FROM "Campaign" WHERE id = %s', campaign) == "failed"
    assert crm.counts(campaign) == {"pending": 1}
    assert crm.counts(good) == {"sent": 1}
    assert world.total("whatsapp") == 1


@pytest.mark.parametrize("bad", BAD, ids=KINDS)
@pytest.mark.parametrize(
    ("path", "sent"),
    [("{junk}", 1), ("{mail}", 1), ("{openai}", 1), ("{whatsapp}", 0), ("{whatsapp,token}", 0),
     ("{whatsapp,phoneId}", 0), ("{}", 0)],
)  # fmt: skip
def test_tenants(path: str, sent: int, bad: str, run_once: OneRun, crm: Crm, world: World) -> None:
    """A part of a tenant's settings that cannot be read spoils that part, and no other tenant."""
    tenant = crm.add_tenant()
    campaign = crm.add_campaign("whatsapp", recipients=1, tenant_id=tenant, user_id=crm.add_user(tenant))
    good = crm.add_campaign("whatsapp", recipients=1)
    put(crm, "Tenant", "settings", tenant, path, bad)
    assert run_once("campaign", CampaignJob) == 0
    assert crm.counts(campaign) == ({"sent": 1} if sent else {"pending": 1})
    assert crm.counts(good) == {"sent": 1}


@pytest.mark.parametrize("bad", BAD, ids=KINDS)
@pytest.mark.parametrize(
    ("path", "sent"),
    [("{junk}", 1), ("{leadReminders,junk}", 1), ("{leadReminders,checkIntervalHours}", 1), ("{openai}", 1),
     ("{leadReminders,sendEmail}", 1), ("{leadReminders,enabled}", 0), ("{leadReminders,recipientEmails}", 0),
     ("{leadReminders,recipientEmails,0}", 0), ("{leadReminders}", 0), ("{}", 0)],
)  # fmt: skip
def test_reminders(path: str, sent: int, bad: str, run_once: OneRun, crm: Crm, world: World) -> None:
    """The same for what tenants saved under leadReminders."""

    def tenant() -> str:
        reminders = {"enabled": True, "recipientEmails": ["boss@tenant.example"], "sendWhatsApp": False}
        made = crm.add_tenant(settings={"leadReminders": reminders, "mail": {"smtp": {"fromEmail": "a@t.example"}}})
        user = crm.add_user(made)
        stage = crm.add_stage(made)
        crm.add_lead(made, user, stageId=stage, createdAt="2026-01-01")
        return made

    broken, _ = tenant(), tenant()
    put(crm, "Tenant", "settings", broken, path, bad)
    assert run_once("reminders", RemindersJob) == 0
    assert world.total("smtp") == 1 + sent
