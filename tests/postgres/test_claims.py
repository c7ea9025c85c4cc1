"""Claims and settlements: who may send what, and that each outcome is written once, by the holder of its batch."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.extensions
import pytest
import redis

from sandbox import accounts
from sandbox.crm import Crm, utc_now
from worker.campaigns.batch import DEFERRALS_BEFORE_BACKOFF, BackoffCause, Batch, BatchState, Recipient
from worker.campaigns.campaign import Campaign
from worker.campaigns.claim_size import FIRST_CLAIM
from worker.campaigns.claims import BatchClaims
from worker.campaigns.deferrals import BACKOFF_SECONDS, BACKOFFS_BEFORE_END, BACKOFFS_BEFORE_OWN
from worker.campaigns.journal import JournalDirectory
from worker.campaigns.orphans import OrphanedBatches
from worker.campaigns.progress import ProgressRecord
from worker.campaigns.run import CampaignRuns
from worker.campaigns.settlement import LONGEST_RETRY_DELAY_SECONDS, BatchSettlements, SettlementResult
from worker.campaigns.targets import prepare
from worker.campaigns.transport import TransportRouter
from worker.errors import AccountRejected, CampaignRejected
from worker.messages import Accepted
from worker.runtime.counters import Counters
from worker.runtime.db import Database, queries
from worker.runtime.events import LiveEvents
from worker.runtime.lease import LEASE_SECONDS, Lease
from worker.runtime.redis_client import connect
from worker.runtime.settings import load
from worker.sending.outcomes import FailureKind, Outcome, OutcomeKind, suppressed
from worker.sending.pacing import Pace

DEADLINE_SECONDS = 60.0


CHANGE = """
UPDATE "Campaign" SET status = %s, "updatedAt" = %s WHERE id = %s;
INSERT INTO "CampaignLog" (id, "tenantId", "campaignId", action, message, "createdAt")
SELECT gen_random_uuid()::text, "tenantId", id, %s, '', statement_timestamp() AT TIME ZONE 'UTC' + interval '2 ms'
FROM "Campaign" WHERE id = %s
"""


class Clock:
    """Now, unless a test moves it."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return utc_now() + self.ahead


class Impatient(Lease):
    """A lease that is renewed whenever the worker looks at it."""

    def take_renewal(self) -> bool:
        return True


class Worker:
    """What one worker process works with: its connection, claims, settlements and runs; the test is the provider."""

    def __init__(self, name: str, environ: dict[str, str], client: redis.Redis, clock: Clock) -> None:
        self.clock = clock
        self.settings = load(environ, "campaign")
        self.db = Database(self.settings.database_url, name)
        self.transports = TransportRouter(self.settings, client, clock)
        journals = JournalDirectory(self.settings.state_dir)
        self.claims = BatchClaims(self.db, self.settings, journals, Impatient(), clock)
        self.settlements = BatchSettlements(self.db, self.settings, Counters(client, "campaign"), clock)
        self.orphans = OrphanedBatches(self.db, journals, clock)
        self.runs = CampaignRuns(self.db, LiveEvents(client), Counters(client, "campaign"), clock)
        self.open: list[Batch] = []

    def close(self) -> None:
        for batch in self.open:
            batch.journal.close()
        self.db.close()
        self.transports.close()

    def find(self, campaign_id: str) -> Campaign:
        found = self.runs.find(campaign_id)
        assert found
        return found

    def start(self, campaign_id: str) -> None:
        assert self.runs.start_due(self.clock())
        self.prepare(campaign_id)

    def prepare(self, campaign_id: str) -> None:
        prepare(self.db, self.find(campaign_id), self.clock())

    def claim(self, campaign_id: str) -> Batch | None:
        campaign = self.find(campaign_id)
        batch = self.claims.claim(campaign, self.transports.route_or_settle_only(campaign))
        self.open += [batch] if batch else []
        return batch

    def settle(self, batch: Batch) -> SettlementResult:
        return self.settlements.settle(batch)

    def recover(self, campaign_id: str) -> list[SettlementResult]:
        """Settles the orphaned batches, all of this campaign."""
        campaign = self.find(campaign_id)
        transport = self.transports.route(campaign)
        orphans = list(self.orphans.find())
        batches = [self.orphans.recover(orphan, campaign, transport) for orphan in orphans]
        return [self.settle(batch) for batch in batches if batch]

    def send(self, campaign_id: str, *kinds: OutcomeKind) -> SettlementResult | None:
        """Claims a batch and settles it with these outcomes, one for each recipient, the last one for the rest."""
        batch = self.claim(campaign_id)
        if batch is None:
            return None
        outcome(self, batch, *kinds)
        return self.settle(batch)

    def end(self, campaign_id: str) -> bool:
        return self.runs.end_or_wait(self.find(campaign_id))


def journals(worker: Worker) -> list[str]:
    """The ids of the batches that have a journal on this machine."""
    return [path.stem for path in worker.settings.state_dir.rglob("*.journal")]


def outcome(worker: Worker, batch: Batch, *kinds: OutcomeKind) -> None:
    for number, recipient in enumerate(batch.recipients):
        kind = (kinds or (OutcomeKind.ACCEPTED,))[min(number, len(kinds) - 1) if kinds else 0]
        accepted = Accepted(f"<{recipient.id}@x>") if kind is OutcomeKind.ACCEPTED else None
        reason = None if accepted else f"550 {kind}"
        batch.set_outcome(recipient.id, Outcome(kind, worker.clock(), reason, accepted=accepted))


class Office:
    """The CRM's tables as its users see them, and any number of workers."""

    def __init__(self, crm: Crm, environ: dict[str, str], client: redis.Redis, stack: ExitStack) -> None:
        self.crm = crm
        self.clock = Clock()
        self.environ = environ
        self._client = client
        self._stack = stack

    def worker(self, name: str = "one", **environ: str) -> Worker:
        made = Worker(name, self.environ | environ, self._client, self.clock)
        self._stack.callback(made.close)
        return made

    def one(self, statement: str, *parameters: Any) -> Any:
        return self.crm.value(statement, *parameters)

    def rows(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        return self.crm.execute(statement, parameters)

    def status(self, campaign_id: str) -> str:
        return str(self.one('SELECT status FROM "Campaign" WHERE id = %s', campaign_id))

    def time_passes(self, seconds: float) -> None:
        """Makes all claims look older by so much."""
        self.crm.execute(
            "UPDATE worker.campaign_batch SET renewed_at = renewed_at - make_interval(secs => %s)", (seconds,)
        )

    def set_status(self, campaign_id: str, status: str, action: str) -> None:
        """As the CRM's pages do: the status, and what was done in the log; never in the millisecond of a start."""
        self.crm.execute(CHANGE, (status, utc_now(), campaign_id, action, campaign_id))

    def pause(self, campaign_id: str) -> None:
        self.set_status(campaign_id, "paused", "paused")

    def resume(self, campaign_id: str) -> None:
        self.set_status(campaign_id, "running", "resumed")

    def log(self, campaign_id: str) -> list[str]:
        statement = 'SELECT action FROM "CampaignLog" WHERE "campaignId" = %s ORDER BY "createdAt"'
        return [action for (action,) in self.rows(statement, campaign_id)]

    def counts(self, campaign_id: str) -> dict[str, int]:
        return self.crm.counts(campaign_id)

    def counted(self, campaign_id: str) -> tuple[int, int]:
        return self.rows('SELECT "sentCount", "failedCount" FROM "Campaign" WHERE id = %s', campaign_id)[0]


@pytest.fixture
def office(crm: Crm, database_url: str, redis_url: str, tmp_path: Path) -> Iterator[Office]:
    environ = {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "STATE_DIR": str(tmp_path),
        "SMTP_URL": "smtp://127.0.0.1:1",
        "CAMPAIGN_BATCH_SIZE": "10",
        "CAMPAIGN_BATCH_DELAY": "0.001ms",  # one batch at a time, and the next one at once
        "GMAIL_RATE": "100",  # a batch is no larger than what the account may send in a second
        "ENCRYPTION_KEY": accounts.ENCRYPTION_KEY,
    }
    with ExitStack() as stack:
        client = stack.enter_context(connect(redis_url))
        yield Office(crm, environ, client, stack)


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.005)


def waits_for_a_lock(office: Office, name: str) -> bool:
    statement = "SELECT 1 FROM pg_stat_activity WHERE application_name = %s AND wait_event_type = 'Lock'"
    return bool(office.one(statement, name))


