"""Large campaigns: no more memory than for small ones, a limit in bytes, and nobody else waits for them."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from sandbox.crm import Crm, utc_now
from sandbox.world import World
from worker.campaign import CampaignJob
from worker.campaigns.message_size import MessageSize
from worker.campaigns.run import BROKEN_IN_A_ROW, CampaignRuns
from worker.content.campaign import EmailContent, Sender, WhatsAppContent
from worker.content.campaign_texts import CampaignTexts
from worker.reminders import RemindersJob
from worker.runtime.counters import Counters
from worker.runtime.db import Database
from worker.runtime.events import LiveEvents
from worker.runtime.job import JobContext
from worker.runtime.lock import Lock
from worker.runtime.loop import Loop
from worker.runtime.redis_client import connect
from worker.runtime.settings import load
from worker.runtime.signals import Signals
from worker.sending.outbox import json_chunks

MEGABYTE = 1_000_000


class Office:
    """Runs the real jobs, each until nothing is due."""

    def __init__(self, crm: Crm, environ: dict[str, str]) -> None:
        self.crm = crm
        self.environ = environ

    def run(self, name: str, build: Any, **environ: str) -> int:
        settings = load(self.environ | environ, name)
        signals, client = Signals(), connect(self.environ["REDIS_URL"])
        context = JobContext(name, settings, client, Lock([client], name), Counters(client, name), signals)
        try:
            return Loop(build(context), context).run(once=True)
        finally:
            signals.close()

    def send(self, **environ: str) -> None:
        assert self.run("campaign", CampaignJob, **environ) == 0

    def status(self, campaign_id: str) -> str:
        return str(self.crm.value('SELECT status FROM "Campaign" WHERE id = %s', campaign_id))

    def reason(self, campaign_id: str) -> str:
        statement = """SELECT message FROM "CampaignLog" WHERE "campaignId" = %s AND action = 'failed'"""
        return str(self.crm.value(statement, campaign_id))


@pytest.fixture
def office(crm: Crm, database_url: str, redis_url: str, tmp_path: Path, world: World) -> Office:
    environ = {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "STATE_DIR": str(tmp_path),
        "CAMPAIGN_BATCH_DELAY": "0",
        **world.environment,
    }
    return Office(crm, environ)


def test_a_campaign_that_is_too_large(crm: Crm, office: Office, world: World) -> None:
    """It fails with the reason before anything is sent, and its recipients stay pending; all others are sent."""
    too_large = crm.add_campaign(recipients=3, textContent="x" * MEGABYTE, htmlContent=None)
    # small enough as it is stored, too large once it is encoded
    encoded = crm.add_campaign(recipients=3, textContent="ü" * 150_000, htmlContent=None)
    small = crm.add_campaign(recipients=3)
    office.send(MESSAGE_MAX_BYTES="400000")
    assert (office.status(too_large), office.status(encoded), office.status(small)) == (
        "failed",
        "failed",
        "completed",
    )
    assert office.reason(too_large).startswith("its message has 1000")
    assert "more than MESSAGE_MAX_BYTES (400000) allows" in office.reason(too_large)
    assert "more than MESSAGE_MAX_BYTES (400000) allows" in office.reason(encoded)
    assert crm.counts(too_large) == {"pending": 3}
    assert len(world.deliveries("smtp")) == 3


@pytest.mark.parametrize("name", ["x" * 100_000, "ü" * 20_000, "x" * 10 * MEGABYTE])
def test_a_recipient_whose_message_is_too_large(crm: Crm, office: Office, name: str) -> None:
    """Only this recipient fails, with the reason."""
    people = [{"recipientName": each} for each in ("Asha", name, "Ravi")]
    campaign = crm.add_campaign(recipients=people, textContent="{{name}} " * 300, htmlContent=None)
    office.send(MESSAGE_MAX_BYTES="1000000")
    assert crm.counts(campaign) == {"sent": 2, "failed": 1}
    assert "MESSAGE_MAX_BYTES" in crm.value(
        """SELECT "errorMessage" FROM "CampaignRecipient" WHERE status = 'failed'"""
    )
    assert office.status(campaign) == "completed"


LIMITED = """
import resource, sys
from worker.campaign import main
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
sys.exit(main(["--once"]))
"""


@pytest.mark.parametrize("size", [2_200_000, 11 * MEGABYTE])
def test_the_memory_of_large_campaigns(crm: Crm, office: Office, size: int, tmp_path: Path) -> None:
    """Bodies of 11 MB are sent and filed in a process that may have no more than 1.2 GB of addresses."""
    recipients = 4 if size > 10 * MEGABYTE else 12
    crm.add_campaign(recipients=recipients, textContent="x" * 78 + "\n", htmlContent=f"<p>{'x ' * (size // 2)}</p>")
    small = crm.add_campaign(recipients=5)
    limit = 1_200_000_000
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(limit)],
        env=office.environ | {"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert office.status(small) == "completed"
    assert crm.value("""SELECT count(*) FROM "CampaignRecipient" WHERE status <> 'sent'""") == 0
    assert crm.value('SELECT count(*) FROM "EmailLog"') == recipients + 5


def test_an_outbox_in_several_statements(crm: Crm, office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """An outbox that is too large for one statement is filed in several of one transaction, each e-mail once."""
    monkeypatch.setattr("worker.campaigns.settlement.json_chunks", lambda records: json_chunks(records, 20_000))
    campaign = crm.add_campaign(recipients=25, textContent="y" * 9_000)
    office.send()
    assert crm.counts(campaign) == {"sent": 25}
    assert crm.value('SELECT count(DISTINCT "to") FROM "EmailLog"') == 25
    assert crm.value('SELECT count(*) FROM "EmailLog"') == 25


def test_an_outbox_that_is_refused(crm: Crm, office: Office, caplog: pytest.LogCaptureFixture) -> None:
    """What was sent counts as sent where the database refuses to file it; the campaign ends, and the log says so."""
    crm.execute("ALTER TABLE \"EmailLog\" ADD CONSTRAINT refuses CHECK (body NOT LIKE '%poison%')")
    poison, other = crm.add_campaign(recipients=3, textContent="poison"), crm.add_campaign(recipients=3)
    office.send()
    assert (office.status(poison), office.status(other)) == ("completed", "completed")
    assert crm.counts(poison) == {"sent": 3}
    assert crm.value('SELECT count(*) FROM "EmailLog"') == 3
    assert [record.msg for record in caplog.records].count("e-mails were sent but not filed") >= 1


def test_chunks() -> None:
    """Rows are cut into lists of at most so many bytes; one that is larger has a list of its own."""
    rows = [{"a": "x" * size} for size in (10, 10, 500, 10)]
    chunks = list(json_chunks(rows, 60))
    assert [chunk.count('"a"') for chunk in chunks] == [2, 1, 1]
    assert list(json_chunks([], 60)) == []


class Broken(psycopg2.OperationalError):
    """As libpq raises it; ``code`` is the SQLSTATE, None when the server is simply gone."""

    def __init__(self, code: str | None) -> None:
        super().__init__("server closed the connection unexpectedly")
        self.code = code

    @property
    def pgcode(self) -> str | None:  # type: ignore[override]
        return self.code


@pytest.fixture
def runs(crm: Crm, database_url: str, redis_url: str) -> Iterator[CampaignRuns]:
    with closing(Database(database_url, "test")) as db, connect(redis_url) as client:
        made = CampaignRuns(db, LiveEvents(client), Counters(client, "campaign"), utc_now)
        crm.add_campaign(recipients=1)
        made.start_due(utc_now())
        yield made


def waits(crm: Crm) -> bool:
    statement = "SELECT next_batch_at > (now() AT TIME ZONE 'UTC') + interval '1 minute' FROM worker.campaign_run"
    return bool(crm.value(statement))


def fail(runs: CampaignRuns, crm: Crm, error: Exception) -> None:
    with runs.contained(crm.value('SELECT id FROM "Campaign"')):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        Broken("08P01"),  # invalid message length
        Broken("53200"),  # out of memory
        Broken("54000"),  # a row that is too large for an index, say
        psycopg2.DataError("22001"),
        MemoryError(),
    ],
)
def test_a_refusal_of_one_campaign(runs: CampaignRuns, crm: Crm, error: Exception) -> None:
    """What fails because of what one campaign is makes that campaign wait, and nobody else."""
    fail(runs, crm, error)
    assert waits(crm)


@pytest.mark.parametrize("code", ["57P01", "57P03"])
def test_a_server_that_is_shut_down(runs: CampaignRuns, crm: Crm, code: str) -> None:
    """An outage is no fault of the campaign whose statement met it, however often."""
    for _ in range(2 * BROKEN_IN_A_ROW):
        with pytest.raises(Broken):
            fail(runs, crm, Broken(code))
    assert not waits(crm)


def test_a_campaign_that_breaks_the_connection(runs: CampaignRuns, crm: Crm) -> None:
    """A connection that is lost whenever the same campaign's statement runs is that campaign's fault."""
    for _ in range(BROKEN_IN_A_ROW - 1):
        with pytest.raises(Broken):
            fail(runs, crm, Broken(None))
    with runs.contained(crm.value('SELECT id FROM "Campaign"')):
        pass  # it worked in between
    for _ in range(BROKEN_IN_A_ROW - 1):
        with pytest.raises(Broken):
            fail(runs, crm, Broken(None))
    assert not waits(crm)
    fail(runs, crm, Broken(None))
    assert waits(crm)


def size_of(text: str, *, html: str | None = None) -> MessageSize:
    texts = CampaignTexts(tenant_id="t", id="c", name="Diwali", channel="email", text=text, html=html)
    return MessageSize.of(EmailContent(texts, Sender("A", "a@a.example"), None, None), MEGABYTE)


def test_the_size_of_messages_before_they_are_made() -> None:
    """A sample shows the fixed part, and how often a recipient's name and number are in a message."""
    plain, personal = size_of("x" * 5000), size_of("{{name}} " * 200 + "{{phone}}", html="<p>{{name}}</p>")
    assert 5000 < plain.fixed_bytes < 7000
    assert plain.times["name"] < 3  # it is in the head, too
    assert 200 <= personal.times["name"] < 300
    assert 1 <= personal.times["phone"] < 3
    texts = CampaignTexts(tenant_id="t", id="c", name="Diwali", channel="whatsapp", text="x" * 5000)
    assert MessageSize.of(WhatsAppContent(texts, None), MEGABYTE).fixed_bytes == 0  # no message can be made of it


