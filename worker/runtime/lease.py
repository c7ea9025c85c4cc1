"""Leases: how long a claim in the database is valid without a sign of life, and whose claims are orphaned."""

import time

from worker.runtime.clock import boot_seconds
from worker.runtime.process_token import is_from_dead_process, new_token

LEASE_SECONDS = 300.0  # a claim of another machine that was not renewed for so long has lost its holder
RENEW_SECONDS = 30.0


class Lease:
    """The claims of this process: the name it holds them under, and when they have to be renewed.

    ``holder`` is ``host:pid:random``. Whoever settles a claim names its holder in the statement, so a former holder
    settles nothing.
    """

    def __init__(self) -> None:
        self.holder = new_token()
        self._renewed_at = time.monotonic()

    def expires_at(self) -> float:
        """When a claim that is made or renewed now expires, by ``boot_seconds``."""
        return boot_seconds() + LEASE_SECONDS

    def take_renewal(self) -> bool:
        """Whether the claims have to be renewed now; True once in RENEW_SECONDS."""
        if time.monotonic() - self._renewed_at < RENEW_SECONDS:
            return False
        self._renewed_at = time.monotonic()
        return True

    def is_orphaned(self, holder: str, *, lapsed: bool, in_hand: bool) -> bool:
        """Whether nobody will settle a claim any more.

        ``lapsed``: it was not renewed for LEASE_SECONDS, by the database's clock. ``in_hand``: this process still
        works on it. What this process holds and does not work on was left behind by a tick that failed.
        """
        if holder == self.holder:
            return not in_hand
        return lapsed or is_from_dead_process(holder)