class InBackground:
    """What another worker does meanwhile; ``result()`` waits for it."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._results: list[Any] = []
        self._thread = threading.Thread(target=lambda: self._results.append(work()))
        self._thread.start()

    def result(self) -> Any:
        self._thread.join(DEADLINE_SECONDS)
        assert self._results, "it failed or takes too long"
        return self._results[0]


def test_what_is_due(office: Office) -> None:
    """A campaign starts when its time has come: neither before, nor from another status."""
    soon = office.crm.add_campaign(scheduled_at=utc_now() + timedelta(hours=1))
    others = {status: office.crm.add_campaign(status=status) for status in ("draft", "paused", "failed", "completed")}
    due = office.crm.add_campaign()
    worker = office.worker()
    assert worker.runs.start_due(utc_now()) == 1
    assert (office.status(due), office.log(due)) == ("running", ["started"])
    assert office.status(soon) == "scheduled"
    assert all(office.status(campaign_id) == status for status, campaign_id in others.items())
    office.clock.ahead = timedelta(hours=2)
    assert worker.runs.start_due(office.clock()) == 1
    assert office.status(soon) == "running"
    assert office.one('SELECT "updatedAt" FROM "Campaign" WHERE id = %s', soon) > utc_now() + timedelta(hours=1)


def test_started_once(office: Office) -> None:
    """Workers that look at the same time start each campaign once, with one line in its log."""
    campaigns = [office.crm.add_campaign() for _ in range(20)]
    workers = [office.worker(f"w{number}") for number in range(4)]
    barrier = threading.Barrier(4)

    def start(worker: Worker) -> int:
        worker.db.one("SELECT 1")
        barrier.wait(DEADLINE_SECONDS)
        return worker.runs.start_due(utc_now())

    threads = [InBackground(lambda worker=worker: start(worker)) for worker in workers]
    assert sum(thread.result() for thread in threads) == 20
    assert all(office.log(campaign_id) == ["started"] for campaign_id in campaigns)


def test_a_settlement(office: Office) -> None:
    """Accepted recipients are 'sent' with time and message id, refused ones 'failed' with time and reason."""
    campaign = office.crm.add_campaign(recipients=3)
    worker = office.worker()
    worker.start(campaign)
    office.clock.ahead = timedelta(minutes=7)
    batch = worker.claim(campaign)
    assert batch
    outcome(worker, batch, OutcomeKind.ACCEPTED, OutcomeKind.REFUSED, OutcomeKind.UNCONFIRMED)
    kinds = {recipient_id: each.kind for recipient_id, each in batch.outcomes.items()}
    settled = worker.settle(batch)
    assert (settled.sent, settled.failed) == (1, 2)
    columns = 'status, "sentAt", "failedAt", "errorMessage", "messageId", "updatedAt", id'
    rows = office.rows(f'SELECT {columns} FROM "CampaignRecipient" ORDER BY id')
    by_kind = {kind: recipient_id for recipient_id, kind in kinds.items()}
    sent, refused, unconfirmed = (
        next(row for row in rows if row[6] == by_kind[kind])
        for kind in (OutcomeKind.ACCEPTED, OutcomeKind.REFUSED, OutcomeKind.UNCONFIRMED)
    )
    late = utc_now() + timedelta(minutes=6)
    assert sent[0] == "sent"
    assert sent[1] > late
    assert sent[2:5] == (None, None, f"<{sent[6]}@x>")
    assert refused[0] == "failed"
    assert refused[2] > late
    assert (refused[1], refused[3], refused[4]) == (None, "550 refused", None)
    assert unconfirmed[0] == "failed"
    assert unconfirmed[3] == "Unconfirmed, it may have arrived: 550 unconfirmed"
    assert all(row[5] > late for row in rows)
    assert office.counted(campaign) == (1, 2)
    assert office.one('SELECT "updatedAt" FROM "Campaign" WHERE id = %s', campaign) > late
    assert office.one("SELECT count(*) FROM worker.campaign_batch") == 0
    assert journals(worker) == []


def test_the_outbox(office: Office) -> None:
    """Each accepted e-mail has one row in the CRM's outbox, filled in for its recipient; a refused one has none."""
    campaign = office.crm.add_campaign(
        recipients=[{"recipientName": "Asha", "recipientEmail": "asha@a.example"}, {"recipientName": "Ravi"}],
        subject="Hello {{name}}",
        textContent="Dear {{name}}",
        htmlContent="<p>Dear {{name}}</p>",
    )
    worker = office.worker()
    worker.start(campaign)
    batch = worker.claim(campaign)
    assert batch
    by_name = {recipient.name: recipient for recipient in batch.recipients}
    outcome(worker, batch, OutcomeKind.REFUSED)
    ids = Accepted("<m-1@x>", "gmail-1", "thread-1")
    batch.set_outcome(by_name["Asha"].id, Outcome(OutcomeKind.ACCEPTED, utc_now(), accepted=ids))
    worker.settle(batch)
    columns = '"to", subject, body, "htmlBody", status, "messageId", "gmailMessageId", "gmailThreadId"'
    assert office.rows(f'SELECT {columns} FROM "EmailLog"') == [
        (["asha@a.example"], "Hello Asha", "Dear Asha", "<p>Dear Asha</p>", "sent", "<m-1@x>", "gmail-1", "thread-1")
    ]
    columns = '"entityType", "entityId", "tenantId", "userId", "sentAt" IS NOT NULL, cc, bcc, "from"'
    row = office.rows(f'SELECT {columns} FROM "EmailLog"')[0]
    assert row[:6] == ("Campaign", campaign, office.crm.tenant_id, office.crm.user_id, True, [])
    assert row[6:] == ([], "hello@chaiwala.example")


def test_paused_in_mid_run(office: Office) -> None:
    """A campaign that is paused between two batches stops there, and the rest of its recipients stay pending."""
    campaign = office.crm.add_campaign(recipients=30)
    worker = office.worker()
    worker.start(campaign)
    worker.send(campaign)
    office.pause(campaign)
    assert worker.claim(campaign) is None
    worker.runs.disown()
    assert office.counts(campaign) == {"sent": 10, "pending": 20}
    assert office.status(campaign) == "paused"
    assert office.one("SELECT count(*) FROM worker.campaign_run") == 0
    assert worker.runs.adopt(utc_now(), 0.0) == 0


def test_paused_with_a_batch_in_flight(office: Office) -> None:
    """What was claimed before the pause is settled as it went, and the campaign stays paused."""
    campaign = office.crm.add_campaign(recipients=30)
    worker = office.worker()
    worker.start(campaign)
    batch = worker.claim(campaign)
    assert batch
    office.pause(campaign)
    worker.runs.disown()
    outcome(worker, batch)
    assert worker.settle(batch).sent == 10
    assert office.counts(campaign) == {"sent": 10, "pending": 20}
    assert (office.status(campaign), office.counted(campaign)) == ("paused", (10, 0))
    assert worker.end(campaign) is False
    assert office.status(campaign) == "paused"


def test_paused_and_resumed_between_two_claims(office: Office) -> None:
    """A resume in the CRM makes the app server send: the worker notices by the log and claims nothing more."""
    campaign = office.crm.add_campaign(recipients=30)
    worker = office.worker()
    worker.start(campaign)
    worker.send(campaign)
    office.pause(campaign)
    office.resume(campaign)
    assert office.status(campaign) == "running"
    assert worker.claim(campaign) is None
    worker.runs.disown()
    assert office.one("SELECT count(*) FROM worker.campaign_run") == 0
    assert worker.runs.adopt(utc_now(), 600.0) == 0
    assert office.counts(campaign) == {"sent": 10, "pending": 20}


def test_a_pause_while_a_claim_waits(office: Office, database_url: str) -> None:
    """A claim that meets a pause which is just being written waits for it, and then claims no recipient."""
    campaign = office.crm.add_campaign(recipients=30)
    worker = office.worker("claimer")
    worker.start(campaign)
    with closing(psycopg2.connect(database_url)) as page:
        page.cursor().execute('UPDATE "Campaign" SET status = %s WHERE id = %s', ("paused", campaign))
        claim = InBackground(lambda: worker.claim(campaign))
        wait_until(lambda: waits_for_a_lock(office, "claimer"), "a claim that waits")
        page.commit()
        assert claim.result() is None
    assert office.counts(campaign) == {"pending": 30}


def test_a_pause_and_resume_while_a_claim_waits(office: Office, database_url: str) -> None:
    """A pause and a resume that both happen while a claim waits for the campaign's row are noticed by it."""
    campaign = office.crm.add_campaign(recipients=30)
    worker = office.worker("claimer")
    worker.start(campaign)
    with closing(psycopg2.connect(database_url)) as page, page.cursor() as cursor:
        cursor.execute(CHANGE, ("paused", utc_now() + timedelta(seconds=1), campaign, "paused", campaign))
        cursor.execute(CHANGE, ("running", utc_now() + timedelta(seconds=2), campaign, "resumed", campaign))
        claim = InBackground(lambda: worker.claim(campaign))
        wait_until(lambda: waits_for_a_lock(office, "claimer"), "a claim that waits")
        page.commit()
        assert claim.result() is None
    assert worker.claim(campaign) is None
    assert office.counts(campaign) == {"pending": 30}


def quiet(office: Office, seconds: float, recipients: int = 3) -> str:
    """A campaign that an app server began to send, with nothing changed for so many seconds."""
    then = utc_now() - timedelta(seconds=seconds)
    rows = [{"updatedAt": then} for _ in range(recipients)]
    return office.crm.add_campaign(status="running", recipients=rows, updatedAt=then)


def test_the_app_servers_campaign(office: Office) -> None:
    """A campaign that an app server sends is left alone: none of its recipients is claimed, and it gets no run."""
    campaign = quiet(office, 599.0)
    worker = office.worker()
    worker.runs.start_due(utc_now())
    assert worker.runs.adopt(utc_now(), 600.0) == 0
    assert worker.claim(campaign) is None
    assert office.counts(campaign) == {"pending": 3}
    assert office.log(campaign) == []


def test_an_orphan_is_adopted(office: Office) -> None:
    """When nothing changed for CAMPAIGN_ADOPT_AFTER the worker takes over, says so in the log, and sends the rest."""
    campaign = quiet(office, 601.0)
    worker = office.worker()
    assert worker.runs.adopt(utc_now(), 600.0) == 1
    assert worker.runs.adopt(utc_now(), 600.0) == 0
    assert office.log(campaign) == ["resumed"]
    worker.runs.disown()  # its own line in the log is not somebody's resume
    worker.prepare(campaign)
    settled = worker.send(campaign)
    assert settled
    assert settled.sent == 3
    assert worker.end(campaign)
    assert office.status(campaign) == "completed"


@pytest.mark.parametrize("table", ["Campaign", "CampaignRecipient"])
def test_one_sign_of_life(office: Office, table: str) -> None:
    """One recipient that was sent to, or the campaign's own row, shows that the app server is alive."""
    campaign = quiet(office, 3600.0)
    column = "id" if table == "Campaign" else '"campaignId"'
    office.crm.execute(
        f'UPDATE "{table}" SET "updatedAt" = %s WHERE id = (SELECT min(id) FROM "{table}" WHERE {column} = %s)',
        (utc_now() - timedelta(seconds=300), campaign),
    )
    worker = office.worker()
    assert worker.runs.adopt(utc_now(), 600.0) == 0
    assert worker.runs.adopt(utc_now(), 299.0) == 1


def test_adopted_at_once(office: Office) -> None:
    """With CAMPAIGN_ADOPT_AFTER=0 a campaign that the CRM set to 'running' is the worker's at once."""
    campaign = office.crm.add_campaign(status="running", recipients=3)
    worker = office.worker()
    assert worker.runs.adopt(utc_now(), 0.0) == 1
    worker.prepare(campaign)
    assert worker.claim(campaign)


def test_adopted_once(office: Office) -> None:
    """Two workers that find an orphan at the same time do not both take it."""
    for _ in range(10):
        quiet(office, 3600.0)
    workers = [office.worker(f"w{number}") for number in range(4)]
    barrier = threading.Barrier(4)

    def adopt(worker: Worker) -> int:
        worker.db.one("SELECT 1")
        barrier.wait(DEADLINE_SECONDS)
        return worker.runs.adopt(utc_now(), 600.0)

    threads = [InBackground(lambda worker=worker: adopt(worker)) for worker in workers]
    assert sum(thread.result() for thread in threads) == 10
    assert office.one('SELECT count(*) FROM "CampaignLog" WHERE action = %s', "resumed") == 10


def test_disjoint_claims(office: Office) -> None:
    """Workers that claim side by side, lock or no lock, never get the same recipient, and together get all."""
    campaign = office.crm.add_campaign(recipients=400)
    workers = [office.worker(f"w{number}") for number in range(4)]
    workers[0].start(campaign)
    barrier = threading.Barrier(4)

    def claim_all(worker: Worker) -> list[str]:
        barrier.wait(DEADLINE_SECONDS)
        ids: list[str] = []
        while batch := worker.claim(campaign):
            ids += [recipient.id for recipient in batch.recipients]
        return ids

    threads = [InBackground(lambda worker=worker: claim_all(worker)) for worker in workers]
    claimed = Counter(recipient_id for thread in threads for recipient_id in thread.result())
    assert set(claimed.values()) == {1}
    assert len(claimed) == 400
    held = office.rows("SELECT unnest(recipient_ids) FROM worker.campaign_batch")
    assert Counter(recipient_id for (recipient_id,) in held) == claimed


