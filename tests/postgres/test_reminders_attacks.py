"""What one tenant, one recipient or one kill could do to all others, and does not."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from reminder_office import BOSS, NOON, ReminderOffice, offices

from sandbox.crm import Crm
from sandbox.world import World
from worker.notifications.delivery import Delivery
from worker.notifications.dispatcher import NotificationDispatcher
from worker.notifications.notification import Notification
from worker.reminders import DEFERRALS_BEFORE_BACKOFF

DEEP = "[" * 1500 + "]" * 1500


@pytest.fixture
def office(crm: Crm, world: World, database_url: str, redis_url: str) -> Iterator[ReminderOffice]:
    yield from offices(crm, world, database_url, redis_url)


@pytest.mark.parametrize(
    "poison", ['{"enabled": true, "checkIntervalHours": 1e5000}', f'{{"enabled": true, "x": {DEEP}}}']
)
def test_settings_that_python_cannot_hold_stop_nobody_else(office: ReminderOffice, poison: str) -> None:
    """A number of thousands of digits or a thousand levels: a warning names that tenant, the others are reminded."""
    bad = office.tenant({"recipientEmails": ["bad@shop.example"]}, leads=1)
    office.crm.execute(
        """UPDATE "Tenant" SET settings = jsonb_build_object('leadReminders', %s::jsonb) WHERE id = %s""",
        (poison, bad),
    )
    office.tenant({"recipientEmails": [BOSS]}, leads=1)
    assert office.worker().ended() == (1, 0, 0)
    assert office.arrived() == {BOSS: 1}


def test_a_digest_that_was_never_sent_is_made_anew(office: ReminderOffice, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its worker died: the next one sends one digest, of the leads that are still quiet by then."""
    tenant = office.tenant({"recipientEmails": [BOSS]})
    contacted, _ = (office.lead(tenant, name=name) for name in ("Contacted Chandra", "Quiet Kiran"))

    def die(self: NotificationDispatcher, digests: list[Notification], *_: object) -> list[list[Delivery]]:
        if digests:
            raise SystemExit("killed")
        return []

    with monkeypatch.context() as dying:
        dying.setattr(NotificationDispatcher, "deliver", die)
        with pytest.raises(SystemExit):
            office.worker().tick()
    assert (office.notifications(), office.remembered()) == (1, 2)
    office.crm.execute("UPDATE worker.notice SET renewed_at = renewed_at - interval '301 s'")
    office.clock.forward(hours=25)
    office.crm.execute(
        'UPDATE "Lead" SET "lastContactedAt" = %s WHERE id = %s', (NOON + timedelta(hours=24), contacted)
    )
    assert office.worker().ended() == (1, 0, 0)
    assert office.arrived() == {BOSS: 1}
    text = str(office.world.email(BOSS))
    assert "Quiet Kiran" in text
    assert "Contacted Chandra" not in text
    assert office.notifications() == 0


def test_deferred_recipients_delay_no_other(office: ReminderOffice) -> None:
    """More than a handful of addresses are greylisted: each of the others gets its digest in the same tick."""
    grey = [f"grey{number}@shop.example" for number in range(2 * DEFERRALS_BEFORE_BACKOFF)]
    good = [f"good{number}@shop.example" for number in range(3)]
    office.tenant({"recipientEmails": [*grey, *good]}, leads=1)
    for address in grey:
        office.world.script("smtp", address, stage="rcpt", status=450, text="4.2.0 greylisted")
    assert office.worker().ended() == (len(good), len(grey), 0)
    assert office.arrived() == dict.fromkeys(good, 1)


def test_an_unavailable_mail_server_is_tried_a_handful_of_times(
    office: ReminderOffice, caplog: pytest.LogCaptureFixture
) -> None:
    """All tenants share it: after a handful of failures the other digests wait for the next tick."""
    tenants = 4 * DEFERRALS_BEFORE_BACKOFF
    for number in range(tenants):
        office.tenant({"recipientEmails": [f"boss{number}@shop.example"]}, leads=1)
    assert office.worker(SMTP_URL="smtp://127.0.0.1:9").ended() == (0, tenants, 0)
    spared = sum("failed through the same account" in str(record.args) for record in caplog.records)
    assert tenants - spared <= 3 * DEFERRALS_BEFORE_BACKOFF
    assert office.worker().ended() == (tenants, 0, 0)
