"""Claims of queued calls: all that the calls job writes about them.

A call is held by a row of worker.call_claim from before it is placed until it is booked or put back. Whoever
settles it deletes that row in the same statement, so it is settled once, and a former holder settles nothing.
"""

import json
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from worker.calling.accounts import TwilioAccount
from worker.content.calls import retry_delay_seconds
from worker.errors import RecipientOptedOut, RecipientRefused, SendError
from worker.providers.twilio import PlacedCall
from worker.runtime.backoff import backoff_seconds
from worker.runtime.counters import Counters
from worker.runtime.db import Database, Row, queries
from worker.runtime.events import LiveEvents
from worker.runtime.process_token import is_from_dead_process, new_token

log = logging.getLogger(__name__)

LEASE_SECONDS = 300.0  # a claim of another machine that is older has lost its holder
ASK_AFTER_SECONDS = 30.0  # by then Twilio lists, or never will, what was on the wire
ASK_LIMIT_SECONDS = 600.0  # between two questions about one call
DOUBT_SECONDS = 24 * 3600.0  # after it a call that nobody could be asked about is given up
CLOCK_SKEW_SECONDS = 60.0  # between Twilio's clock and the database's
LEAST_QUESTIONS = 3  # before that: the worker itself may have been away for long
TURN_SECONDS = 10  # a worker that freezes while it claims keeps the others from claiming for so long
LONGEST_REASON = 500  # characters

# "CallLog"."twilioStatus"; Twilio knows 'initiated', too
STATUSES = {"queued", "ringing", "in-progress", "completed", "busy", "failed", "no-answer", "canceled"}

_NUMBER = re.compile(r"\+?\d[\d ().-]{5,}\d")  # a phone number, and no code of Twilio's


@dataclass(frozen=True, slots=True)
class ClaimedCall:
    """A queued call in this process's hands. ``item``: the queue's row as it was claimed."""

    id: str
    tenant_id: str
    account_sid: str
    from_number: str
    to_number: str
    item: Row
    claimed_at: datetime
    asked: int = 0
    reason: str | None = None  # why nobody knows whether it was placed


@dataclass(frozen=True, slots=True)
class CallCandidate:
    """A queued call that could be placed now."""

    line: TwilioAccount
    to_number: str
    item: Row