def test_rows_that_the_crm_holds(office: Office, database_url: str) -> None:
    """A claim does not wait for recipients that the CRM is just writing to: it takes the others, and those later."""
    campaign = office.crm.add_campaign(recipients=10)
    worker = office.worker()
    worker.start(campaign)
    with closing(psycopg2.connect(database_url)) as page, page.cursor() as cursor:
        cursor.execute("""SELECT id FROM "CampaignRecipient" ORDER BY id LIMIT 3 FOR UPDATE""")
        locked = {recipient_id for (recipient_id,) in cursor.fetchall()}
        worker.db.all("SET lock_timeout = '1s'")
        batch = worker.claim(campaign)
        assert batch
        assert len(batch.recipients) == 7
        outcome(worker, batch)
        worker.settle(batch)
        assert worker.claim(campaign) is None
        assert worker.end(campaign) is False
        page.rollback()  # closing alone would leave the locks until the server notices
    office.clock.ahead = timedelta(seconds=2)  # it has waited
    worker.prepare(campaign)
    late = worker.claim(campaign)
    assert late
    assert {recipient.id for recipient in late.recipients} == locked


def test_a_lost_claim(office: Office) -> None:
    """A worker whose claim is gone writes nothing: no status, no count, no outbox row, no retry."""
    campaign = office.crm.add_campaign(recipients=10)
    worker = office.worker()
    worker.start(campaign)
    batch = worker.claim(campaign)
    assert batch
    office.crm.execute("DELETE FROM worker.campaign_batch")
    outcome(worker, batch, OutcomeKind.ACCEPTED, OutcomeKind.REFUSED, OutcomeKind.DEFERRED, OutcomeKind.OPTED_OUT)
    assert worker.settle(batch) == SettlementResult()
    assert office.counts(campaign) == {"sending": 10}
    assert office.counted(campaign) == (0, 0)
    for table in ('"EmailLog"', "worker.campaign_retry", "worker.suppression"):
        assert office.one(f"SELECT count(*) FROM {table}") == 0


def test_a_former_holder(office: Office) -> None:
    """Once another worker has settled a batch, its former holder changes nothing."""
    campaign = office.crm.add_campaign(recipients=10)
    first, second = office.worker("first"), office.worker("second")
    first.start(campaign)
    batch = first.claim(campaign)
    assert batch
    batch.journal.started(batch.recipients[0].id)
    batch.journal.close()  # as a process does that dies
    [settled] = second.recover(campaign)
    assert (settled.sent, settled.failed) == (0, 1)
    assert office.counts(campaign) == {"failed": 1, "pending": 9}
    outcome(first, batch)
    assert first.settle(batch).counts is None
    assert office.counts(campaign) == {"failed": 1, "pending": 9}
    assert office.one('SELECT count(*) FROM "EmailLog"') == 0


def test_another_name(office: Office) -> None:
    """A batch is settled and renewed by the holder that its row names, and by no other process."""
    campaign = office.crm.add_campaign(recipients=10)
    worker = office.worker()
    worker.start(campaign)
    batch = worker.claim(campaign)
    assert batch
    lease_until = batch.lease_until
    worker.claims.renew([batch])
    assert batch.sending
    assert batch.lease_until > lease_until
    office.crm.execute("UPDATE worker.campaign_batch SET holder = 'somebody:2:y'")
    worker.claims.renew([batch])
    assert batch.state is BatchState.LEASE_LOST
    outcome(worker, batch)
    assert worker.settle(batch) == SettlementResult()
    assert office.counts(campaign) == {"sending": 10}


def test_a_dead_workers_batch(office: Office) -> None:
    """From the journal: accepted is sent, refused failed, started without answer unconfirmed, not started pending."""
    campaign = office.crm.add_campaign(recipients=10)
    first, second = office.worker("first"), office.worker("second")
    first.start(campaign)
    batch = first.claim(campaign)
    assert batch
    ids = [recipient.id for recipient in batch.recipients]
    then = utc_now() - timedelta(seconds=30)
    office.crm.execute("UPDATE worker.campaign_run SET started_at = started_at - interval '1 min'")
    for recipient_id in ids[:4]:
        batch.journal.started(recipient_id)
    accepted = Outcome(OutcomeKind.ACCEPTED, then, accepted=Accepted("<m@x>"))
    batch.journal.ended(ids[0], accepted)
    batch.journal.ended(ids[1], accepted)
    batch.journal.ended(ids[2], Outcome(OutcomeKind.REFUSED, then, "550 no such user"))
    assert list(second.orphans.find()) == []  # it lives
    batch.journal.close()
    assert len(second.recover(campaign)) == 1
    assert office.counts(campaign) == {"sent": 2, "failed": 2, "pending": 6}
    statement = 'SELECT "errorMessage" FROM "CampaignRecipient" WHERE id = %s'
    assert office.one(statement, ids[3]).startswith("Unconfirmed, it may have arrived: the worker was stopped")
    assert office.one('SELECT "sentAt" FROM "CampaignRecipient" WHERE id = %s', ids[0]) == then
    assert office.one('SELECT count(*) FROM "EmailLog"') == 2
    assert journals(second) == []


def test_another_machines_batch(office: Office, tmp_path: Path) -> None:
    """A batch of another machine is left alone until its lease has expired; then its messages are unconfirmed."""
    campaign = office.crm.add_campaign(recipients=10)
    here, there = office.worker("here"), office.worker("there", STATE_DIR=str(tmp_path / "elsewhere"))
    there.start(campaign)
    batch = there.claim(campaign)
    assert batch
    batch.journal.close()
    assert list(here.orphans.find()) == []
    office.clock.ahead = timedelta(seconds=10 * LEASE_SECONDS)  # this machine's clock says nothing about the other
    assert list(here.orphans.find()) == []
    office.time_passes(LEASE_SECONDS - 30)
    there.claims.renew([batch])
    office.time_passes(LEASE_SECONDS - 30)
    assert list(here.orphans.find()) == []
    office.time_passes(60)
    assert len(here.recover(campaign)) == 1
    assert office.counts(campaign) == {"failed": 10}


@pytest.fixture
def two_machines(office: Office, tmp_path: Path) -> tuple[Worker, Worker]:
    """A worker, and one on another machine, with claims of 100 recipients by 8 threads."""
    environ = {"CAMPAIGN_BATCH_SIZE": "100", "CAMPAIGN_CONCURRENCY": "8"}
    return office.worker("here", **environ), office.worker("there", STATE_DIR=str(tmp_path / "elsewhere"), **environ)


def advance(office: Office, batch: Batch, may_leave: int, outcomes: dict[str, Outcome]) -> bool:
    with closing(Database(office.environ["DATABASE_URL"], "progress")) as db:
        return ProgressRecord(db).advance(batch, may_leave, outcomes)


def accepted(*recipients: Recipient) -> dict[str, Outcome]:
    return {
        each.id: Outcome(OutcomeKind.ACCEPTED, utc_now(), accepted=Accepted(f"<{each.id}@x>")) for each in recipients
    }


def test_a_lost_machines_batch(office: Office, two_machines: tuple[Worker, Worker]) -> None:
    """Known outcomes are settled, who may have been written to besides is unconfirmed, all others are pending."""
    campaign = office.crm.add_campaign(recipients=100)
    here, there = two_machines
    there.start(campaign)
    batch = there.claim(campaign)
    assert batch
    assert batch.allowance == 16
    people = batch.recipients
    refused = {people[9].id: Outcome(OutcomeKind.REFUSED, utc_now(), "550 no such user")}
    assert advance(office, batch, 25, accepted(*people[:9]))
    assert advance(office, batch, 40, accepted(*people[10:23]) | refused)
    office.time_passes(LEASE_SECONDS + 1)
    [settled] = here.recover(campaign)
    assert (settled.sent, settled.failed) == (22, 18)
    assert office.counts(campaign) == {"sent": 22, "failed": 18, "pending": 60}
    statement = """SELECT array_agg(id) FROM "CampaignRecipient"
                   WHERE status = 'failed' AND "errorMessage" LIKE 'Unconfirmed, it may have arrived:%%'"""
    assert set(office.one(statement)) == {each.id for each in people[23:40]}
    assert office.one('SELECT count(*) FROM "EmailLog"') == 22
    assert office.one("SELECT max(attempts) FROM worker.campaign_retry") == 0
    assert office.one("SELECT count(*) FROM worker.batch_progress") == 0


def test_a_lost_machine_before_it_wrote_progress(office: Office, two_machines: tuple[Worker, Worker]) -> None:
    """The claim itself says who may be written to at first; of a batch of an older version it is everybody."""
    here, there = two_machines
    for may_leave, counts in ((16, {"failed": 16, "pending": 84}), (None, {"failed": 100})):
        campaign = office.crm.add_campaign(recipients=100)
        there.start(campaign)
        assert there.claim(campaign)
        if may_leave is None:
            office.crm.execute("UPDATE worker.campaign_batch SET may_leave = NULL")
        office.time_passes(LEASE_SECONDS + 1)
        here.recover(campaign)
        assert office.counts(campaign) == counts


def test_recipients_are_written_to_in_the_order_of_the_row(
    office: Office, two_machines: tuple[Worker, Worker]
) -> None:
    """Those that were deferred come last, there as here."""
    campaign = office.crm.add_campaign(recipients=30)
    _, there = two_machines
    there.start(campaign)
    there.send(campaign, *[OutcomeKind.DEFERRED] * 10, OutcomeKind.NOT_SENT)
    office.crm.execute("UPDATE worker.campaign_retry SET due_at = due_at - interval '1 day'")
    batch = there.claim(campaign)
    assert batch
    assert [each.deferred for each in batch.recipients] == sorted(each.deferred for each in batch.recipients)
    row = office.one("SELECT recipient_ids FROM worker.campaign_batch")
    assert row == [each.id for each in batch.recipients]


def test_who_lost_its_batch_lets_nothing_leave(office: Office, two_machines: tuple[Worker, Worker]) -> None:
    """From the moment at which a batch is taken over its holder neither advances, nor renews, nor settles it."""
    campaign = office.crm.add_campaign(recipients=100)
    here, there = two_machines
    there.start(campaign)
    batch = there.claim(campaign)
    assert batch
    office.time_passes(LEASE_SECONDS + 1)
    [orphan] = here.orphans.find()
    taken = here.orphans.recover(orphan, here.find(campaign), here.transports.route(here.find(campaign)))
    assert taken
    assert not advance(office, batch, 30, accepted(*batch.recipients[:14]))
    there.claims.renew([batch])
    assert batch.state is BatchState.LEASE_LOST
    assert there.settle(batch).counts is None
    assert here.settle(taken).failed == 16
    assert office.counts(campaign) == {"failed": 16, "pending": 84}


def test_a_holder_that_comes_back_in_time(office: Office, two_machines: tuple[Worker, Worker]) -> None:
    """It has renewed its lease between the look of another machine and the taking over: it keeps its batch."""
    campaign = office.crm.add_campaign(recipients=100)
    here, there = two_machines
    there.start(campaign)
    batch = there.claim(campaign)
    assert batch
    office.time_passes(LEASE_SECONDS + 1)
    [orphan] = here.orphans.find()
    there.claims.renew([batch])
    assert here.orphans.recover(orphan, here.find(campaign), here.transports.route(here.find(campaign))) is None
    assert advance(office, batch, 30, accepted(*batch.recipients[:14]))
    outcome(there, batch)
    assert there.settle(batch).sent == 100


