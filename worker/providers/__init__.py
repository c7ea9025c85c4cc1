"""Ways out into the world, behind one small interface: ``send(message) -> Accepted``.

Every provider raises only the ``SendError`` kinds of ``worker.errors``. ``send`` is called from several
threads at once, each of which keeps a connection of its own.
"""

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Email:
    """One e-mail, ready for the wire."""

    envelope_from: str  # bare address, ASCII
    to: str  # bare address, ASCII
    message_id: str  # with its angle brackets
    content: bytes  # RFC 5322, CRLF line ends, ends with CRLF, not dot-stuffed


@dataclass(frozen=True, slots=True)
class WhatsAppMessage:
    """One WhatsApp message: the body of POST /{phoneId}/messages."""

    to: str  # digits with country code, no plus sign
    payload: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Accepted:
    """The provider took the message. Ids are the provider's own; for e-mail ``message_id`` is the header's."""

    message_id: str | None = None
    gmail_message_id: str | None = None
    gmail_thread_id: str | None = None


class Provider(Protocol):
    """What the campaign job needs of a way out."""

    def send(self, message: Any) -> Accepted:
        """Hand one message over. Raises the SendError kinds."""

    def close(self) -> None:
        """Close the kept connections of all threads."""
