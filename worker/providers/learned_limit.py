"""How many connections a server accepts, learned from its refusals."""

import time

LIMIT_SECONDS = 60.0  # for so long no connection is tried beyond those that the server accepted; then one more


class LearnedLimit:
    """The limit of one server; none until it has refused a connection. To be guarded by its owner's lock."""

    def __init__(self) -> None:
        self._number: int | None = None
        self._until = 0.0  # time.monotonic()

    def allows_one_more(self, number_open: int) -> bool:
        """Whether the server may accept one more connection beside so many."""
        if self._number is None:
            return True
        if time.monotonic() >= self._until:  # perhaps it accepts one more by now
            self._number += 1
            self._until = time.monotonic() + LIMIT_SECONDS
        return number_open < self._number

    def one_was_refused(self, number_open: int) -> None:
        """The server refused one more connection beside so many."""
        self._number = number_open or None
        self._until = time.monotonic() + LIMIT_SECONDS
