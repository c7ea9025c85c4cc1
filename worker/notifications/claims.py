"""Single messages of reminders and trial on their way: held, marked before they may leave, settled once.

A message is a row of worker.notice from its claim to its settlement. It is marked as handed over, and that is
committed, before its provider hears of it: what a dead process held without the mark never left and goes out again;
what has the mark is unconfirmed, and asked after where the provider can be asked (Gmail).
"""

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import psycopg2

from worker.notifications.dispatcher import NotificationThreads, Queue
from worker.notifications.notification import Delivery, Notification, OutgoingMessage
from worker.runtime.db import Database, Row, queries
from worker.runtime.process_token import is_from_dead_process, new_token
from worker.runtime.signals import Signals
from worker.sending.outcomes import Outcome
from worker.sending.outcomes import OutcomeKind as Kind

log = logging.getLogger(__name__)

LEASE_SECONDS = 300.0  # messages of another machine that were not renewed for so long have lost their holder
RENEW_SECONDS = 30.0
ASK_AFTER_SECONDS = 30.0  # by then a provider has filed, or never will, what was on the wire


class NotificationClaims:
    """The notices of one job in one process."""

    def __init__(
        self, db: Database, job: str, signals: Signals, grace_seconds: float, clock: Callable[[], datetime]
    ) -> None:
        self.holder = new_token()
        self._db = db
        self._job = job
        self._signals = signals
        self._grace_seconds = grace_seconds
        self._clock = clock
        self._sql = queries("notifications")
        self._lanes = NotificationThreads(clock)
        self._unsettled: list[Delivery] = []
        self._renewed_at = time.monotonic()
        self._grace_ends: float | None = None

    def claim_waiting(self, now: datetime, size: int) -> list[Notification]:
        """Claims the messages that wait for this time, the longest waiting first."""
        rows = self._db.all(self._sql["claim_waiting"], job=self._job, holder=self.holder, now=now, size=size)
        return [Notification(**row) for row in rows]

    def next_due(self) -> datetime | None:
        """When the next waiting message is due."""
        row = self._db.one(self._sql["next_due"], job=self._job)
        return row["at"] if row else None

    def release_orphans(self, now: datetime) -> None:
        """Lets the messages of processes that are gone wait for their turn; those of the living are left alone.

        To be called at the start of a tick: what this process holds then is what a tick that failed left behind.
        """
        held = self._db.all(self._sql["held"], job=self._job, lease_seconds=LEASE_SECONDS)
        gone = [row for row in held if self._left_behind(row)]
        if not gone:
            return
        ids, holders = [row["id"] for row in gone], [row["holder"] for row in gone]
        ask_at = now + timedelta(seconds=ASK_AFTER_SECONDS)
        self._db.all(self._sql["release"], ids=ids, holders=holders, now=now, ask_at=ask_at)
        log.warning("messages of a dead worker taken over", {"job": self._job, "messages": len(gone)})

    def deliver(
        self,
        notices: Sequence[Notification],
        letter_of: Callable[[Notification], OutgoingMessage],
        may_go_on: Callable[[], bool],
    ) -> Iterator[list[Delivery]]:
        """Sends the notices, a few at once, and yields what became of them, a few at a time, to be settled.

        A sender (tenant and channel) that is slow keeps its share of the lanes busy, and no others.
        ``letter_of`` raises TransportMissing or SendError, or ValueError for an address that cannot be written to.
        A notice that was handed over before is asked after instead. Who is not reached before ``may_go_on`` says
        no is NOT_SENT; who is still on the wire after the grace time is not yielded at all, and stays held.
        What could not be settled (the database went away) is yielded again, first of all, by the next call, which
        also waits for what was on the wire then. Raises redis.RedisError when a pace cannot be asked.
        """
        if self._unsettled:
            yield self._unsettled
            self._unsettled = []
        queue = Queue(notices)
        while (queue or self._lanes) and not self._grace_is_over():
            done = self._launch(queue, letter_of) if may_go_on() else self._untouched(queue)
            landed, death = self._lanes.landed()
            self._unsettled = done + landed
            if death:
                raise death  # the others' outcomes are yielded by the next call
            if self._unsettled:
                yield self._unsettled
                self._unsettled = []

    def settle(self, deliveries: Iterable[Delivery]) -> set[str]:
        """Forgets the notices and files the accepted e-mails; returns the ids that were still this process's.

        An e-mail that "EmailLog" does not take (its user was deleted meanwhile) is forgotten unfiled.
        """
        ended = list(deliveries)
        try:
            return self._settle(ended)
        except (psycopg2.IntegrityError, psycopg2.DataError) as error:
            if len(ended) == 1:
                reason = error.diag.message_primary
                log.warning("an e-mail was sent but not filed", {"notice": ended[0].notice.id, "reason": reason})
                return self._settle([replace(ended[0], letter=None)])
        return {settled for each in ended for settled in self.settle([each])}

    def _settle(self, ended: Sequence[Delivery]) -> set[str]:
        outbox = [record for each in ended if (record := each.outbox_record())]
        ids = [each.notice.id for each in ended]
        as_json = json.dumps(outbox, ensure_ascii=False, default=datetime.isoformat)
        rows = self._db.all(self._sql["settle"], ids=ids, holder=self.holder, outbox=as_json)
        return {row["id"] for row in rows}

    def put_back(self, deliveries: Iterable[tuple[Delivery, datetime, int]]) -> None:
        """(delivery, when it is due again, attempts) of each notice that has to wait."""
        back = [
            {"id": each.notice.id, "due_at": due_at, "attempts": attempts, "unknown": each.may_have_arrived}
            for each, due_at, attempts in deliveries
        ]
        as_json = json.dumps(back, default=datetime.isoformat)
        self._db.all(self._sql["put_back"], back=as_json, holder=self.holder)

    def close(self) -> bool:
        """False: threads still wait for a provider."""
        return self._lanes.close()

    def _left_behind(self, row: Row) -> bool:
        """Whether nobody will settle this held notice any more."""
        if row["holder"] != self.holder:
            return row["lapsed"] or is_from_dead_process(row["holder"])
        # lapsed or not: what is on the wire, or came back and could not be settled, is settled by this process
        return row["id"] not in self._lanes.ids | {each.notice.id for each in self._unsettled}

    def _launch(self, queue: Queue, letter_of: Callable[[Notification], OutgoingMessage]) -> list[Delivery]:
        """Marks and sends as many as there are lanes free; returns what became of those that have no message."""
        if time.monotonic() - self._renewed_at > RENEW_SECONDS:
            self._db.all(self._sql["renew"], job=self._job, holder=self.holder)
            self._renewed_at = time.monotonic()
        ready, done = self._lanes.choose(queue, letter_of)
        fresh = [notice.id for notice, _ in ready if not notice.handed_over]
        rows = self._db.all(self._sql["hand_over"], ids=fresh, holder=self.holder) if fresh else []
        marked = {row["id"] for row in rows}
        for notice, letter in ready:
            if notice.handed_over or notice.id in marked:  # else it is somebody else's by now
                self._lanes.send(notice, letter)
        return done

    def _untouched(self, queue: Queue) -> list[Delivery]:
        """Nothing more may leave: all that wait in line."""
        outcome = Outcome(Kind.NOT_SENT, self._clock())
        return [Delivery(notice, outcome, None, notice.handed_over) for notice in queue.take_all()]

    def _grace_is_over(self) -> bool:
        """Whether a signal came so long ago that providers are not waited for any more."""
        if self._signals.stopping and self._grace_ends is None:
            self._grace_ends = time.monotonic() + self._grace_seconds
        return self._grace_ends is not None and time.monotonic() > self._grace_ends