def test_an_advance_that_is_being_committed(office: Office, two_machines: tuple[Worker, Worker]) -> None:
    """Whoever takes the batch over waits for it: otherwise its messages would leave, and be sent again."""
    campaign = office.crm.add_campaign(recipients=100)
    here, there = two_machines
    there.start(campaign)
    batch = there.claim(campaign)
    assert batch
    office.time_passes(LEASE_SECONDS + 1)
    with closing(Database(office.environ["DATABASE_URL"], "progress")) as db:
        with db.transaction():
            assert ProgressRecord(db).advance(batch, 30, accepted(*batch.recipients[:14]))
            recovery = InBackground(lambda: here.recover(campaign))
            wait_until(lambda: waits_for_a_lock(office, "here"), "the take-over waits")
        assert recovery.result()[0].sent == 14
    assert office.counts(campaign) == {"sent": 14, "failed": 16, "pending": 70}


def test_progress_of_no_batch_is_deleted(office: Office, two_machines: tuple[Worker, Worker]) -> None:
    """An older version that settles a batch knows nothing of its progress."""
    campaign = office.crm.add_campaign(recipients=100)
    _, there = two_machines
    there.start(campaign)
    batch = there.claim(campaign)
    assert batch
    assert advance(office, batch, 30, accepted(*batch.recipients[:14]))
    statement = queries("campaign")["drop_progress"]
    there.db.execute(statement)
    assert office.one("SELECT count(*) FROM worker.batch_progress") == 1
    office.crm.execute("DELETE FROM worker.campaign_batch")
    there.db.execute(statement)
    assert office.one("SELECT count(*) FROM worker.batch_progress") == 0


class Interrupted(Database):
    """A connection that breaks after a claim was committed and before its answer comes."""

    def execute_prepared(self, name: str, statement: str, /, **parameters: Any) -> list[dict[str, Any]]:
        super().execute_prepared(name, statement, **parameters)
        raise psycopg2.OperationalError("server closed the connection unexpectedly")


def test_a_claim_whose_answer_is_lost(office: Office) -> None:
    """The claim may have been committed: it is recovered from its empty journal, so every recipient is released."""
    campaign = office.crm.add_campaign(recipients=10)
    worker = office.worker()
    worker.start(campaign)
    found = worker.find(campaign)
    with closing(Interrupted(worker.settings.database_url, "interrupted")) as db:
        journals = JournalDirectory(worker.settings.state_dir)
        claims = BatchClaims(db, worker.settings, journals, Lease(), office.clock)
        with pytest.raises(psycopg2.OperationalError):
            claims.claim(found, worker.transports.route(found))
    assert office.counts(campaign) == {"sending": 10}
    assert len(worker.recover(campaign)) == 1
    assert office.counts(campaign) == {"pending": 10}


CLAIM_AND_DIE = """
import os, sys
from sandbox.crm import utc_now
from worker.campaigns.claim_size import FIRST_CLAIM
from worker.campaigns.claims import BatchClaims
from worker.campaigns.journal import JournalDirectory
from worker.campaigns.run import CampaignRuns
from worker.campaigns.transport import TransportRouter
from worker.runtime.counters import Counters
from worker.runtime.db import Database
from worker.runtime.events import LiveEvents
from worker.runtime.lease import Lease
from worker.runtime.redis_client import connect
from worker.runtime.settings import load
settings = load(os.environ, "campaign")
client = connect(settings.redis_url)
db = Database(settings.database_url, "doomed")
campaign = CampaignRuns(db, LiveEvents(client), Counters(client, "campaign"), utc_now).find(sys.argv[1])
transport = TransportRouter(settings, client, utc_now).route(campaign)
BatchClaims(db, settings, JournalDirectory(settings.state_dir), Lease(), utc_now).claim(campaign, transport)
"""


def test_killed_while_its_claim_waits(office: Office, database_url: str) -> None:
    """A process killed while PostgreSQL still works on its claim has sent nothing: no recipient is unconfirmed."""
    campaign = office.crm.add_campaign(recipients=10)
    worker = office.worker("next")
    worker.start(campaign)
    environment = os.environ | office.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with closing(psycopg2.connect(database_url)) as page:
        page.cursor().execute('UPDATE "Campaign" SET name = name WHERE id = %s', (campaign,))
        with subprocess.Popen([sys.executable, "-c", CLAIM_AND_DIE, campaign], env=environment) as doomed:
            wait_until(lambda: waits_for_a_lock(office, "doomed") or doomed.poll() is not None, "a claim that waits")
            doomed.send_signal(signal.SIGKILL)
            doomed.wait(DEADLINE_SECONDS)
        worker.orphans.sweep_journals()  # what its successor does first
        page.commit()
    wait_until(lambda: office.one("SELECT count(*) FROM worker.campaign_batch"), "the claim of the killed process")
    assert len(worker.recover(campaign)) == 1
    assert office.counts(campaign) == {"pending": 10}


def test_journals_of_settled_batches(office: Office) -> None:
    """A journal whose batch was settled just before its holder died is removed, and no other one."""
    campaign = office.crm.add_campaign(recipients=30)
    worker = office.worker()
    worker.start(campaign)
    settled, orphaned, alive = (worker.claim(campaign) for _ in range(3))
    assert settled
    assert orphaned
    assert alive
    settled.journal.close()
    orphaned.journal.close()
    office.crm.execute("DELETE FROM worker.campaign_batch WHERE id <> %s", (orphaned.id,))
    worker.orphans.sweep_journals()
    assert set(journals(worker)) == {settled.id, orphaned.id, alive.id}  # a claim of theirs may be in progress
    for path in worker.settings.state_dir.rglob("*.journal"):
        os.utime(path, (0.0, 0.0))
    worker.orphans.sweep_journals()
    assert set(journals(worker)) == {orphaned.id, alive.id}


def test_retries(office: Office) -> None:
    """Retries that are due come first, but never fill more than half of a batch; those not yet due wait."""
    campaign = office.crm.add_campaign(recipients=60)
    worker = office.worker()
    worker.start(campaign)
    deferred = []
    for _ in range(2):
        batch = worker.claim(campaign)
        assert batch
        deferred += [recipient.id for recipient in batch.recipients]
        outcome(worker, batch, OutcomeKind.DEFERRED)
        worker.settle(batch)
    batch = worker.claim(campaign)
    assert batch
    assert not {recipient.id for recipient in batch.recipients} & set(deferred)  # not due, so they delay no other
    outcome(worker, batch)
    worker.settle(batch)
    office.clock.ahead = timedelta(seconds=61)
    batch = worker.claim(campaign)
    assert batch
    retried = [recipient for recipient in batch.recipients if recipient.id in deferred]
    assert len(retried) == 5
    assert len(batch.recipients) == 10
    assert {recipient.attempts for recipient in retried} == {1}
    assert {recipient.attempts for recipient in batch.recipients if recipient not in retried} == {0}


def test_waits_that_grow(office: Office) -> None:
    """A recipient that is deferred again and again waits longer each time, and fails after the last try."""
    campaign = office.crm.add_campaign(recipients=1)
    worker = office.worker(CAMPAIGN_MAX_ATTEMPTS="3")
    worker.start(campaign)
    waits = []
    for _ in range(2):
        assert worker.send(campaign, OutcomeKind.DEFERRED)
        due, attempts = office.rows("SELECT due_at, attempts FROM worker.campaign_retry")[0]
        waits.append(round((due - office.clock()).total_seconds()))
        assert worker.claim(campaign) is None
        assert worker.end(campaign) is False
        office.clock.ahead += timedelta(seconds=waits[-1] + 1)
    assert waits == [60, 120]
    assert attempts == 2
    settled = worker.send(campaign, OutcomeKind.DEFERRED)
    assert settled
    assert settled.failed == 1
    reason = office.one('SELECT "errorMessage" FROM "CampaignRecipient"')
    assert reason == "given up after 3 tries: 550 deferred"
    assert office.one("SELECT count(*) FROM worker.campaign_retry") == 0


def test_the_providers_own_delay(office: Office) -> None:
    """A delay that the provider names is kept to."""
    campaign = office.crm.add_campaign(recipients=1)
    worker = office.worker()
    worker.start(campaign)
    batch = worker.claim(campaign)
    assert batch
    now = office.clock()
    batch.set_outcome(batch.recipients[0].id, Outcome(OutcomeKind.DEFERRED, now, "131049", delay_seconds=86_400.0))
    worker.settle(batch)
    due = office.one("SELECT due_at FROM worker.campaign_retry")
    assert abs((due - now).total_seconds() - 86_400) < 60


def test_a_backoff(office: Office) -> None:
    """When the provider defers everything no try is counted, and the pauses of the campaign double."""
    campaign = office.crm.add_campaign(recipients=30)
    worker = office.worker(CAMPAIGN_MAX_ATTEMPTS="1")
    worker.start(campaign)
    for pause in (BACKOFF_SECONDS, 2 * BACKOFF_SECONDS):
        batch = worker.claim(campaign)
        assert batch
        for recipient in batch.recipients[:DEFERRALS_BEFORE_BACKOFF]:
            batch.record(recipient, Outcome(OutcomeKind.DEFERRED, office.clock(), "421 busy"))
        assert batch.state is BatchState.BACKING_OFF
        settled = worker.settle(batch)
        assert (settled.sent, settled.failed) == (0, 0)
        assert office.counts(campaign) == {"pending": 30}
        assert office.rows("SELECT DISTINCT attempts FROM worker.campaign_retry") == [(0,)]
        next_batch = office.one("SELECT next_batch_at FROM worker.campaign_run")
        assert abs((next_batch - office.clock()).total_seconds() - pause) < 5
        office.clock.ahead += timedelta(seconds=pause + 1)
    assert worker.send(campaign)
    assert office.one("SELECT holds FROM worker.campaign_run") == 0


def test_backoffs_while_some_messages_pass(office: Office) -> None:
    """A server that takes a few messages and defers the rest makes the campaign slower; its pauses do not double."""
    campaign = office.crm.add_campaign(recipients=30)
    worker = office.worker()
    worker.start(campaign)
    for _ in range(3):
        batch = worker.claim(campaign)
        assert batch
        outcome(worker, batch, OutcomeKind.ACCEPTED, OutcomeKind.DEFERRED)
        batch.back_off(0.0, "451 4.7.0 rate")
        worker.settle(batch)
        pause = office.one("SELECT next_batch_at FROM worker.campaign_run") - office.clock()
        assert pause <= timedelta(seconds=BACKOFF_SECONDS)
        office.clock.ahead += timedelta(seconds=BACKOFF_SECONDS)
    assert office.counts(campaign) == {"sent": 3, "pending": 27}


