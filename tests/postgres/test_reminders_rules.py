"""Lead reminders: one digest for each recipient, which leads are due, and when again."""

from collections.abc import Iterator

import pytest
from reminder_office import BOSS, NOON, ReminderOffice, offices, parts

from sandbox.crm import Crm
from sandbox.world import World


@pytest.fixture
def office(crm: Crm, world: World, database_url: str, redis_url: str) -> Iterator[ReminderOffice]:
    yield from offices(crm, world, database_url, redis_url)


def test_a_digest(office: ReminderOffice) -> None:
    """One message for each recipient, filed for e-mail, counted, and no claim left."""
    tenant = office.tenant({"recipientEmails": [BOSS], "recipientPhones": ["98123 45678"]}, leads=3)
    result = office.worker().tick()
    assert result.counts == {"digests": 2, "leads": 6, "failed": 0, "unconfirmed": 0}
    assert (result.next_at, result.unfinished) == (None, False)
    assert [office.arrived("smtp"), office.arrived("whatsapp")] == [{BOSS: 1}, {"919812345678": 1}]
    filed = """SELECT "to", "from", status, "entityType", "entityId", "tenantId", "userId", "messageId", subject,
               "sentAt", "createdAt", "htmlBody" LIKE '<!DOCTYPE%' FROM "EmailLog" """
    message = office.world.email(BOSS)
    assert office.crm.execute(filed) == [
        ([BOSS], "hello@chaiwala.example", "sent", "LeadReminder", tenant, tenant, office.admin(tenant),
         message["Message-ID"], "3 leads waiting for a follow-up", NOON, NOON, True)
    ]  # fmt: skip
    assert (office.notifications(), office.remembered()) == (0, 6)
    assert office.counted() == {("email", "sent"): 1, ("whatsapp", "sent"): 1}


def test_once_and_again(office: ReminderOffice) -> None:
    """The same leads not before another checkIntervalHours; later ones in a digest of their own."""
    tenant = office.tenant({"recipientEmails": [BOSS], "checkIntervalHours": 2}, leads=2)
    worker = office.worker()
    assert worker.tick().counts["leads"] == 2
    office.clock.forward(hours=1)
    assert worker.tick().counts["digests"] == 0
    late = office.lead(tenant, quiet_hours=2.5, name="Late Comer")
    assert worker.tick().counts == {"digests": 1, "leads": 1, "failed": 0, "unconfirmed": 0}
    assert "Late Comer" in parts(office.world.email(BOSS))[0]
    office.clock.forward(minutes=59, seconds=59)
    assert worker.tick().counts["digests"] == 0
    office.clock.forward(seconds=1)
    assert worker.tick().counts["leads"] == 2, "the first two, and not the one of an hour ago"
    office.clock.forward(hours=1)
    office.crm.execute('UPDATE "Lead" SET "lastContactedAt" = %s WHERE id = %s', (office.clock(), late))
    assert worker.tick().counts["digests"] == 0, "who was contacted is not quiet"
    assert office.arrived() == {BOSS: 3}


def test_a_tick_a_little_early(office: ReminderOffice) -> None:
    """A tick that begins some milliseconds earlier in its hour than yesterday's delays no digest by an hour."""
    office.tenant({"recipientEmails": [BOSS]}, leads=1)
    worker = office.worker()
    office.clock.forward(milliseconds=90)
    worker.tick()
    office.clock.forward(hours=24, milliseconds=-80)
    assert worker.tick().counts["digests"] == 1


@pytest.mark.parametrize(
    ("created_hours", "contacted_hours", "due"),
    [(24.0, None, True), (23.99, None, False), (100.0, 24.0, True), (100.0, 23.99, False), (23.0, 100.0, False)],
)
def test_quiet_leads(office: ReminderOffice, created_hours: float, contacted_hours: float | None, due: bool) -> None:
    """A lead is due when it was made and, if ever, contacted at least checkIntervalHours ago."""
    tenant = office.tenant({"recipientEmails": [BOSS]})
    lead = office.lead(tenant, quiet_hours=created_hours)
    statement = """UPDATE "Lead" SET "lastContactedAt" = %s - make_interval(secs => 3600 * %s) WHERE id = %s"""
    office.crm.execute(statement, (office.clock(), contacted_hours, lead))
    assert office.worker().tick().counts["leads"] == due


def test_memory_is_dropped(office: ReminderOffice) -> None:
    """At its start a worker forgets leads that are gone and reminders of more than a year ago, and nothing else."""
    office.tenant({"recipientEmails": [BOSS]}, leads=3)
    office.worker().tick()
    first, second, third = (row[0] for row in office.crm.execute("SELECT lead_id FROM worker.lead_reminder"))
    years_ago = "UPDATE worker.lead_reminder SET reminded_at = reminded_at - interval '367 days' WHERE lead_id = %s"
    office.crm.execute(years_ago, (first,))
    office.crm.execute('DELETE FROM "Lead" WHERE id = %s', (second,))
    office.worker()
    assert office.crm.execute("SELECT lead_id FROM worker.lead_reminder") == [(third,)]
