"""Whom a campaign is for: recipients built from its target, no address twice, and no other user's people."""

import contextlib
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from sandbox.crm import Crm, utc_now
from worker.campaign import CampaignJob
from worker.campaigns.campaign import Campaign, CampaignTarget
from worker.campaigns.link_writer import LinkWriter
from worker.campaigns.run import CampaignRuns
from worker.campaigns.targets import prepare, target_parameters
from worker.campaigns.transport import TransportRouter
from worker.content.addresses import parse_address
from worker.content.phones import whatsapp_id
from worker.errors import CampaignRejected
from worker.runtime.counters import Counters
from worker.runtime.db import Database, queries
from worker.runtime.events import LiveEvents
from worker.runtime.job import JobContext
from worker.runtime.lock import Lock
from worker.runtime.loop import Loop
from worker.runtime.redis_client import connect
from worker.runtime.settings import load
from worker.runtime.signals import Signals

SQL = queries("campaign")


class Targets:
    """Starts campaigns and builds their recipients, with the job's own statements."""

    def __init__(self, crm: Crm, database_url: str, redis_url: str, folder: Path) -> None:
        self.crm = crm
        environ = {
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "STATE_DIR": str(folder),
            "SMTP_URL": "smtp://127.0.0.1:1",
            "APP_URL": "https://crm.example.in",
        }
        self.settings = load(environ, "campaign")
        self.db = Database(database_url, "test")
        self.client = connect(redis_url)
        self.transports = TransportRouter(self.settings, self.client, utc_now)
        self.runs = CampaignRuns(self.db, LiveEvents(self.client), Counters(self.client, "campaign"), utc_now)
        self.links = LinkWriter(self.db, utc_now)

    def close(self) -> None:
        self.db.close()
        self.transports.close()
        self.client.close()

    def campaign(self, target: str, channel: str = "email", filters: Any = None, **more: Any) -> str:
        return self.crm.add_campaign(channel, targetType=target, targetFilters=filters, **more)

    def prepared(self, campaign_id: str) -> str:
        """The campaign, started and with its recipients ready."""
        self.runs.start_due(utc_now())
        campaign = self.find(campaign_id)
        prepare(self.db, campaign, utc_now())
        self.links.write(campaign, self.transports.route(campaign).content)
        return campaign_id

    def find(self, campaign_id: str) -> Campaign:
        found = self.runs.find(campaign_id)
        assert found
        return found

    def chosen(self, *arguments: Any, **columns: Any) -> set[str]:
        """Ids of the leads and contacts that a campaign is for."""
        campaign_id = self.prepared(self.campaign(*arguments, **columns))
        return {row["recipientId"] for row in self.recipients(campaign_id)}

    def recipients(self, campaign_id: str) -> list[dict[str, Any]]:
        statement = 'SELECT * FROM "CampaignRecipient" WHERE "campaignId" = %(id)s ORDER BY id'
        return self.db.all(statement, id=campaign_id)

    def status(self, campaign_id: str) -> tuple[str, int]:
        row = self.db.one('SELECT status, "totalRecipients" FROM "Campaign" WHERE id = %(id)s', id=campaign_id)
        assert row
        return row["status"], row["totalRecipients"]

    def run_job(self) -> int:
        """The real job, once."""
        signals = Signals()
        counters = Counters(self.client, "campaign")
        lock = Lock([self.client], "campaign-scheduler")
        context = JobContext("campaign", self.settings, self.client, lock, counters, signals)
        try:
            return Loop(CampaignJob(context), context).run(once=True)
        finally:
            signals.close()

    def logged(self, campaign_id: str) -> list[tuple[str, str]]:
        statement = (
            'SELECT action, message FROM "CampaignLog" WHERE "campaignId" = %(id)s ORDER BY "createdAt", action'
        )
        return [(row["action"], row["message"]) for row in self.db.all(statement, id=campaign_id)]


@pytest.fixture
def targets(crm: Crm, database_url: str, redis_url: str, tmp_path: Path) -> Iterator[Targets]:
    with closing(Targets(crm, database_url, redis_url, tmp_path)) as made:
        yield made