def one_round(worker: Worker, campaign: str, deferred: Callable[[Recipient], bool]) -> bool:
    """A batch whose messages are sent one after the other, until it stops; whether there was one, and no end."""
    batch = worker.claim(campaign)
    if batch is None:
        return not worker.end(campaign)
    for recipient in batch.recipients:
        if batch.sending:
            kind = OutcomeKind.DEFERRED if deferred(recipient) else OutcomeKind.ACCEPTED
            accepted = None if deferred(recipient) else Accepted(f"<{recipient.id}@x>")
            reason = None if accepted else "454 4.7.1 Relay access denied"
            batch.record(recipient, Outcome(kind, worker.clock(), reason, accepted=accepted))
    worker.runs.follow_up(batch, worker.settle(batch))
    return worker.find(campaign).started_at is not None


def rounds(office: Office, worker: Worker, campaign: str, deferred: Callable[[Recipient], bool]) -> int:
    """How many batches and pauses it takes until the run has ended."""
    for number in range(1, 3 * BACKOFFS_BEFORE_END):
        if not one_round(worker, campaign, deferred):
            return number
        office.clock.ahead += timedelta(seconds=LONGEST_RETRY_DELAY_SECONDS)
    raise AssertionError("the campaign never ends")


@pytest.mark.parametrize("first", [True, False])
def test_recipients_that_are_deferred_for_ever(office: Office, first: bool) -> None:
    """However many they are, and wherever they stand, the others get their message, and the campaign ends."""
    campaign = office.crm.add_campaign(recipients=40)
    worker = office.worker(CAMPAIGN_MAX_ATTEMPTS="3")
    ids = sorted(each for (each,) in office.rows('SELECT id FROM "CampaignRecipient"'))
    bad = set(ids[:12] if first else ids[-12:])
    worker.start(campaign)
    number = rounds(office, worker, campaign, lambda each: each.id in bad)
    assert office.counts(campaign) == {"sent": 28, "failed": 12}
    assert {each for (each,) in office.rows("SELECT recipient_id FROM worker.failure WHERE kind = 'deferred'")} == bad
    reasons = office.rows('SELECT DISTINCT "errorMessage" FROM "CampaignRecipient" WHERE status = \'failed\'')
    assert reasons == [("given up after 3 tries: 454 4.7.1 Relay access denied",)]
    assert (office.status(campaign), number < BACKOFFS_BEFORE_END) == ("completed", True)


def test_a_pause_of_the_account_in_mid_campaign(office: Office) -> None:
    """It counts no try, neither of those that were deferred before nor of others, however long it takes."""
    campaign = office.crm.add_campaign(recipients=400)
    worker = office.worker(CAMPAIGN_MAX_ATTEMPTS="3")
    worker.start(campaign)
    for _ in range(2):
        assert one_round(worker, campaign, lambda _: False)
        office.clock.ahead += timedelta(seconds=LONGEST_RETRY_DELAY_SECONDS)
    for _ in range(3 * BACKOFFS_BEFORE_OWN):
        assert one_round(worker, campaign, lambda _: True)
        office.clock.ahead += timedelta(seconds=LONGEST_RETRY_DELAY_SECONDS)
    assert office.rows("SELECT DISTINCT attempts FROM worker.campaign_retry") == [(0,)]
    rounds(office, worker, campaign, lambda _: False)
    assert (office.status(campaign), office.counts(campaign)) == ("completed", {"sent": 400})


def test_an_account_that_is_deferred_for_ever(office: Office) -> None:
    """The campaign fails after about a day, with the provider's words; nobody was tried too often."""
    campaign = office.crm.add_campaign(recipients=20)
    worker = office.worker(CAMPAIGN_MAX_ATTEMPTS="3")
    worker.start(campaign)
    assert rounds(office, worker, campaign, lambda _: True) == BACKOFFS_BEFORE_END
    assert (office.status(campaign), office.counts(campaign)) == ("failed", {"pending": 20})
    assert office.one("SELECT count(*) FROM worker.campaign_retry") == 0
    message = office.one("SELECT message FROM \"CampaignLog\" WHERE action = 'failed'")
    assert message.startswith(f"Nothing was accepted in {BACKOFFS_BEFORE_END} tries in a row: 454 4.7.1 Relay access")
    office.crm.execute("""UPDATE "Campaign" SET status = 'scheduled'""")
    worker.start(campaign)
    rounds(office, worker, campaign, lambda _: False)
    assert office.counts(campaign) == {"sent": 20}


def test_the_pace_of_an_account_ends_no_campaign(office: Office) -> None:
    """It is no failure, however often the campaign has to wait for it."""
    campaign = office.crm.add_campaign(recipients=10)
    worker = office.worker()
    worker.start(campaign)
    crm = office.crm
    crm.execute("UPDATE worker.campaign_run SET holds = %s", (2 * BACKOFFS_BEFORE_END,))
    batch = worker.claim(campaign)
    assert batch
    batch.back_off(0.0, "the account's pace")
    worker.runs.follow_up(batch, worker.settle(batch))
    assert office.status(campaign) == "running"


def test_a_batch_that_stops_beside_one_that_backs_off(office: Office) -> None:
    """The campaign's other batch stops, too: what of it was deferred by then counts no try either."""
    campaign = office.crm.add_campaign(recipients=20)
    worker = office.worker(CAMPAIGN_MAX_ATTEMPTS="1")
    worker.start(campaign)
    batch = worker.claim(campaign)
    assert batch
    batch.record(batch.recipients[0], Outcome(OutcomeKind.DEFERRED, office.clock(), "421 busy"))
    batch.stop()
    worker.settle(batch)
    assert office.counts(campaign) == {"pending": 20}


@pytest.mark.parametrize("delay_seconds", [5.0, 120.0])
def test_a_backoff_as_long_as_the_provider_wants(office: Office, delay_seconds: float) -> None:
    """The campaign waits for the provider's own delay, but never less than its backoff."""
    campaign = office.crm.add_campaign(recipients=10)
    worker = office.worker()
    worker.start(campaign)
    batch = worker.claim(campaign)
    assert batch
    batch.back_off(delay_seconds, "the account's pace")
    worker.settle(batch)
    next_batch = office.one("SELECT next_batch_at FROM worker.campaign_run")
    expected = max(delay_seconds, BACKOFF_SECONDS)
    assert abs((next_batch - office.clock()).total_seconds() - expected) < 5
    assert office.counts(campaign) == {"pending": 10}


def test_a_wait_during_backoffs(office: Office) -> None:
    """A campaign that has to wait for another reason keeps the number of its backoffs, so that the pauses double."""
    campaign = office.crm.add_campaign(recipients=10)
    worker = office.worker()
    worker.start(campaign)
    batch = worker.claim(campaign)
    assert batch
    batch.back_off(0.0, "421 busy")
    worker.settle(batch)
    office.clock.ahead = timedelta(seconds=2 * BACKOFF_SECONDS)
    assert worker.end(campaign) is False
    assert office.one("SELECT holds FROM worker.campaign_run") == 1


def test_an_account_that_backs_off(office: Office) -> None:
    """The account's pace grants no token for as long as the provider wants, to no campaign and no process."""
    campaign = office.crm.add_campaign("whatsapp", recipients=10)
    worker = office.worker()
    worker.start(campaign)
    batch = worker.claim(campaign)
    assert batch
    batch.back_off(60.0, "429", BackoffCause.DEFERRED)
    worker.runs.follow_up(batch, worker.settle(batch))
    pace = office.worker("other").transports.route(worker.find(campaign)).pace
    assert pace
    granted, wait_seconds = pace.take(1)
    assert granted == 0
    assert wait_seconds > 50


def test_a_mail_server_that_wants_less_mail(office: Office) -> None:
    """Without SMTP_RATE, too, no campaign of any process sends for a while; one without memory holds up nobody."""
    campaign = office.crm.add_campaign("email", recipients=10)
    worker = office.worker()
    worker.start(campaign)

    def pace_of_others() -> Pace:
        pace = office.worker("other").transports.route(worker.find(campaign)).pace
        assert pace
        return pace

    batch = worker.claim(campaign)
    assert batch
    batch.back_off(300.0, "no memory", BackoffCause.NO_MEMORY)
    worker.runs.follow_up(batch, worker.settle(batch))
    assert pace_of_others().take(7) == (7, 0.0)
    office.clock.ahead += timedelta(seconds=301)
    batch = worker.claim(campaign)
    assert batch
    for recipient in batch.recipients[:5]:
        deferred = Outcome(OutcomeKind.DEFERRED, office.clock(), "450 too much mail", account_seconds=15.0)
        batch.record(recipient, deferred)
    assert batch.state is BatchState.BACKING_OFF
    worker.runs.follow_up(batch, worker.settle(batch))
    granted, wait_seconds = pace_of_others().take(7)
    assert granted == 0
    assert 5 < wait_seconds <= 15


def test_deferred_and_then_rejected(office: Office) -> None:
    """When the provider refuses the campaign, a message that it deferred before that counts no try either."""
    campaign = office.crm.add_campaign(recipients=10)
    worker = office.worker(CAMPAIGN_MAX_ATTEMPTS="1")
    worker.start(campaign)
    batch = worker.claim(campaign)
    assert batch
    batch.record(batch.recipients[0], Outcome(OutcomeKind.DEFERRED, office.clock(), "421 busy"))
    batch.record(batch.recipients[1], Outcome(OutcomeKind.REJECTED, office.clock(), "550 content refused"))
    batch.reject(CampaignRejected("550 content refused"))
    settled = worker.settle(batch)
    worker.runs.follow_up(batch, settled)
    assert (settled.sent, settled.failed) == (0, 0)
    assert (office.status(campaign), office.counts(campaign)) == ("failed", {"pending": 10})


def add_recipient_before_all(office: Office, campaign: str) -> str:
    return office.crm.add_recipient(
        campaign, id="00000000-0000-0000-0000-000000000000", recipientEmail="late@a.example"
    )


def test_rows_added_late(office: Office) -> None:
    """A recipient added while the campaign runs, wherever its id sorts, is sent to before the campaign ends."""
    campaign = office.crm.add_campaign(recipients=10)
    worker = office.worker()
    worker.start(campaign)
    assert worker.send(campaign)
    late = add_recipient_before_all(office, campaign)
    assert worker.claim(campaign) is None
    assert worker.end(campaign) is False
    office.clock.ahead = timedelta(seconds=2)  # it has waited
    worker.prepare(campaign)
    batch = worker.claim(campaign)
    assert batch
    assert [recipient.id for recipient in batch.recipients] == [late]
    outcome(worker, batch)
    worker.settle(batch)
    assert worker.end(campaign)
    assert office.counted(campaign) == (11, 0)


