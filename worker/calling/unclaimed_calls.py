"""Calls of the queue that nobody has claimed: they fail, wait, or are left alone where the database refuses them."""

import json
import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import psycopg2

from worker.calling.queued_call import CallFailure, QueuedCall, WaitingCall
from worker.calling.refusals import concerns_row, isolated, reason_of
from worker.calling.reporting import CallReporter
from worker.content.calls import retry_delay_seconds
from worker.runtime.db import queries
from worker.runtime.job import JobContext

log = logging.getLogger(__name__)

LEAVE_PENDING_SECONDS = 600.0  # a row that the database refuses to change is left alone for so long
LEAVE_PROCESSING_SECONDS = 24 * 3600.0  # the same, for one about which Twilio would be asked again
LONGEST_REASON = 500  # characters


class UnclaimedCalls:
    """What one process does with them. ``left_alone``: the rows of the queue that the database refuses to change."""

    def __init__(self, context: JobContext, reporter: CallReporter, monotonic: Callable[[], float]) -> None:
        """``monotonic``: a clock, in seconds."""
        self._db = context.database
        self._clock = context.clock
        self._reporter = reporter
        self._monotonic = monotonic
        self._sql = queries("calls")
        self._leave_until: dict[str, float] = {}  # id in the queue -> monotonic()

    @property
    def left_alone(self) -> list[str]:
        now = self._monotonic()
        self._leave_until = {queue_id: until for queue_id, until in self._leave_until.items() if until > now}
        return list(self._leave_until)

    def fail(self, failures: Sequence[CallFailure]) -> None:
        """Fails calls that cannot be placed; they are not claimed for it."""
        if failures:
            isolated(failures, self._fail, self._refuse_failure)

    def put_off(self, calls: Sequence[WaitingCall]) -> None:
        """Keeps calls in the queue until they may be placed; no attempt is counted."""
        if calls:
            isolated(calls, self._put_off, self._refuse_waiting)

    def fail_stuck(self, call: QueuedCall, reason: str, before: datetime) -> None:
        """Fails a call, 'processing' without a claim since ``before``, about which Twilio cannot be asked."""
        reason = unconfirmed(reason)[:LONGEST_REASON]
        values = {"id": call.id, "tenant_id": call.tenant_id, "before": before}
        try:
            failed = self._db.execute_one(self._sql["fail_stuck"], reason=reason, now=self._clock(), **values)
        except psycopg2.Error as error:
            if not concerns_row(error):
                raise
            self.leave_alone(call.id, call.tenant_id, LEAVE_PROCESSING_SECONDS, error)
            return
        if failed:
            self._reporter.given_up()
            self._reporter.not_placed(call.id, call.tenant_id, "failed", reason)

    def leave_alone(self, queue_id: str, tenant_id: str, seconds: float, error: psycopg2.Error) -> None:
        self._leave_until[queue_id] = self._monotonic() + seconds
        log.error(
            "the database refuses to change a queued call, it is left alone",
            {"call": queue_id, "tenant": tenant_id, "reason": reason_of(error), "hours": seconds / 3600.0},
        )

    def _fail(self, failures: Sequence[CallFailure]) -> list[None]:
        now = self._clock()
        by_id = {each.call.id: each for each in failures}
        records = [
            {
                "id": each.call.id,
                "tenant_id": each.call.tenant_id,
                "reason": each.reason[:LONGEST_REASON],
                "is_final": each.is_final,
                "retry_at": now + timedelta(seconds=retry_delay_seconds(each.call.attempts + 1)),
            }
            for each in failures
        ]
        for row in self._db.execute(
            self._sql["fail_unclaimed"], failures=json.dumps(records, default=datetime.isoformat), now=now
        ):
            failure = by_id[row["id"]]
            reason = failure.reason[:LONGEST_REASON]
            self._reporter.not_placed(failure.call.id, failure.call.tenant_id, row["status"], reason)
        return []

    def _put_off(self, calls: Sequence[WaitingCall]) -> list[None]:
        records = [
            {"id": each.call.id, "tenant_id": each.call.tenant_id, "until": each.until, "reason": each.reason}
            for each in calls
        ]
        statement, now = self._sql["put_off"], self._clock()
        for row in self._db.execute(statement, calls=json.dumps(records, default=datetime.isoformat), now=now):
            self._reporter.waiting(row["tenant_id"], row["reason"], row["calls"], row["until"])
        return []

    def _refuse_waiting(self, waiting: WaitingCall, error: psycopg2.Error) -> None:
        self.leave_alone(waiting.call.id, waiting.call.tenant_id, LEAVE_PENDING_SECONDS, error)

    def _refuse_failure(self, failure: CallFailure, error: psycopg2.Error) -> None:
        self.leave_alone(failure.call.id, failure.call.tenant_id, LEAVE_PENDING_SECONDS, error)


def unconfirmed(reason: str) -> str:
    """Why a call fails of which nobody knows whether it was placed."""
    return f"Unconfirmed, it may have been placed: {reason}"
