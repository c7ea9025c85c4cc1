"""Claims, settles and recovers batches: all that the campaign job writes about recipients.

A batch is held by a row of worker.campaign_batch. Whoever settles it deletes that row in the same
statement, so it is settled once, and a former holder settles nothing.
"""

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from worker.campaigns.batch import Batch, Kind, Outcome, Recipient
from worker.campaigns.journal import Journal, JournalDirectory
from worker.campaigns.states import RecipientState
from worker.campaigns.transport import Transport
from worker.content.campaign import OutboxRow
from worker.runtime.backoff import backoff_seconds
from worker.runtime.counters import Counters
from worker.runtime.db import Database, Row, queries
from worker.runtime.settings import Settings

log = logging.getLogger(__name__)

LEASE_SECONDS = 300.0  # a batch of another machine that was not renewed for so long has lost its holder
RENEW_SECONDS = 30.0
ASK_AFTER_SECONDS = 30.0  # by then a provider has filed, or never will, what was on the wire
RETRY_LIMIT_SECONDS = 3600.0
BACKOFF_SECONDS = 15.0  # first pause of a campaign that the provider puts off as a whole; doubles up to
BACKOFF_LIMIT_SECONDS = 300.0
ROUND_SECONDS = 1.0  # a slow sender's batch is no larger than what it can send in this time


_SETTLED = ("id", "status", "message_id", "reason", "attempts", "at")  # a row of BatchClaims._settled_row


@dataclass(frozen=True)
class SettlementResult:
    """What a settlement wrote."""

    sent: int
    failed: int
    campaign: Row | None  # the campaign's counts after it; None: the claim was lost, nothing was written


