"""What becomes of digests that fail: tried again, given up, or unconfirmed."""

import logging
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from reminder_office import BOSS, OTHER, PHONE, ReminderOffice, offices

from sandbox.crm import Crm
from sandbox.world import World


@pytest.fixture
def office(crm: Crm, world: World, database_url: str, redis_url: str) -> Iterator[ReminderOffice]:
    yield from offices(crm, world, database_url, redis_url)


@pytest.mark.parametrize(
    "refusal",
    [
        {"status": 550, "text": "5.7.1 not now"},
        {"status": 451},
        {"stage": "data", "status": 554},
        {"action": "cut-before"},
    ],
)
def test_one_that_fails_is_tried_again(
    office: ReminderOffice, refusal: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """A recipient whose channel fails is due again at the next tick; the others are not."""
    office.tenant({"recipientEmails": [BOSS, OTHER], "recipientPhones": [PHONE]}, leads=2)
    office.world.script("smtp", BOSS, **refusal)
    worker = office.worker()
    with caplog.at_level(logging.WARNING):
        assert worker.ended() == (2, 1, 0)
    assert len(caplog.records) == 1, "one line, however many leads"
    assert (office.notifications(), office.remembered()) == (0, 4)
    assert worker.ended() == (0, 1, 0)
    office.world.clear_script()
    assert worker.ended() == (1, 0, 0)
    assert office.arrived() == {BOSS: 1, OTHER: 1}
    assert office.arrived("whatsapp") == {PHONE: 1}
    assert office.counted() == {("email", "sent"): 2, ("email", "failed"): 2, ("whatsapp", "sent"): 1}


def test_what_was_sent_before_stays_remembered(office: ReminderOffice) -> None:
    """A digest that fails makes its own leads due again, not those of the digest before it."""
    tenant = office.tenant({"recipientEmails": [BOSS]}, leads=1)
    worker = office.worker()
    worker.ended()
    office.lead(tenant, name="New One")
    office.world.script("smtp", BOSS, status=451)
    assert worker.ended() == (0, 1, 0)
    office.world.clear_script()
    assert worker.tick().counts["leads"] == 1


def test_nothing_configured(office: ReminderOffice) -> None:
    """Without WhatsApp's settings the digest waits until they are there; e-mail goes out."""
    tenant = office.tenant({"recipientEmails": [BOSS], "recipientPhones": [PHONE]}, leads=1, whatsapp={})
    worker = office.worker()
    assert worker.ended() == (1, 1, 0)
    office.crm.execute(
        "UPDATE \"Tenant\" SET settings = jsonb_set(settings, '{whatsapp}', %s::jsonb) WHERE id = %s",
        ('{"token": "sandbox-x", "phoneId": "10555"}', tenant),
    )
    assert worker.ended() == (1, 0, 0)


def test_opted_out(office: ReminderOffice) -> None:
    """Who opted out gets no more messages of that tenant; another tenant has a list of its own."""
    for _ in range(2):
        office.tenant({"recipientPhones": [PHONE]}, leads=1)
    office.world.script("whatsapp", PHONE, times=1, status=400, code=131050)
    worker = office.worker()
    assert worker.ended() == (1, 1, 0)
    assert (
        office.one("SELECT count(*) FROM worker.suppression WHERE channel = 'whatsapp' AND address = %s", PHONE) == 1
    )
    office.clock.forward(hours=25)
    assert worker.ended() == (1, 0, 0)
    assert office.notifications() == 0
    assert office.counted("suppressions_total") == {("whatsapp", "provider"): 1}


def test_no_such_mailbox(office: ReminderOffice) -> None:
    """A hard bounce puts the address on the tenant's list: the next digest is not tried."""
    office.tenant({"recipientEmails": [BOSS]}, leads=1)
    office.world.script("smtp", BOSS, times=1, status=550, text="5.1.1 no such user")
    worker = office.worker()
    assert worker.ended() == (0, 1, 0)
    listed = office.crm.execute("SELECT channel, address, source, code, until FROM worker.suppression")
    assert listed == [("email", BOSS, "bounce", "550 5.1.1", None)]
    office.clock.forward(hours=25)
    assert worker.ended() == (0, 0, 0)
    assert office.world.total("smtp") == 0


@pytest.mark.parametrize("answer", [{"status": 500, "code": 131000}, {"status": 403, "code": 131031}])
def test_a_dead_provider_of_one_tenant(office: ReminderOffice, answer: dict[str, int]) -> None:
    """A tenant whose provider defers or rejects everything is tried a handful of times; the others are served."""
    many = [f"98{number:08}" for number in range(40)]
    bad = office.tenant({"recipientPhones": many}, leads=1)
    good = [office.tenant({"recipientPhones": [f"97{number:08}"]}, leads=1) for number in range(20)]
    for number in many:
        office.world.script("whatsapp", f"+91{number}", **answer)
    assert office.worker().ended() == (20, 40, 0)
    assert 5 <= len(office.world.refusals("whatsapp")) <= 5 + 8
    assert office.one("SELECT count(DISTINCT tenant_id) FROM worker.lead_reminder") == len(good)
    assert bad


def test_a_slow_provider_of_one_tenant(office: ReminderOffice) -> None:
    """While one tenant's provider is slow, the messages of all others are sent."""
    slow = [f"98{number:08}" for number in range(6)]
    office.tenant({"recipientPhones": slow}, leads=1)
    for number in range(30):
        office.tenant({"recipientEmails": [f"a{number}@x.example"]}, leads=1)
    for number in slow:
        office.world.script("whatsapp", f"+91{number}", action="hang", seconds=1.0)
    assert office.worker().ended() == (36, 0, 0)
    first = min(datetime.fromisoformat(each.at) for each in office.world.deliveries("whatsapp"))
    last = max(datetime.fromisoformat(each.at) for each in office.world.deliveries("smtp"))
    assert last < first + timedelta(seconds=1), "before its first message was answered"


@pytest.mark.parametrize(("policy", "again"), [("fail", 0), ("resend", 1)])
@pytest.mark.parametrize(("channel", "address"), [("smtp", BOSS), ("whatsapp", PHONE)])
def test_unconfirmed(office: ReminderOffice, channel: str, address: str, policy: str, again: int) -> None:
    """No answer came: not sent again by default, and due at the next tick with UNCONFIRMED_SENDS=resend."""
    office.tenant({"recipientEmails": [BOSS]} if channel == "smtp" else {"recipientPhones": [PHONE]}, leads=2)
    office.world.script(channel, address, action="cut-after", times=1)
    worker = office.worker(UNCONFIRMED_SENDS=policy)
    assert worker.ended() == (0, 0, 1)
    assert office.notifications() == 0
    assert worker.ended() == (again, 0, 0)
    assert office.arrived(channel) == {address: 1 + again}
    if not again:
        office.clock.forward(hours=24)
        assert worker.ended() == (1, 0, 0)
