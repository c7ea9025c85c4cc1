"""Settlements: writes what became of a batch's recipients, once, in one statement.

A row of worker.campaign_batch says who holds a batch. A settlement deletes that row in the same statement,
so a batch is settled once, and a former holder settles nothing.
"""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain
from typing import Any, NamedTuple

import orjson
import psycopg2

from worker.campaigns.batch import Batch, BatchState, Recipient
from worker.campaigns.deferrals import accepted_at, are_own_deferrals, backoffs_in_a_row, pause_seconds
from worker.campaigns.failure_record import FailureRecord, failure_record
from worker.campaigns.states import RecipientState
from worker.content.campaign import OutboxRow
from worker.runtime.counters import Counters
from worker.runtime.db import Database, Row, queries
from worker.runtime.settings import Settings
from worker.sending.outbox import is_refused_row, json_chunks
from worker.sending.outcomes import ASK_AFTER_SECONDS, FailureKind, NextStep, Outcome, OutcomeKind, RetryPolicy
from worker.sending.suppression import count_suppressions

log = logging.getLogger(__name__)

LONGEST_RETRY_DELAY_SECONDS = 3600.0


class SettledRecipient(NamedTuple):
    """A recipient as a settlement writes it.

    ``at``: of a pending one when it is tried again, of one that stays 'sending' when the provider is asked, else when
    the message was accepted or failed.
    """

    id: str
    state: RecipientState
    at: datetime
    attempts: int
    reason: str | None
    message_id: str | None


@dataclass(frozen=True, slots=True)
class CampaignCounts:
    """A campaign's counts after a settlement."""

    sent: int
    failed: int
    total: int
    status: str


@dataclass(frozen=True, slots=True)
class SettlementResult:
    """What a settlement wrote: nothing, and ``counts`` is None, when another process has settled the batch.

    ``backoffs``: of the campaign, in a row, with this batch.
    """

    sent: int = 0
    failed: int = 0
    counts: CampaignCounts | None = None
    backoffs: int = 0
    untried: int = 0  # messages that the provider does not count, where its account has a quota


class RecipientPolicy:
    """What becomes of a recipient after an outcome."""

    def __init__(self, settings: Settings) -> None:
        self._retries = RetryPolicy(
            max_attempts=settings.campaign_max_attempts,
            first_delay_seconds=settings.campaign_retry_delay_seconds,
            longest_delay_seconds=LONGEST_RETRY_DELAY_SECONDS,
            resend_unconfirmed=settings.unconfirmed_sends == "resend",
            after_rejection=NextStep.RELEASE,  # the campaign ends
        )

    def settled(self, recipient: Recipient, outcome: Outcome, now: datetime, *, can_ask: bool) -> SettledRecipient:
        attempts, accepted, message_id = recipient.attempts + 1, outcome.accepted, None
        match self._retries.next_step(outcome, recipient.attempts, can_ask=can_ask):
            case NextStep.SENT:
                state, at, reason = RecipientState.SENT, outcome.at, None
                message_id = accepted.message_id if accepted else None
            case NextStep.RELEASE:
                state, at, reason = RecipientState.PENDING, _due_again(outcome, now), outcome.reason
                attempts = recipient.attempts
            case NextStep.ASK:
                state, at, reason = RecipientState.SENDING, _later(outcome.at, ASK_AFTER_SECONDS), outcome.reason
            case NextStep.RETRY:
                state, at, reason = RecipientState.PENDING, self._retry_at(outcome, attempts, now), outcome.reason
            case NextStep.FAIL_UNCONFIRMED:
                state, at = RecipientState.FAILED, outcome.at
                reason = f"Unconfirmed, it may have arrived: {outcome.reason}"
            case NextStep.FAIL if outcome.deferred:
                tries = "1 try" if attempts == 1 else f"{attempts} tries"
                state, at, reason = RecipientState.FAILED, now, f"given up after {tries}: {outcome.reason}"
            case NextStep.FAIL:
                state, at, reason = RecipientState.FAILED, outcome.at, outcome.reason
        return SettledRecipient(recipient.id, state, at, attempts, reason, message_id)

    def _retry_at(self, outcome: Outcome, attempts: int, now: datetime) -> datetime:
        if outcome.kind is OutcomeKind.UNCONFIRMED:
            return outcome.at  # at once: the provider did not ask for a pause
        return _later(now, self._retries.delay_seconds(outcome, attempts))


