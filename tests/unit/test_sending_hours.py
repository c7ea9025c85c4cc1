"""CAMPAIGN_WINDOW: who of a campaign may be written to now, and when the others may be."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from worker.campaigns.batch import Recipient
from worker.campaigns.campaign import Campaign, CampaignTarget
from worker.campaigns.sending_hours import OUTSIDE, SendingHours
from worker.campaigns.settlement import RecipientPolicy
from worker.campaigns.states import RecipientState
from worker.content.campaign_texts import CampaignTexts
from worker.content.windows import Window, next_open
from worker.runtime.settings import load
from worker.sending.accounts import EmailUser
from worker.sending.outcomes import FailureKind, Outcome, OutcomeKind

NIGHT = datetime(2026, 11, 23, 18, 30)  # midnight in India, 13:30 in New York  # noqa: DTZ001
MORNING = datetime(2026, 11, 24, 3, 30)  # 09:00 in India  # noqa: DTZ001
USER = EmailUser("u-1", "Asha", "asha@shop.example", "t-1", "Chaiwala", {})
INDIAN, AMERICAN, SHIP = "+919876543210", "+12125550100", "+870773111632"


def campaign(channel: str = "email", timezone: str | None = None) -> Campaign:
    texts = CampaignTexts(tenant_id="t", id="c-1", name="Diwali", channel=channel)
    made = Campaign(texts, CampaignTarget("all", None), USER, "u-1", prepared=True, backoffs=0, started_at=NIGHT)
    return replace(made, timezone=timezone)


def hours(window: str = "09:00-21:00", now: datetime = NIGHT) -> SendingHours:
    return SendingHours(Window.parse(window), lambda: now)


def obstacle(of: Campaign, phone: str | None, window: str = "09:00-21:00", now: datetime = NIGHT) -> Outcome | None:
    found = hours(window, now).of_batch(of, {"r-1": phone})
    assert found is not None
    return found.obstacle("r-1")


def test_without_a_window_nobody_waits() -> None:
    always = SendingHours(None, lambda: NIGHT)
    assert always.opens_at(campaign()) is None
    assert always.of_batch(campaign("whatsapp"), {"r-1": INDIAN}) is None


@pytest.mark.parametrize(
    ("timezone", "now", "opens_at"),
    [
        (None, NIGHT, MORNING),  # as for business hours: India's
        ("Asia/Kolkata", NIGHT, MORNING),
        ("Asia/Kolkata", MORNING, None),
        ("Asia/Kolkata", MORNING - timedelta(seconds=1), MORNING),
        ("America/New_York", NIGHT, None),
        ("America/New_York", MORNING, datetime(2026, 11, 24, 14)),  # noqa: DTZ001
    ],
)
def test_e_mail_goes_by_the_tenants_clock(timezone: str | None, now: datetime, opens_at: datetime | None) -> None:
    assert hours(now=now).opens_at(campaign(timezone=timezone)) == opens_at
    found = obstacle(campaign(timezone=timezone), None, now=now)
    assert (found is None) is (opens_at is None)


def test_a_zone_that_cannot_be_read_is_an_error() -> None:
    with pytest.raises(ValueError, match="is 'Mars'; allowed"):
        hours().opens_at(campaign(timezone="Mars"))


def test_whatsapp_goes_by_the_recipients_clock() -> None:
    """In one campaign, at the same moment, whatever the tenant's zone is."""
    of = campaign("whatsapp", "America/New_York")
    assert hours().opens_at(of) is None
    assert obstacle(of, AMERICAN) is None
    found = obstacle(of, INDIAN)
    assert found is not None
    assert (found.kind, found.reason) == (OutcomeKind.NOT_SENT, f"{OUTSIDE} (09:00-21:00)")
    assert found.at + timedelta(seconds=found.delay_seconds or 0) == MORNING


def test_a_number_of_no_place() -> None:
    """It goes by the tenant's clock; where that cannot be read, it fails with what is wrong."""
    assert obstacle(campaign("whatsapp", "America/New_York"), SHIP) is None
    assert obstacle(campaign("whatsapp", "Asia/Kolkata"), SHIP) is not None
    failed = obstacle(campaign("whatsapp", "Mars"), SHIP)
    assert failed is not None
    assert (failed.kind, failed.fault) == (OutcomeKind.REFUSED, FailureKind.CONTENT)
    assert obstacle(campaign("whatsapp", "Mars"), AMERICAN) is None


def test_hours_that_never_come_fail_the_recipient() -> None:
    """Somewhere in Russia it is never 10:00-12:00 everywhere."""
    failed = obstacle(campaign("whatsapp"), "+79161234567", "10:00-12:00")
    assert failed is not None
    assert (failed.kind, failed.fault) == (OutcomeKind.REFUSED, FailureKind.CONTENT)
    assert "CAMPAIGN_WINDOW" in (failed.reason or "")


@pytest.mark.parametrize("phone", [None, "", "nonsense", "12"])
def test_what_is_no_number_does_not_wait(phone: str | None) -> None:
    """No message can be made for it, and that is what its recipient fails for."""
    assert obstacle(campaign("whatsapp"), phone) is None


def test_a_recipient_that_waits_loses_no_attempt() -> None:
    """It is pending again, due when its hours begin, to the second."""
    policy = RecipientPolicy(load({"DATABASE_URL": "postgresql://x/y"}, "campaign"))
    recipient = Recipient("r-1", "Asha", None, INDIAN, attempts=3)
    waits = obstacle(campaign("whatsapp"), INDIAN)
    assert waits is not None
    settled = policy.settled(recipient, waits, NIGHT + timedelta(seconds=7), can_ask=False)
    assert (settled.state, settled.at, settled.attempts) == (RecipientState.PENDING, MORNING, 3)
    assert settled.reason == waits.reason


def test_the_search_for_an_opening_is_made_once_for_all_numbers_of_the_same_zones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where it finds none in a year it takes half a second, for Russia's 16 zones say: not for each recipient."""
    searches = []

    def counted(*arguments: Any) -> datetime | None:
        searches.append(arguments)
        return next_open(*arguments)

    monkeypatch.setattr("worker.campaigns.sending_hours.next_open", counted)
    now = NIGHT
    phones = {f"r-{number}": f"+7916123456{number}" for number in range(9)}
    of_process = SendingHours(Window.parse("10:00-12:00"), lambda: now)
    for _ in range(2):
        found = of_process.of_batch(campaign("whatsapp"), phones)
        assert found is not None
        outcomes = [found.obstacle(recipient_id) for recipient_id in phones]
        assert {each and each.kind for each in outcomes} == {OutcomeKind.REFUSED}
    assert len(searches) == 1


def test_an_opening_that_is_over_is_looked_for_again() -> None:
    now = NIGHT
    of_process = SendingHours(Window.parse("09:00-21:00"), lambda: now)
    found = of_process.of_batch(campaign("whatsapp"), {"r-1": INDIAN})
    assert found is not None
    for days in (0, 1, 5):
        now = NIGHT + timedelta(days=days)
        waits = found.obstacle("r-1")
        assert waits is not None
        assert waits.at + timedelta(seconds=waits.delay_seconds or 0) == MORNING + timedelta(days=days)