def test_each_target(crm: Crm, targets: Targets) -> None:
    """'leads' are leads, 'contacts' contacts, 'all' both, 'tags' both with any of the tags."""
    lead, tagged_lead = crm.add_lead(tags=[]), crm.add_lead(tags=["vip", "old"])
    contact, tagged_contact = crm.add_contact(tags=None), crm.add_contact(tags=["vip"])
    assert targets.chosen("leads") == {lead, tagged_lead}
    assert targets.chosen("contacts") == {contact, tagged_contact}
    assert targets.chosen("all") == {lead, tagged_lead, contact, tagged_contact}
    assert targets.chosen("tags", filters={"tags": ["vip", "none"]}) == {tagged_lead, tagged_contact}
    assert targets.chosen("tags", filters={"tags": ["old"]}) == {tagged_lead}


def test_tags_without_tags(crm: Crm, targets: Targets) -> None:
    """A campaign for tags that names none is for no one, not for everybody."""
    crm.add_lead()
    assert targets.chosen("tags") == set()
    assert targets.chosen("tags", filters={"tags": []}) == set()


def test_what_a_recipient_row_holds(crm: Crm, targets: Targets) -> None:
    """A built row says who it is, starts pending, and has all that the CRM's schema asks for."""
    lead = crm.add_lead(name="Asha Rao", email="asha@a.example", phoneNormalized="+919812345678")
    contact = crm.add_contact(name="Ravi", email="ravi@a.example")
    campaign_id = targets.prepared(targets.campaign("all"))
    rows = {row["recipientId"]: row for row in targets.recipients(campaign_id)}
    assert rows[lead]["recipientType"] == "lead"
    assert rows[contact]["recipientType"] == "contact"
    row = rows[lead]
    assert (row["recipientName"], row["recipientEmail"]) == ("Asha Rao", "asha@a.example")
    assert row["recipientPhone"] == "+919812345678"
    assert (row["status"], row["tenantId"], row["clickedCount"]) == ("pending", crm.tenant_id, 0)
    assert row["createdAt"] == row["updatedAt"]
    assert abs((row["updatedAt"] - utc_now()).total_seconds()) < 60
    assert targets.status(campaign_id) == ("running", 2)


@pytest.mark.parametrize(
    ("filters", "numbers"),
    [
        ({"status": ["new"]}, {0, 2}),
        ({"status": ["new", "won"]}, {0, 1, 2}),
        ({"status": "won"}, {1}),
        ({"status": []}, {0, 1, 2, 3}),
        ({"priority": ["high"]}, {1, 2}),
        ({"status": ["new"], "priority": ["high"]}, {2}),
        ({"tags": ["b", "c"]}, {1, 2}),
        ({"assignedTo": "ravi"}, {3}),
        ({"assignedTo": ""}, {0, 1, 2, 3}),
        ({"createdAfter": "2026-01-02T00:00:00.000Z"}, {2, 3}),
        ({"createdAfter": "2026-01-02T05:30:00+05:30"}, {2, 3}),
        ({"createdAfter": "2026-01-03"}, {3}),
        ({"searchQuery": "ASHA"}, {0}),
        ({"searchQuery": "gmail"}, {1}),
        ({"searchQuery": " motors "}, {2}),
        ({"searchQuery": "%"}, {3}),
        ({"searchQuery": "_"}, set()),
        ({"searchQuery": "100%", "status": ["lost"]}, {3}),
        ({"industry": ["retail"], "type": ["customer"]}, {0, 1, 2, 3}),  # for contacts only
        ({"customList": {"emails": ["x@a.example"]}}, {0, 1, 2, 3}),  # for 'custom' only
        ({"status": None, "tags": None, "searchQuery": None, "unknown": 1}, {0, 1, 2, 3}),
    ],
)
def test_lead_filters(crm: Crm, targets: Targets, filters: dict[str, Any], numbers: set[int]) -> None:
    """Filters of leads narrow by status, priority, any of the tags, owner, age, and words in name, mail or firm."""
    days = [datetime(2026, 1, day) for day in (1, 2, 3, 4)]  # noqa: DTZ001
    rows: list[dict[str, Any]] = [
        {"name": "Asha", "status": "new", "priority": "low", "tags": ["a"], "company": "One"},
        {"email": "x@gmail.example", "status": "won", "priority": "high", "tags": ["a", "b"], "company": "Two"},
        {"company": "Khan Motors", "status": "new", "priority": "high", "tags": ["c"]},
        {"company": "100% Silk", "status": "lost", "priority": "low", "tags": None, "assignedTo": "ravi"},
    ]
    leads = [
        crm.add_lead(**({"name": f"Lead {number}", "email": f"l{number}@a.example"} | row), createdAt=days[number])
        for number, row in enumerate(rows)
    ]
    assert targets.chosen("leads", filters=filters) == {leads[number] for number in numbers}