class BatchSettlements:
    """The settlements of one process."""

    def __init__(self, db: Database, settings: Settings, counters: Counters, clock: Callable[[], datetime]) -> None:
        self._db = db
        self._settings = settings
        self._counters = counters
        self._clock = clock
        self._sql = queries("campaign")
        self._policy = RecipientPolicy(settings)

    def settle(self, batch: Batch) -> SettlementResult:
        """Writes what became of each recipient, and deletes the batch and its journal."""
        now, campaign, transport, outcomes = self._clock(), batch.campaign, batch.transport, batch.outcomes
        settled = self._settled(batch, outcomes, now)
        failures = self._failures(batch, settled, outcomes)
        last_accepted = accepted_at(batch, outcomes)
        backoffs = backoffs_in_a_row(batch, some_pass=last_accepted is not None)
        shared = {
            "batch_id": batch.id, "holder": batch.holder, "tenant_id": campaign.tenant_id,
            "user_id": campaign.user_id, "sender_address": transport.sender_address,
        }  # fmt: skip
        settlement = shared | {
            "now": now,
            "outcomes": _as_json(map(_outcome_record, settled)),
            "failures": _as_json(each.as_json() for each in failures),
            "accepted_at": last_accepted,
            "channel": campaign.channel,
            "sender": transport.account_key,
            "next_batch_at": _later(now, self._pause_seconds(batch, outcomes, backoffs)),
            "backoffs": backoffs,
        }
        try:
            counts = self._write(settlement, shared, json_chunks(_outbox_records(batch, outcomes)))
        except psycopg2.Error as error:
            if not is_refused_row(error):
                raise
            # what was sent stays sent, even where it cannot be filed (its user was deleted meanwhile, say)
            counts = self._write(settlement, shared, iter(()))
            reason = error.diag.message_primary or type(error).__name__  # its details may hold addresses
            log.error("e-mails were sent but not filed", {"campaign": campaign.id, "reason": reason})
        batch.journal.remove()
        if counts is None:
            log.warning("batch was settled by another worker", {"campaign": campaign.id, "batch": batch.id})
            return SettlementResult()
        states = Counter(each.state for each in settled)
        self._count(campaign.channel, states, outcomes)
        self._count_refusals(campaign.channel, failures)
        return SettlementResult(
            states[RecipientState.SENT],
            states[RecipientState.FAILED],
            _campaign_counts(counts),
            backoffs,
            _untried(batch, settled, outcomes) if batch.reservation else 0,
        )

    def _write(self, settlement: dict[str, Any], shared: dict[str, Any], outbox_chunks: Iterator[str]) -> Row | None:
        """In one statement; where the outbox is too large for that, in several of one transaction.

        Only the last one, which settles, deletes the batch: what the others filed is filed once.
        """
        first, second = next(outbox_chunks, "[]"), next(outbox_chunks, None)
        if second is None:
            return self._db.execute_one_prepared("settle", self._sql["settle"], outbox=first, **settlement)
        with self._db.transaction():
            for chunk in chain((first, second), outbox_chunks):
                self._db.execute(self._sql["file_emails"], outbox=chunk, **shared)
            return self._db.execute_one_prepared("settle", self._sql["settle"], outbox="[]", **settlement)

    def _settled(self, batch: Batch, outcomes: Mapping[str, Outcome], now: datetime) -> list[SettledRecipient]:
        """In a batch that has stopped, deferrals count as attempts only where they are recipients' own."""
        has_stopped, may_be_own = batch.state is not BatchState.SENDING, are_own_deferrals(batch, outcomes)
        settled = []
        for recipient in batch.recipients:
            outcome = outcomes.get(recipient.id) or Outcome(OutcomeKind.NOT_SENT, now)
            is_own = not has_stopped or (may_be_own and recipient.deferred)
            if outcome.kind is OutcomeKind.DEFERRED and not is_own:
                outcome = outcome._replace(kind=OutcomeKind.NOT_SENT, delay_seconds=None)
            settled.append(self._policy.settled(recipient, outcome, now, can_ask=batch.can_ask))
        return settled

    @staticmethod
    def _failures(
        batch: Batch, settled: Iterable[SettledRecipient], outcomes: Mapping[str, Outcome]
    ) -> list[FailureRecord]:
        failed = {each.id: each.at for each in settled if each.state is RecipientState.FAILED}
        if not failed:
            return []
        return [
            failure_record(each, outcomes[each.id], failed[each.id]) for each in batch.recipients if each.id in failed
        ]

    def _pause_seconds(self, batch: Batch, outcomes: Mapping[str, Outcome], backoffs: int) -> float:
        """Until the campaign's next batch. After a batch that is not full the pause is in proportion shorter.

        So it is after one of whose recipients some were not tried: they wait for their hours, say.
        """
        if batch.state is BatchState.BACKING_OFF:
            return max(batch.delay_seconds or 0.0, pause_seconds(backoffs))
        tried = sum(each.kind is not OutcomeKind.NOT_SENT for each in outcomes.values())
        share = min(1.0, tried / self._settings.campaign_batch_size)
        return self._settings.campaign_batch_delay_seconds * share

    def _count(self, channel: str, states: Counter[RecipientState], outcomes: Mapping[str, Outcome]) -> None:
        for state in (RecipientState.SENT, RecipientState.FAILED):
            if states[state]:
                self._counters.add("messages_total", states[state], channel=channel, outcome=str(state))
        unconfirmed = sum(outcome.kind is OutcomeKind.UNCONFIRMED for outcome in outcomes.values())
        if unconfirmed:
            self._counters.add("unconfirmed_total", unconfirmed, channel=channel)

    def _count_refusals(self, channel: str, failures: Collection[FailureRecord]) -> None:
        kinds = Counter(each.kind for each in failures)
        for kind in (FailureKind.ADDRESS, FailureKind.REFUSED):
            if kinds[kind]:
                self._counters.add("refusals_total", kinds[kind], channel=channel, kind=str(kind))
        for source, number in Counter(each.source for each in failures if each.source).items():
            count_suppressions(self._counters, channel, source, number)


