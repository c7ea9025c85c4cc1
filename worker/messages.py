"""Messages in the form that providers take, and what a provider answers when it has accepted one.

They are named tuples because there is one for every recipient: to make a frozen dataclass takes nearly three times as
long.
"""

from typing import Any, NamedTuple


class Email(NamedTuple):
    """One e-mail, ready to be sent."""

    envelope_from: str  # bare address, ASCII
    to: str  # bare address, ASCII
    message_id: str  # with its angle brackets
    content: bytes  # RFC 5322, with CRLF line ends, also at its end; not dot-stuffed


class EmailCopy(NamedTuple):
    """What a person reads in an e-mail, for the CRM's outbox."""

    sender: str  # bare address
    subject: str
    body: str  # plain text
    html: str | None


class WhatsAppMessage(NamedTuple):
    """One WhatsApp message: the body of POST /{phoneId}/messages."""

    to: str  # digits with country code, no plus sign
    payload: dict[str, Any]


class Accepted(NamedTuple):
    """The provider accepted the message. The ids are the provider's; an e-mail's ``message_id`` is its Message-ID."""

    message_id: str | None = None
    gmail_message_id: str | None = None
    gmail_thread_id: str | None = None
