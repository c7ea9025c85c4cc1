"""Providers that send messages, all with the same interface: ``send(message) -> Accepted``.

A provider raises only the kinds of ``SendError`` (worker/errors.py). Several threads may call ``send`` at the same
time; connections are kept for the next message.
"""

from typing import Any, Protocol

from worker.messages import Accepted


class Provider(Protocol):
    """What jobs need from a provider."""

    def send(self, message: Any) -> Accepted:
        """Sends one message. Raises the kinds of SendError."""

    def close(self) -> None:
        """Closes the kept connections."""
