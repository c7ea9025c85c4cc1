"""What the job reports about calls: log lines, counters, live events of the CRM's pages, and the counts of a tick."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from worker.calling.queued_call import ClaimedCall
from worker.runtime.events import EncodedEvent, LiveEvents
from worker.runtime.job import JobContext

log = logging.getLogger(__name__)

_NUMBER = re.compile(r"\+?\d[\d ().-]{5,}\d")  # a phone number, and none of Twilio's codes


@dataclass(slots=True)
class CallCounts:
    """How many calls a tick placed, retried and so on. The names are the keys of its log line."""

    placed: int = 0
    retried: int = 0
    failed: int = 0
    put_back: int = 0
    put_off: int = 0
    asked: int = 0
    checked: int = 0

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


class CallReporter:
    """Reports what became of calls. ``counts``: of the current tick."""

    def __init__(self, context: JobContext) -> None:
        self.counts = CallCounts()
        self._counters = context.counters
        self._events = LiveEvents(context.redis)

    def placed(self, claim: ClaimedCall, sid: str) -> None:
        self.counts.placed += 1
        self._counters.add("calls_total", outcome="placed")
        log.info("call placed", {"call": claim.id, "tenant": claim.tenant_id, "sid": sid})

    def publish(self, events: Sequence[EncodedEvent]) -> None:
        self._events.publish(events)

    def not_placed(self, queue_id: str, tenant_id: str, status: str, reason: str) -> None:
        """``status``: of the queue's row; 'pending': the call is tried again."""
        without_numbers = _NUMBER.sub("(number)", reason)
        log.warning(
            "call not placed", {"call": queue_id, "tenant": tenant_id, "status": status, "reason": without_numbers}
        )
        self._not_booked(queue_id, tenant_id, status, reason)

    def waiting(self, tenant_id: str, reason: str, calls: int, until: datetime) -> None:
        """So many calls of a tenant wait, the first of them until then (UTC)."""
        self.counts.put_off += calls
        first = until.isoformat(timespec="minutes") + "Z"
        log.info("calls wait", {"tenant": tenant_id, "calls": calls, "first_until": first, "reason": reason})

    def not_logged(self, claim: ClaimedCall, sid: str, status: str, reason: str) -> None:
        """Twilio placed the call, and the database refused its row in the log for good."""
        log.error(
            "call placed, but it cannot be logged",
            {"call": claim.id, "tenant": claim.tenant_id, "sid": sid, "status": status, "reason": reason},
        )
        self._not_booked(claim.id, claim.tenant_id, status, reason)

    def logged_without_references(self, claim: ClaimedCall, sid: str, reason: str) -> None:
        log.warning(
            "call logged without its references, the database refused them",
            {"call": claim.id, "tenant": claim.tenant_id, "sid": sid, "reason": reason},
        )

    def booked_later(self, claim: ClaimedCall, sid: str, reason: str) -> None:
        log.warning(
            "call placed, but it cannot be booked yet, Twilio will be asked about it",
            {"call": claim.id, "tenant": claim.tenant_id, "sid": sid, "reason": reason},
        )

    def given_up(self) -> None:
        """A call failed, and it is not known whether it was placed."""
        self._counters.add("unconfirmed_total", channel="call")

    def lost(self, claim: ClaimedCall) -> None:
        """Another worker took over the call and settled it."""
        log.warning("a call was settled by another worker", {"call": claim.id, "tenant": claim.tenant_id})

    def _not_booked(self, queue_id: str, tenant_id: str, status: str, reason: str) -> None:
        if status == "pending":
            self.counts.retried += 1
        elif status == "failed":
            self.counts.failed += 1
        self._counters.add("calls_total", outcome="retried" if status == "pending" else status)
        self._events.emit(f"tenant:{tenant_id}", "call:error", {"queueItemId": queue_id, "error": reason})


def placed_event(tenant_id: str, call_log: str, queue_item: str | None) -> EncodedEvent | None:
    """A placed call for the pages of its tenant; None when a row contains what no live event can.

    Both are rows as JSON, and ``queue_item`` is None when the CRM deleted it.
    """
    try:
        payload = {
            "callLog": _with_zone(json.loads(call_log)),
            "queueItem": None if queue_item is None else _with_zone(json.loads(queue_item)),
        }
        return EncodedEvent.of(f"tenant:{tenant_id}", "call:initiated", payload)
    except (ValueError, OverflowError, RecursionError):  # a number that is too large, or too many levels
        return None


def _with_zone(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as the CRM's own servers send it: times say that they are in UTC."""
    return {
        name: _moment(value) if name.endswith("At") or name == "scheduledFor" else value
        for name, value in row.items()
    }


def _moment(value: Any) -> Any:
    try:
        return datetime.fromisoformat(value).isoformat(timespec="milliseconds") + "Z"
    except (TypeError, ValueError):  # null, or a year that only PostgreSQL knows
        return value
