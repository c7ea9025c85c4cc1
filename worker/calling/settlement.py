"""Settles queued calls: writes what became of them into the database, and ends their claims.

Each statement deletes the row of worker.call_claim that it settles, so a call is settled once, and a former holder
settles nothing. A claim ends also when the database refuses what it should write: a placed call is logged without its
references; when that is refused, too, the queue's row fails with the reason, and is not called again.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta

import psycopg2

from worker.calling.queued_call import NO_CREATOR, Booking, ClaimedCall
from worker.calling.refusals import concerns_row, is_passing, is_race, reason_of
from worker.calling.reporting import CallReporter, placed_event
from worker.calling.unclaimed_calls import LEAVE_PROCESSING_SECONDS, LONGEST_REASON, UnclaimedCalls, unconfirmed
from worker.content.calls import WHAT_TO_DO, crm_status, retry_delay_seconds
from worker.errors import RecipientOptedOut, RecipientRefused, RetryLater, SendError
from worker.providers.twilio import PlacedCall
from worker.runtime.backoff import backoff_seconds
from worker.runtime.db import Row, is_unavailable, queries
from worker.runtime.events import EncodedEvent
from worker.runtime.job import JobContext
from worker.sending.outcomes import ASK_AFTER_SECONDS, Suppression
from worker.sending.suppression import SuppressionList, suppress

log = logging.getLogger(__name__)

ASK_LIMIT_SECONDS = 600.0  # between two questions about one call
GIVE_UP_SECONDS = 24 * 3600.0  # after it a call that could not be settled fails
LEAST_QUESTIONS = 3  # before that: the worker itself may have been down for long
LONGEST_WORDS = 250  # of Twilio's, where what to do follows


class CallSettlement:
    """The settlements of one process. ``unclaimed``: calls that are not claimed, and rows that are left alone."""

    def __init__(
        self,
        context: JobContext,
        reporter: CallReporter,
        holder: str,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``holder``: of the claims of this process. ``monotonic``: a clock, in seconds."""
        self._db = context.database
        self._counters = context.counters
        self._clock = context.clock
        self._reporter = reporter
        self._holder = holder
        self._sql = queries("calls")
        self.unclaimed = UnclaimedCalls(context, reporter, monotonic)

    def book_together(self, bookings: Sequence[Booking]) -> Sequence[Booking]:
        """Books calls in one statement; returns those that have to be booked alone.

        They are all of them when the database refuses one. Raises psycopg2.Error when the database is unavailable.
        """
        try:
            rows = self._book("book", bookings)
        except psycopg2.Error as error:
            if is_unavailable(error):
                raise
            return bookings
        self._report_bookings([(each, rows[each.claim.id]) for each in bookings if each.claim.id in rows])
        return [each for each in bookings if each.claim.id not in rows]

    def book(self, booking: Booking) -> None:
        """Twilio placed the call. Writes nothing when another worker has settled it meanwhile.

        References that are not there any more are left out. Raises psycopg2.Error when the database is unavailable.
        """
        try:
            rows = self._book("book", [booking])
        except psycopg2.Error as error:
            if is_unavailable(error):
                raise
            self._book_after_refusal(booking, error)
        else:
            self._end_booking(booking, rows)

    def fail(self, claim: ClaimedCall, error: SendError) -> None:
        """The call was not placed: it is tried again as the queue's row allows, or never."""
        if isinstance(error, RecipientOptedOut):
            # first: a call that is tried again does no harm, an opt-out that is forgotten does
            suppress(
                self._db,
                self._counters,
                SuppressionList(claim.tenant_id, "call"),
                claim.to_number,
                Suppression("provider"),
                reason=str(error)[:LONGEST_REASON],
                code=error.code,
            )
        wish_seconds = error.delay_seconds if isinstance(error, RetryLater) else None
        delay_seconds = max(retry_delay_seconds(claim.attempts + 1), wish_seconds or 0.0)
        reason = f"{str(error)[:LONGEST_WORDS]}{WHAT_TO_DO}{error.advice}" if error.advice else str(error)
        self._fail(claim, reason, is_final=isinstance(error, RecipientRefused), delay_seconds=delay_seconds)

    def give_up(self, claim: ClaimedCall, reason: str) -> None:
        """It is not known whether the call was placed: it fails, and is never placed again."""
        if self._fail(claim, unconfirmed(reason), is_final=True) == "failed":
            self._reporter.given_up()

    def release(self, claim: ClaimedCall) -> None:
        """The call was certainly not placed, which is no fault of its own: it is due again at once."""
        with self._ending(claim):
            self._db.execute(self._sql["release"], id=claim.id, holder=self._holder, now=self._clock())
            self._reporter.counts.put_back += 1

    def mark_unconfirmed(self, claim: ClaimedCall, reason: str | None, *, asked: int = 0) -> None:
        """Twilio is asked about the call, later each time. ``reason`` None: its process died."""
        delay_seconds = backoff_seconds(asked + 1, ASK_AFTER_SECONDS, ASK_LIMIT_SECONDS)
        self._db.execute(
            self._sql["mark_unconfirmed"],
            id=claim.id,
            holder=self._holder,
            ask_at=self._clock() + timedelta(seconds=delay_seconds),
            asked=asked,
            reason=reason and reason[:LONGEST_REASON],
        )

    def is_overdue(self, claim: ClaimedCall) -> bool:
        """Whether the call has been unconfirmed for so long that it is not asked about any more."""
        age_seconds = (self._clock() - claim.claimed_at).total_seconds()
        return claim.asked + 1 >= LEAST_QUESTIONS and age_seconds > GIVE_UP_SECONDS

    def _book(self, statement: str, bookings: Sequence[Booking]) -> dict[str, Row]:
        """The rows that were written, by id in the queue. Prepared, since it takes longer to plan than to run."""
        rows = self._db.execute_prepared(
            statement,
            self._sql[statement],
            ids=[each.claim.id for each in bookings],
            sids=[each.placed.sid for each in bookings],
            statuses=[crm_status(each.placed.status) for each in bookings],
            holder=self._holder,
            now=self._clock(),
        )
        return {row["id"]: row for row in rows}

    def _book_after_refusal(self, booking: Booking, refusal: psycopg2.Error) -> None:
        """Books the call again, at last without its references; whatever happens, it has an end."""
        claim, placed = booking.claim, booking.placed
        for statement in ("book", "book_without_references") if is_race(refusal) else ("book_without_references",):
            try:
                rows = self._book(statement, [booking])
            except psycopg2.Error as error:
                if is_unavailable(error):
                    raise
                refusal = error
            else:
                if rows and statement == "book_without_references":
                    self._reporter.logged_without_references(claim, placed.sid, reason_of(refusal))
                self._end_booking(booking, rows)
                return
        if is_passing(refusal) and not self.is_overdue(claim):
            self._reporter.booked_later(claim, placed.sid, reason_of(refusal))
            self.mark_unconfirmed(claim, f"not booked yet: {reason_of(refusal)}", asked=claim.asked + 1)
        else:
            self._fail_placed(claim, placed, f"the database refused it: {reason_of(refusal)}")

    def _end_booking(self, booking: Booking, rows: Mapping[str, Row]) -> None:
        if row := rows.get(booking.claim.id):
            self._report_bookings([(booking, row)])
        else:
            self._fail_unbookable(booking.claim, booking.placed)

    def _report_bookings(self, booked: Sequence[tuple[Booking, Row]]) -> None:
        for booking, _ in booked:
            self._reporter.placed(booking.claim, booking.placed.sid)
        events = (self._placed_event(booking.claim.tenant_id, row) for booking, row in booked)
        self._reporter.publish([event for event in events if event])

    def _placed_event(self, tenant_id: str, row: Row) -> EncodedEvent | None:
        call_log, queue_item = row["call_log"], row["queue_item"]
        is_complete = call_log is not None and (queue_item is not None or not row["is_linked"])
        if is_complete and (event := placed_event(tenant_id, call_log, queue_item)):
            return event
        plain = self._db.one(self._sql["plain_rows"], call_log_id=row["call_log_id"], tenant_id=tenant_id)
        return placed_event(tenant_id, plain["call_log"], plain["queue_item"]) if plain else None

    def _fail_unbookable(self, claim: ClaimedCall, placed: PlacedCall) -> None:
        """The statement wrote nothing: the claim is another worker's by now, or this call must not be booked."""
        why = self._db.one(self._sql["booking_obstacles"], id=claim.id, holder=self._holder, sid=placed.sid)
        if why is None:
            self._reporter.lost(claim)
        elif why["lacks_creator"]:
            self._fail_placed(claim, placed, NO_CREATOR)
        else:
            self._fail_placed(
                claim, placed, "that call is in the log already, for another row of the queue or elsewhere"
            )

    def _fail_placed(self, claim: ClaimedCall, placed: PlacedCall, reason: str) -> None:
        """The call was placed and cannot be logged: its row fails, and is never placed again."""
        reason = f"placed as {placed.sid}, but it cannot be logged: {reason}"
        self._fail(claim, reason, is_final=True, sid=placed.sid)

    def _fail(
        self, claim: ClaimedCall, reason: str, *, is_final: bool, delay_seconds: float = 0.0, sid: str | None = None
    ) -> str | None:
        """The new status of the queue's row; None when this process could not write it.

        ``sid``: of a call that was placed all the same.
        """
        row: Row | None = None
        now = self._clock()
        with self._ending(claim):
            row = self._db.execute_one(
                self._sql["fail"],
                id=claim.id,
                holder=self._holder,
                is_final=is_final,
                reason=reason[:LONGEST_REASON],
                retry_at=now + timedelta(seconds=delay_seconds),
                now=now,
            )
            if row is None:
                self._reporter.lost(claim)
        if row is None:
            return None
        status = str(row["status"] or "cancelled")  # by the CRM, which may have deleted the row, too
        if sid:
            self._reporter.not_logged(claim, sid, status, reason)
        else:
            self._reporter.not_placed(claim.id, claim.tenant_id, status, reason)
        return status

    @contextmanager
    def _ending(self, claim: ClaimedCall) -> Iterator[None]:
        """Ends the claim also when the queue's row cannot be changed."""
        try:
            yield
        except psycopg2.Error as error:
            if not concerns_row(error):
                raise
            self._db.execute(self._sql["abandon"], id=claim.id, holder=self._holder)
            self.unclaimed.leave_alone(claim.id, claim.tenant_id, LEAVE_PROCESSING_SECONDS, error)