def test_rows_set_back(office: Office) -> None:
    """A failed recipient that somebody sets back to pending gets another message before the campaign ends."""
    campaign = office.crm.add_campaign(recipients=10)
    worker = office.worker()
    worker.start(campaign)
    assert worker.send(campaign, OutcomeKind.REFUSED, OutcomeKind.ACCEPTED)
    office.crm.execute("""UPDATE "CampaignRecipient" SET status = 'pending' WHERE status = 'failed'""")
    assert worker.claim(campaign) is None
    assert worker.end(campaign) is False
    office.clock.ahead = timedelta(seconds=2)  # it has waited
    worker.prepare(campaign)
    settled = worker.send(campaign)
    assert settled
    assert settled.sent == 1
    assert worker.end(campaign)
    assert office.counts(campaign) == {"sent": 10}
    assert office.counted(campaign) == (10, 0)
    assert office.one('SELECT count(*) FROM "CampaignRecipient" WHERE "failedAt" IS NOT NULL') == 0


def test_scheduled_again(office: Office) -> None:
    """A campaign that ended and is scheduled anew sends to those set back, and to no others."""
    campaign = office.crm.add_campaign(recipients=10)
    worker = office.worker()
    worker.start(campaign)
    worker.send(campaign, OutcomeKind.REFUSED, OutcomeKind.ACCEPTED)
    assert worker.end(campaign)
    office.crm.execute("""UPDATE "CampaignRecipient" SET status = 'pending' WHERE status = 'failed'""")
    office.crm.execute("""UPDATE "Campaign" SET status = 'scheduled'""")
    worker.start(campaign)
    settled = worker.send(campaign)
    assert settled
    assert settled.sent == 1
    assert worker.end(campaign)
    assert office.counted(campaign) == (10, 0)


@pytest.mark.parametrize(
    ("kinds", "status", "counts"),
    [
        ([OutcomeKind.ACCEPTED], "completed", (10, 0)),
        ([OutcomeKind.ACCEPTED, OutcomeKind.REFUSED], "completed", (1, 9)),
        ([OutcomeKind.REFUSED], "failed", (0, 10)),
        ([OutcomeKind.UNCONFIRMED, OutcomeKind.OPTED_OUT], "failed", (0, 10)),
    ],
)
def test_how_it_ends(office: Office, kinds: list[OutcomeKind], status: str, counts: tuple[int, int]) -> None:
    """A campaign ends 'completed' with exact counts, and 'failed' when every send failed."""
    campaign = office.crm.add_campaign(recipients=10, totalRecipients=10)
    worker = office.worker()
    worker.start(campaign)
    worker.send(campaign, *kinds)
    assert worker.end(campaign)
    assert office.status(campaign) == status
    assert office.counted(campaign) == counts
    assert office.log(campaign) == ["started", status]
    logged = office.one('SELECT metadata FROM "CampaignLog" WHERE action = %s', status)
    assert logged == {"sentCount": counts[0], "failedCount": counts[1]}
    assert office.one('SELECT "completedAt" = "updatedAt" FROM "Campaign" WHERE id = %s', campaign)
    assert office.one("SELECT count(*) FROM worker.campaign_run") == 0


def test_nobody(office: Office) -> None:
    """A campaign whose target matches no one is 'completed'."""
    campaign = office.crm.add_campaign()
    worker = office.worker()
    worker.start(campaign)
    assert worker.claim(campaign) is None
    assert worker.end(campaign)
    assert office.status(campaign) == "completed"


def test_counts_are_counted(office: Office) -> None:
    """The counts at the end are those of the rows, whatever the CRM wrote meanwhile; who opened it was sent to."""
    campaign = office.crm.add_campaign(recipients=10, sentCount=77, failedCount=5)
    worker = office.worker()
    worker.start(campaign)
    worker.send(campaign, OutcomeKind.REFUSED, OutcomeKind.ACCEPTED)
    statement = 'UPDATE "CampaignRecipient" SET status = %s WHERE id = (SELECT max(id) FROM "CampaignRecipient")'
    office.crm.execute(statement, ("opened",))
    assert worker.end(campaign)
    assert office.counted(campaign) == (9, 1)


def test_no_end_while_another_process_has_a_batch(office: Office) -> None:
    """A campaign does not end while another process still sends its last batch."""
    campaign = office.crm.add_campaign(recipients=10)
    one, other = office.worker("one"), office.worker("other")
    one.start(campaign)
    batch = other.claim(campaign)
    assert batch
    assert one.claim(campaign) is None
    assert one.end(campaign) is False
    assert office.status(campaign) == "running"
    outcome(other, batch)
    other.settle(batch)
    assert one.end(campaign)
    assert office.counted(campaign) == (10, 0)


def test_failed_for_a_reason(office: Office) -> None:
    """A campaign that cannot go on becomes 'failed' with the reason in its log, and its recipients stay pending."""
    campaign = office.crm.add_campaign(recipients=30)
    worker = office.worker()
    worker.start(campaign)
    worker.send(campaign)
    worker.runs.fail([campaign], "132001: the template does not exist")
    assert office.status(campaign) == "failed"
    assert office.counts(campaign) == {"sent": 10, "pending": 20}
    message = office.one("""SELECT message FROM "CampaignLog" WHERE action = 'failed'""")
    assert message == "132001: the template does not exist"
    assert worker.claim(campaign) is None


def test_a_pause_wins_over_a_failure(office: Office) -> None:
    """A campaign that the user paused meanwhile is not turned into a failed one."""
    campaign = office.crm.add_campaign(recipients=30)
    worker = office.worker()
    worker.start(campaign)
    office.pause(campaign)
    worker.runs.fail([campaign], "refused")
    assert office.status(campaign) == "paused"


def reject_account(worker: Worker, campaign_id: str, reason: str) -> None:
    """The provider refuses the account of this campaign's batch."""
    batch = worker.claim(campaign_id)
    assert batch
    batch.reject(AccountRejected(reason))
    worker.runs.follow_up(batch, worker.settle(batch))


def test_a_refused_account(office: Office) -> None:
    """All running campaigns of the same WhatsApp account fail with it: no e-mail campaign, no other tenant's."""
    crm = office.crm
    other = crm.add_tenant("Other Traders")
    mine = [crm.add_campaign("whatsapp", recipients=1) for _ in range(2)]
    mail, foreign = crm.add_campaign(recipients=1), crm.add_campaign("whatsapp", recipients=1, tenant_id=other)
    worker = office.worker()
    worker.start(mine[0])
    reject_account(worker, mine[0], "190: token expired")
    assert [office.status(each) for each in (*mine, mail, foreign)] == ["failed", "failed", "running", "running"]


def test_a_revoked_grant(office: Office) -> None:
    """A user's refused Gmail ends that user's campaigns only; a refused SMTP_URL that one campaign only."""
    first = gmail_campaign(office, 1)
    tenant, user = office.rows('SELECT "tenantId", "userId" FROM "Campaign" WHERE id = %s', first)[0]
    second = office.crm.add_campaign(recipients=1, tenant_id=tenant, user_id=user)
    colleague = office.crm.add_campaign(recipients=1, tenant_id=tenant, user_id=office.crm.add_user(tenant))
    by_smtp = [office.crm.add_campaign(recipients=1) for _ in range(2)]
    worker = office.worker()
    worker.start(first)
    worker.prepare(by_smtp[0])
    reject_account(worker, first, "invalid_grant")
    assert [office.status(each) for each in (first, second, colleague)] == ["failed", "failed", "running"]
    reject_account(worker, by_smtp[0], "535 refused")
    assert [office.status(each) for each in (*by_smtp, colleague)] == ["failed", "running", "running"]


def test_opted_out(office: Office) -> None:
    """An opt-out counts in later campaigns of the tenant, however the number is written; not in another tenant's."""
    crm = office.crm
    numbers = [{"recipientPhone": "+91 98123 45678"}]
    first = crm.add_campaign("whatsapp", recipients=numbers)
    worker = office.worker()
    worker.start(first)
    worker.send(first, OutcomeKind.OPTED_OUT)
    assert office.counts(first) == {"failed": 1}
    same = crm.add_campaign("whatsapp", recipients=[{"recipientPhone": "09812345678"}])
    foreign = crm.add_campaign("whatsapp", recipients=numbers, tenant_id=crm.add_tenant("Other Traders"))
    worker.start(same)
    worker.prepare(foreign)
    told = [(batch := worker.claim(each)) and batch.recipients[0].opted_out for each in (same, foreign)]
    assert told == ["550 opted out", None]


def gmail_campaign(office: Office, recipients: int) -> str:
    """A campaign of a user who connected Gmail, which can be asked about its messages."""
    mail = accounts.mail_settings(client_secret=accounts.GOOGLE_CLIENT_SECRET)
    tenant = office.crm.add_tenant("Gmail Traders", settings={"mail": mail})
    expiry = utc_now() + timedelta(hours=1)
    columns = accounts.gmail_columns("owner@gmail.example")
    user = office.crm.add_user(tenant, gmailTokenExpiry=expiry, **columns)
    return office.crm.add_campaign(recipients=recipients, tenant_id=tenant, user_id=user)


def ask(worker: Worker, campaign_id: str) -> Batch | None:
    campaign = worker.find(campaign_id)
    transport = worker.transports.route(campaign)
    batch = worker.claims.claim_unconfirmed(campaign, transport, transport.account_key)
    worker.open += [batch] if batch else []
    return batch


def test_unconfirmed_is_asked_about(office: Office) -> None:
    """An unconfirmed message stays 'sending' until the provider was asked, if it can be; then it is sent, or due."""
    campaign = gmail_campaign(office, 2)
    worker = office.worker()
    worker.start(campaign)
    assert worker.send(campaign, OutcomeKind.UNCONFIRMED)
    assert office.counts(campaign) == {"sending": 2}
    assert worker.claim(campaign) is None
    assert worker.end(campaign) is False
    assert ask(worker, campaign) is None  # too early
    office.clock.ahead = timedelta(seconds=40)
    batch = ask(worker, campaign)
    assert batch
    assert {recipient.attempts for recipient in batch.recipients} == {1}
    outcome(worker, batch, OutcomeKind.ACCEPTED, OutcomeKind.NOT_SENT)
    worker.settle(batch)
    assert office.counts(campaign) == {"sent": 1, "pending": 1}
    settled = worker.send(campaign)
    assert settled
    assert settled.sent == 1
    assert worker.end(campaign)


def test_what_a_provider_says_of_earlier_messages(office: Office) -> None:
    """It does not mean that anything is accepted now: neither the breaker nor the backoffs begin anew."""
    campaign = gmail_campaign(office, 2)
    worker = office.worker()
    worker.start(campaign)
    assert worker.send(campaign, OutcomeKind.UNCONFIRMED)
    office.crm.execute("UPDATE worker.campaign_run SET holds = 5")
    office.clock.ahead = timedelta(seconds=40)
    batch = ask(worker, campaign)
    assert batch
    outcome(worker, batch, OutcomeKind.ACCEPTED)
    worker.settle(batch)
    assert office.counts(campaign) == {"sent": 2}
    assert office.rows("SELECT accepted_at, holds FROM worker.campaign_run") == [(None, 5)]


