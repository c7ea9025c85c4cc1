"""Tenants are kept apart: rows that point at another tenant's are neither read, nor written, nor published."""

import json
import re
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgpack
import psycopg2
import psycopg2.extras
import pytest
import redis

from sandbox.crm import Crm, utc_now
from sandbox.world import World
from worker.campaign import CampaignJob
from worker.reminders import RemindersJob
from worker.runtime.counters import Counters
from worker.runtime.db import Database, queries
from worker.runtime.job import JobContext
from worker.runtime.lock import Lock
from worker.runtime.loop import Loop
from worker.runtime.redis_client import connect
from worker.runtime.settings import load
from worker.runtime.signals import Signals

FOREIGN = "foreign"  # in each text of the other tenant's rows
STATEMENTS = [
    (job, name)
    for job in ("campaign", "reminders", "trial", "notifications", "sending", "quota")
    for name in queries(job)
]
NOBODY = "no such id"


class TwoTenants:
    """Ours, and another one whose rows point at ours and ours at its, wherever the schema lets them."""

    def __init__(self, crm: Crm) -> None:
        self.crm = crm
        self.tenant, self.user = crm.tenant_id, crm.user_id
        self.other = crm.add_tenant(f"{FOREIGN} traders", settings={"whatsapp": {"token": FOREIGN, "phoneId": "222"}})
        self.other_user = crm.add_user(self.other, name=FOREIGN, email=f"{FOREIGN}@b.example")
        self.stage = crm.add_stage()
        self.lead = crm.add_lead(stageId=self.stage, name="ours", createdAt=utc_now() - timedelta(days=9))
        self.other_lead = crm.add_lead(
            self.other, self.user, stageId=self.stage, name=FOREIGN, createdAt=utc_now() - timedelta(days=9)
        )
        self.other_contact = crm.add_contact(self.other, self.user, name=FOREIGN)
        self.campaign = crm.add_campaign(status="running", recipients=2)
        self.recipients = [id for (id,) in crm.execute('SELECT id FROM "CampaignRecipient" ORDER BY id')]
        self.other_recipients = [
            crm.add_recipient(
                self.campaign,
                tenantId=self.other,
                recipientName=FOREIGN,
                status=status,
                recipientEmail=f"{FOREIGN}@x",
            )
            for status in ("pending", "sending")
        ]
        self.other_campaign = crm.add_campaign(
            tenant_id=self.other, user_id=self.user, status="draft", name=FOREIGN, recipients=0
        )
        self.template = crm.insert("EmailTemplate", self._template(crm.tenant_id, "ours"))
        self.other_template = crm.insert("EmailTemplate", self._template(self.other, FOREIGN))
        self.link = crm.insert(
            "campaign_links",
            {"tenantId": self.other, "campaignId": self.campaign, "originalUrl": FOREIGN, "taggedUrl": FOREIGN},
        )
        for action in ("paused", "started"):
            self.log(self.other, action)
        self.batch, self.notice = str(uuid4()), str(uuid4())
        self._worker_rows()

    def _template(self, tenant_id: str, text: str) -> dict[str, Any]:
        return {
            "name": text, "type": "reminder", "subject": text, "htmlBody": text, "tenantId": tenant_id,
            "createdBy": self.user,
        }  # fmt: skip

    def log(self, tenant_id: str, action: str) -> None:
        row = {"tenantId": tenant_id, "campaignId": self.campaign, "action": action, "message": FOREIGN}
        self.crm.insert("CampaignLog", row | {"createdAt": utc_now() + timedelta(seconds=1)})

    def _worker_rows(self) -> None:
        now = utc_now()
        execute = self.crm.execute
        execute(
            "INSERT INTO worker.campaign_run (campaign_id, tenant_id, started_at, prepared, next_batch_at, log_rows) "
            "VALUES (%s, %s, %s, true, %s, 0)",
            (self.campaign, self.tenant, now, now),
        )
        execute(
            "INSERT INTO worker.campaign_batch (id, campaign_id, holder, machine, sender, recipient_ids, renewed_at) "
            "VALUES (%s, %s, 'h', 'm', 'email', %s, %s)",
            (self.batch, self.campaign, self.other_recipients, now),
        )
        for recipient in self.other_recipients:
            execute(
                "INSERT INTO worker.failure VALUES (%s, %s, %s, 'refused', '550', %s, %s, %s)",
                (recipient, self.campaign, self.other, FOREIGN, FOREIGN, now + timedelta(seconds=1)),
            )
            execute(
                "INSERT INTO worker.campaign_retry VALUES (%s, %s, 1, %s, '')",
                (recipient, self.campaign, now - timedelta(seconds=1)),
            )
            execute(
                "INSERT INTO worker.unconfirmed_send VALUES (%s, %s, 'email', 1, %s)",
                (recipient, self.campaign, now - timedelta(seconds=1)),
            )
        execute(
            "INSERT INTO worker.notice (id, job, tenant_id, channel, address, content, created_at, due_at, holder, "
            "renewed_at) VALUES (%s, 'reminders', %s, 'email', 'a@x.example', '{}', %s, %s, 'h', %s)",
            (self.notice, self.tenant, now, now, now),
        )
        execute(
            "INSERT INTO worker.lead_reminder VALUES (%s, 'email', 'a@x.example', %s, %s, %s)",
            (self.tenant, self.other_lead, now - timedelta(days=9), self.notice),
        )

    def foreign_rows(self) -> dict[str, list[Any]]:
        """All rows of the other tenant, in all tables of the CRM."""
        tables = self.crm.execute(
            "SELECT table_name FROM information_schema.columns "
            "WHERE table_schema = 'public' AND column_name = 'tenantId' ORDER BY 1"
        )
        rows = {
            table: self.crm.execute(
                f'SELECT to_jsonb(t) FROM "{table}" t WHERE "tenantId" = %s ORDER BY id', [self.other]
            )
            for (table,) in tables
        }
        return rows | {"Tenant": self.crm.execute('SELECT to_jsonb(t) FROM "Tenant" t WHERE id = %s', [self.other])}

    def parameters(self, job: str) -> dict[str, Any]:
        """What the statements of a job get when they work for our tenant and are led astray."""
        now = utc_now()
        email = {"address": "a@x.example", "subject": "s", "body": "b", "html": None, "message_id": None,
                 "gmail_id": None, "gmail_thread_id": None, "at": now.isoformat()}  # fmt: skip
        notice = email | {"notice_id": self.notice, "sender": "s@x.example", "entity_type": "Tenant",
                          "entity_id": self.tenant, "tenant_id": self.tenant,
                          "user_id": self.other_user}  # fmt: skip
        outcome = [
            {
                "id": each,
                "status": "sent",
                "message_id": FOREIGN,
                "reason": None,
                "attempts": 1,
                "at": now.isoformat(),
            }
            for each in self.other_recipients
        ]
        recipient = {
            "tenant_id": self.tenant, "channel": "email", "address": "b@x.example", "content": {},
            "quiet_since": now.isoformat(), "reminded_since": (now - timedelta(days=99)).isoformat(),
            "stage_ids": [self.stage],
        }  # fmt: skip
        ids = {"campaign": self.other_recipients, "reminders": [self.other_template], "trial": [self.tenant],
               "quota": self.other_recipients}  # fmt: skip
        values = {
            "now": now, "campaign_id": self.campaign, "tenant_id": self.tenant, "user_id": self.user,
            "channel": "email", "size": 10, "batch_id": self.batch, "holder": "h", "machine": "m", "sender": "email",
            "sender_address": "s@x.example", "quiet_seconds": 0, "busy": [], "largest": 1_000_000, "most": 1_000_000,
            "ids": ids.get(job, [self.notice]), "tenant_ids": [self.tenant], "outcomes": json.dumps(outcome),
            "outbox": json.dumps([notice if job == "notifications" else email]), "limit": 1,
            "failures": json.dumps([
                {"id": each, "kind": "address", "code": "550", "reply": FOREIGN, "pattern": FOREIGN,
                 "at": now.isoformat(), "source": "bounce", "until": None}
                for each in self.other_recipients
            ]), "accepted_at": now, "kinds": ["refused"], "after_at": now - timedelta(days=366),
            "next_batch_at": now, "backoffs": 0, "pause_seconds": 0, "full_size": 10,
            "campaign_ids": [self.campaign], "refused": self.other_recipients, "reason": "r", "lease_seconds": 300,
            "job": "reminders", "recipients": json.dumps([recipient]), "listed": 200, "used": 1,
            "template_id": self.other_template, "oldest": now - timedelta(days=366), "owner": "o@x.example",
            "holders": ["h"], "ask_at": now, "deferrals": "[]", "token": "t", "expiry": now, "refresh_token": FOREIGN,
            "address": "a@x.example", "channels": ["email"], "addresses": ["a@x.example"], "seen": "0", "code": "",
            "source": "bounce", "until": None, "may_leave": 2, "new_holder": "n", "timeline": "",
            "messages": json.dumps([{"id": each, "at": None} for each in self.recipients]), "outside": "outside",
            "waits_for": "quota", "waits_until": now, "message": "m",
            "account_kind": "whatsapp", "account": self.tenant, "want": 1, "kept_back": 0, "is_campaign": True,
            "share": 1, "hour": now, "number": 1, "since": now, "phone_id": "1", "people": 1, "quality": "RED",
            **{key: [] for key in ("status", "priority", "type", "industry", "tags", "custom")},
            **dict.fromkeys(("assigned_to", "created_after", "search")), "target": "all",
            **{key: ["ours"] for key in ("originals", "taggeds", "codes", "shorts", "labels", "sources", "mediums",
                                         "campaigns", "terms", "contents")},
        }  # fmt: skip
        return values


