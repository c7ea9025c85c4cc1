"""Campaigns, reminders, mails about trials and calls obey the list of suppressed addresses when they send."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest
from desk import OpenDesk, WatchedDatabase, account, another_tenant, number
from one_run import OneRun
from reminder_office import ReminderOffice
from reminder_office import offices as reminder_offices
from suppressions import SOURCES, suppress, unsuppress
from trial_office import OWNER, TrialOffice
from trial_office import opened as trial_offices

from sandbox.crm import Crm, utc_now
from sandbox.world import World
from worker.campaign import CampaignJob
from worker.runtime.counter_readings import read_all
from worker.runtime.db import Database, Row, queries
from worker.runtime.redis_client import connect
from worker.sending.suppression import LOOK_VALID_SECONDS

DEADLINE_SECONDS = 30.0
BOSS = "boss@chaiwala.example"


class ActingDatabase(Database):
    """A job's connection; the test acts once, right after a statement whose text it gives."""

    def __init__(self, url: str, statement: str, act: Callable[[], object]) -> None:
        super().__init__(url, "test")
        self._statement = statement
        self._act: Callable[[], object] | None = act

    def execute(self, statement: str, /, **parameters: Any) -> list[Row]:
        rows = super().execute(statement, **parameters)
        if statement == self._statement and self._act:
            act, self._act = self._act, None
            act()
        return rows


class LookedDatabase(Database):
    """A campaign job's connection: ``acted`` is set when the job went on after it had found suppressed addresses."""

    def __init__(self, url: str) -> None:
        super().__init__(url, "crm-worker campaign")
        self.acted = threading.Event()
        self._found = False

    def execute(self, statement: str, /, **parameters: Any) -> list[Row]:
        if self._found:
            self.acted.set()
        rows = super().execute(statement, **parameters)
        self._found = self._found or bool(rows and statement == queries("sending")["suppressed_addresses"])
        return rows


def arrived(world: World, inbox: str) -> dict[str, int]:
    """How many messages each address got, as the CRM writes it."""
    return {f"+{key}" if inbox == "whatsapp" else key: count for key, count in world.counts(inbox).items()}


SPELLED = {"email": lambda address: f" {address.upper()}", "whatsapp": lambda phone: f"0{phone[3:8]} {phone[8:]}"}


@pytest.mark.parametrize("channel", ["email", "whatsapp"])
def test_suppressed_in_mid_campaign(
    crm: Crm, world: World, run_once: OneRun, database_url: str, redis_url: str, channel: str
) -> None:
    """Who is claimed, and not handed over yet, gets no message. Another tenant's list does not count."""
    inbox = "smtp" if channel == "email" else "whatsapp"
    column = "recipientEmail" if channel == "email" else "recipientPhone"
    world.set_rates(whatsapp_rate=0)
    campaign = crm.add_campaign(channel, recipients=12)
    everybody = [
        address
        for (address,) in crm.execute(
            f'SELECT "{column}" FROM "CampaignRecipient" WHERE "campaignId" = %s ORDER BY id', (campaign,)
        )
    ]
    world.script(inbox, action="hang", seconds=DEADLINE_SECONDS, times=1)
    database = LookedDatabase(database_url)
    settings = {"CAMPAIGN_CONCURRENCY": "1", "WHATSAPP_RATE": "1000"}
    with ThreadPoolExecutor() as threads:
        run = threads.submit(run_once, "campaign", CampaignJob, database=database, **settings)
        while not world.counts(inbox):
            assert not run.done(), "nothing was sent"
            time.sleep(0.05)
        on_the_wire = arrived(world, inbox)
        stopped = [each for each in everybody if each not in on_the_wire][:6]
        other = crm.add_tenant("Other Traders")
        for each in everybody:
            suppress(crm, other, channel, each)
        for each in stopped:
            suppress(crm, crm.tenant_id, channel, SPELLED[channel](each), "unsubscribe")
        assert database.acted.wait(DEADLINE_SECONDS)
        world.clear_script()
        assert run.result(DEADLINE_SECONDS) == 0
    assert arrived(world, inbox) == dict.fromkeys(set(everybody) - set(stopped), 1)
    found = crm.execute(
        f'SELECT "{column}", status, "errorMessage" FROM "CampaignRecipient" WHERE status <> \'sent\''
    )
    assert sorted(found) == sorted((each, "failed", "opted out: STOP") for each in stopped)
    assert crm.execute('SELECT status, "sentCount", "failedCount" FROM "Campaign"') == [("completed", 6, 6)]


class WaitingDatabase(Database):
    """A campaign job's connection. The second look for campaigns that are ready lasts as long as ``wait`` does."""

    def __init__(self, url: str, wait: Callable[[], None]) -> None:
        super().__init__(url, "crm-worker campaign")
        self._wait = wait
        self._looks = 0

    def execute_prepared(self, name: str, statement: str, /, **parameters: Any) -> list[Row]:
        self._looks += name == "ready"
        if name == "ready" and self._looks == 2:
            self._wait()
        return super().execute_prepared(name, statement, **parameters)


