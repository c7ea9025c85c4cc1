"""A stand-in's limit of requests a second, one for each account."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from sandbox.http_server import Reply


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_at: float  # monotonic seconds


class RateLimit:
    """At most ``per_second`` requests a second for one account, with a token bucket of one second's size."""

    def __init__(self, per_second: float, refusal: Callable[[], Reply]) -> None:
        """``per_second`` 0: no limit."""
        self.per_second = per_second
        self.refusal = refusal
        self._buckets: dict[str, _Bucket] = {}

    def change(self, per_second: float) -> None:
        """Another limit from now on, with full buckets."""
        self.per_second = per_second
        self._buckets.clear()

    def allows(self, account: str) -> bool:
        """Takes a token if there is one."""
        if self.per_second <= 0:
            return True
        now, size = time.monotonic(), max(self.per_second, 1.0)
        bucket = self._buckets.setdefault(account, _Bucket(size, now))
        bucket.tokens = min(size, bucket.tokens + (now - bucket.filled_at) * self.per_second)
        bucket.filled_at = now
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True
