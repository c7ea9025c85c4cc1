"""Digests on WhatsApp as a template (REMINDER_WHATSAPP_TEMPLATE), which also arrives outside of the 24 hours."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from reminder_office import PHONE, ReminderOffice, offices

from sandbox.crm import Crm
from sandbox.world import World
from worker.notifications.delivery import Delivery
from worker.notifications.dispatcher import NotificationDispatcher
from worker.notifications.notification import Notification

TEMPLATE = {"REMINDER_WHATSAPP_TEMPLATE": "lead_reminder:en_US"}
OUTSIDE_24_HOURS, TOO_MANY_MARKETING_MESSAGES = 131047, 131049


@pytest.fixture
def office(crm: Crm, world: World, database_url: str, redis_url: str) -> Iterator[ReminderOffice]:
    yield from offices(crm, world, database_url, redis_url)


def payloads(office: ReminderOffice) -> list[dict[str, Any]]:
    return [json.loads(each.content) for each in office.world.deliveries("whatsapp")]


def reasons(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [str(record.args["reason"]) for record in caplog.records if isinstance(record.args, dict)]


def test_a_digest_leaves_as_the_template(office: ReminderOffice) -> None:
    """At once, with the number of leads and the company, in this order; no name can break a parameter."""
    office.tenant({"recipientPhones": [PHONE]}, leads=3, openai={"companyName": "Chai\n&  \t  Sons"})
    worker = office.worker(**TEMPLATE)
    assert worker.ended() == (1, 0, 0)
    [payload] = payloads(office)
    assert (payload["to"], payload["type"]) == (PHONE, "template")
    assert payload["template"] == {
        "name": "lead_reminder",
        "language": {"code": "en_US"},
        "components": [
            {
                "type": "body",
                "parameters": [{"type": "text", "text": "3"}, {"type": "text", "text": "Chai & Sons"}],
            }
        ],
    }
    assert worker.ended() == (0, 0, 0)


def test_a_text_outside_of_the_24_hours(office: ReminderOffice, caplog: pytest.LogCaptureFixture) -> None:
    """It was surely not sent: the log says what to set, and with that the leads come as the template, once."""
    office.tenant({"recipientPhones": [PHONE]}, leads=2)
    office.world.script("whatsapp", PHONE, code=OUTSIDE_24_HOURS, times=1)
    with caplog.at_level(logging.WARNING):
        assert office.worker().ended() == (0, 1, 0)
    [reason] = reasons(caplog)
    assert reason.startswith("WhatsApp 131047")
    assert reason.endswith("; set REMINDER_WHATSAPP_TEMPLATE=name:language")
    assert office.remembered() == 0
    worker = office.worker(**TEMPLATE)
    assert worker.ended() == (1, 0, 0)
    assert worker.ended() == (0, 0, 0)
    assert [payload["type"] for payload in payloads(office)] == ["template"]


def test_no_template_follows_a_text_without_an_answer(office: ReminderOffice) -> None:
    """It may have arrived: the template comes with the next interval, not before."""
    office.tenant({"recipientPhones": [PHONE]}, leads=2)
    office.world.script("whatsapp", PHONE, action="cut-after", times=1)
    assert office.worker().ended() == (0, 0, 1)
    worker = office.worker(**TEMPLATE)
    for _ in range(3):
        assert worker.ended() == (0, 0, 0)
        office.clock.forward(hours=1)
    assert [payload["type"] for payload in payloads(office)] == ["text"]
    office.clock.forward(hours=24)
    assert worker.ended() == (1, 0, 0)
    assert [payload["type"] for payload in payloads(office)] == ["text", "template"]


def test_no_template_follows_the_text_of_a_dead_worker(
    office: ReminderOffice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had handed the text over: that one is unconfirmed, and nothing is sent in its place."""
    office.tenant({"recipientPhones": [PHONE]}, leads=2)

    def die(self: NotificationDispatcher, digests: list[Notification], *_: object) -> list[list[Delivery]]:
        if digests:
            raise SystemExit("killed")
        return []

    with monkeypatch.context() as dying:
        dying.setattr(NotificationDispatcher, "deliver", die)
        with pytest.raises(SystemExit):
            office.worker().tick()
    office.crm.execute("UPDATE worker.notice SET handed_over = true, renewed_at = renewed_at - interval '301 s'")
    worker = office.worker(**TEMPLATE)
    assert worker.ended() == (0, 0, 0)
    office.clock.forward(minutes=1)
    assert worker.ended() == (0, 0, 1)
    assert worker.ended() == (0, 0, 0)
    assert office.world.total("whatsapp") == 0
    assert (office.notifications(), office.remembered()) == (0, 2)


@pytest.mark.parametrize("code", [132000, 132001, 132015])
def test_a_tenant_whose_account_lacks_the_template(
    office: ReminderOffice, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    """The log says what its account needs; its leads stay due, and no other tenant waits."""
    office.tenant({"recipientPhones": ["9800000001"]}, leads=1)
    office.tenant({"recipientPhones": ["9800000002"]}, leads=1)
    office.world.script("whatsapp", "+919800000001", code=code, times=1)
    worker = office.worker(**TEMPLATE)
    with caplog.at_level(logging.WARNING):
        assert worker.ended() == (1, 1, 0)
    [reason] = reasons(caplog)
    assert reason.startswith(f"WhatsApp {code}")
    assert "; REMINDER_WHATSAPP_TEMPLATE is lead_reminder:en_US: the tenant's WhatsApp account needs" in reason
    assert worker.ended() == (1, 0, 0)


@pytest.mark.parametrize("number", ["+919812345678", "+12025550123"])
def test_a_limit_of_one_persons_messages(office: ReminderOffice, number: str) -> None:
    """131049: not at each tick, but with the next interval."""
    office.tenant({"recipientPhones": [number]}, leads=1)
    office.world.script("whatsapp", number, code=TOO_MANY_MARKETING_MESSAGES, times=1)
    worker = office.worker(**TEMPLATE)
    assert worker.ended() == (0, 1, 0)
    for _ in range(3):
        office.clock.forward(hours=1)
        assert worker.ended() == (0, 0, 0)
    office.clock.forward(hours=24)
    assert worker.ended() == (1, 0, 0)