@pytest.fixture
def two(crm: Crm) -> TwoTenants:
    return TwoTenants(crm)


@pytest.mark.parametrize(("job", "name"), STATEMENTS)
def test_every_statement(two: TwoTenants, database_url: str, job: str, name: str) -> None:
    """No statement that works for one tenant changes a row of another, or returns anything of it."""
    statement = queries(job)[name]
    needed = set(re.findall(r"%\((\w+)\)s", statement))
    parameters = two.parameters(job) | ({"user_id": two.other_user} if job == "sending" else {})
    if name.startswith("claim"):
        parameters["batch_id"] = str(uuid4())
    if name == "add_links":
        parameters["ids"] = [two.link]
    if job == "reminders" and name == "forget":
        parameters["ids"] = [two.notice]
    if name == "release_orphans":
        parameters["holders"] = ["h"]
    before = two.foreign_rows()
    with closing(Database(database_url, "test")) as db:
        try:
            found = db.execute(statement, **{each: parameters[each] for each in needed})
        except psycopg2.errors.NotNullViolation as error:
            assert (name, error.diag.column_name) == ("settle", "userId")  # noqa: PT017 - no such user of the tenant
            found = []
    assert two.foreign_rows() == before
    if (job, name) not in {("campaign", "batches"), ("reminders", "tenants")}:  # ids; each tenant in a row of its own
        ids = {two.other, two.other_user, two.other_lead, two.other_template, *two.other_recipients}
        returned = json.dumps(found, default=str)
        assert FOREIGN not in returned
        assert not {each for each in ids if f'"{each}"' in returned}
    if name in ("disown",):
        assert found == []


