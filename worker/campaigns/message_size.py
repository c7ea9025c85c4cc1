"""How large the messages of a campaign are, known before they are made.

A name of 100 kB that a text names a thousand times would fill the memory before anybody could measure the message. So
a few sample messages show how large a message is without a recipient's values, and how often each value is in it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from worker.content.campaign import MessageRecipient
from worker.errors import SendError
from worker.messages import Email, WhatsAppMessage
from worker.sending.limits import too_large, wire_bytes

_SAMPLE_LENGTH = 100  # characters; so many more or fewer line breaks do not count
_AT = datetime(2000, 1, 1)  # noqa: DTZ001 - UTC without a zone, as the CRM writes it


class _Content(Protocol):
    def message(self, recipient: MessageRecipient, at: datetime) -> Email | WhatsAppMessage: ...


@dataclass(frozen=True, slots=True)
class _SampleRecipient:
    id: str = "sample"
    name: str = "x"
    email: str | None = "x@x.example"
    phone: str | None = "919800000000"


@dataclass(frozen=True, slots=True)
class MessageSize:
    """``fixed_bytes``: what all messages have. ``times``: how many bytes one byte of a value adds, by its name."""

    fixed_bytes: int
    times: Mapping[str, float]
    largest_bytes: int

    @classmethod
    def of(cls, content: _Content, largest_bytes: int) -> "MessageSize":
        """A content of which no sample can be made counts as empty: each of its messages fails for that reason."""
        fixed = _bytes(content, _SampleRecipient())
        if fixed is None:
            return cls(0, {}, largest_bytes)
        longer = {"name": "x" * (_SAMPLE_LENGTH + 1), "phone": "919800000000" + "0" * _SAMPLE_LENGTH}
        times = {}
        for name, value in longer.items():
            size = _bytes(content, replace(_SampleRecipient(), **{name: value}))
            times[name] = max(0.0, (size - fixed) / _SAMPLE_LENGTH) if size else 0.0
        return cls(fixed, times, largest_bytes)

    def check(self, recipient: MessageRecipient) -> None:
        """Raises ValueError when the message is too large with this recipient's values, without making it."""
        added = self.times.get("name", 0.0) * len(recipient.name)
        added += self.times.get("phone", 0.0) * len(recipient.phone or "")
        if self.fixed_bytes + added > self.largest_bytes:
            raise ValueError(
                too_large(
                    "with this recipient's values the message", int(self.fixed_bytes + added), self.largest_bytes
                )
            )

    def check_made(self, message: Email | WhatsAppMessage) -> None:
        """Raises ValueError when a message turns out to be too large all the same."""
        if isinstance(message, Email) and len(message.content) > self.largest_bytes:
            raise ValueError(
                too_large("with this recipient's values the message", len(message.content), self.largest_bytes)
            )


def _bytes(content: _Content, sample: _SampleRecipient) -> int | None:
    try:
        return wire_bytes(content.message(sample, _AT))
    except (ValueError, SendError):
        return None