@pytest.mark.parametrize(
    ("filters", "numbers"),
    [
        ({"type": ["vendor"]}, {1}),
        ({"industry": ["retail", "it"]}, {0, 1}),
        ({"type": ["customer"], "industry": ["steel"]}, {2}),
        ({"tags": ["vip"]}, {2}),
        ({"assignedTo": "ravi"}, {1}),
        ({"searchQuery": "SILK"}, {2}),
        ({"createdAfter": "2026-01-02"}, {2}),
        ({"status": ["new"], "priority": ["high"]}, {0, 1, 2}),  # for leads only
    ],
)
def test_contact_filters(crm: Crm, targets: Targets, filters: dict[str, Any], numbers: set[int]) -> None:
    """Filters of contacts narrow by type and industry, and by those that leads share with them."""
    days = [datetime(2026, 1, day) for day in (1, 2, 3)]  # noqa: DTZ001
    rows: list[dict[str, Any]] = [
        {"type": "customer", "industry": "retail"},
        {"type": "vendor", "industry": "it", "assignedTo": "ravi"},
        {"type": "customer", "industry": "steel", "company": "Silk & Co", "tags": ["vip"]},
    ]
    contacts = [crm.add_contact(**({"tags": None} | row), createdAt=days[number]) for number, row in enumerate(rows)]
    assert targets.chosen("contacts", filters=filters) == {contacts[number] for number in numbers}


@pytest.mark.parametrize("target", ["all", "leads", "contacts", "tags"])
def test_tenants_and_users(crm: Crm, targets: Targets, target: str) -> None:
    """Only people of the campaign's own user are written to: none of a colleague's, none of another tenant's."""
    mine = {crm.add_lead(), crm.add_contact()}
    colleague = crm.add_user()
    crm.add_lead(user_id=colleague)
    crm.add_contact(user_id=colleague)
    other = crm.add_tenant("Other Traders")
    crm.add_lead(tenant_id=other)
    crm.add_contact(tenant_id=other)
    # a lead that claims to be of the user, in another tenant
    crm.add_lead(tenant_id=other, user_id=crm.user_id)
    chosen = targets.chosen(target, filters={"tags": ["diwali"]})
    assert chosen
    assert chosen <= mine
    if target in {"all", "tags"}:
        assert chosen == mine


def test_each_address_once(crm: Crm, targets: Targets) -> None:
    """People with one address, however it is written, get one message; a lead wins over a contact."""
    lead = crm.add_lead(email="Asha@A.example")
    crm.add_contact(email=" asha@a.EXAMPLE ")
    other = crm.add_contact(email="other@a.example")
    campaign_id = targets.prepared(targets.campaign("all"))
    assert {row["recipientId"] for row in targets.recipients(campaign_id)} == {lead, other}
    assert targets.status(campaign_id) == ("running", 2)


def test_each_number_once(crm: Crm, targets: Targets) -> None:
    """One number written with and without country code, spaces and zero is one recipient."""
    spellings = ["+91 98123 45678", "9812345678", "09812345678", "919812345678", "+91-98123-45678"]
    for spelling in spellings:
        crm.add_lead(phone=spelling, phoneNormalized=None)
    campaign_id = targets.prepared(targets.campaign("leads", "whatsapp"))
    assert len(targets.recipients(campaign_id)) == 1


def test_who_can_be_mailed(crm: Crm, targets: Targets) -> None:
    """E-mail needs an address with an '@'; a phone number is not asked for."""
    for email in ("", "  ", "none", "asha.example"):
        crm.add_lead(email=email)
    reached = crm.add_lead(email="asha@a.example", phone="", phoneNormalized=None)
    assert targets.chosen("leads") == {reached}


