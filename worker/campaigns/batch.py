"""A batch on its way: who is in it, what became of each, and when it has to stop."""

from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from worker.campaigns.journal import Entry, Journal
from worker.campaigns.transport import Transport
from worker.errors import (
    AccountRejected,
    CampaignRejected,
    RecipientDeferred,
    RecipientOptedOut,
    RecipientRefused,
    RetryLater,
    SendError,
    Unconfirmed,
)
from worker.messages import Accepted
from worker.runtime.db import Row

LONGEST_REASON = 300  # characters
DEFERRALS_BEFORE_BACKOFF = 5  # messages put off in a row before the whole campaign is held


@dataclass(frozen=True, slots=True)
class Recipient:
    """One claimed row of "CampaignRecipient"; ``attempts`` counts the sends before this claim."""

    id: str
    name: str
    email: str | None
    phone: str | None
    attempts: int
    opted_out: str | None = None  # why this address may never be written to again


class Kind(StrEnum):
    """What became of one recipient of a batch."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    OPTED_OUT = "opted out"
    DEFERRED = "put off"
    RECIPIENT_DEFERRED = "put off alone"  # for a reason that says nothing about others
    UNCONFIRMED = "unconfirmed"
    NOT_SENT = "untouched"


# what an error makes of its recipient; the most special first
KINDS: tuple[tuple[type[SendError], Kind], ...] = (
    (RecipientDeferred, Kind.RECIPIENT_DEFERRED),
    (RetryLater, Kind.DEFERRED),
    (RecipientOptedOut, Kind.OPTED_OUT),
    (RecipientRefused, Kind.REFUSED),
    (CampaignRejected, Kind.NOT_SENT),
    (AccountRejected, Kind.NOT_SENT),
    (Unconfirmed, Kind.UNCONFIRMED),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    kind: Kind
    at: datetime
    reason: str | None = None
    delay_seconds: float | None = None
    accepted: Accepted | None = None

    def as_entry(self) -> list[Any]:
        """For the journal."""
        reason = self.reason and self.reason[:LONGEST_REASON]
        ids = self.accepted
        kept = ids and [ids.message_id, ids.gmail_message_id, ids.gmail_thread_id]
        return [self.kind, self.at.isoformat(), reason, self.delay_seconds, kept]

    @classmethod
    def from_entry(cls, entry: Entry, now: datetime) -> "Outcome":
        """From the journal: no entry means that the answer never came."""
        if entry is None:
            return cls(Kind.UNCONFIRMED, now, reason="the worker was stopped while the message was on the wire")
        kind, at, reason, delay_seconds, ids = entry
        return cls(Kind(kind), datetime.fromisoformat(at), reason, delay_seconds, Accepted(*ids) if ids else None)


@dataclass(eq=False)
class Batch:
    """A claimed batch on its way out. Threads take from ``ready``, write ``outcomes``, and may halt the batch."""

    id: str
    holder: str
    transport: Transport
    recipients: list[Recipient]
    journal: Journal
    lease_until: float  # by time.clock_gettime(CLOCK_BOOTTIME); after it another machine may have taken over
    waiting: deque[Recipient] = field(default_factory=deque)  # for a token
    ready: deque[Recipient] = field(default_factory=deque)  # for a lane
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    lanes: set[Future[float | None]] = field(default_factory=set)
    put_off_in_a_row: int = 0
    token_at: float = 0.0  # time.monotonic() before which asking for a token is in vain
    hold_seconds: float | None = None  # the provider wants the whole campaign to wait
    held: bool = False
    halted: bool = False
    rejected: CampaignRejected | AccountRejected | None = None
    may_ask: bool = True  # the provider, about messages without an answer

    def __post_init__(self) -> None:
        self.waiting.extend(self.recipients)

    @property
    def campaign(self) -> Row:
        """The campaign it is a part of, as it was when the batch was claimed."""
        return self.transport.campaign

    @property
    def done(self) -> bool:
        return not self.lanes and (self.halted or not (self.waiting or self.ready))

    def halt(self) -> None:
        """Lets nobody else through; what is in a lane finishes."""
        self.halted = True

    def take_back(self) -> None:
        """Takes from the lanes, one by one, who is not in one yet: from here on no lane finds anybody."""
        self.halt()
        while self.ready:
            try:
                self.waiting.append(self.ready.popleft())
            except IndexError:
                return  # a lane took the last one

    def in_lanes(self) -> list[Recipient]:
        """Who is in a lane without an outcome, after ``take_back``."""
        left = {recipient.id for recipient in self.waiting} | self.outcomes.keys()
        return [recipient for recipient in self.recipients if recipient.id not in left]

    def record(self, recipient: Recipient, outcome: Outcome) -> None:
        self.outcomes[recipient.id] = outcome
        if outcome.kind is Kind.RECIPIENT_DEFERRED:
            return
        if outcome.kind not in (Kind.DEFERRED, Kind.UNCONFIRMED):  # a provider that never answers is put off too
            self.put_off_in_a_row = 0
            return
        self.put_off_in_a_row += 1
        if outcome.delay_seconds is not None:
            self.hold_seconds = max(self.hold_seconds or 0.0, outcome.delay_seconds)
        if self.put_off_in_a_row >= DEFERRALS_BEFORE_BACKOFF:
            self.held = True
            self.halt()