def test_an_email_of_a_campaign_is_filed_for_its_own_tenants_user(two: TwoTenants, database_url: str) -> None:
    """A user of another tenant never gets an e-mail into the outbox, which the database then refuses."""
    for name in ("settle", "file_emails"):
        statement = queries("campaign")[name]
        needed = set(re.findall(r"%\((\w+)\)s", statement))
        parameters = two.parameters("campaign") | {"user_id": two.other_user}
        with closing(Database(database_url, "test")) as db, pytest.raises(psycopg2.errors.NotNullViolation):
            db.execute(statement, **{each: parameters[each] for each in needed})
    assert two.crm.value('SELECT count(*) FROM "EmailLog"') == 0


class Office:
    """Runs the real jobs once, and hears what they publish."""

    def __init__(self, crm: Crm, environ: dict[str, str]) -> None:
        self.crm = crm
        self._environ = environ
        self.client = connect(environ["REDIS_URL"])
        self._listener = redis.Redis.from_url(environ["REDIS_URL"])
        self._subscription = self._listener.pubsub(ignore_subscribe_messages=True)
        self._subscription.psubscribe("socket.io#/#*")
        self._subscription.get_message(timeout=5)

    def close(self) -> None:
        self._subscription.close()
        self._listener.close()
        self.client.close()

    def run(self, name: str, build: Any) -> int:
        settings = load(self._environ, name)
        signals, counters, client = Signals(), None, connect(self._environ["REDIS_URL"])
        counters = Counters(client, name)
        context = JobContext(name, settings, client, Lock([client], name), counters, signals)
        try:
            return Loop(build(context), context).run(once=True)
        finally:
            signals.close()

    def heard(self) -> list[tuple[str, str]]:
        """The rooms and the names of the events."""
        events = []
        while message := self._subscription.get_message(timeout=0.2):
            _, packet, options = msgpack.unpackb(message["data"])
            events.append((options["rooms"][0], packet["data"][0]))
        return events

    def reasons(self, campaign_id: str) -> list[str]:
        rows = self.crm.execute(
            """SELECT message FROM "CampaignLog" WHERE "campaignId" = %s AND action = 'failed'""", [campaign_id]
        )
        return [message for (message,) in rows]