@pytest.mark.parametrize(
    ("columns", "number"),
    [
        ({"whatsappNormalized": "+911", "phoneNormalized": "+912", "whatsapp": "3", "phone": "4"}, "+911"),
        ({"whatsappNormalized": None, "phoneNormalized": "+912", "whatsapp": "3", "phone": "4"}, "+912"),
        ({"whatsappNormalized": "", "phoneNormalized": "", "whatsapp": "3", "phone": "4"}, "3"),
        ({"whatsappNormalized": None, "phoneNormalized": None, "whatsapp": "", "phone": "4"}, "4"),
        ({"whatsappNormalized": None, "phoneNormalized": None, "whatsapp": None, "phone": ""}, None),
        ({"whatsappNormalized": None, "phoneNormalized": None, "whatsapp": None, "phone": "n/a"}, None),
    ],
)
@pytest.mark.parametrize("kind", ["leads", "contacts"])
def test_which_number(crm: Crm, targets: Targets, kind: str, columns: dict[str, Any], number: str | None) -> None:
    """WhatsApp takes the normalised WhatsApp number, else the normalised phone, else WhatsApp's, else the phone."""
    (crm.add_lead if kind == "leads" else crm.add_contact)(email="", **columns)
    campaign_id = targets.prepared(targets.campaign(kind, "whatsapp"))
    assert [row["recipientPhone"] for row in targets.recipients(campaign_id)] == ([number] if number else [])


def test_a_custom_list(crm: Crm, targets: Targets) -> None:
    """A custom list takes its own addresses for e-mail and its own numbers for WhatsApp, and no lead."""
    crm.add_lead()
    filters = {
        "customList": {
            "emails": ["a@a.example", "A@a.example", "b@a.example", "no address", "", " "],
            "phones": ["+919812345678", "98123 45678", "9811111111", "  "],
        }
    }
    campaign_id = targets.prepared(targets.campaign("custom", filters=filters))
    rows = targets.recipients(campaign_id)
    assert {row["recipientType"] for row in rows} == {"custom"}
    assert {row["recipientEmail"].lower() for row in rows} == {"a@a.example", "b@a.example"}
    assert {row["recipientPhone"] for row in rows} == {None}
    assert len(rows) == 2
    campaign_id = targets.prepared(targets.campaign("custom", "whatsapp", filters))
    rows = targets.recipients(campaign_id)
    assert len(rows) == 2
    assert {row["recipientEmail"] for row in rows} == {None}


@pytest.mark.parametrize("filters", [None, {}, {"customList": None}, {"customList": {"phones": ["9812345678"]}}])
def test_an_empty_custom_list(crm: Crm, targets: Targets, filters: Any) -> None:
    """A custom e-mail campaign without addresses is for no one."""
    crm.add_lead()
    assert targets.chosen("custom", filters=filters) == set()


def test_rows_of_the_crm(crm: Crm, targets: Targets) -> None:
    """A campaign that has recipients keeps them: no one is added from its target."""
    crm.add_lead()
    campaign_id = targets.prepared(crm.add_campaign(recipients=3, totalRecipients=99))
    assert len(targets.recipients(campaign_id)) == 3
    assert targets.status(campaign_id) == ("running", 99)


def test_duplicates_of_the_crm(crm: Crm, targets: Targets) -> None:
    """Of the CRM's rows with one address, one stays and the others fail with a reason; one that was sent stays."""
    people = [{"recipientEmail": email} for email in ("x@a.example", "X@A.example ", "y@a.example", None, None)]
    sent = {"recipientEmail": "z@a.example", "status": "sent"}
    campaign_id = crm.add_campaign(recipients=[*people, sent, {"recipientEmail": "Z@a.example"}])
    targets.prepared(campaign_id)
    assert crm.counts(campaign_id) == {"pending": 4, "failed": 2, "sent": 1}
    failed = [row for row in targets.recipients(campaign_id) if row["status"] == "failed"]
    assert all(row["errorMessage"] == "Another recipient of this campaign has the same address" for row in failed)
    assert all(row["failedAt"] == row["updatedAt"] for row in failed)
    assert "z@a.example" in {row["recipientEmail"].lower() for row in failed}


