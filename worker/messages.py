"""Messages in the form that providers take, and what a provider answers when it has accepted one."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Email:
    """One e-mail, ready to be sent."""

    envelope_from: str  # bare address, ASCII
    to: str  # bare address, ASCII
    message_id: str  # with its angle brackets
    content: bytes  # RFC 5322, with CRLF line ends, also at its end; not dot-stuffed


@dataclass(frozen=True, slots=True)
class EmailCopy:
    """What a person reads in an e-mail, for the CRM's outbox."""

    sender: str  # bare address
    subject: str
    body: str  # plain text
    html: str | None


@dataclass(frozen=True, slots=True)
class WhatsAppMessage:
    """One WhatsApp message: the body of POST /{phoneId}/messages."""

    to: str  # digits with country code, no plus sign
    payload: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Accepted:
    """The provider accepted the message. The ids are the provider's; an e-mail's ``message_id`` is its Message-ID."""

    message_id: str | None = None
    gmail_message_id: str | None = None
    gmail_thread_id: str | None = None