class CallClaims:
    """The claims of one process."""

    def __init__(self, db: Database, counters: Counters, events: LiveEvents, clock: Callable[[], datetime]) -> None:
        self.holder = new_token()
        self._db = db
        self._counters = counters
        self._events = events
        self._clock = clock
        self._sql = queries("calls")

    def claim(self, wanted: Sequence[CallCandidate], now: datetime) -> list[tuple[TwilioAccount, ClaimedCall]]:
        """Claims those still pending for which their tenant has a slot; none of them, when it is not our turn."""
        if not wanted:
            return []
        rows = [
            {
                "id": each.item["id"], "tenant_id": each.line.tenant_id, "account_sid": each.line.account_sid,
                "from_number": each.line.from_number, "to_number": each.to_number, "place": place, "item": each.item,
            }
            for place, each in enumerate(wanted)
        ]  # fmt: skip
        claimed_at = self._clock()
        with self._db.transaction():
            turn = self._db.one(self._sql["take_turn"], turn_seconds=TURN_SECONDS)
            if not (turn and turn["mine"]):
                return []
            claimed = self._db.all(self._sql["claim"], wanted=_as_json(rows), holder=self.holder, now=now)
        ids = {row["id"] for row in claimed}
        return [
            (each.line, ClaimedCall(each.item["id"], each.line.tenant_id, each.line.account_sid,
                                    each.line.from_number, each.to_number, each.item, claimed_at))
            for each in wanted if each.item["id"] in ids
        ]  # fmt: skip

    def book(self, claim: ClaimedCall, placed: PlacedCall) -> bool:
        """The call was placed. False when the claim was lost: then somebody else has settled it."""
        booked = self._db.one(
            self._sql["book"], id=claim.id, holder=self.holder, sid=placed.sid, status=known_status(placed.status),
            now=self._clock(),
        )  # fmt: skip
        if booked is None:
            self._tell_lost(claim)
            return False
        self._counters.add("calls_total", outcome="placed")
        log.info("call placed", {"call": claim.id, "tenant": claim.tenant_id, "sid": placed.sid})
        payload = {"callLog": _for_pages(booked["call_log"]), "queueItem": _for_pages(booked["queue_item"])}
        self._events.emit(f"tenant:{claim.tenant_id}", "call:initiated", payload)
        return True

    def fail(self, claim: ClaimedCall, error: SendError) -> str:
        """The call was not placed: it is tried again as the queue's row allows, or never. Returns its status."""
        drop = isinstance(error, RecipientRefused)
        delay = max(retry_delay_seconds(claim.item["attempts"] + 1), getattr(error, "delay_seconds", None) or 0.0)
        if isinstance(
            error, RecipientOptedOut
        ):  # first: a call that is tried again does no harm, a forgotten no does
            reason, now = str(error)[:LONGEST_REASON], self._clock()
            self._db.all(
                self._sql["opt_out"], tenant_id=claim.tenant_id, number=claim.to_number, reason=reason, now=now
            )
        return self._fail(claim, str(error), drop=drop, delay_seconds=delay)

    def give_up(self, claim: ClaimedCall, reason: str) -> str:
        """Nobody could be asked for too long. Returns the row's status."""
        reason = f"Unconfirmed, it may have been placed: {reason}"
        status = self._fail(claim, reason, drop=True, delay_seconds=0.0)
        self._counters.add("unconfirmed_total", float(status == "failed"), channel="call")
        return status

    def _fail(self, claim: ClaimedCall, reason: str, *, drop: bool, delay_seconds: float) -> str:
        now = self._clock()
        row = self._db.one(
            self._sql["fail"], id=claim.id, holder=self.holder, drop=drop, reason=reason[:LONGEST_REASON],
            retry_at=now + timedelta(seconds=delay_seconds), now=now,
        )  # fmt: skip
        if row is None:
            self._tell_lost(claim)
            return "lost"
        status = row["status"] or "cancelled"  # or deleted: by the CRM
        self._tell_failure(claim.id, claim.tenant_id, status, reason)
        return str(status)

    def fail_unclaimed(self, failed: Iterable[tuple[Row, str, bool]]) -> list[str]:
        """(queue row, reason, whether to give up at once) of calls that cannot be dialled. Returns their status."""
        now = self._clock()
        records = [
            {
                "id": item["id"], "reason": reason[:LONGEST_REASON], "drop": drop,
                "retry_at": now + timedelta(seconds=retry_delay_seconds(item["attempts"] + 1)),
            }
            for item, reason, drop in failed
        ]  # fmt: skip
        if not records:
            return []
        reasons = {record["id"]: record["reason"] for record in records}
        rows = self._db.all(self._sql["fail_unclaimed"], failed=_as_json(records), now=now)
        for row in rows:
            self._tell_failure(row["id"], row["tenant_id"], row["status"], reasons[row["id"]])
        return [row["status"] for row in rows]

    def put_back(self, claim: ClaimedCall) -> None:
        """The call was certainly not placed, and not for a fault of its own: it is due again at once."""
        self._db.all(self._sql["put_back"], id=claim.id, holder=self.holder, now=self._clock())

    def doubt(self, claim: ClaimedCall, reason: str | None, *, asked: int = 0) -> None:
        """No answer came (or its worker died: no reason): Twilio is asked, later each time."""
        ask_at = self._clock() + timedelta(seconds=backoff_seconds(asked + 1, ASK_AFTER_SECONDS, ASK_LIMIT_SECONDS))
        self._db.all(
            self._sql["in_doubt"], id=claim.id, holder=self.holder, ask_at=ask_at, asked=asked,
            reason=reason and reason[:LONGEST_REASON],
        )  # fmt: skip

    def doubt_orphans(self, in_hand: set[str]) -> int:
        """The calls whose holder is gone; those of the living, frozen or not, are left alone."""
        held = self._db.all(self._sql["held"], lease_seconds=LEASE_SECONDS)
        gone = [row for row in held if row["id"] not in in_hand and self._is_gone(row)]
        if gone:
            ids, holders = [row["id"] for row in gone], [row["holder"] for row in gone]
            ask_at = self._clock() + timedelta(seconds=ASK_AFTER_SECONDS)
            self._db.all(self._sql["doubt_orphans"], ids=ids, holders=holders, ask_at=ask_at)
            log.warning("calls of a dead worker: Twilio will be asked", {"calls": len(gone)})
        return len(gone)

    def _is_gone(self, row: Row) -> bool:
        # what this process holds without having it in hand was left behind by a tick that failed
        return bool(row["lapsed"]) or row["holder"] == self.holder or is_from_dead_process(row["holder"])

    def stuck(self, now: datetime) -> list[Row]:
        """Rows that are 'processing' and claimed by nobody."""
        return self._db.all(self._sql["stuck"], before=now - timedelta(seconds=LEASE_SECONDS))

    def adopt(self, item: Row, line: TwilioAccount, to_number: str) -> None:
        """Claims a stuck row, so that Twilio is asked about it."""
        self._db.all(
            self._sql["adopt"], id=item["id"], updated_at=item["updatedAt"], account_sid=line.account_sid,
            from_number=line.from_number, to_number=to_number, item=_as_json(item), holder=self.holder,
            claimed_at=item["updatedAt"] - timedelta(seconds=CLOCK_SKEW_SECONDS), now=self._clock(),
        )  # fmt: skip

    def fail_stuck(self, item: Row, reason: str) -> list[str]:
        """A stuck row of which nobody can be asked. Returns its status, if it still was stuck."""
        reason = f"Unconfirmed, it may have been placed: {reason}"[:LONGEST_REASON]
        which = {"id": item["id"], "updated_at": item["updatedAt"], "now": self._clock()}
        if not self._db.all(self._sql["fail_stuck"], reason=reason, **which):
            return []
        self._counters.add("unconfirmed_total", channel="call")
        self._tell_failure(item["id"], item["tenantId"], "failed", reason)
        return ["failed"]

    def take_doubtful(self, now: datetime, size: int, in_hand: set[str]) -> list[ClaimedCall]:
        """The calls that Twilio can be asked about now."""
        again_at = now + timedelta(seconds=LEASE_SECONDS)
        rows = self._db.all(
            self._sql["take_doubtful"], now=now, size=size, again_at=again_at, holder=self.holder,
            in_hand=list(in_hand),
        )  # fmt: skip
        return [ClaimedCall(**row) for row in rows]

    def possible_of(self, claim: ClaimedCall, calls: Sequence[PlacedCall]) -> list[PlacedCall]:
        """Those that may be the claim's: no other tenant's, and no other row's of the queue."""
        if not calls:
            return []
        sids = [call.sid for call in calls]
        rows = self._db.all(self._sql["sids_of_others"], sids=sids, tenant_id=claim.tenant_id)
        others = {row["sid"] for row in rows}
        return [call for call in calls if call.sid not in others]

    def _tell_lost(self, claim: ClaimedCall) -> None:
        log.warning("a call was settled by somebody else", {"call": claim.id, "tenant": claim.tenant_id})

    def _tell_failure(self, queue_id: str, tenant_id: str, status: str, reason: str) -> None:
        self._counters.add("calls_total", outcome="retried" if status == "pending" else status)
        said = _NUMBER.sub("(number)", reason)
        log.warning("call not placed", {"call": queue_id, "tenant": tenant_id, "status": status, "reason": said})
        self._events.emit(f"tenant:{tenant_id}", "call:error", {"queueItemId": queue_id, "error": reason})


def known_status(status: str, otherwise: str = "queued") -> str:
    """Twilio's word for what became of a call, in the words of the CRM."""
    return status if status in STATUSES else otherwise


def count_failures(counts: dict[str, int], statuses: Iterable[str]) -> None:
    """Counts calls by the status that a failure left them in; not those that somebody else settled or cancelled."""
    for status in statuses:
        if status in ("failed", "pending"):
            counts["failed" if status == "failed" else "retried"] += 1


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=datetime.isoformat)


def _for_pages(row: Row | None) -> Row | None:
    """A row as the CRM's own servers send it: times in UTC that say so."""
    if row is None:
        return None
    return {name: _moment(value) if name.endswith("At") or name == "scheduledFor" else value
            for name, value in row.items()}  # fmt: skip


def _moment(value: Any) -> Any:
    try:
        return datetime.fromisoformat(value).isoformat(timespec="milliseconds") + "Z"
    except (TypeError, ValueError):  # null, or a year that only PostgreSQL knows
        return value