def test_suppressed_while_the_job_waits_for_its_database(
    crm: Crm, world: World, run_once: OneRun, database_url: str
) -> None:
    """However long a statement takes: nobody is looked up meanwhile, so no message leaves until that is done."""
    recipients = 40
    campaign = crm.add_campaign(recipients=recipients)
    world.script("smtp", action="hang", seconds=0.3)

    def wait() -> None:
        wait_for(lambda: world.counts("smtp"), "a message arrives")
        people = {address for (address,) in crm.execute('SELECT "recipientEmail" FROM "CampaignRecipient"')}
        for each in people - set(world.counts("smtp")):
            suppress(crm, crm.tenant_id, "email", each, "unsubscribe")
        arrived_at = [time.monotonic(), 0.0]

        def has_stopped() -> bool:
            """Nothing has arrived for so long, or all of it."""
            number = world.counts("smtp").total()
            if number != arrived_at[1]:
                arrived_at[:] = [time.monotonic(), number]
            return number == recipients or time.monotonic() - arrived_at[0] > 3 * LOOK_VALID_SECONDS

        wait_for(has_stopped, "no more messages arrive")

    settings = {"CAMPAIGN_CONCURRENCY": "1", "CAMPAIGN_BATCH_DELAY": "1s"}
    assert run_once("campaign", CampaignJob, database=WaitingDatabase(database_url, wait), **settings) == 0
    counts = crm.counts(campaign)
    assert counts["failed"] >= 1
    assert counts["sent"] + counts["failed"] == recipients
    assert world.counts("smtp").total() == counts["sent"]


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_a_campaign_obeys_every_source_while_it_lasts(crm: Crm, world: World, run_once: OneRun) -> None:
    """Several entries of one address count once; one that ended, or was taken back, does not count."""
    people = [f"{name}@x.example" for name in ("many", "ended", "back", "free", *SOURCES)]
    for source in SOURCES:
        suppress(crm, crm.tenant_id, "email", "many@x.example", source)
        suppress(crm, crm.tenant_id, "email", f"{source}@x.example", source)
    suppress(crm, crm.tenant_id, "email", "ended@x.example", "bounce", until=utc_now() - timedelta(seconds=1))
    suppress(crm, crm.tenant_id, "email", "back@x.example", "bounce")
    unsuppress(crm, crm.tenant_id, "email", "back@x.example")
    suppress(crm, crm.tenant_id, "whatsapp", "9876543210")
    crm.add_campaign(recipients=[{"recipientEmail": each} for each in people])
    assert run_once("campaign", CampaignJob) == 0
    assert world.counts("smtp") == {"ended@x.example": 1, "back@x.example": 1, "free@x.example": 1}
    assert crm.execute('SELECT "sentCount", "failedCount" FROM "Campaign"') == [(3, 1 + len(SOURCES))]


def test_a_providers_opt_out_has_its_source_and_code(
    crm: Crm, world: World, run_once: OneRun, redis_url: str
) -> None:
    """And it lasts, also for an address that was on the list for some time only."""
    first, second = "+919812345678", "+919812345679"
    suppress(crm, crm.tenant_id, "whatsapp", second, "provider", until=utc_now() - timedelta(days=1))
    for each in (first, second):
        world.script("whatsapp", each, status=400, code=131050)
    campaign = crm.add_campaign("whatsapp", recipients=[{"recipientPhone": each} for each in (first, second)])
    assert run_once("campaign", CampaignJob, WHATSAPP_RATE="1000") == 0
    assert crm.execute(
        "SELECT address, source, campaign_id, code, until FROM worker.suppression ORDER BY address"
    ) == [(each.removeprefix("+"), "provider", campaign, "131050", None) for each in (first, second)]
    with closing(connect(redis_url)) as client:
        [counted] = [each for each in read_all(client).counters if each.metric == "suppressions_total"]
    assert (counted.labels, counted.value) == ({"channel": "whatsapp", "source": "provider"}, 2)


@pytest.fixture
def reminders(crm: Crm, world: World, database_url: str, redis_url: str) -> Iterator[ReminderOffice]:
    yield from reminder_offices(crm, world, database_url, redis_url)


@pytest.fixture
def trials(crm: Crm, world: World, database_url: str, redis_url: str) -> Iterator[TrialOffice]:
    with trial_offices(crm, world, database_url, redis_url) as made:
        yield made


@pytest.mark.parametrize("source", SOURCES)
def test_reminders_obey_all_but_unsubscriptions(reminders: ReminderOffice, source: str) -> None:
    """Those are from campaigns. Another tenant's list does not count, nor does an entry that ended."""
    tenant = reminders.tenant({"recipientEmails": [BOSS]}, leads=1)
    other = reminders.tenant({"recipientEmails": ["other@x.example"]}, leads=1)
    suppress(reminders.crm, tenant, "email", BOSS.upper(), source)
    suppress(reminders.crm, tenant, "email", "other@x.example", source)
    suppress(reminders.crm, other, "email", BOSS, source)
    suppress(reminders.crm, other, "email", "other@x.example", source, until=utc_now() - timedelta(days=1))
    sent = {"other@x.example": 1} | ({BOSS: 1} if source == "unsubscribe" else {})
    assert reminders.worker().ended() == (len(sent), 0, 0)
    assert reminders.arrived() == sent


