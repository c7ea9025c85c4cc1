"""Reservations of quotas in the worker's table: limits, shares, and several processes at once."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from sandbox import accounts
from sandbox.crm import Crm
from sandbox.world import World
from worker.providers.http import HttpPool
from worker.providers.whatsapp_number import WhatsAppNumber
from worker.runtime.db import Database, queries
from worker.sending.account_quotas import whatsapp_quota
from worker.sending.quota import Quota, QuotaLedger, QuotaUsedUp
from worker.sending.whatsapp_limits import LimitUnread, WhatsAppLimits

NOW = datetime.fromisoformat("2026-03-10 12:30")
SMTP = Quota("smtp", "relay.example", "t1", 100)
DAY = timedelta(hours=25)


@pytest.fixture
def quotas(crm: Crm, database_url: str) -> Iterator[QuotaLedger]:
    with closing(Database(database_url, "test")) as db:
        yield QuotaLedger(db)


def used(crm: Crm) -> int:
    return int(crm.value("SELECT coalesce(sum(used), 0) FROM worker.quota"))


def test_the_rest_is_granted_and_then_nothing(crm: Crm, quotas: QuotaLedger) -> None:
    assert quotas.reserve(SMTP, 70, NOW).number == 70
    assert quotas.reserve(SMTP, 70, NOW).number == 30
    with pytest.raises(QuotaUsedUp) as raised:
        quotas.reserve(SMTP, 1, NOW)
    assert raised.value.until == datetime.fromisoformat("2026-03-11 13:00")
    assert used(crm) == 100


def test_accounts_and_kinds_have_quotas_of_their_own(quotas: QuotaLedger) -> None:
    for quota in (SMTP, replace(SMTP, account="other.example"), replace(SMTP, account_kind="gmail")):
        assert quotas.reserve(quota, 500, NOW).number == 100


def test_what_did_not_leave_is_given_back_to_its_hour(crm: Crm, quotas: QuotaLedger) -> None:
    """Also when the hour has changed meanwhile: it must not become free a second time."""
    reservation = quotas.reserve(SMTP, 100, NOW)
    quotas.reserve(replace(SMTP, limit=110), 10, NOW + timedelta(hours=1))
    quotas.give_back(reservation, 40)
    assert crm.execute("SELECT used FROM worker.quota ORDER BY hour") == [(60,), (10,)]
    assert quotas.reserve(SMTP, 100, NOW + timedelta(hours=1)).number == 30


def test_after_a_day_all_of_it_is_there_again_and_old_hours_go(crm: Crm, quotas: QuotaLedger) -> None:
    quotas.reserve(SMTP, 100, NOW)
    assert quotas.reserve(SMTP, 100, NOW + DAY).number == 100
    quotas.reserve(replace(SMTP, limit=200), 100, NOW + 3 * DAY)
    assert crm.value("SELECT count(*) FROM worker.quota") == 1
    quotas.drop_old(NOW + 9 * DAY)
    assert used(crm) == 0


def test_a_tenant_may_use_its_share_while_there_are_others(crm: Crm, quotas: QuotaLedger) -> None:
    """The account's limit holds for all of them; a tenant alone on the server may use everything."""
    shared = replace(SMTP, share=60, tenant_id=crm.add_tenant())
    assert len(quotas.states(shared, NOW)) == 1
    assert quotas.reserve(shared, 70, NOW).number == 70
    other = replace(shared, tenant_id=crm.add_tenant())
    with pytest.raises(QuotaUsedUp):
        quotas.reserve(shared, 1, NOW)
    assert quotas.reserve(other, 70, NOW).number == 30
    [account, share] = quotas.states(other, NOW)
    assert (account.limit, account.left(NOW), share.limit, share.left(NOW)) == (100, 0, 60, 30)


def test_campaigns_leave_what_they_shall_and_notifications_take_the_last_one(quotas: QuotaLedger) -> None:
    quota = replace(SMTP, kept_back=10, share=1)
    assert quotas.reserve(replace(quota, share=None), 500, NOW).number == 90
    taken = [quotas.reserve_notification(quota, NOW) for _ in range(11)]
    assert [bool(each) for each in taken] == [True] * 10 + [False]


def test_campaigns_leave_one_message_for_each_notification_that_waits(crm: Crm, quotas: QuotaLedger) -> None:
    crm.execute(
        "INSERT INTO worker.notice (id, job, channel, address, content, created_at, due_at, renewed_at, waits_for) "
        "SELECT gen_random_uuid(), 'trial', 'email', 'a@x.example', '{}', now(), now(), now(), 'smtp relay.example' "
        "FROM generate_series(1, 3)"
    )
    assert quotas.reserve(SMTP, 500, NOW).number == 97
    with pytest.raises(QuotaUsedUp) as raised:
        quotas.reserve(SMTP, 500, NOW)
    assert NOW < raised.value.until <= NOW + timedelta(minutes=1)  # nobody knows when they will be sent