def test_unconfirmed_and_set_back(office: Office) -> None:
    """An unconfirmed message that the CRM settles before it is asked about does not keep its campaign from ending."""
    campaign = gmail_campaign(office, 1)
    worker = office.worker()
    worker.start(campaign)
    worker.send(campaign, OutcomeKind.UNCONFIRMED)
    office.crm.execute("""UPDATE "CampaignRecipient" SET status = 'delivered'""")
    for _ in range(3):
        office.clock.ahead += timedelta(seconds=60)
        office.time_passes(2 * LEASE_SECONDS)
        ask(worker, campaign)
        worker.recover(campaign)
    assert worker.end(campaign)
    assert office.status(campaign) == "completed"


def test_killed_while_it_asks(office: Office) -> None:
    """A process that dies while it asks about messages sends nothing: they stay unconfirmed and are asked again."""
    campaign = gmail_campaign(office, 2)
    worker = office.worker()
    worker.start(campaign)
    assert worker.send(campaign, OutcomeKind.UNCONFIRMED)
    office.clock.ahead = timedelta(seconds=40)
    asked = ask(worker, campaign)
    assert asked
    asked.journal.close()  # as a process does that dies
    assert len(office.worker("next").recover(campaign)) == 1
    assert office.counts(campaign) == {"sending": 2}
    assert office.one("SELECT count(*) FROM worker.unconfirmed_send") == 2


def test_another_account_is_not_asked(office: Office) -> None:
    """When the user has connected another Gmail account, the provider cannot be asked about earlier messages."""
    campaign = gmail_campaign(office, 3)
    first, second = office.worker("first"), office.worker("second")
    first.start(campaign)
    assert first.send(campaign, OutcomeKind.UNCONFIRMED, OutcomeKind.NOT_SENT)
    dead = first.claim(campaign)
    assert dead
    dead.journal.started(dead.recipients[0].id)
    dead.journal.close()
    account_key = dead.transport.account_key
    office.crm.execute('UPDATE "User" SET "googleEmail" = %s', ("other@gmail.example",))
    office.clock.ahead = timedelta(seconds=40)
    found = second.find(campaign)
    asked = second.claims.claim_unconfirmed(found, second.transports.route(found), account_key)
    assert asked
    assert not asked.can_ask
    outcome(second, asked, OutcomeKind.UNCONFIRMED)
    assert second.settle(asked).failed == 1
    [settled] = second.recover(campaign)
    assert settled.failed == 1
    assert office.counts(campaign) == {"failed": 2, "pending": 1}


def test_resend(office: Office) -> None:
    """With UNCONFIRMED_SENDS=resend an unconfirmed message is tried again at once instead of failing."""
    campaign = office.crm.add_campaign(recipients=1)
    worker = office.worker(UNCONFIRMED_SENDS="resend")
    worker.start(campaign)
    worker.send(campaign, OutcomeKind.UNCONFIRMED)
    assert office.counts(campaign) == {"pending": 1}
    settled = worker.send(campaign)
    assert settled
    assert settled.sent == 1


def test_one_batch_delay(office: Office) -> None:
    """After a full batch the campaign's next one waits for CAMPAIGN_BATCH_DELAY; another campaign does not."""
    first, second = office.crm.add_campaign(recipients=30), office.crm.add_campaign(recipients=30)
    worker = office.worker(CAMPAIGN_BATCH_DELAY="60s")
    worker.start(first)
    worker.prepare(second)
    worker.send(first)

    def ready() -> set[str]:
        return set(worker.runs.ready(busy=[]))

    assert ready() == {second}
    office.clock.ahead = timedelta(seconds=61)
    assert ready() == {first, second}


def test_one_batch_delay_for_all_processes(office: Office) -> None:
    """Of two workers that both saw a campaign ready, one claims; the other one's batch waits for the delay, too."""
    campaign = office.crm.add_campaign(recipients=30)
    first, second = (office.worker(name, CAMPAIGN_BATCH_DELAY="60s") for name in ("one", "two"))
    first.start(campaign)
    assert first.claim(campaign)
    assert second.claim(campaign) is None
    office.clock.ahead = timedelta(seconds=59)
    assert second.claim(campaign) is None
    office.clock.ahead = timedelta(seconds=61)
    assert second.claim(campaign)


def test_no_pause_is_made_shorter(office: Office) -> None:
    """A worker that found nothing to claim does not end the backoff that another one's settlement began meanwhile."""
    campaign = office.crm.add_campaign(recipients=30)
    first, second = office.worker("one"), office.worker("two")
    first.start(campaign)
    seen = second.find(campaign)
    batch = first.claim(campaign)
    assert batch
    batch.back_off(300, "try later", BackoffCause.DEFERRED)
    first.settle(batch)
    pause = office.rows("SELECT next_batch_at, holds FROM worker.campaign_run")
    assert second.claim(campaign) is None
    assert second.runs.end_or_wait(seen) is False
    second.runs.wait_a_moment(seen)
    second.runs.wait_for(seen, "window", office.clock() + timedelta(seconds=5), "outside of its hours")
    assert office.rows("SELECT next_batch_at, holds FROM worker.campaign_run") == pause


def test_the_delay_after_a_small_batch(office: Office) -> None:
    """After a batch of half the size the campaign waits for half of CAMPAIGN_BATCH_DELAY."""
    campaign = office.crm.add_campaign(recipients=5)
    worker = office.worker(CAMPAIGN_BATCH_DELAY="60s")
    worker.start(campaign)
    assert worker.send(campaign)
    next_batch = office.one("SELECT next_batch_at FROM worker.campaign_run")
    assert abs((next_batch - office.clock()).total_seconds() - 30) < 5


def test_a_deleted_campaign(office: Office) -> None:
    """A campaign that the CRM deletes while a batch of it is sent leaves nothing behind once that is dropped."""
    campaign = office.crm.add_campaign(recipients=10)
    worker = office.worker()
    worker.start(campaign)
    batch = worker.claim(campaign)
    assert batch
    batch.journal.close()
    office.crm.execute('DELETE FROM "Campaign"')
    worker.runs.disown()
    (orphan,) = worker.orphans.find()
    worker.orphans.drop(orphan)
    for table in ("campaign_run", "campaign_batch", "campaign_retry", "unconfirmed_send"):
        assert office.one(f"SELECT count(*) FROM worker.{table}") == 0
    assert journals(worker) == []


def test_refusals_of_one_campaign(office: Office) -> None:
    """What the database refuses for one campaign makes that one wait; only an unavailable server stops all."""
    campaign = office.crm.add_campaign(recipients=1)
    worker = office.worker()
    worker.start(campaign)
    with worker.runs.contained(campaign):
        worker.db.all("SET LOCAL statement_timeout = '1ms'; SELECT pg_sleep(1)")
    waits = office.one("SELECT next_batch_at > %s FROM worker.campaign_run", utc_now() + timedelta(seconds=60))
    assert waits
    with pytest.raises(psycopg2.OperationalError), worker.runs.contained(campaign):
        worker.db.all("SELECT pg_terminate_backend(pg_backend_pid())")


def test_a_list_in_one_line(office: Office) -> None:
    """Four hundred addresses pasted as one are one recipient that fails with the reason; the worker goes on."""
    pasted = ", ".join(f"person.{number}@example.in" for number in range(400))
    filters = {"customList": {"emails": [pasted, "asha@example.in"]}}
    campaign = office.crm.add_campaign(targetType="custom", targetFilters=filters)
    worker = office.worker()
    worker.start(campaign)
    assert office.counts(campaign) == {"pending": 2}
    batch = worker.claim(campaign)
    assert batch
    reasons = []
    for recipient in batch.recipients:
        try:
            batch.transport.content.message(recipient, utc_now())
        except ValueError as error:
            reasons.append(str(error))
    assert len(reasons) == 1
    assert "not an e-mail address" in reasons[0]


HOUR = timedelta(hours=1)


def log_row(office: Office, campaign_id: str, action: str, at: datetime) -> None:
    """As an app server writes it, with the time of its own clock."""
    row = {"tenantId": office.crm.tenant_id, "campaignId": campaign_id, "action": action, "message": "by a user"}
    office.crm.insert("CampaignLog", row | {"createdAt": at})


def given_up(worker: Worker, campaign_id: str) -> bool:
    """Whether the worker claims nothing, and then knows that the run is not its own any more."""
    batch = worker.claim(campaign_id)
    worker.runs.disown()
    left = worker.db.one("SELECT FROM worker.campaign_run WHERE campaign_id = %(id)s", id=campaign_id) is not None
    assert left == (batch is not None)
    return not left


@pytest.mark.parametrize("action", ["started", "resumed", "paused"])
@pytest.mark.parametrize("ahead", [-HOUR, timedelta(), HOUR], ids=["clock behind", "same clock", "clock ahead"])
def test_started_by_the_crm_too(office: Office, action: str, ahead: timedelta) -> None:
    """ "Start now" in the CRM's pages just after the worker's start: the app server sends, the worker stops.

    The row of the log has the time of the app server, whose clock may be wrong.
    """
    campaign = office.crm.add_campaign(recipients=30)
    worker = office.worker()
    worker.start(campaign)
    assert not given_up(worker, campaign)
    log_row(office, campaign, action, utc_now() + ahead)
    assert given_up(worker, campaign)


@pytest.mark.parametrize("ahead", [-HOUR, timedelta(), HOUR], ids=["clock behind", "same clock", "clock ahead"])
def test_started_by_the_crm_before(office: Office, ahead: timedelta) -> None:
    """What the log said before the run does not end it, whatever the app server's clock says; nor its own row."""
    campaign = office.crm.add_campaign(recipients=30)
    log_row(office, campaign, "scheduled", utc_now())
    for action in ("started", "paused", "resumed", "paused"):
        log_row(office, campaign, action, utc_now() + ahead)
    worker = office.worker()
    worker.start(campaign)
    assert office.log(campaign).count("started") == 2
    assert not given_up(worker, campaign)
    assert not given_up(worker, campaign)


def test_adopted_after_a_start_of_the_crm(office: Office) -> None:
    """A campaign that the CRM started and nobody sends is adopted, and stays so, also where its clock is ahead."""
    campaign = office.crm.add_campaign(recipients=30, status="running")
    log_row(office, campaign, "started", utc_now() + HOUR)
    worker = office.worker()
    assert worker.runs.adopt(utc_now(), 0.0) == 1
    worker.prepare(campaign)
    assert not given_up(worker, campaign)
    log_row(office, campaign, "started", utc_now() + HOUR)
    assert given_up(worker, campaign)


def test_a_run_of_an_older_version(office: Office) -> None:
    """A run that an older version began knows no number of rows: those with a later time than its own end it."""
    campaign = office.crm.add_campaign(recipients=30)
    log_row(office, campaign, "started", utc_now() - HOUR)
    worker = office.worker()
    worker.start(campaign)
    office.crm.execute("UPDATE worker.campaign_run SET log_rows = NULL")
    assert not given_up(worker, campaign)
    log_row(office, campaign, "started", utc_now() + timedelta(seconds=1))
    assert given_up(worker, campaign)


