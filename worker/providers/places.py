"""Places: how many connections to a server this process may have, where several processes share a number of them.

The provider counts its connections; who may have how many is decided elsewhere (worker/sending/connection_places.py).
"""

from typing import NamedTuple, Protocol


class ConnectionUse(NamedTuple):
    """``open``: connections, also those that are being opened; ``wanted``: by threads that send now."""

    open: int
    wanted: int


class Connections(Protocol):
    """What a provider tells of its connections, and does with them. Any thread may call it."""

    def use(self) -> ConnectionUse:
        """How many there are."""

    def keep(self, number: int) -> None:
        """Closes idle ones beyond ``number``; busy ones are closed after their message. Wakes who waits for one."""


class SharedPlaces(Protocol):
    """Called for each connection and message, so none of these asks another server, but ``close``."""

    @property
    def number(self) -> int:
        """How many connections there may be now."""

    def may_open(self, connections: int) -> bool:
        """Whether one more may be opened beside so many."""

    def want(self, number: int) -> None:
        """So many threads would use a connection now."""

    def serve(self, connections: Connections) -> None:
        """Once, before everything else: whose places these are."""

    def close(self) -> None:
        """All connections are closed: gives the places back."""
