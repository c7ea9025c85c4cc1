"""A single message of reminders or trial: what is claimed, what it becomes, and what became of it."""

from dataclasses import dataclass
from datetime import datetime

from worker.errors import (
    RecipientDeferred,
    RecipientOptedOut,
    RecipientRefused,
    RetryLater,
    SendError,
    TransportMissing,
    Unconfirmed,
)
from worker.messages import Email, WhatsAppMessage
from worker.providers import Provider
from worker.runtime.db import Row
from worker.sending.accounts import GmailAccount
from worker.sending.outcomes import Outcome
from worker.sending.outcomes import OutcomeKind as Kind
from worker.sending.pacing import Pace

# what an error makes of a message, the most special first; all others put it off, also those that stop a campaign
KINDS: tuple[tuple[type[SendError], Kind], ...] = (
    (RecipientDeferred, Kind.RECIPIENT_DEFERRED),
    (RecipientOptedOut, Kind.OPTED_OUT),
    (RecipientRefused, Kind.REFUSED),
    (Unconfirmed, Kind.UNCONFIRMED),
)


@dataclass(frozen=True, slots=True)
class Notification:
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
class OutgoingMessage:
    """What a notice becomes: the message, the way out, and for "EmailLog" what it says."""

    message: Email | WhatsAppMessage
    provider: Provider
    pace: Pace | None = None
    gmail: GmailAccount | None = None
    outbox: Row | None = None  # sender, subject, body, html, entity_type, entity_id, tenant_id, user_id


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of one notice; ``letter`` is None when none could be made."""

    notice: Notification
    outcome: Outcome
    letter: OutgoingMessage | None = None
    may_have_arrived: bool = False  # nobody knows, or could be asked just now
    revoked: bool = False  # the user withdrew the grant of the Gmail account

    def outbox_record(self) -> Row:
        """Its row of "EmailLog", {} when it has none."""
        accepted, outbox = self.outcome.accepted, self.letter and self.letter.outbox
        if not (accepted and outbox):
            return {}
        return outbox | {
            "notice_id": self.notice.id, "address": self.notice.address, "at": self.outcome.at,
            "message_id": accepted.message_id, "gmail_id": accepted.gmail_message_id,
            "gmail_thread_id": accepted.gmail_thread_id,
        }  # fmt: skip


def failed(error: SendError | TransportMissing, at: datetime) -> Outcome:
    """What an error makes of a message."""
    kind = next((kind for error_class, kind in KINDS if isinstance(error, error_class)), Kind.DEFERRED)
    delay_seconds = error.delay_seconds if isinstance(error, RetryLater) else None
    return Outcome(kind, at, str(error), delay_seconds)
