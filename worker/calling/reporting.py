"""What the job reports about calls: log lines, counters, live events of the CRM's pages, and the counts of a tick."""

import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from worker.calling.queued_call import ClaimedCall
from worker.runtime.events import LiveEvents
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

    def placed(self, claim: ClaimedCall, sid: str, call_log: Mapping[str, Any], queue_item: Any) -> None:
        """``call_log`` and ``queue_item`` are the rows as JSON; the latter is None when the CRM deleted it."""
        self.counts.placed += 1
        self._counters.add("calls_total", outcome="placed")
        log.info("call placed", {"call": claim.id, "tenant": claim.tenant_id, "sid": sid})
        payload = {"callLog": _with_zone(call_log), "queueItem": queue_item and _with_zone(queue_item)}
        self._events.emit(f"tenant:{claim.tenant_id}", "call:initiated", payload)

    def not_placed(self, queue_id: str, tenant_id: str, status: str, reason: str) -> None:
        """``status``: of the queue's row; 'pending': the call is tried again."""
        if status == "pending":
            self.counts.retried += 1
        elif status == "failed":
            self.counts.failed += 1
        self._counters.add("calls_total", outcome="retried" if status == "pending" else status)
        without_numbers = _NUMBER.sub("(number)", reason)
        log.warning(
            "call not placed", {"call": queue_id, "tenant": tenant_id, "status": status, "reason": without_numbers}
        )
        self._events.emit(f"tenant:{tenant_id}", "call:error", {"queueItemId": queue_id, "error": reason})

    def given_up(self) -> None:
        """A call failed, and it is not known whether it was placed."""
        self._counters.add("unconfirmed_total", channel="call")

    def lost(self, claim: ClaimedCall) -> None:
        """Another worker took over the call and settled it."""
        log.warning("a call was settled by another worker", {"call": claim.id, "tenant": claim.tenant_id})


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
