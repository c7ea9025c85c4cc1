"""What a database forgot is settled again: tables are set back here, and the timeline that is known is another."""

import json
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from one_run import OneRun

from sandbox.crm import Crm, utc_now
from sandbox.world import World
from worker.campaign import CampaignJob
from worker.campaigns.forgotten_messages import ForgottenMessages
from worker.campaigns.journal import JournalDirectory
from worker.messages import Accepted
from worker.runtime.db import Database, Row, queries
from worker.runtime.timeline import Timeline
from worker.sending.outcomes import Outcome, OutcomeKind

TABLES = (
    '"Campaign"', '"CampaignRecipient"', '"CampaignLog"', '"EmailLog"', "worker.campaign_run",
    "worker.campaign_batch", "worker.campaign_retry", "worker.unconfirmed_send", "worker.failure",
    "worker.suppression",
)  # fmt: skip
NAMES = {statement: name for name, statement in queries("campaign").items()}


class Died(BaseException):
    """The process dies here."""


class Hooked(Database):
    """A job's connection: a test acts before or after a statement of worker/sql/campaign.sql."""

    def __init__(self, url: str) -> None:
        super().__init__(url, "crm-worker campaign")
        self.before: dict[str, Callable[[], object]] = {}
        self.after: dict[str, Callable[[], object]] = {}

    def execute(self, statement: str, /, **parameters: Any) -> list[Row]:
        name = statement.split()[1] if statement.startswith("EXECUTE ") else NAMES.get(statement, "")
        self.before.get(name, lambda: None)()
        rows = super().execute(statement, **parameters)
        self.after.get(name, lambda: None)()
        return rows


class Forgetful:
    """A database that goes back to what it was when the test said ``remember``."""

    def __init__(self, crm: Crm, state_dir: Path) -> None:
        self._crm = crm
        self._timeline = state_dir / "timeline.campaign"
        self._rows: dict[str, Any] | None = None

    def remember(self) -> None:
        """Once: what is there now is what a standby has."""
        if self._rows is None:
            self._rows = {
                each: self._crm.value(f"SELECT coalesce(json_agg(t), '[]')::text FROM {each} t") for each in TABLES
            }

    def fail_over(self) -> None:
        assert self._rows is not None
        for each in reversed(TABLES):
            self._crm.execute(f"DELETE FROM {each}")
        for each in TABLES:
            self._crm.execute(
                f"INSERT INTO {each} SELECT * FROM json_populate_recordset(NULL::{each}, %s::json)",
                (self._rows[each],),
            )
        known, _ = json.loads(self._timeline.read_text())
        cluster, _, _ = known.partition("/")
        self._timeline.write_text(json.dumps([f"{cluster}/0000000A", None]))


@pytest.fixture
def forgetful(crm: Crm, tmp_path: Path) -> Forgetful:
    return Forgetful(crm, tmp_path)


@pytest.fixture
def hooked(database_url: str) -> Hooked:
    return Hooked(database_url)


def in_order(crm: Crm, world: World, campaign: str, *, sent: int, failed: int = 0) -> None:
    """Nobody got two messages, and all tables say what happened."""
    assert world.duplicates("smtp") == {}
    assert crm.counts(campaign) == {"sent": sent} | ({"failed": failed} if failed else {})
    statement = 'SELECT status, "sentCount", "failedCount" FROM "Campaign" WHERE id = %s'
    assert crm.execute(statement, (campaign,)) == [("completed", sent, failed)]
    filed = crm.execute("""SELECT lower("to"[1]) FROM "EmailLog" WHERE "entityId" = %s ORDER BY 1""", (campaign,))
    addresses = crm.execute(
        """SELECT lower("recipientEmail") FROM "CampaignRecipient" WHERE "campaignId" = %s AND status = 'sent'
           ORDER BY 1""",
        (campaign,),
    )
    assert filed == addresses
    assert crm.value("SELECT count(*) FROM worker.campaign_batch") == 0


def refuse_one(crm: Crm, world: World, campaign: str) -> None:
    address = crm.value(
        'SELECT min("recipientEmail") FROM "CampaignRecipient" WHERE "campaignId" = %s',
        campaign,
    )
    world.script("smtp", address, stage="rcpt", status=550, text="5.7.1 refused")