@pytest.fixture
def office(crm: Crm, database_url: str, redis_url: str, tmp_path: Path, world: World) -> Iterator[Office]:
    world.set_rates(whatsapp_rate=0)
    environ = {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "STATE_DIR": str(tmp_path),
        "CAMPAIGN_BATCH_DELAY": "0",
        **world.environment,
    }
    with closing(Office(crm, environ)) as made:
        yield made


def whatsapp(name: str) -> dict[str, Any]:
    return {"whatsapp": {"token": f"token-of-{name}", "phoneId": f"11{name}"}}


@pytest.mark.parametrize("channel", ["whatsapp", "email"])
def test_a_campaign_whose_user_is_another_tenants(crm: Crm, office: Office, world: World, channel: str) -> None:
    """It fails with the reason; nothing is sent with either account, and nobody else's browser hears of it."""
    tenant, other = (crm.add_tenant(name, settings=whatsapp(name)) for name in ("1", "2"))
    crm.add_user(tenant)
    user = crm.add_user(other)
    campaign = crm.add_campaign(channel, tenant_id=tenant, user_id=user, recipients=3)
    assert office.run("campaign", CampaignJob) == 0
    assert crm.value('SELECT status FROM "Campaign"') == "failed"
    assert office.reasons(campaign) == ["its user is not a user of its tenant"]
    assert crm.counts(campaign) == {"pending": 3}
    assert office.heard() == []
    assert world.deliveries() == []


@pytest.mark.parametrize("ours", [0, 2])
def test_recipients_of_another_tenant(crm: Crm, office: Office, world: World, ours: int) -> None:
    """They are left as they are, and nobody is written to in their place; the campaign ends without them."""
    other = crm.add_tenant("other")
    crm.add_lead()  # the target would match this one
    campaign = crm.add_campaign(recipients=ours)
    foreign = crm.add_recipient(campaign, tenantId=other, recipientEmail="foreign@b.example")
    assert office.run("campaign", CampaignJob) == 0
    assert crm.value('SELECT status FROM "CampaignRecipient" WHERE id = %s', foreign) == "pending"
    assert crm.value('SELECT status FROM "Campaign"') == "completed"
    message = crm.value("""SELECT message FROM "CampaignLog" WHERE action = 'completed'""")
    assert message.endswith("1 recipients of another tenant were left out")
    assert len(world.deliveries("smtp")) == ours
    assert world.deliveries("smtp", "foreign@b.example") == []


def test_the_same_address_in_another_tenant(crm: Crm, office: Office, world: World) -> None:
    """A recipient is no duplicate of another tenant's one."""
    campaign = crm.add_campaign(recipients=[{"recipientEmail": "asha@a.example"}])
    crm.add_recipient(campaign, id="!", tenantId=crm.add_tenant("other"), recipientEmail="asha@a.example")
    assert office.run("campaign", CampaignJob) == 0
    assert len(world.deliveries("smtp", "asha@a.example")) == 1


def test_given_to_another_tenant_while_it_is_sent(crm: Crm, office: Office, world: World, database_url: str) -> None:
    """The CRM's PUT /campaigns/:id can set "tenantId": the run ends as failed with the reason."""
    other = crm.add_tenant("other", settings=whatsapp("2"))
    campaign = crm.add_campaign(recipients=3)
    with closing(Database(database_url, "test")) as db:
        db.execute(queries("campaign")["start_due"], now=utc_now())
    crm.execute('UPDATE "Campaign" SET "tenantId" = %s, "userId" = %s', (other, crm.add_user(other)))
    assert office.run("campaign", CampaignJob) == 0
    assert office.reasons(campaign) == ["it was given to another tenant while it was sent"]
    assert crm.counts(campaign) == {"pending": 3}
    assert world.deliveries() == []