def test_many_processes_together_reserve_no_more_than_the_limit(crm: Crm, database_url: str) -> None:
    """Each in a session of its own, all at the same time, also over the change of the hour."""

    def take(number: int) -> int:
        granted = 0
        with closing(Database(database_url, f"test {number}")) as db, suppress(QuotaUsedUp):
            while True:
                at = NOW + timedelta(minutes=30 * (number % 2))
                granted += QuotaLedger(db).reserve(replace(SMTP, tenant_id=f"t{number}"), 3, at).number
        return granted

    with ThreadPoolExecutor(8) as threads:
        granted = list(threads.map(take, range(8)))
    assert sum(granted) == used(crm) == 100


def test_hours_of_a_clock_that_was_far_ahead_do_not_count(crm: Crm, quotas: QuotaLedger) -> None:
    """Else a clock that was wrong for a minute would keep an account from sending for a year."""
    quotas.reserve(SMTP, 100, NOW + timedelta(days=365))
    assert quotas.states(SMTP, NOW)[0].left(NOW) == 100
    assert quotas.reserve(SMTP, 100, NOW).number == 100
    assert quotas.used_ratios(NOW) == {"smtp": 1.0, "gmail": 0.0, "whatsapp": 0.0}
    quotas.drop_old(NOW)
    assert used(crm) == 100


def test_hours_of_a_clock_that_was_set_back_count(quotas: QuotaLedger) -> None:
    """Messages left in them."""
    quotas.reserve(SMTP, 70, NOW)
    assert quotas.reserve(SMTP, 100, NOW - timedelta(hours=3)).number == 30


class TwoCampaigns:
    """On WhatsApp, to the same people, whose messages have left."""

    def __init__(self, crm: Crm, people: int) -> None:
        self.crm = crm
        self.ids = [crm.add_campaign("whatsapp", recipients=0) for _ in range(2)]
        self.quota = whatsapp_quota(crm.tenant_id, 10 * people)
        for place, campaign in enumerate(self.ids):
            crm.execute(
                """INSERT INTO "CampaignRecipient" (id, "tenantId", "campaignId", "recipientType", "recipientId",
                       "recipientName", "recipientPhone", status, "createdAt", "updatedAt", "sentAt")
                   SELECT %s || '-' || n, %s, %s, 'lead', 'l' || n, 'Asha', '+9198' || 76500000 + n, 'sent', now(),
                          now(), %s::timestamp + make_interval(secs => %s)
                   FROM generate_series(1, %s) n""",
                (campaign, crm.tenant_id, campaign, NOW, place, people),
            )
        crm.execute('UPDATE "Campaign" SET "sentCount" = %s, "updatedAt" = %s', (people, NOW))
        crm.execute("ANALYZE")

    def batch(self, place: int, size: int) -> list[str]:
        return [f"{self.ids[place]}-{number}" for number in range(1, size + 1)]


def test_two_campaigns_that_write_to_the_same_person_at_once_count_once(
    crm: Crm, quotas: QuotaLedger, database_url: str
) -> None:
    """Not less: of two batches that are settled before either of them is counted, only the later one gives back."""
    campaigns = TwoCampaigns(crm, 10)
    quotas.reserve(campaigns.quota, 20, NOW)
    with closing(Database(database_url, "test")) as db:
        limits = WhatsAppLimits(db, lambda: NOW + timedelta(minutes=1))
        for place, campaign in enumerate(campaigns.ids):
            limits.count_once(campaigns.quota, campaign, campaigns.batch(place, 10))
    assert used(crm) == 10


def test_counting_people_reads_the_other_campaigns_once(crm: Crm, quotas: QuotaLedger, database_url: str) -> None:
    """Not once for each recipient of the batch, which would take seconds beside a large campaign."""
    campaigns = TwoCampaigns(crm, 5_000)
    quotas.reserve(campaigns.quota, 5_000, NOW)
    with closing(Database(database_url, "test")) as db:
        [row] = db.all(
            f"EXPLAIN (ANALYZE, FORMAT JSON) {queries('quota')['count_once']}",
            account_kind="whatsapp",
            account=campaigns.quota.account,
            tenant_id=crm.tenant_id,
            campaign_id=campaigns.ids[1],
            ids=campaigns.batch(1, 100),
            now=NOW,
        )
    [[explained]] = row.values()
    read = sum(
        node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0))
        for node in nodes(explained["Plan"])
        if node.get("Relation Name") == "CampaignRecipient"
    )
    assert 5_000 < read <= 10_100


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for each in plan.get("Plans", ()):
        yield from nodes(each)


def test_many_tenants_whose_limit_is_read_hold_up_the_process_once(
    crm: Crm, world: World, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While Meta does not answer; a second later their campaigns are looked at again."""
    monkeypatch.setattr("worker.sending.whatsapp_limits.QUICK_SECONDS", 2.0)
    world.script("number", action="hang", seconds=60)
    with closing(Database(database_url, "test")) as db, closing(HttpPool(2)) as pool:
        number = WhatsAppNumber(
            world.environment["WHATSAPP_API_URL"], accounts.WHATSAPP_PHONE_ID, accounts.WHATSAPP_TOKEN, pool
        )
        limits = WhatsAppLimits(db, lambda: NOW)
        began = time.monotonic()
        for tenant in range(15):
            with pytest.raises(LimitUnread):
                limits.quota(f"t{tenant}", number)
        assert time.monotonic() - began < 15  # each for itself they wait for 30 s
        world.clear_script()
        limits.close()
