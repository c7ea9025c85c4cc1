"""Single messages of reminders and trial on their way: held, marked before they may leave, settled once.

A message is a row of worker.notice from its claim to its settlement. It is marked as handed over, and that is
committed, before its provider hears of it: what a dead process held without the mark never left and goes out again;
what has the mark is unconfirmed, and asked after where the provider can be asked (Gmail).
"""

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import datetime, timedelta

from worker.accounts import GmailAccount
from worker.batch import Kind, Outcome
from worker.db import Database, Row, queries
from worker.errors import (
    RecipientOptedOut,
    RecipientRefused,
    RetryLater,
    SendError,
    TransportMissing,
    Unconfirmed,
)
from worker.lock_token import left_by_the_dead, new_token
from worker.loop import Signals
from worker.pacing import Pace
from worker.providers import Email, Provider, WhatsAppMessage

log = logging.getLogger(__name__)

LANES = 8  # messages on the wire at once, so at most so many unconfirmed for each kill
LEASE_SECONDS = 300.0  # messages of another machine that were not renewed for so long have lost their holder
SEND_LIMIT_SECONDS = 60.0  # from the mark to the wire; after it somebody else may have taken over
POLL_SECONDS = 0.1  # how soon a signal is noticed
ASK_AFTER_SECONDS = 30.0  # by then a provider has filed, or never will, what was on the wire

# what an error makes of a message, the most special first; all others put it off, also those that stop a campaign
KINDS: tuple[tuple[type[SendError], Kind], ...] = (
    (RecipientOptedOut, Kind.OPTED_OUT),
    (RecipientRefused, Kind.REFUSED),
    (Unconfirmed, Kind.UNCONFIRMED),
)


@dataclass(frozen=True, slots=True)
class Notice:
    """A row of worker.notice in this process's hands. ``content`` is all that its message is made of."""

    id: str
    tenant_id: str | None
    channel: str
    address: str
    content: Row
    created_at: datetime
    attempts: int
    handed_over: bool