def test_started_again(office: Office) -> None:
    """A campaign that the worker sent, and that is scheduled again, is sent again: its own old rows end nothing."""
    campaign = office.crm.add_campaign(recipients=10)
    worker = office.worker()
    for _ in range(2):
        worker.start(campaign)
        worker.send(campaign)
        assert worker.end(campaign)
        office.crm.add_recipients(campaign, 0)
        office.crm.execute("""UPDATE "Campaign" SET status = 'scheduled'""")
        office.crm.execute("""UPDATE "CampaignRecipient" SET status = 'pending'""")
    assert office.log(campaign).count("started") == 2


def refuse(batch: Batch, *, accept_first: bool = False) -> None:
    """Everybody is refused with the same reply, after the first message was accepted or without that."""
    now = utc_now()
    for recipient in batch.recipients:
        outcome = Outcome(OutcomeKind.REFUSED, now + timedelta(seconds=1), "553 5.7.1 no", code="553 5.7.1")
        if accept_first and recipient is batch.recipients[0]:
            outcome = Outcome(OutcomeKind.ACCEPTED, now, accepted=Accepted(f"<{recipient.id}@x>"))
        batch.set_outcome(recipient.id, outcome)


def refusals(office: Office) -> int:
    return int(office.one("SELECT count(*) FROM worker.failure WHERE kind = 'refused'"))


@pytest.mark.parametrize("order", ["settled before", "settled after", "settled meanwhile", "ended meanwhile"])
def test_refused_by_another_process_when_the_run_fails(office: Office, database_url: str, order: str) -> None:
    """One process learns that the account is rejected; who was refused in another's batch is pending again."""
    campaign = office.crm.add_campaign(recipients=25)
    one, two = office.worker("one"), office.worker("two")
    one.start(campaign)
    for worker in (one, two):
        batch = worker.claim(campaign)
        assert batch
        refuse(batch, accept_first=True)
    one.settle(one.open[0])

    def settle() -> SettlementResult:
        return two.settle(two.open[0])

    def fail() -> bool:
        one.runs.fail([campaign], "535 5.7.8 no such user")
        return True

    steps = [settle, fail] if order in ("settled before", "ended meanwhile") else [fail, settle]
    if order.endswith("meanwhile"):
        with closing(psycopg2.connect(database_url)) as page:
            page.cursor().execute("SELECT FROM worker.campaign_run FOR UPDATE")
            first = InBackground(steps[0])
            wait_until(lambda: waits_for_a_lock(office, "two" if steps[0] is settle else "one"), "the first waits")
            second = InBackground(steps[1])
            wait_until(lambda: waits_for_a_lock(office, "one" if steps[0] is settle else "two"), "so does the other")
            page.rollback()
            assert first.result()
            assert second.result()
    else:
        assert all(step() for step in steps)
    assert office.counts(campaign) == {"pending": 23, "sent": 2}
    assert (office.status(campaign), office.counted(campaign)) == ("failed", (2, 0))
    assert refusals(office) == 0
    assert office.log(campaign) == ["started", "failed"]


def test_refused_in_a_batch_that_is_settled_after_a_pause(office: Office) -> None:
    """A pause says nothing about the refusals before it: they stay failed, with the provider's words."""
    campaign = office.crm.add_campaign(recipients=5)
    worker = office.worker()
    worker.start(campaign)
    batch = worker.claim(campaign)
    assert batch
    refuse(batch, accept_first=True)
    office.crm.execute('UPDATE "Campaign" SET status = %s', ["paused"])
    office.crm.execute("DELETE FROM worker.campaign_run")
    assert worker.settle(batch)
    assert office.counts(campaign) == {"failed": 4, "sent": 1}
    assert refusals(office) == 4


def test_who_was_not_written_to_says_nothing_of_the_rate(office: Office) -> None:
    """A batch of suppressed recipients ends at once; the next claim is as small as the first one."""
    campaign = office.crm.add_campaign(recipients=100)
    worker = office.worker(CAMPAIGN_BATCH_DELAY="0", CAMPAIGN_BATCH_SIZE="100")
    worker.start(campaign)
    for _ in range(2):
        batch = worker.claim(campaign)
        assert batch
        assert len(batch.recipients) == FIRST_CLAIM
        for each in batch.recipients:
            batch.set_outcome(each.id, suppressed("unsubscribed", utc_now()))
        worker.claims.measured(batch)
        assert worker.settle(batch)


def test_what_stays_failed_when_the_run_ended_meanwhile(office: Office) -> None:
    """Dead addresses, full mailboxes, and what is unconfirmed."""
    campaign = office.crm.add_campaign(recipients=5)
    worker = office.worker()
    worker.start(campaign)
    batch = worker.claim(campaign)
    assert batch
    accepted, dead, full, unconfirmed, refused = (each.id for each in batch.recipients)
    later = utc_now() + timedelta(seconds=1)
    outcomes = {
        accepted: Outcome(OutcomeKind.ACCEPTED, utc_now(), accepted=Accepted("<m@x>")),
        dead: Outcome(OutcomeKind.REFUSED, later, "550 5.1.1", code="550 5.1.1", fault=FailureKind.ADDRESS),
        full: Outcome(OutcomeKind.REFUSED, later, "552 5.2.2", code="552 5.2.2", fault=FailureKind.REFUSED),
        unconfirmed: Outcome(OutcomeKind.UNCONFIRMED, later, "no answer"),
        refused: Outcome(OutcomeKind.REFUSED, later, "553 5.7.1 no", code="553 5.7.1"),
    }
    for recipient_id, each in outcomes.items():
        batch.set_outcome(recipient_id, each)
    worker.runs.fail([campaign], "535 no")
    settled = worker.settle(batch)
    states = dict(office.rows('SELECT id, status FROM "CampaignRecipient"'))
    failed = dict.fromkeys((dead, full, unconfirmed), "failed")
    assert states == failed | {accepted: "sent", refused: "pending"}
    assert office.counted(campaign) == (1, 3)
    assert settled.counts
    assert (settled.counts.sent, settled.counts.failed, settled.counts.status) == (1, 3, "failed")
    assert office.one("SELECT count(*) FROM worker.failure") == 3


def test_streaks_of_several_processes(office: Office) -> None:
    """None has 20 in a row, all together have: the run is broken off, and does not end as "Every send failed"."""
    campaign = office.crm.add_campaign(recipients=24)
    workers = [office.worker(name, CAMPAIGN_BATCH_SIZE="8") for name in ("one", "two", "three")]
    workers[0].start(campaign)
    for worker in workers:
        batch = worker.claim(campaign)
        assert batch
        assert len(batch.recipients) == 8
        refuse(batch)
    for worker in workers:
        assert not workers[0].end(campaign)
        assert office.status(campaign) == "running"
        worker.settle(worker.open[0])
    assert not workers[0].end(campaign)
    assert (office.status(campaign), office.counted(campaign)) == ("failed", (0, 0))
    assert office.counts(campaign) == {"pending": 24}
    message = 'SELECT message FROM "CampaignLog" ORDER BY "createdAt" DESC'
    assert office.one(message).startswith("24 recipients in a row were refused with the same reply: 553 5.7.1 no")
    assert refusals(office) == 0


def test_refused_in_an_earlier_run(office: Office) -> None:
    """A batch outlives its run, and the next run has begun: that one sends to those who were refused before."""
    campaign = office.crm.add_campaign(recipients=15)
    one, two = office.worker("one"), office.worker("two")
    one.start(campaign)
    batch = one.claim(campaign)
    assert batch
    refuse(batch)
    two.runs.fail([campaign], "535 no")
    office.crm.execute("""UPDATE "Campaign" SET status = 'scheduled'""")
    office.clock.ahead = timedelta(seconds=2)
    two.start(campaign)
    office.crm.execute("UPDATE worker.campaign_run SET started_at = started_at + interval '2 s'")
    assert two.send(campaign)
    assert one.settle(batch).counts
    assert (office.counts(campaign), office.counted(campaign)) == ({"pending": 10, "sent": 5}, (5, 0))
    assert not two.end(campaign), "some are pending before its position"
    office.clock.ahead = timedelta(seconds=4)
    two.prepare(campaign)
    assert two.send(campaign)
    assert two.end(campaign)
    assert office.counts(campaign) == {"sent": 15}


def test_a_dead_process_had_refusals_when_the_run_failed(office: Office) -> None:
    """Its batch is settled from its journal after the end: who was refused is pending, who was sent to is not."""
    campaign = office.crm.add_campaign(recipients=10)
    doomed, worker = office.worker("doomed"), office.worker("next")
    worker.start(campaign)
    batch = doomed.claim(campaign)
    assert batch
    ids = [each.id for each in batch.recipients]
    for recipient_id in ids[:4]:
        batch.journal.started(recipient_id)
    batch.journal.ended(ids[0], Outcome(OutcomeKind.ACCEPTED, utc_now(), accepted=Accepted("<m@x>")))
    for recipient_id in ids[1:3]:
        later = utc_now() + timedelta(seconds=1)
        batch.journal.ended(recipient_id, Outcome(OutcomeKind.REFUSED, later, "553 5.7.1 no", code="553 5.7.1"))
    batch.journal.close()
    worker.runs.fail([campaign], "535 no")
    assert len(worker.recover(campaign)) == 1
    assert office.counts(campaign) == {"sent": 1, "failed": 1, "pending": 8}  # one was on the wire
    assert (office.counted(campaign), refusals(office)) == ((1, 1), 0)


@pytest.mark.parametrize("ended", [False, True])
def test_killed_while_its_settlement_waits(office: Office, database_url: str, ended: bool) -> None:
    """A settlement is undone as a whole: no refusal of it stays, and a successor settles it from the journal."""
    campaign = office.crm.add_campaign(recipients=10)
    doomed, worker = office.worker("doomed"), office.worker("next")
    worker.start(campaign)
    batch = doomed.claim(campaign)
    assert batch
    for recipient in batch.recipients:
        batch.journal.started(recipient.id)
        batch.journal.ended(recipient.id, Outcome(OutcomeKind.REFUSED, utc_now(), "553 5.7.1", code="553 5.7.1"))
    refuse(batch)
    if ended:
        worker.runs.fail([campaign], "535 no")
    with closing(psycopg2.connect(database_url)) as page:
        page.cursor().execute('SELECT FROM "Campaign" FOR UPDATE')
        settlement = InBackground(lambda: lost(doomed, batch))
        wait_until(lambda: waits_for_a_lock(office, "doomed"), "the settlement waits")
        office.crm.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'doomed'")
        assert settlement.result()
        page.rollback()
    batch.journal.close()
    assert office.counts(campaign) == {"sending": 10}
    assert len(worker.recover(campaign)) == 1
    if not ended:
        assert office.counts(campaign) == {"failed": 10}
        worker.runs.fail([campaign], "535 no")
    assert (office.counts(campaign), office.counted(campaign)) == ({"pending": 10}, (0, 0))
    assert refusals(office) == 0


def lost(worker: Worker, batch: Batch) -> bool:
    """Whether the connection is lost while the batch is settled."""
    with pytest.raises(psycopg2.OperationalError):
        worker.settle(batch)
    return True