@pytest.mark.parametrize("moment", ["start_due", "claim", "settle"])
def test_whatever_was_forgotten(
    moment: str, crm: Crm, world: World, run_once: OneRun, hooked: Hooked, forgetful: Forgetful
) -> None:
    """The start, the claim or only the settlement of a batch: each person gets one message, and is counted once."""
    campaign = crm.add_campaign("email", recipients=30)
    refuse_one(crm, world, campaign)
    hooked.before["start_due"] = lambda: forgetful.remember() if moment == "start_due" else None
    hooked.after[moment] = forgetful.remember
    run_once("campaign", CampaignJob, database=hooked, CAMPAIGN_BATCH_SIZE="10")
    in_order(crm, world, campaign, sent=29, failed=1)
    forgetful.fail_over()
    assert crm.counts(campaign) != {"sent": 29, "failed": 1}
    assert run_once("campaign", CampaignJob, CAMPAIGN_BATCH_SIZE="10") == 0
    in_order(crm, world, campaign, sent=29, failed=1)
    assert world.total("smtp") == 29


def test_recipients_that_are_built_again(
    crm: Crm, world: World, run_once: OneRun, hooked: Hooked, forgetful: Forgetful
) -> None:
    """Those of a target, forgotten with its start, are built again and known by their journal."""
    emails = [f"p{number}@a.example" for number in range(20)]
    target = {"targetType": "custom", "targetFilters": {"customList": {"emails": emails}}}
    campaign = crm.add_campaign("email", recipients=0, **target)
    hooked.before["start_due"] = forgetful.remember
    run_once("campaign", CampaignJob, database=hooked)
    in_order(crm, world, campaign, sent=20)
    forgetful.fail_over()
    assert crm.counts(campaign) == {}
    run_once("campaign", CampaignJob)
    in_order(crm, world, campaign, sent=20)


@pytest.mark.parametrize(
    ("when", "statement"),
    [("before", "claim_again"), ("after", "claim_again"), ("before", "settle"), ("after", "settle")],
)
def test_killed_in_the_middle(
    when: str, statement: str, crm: Crm, world: World, run_once: OneRun, hooked: Hooked, forgetful: Forgetful
) -> None:
    """A process that dies while it settles again leaves to its successor what is left, and nothing twice."""
    campaign = crm.add_campaign("email", recipients=30)
    hooked.before["start_due"] = forgetful.remember
    run_once("campaign", CampaignJob, database=hooked, CAMPAIGN_BATCH_SIZE="10")
    forgetful.fail_over()

    def die() -> None:
        raise Died

    hooks = hooked.before if when == "before" else hooked.after
    hooks[statement] = die
    with suppress(Died):
        run_once("campaign", CampaignJob, database=hooked, CAMPAIGN_BATCH_SIZE="10")
        pytest.fail("it did not die")
    run_once("campaign", CampaignJob, CAMPAIGN_BATCH_SIZE="10")
    in_order(crm, world, campaign, sent=30)


def test_what_was_on_the_wire(
    crm: Crm, world: World, run_once: OneRun, hooked: Hooked, forgetful: Forgetful, tmp_path: Path
) -> None:
    """A message that was started and has no outcome is unconfirmed, also when its claim was forgotten."""
    campaign = crm.add_campaign("email", recipients=3)
    hooked.before["start_due"] = forgetful.remember
    run_once("campaign", CampaignJob, database=hooked)
    [kept] = tmp_path.rglob("*.kept")
    lines = kept.read_bytes().split(b"\n")
    last = max(number for number, line in enumerate(lines) if b'"accepted"' in line)
    kept.write_bytes(b"\n".join(line for number, line in enumerate(lines) if number != last))
    forgetful.fail_over()
    run_once("campaign", CampaignJob)
    assert world.duplicates("smtp") == {}
    assert crm.counts(campaign) == {"sent": 2, "failed": 1}
    reason = crm.value("""SELECT "errorMessage" FROM "CampaignRecipient" WHERE status = 'failed'""")
    assert reason.startswith("Unconfirmed, it may have arrived")


def test_who_was_set_back_since(
    crm: Crm, world: World, run_once: OneRun, hooked: Hooked, forgetful: Forgetful
) -> None:
    """A recipient whom the CRM set back after the message left gets another one, as a user wished."""
    campaign = crm.add_campaign("email", recipients=3)
    run_once("campaign", CampaignJob, database=hooked)
    forgetful.remember()
    forgetful.fail_over()
    later = utc_now() + timedelta(minutes=5)
    crm.execute("""UPDATE "CampaignRecipient" SET status = 'pending', "updatedAt" = %s""", (later,))
    crm.execute("""UPDATE "Campaign" SET status = 'scheduled', "scheduledAt" = now() - interval '1 minute'""")
    run_once("campaign", CampaignJob)
    assert crm.counts(campaign) == {"sent": 3}
    assert sorted(world.duplicates("smtp").values()) == [2, 2, 2]


