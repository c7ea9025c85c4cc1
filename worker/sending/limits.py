"""How large a message may be (MESSAGE_MAX_BYTES): its bytes as they leave."""

import json

from worker.messages import Email, WhatsAppMessage


def wire_bytes(message: Email | WhatsAppMessage) -> int:
    """The size of a message, before the provider's own envelope is added."""
    return len(message.content) if isinstance(message, Email) else len(json.dumps(message.payload))


def too_large(what: str, size_bytes: int, largest_bytes: int) -> str:
    """Why a message is not sent."""
    return f"{what} has {size_bytes} bytes, more than MESSAGE_MAX_BYTES ({largest_bytes}) allows"
