"""Claims of queued calls: everything that the job writes about them into the database.

A call is held by a row of worker.call_claim from before it is placed until it is booked, failed or released.
The statement that settles a call deletes that row, so it is settled once, and a former holder settles nothing.
"""

import json
import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from worker.calling.queued_call import CallCandidate, CallFailure, ClaimedCall, QueuedCall, StuckCall
from worker.calling.reporting import CallReporter
from worker.content.calls import crm_status, retry_delay_seconds
from worker.errors import RecipientOptedOut, RecipientRefused, RetryLater, SendError
from worker.providers.twilio import PlacedCall
from worker.runtime.backoff import backoff_seconds
from worker.runtime.db import queries
from worker.runtime.job import JobContext
from worker.runtime.lease import LEASE_SECONDS, Lease
from worker.sending.outcomes import ASK_AFTER_SECONDS

log = logging.getLogger(__name__)

ASK_LIMIT_SECONDS = 600.0  # between two questions about one call
CLOCK_SKEW_SECONDS = 60.0  # between Twilio's clock and the database's
CLAIM_SECONDS = 10  # a worker that freezes while it claims keeps the others from claiming for so long
LONGEST_REASON = 500  # characters


class CallClaims:
    """The claims of one process."""

    def __init__(self, context: JobContext, reporter: CallReporter) -> None:
        self._db = context.database
        self._clock = context.clock
        self._reporter = reporter
        self._lease = Lease()
        self._sql = queries("calls")

    def claim(self, candidates: Sequence[CallCandidate], now: datetime) -> list[tuple[CallCandidate, ClaimedCall]]:
        """Claims those still pending for which their tenant has a slot; none while another worker claims."""
        if not candidates:
            return []
        wanted = [_wanted(place, each) for place, each in enumerate(candidates)]
        claimed_at = self._clock()
        with self._db.transaction():
            lock = self._db.execute_one(self._sql["lock_claiming"], claim_seconds=CLAIM_SECONDS)
            if not (lock and lock["is_mine"]):
                return []
            rows = self._db.execute(self._sql["claim"], wanted=_as_json(wanted), holder=self._lease.holder, now=now)
        ids = {row["id"] for row in rows}
        return [(each, _claimed(each, claimed_at)) for each in candidates if each.call.id in ids]

    def book(self, claim: ClaimedCall, placed: PlacedCall) -> None:
        """Twilio placed the call. Writes nothing when another worker has settled it meanwhile."""
        booked = self._db.execute_one(
            self._sql["book"],
            id=claim.id,
            holder=self._lease.holder,
            sid=placed.sid,
            status=crm_status(placed.status),
            now=self._clock(),
        )
        if booked is None:
            self._reporter.lost(claim)
        else:
            self._reporter.placed(claim, placed.sid, booked["call_log"], booked["queue_item"])

    def fail(self, claim: ClaimedCall, error: SendError) -> None:
        """The call was not placed: it is tried again as the queue's row allows, or never."""
        if isinstance(error, RecipientOptedOut):
            # first: a call that is tried again does no harm, an opt-out that is forgotten does
            self._db.execute(
                self._sql["suppress"],
                tenant_id=claim.tenant_id,
                number=claim.to_number,
                reason=str(error)[:LONGEST_REASON],
                now=self._clock(),
            )
        wish_seconds = error.delay_seconds if isinstance(error, RetryLater) else None
        delay_seconds = max(retry_delay_seconds(claim.attempts + 1), wish_seconds or 0.0)
        self._fail(claim, str(error), is_final=isinstance(error, RecipientRefused), delay_seconds=delay_seconds)

    def give_up(self, claim: ClaimedCall, reason: str) -> None:
        """Twilio could not be asked about the call for too long: it fails, and is never placed again."""
        if self._fail(claim, _unconfirmed(reason), is_final=True, delay_seconds=0.0) == "failed":
            self._reporter.given_up()

    def fail_unclaimed(self, failures: Sequence[CallFailure]) -> None:
        """Fails calls that cannot be placed; they are not claimed for it."""
        now = self._clock()
        reasons = {each.call.id: each.reason[:LONGEST_REASON] for each in failures}
        records = [
            {
                "id": each.call.id,
                "reason": reasons[each.call.id],
                "is_final": each.is_final,
                "retry_at": now + timedelta(seconds=retry_delay_seconds(each.call.attempts + 1)),
            }
            for each in failures
        ]
        if not records:
            return
        for row in self._db.execute(self._sql["fail_unclaimed"], failures=_as_json(records), now=now):
            self._reporter.not_placed(row["id"], row["tenant_id"], row["status"], reasons[row["id"]])

    def release(self, claim: ClaimedCall) -> None:
        """The call was certainly not placed, which is no fault of its own: it is due again at once."""
        self._db.execute(self._sql["release"], id=claim.id, holder=self._lease.holder, now=self._clock())
        self._reporter.counts.put_back += 1

    def mark_unconfirmed(self, claim: ClaimedCall, reason: str | None, *, asked: int = 0) -> None:
        """No answer came: Twilio is asked about the call, later each time. ``reason`` None: its process died."""
        delay_seconds = backoff_seconds(asked + 1, ASK_AFTER_SECONDS, ASK_LIMIT_SECONDS)
        self._db.execute(
            self._sql["mark_unconfirmed"],
            id=claim.id,
            holder=self._lease.holder,
            ask_at=self._clock() + timedelta(seconds=delay_seconds),
            asked=asked,
            reason=reason and reason[:LONGEST_REASON],
        )

    def mark_orphans_unconfirmed(self, in_hand: set[str]) -> None:
        """Marks the calls whose process is dead; those of living processes, frozen or not, are left alone."""
        orphans = [
            row
            for row in self._db.all(self._sql["claims_in_hand"], lease_seconds=LEASE_SECONDS)
            if self._lease.is_orphaned(row["holder"], lapsed=row["lapsed"], in_hand=row["id"] in in_hand)
        ]
        if not orphans:
            return
        self._db.execute(
            self._sql["mark_orphans_unconfirmed"],
            ids=[row["id"] for row in orphans],
            holders=[row["holder"] for row in orphans],
            ask_at=self._clock() + timedelta(seconds=ASK_AFTER_SECONDS),
        )
        log.warning("calls left by a dead process, Twilio will be asked about them", {"calls": len(orphans)})

    def take_unconfirmed(self, now: datetime, size: int, in_hand: set[str]) -> list[ClaimedCall]:
        """Takes over the calls about which Twilio can be asked now, except those ``in_hand``."""
        rows = self._db.execute(
            self._sql["take_unconfirmed"],
            now=now,
            size=size,
            ask_again_at=now + timedelta(seconds=LEASE_SECONDS),
            holder=self._lease.holder,
            in_hand=list(in_hand),
        )
        return [ClaimedCall(**row) for row in rows]

    def stuck_calls(self, now: datetime) -> list[StuckCall]:
        """Calls that have been 'processing' for LEASE_SECONDS without a claim."""
        rows = self._db.all(self._sql["stuck_calls"], before=now - timedelta(seconds=LEASE_SECONDS))
        return [StuckCall(QueuedCall.from_row(row), row["updatedAt"]) for row in rows]

    def adopt(self, stuck: StuckCall, account_sid: str, from_number: str, to_number: str) -> None:
        """Claims a stuck call, so that Twilio is asked about it."""
        self._db.execute(
            self._sql["adopt"],
            id=stuck.call.id,
            updated_at=stuck.updated_at,
            account_sid=account_sid,
            from_number=from_number,
            to_number=to_number,
            item=_as_json(stuck.call.as_item()),
            holder=self._lease.holder,
            claimed_at=stuck.updated_at - timedelta(seconds=CLOCK_SKEW_SECONDS),
            now=self._clock(),
        )

    def fail_stuck(self, stuck: StuckCall, reason: str) -> None:
        """Fails a stuck call about which Twilio cannot be asked, if it still is stuck."""
        reason = _unconfirmed(reason)[:LONGEST_REASON]
        failed = self._db.execute_one(
            self._sql["fail_stuck"],
            id=stuck.call.id,
            updated_at=stuck.updated_at,
            reason=reason,
            now=self._clock(),
        )
        if failed:
            self._reporter.given_up()
            self._reporter.not_placed(stuck.call.id, stuck.call.tenant_id, "failed", reason)

    def possible_calls(self, claim: ClaimedCall, calls: Sequence[PlacedCall]) -> list[PlacedCall]:
        """Those of Twilio's ``calls`` that may be the claim's: no other tenant's, and no other queued call's."""
        if not calls:
            return []
        sids = [call.sid for call in calls]
        rows = self._db.all(self._sql["sids_of_other_calls"], sids=sids, tenant_id=claim.tenant_id)
        others = {row["sid"] for row in rows}
        return [call for call in calls if call.sid not in others]

    def _fail(self, claim: ClaimedCall, reason: str, *, is_final: bool, delay_seconds: float) -> str | None:
        """The new status of the queue's row; None when another worker has settled the call meanwhile."""
        now = self._clock()
        row = self._db.execute_one(
            self._sql["fail"],
            id=claim.id,
            holder=self._lease.holder,
            is_final=is_final,
            reason=reason[:LONGEST_REASON],
            retry_at=now + timedelta(seconds=delay_seconds),
            now=now,
        )
        if row is None:
            self._reporter.lost(claim)
            return None
        status = str(row["status"] or "cancelled")  # by the CRM, which may have deleted the row, too
        self._reporter.not_placed(claim.id, claim.tenant_id, status, reason)
        return status


def _wanted(place: int, candidate: CallCandidate) -> dict[str, Any]:
    """``place``: among all candidates; who comes first gets a slot first."""
    return {
        "id": candidate.call.id,
        "tenant_id": candidate.account.tenant_id,
        "account_sid": candidate.account.account_sid,
        "from_number": candidate.account.from_number,
        "to_number": candidate.to_number,
        "place": place,
        "item": candidate.call.as_item(),
    }


def _claimed(candidate: CallCandidate, claimed_at: datetime) -> ClaimedCall:
    return ClaimedCall(
        id=candidate.call.id,
        tenant_id=candidate.account.tenant_id,
        account_sid=candidate.account.account_sid,
        from_number=candidate.account.from_number,
        to_number=candidate.to_number,
        attempts=candidate.call.attempts,
        claimed_at=claimed_at,
    )


def _unconfirmed(reason: str) -> str:
    return f"Unconfirmed, it may have been placed: {reason}"


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=datetime.isoformat)