def test_a_reminder_whose_recipient_is_suppressed_after_the_claim(
    reminders: ReminderOffice, database_url: str
) -> None:
    """It does not leave, and its leads are forgotten: they are in the first digest after the entry is taken back."""
    tenant = reminders.tenant({"recipientEmails": [BOSS]}, leads=1)
    database = ActingDatabase(
        database_url,
        queries("reminders")["claim"],
        lambda: suppress(reminders.crm, tenant, "email", BOSS, "complaint"),
    )
    worker = reminders.worker(database)
    assert worker.ended() == (0, 1, 0)
    assert (reminders.arrived(), reminders.notifications(), reminders.remembered()) == ({}, 0, 0)
    assert worker.ended() == (0, 0, 0)
    unsuppress(reminders.crm, tenant, "email", BOSS)
    assert worker.ended() == (1, 0, 0)


@pytest.mark.parametrize("source", SOURCES)
def test_mails_about_trials_obey_all_but_unsubscriptions(trials: TrialOffice, source: str) -> None:
    """The operator's summary is sent in any case, and another tenant's list does not count."""
    tenant, other = trials.tenant(), trials.tenant()
    contact = trials.contact(tenant)
    suppress(trials.crm, tenant, "email", contact.upper(), source)
    suppress(trials.crm, tenant, "email", OWNER, source)
    suppress(trials.crm, tenant, "email", trials.contact(other), source)
    suppress(trials.crm, other, "email", contact, source)
    worker = trials.worker()
    worker.tick()
    sent = {OWNER, trials.contact(other)} | ({contact} if source == "unsubscribe" else set())
    assert trials.mails().keys() == sent
    assert trials.waiting() == 0
    assert trials.status(tenant) == "SUSPENDED"


def test_calls_obey_every_source_while_it_lasts(open_desk: OpenDesk) -> None:
    """The queue's row says why; several entries of one number do no harm."""
    desk = open_desk()
    crm = desk.crm
    crm.add_call_settings()
    for source in SOURCES:
        suppress(crm, crm.tenant_id, "call", number(1), source, reason="do not call")
    suppress(crm, crm.tenant_id, "call", number(2), until=utc_now() - timedelta(seconds=1))
    suppress(crm, crm.tenant_id, "whatsapp", number(3))
    queued = [crm.add_call(phoneNumber=number(place)) for place in (1, 2, 3)]
    assert desk.work() == {"failed": 1, "placed": 2}
    assert desk.row(queued[0])["errorMessage"] == "not called: do not call"
    assert [desk.status(each) for each in queued] == ["failed", "completed", "completed"]


def test_a_number_that_is_suppressed_before_the_claim(open_desk: OpenDesk) -> None:
    """After it was chosen: it is not claimed, and fails at the next look."""
    desk = open_desk()
    crm = desk.crm
    crm.add_call_settings()
    queued = crm.add_call(phoneNumber=number(1))
    desk.database.after["blocked_numbers"] = lambda: suppress(crm, crm.tenant_id, "call", number(1))
    desk.work()
    assert (desk.placed(), desk.status(queued)) == ([], "failed")


def test_numbers_that_are_suppressed_while_their_calls_wait_for_a_thread(
    open_desk: OpenDesk, calls_database_url: str
) -> None:
    """They are claimed, and not called: only those that were on the wire are placed, and another tenant's."""
    database = WatchedDatabase(calls_database_url)
    desk = open_desk(database)
    crm = desk.crm
    crm.add_call_settings(maxConcurrentCalls=50)
    tenants = [crm.tenant_id, *(another_tenant(crm, **account(place)) for place in range(1, 4))]
    queued = [
        (tenant, number(10 * place + each), crm.add_call(tenant, phoneNumber=number(10 * place + each)))
        for place, tenant in enumerate(tenants)
        for each in range(5)
    ]
    desk.world.script("twilio", action="hang", seconds=2.0)

    def suppress_all() -> None:
        database.after.pop("commit", None)
        for tenant, to, _ in queued:
            suppress(crm, tenant, "call", to, reason="do not call")

    database.after["commit"] = suppress_all
    desk.tick()
    desk.world.clear_script()
    desk.work()
    placed = set(desk.placed())
    assert len(placed) <= 8
    assert {to for _, to, key in queued if desk.status(key) == "completed"} == placed
    failed = [desk.row(key)["errorMessage"] for _, to, key in queued if to not in placed]
    assert set(failed) == {"not called: do not call"}
    assert desk.claims() == 0