def _due_again(outcome: Outcome, now: datetime) -> datetime:
    """When a recipient may be claimed again that was not tried: at once, or at the time that it waits for."""
    return now if outcome.delay_seconds is None else _later(outcome.at, outcome.delay_seconds)


def _later(at: datetime, seconds: float) -> datetime:
    return at + timedelta(seconds=seconds)


def _untried(batch: Batch, settled: Sequence[SettledRecipient], outcomes: Mapping[str, Outcome]) -> int:
    """How many recipients had no attempt, or one that their provider does not count."""
    pairs = zip(batch.recipients, settled, strict=True)
    return sum(after.attempts == before.attempts or not outcomes[before.id].uses_quota for before, after in pairs)


def _campaign_counts(row: Row) -> CampaignCounts | None:
    """None when the campaign was deleted, or given to another tenant, while its batch was sent."""
    if row["status"] is None:
        return None
    return CampaignCounts(row["sentCount"], row["failedCount"], row["totalRecipients"], row["status"])


def _outbox_records(batch: Batch, outcomes: Mapping[str, Outcome]) -> Iterator[dict[str, Any]]:
    """The rows of "EmailLog" for accepted e-mails."""
    content = batch.transport.content
    for recipient in batch.recipients:
        outcome = outcomes.get(recipient.id)
        if outcome and outcome.accepted and (row := content.outbox_row(recipient, outcome.accepted, outcome.at)):
            yield _outbox_record(row)


def _outcome_record(settled: SettledRecipient) -> dict[str, Any]:
    return {
        "id": settled.id, "status": settled.state, "message_id": settled.message_id, "reason": settled.reason,
        "attempts": settled.attempts, "at": settled.at,
    }  # fmt: skip


def _outbox_record(row: OutboxRow) -> dict[str, Any]:
    ids = row.accepted
    return {
        "address": row.address, "subject": row.subject, "body": row.body, "html": row.html, "at": row.at,
        "message_id": ids.message_id, "gmail_id": ids.gmail_message_id, "gmail_thread_id": ids.gmail_thread_id,
    }  # fmt: skip


def _as_json(records: Iterable[dict[str, Any]]) -> str:
    """One parameter for many rows: half the time of an array for each column, here and in PostgreSQL's parser."""
    return orjson.dumps(list(records)).decode()