@pytest.mark.parametrize(
    ("moved", "reason"),
    [(False, "its tenant was deleted"), (True, "it was given to another tenant while it was sent")],
)
def test_a_tenant_that_is_deleted_while_its_campaign_is_sent(
    moved: bool, reason: str, crm: Crm, office: Office, world: World, database_url: str
) -> None:
    """The CRM's schema lets the campaign stay: it fails with the reason, and is not looked at for ever."""
    first, other = crm.add_tenant("first"), crm.add_tenant("other", settings=whatsapp("2"))
    # a user of its own would take the campaign along
    campaign = crm.add_campaign(recipients=3, tenant_id=first, user_id=crm.add_user(other))
    with closing(Database(database_url, "test")) as db:
        db.execute(queries("campaign")["start_due"], now=utc_now())
    if moved:
        crm.execute('UPDATE "Campaign" SET "tenantId" = %s', (other,))
    crm.execute('DELETE FROM "Tenant" WHERE id = %s', (first,))
    assert office.run("campaign", CampaignJob) == 0
    assert office.reasons(campaign) == [reason]
    assert crm.counts(campaign) == {"pending": 3}
    assert world.deliveries() == []


def test_a_tenant_that_is_deleted_while_a_provider_is_to_be_asked(crm: Crm, office: Office) -> None:
    """Nobody can be asked any more: the worker does not try again and again."""
    first, other = crm.add_tenant("first"), crm.add_tenant("other")
    campaign = crm.add_campaign(recipients=2, tenant_id=first, user_id=crm.add_user(other), status="failed")
    kept = crm.add_campaign(recipients=1, status="paused")
    for each in (campaign, kept):
        crm.execute(
            """INSERT INTO worker.unconfirmed_send (recipient_id, campaign_id, sender, attempts, ask_at)
               SELECT id, "campaignId", 'gmail:x', 1, now() AT TIME ZONE 'UTC' + %s FROM "CampaignRecipient"
               WHERE "campaignId" = %s""",
            (timedelta(seconds=-1 if each == campaign else 60), each),
        )
    crm.execute('DELETE FROM "Tenant" WHERE id = %s', (first,))
    assert office.run("campaign", CampaignJob) == 0
    assert crm.execute("SELECT campaign_id FROM worker.unconfirmed_send") == [(kept,)]


def test_pauses_in_the_log_of_another_tenant(crm: Crm, office: Office) -> None:
    """A row of "CampaignLog" that belongs to another tenant ends nobody's run."""
    campaign = crm.add_campaign(recipients=3)
    row = {"tenantId": crm.add_tenant("other"), "campaignId": campaign, "action": "paused", "message": ""}
    crm.insert("CampaignLog", row | {"createdAt": utc_now() + timedelta(hours=1)})
    assert office.run("campaign", CampaignJob) == 0
    assert crm.counts(campaign) == {"sent": 3}


def test_reminders_across_tenants(crm: Crm, office: Office, world: World) -> None:
    """A digest names no lead of another tenant, goes to none of its users, and is not made from its template."""
    other = crm.add_tenant("other")
    other_user = crm.add_user(other, email="foreign@b.example")
    stage, old = crm.add_stage(), utc_now() - timedelta(days=9)
    crm.add_lead(stageId=stage, name="Ours", createdAt=old)
    crm.add_lead(other, crm.user_id, stageId=stage, name="Foreign", createdAt=old)
    crm.add_lead(stageId=crm.add_stage(other), name="InForeignStage", createdAt=old)
    template = {"name": "t", "type": "reminder", "subject": "Foreign", "htmlBody": "Foreign", "createdBy": other_user}
    crm.insert("EmailTemplate", template | {"tenantId": other})
    reminders = {"enabled": True, "recipientUserIds": [other_user, crm.user_id], "sendWhatsApp": False}
    crm.execute(
        'UPDATE "Tenant" SET settings = %s WHERE id = %s',
        (psycopg2.extras.Json({"leadReminders": reminders}), crm.tenant_id),
    )
    assert office.run("reminders", RemindersJob) == 0
    assert world.deliveries("smtp", "foreign@b.example") == []
    (sent,) = world.deliveries("smtp")
    assert b"Ours" in sent.content
    assert b"Foreign" not in sent.content
    assert crm.execute('SELECT DISTINCT "tenantId" FROM "EmailLog"') == [(crm.tenant_id,)]