@dataclass(frozen=True, slots=True)
class Letter:
    """What a notice becomes: the message, the way out, and for "EmailLog" what it says."""

    message: Email | WhatsAppMessage
    provider: Provider
    pace: Pace | None = None
    gmail: GmailAccount | None = None
    outbox: Row | None = None  # sender, subject, body, html, entity_type, entity_id, tenant_id, user_id


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of one notice; ``letter`` is None when none could be made."""

    notice: Notice
    outcome: Outcome
    letter: Letter | None = None
    may_have_arrived: bool = False  # nobody knows, or could be asked just now


class Notices:
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
        self._sql = queries("notices")
        self._lanes = ThreadPoolExecutor(LANES, thread_name_prefix="lane")
        self._all_ended = True
        self._unsettled: list[Delivery] = []

    def claim_waiting(self, now: datetime, size: int) -> list[Notice]:
        """Claims the messages that wait for this time, the longest waiting first."""
        rows = self._db.all(self._sql["claim_waiting"], job=self._job, holder=self.holder, now=now, size=size)
        return [Notice(**row) for row in rows]

    def next_due(self) -> datetime | None:
        """When the next waiting message is due."""
        row = self._db.one(self._sql["next_due"], job=self._job)
        return row["at"] if row else None

    def release_orphans(self, now: datetime) -> None:
        """Lets the messages of processes that are gone wait for their turn; those of the living are left alone.

        To be called at the start of a tick: what this process holds then is what a tick that failed left behind.
        """
        held = self._db.all(self._sql["held"], job=self._job, lease_seconds=LEASE_SECONDS)
        gone = [row for row in held if row["lapsed"] or self._left_behind(row["id"], row["holder"])]
        if not gone:
            return
        ids, holders = [row["id"] for row in gone], [row["holder"] for row in gone]
        ask_at = now + timedelta(seconds=ASK_AFTER_SECONDS)
        self._db.all(self._sql["release"], ids=ids, holders=holders, now=now, ask_at=ask_at)
        log.warning("messages of a dead worker taken over", {"job": self._job, "messages": len(gone)})

    def deliver(
        self, notices: Sequence[Notice], letter_of: Callable[[Notice], Letter], may_go_on: Callable[[], bool]
    ) -> Iterator[list[Delivery]]:
        """Sends the notices, a few at once, and yields what became of them, wave by wave, to be settled.

        ``letter_of`` raises TransportMissing or SendError, or ValueError for an address that cannot be written to.
        A notice that was handed over before is asked after instead. Who is not reached before ``may_go_on`` says
        no is UNTOUCHED; who is still on the wire after the grace time is not yielded at all, and stays held.
        A wave that could not be settled (the database went away) is yielded again, first of all, by the next call.
        """
        if self._unsettled:
            yield self._unsettled
        for first in range(0, len(notices), LANES):
            wave = notices[first : first + LANES]
            if may_go_on():
                self._unsettled = self._deliver_wave(wave, letter_of)
            else:
                untouched = Outcome(Kind.UNTOUCHED, self._clock())
                self._unsettled = [Delivery(notice, untouched, None, notice.handed_over) for notice in wave]
            yield self._unsettled
        self._unsettled = []

    def settle(self, deliveries: Iterable[Delivery]) -> set[str]:
        """Forgets the notices and files the accepted e-mails; returns the ids that were still this process's."""
        ended = list(deliveries)
        outbox = [record for each in ended if (record := _outbox_record(each))]
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
        self._lanes.shutdown(wait=self._all_ended, cancel_futures=True)
        return self._all_ended

    def _left_behind(self, notice_id: str, holder: str) -> bool:
        if holder == self.holder:
            return all(each.notice.id != notice_id for each in self._unsettled)
        return left_by_the_dead(holder)

    def _deliver_wave(self, wave: Sequence[Notice], letter_of: Callable[[Notice], Letter]) -> list[Delivery]:
        done: list[Delivery] = []
        letters: list[tuple[Notice, Letter]] = []
        for notice in wave:
            try:
                letters.append((notice, letter_of(notice)))
            except ValueError as error:
                outcome = Outcome(Kind.REFUSED, self._clock(), reason=str(error))
                done.append(Delivery(notice, outcome, None, notice.handed_over))
            except (TransportMissing, SendError) as error:
                done.append(Delivery(notice, self._failed(error), None, notice.handed_over))
        fresh = [notice.id for notice, _ in letters if not notice.handed_over]
        marked = {row["id"] for row in self._db.all(self._sql["hand_over"], ids=fresh, holder=self.holder)}
        self._db.all(self._sql["renew"], job=self._job, holder=self.holder)
        send_until = time.clock_gettime(time.CLOCK_BOOTTIME) + SEND_LIMIT_SECONDS
        lanes: dict[Future[Delivery], str] = {}
        for notice, letter in letters:
            if notice.handed_over:
                lanes[self._lanes.submit(self._ask, notice, letter)] = notice.id
            elif notice.id in marked:
                lanes[self._lanes.submit(self._send, notice, letter, send_until)] = notice.id
        return done + [lane.result() for lane in self._finished(set(lanes))]

    def _finished(self, lanes: set[Future[Delivery]]) -> set[Future[Delivery]]:
        """Waits for all; after a signal no longer than the grace time."""
        waiting, grace_ends = lanes, float("inf")
        while waiting and time.monotonic() < grace_ends:
            waiting = wait(waiting, POLL_SECONDS).not_done
            if self._signals.stopping and grace_ends == float("inf"):
                grace_ends = time.monotonic() + self._grace_seconds
        self._all_ended = self._all_ended and not waiting
        return lanes - waiting

    def _send(self, notice: Notice, letter: Letter, send_until: float) -> Delivery:
        while letter.pace:
            granted, wait_seconds = letter.pace.take(1)
            if granted:
                break
            if self._signals.stopping or time.clock_gettime(time.CLOCK_BOOTTIME) + wait_seconds > send_until:
                return Delivery(notice, Outcome(Kind.PUT_OFF, self._clock(), "its sender's pace"), letter)
            time.sleep(min(wait_seconds, POLL_SECONDS))
        if time.clock_gettime(time.CLOCK_BOOTTIME) > send_until:
            outcome = Outcome(Kind.PUT_OFF, self._clock(), "the worker was frozen")  # it may be another's by now
            return Delivery(notice, outcome, letter)
        try:
            accepted = letter.provider.send(letter.message)
        except SendError as error:
            outcome = self._failed(error)
            return Delivery(notice, outcome, letter, outcome.kind is Kind.UNCONFIRMED)
        return Delivery(notice, Outcome(Kind.ACCEPTED, self._clock(), accepted=accepted), letter)

    def _ask(self, notice: Notice, letter: Letter) -> Delivery:
        """What became of a message that was handed over and never answered."""
        if letter.gmail is None or not isinstance(letter.message, Email):
            outcome = Outcome(Kind.UNCONFIRMED, self._clock(), "no answer came, and nobody can be asked")
            return Delivery(notice, outcome, letter, may_have_arrived=True)
        try:
            accepted = letter.gmail.provider.find(letter.message.message_id)
        except SendError as error:
            return Delivery(notice, self._failed(error), letter, may_have_arrived=True)
        if accepted is None:
            return Delivery(notice, Outcome(Kind.UNTOUCHED, self._clock(), "Gmail does not know it"), letter)
        return Delivery(notice, Outcome(Kind.ACCEPTED, self._clock(), accepted=accepted), letter)

    def _failed(self, error: SendError | TransportMissing) -> Outcome:
        kind = next((kind for error_class, kind in KINDS if isinstance(error, error_class)), Kind.PUT_OFF)
        delay_seconds = error.delay_seconds if isinstance(error, RetryLater) else None
        return Outcome(kind, self._clock(), str(error), delay_seconds)


def _outbox_record(delivery: Delivery) -> Row:
    accepted = delivery.outcome.accepted
    outbox = delivery.letter and delivery.letter.outbox
    if not (accepted and outbox):
        return {}
    return outbox | {
        "notice_id": delivery.notice.id, "address": delivery.notice.address, "at": delivery.outcome.at,
        "message_id": accepted.message_id, "gmail_id": accepted.gmail_message_id,
        "gmail_thread_id": accepted.gmail_thread_id,
    }  # fmt: skip
