"""Leases: how long a claim in the database is valid without being renewed, and which claims are orphaned."""

import time
from collections.abc import Callable

from worker.runtime.clock import boot_seconds
from worker.runtime.process_token import is_from_dead_process, new_token

LEASE_SECONDS = 300.0  # a claim that was not renewed for so long has lost its holder, whatever machine that is on
RENEW_SECONDS = 30.0  # how often a holder renews its claims


class Lease:
    """The claims of this process: the name of their holder, and when they have to be renewed.

    ``holder`` is ``host:pid:random``. A statement that settles a claim names the holder, so a former holder settles
    nothing.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock`` returns seconds that never go back."""
        self.holder = new_token()
        self._clock = clock
        self._renewed_at = clock()

    def expires_at(self) -> float:
        """When a claim that is made or renewed now expires, on the clock of ``boot_seconds``."""
        return boot_seconds() + LEASE_SECONDS

    def take_renewal(self) -> bool:
        """Whether the claims have to be renewed now; True once in RENEW_SECONDS."""
        now = self._clock()
        if now - self._renewed_at < RENEW_SECONDS:
            return False
        self._renewed_at = now
        return True

    def is_orphaned(self, holder: str, *, lapsed: bool, in_hand: bool) -> bool:
        """Whether a claim has no process any more that will settle it.

        ``lapsed``: it was not renewed for LEASE_SECONDS on the database's clock. ``in_hand``: this process still
        works on it. A claim that this process holds and does not work on was left behind by a tick that failed.
        """
        if holder == self.holder:
            return not in_hand
        return lapsed or is_from_dead_process(holder)
