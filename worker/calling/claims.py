"""Claims of queued calls: which calls this process places or asks Twilio about.

A call is held by a row of worker.call_claim from before it is placed until it is settled (settlement.py).
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import psycopg2

from worker.calling.queued_call import CallCandidate, CallFailure, ClaimedCall, QueuedCall, ReadyCall
from worker.calling.refusals import isolated, reason_of
from worker.calling.settlement import CallSettlement
from worker.providers.twilio import PlacedCall
from worker.runtime.db import Row, queries
from worker.runtime.job import JobContext
from worker.runtime.lease import LEASE_SECONDS, Lease
from worker.sending.outcomes import ASK_AFTER_SECONDS

log = logging.getLogger(__name__)

CLOCK_SKEW_SECONDS = 60.0  # between Twilio's clock and the database's
CLAIM_SECONDS = 10  # a worker that freezes while it claims keeps the others from claiming for so long


@dataclass(frozen=True, slots=True)
class PossibleCalls:
    """What Twilio lists for a claim. ``own``: may be the claim's call; ``doubtful``: logged for another tenant."""

    own: list[PlacedCall]
    doubtful: list[PlacedCall]


class CallClaims:
    """The claims of one process."""

    def __init__(self, context: JobContext, lease: Lease, settlement: CallSettlement) -> None:
        self._db = context.database
        self._clock = context.clock
        self._lease = lease
        self._settlement = settlement
        self._sql = queries("calls")

    def claim(self, candidates: Sequence[CallCandidate], now: datetime) -> list[ReadyCall]:
        """Claims those still pending for which their tenant has a slot; none while another worker claims."""
        return isolated(candidates, partial(self._claim, now), self._refuse) if candidates else []

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

    def stuck_calls(self, before: datetime) -> list[QueuedCall]:
        """Calls that have been 'processing' without a claim since ``before``."""
        rows = self._db.all(self._sql["stuck_calls"], before=before, left_alone=self._settlement.unclaimed.left_alone)
        return [QueuedCall(**row) for row in rows]

    def adopt(
        self, stuck: QueuedCall, before: datetime, *, account_sid: str, from_number: str, to_number: str
    ) -> None:
        """Claims a call that has been stuck since ``before``, so that Twilio is asked about it."""
        self._db.execute(
            self._sql["adopt"],
            id=stuck.id,
            tenant_id=stuck.tenant_id,
            before=before,
            account_sid=account_sid,
            from_number=from_number,
            to_number=to_number,
            holder=self._lease.holder,
            clock_skew_seconds=CLOCK_SKEW_SECONDS,
            now=self._clock(),
        )

    def possible_calls(self, claim: ClaimedCall, calls: Sequence[PlacedCall]) -> PossibleCalls:
        """Which of Twilio's ``calls`` may be the claim's; those that belong to another queued call are left out."""
        if not calls:
            return PossibleCalls([], [])
        sids = [call.sid for call in calls]
        rows = self._db.all(self._sql["logged_calls"], sids=sids, tenant_id=claim.tenant_id)
        is_linked = {row["sid"]: row["is_linked"] for row in rows}
        return PossibleCalls(
            own=[call for call in calls if call.sid not in is_linked],
            doubtful=[call for call in calls if is_linked.get(call.sid) is False],
        )

    def _claim(self, now: datetime, candidates: Sequence[CallCandidate]) -> list[ReadyCall]:
        wanted = [_wanted(place, each) for place, each in enumerate(candidates)]
        claimed_at = self._clock()
        with self._db.transaction():
            lock = self._db.execute_one(
                self._sql["lock_claiming"], claim_seconds=CLAIM_SECONDS, timeline=self._db.timeline
            )
            if not (lock and lock["is_mine"]):
                return []
            rows = self._db.execute(self._sql["claim"], wanted=json.dumps(wanted), holder=self._lease.holder, now=now)
        claimed = {row["id"]: row for row in rows}
        return [_ready(each, claimed[each.call.id], claimed_at) for each in candidates if each.call.id in claimed]

    def _refuse(self, candidate: CallCandidate, error: psycopg2.Error) -> None:
        reason = f"the database refused to claim the call: {reason_of(error)}"
        self._settlement.unclaimed.fail([CallFailure(candidate.call, reason, is_final=False)])


def _wanted(place: int, candidate: CallCandidate) -> dict[str, Any]:
    """``place``: among all candidates; who comes first gets a slot first."""
    return {
        "id": candidate.call.id,
        "tenant_id": candidate.call.tenant_id,
        "account_sid": candidate.account.account_sid,
        "from_number": candidate.account.from_number,
        "to_number": candidate.to_number,
        "place": place,
    }


def _ready(candidate: CallCandidate, row: Row, claimed_at: datetime) -> ReadyCall:
    """``row``: of the statement 'claim'."""
    claim = ClaimedCall(
        id=candidate.call.id,
        tenant_id=candidate.call.tenant_id,
        account_sid=candidate.account.account_sid,
        from_number=candidate.account.from_number,
        to_number=candidate.to_number,
        attempts=candidate.call.attempts,
        claimed_at=claimed_at,
    )
    return ReadyCall(
        claim=claim,
        account=candidate.account,
        lead_id=row["lead_id"],
        contact_id=row["contact_id"],
        call_type=row["call_type"],
        script_recording=row["script_recording"],
        closes_at=candidate.closes_at,
    )
