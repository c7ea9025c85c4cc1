"""What tenants saved: who is reminded of which stages, and broken settings."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from reminder_office import BOSS, ReminderOffice, offices, parts

from sandbox.crm import Crm
from sandbox.world import World


@pytest.fixture
def office(crm: Crm, world: World, database_url: str, redis_url: str) -> Iterator[ReminderOffice]:
    yield from offices(crm, world, database_url, redis_url)


BROKEN: list[Any] = [
    {"enabled": "true"},
    {"checkIntervalHours": "24"},
    {"checkIntervalHours": -3},
    {"checkIntervalHours": True},
    {"recipientEmails": "boss@x.example"},
    {"recipientEmails": [5, None, {"a": [1]}, "not an address", "a@b.example\r\nBcc: c@d.example"]},
    {"recipientUserIds": {"0": "x"}},
    {"recipientUserIds": [["x"], 7, "x"]},
    {"recipientPhones": ["", "call me", 98]},
    {"includedStages": "new"},
    {"includedStages": [{"slug": "new"}, "nowhere"]},
    {"sendEmail": "no", "sendWhatsApp": 7},
    {"leadReminders": {"enabled": True}},
    "yes",
    ["enabled"],
    7,
]


def test_broken_settings(office: ReminderOffice, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever others saved, a tenant with good settings is served; errors are logged once for each change."""
    broken = [office.tenant(each, leads=1) for each in BROKEN]
    for settings in (None, [], "text", 7, {"leadReminders": None}, {"leadReminders": {"enabled": None}}):
        office.crm.add_tenant("Odd Traders", settings=settings)
    office.tenant({"recipientEmails": [BOSS]}, leads=1)
    worker = office.worker()
    with caplog.at_level(logging.WARNING):
        assert worker.tick().counts["digests"] == 1
        said = [record for record in caplog.records if "reminder settings have errors" in record.message]
        assert {record.args["tenant"] for record in said} == {
            tenant
            for tenant, saved in zip(broken, BROKEN, strict=True)
            if saved != {"leadReminders": {"enabled": True}}
        }
        assert all("example" not in record.args["leadReminders"] for record in said)
        caplog.clear()
        worker.tick()
        assert caplog.records == []
        office.save(broken[1], recipientPhones=["x"])
        worker.tick()
        assert [record.args["tenant"] for record in caplog.records] == [broken[1]]
    assert office.arrived() == {BOSS: 1}


def test_defaults_of_broken_values(office: ReminderOffice) -> None:
    """A broken interval is a day, a broken switch is on, a broken address leaves the others."""
    reminders = {"checkIntervalHours": "1", "sendEmail": "no", "recipientEmails": ["x", BOSS]}
    tenant = office.tenant(reminders)
    office.lead(tenant, quiet_hours=23)
    assert office.worker().tick().counts["digests"] == 0
    office.lead(tenant, quiet_hours=25)
    assert office.worker().tick().counts["leads"] == 1


@pytest.mark.parametrize(("switch", "channel"), [("sendEmail", "smtp"), ("sendWhatsApp", "whatsapp")])
def test_a_channel_switched_off(office: ReminderOffice, switch: str, channel: str) -> None:
    """Nothing leaves through a channel that the tenant does not want."""
    tenant = office.tenant({"recipientEmails": [BOSS], "recipientPhones": ["9812345678"], switch: False}, leads=1)
    office.save(tenant, recipientUserIds=[office.admin(tenant)])
    office.worker().tick()
    assert office.arrived(channel) == {}
    assert office.world.total() > 0


def test_recipients(office: ReminderOffice) -> None:
    """Active users of the tenant and bare addresses, each address once, a user by its name."""
    tenant, foreign = office.tenant({}, leads=1), office.tenant({})
    user = office.crm.add_user(tenant, name="Ravi", email="ravi@tenant.example")
    idle = office.crm.add_user(tenant, email="idle@tenant.example", isActive=False)
    office.save(
        tenant,
        recipientUserIds=[user, idle, office.admin(foreign), "nobody", user],
        recipientEmails=["RAVI@tenant.example", "Boss@X.example", BOSS],
        recipientPhones=["+91 98123 45678", "9812345678"],
    )
    office.worker().tick()
    assert office.arrived() == {"ravi@tenant.example": 1, BOSS: 1}
    assert office.arrived("whatsapp") == {"919812345678": 1}
    assert "Hello Ravi," in parts(office.world.email("ravi@tenant.example"))[0]


@pytest.mark.parametrize(
    ("included", "listed"),
    [(None, ["new", "won", "lost"]), ([], ["new", "won", "lost"]), (["won"], ["won"]), (["won", "x"], ["won"]),
     (["x"], []), ("won", ["new", "won", "lost"])],
)  # fmt: skip
def test_stages(office: ReminderOffice, included: Any, listed: list[str]) -> None:
    """Leads of the included stages; of all when none is chosen; of none when only unknown ones are."""
    tenant = office.tenant({"recipientEmails": [BOSS], "includedStages": included})
    foreign = office.tenant({})
    for slug in ("new", "won", "lost"):
        office.lead(tenant, stage=slug, name=slug)
        office.lead(foreign, stage=slug, name="foreign")
    assert office.worker().tick().counts["leads"] == len(listed)
    if listed:
        text = parts(office.world.email(BOSS))[0]
        assert [slug for slug in ("new", "won", "lost", "foreign") if f". {slug}," in text] == listed


def test_a_suspended_tenant(office: ReminderOffice) -> None:
    """The contract asks for no status of the tenant: only its users' being active counts."""
    tenant = office.tenant({"recipientEmails": [BOSS]}, leads=1)
    office.crm.execute("""UPDATE "Tenant" SET status = 'SUSPENDED' WHERE id = %s""", (tenant,))
    assert office.worker().tick().counts["digests"] == 1


def test_idle(office: ReminderOffice) -> None:
    """Nothing saved, nothing done; switched off, nothing claimed."""
    office.tenant({"enabled": False, "recipientEmails": [BOSS]}, leads=1)
    office.tenant({"recipientEmails": []}, leads=1)
    assert office.worker().tick().counts == {"digests": 0, "leads": 0, "failed": 0, "unconfirmed": 0}
    assert office.remembered() == 0