def test_built_once(crm: Crm, targets: Targets) -> None:
    """Two workers that prepare a campaign at once build its recipients once; the second does not wait."""
    for _ in range(5):
        crm.add_lead()
    campaign_id = targets.campaign("leads")
    targets.runs.start_due(utc_now())
    campaign = targets.find(campaign_id)
    with closing(Database(targets.settings.database_url, "other")) as other, other.transaction():
        assert other.one(SQL["lock_unprepared"], campaign_id=campaign_id)
        assert not prepare(targets.db, campaign, utc_now())
        assert targets.recipients(campaign_id) == []
    assert prepare(targets.db, campaign, utc_now())
    assert not prepare(targets.db, campaign, utc_now())
    assert len(targets.recipients(campaign_id)) == 5


BAD = [
    ("everybody", None, "its target 'everybody' is unknown; known are all, leads, contacts, tags, custom"),
    ("leads", [], None),
    ("leads", ["new"], "its targetFilters are not an object"),
    ("leads", "status=new", "its targetFilters are not an object"),
    ("leads", {"status": {"not": "won"}}, "its targetFilters.status is not a list of strings"),
    ("leads", {"tags": [1, 2]}, "its targetFilters.tags is not a list of strings"),
    ("contacts", {"industry": 5}, "its targetFilters.industry is not a list of strings"),
    ("leads", {"assignedTo": ["a"]}, "its targetFilters.assignedTo is not a string"),
    ("leads", {"searchQuery": 7}, "its targetFilters.searchQuery is not a string"),
    ("leads", {"createdAfter": "yesterday"}, "its targetFilters.createdAfter is not a date: 'yesterday'"),
    ("leads", {"createdAfter": 1767225600}, "its targetFilters.createdAfter is not a string"),
    ("custom", {"customList": ["a@a.example"]}, "its targetFilters.customList is not an object"),
    ("custom", {"customList": {"emails": [["a"]]}}, "its targetFilters.customList is not a list of strings"),
]


@pytest.mark.parametrize(("target", "filters", "reason"), BAD)
def test_what_cannot_be_understood(target: str, filters: Any, reason: str | None) -> None:
    """A filter that cannot be understood is refused with a reason: without it the wrong people would get messages."""
    wanted = CampaignTarget(target, filters)
    if reason is None:
        assert target_parameters(wanted, "email")["status"] == []
        return
    with pytest.raises(CampaignRejected) as caught:
        target_parameters(wanted, "email")
    assert str(caught.value) == reason


def test_the_job_fails_such_a_campaign(crm: Crm, targets: Targets) -> None:
    """The campaign ends 'failed' with the reason in its log, no message leaves, and other campaigns go on."""
    crm.add_lead()
    bad = targets.campaign("leads", filters={"status": {"not": "won"}})
    nobody = targets.campaign("contacts")
    assert targets.run_job() == 0
    assert targets.status(bad) == ("failed", 0)
    assert targets.recipients(bad) == []
    assert ("failed", "its targetFilters.status is not a list of strings") in targets.logged(bad)
    assert targets.status(nobody) == ("completed", 0)
    assert ("completed", "Completed: its target matched nobody") in targets.logged(nobody)


@pytest.mark.parametrize(
    "moment", ["0001-01-01T00:00:00+05:30", "9999-12-31T23:59:59-05:30"], ids=["before", "after"]
)
def test_dates_at_the_end_of_the_calendar(moment: str) -> None:
    """A date that cannot be brought to UTC fails its campaign only, not the whole job's tick."""
    with pytest.raises(CampaignRejected):
        target_parameters(CampaignTarget("leads", {"createdAfter": moment}), "email")


def test_links_are_kept_once(crm: Crm, targets: Targets) -> None:
    """A campaign's links are written when it is prepared, one row for each, and not again the next time."""
    campaign_id = targets.prepared(crm.add_campaign(recipients=3, useShortLinks=True))
    statement = 'SELECT id, "tenantId", "shortCode", "updatedAt" FROM campaign_links WHERE "campaignId" = %(id)s'
    links = targets.db.all(statement, id=campaign_id)
    assert len(links) == 1
    assert links[0]["tenantId"] == crm.tenant_id
    targets.db.execute(SQL["unprepare"], campaign_id=campaign_id, next_batch_at=utc_now())
    targets.prepared(campaign_id)
    assert targets.db.all(statement, id=campaign_id) == links


