"""The texts of digests and who they are from: templates, names, and long lists."""

from collections.abc import Iterator
from typing import Any

import pytest
from reminder_office import BOSS, NOON, ReminderOffice, offices, parts

from sandbox.crm import Crm
from sandbox.world import World


@pytest.fixture
def office(crm: Crm, world: World, database_url: str, redis_url: str) -> Iterator[ReminderOffice]:
    yield from offices(crm, world, database_url, redis_url)


def template(office: ReminderOffice, tenant: str, name: str, age_hours: int = 0, **columns: Any) -> str:
    row = {"name": name, "type": "reminder", "subject": f"{name}: {{{{leadsCount}}}}", "tenantId": tenant,
           "htmlBody": "<p>Dear {{recipientName}} of {{companyName}}</p>{{leadsList}}",
           "createdBy": office.admin(tenant), "createdAt": NOON}  # fmt: skip
    made = office.crm.insert("EmailTemplate", row | columns)
    office.crm.execute(
        'UPDATE "EmailTemplate" SET "createdAt" = %s - make_interval(hours => %s) WHERE id = %s',
        (NOON, age_hours, made),
    )
    return made


def test_templates(office: ReminderOffice) -> None:
    """The tenant's active template that is no default wins, also an older one; its use is counted, no other's is."""
    tenant = office.tenant({"recipientEmails": [BOSS, "other@x.example"], "recipientPhones": ["9812345678"]}, leads=2)
    template(office, tenant, "default", isDefault=True)
    wins = template(office, tenant, "own", 4, usageCount=7)
    template(office, tenant, "of another type", type="welcome")
    template(office, office.tenant({}), "of another tenant")
    office.worker().tick()
    message = office.world.email(BOSS)
    assert message["Subject"] == "own: 2"
    assert message["Auto-Submitted"] == "auto-generated"
    assert message["List-Unsubscribe"] is message["List-Id"] is None
    text, html = parts(message)
    assert html.startswith(f"<p>Dear {BOSS} of Tenant 0</p><table")
    assert text.startswith(f"Dear {BOSS} of Tenant 0\n\n1. ")
    used = """SELECT id, "usageCount", "lastUsedAt", "updatedAt" FROM "EmailTemplate" WHERE "usageCount" > 0"""
    assert office.crm.execute(used) == [(wins, 9, NOON, NOON)]


@pytest.mark.parametrize(("active", "subject"), [(True, "default: 1"), (False, "1 lead waiting for a follow-up")])
def test_default_template(office: ReminderOffice, active: bool, subject: str) -> None:
    """Without another one that is active the tenant's default wins, without that the built-in one."""
    tenant = office.tenant({"recipientEmails": [BOSS]}, leads=1)
    template(office, tenant, "own but off", isActive=False)
    template(office, tenant, "default", isDefault=True, isActive=active)
    office.worker().tick()
    assert office.world.email(BOSS)["Subject"] == subject


def test_company_name(office: ReminderOffice) -> None:
    """Signed with openai.companyName, else with the tenant's name."""
    office.tenant({"recipientEmails": ["a@x.example"]}, leads=1, openai={"companyName": "Chai & Sons"})
    office.tenant({"recipientEmails": ["b@x.example"]}, leads=1, openai={"companyName": 5})
    office.worker().tick()
    assert [parts(office.world.email(f"{each}@x.example"))[0].strip().split("\n")[-1] for each in "ab"] == [
        "Chai & Sons",
        "Tenant 1",
    ]


def test_hostile_names(office: ReminderOffice) -> None:
    """What people and companies are called changes no header, no markup and no other line."""
    name = "<b>\r\nBcc: evil@x.example\r\n{{email}} $1 \\g<0> \"'"
    tenant = office.tenant({}, openai={"companyName": name})
    user = office.crm.add_user(tenant, name=name, email="ravi@tenant.example")
    office.save(tenant, recipientUserIds=[user], recipientPhones=["9812345678"])
    office.lead(tenant, name=name, email=name, phone=name)
    template(
        office, tenant, "own", subject="{{recipientName}} {{companyName}}", htmlBody="{{leadsList}}{{recipientName}}"
    )
    office.worker().tick()
    message = office.world.email("ravi@tenant.example")
    assert message["Bcc"] is None
    assert "evil@x.example" not in office.arrived()
    text, html = parts(message)
    assert "<b>" not in html
    assert "{{email}} $1" in html
    assert "1. <b> Bcc: evil@x.example {{email}} $1 \\g<0> \"'" in text
    assert "1. <b> Bcc: evil@x.example {{email}} $1" in office.texts()[0]


def test_two_hundred_and_one(office: ReminderOffice) -> None:
    """However many leads, one message: the two hundred that wait longest are listed, the others counted."""
    tenant = office.tenant({"recipientEmails": [BOSS], "recipientPhones": ["9812345678"]})
    for number in range(201):
        office.lead(tenant, quiet_hours=1000 - number, name=f"Lead-{number:03}")
    worker = office.worker()
    assert worker.tick().counts["leads"] == 402
    text, html = parts(office.world.email(BOSS))
    assert "201 leads" in text
    assert "1. Lead-000," in text
    assert "200. Lead-199," in text
    assert "Lead-200" not in text + html
    assert "... and 1 more" in text
    (message,) = office.texts()
    assert len(message) <= 4096
    assert "1. Lead-000," in message
    assert office.remembered() == 402
    assert worker.tick().counts["digests"] == 0


def test_who_it_is_from(office: ReminderOffice) -> None:
    """From the tenant's own name and address, with its reply address; filed for the user who is reminded."""
    tenant = office.tenant({}, leads=1)
    user = office.crm.add_user(tenant, name="Ravi Rao", email="Ravi@tenant.example")
    office.save(tenant, recipientUserIds=[user])
    office.worker().tick()
    message = office.world.email("ravi@tenant.example")
    assert message["From"] == "Chaiwala Traders <hello@chaiwala.example>"
    assert message["Reply-To"] == "hello@chaiwala.example"
    assert message["To"].addresses[0].display_name == "Ravi Rao"
    assert "Hello Ravi Rao," in parts(message)[0]
    assert office.one('SELECT "userId" FROM "EmailLog"') == user


def test_no_active_user(office: ReminderOffice) -> None:
    """Sent by SMTP from the tenant's address, without a row in EmailLog; without that address it waits."""
    office.tenant({"recipientEmails": [BOSS]}, leads=1)
    office.tenant({"recipientEmails": ["b@x.example"]}, leads=1, mail={})
    office.crm.execute('UPDATE "User" SET "isActive" = false')
    worker = office.worker()
    assert worker.tick().counts == {"digests": 1, "leads": 1, "failed": 1, "unconfirmed": 0}
    assert office.arrived() == {BOSS: 1}
    assert office.one('SELECT count(*) FROM "EmailLog"') == 0
