"""Ways out into the world, behind one small interface: ``send(message) -> Accepted``.

Every provider raises only the ``SendError`` kinds of ``worker.errors``. ``send`` is called from several
threads at once, each of which keeps a connection of its own.
"""

from typing import Any, Protocol

from worker.messages import Accepted


class Provider(Protocol):
    """What the campaign job needs of a way out."""

    def send(self, message: Any) -> Accepted:
        """Hand one message over. Raises the SendError kinds."""

    def close(self) -> None:
        """Close the kept connections of all threads."""