def test_links_of_a_changed_text(crm: Crm, targets: Targets) -> None:
    """When the user changes the text, its new links are written before a message with them leaves."""
    campaign_id = targets.prepared(crm.add_campaign(recipients=3, useShortLinks=True))
    html = '<a href="https://shop.example/new">new</a>'
    crm.execute('UPDATE "Campaign" SET "htmlContent" = %s WHERE id = %s', (html, campaign_id))
    targets.prepared(campaign_id)
    statement = 'SELECT "originalUrl" FROM campaign_links WHERE "campaignId" = %(id)s'
    assert {"originalUrl": "https://shop.example/new"} in targets.db.all(statement, id=campaign_id)


NUMBERS = [
    # (columns of a lead or contact, what is sent to)
    ({"phone": "(202) 555-0123", "phoneCountryCode": "+1"}, "12025550123"),
    ({"phone": "07700 900123", "phoneCountryCode": "+44"}, "447700900123"),
    ({"phone": "447700900123", "phoneCountryCode": "+44"}, "447700900123"),
    ({"phone": "+44 7700 900123", "phoneCountryCode": "+1"}, "447700900123"),
    ({"phone": "98123 45678", "phoneCountryCode": "+91"}, "919812345678"),
    ({"phone": "0919812345678", "phoneCountryCode": "91"}, "919812345678"),
    ({"phone": "9812345678", "phoneCountryCode": ""}, "919812345678"),
    ({"whatsapp": "050 123 4567", "phone": "1", "phoneCountryCode": "+971"}, "971501234567"),
    ({"whatsapp": "n/a", "phone": "0412 345 678", "phoneCountryCode": "+61"}, "61412345678"),
    ({"phone": "06 698 12345", "phoneCountryCode": "+39"}, "390669812345"),
    ({"phone": "15123456789.0", "phoneCountryCode": "+49"}, "4915123456789"),
    ({"phoneNormalized": "2025550123", "phone": "1", "phoneCountryCode": "+1"}, "12025550123"),
    ({"phoneNormalized": "12025550123", "phone": "1"}, "12025550123"),
    ({"whatsappNormalized": "5215512345678", "phone": "55 1234 5678", "phoneCountryCode": "+52"}, "5215512345678"),
    ({"whatsappNormalized": "5491123456789", "phoneCountryCode": "+54"}, "5491123456789"),
    ({"phone": "(202) 555-0123", "phoneCountryCode": "US"}, None),
]


@pytest.mark.parametrize("kind", ["leads", "contacts"])
@pytest.mark.parametrize(("columns", "number"), NUMBERS)
def test_a_number_of_another_country(
    crm: Crm, targets: Targets, kind: str, columns: dict[str, Any], number: str | None
) -> None:
    """A number without a country code is of the country that the CRM has beside it, never a stranger's in India."""
    nothing = {"whatsappNormalized": None, "phoneNormalized": None, "whatsapp": None}
    (crm.add_lead if kind == "leads" else crm.add_contact)(email="", **(nothing | columns))
    (row,) = targets.recipients(targets.prepared(targets.campaign(kind, "whatsapp")))
    if number is None:
        with pytest.raises(ValueError, match="not a phone number"):
            whatsapp_id(row["recipientPhone"])
    else:
        assert whatsapp_id(row["recipientPhone"]) == number


def test_one_number_with_and_without_its_country(crm: Crm, targets: Targets) -> None:
    """Two leads with one American number get one message, and an Indian one with the same digits its own."""
    nothing = {"whatsappNormalized": None, "phoneNormalized": None, "whatsapp": None}
    for phone in ("202 555 0123", "12025550123"):
        crm.add_lead(phone=phone, phoneCountryCode="+1", **nothing)
    crm.add_lead(phone="+1-202-555-0123", **nothing)
    indian = crm.add_lead(phone="2025550123", phoneCountryCode="+91", **nothing)
    rows = targets.recipients(targets.prepared(targets.campaign("leads", "whatsapp")))
    assert {whatsapp_id(row["recipientPhone"]) for row in rows} == {"12025550123", "912025550123"}
    assert len(rows) == 2
    assert indian in {row["recipientId"] for row in rows}


