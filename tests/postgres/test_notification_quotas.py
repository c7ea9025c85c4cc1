"""Reminders and mails about trials use the quotas of campaigns, and come before them."""

from collections.abc import Iterator
from contextlib import closing

import pytest
import trial_office
from reminder_office import BOSS, OTHER, PHONE, ReminderOffice, offices
from trial_office import OWNER, TrialOffice

from sandbox.crm import Crm
from sandbox.world import World
from worker.runtime.db import Database
from worker.sending.quota import Quota, QuotaLedger, QuotaUsedUp


@pytest.fixture
def trials(crm: Crm, world: World, database_url: str, redis_url: str) -> Iterator[TrialOffice]:
    with trial_office.opened(crm, world, database_url, redis_url) as made:
        yield made


@pytest.fixture
def office(crm: Crm, world: World, database_url: str, redis_url: str) -> Iterator[ReminderOffice]:
    yield from offices(crm, world, database_url, redis_url)


@pytest.fixture
def ledger(crm: Crm, database_url: str) -> Iterator[QuotaLedger]:
    with closing(Database(database_url, "test")) as db:
        yield QuotaLedger(db)


def smtp(limit: int) -> Quota:
    """As campaigns of a tenant see the stand-in's mail server."""
    return Quota("smtp", "127.0.0.1", "t", limit)


def test_mails_about_trials_wait_when_nothing_is_left_and_then_come_first(
    trials: TrialOffice, ledger: QuotaLedger
) -> None:
    """No attempt is counted; what becomes free is theirs, however much campaigns ask for."""
    ledger.reserve(smtp(10), 10, trials.clock())
    contact = trials.contact(trials.tenant())
    worker = trials.worker(SMTP_DAILY_LIMIT="10")
    assert worker.tick().counts["told"] == 0
    assert trials.crm.execute("SELECT attempts, waits_for FROM worker.notice") == [(0, "smtp 127.0.0.1")] * 2
    assert trials.mails() == {}
    trials.clock.pass_by(hours=25)
    assert ledger.reserve(smtp(10), 10, trials.clock()).number == 8
    with pytest.raises(QuotaUsedUp):
        ledger.reserve(smtp(10), 1, trials.clock())
    assert worker.tick().counts["told"] == 2
    assert trials.mails() == {contact: 1, OWNER: 1}
    with pytest.raises(QuotaUsedUp):
        ledger.reserve(smtp(10), 1, trials.clock())


def test_mails_about_trials_take_the_last_one(trials: TrialOffice, ledger: QuotaLedger) -> None:
    """Whatever share of it campaigns of the same tenant may use."""
    ledger.reserve(smtp(10), 9, trials.clock())
    trials.tenant()
    assert trials.worker(SMTP_DAILY_LIMIT="10", SMTP_RATE="5").tick().counts["told"] == 1
    assert trials.waiting() == 1
    assert ledger.states(smtp(10), trials.clock())[0].left(trials.clock()) == 0


def test_digests_wait_as_they_are_and_are_made_anew(office: ReminderOffice, ledger: QuotaLedger) -> None:
    """Until then campaigns leave a message for each of them; nothing counts as failed."""
    office.tenant({"recipientEmails": [BOSS, OTHER]}, leads=1)
    ledger.reserve(smtp(10), 10, office.clock())
    worker = office.worker(SMTP_DAILY_LIMIT="10")
    result = worker.tick()
    assert (result.counts["digests"], result.counts["failed"]) == (0, 0)
    assert office.notifications() == 2
    assert result.next_at
    assert not result.unfinished
    office.clock.forward(hours=25)
    assert ledger.reserve(smtp(10), 10, office.clock()).number == 8
    assert worker.ended() == (2, 0, 0)
    assert office.arrived() == {BOSS: 1, OTHER: 1}
    assert office.notifications() == 0


def test_whatsapp_digests_keep_to_the_limit_that_campaigns_have_read(
    office: ReminderOffice, ledger: QuotaLedger
) -> None:
    tenant = office.tenant({"recipientPhones": ["98123 45678"], "sendEmail": False}, leads=1)
    office.crm.execute(
        "INSERT INTO worker.whatsapp_number VALUES (%s, '1', 5, 'GREEN', %s)", (tenant, office.clock())
    )
    quota = Quota("whatsapp", tenant, tenant, 5)
    reservation = ledger.reserve(quota, 5, office.clock())
    worker = office.worker()
    assert worker.ended() == (0, 0, 0)
    ledger.give_back(reservation, 1)
    office.clock.forward(minutes=10)
    assert worker.ended() == (1, 0, 0)
    assert office.arrived("whatsapp") == {PHONE: 1}


def test_a_suppressed_address_uses_nothing(trials: TrialOffice, ledger: QuotaLedger) -> None:
    tenant = trials.tenant()
    trials.crm.execute(
        "SELECT worker.suppress(%s, 'email', %s, 'no such mailbox', 'bounce')", (tenant, trials.contact(tenant))
    )
    assert trials.worker(SMTP_DAILY_LIMIT="10").tick().counts["told"] == 1
    assert trials.crm.value("SELECT sum(used) FROM worker.quota") == 1


def test_a_mail_server_that_takes_nothing_uses_nothing_up(trials: TrialOffice, ledger: QuotaLedger) -> None:
    """What it refused to take now did not leave: else an outage would cost the mails of the day after it."""
    trials.world.script("smtp", stage="mail", status=451, text="4.3.2 later")
    for _ in range(3):
        trials.tenant()
    worker = trials.worker(SMTP_DAILY_LIMIT="10")
    for _ in range(3):
        worker.tick()
        trials.clock.pass_by(hours=2)
    assert trials.crm.value("SELECT max(attempts) FROM worker.notice") > 0
    assert trials.crm.value("SELECT sum(used) FROM worker.quota") == 0


def test_messages_of_a_job_that_does_not_run_keep_nothing_back(trials: TrialOffice, ledger: QuotaLedger) -> None:
    """Campaigns leave a message for each one that waits, and not for ever for those that nobody sends."""
    ledger.reserve(smtp(2), 2, trials.clock())
    trials.tenant()
    trials.worker(SMTP_DAILY_LIMIT="2").tick()
    assert trials.crm.value("SELECT count(*) FROM worker.notice WHERE waits_for IS NOT NULL") == 2
    trials.clock.pass_by(days=3)
    assert ledger.reserve(smtp(2), 2, trials.clock()).number == 2


def test_messages_that_wait_for_their_quota_take_no_tokens(trials: TrialOffice, ledger: QuotaLedger) -> None:
    """They wait for the quota, and not, with an attempt, for a pace that lets one through in 100 seconds."""
    ledger.reserve(smtp(2), 2, trials.clock())
    for _ in range(4):
        trials.tenant()
    trials.worker(SMTP_DAILY_LIMIT="2", SMTP_RATE="0.01").tick()
    rows = trials.crm.execute("SELECT attempts, waits_for FROM worker.notice")
    assert rows == [(0, "smtp 127.0.0.1")] * 5
