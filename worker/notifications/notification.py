"""A notification of reminders or trial: the claimed row, and the message that is made from it."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from worker.messages import Email, WhatsAppMessage
from worker.providers import Provider
from worker.sending.accounts import GmailAccount
from worker.sending.outbox import OutboxEmail
from worker.sending.pacing import Pace
from worker.sending.quota import Quota


@dataclass(frozen=True, slots=True)
class Notification:
    """A row of worker.notice that this process has claimed.

    ``content`` is what the row's JSON holds; its job reads from it what the message is made of. ``handed_over``: it
    was given to a provider before, and the answer never came.
    """

    id: str
    tenant_id: str | None  # None: it is for the operator of the CRM
    channel: str
    address: str
    content: Any
    created_at: datetime
    attempts: int
    handed_over: bool


@dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """The message of a notification, the account it leaves through, and what the CRM's outbox keeps of it."""

    message: Email | WhatsAppMessage
    provider: Provider
    pace: Pace | None = None
    gmail: GmailAccount | None = None
    outbox: OutboxEmail | None = None
    quota: Quota | None = None