def test_the_server_changes_behind_the_connection(
    crm: Crm, world: World, run_once: OneRun, hooked: Hooked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a pooler: nothing is claimed from a server of another timeline until the job has looked again."""
    monkeypatch.setattr(Hooked, "pooled", True)
    campaign = crm.add_campaign("email", recipients=3)
    sent_before_claims: list[int] = []

    def change() -> None:
        sent_before_claims.append(world.total("smtp"))
        if len(sent_before_claims) == 2:
            hooked.timeline = "00000009"

    hooked.after["campaign"] = change
    run_once("campaign", CampaignJob, database=hooked, CAMPAIGN_BATCH_SIZE="1", CAMPAIGN_BATCH_DELAY="10ms")
    assert sent_before_claims[:4] == [0, 1, 1, 2], "the second claim takes nobody; the third comes after a look"
    in_order(crm, world, campaign, sent=3)


def test_a_batch_that_is_still_sent(
    crm: Crm, database_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A claim is forgotten whose messages are on the wire: nothing is claimed until they have their answers.

    Then those that were started are in a batch again, and those that were not are left pending.
    """
    campaign = crm.add_campaign("email", recipients=3)
    rows = crm.execute('SELECT id FROM "CampaignRecipient" WHERE "campaignId" = %s ORDER BY id', (campaign,))
    sent, unanswered, not_started = (recipient_id for (recipient_id,) in rows)
    journals = JournalDirectory(tmp_path)
    (tmp_path / "timeline.campaign").write_text(json.dumps(["1/00000009", None]))
    with closing(Database(database_url, "test")) as db:
        timeline = Timeline(db, tmp_path / "timeline.campaign", utc_now)
        forgotten = ForgottenMessages(db, journals, timeline, utc_now)
        in_hand = journals.create(str(uuid4()), 3)
        in_hand.started(sent)
        in_hand.started(unanswered)
        assert not forgotten.claim_again()
        assert not forgotten.claim_again()
        assert timeline.has_changed()
        in_hand.ended(sent, Outcome(OutcomeKind.ACCEPTED, utc_now(), accepted=Accepted("<m@x>")))
        in_hand.close()
        assert forgotten.claim_again()
        assert not timeline.has_changed()
    assert [record.message for record in caplog.records].count(
        "nothing is claimed: messages of a batch that PostgreSQL forgot are still on the wire"
    ) == 1
    [(batch_id, recipient_ids)] = crm.execute("SELECT id::text, recipient_ids FROM worker.campaign_batch")
    assert sorted(recipient_ids) == [sent, unanswered]
    assert crm.value('SELECT status FROM "CampaignRecipient" WHERE id = %s', not_started) == "pending"
    journal = journals.take_over(batch_id)
    assert journal
    with closing(journal):
        outcomes = journal.read()
    assert outcomes.keys() == {sent, unanswered}
    assert outcomes[unanswered] is None
    assert outcomes[sent]
    assert outcomes[sent].accepted == Accepted("<m@x>")


def test_another_tenants_recipient(crm: Crm, database_url: str, tmp_path: Path) -> None:
    """A recipient that belongs to another tenant than its campaign is in no batch."""
    campaign, other = crm.add_campaign("email", recipients=2), crm.add_tenant()
    rows = crm.execute('SELECT id FROM "CampaignRecipient" WHERE "campaignId" = %s ORDER BY id', (campaign,))
    own, moved = (recipient_id for (recipient_id,) in rows)
    crm.execute('UPDATE "CampaignRecipient" SET "tenantId" = %s WHERE id = %s', (other, moved))
    journals = JournalDirectory(tmp_path)
    (tmp_path / "timeline.campaign").write_text(json.dumps(["1/00000009", None]))
    with closing(journals.create(str(uuid4()), 2)) as journal:
        journal.started(own)
        journal.started(moved)
    with closing(Database(database_url, "test")) as db:
        timeline = Timeline(db, tmp_path / "timeline.campaign", utc_now)
        assert ForgottenMessages(db, journals, timeline, utc_now).claim_again()
    assert crm.execute("SELECT recipient_ids FROM worker.campaign_batch") == [([own],)]