def test_a_template_of_reminders_that_is_too_large(crm: Crm, office: Office, world: World) -> None:
    """The digests that are made from it are not sent; those of other tenants are."""
    tenants = [crm.tenant_id, crm.add_tenant("other")]
    settings = '{"leadReminders": {"enabled": true, "recipientEmails": ["asha@a.example"], "sendWhatsApp": false}}'
    crm.execute('UPDATE "Tenant" SET settings = %s', [settings])
    for tenant in tenants:
        user = crm.user_id if tenant == crm.tenant_id else crm.add_user(tenant)
        crm.execute('UPDATE "User" SET email = id || %s WHERE id = %s', ["@u.example", user])
        crm.add_lead(tenant, user, stageId=crm.add_stage(tenant), createdAt=utc_now().replace(year=2020))
    row = {"name": "t", "type": "reminder", "subject": "s", "htmlBody": "x" * MEGABYTE, "tenantId": tenants[0]}
    crm.insert("EmailTemplate", row | {"createdBy": crm.user_id})
    assert office.run("reminders", RemindersJob, MESSAGE_MAX_BYTES="500000") == 0
    assert crm.execute('SELECT "tenantId" FROM "EmailLog"') == [(tenants[1],)]
    assert len(world.deliveries("smtp")) == 1