class BatchClaims:
    """The claims of one process."""

    def __init__(self, db: Database, settings: Settings, counters: Counters, clock: Callable[[], datetime]) -> None:
        """Raises SettingsError when STATE_DIR cannot hold the journals."""
        self._db = db
        self._settings = settings
        self._counters = counters
        self._clock = clock
        self._journals = JournalDirectory(settings.state_dir)
        self._sql = queries("campaign")
        self._renewed_at = time.monotonic()
        # Without a pause between batches, one half is sent while the database settles and claims the other.
        self.side_by_side = 1 if settings.campaign_batch_delay_seconds else 2

    def claim(self, campaign: Row, transport: Transport, holder: str) -> Batch | None:
        """Claims the next recipients of a run; None when none can be claimed now."""
        return self._open(
            "claim",
            campaign,
            transport,
            holder,
            size=self._size(transport),
            sender=transport.sender,
            channel=campaign["channel"],
            tenant_id=campaign["tenantId"],
        )

    def claim_unconfirmed(self, campaign: Row, transport: Transport, sender: str, holder: str) -> Batch | None:
        """Claims sends through ``sender`` of which nobody knows whether they happened, to ask the provider."""
        size = self._settings.campaign_concurrency
        batch = self._open("claim_unconfirmed", campaign, transport, holder, size=size, sender=sender)
        if batch:
            batch.may_ask = transport.sender == sender
        return batch

    def _open(self, statement: str, campaign: Row, transport: Transport, holder: str, **more: Any) -> Batch | None:
        batch_id = str(uuid4())
        journal = self._journals.create(batch_id, more["size"])
        lease_until = time.clock_gettime(time.CLOCK_BOOTTIME) + LEASE_SECONDS
        try:
            rows = self._db.all(
                self._sql[statement], campaign_id=campaign["id"], batch_id=batch_id, holder=holder,
                machine=self._journals.machine, now=self._clock(), **more,
            )  # fmt: skip
        except BaseException:
            journal.close()  # the claim may have been committed all the same: recovered through its journal
            raise
        if not rows:
            journal.remove()
            return None
        return Batch(batch_id, holder, transport, [Recipient(**row) for row in rows], journal, lease_until)

    def _size(self, transport: Transport) -> int:
        size = max(1, self._settings.campaign_batch_size // self.side_by_side)
        return size if transport.rate is None else min(size, max(1, int(transport.rate * ROUND_SECONDS)))

    def renew(self, batches: Iterable[Batch]) -> None:
        """Tells other machines now and then that this process still works on its batches; a lost one is halted."""
        open_batches = list(batches)
        if not open_batches or time.monotonic() - self._renewed_at < RENEW_SECONDS:
            return
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        for batch in open_batches:
            if self._db.all(self._sql["renew"], ids=[batch.id], holder=batch.holder):
                batch.lease_until = now + LEASE_SECONDS
            else:
                batch.halt()  # frozen for so long that another machine has settled it
        self._renewed_at = time.monotonic()

    def settle(self, campaign: Row, batch: Batch) -> SettlementResult:
        """Writes what became of each recipient of a batch, in one statement, and forgets the batch."""
        now = self._clock()
        rows = [self._settled_row(batch, recipient, now) for recipient in batch.recipients]
        accepted = [
            (recipient, outcome.accepted, outcome.at)
            for recipient in batch.recipients
            if (outcome := batch.outcomes.get(recipient.id)) and outcome.accepted
        ]
        outbox = batch.transport.outbox(accepted)
        holds = campaign["holds"] + 1 if batch.held else 0
        opted_out = [key for key, outcome in batch.outcomes.items() if outcome.kind is Kind.OPTED_OUT]
        written = self._db.execute_prepared(
            "settle",
            self._sql["settle"],
            batch_id=batch.id, holder=batch.holder, now=now,
            outcomes=_as_json(dict(zip(_SETTLED, row, strict=True)) for row in rows),
            opted_out=opted_out, channel=campaign["channel"], tenant_id=campaign["tenantId"],
            user_id=campaign["userId"], sender=batch.transport.sender, sender_address=batch.transport.sender_address,
            outbox=_as_json(_outbox_record(row) for row in outbox),
            next_batch_at=now + timedelta(seconds=self._pause(batch, holds)), holds=holds,
        )  # fmt: skip
        batch.journal.remove()
        if written is None:
            log.warning("a batch was settled by somebody else", {"campaign": campaign["id"], "batch": batch.id})
            return SettlementResult(0, 0, None)
        self._count(campaign["channel"], rows, batch)
        sent = sum(row[1] == RecipientState.SENT for row in rows)
        return SettlementResult(sent, sum(row[1] == RecipientState.FAILED for row in rows), written)

    def _pause(self, batch: Batch, holds: int) -> float:
        """Seconds until the campaign's next batch; a batch smaller than a full one waits less."""
        if batch.held:
            return max(batch.hold_seconds or 0.0, backoff_seconds(holds, BACKOFF_SECONDS, BACKOFF_LIMIT_SECONDS))
        share = min(1.0, len(batch.recipients) / self._settings.campaign_batch_size)
        return self._settings.campaign_batch_delay_seconds * share

    def _settled_row(self, batch: Batch, recipient: Recipient, now: datetime) -> tuple[Any, ...]:
        """(id, status, message id, reason, attempts, time) of one recipient, as the statement takes it."""
        outcome = batch.outcomes.get(recipient.id) or Outcome(Kind.NOT_SENT, now)
        kind = Kind.NOT_SENT if batch.held and outcome.kind is Kind.DEFERRED else outcome.kind
        attempts = recipient.attempts + 1
        pending, failed = RecipientState.PENDING, RecipientState.FAILED
        if kind is Kind.ACCEPTED and outcome.accepted:
            return recipient.id, RecipientState.SENT, outcome.accepted.message_id, None, attempts, outcome.at
        if kind in (Kind.REFUSED, Kind.OPTED_OUT):
            return recipient.id, failed, None, outcome.reason, attempts, outcome.at
        if kind is Kind.NOT_SENT:
            return recipient.id, pending, None, outcome.reason, recipient.attempts, now
        if kind is Kind.UNCONFIRMED:
            return self._unconfirmed_row(batch, recipient, outcome)
        if attempts >= self._settings.campaign_max_attempts:
            return (
                recipient.id,
                failed,
                None,
                f"given up after {attempts} tries: {outcome.reason}",
                attempts,
                now,
            )
        wait = outcome.delay_seconds
        if wait is None:
            wait = backoff_seconds(attempts, self._settings.campaign_retry_delay_seconds, RETRY_LIMIT_SECONDS)
        return recipient.id, pending, None, outcome.reason, attempts, now + timedelta(seconds=wait)

    def _unconfirmed_row(self, batch: Batch, recipient: Recipient, outcome: Outcome) -> tuple[Any, ...]:
        attempts = recipient.attempts + 1
        if batch.transport.can_be_asked and batch.may_ask:
            ask_at = outcome.at + timedelta(seconds=ASK_AFTER_SECONDS)
            return recipient.id, RecipientState.SENDING, None, outcome.reason, attempts, ask_at
        if self._settings.unconfirmed_sends == "resend" and attempts < self._settings.campaign_max_attempts:
            return recipient.id, RecipientState.PENDING, None, outcome.reason, attempts, outcome.at
        reason = f"Unconfirmed, it may have arrived: {outcome.reason}"
        return recipient.id, RecipientState.FAILED, None, reason, attempts, outcome.at

    def _count(self, channel: str, rows: list[tuple[Any, ...]], batch: Batch) -> None:
        for status in (RecipientState.SENT, RecipientState.FAILED):
            number = sum(row[1] == status for row in rows)
            if number:
                self._counters.add("messages_total", number, channel=channel, outcome=str(status))
        unconfirmed = sum(outcome.kind is Kind.UNCONFIRMED for outcome in batch.outcomes.values())
        if unconfirmed:
            self._counters.add("unconfirmed_total", unconfirmed, channel=channel)

    def orphans(self) -> Iterator["OrphanedBatch"]:
        """The batches whose holder is gone; those of the living, frozen or not, are left alone."""
        for row in self._db.all(self._sql["batches"], lease_seconds=LEASE_SECONDS):
            if orphan := self._orphan(row):
                yield orphan

    def _orphan(self, row: Row) -> "OrphanedBatch | None":
        if row["machine"] == self._journals.machine:
            with suppress(FileNotFoundError):
                journal = self._journals.seize(row["id"])
                return OrphanedBatch(row, journal) if journal else None
        if not row["lapsed"]:
            return None
        log.warning(
            "the journal of a batch is out of reach", {"campaign": row["campaign_id"], "holder": row["holder"]}
        )
        return OrphanedBatch(row, None)

    def recover(self, orphan: "OrphanedBatch", campaign: Row, transport: Transport) -> Batch:
        """The batch of a dead holder with what its journal knows; without a journal nothing is confirmed."""
        row, now = orphan.row, self._clock()
        found = self._db.all(self._sql["batch_recipients"], ids=row["recipient_ids"], campaign_id=campaign["id"])
        recipients = [Recipient(**each) for each in found]
        # by another name: an empty journal of this batch would tell a successor that nothing was sent
        journal = orphan.journal or self._journals.create(str(uuid4()), 1)
        known = orphan.journal.read() if orphan.journal and not row["asking"] else None
        entries = dict.fromkeys(row["recipient_ids"]) if known is None else known
        batch = Batch(row["id"], row["holder"], transport, recipients, journal, lease_until=0.0, halted=True)
        batch.may_ask = row["sender"] == transport.sender
        batch.outcomes = {key: Outcome.from_entry(entry, now) for key, entry in entries.items()}
        return batch

    def drop(self, orphan: "OrphanedBatch") -> None:
        """Forgets a batch whose campaign was deleted."""
        self._db.all(self._sql["drop_batch"], batch_id=orphan.row["id"])
        if orphan.journal:
            orphan.journal.remove()

    def sweep_journals(self) -> None:
        """Removes journals whose batch was settled just before its writer died."""
        old = self._journals.left_behind()
        held = (
            {row["id"] for row in self._db.all(self._sql["batches"], lease_seconds=LEASE_SECONDS)} if old else set()
        )
        for batch_id in old:
            with suppress(FileNotFoundError):
                if batch_id not in held and (journal := self._journals.seize(batch_id)):
                    journal.remove()


@dataclass(frozen=True)
class OrphanedBatch:
    """A row of worker.campaign_batch whose holder is gone, and the journal it left, if any."""

    row: Row
    journal: Journal | None

    def close(self) -> None:
        """Leaves the batch to the next try, if it was not settled."""
        if self.journal:
            self.journal.close()


def _outbox_record(row: OutboxRow) -> Row:
    ids = row.accepted
    return {
        "address": row.address, "subject": row.subject, "body": row.body, "html": row.html, "at": row.at,
        "message_id": ids.message_id, "gmail_id": ids.gmail_message_id, "gmail_thread_id": ids.gmail_thread_id,
    }  # fmt: skip


def _as_json(records: Iterable[Row]) -> str:
    """One parameter for many rows: half the time of an array for each column, here and in PostgreSQL's parser."""
    return json.dumps(list(records), ensure_ascii=False, default=datetime.isoformat)