@pytest.mark.parametrize(
    ("channel", "first", "second"),
    [
        ("whatsapp", "0919876543211", "+91 98765 43211"),
        ("whatsapp", "call 9876543211", "9876543211"),
        ("whatsapp", "9876543211.5", "98765432115"),
        ("whatsapp", "14155552671", "+1 415 555 2671"),
        ("whatsapp", "1800 123 4567", "+1 800 123 4567"),
        ("whatsapp", "0009876543211", "+98 765 432 11"),
        ("email", "a@❤.example", "a@xn--qei.example"),
        ("email", "info@straße.example", "info@strasse.example"),
        ("email", "a@x․example", "a@x.example"),
    ],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_the_double_that_is_kept(
    crm: Crm, targets: Targets, channel: str, first: str, second: str, swapped: bool
) -> None:
    """Of two rows with one address the one that stays can be sent to; what is no address takes nobody's place."""
    read = parse_address if channel == "email" else whatsapp_id
    column = "recipientEmail" if channel == "email" else "recipientPhone"
    written = [second, first] if swapped else [first, second]
    reachable = set()
    for each in written:
        with contextlib.suppress(ValueError):
            reachable.add(read(each))
    ids = ("00000000-0000-0000-0000-000000000001", "ffffffff-0000-0000-0000-000000000002")
    rows = [{"id": row_id, column: each} for row_id, each in zip(ids, written, strict=True)]
    campaign_id = targets.prepared(crm.add_campaign(channel, recipients=rows))
    kept = set()
    for row in targets.recipients(campaign_id):
        with contextlib.suppress(ValueError):
            kept |= {read(row[column])} if row["status"] == "pending" else set()
    assert kept == reachable


def test_doubles_in_international_domains(crm: Crm, targets: Targets) -> None:
    """Both spellings of one domain are one address, and a sharp s is not two of the others."""
    addresses = ["info@straße.example", "info@strasse.example", "info@bücher.example", "info@xn--bcher-kva.example"]
    doubled = [
        {"recipientEmail": each} for each in [*addresses, "INFO@BÜCHER.example\u00a0", "\ufeffinfo@strasse.example"]
    ]
    campaign_id = targets.prepared(crm.add_campaign(recipients=doubled))
    pending = [row for row in targets.recipients(campaign_id) if row["status"] == "pending"]
    assert sorted(parse_address(row["recipientEmail"]) for row in pending) == [
        "info@strasse.example",
        "info@xn--bcher-kva.example",
        "info@xn--strae-oqa.example",
    ]


@pytest.mark.parametrize("around", ["\t", "\u00a0", "\r", "\n", "\ufeff", "\u200b", "\u2028", "\u202c"])
def test_invisible_characters_around_addresses(crm: Crm, targets: Targets, around: str) -> None:
    """What shows nothing makes no second address, and none of nothing."""
    crm.add_lead(email=f"asha@x.example{around}", phone=f"{around}98123 45678", phoneNormalized=None)
    crm.add_contact(email=f"{around}asha@x.example", phone=f"9812345678{around}", phoneNormalized=None)
    crm.add_contact(email=around, phone=around, phoneNormalized=None)
    for channel in ("email", "whatsapp"):
        (row,) = targets.recipients(targets.prepared(targets.campaign("all", channel)))
        assert parse_address(row["recipientEmail"]) == "asha@x.example"
        assert whatsapp_id(row["recipientPhone"]) == "919812345678"


def test_links_of_each_campaign(crm: Crm, targets: Targets) -> None:
    """One process writes the links of every campaign, also of those with the same text."""
    html = '<a href="https://shop.example/same">same</a>'
    for _ in range(2):
        campaign_id = targets.prepared(crm.add_campaign(recipients=3, useShortLinks=True, htmlContent=html))
        statement = 'SELECT "originalUrl" FROM campaign_links WHERE "campaignId" = %(id)s'
        assert targets.db.all(statement, id=campaign_id) == [{"originalUrl": "https://shop.example/same"}]
