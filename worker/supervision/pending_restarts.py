"""The programs that the watchdog has stopped and still has to start again.

A hung program takes its ``stopwaitsecs`` to end. If the watchdog itself ends in between, nothing else would start the
program. So the pending restarts are also in Redis, for the next watchdog process on the same host:

    worker:restarting   <host>:<program> -> Unix seconds of the stop
"""

import logging
import math
import time
from contextlib import suppress

import redis

from worker.runtime.poisoned_keys import OwnKey, read_own

log = logging.getLogger(__name__)

RESTARTING = "worker:restarting"
_KEY = OwnKey(RESTARTING, "hash")
KEPT_SECONDS = 300.0  # an older entry could not be deleted in time and is ignored


class PendingRestarts:
    """The pending restarts of one host."""

    def __init__(self, client: redis.Redis, host: str) -> None:
        self._client = client
        self._host = host
        self._programs: set[str] = set()

    def __contains__(self, program: str) -> bool:
        return program in self._programs

    def load(self) -> None:
        """Takes over the entries of the previous process; none while Redis is unavailable."""
        with suppress(redis.RedisError):
            for field, at in read_own(self._client, _KEY, _fault).fields.items():
                host, _, program = field.decode("utf-8", "replace").partition(":")
                stopped_at = _seconds(at)
                if host == self._host and stopped_at is not None and time.time() - stopped_at < KEPT_SECONDS:
                    self._programs.add(program)

    def add(self, program: str) -> None:
        """To be called before the stop. Raises redis.RedisError, and then the program must not be stopped."""
        read_own(self._client, _KEY)  # a key of another type would take no entry, and the program would hang on
        self._client.hset(RESTARTING, self._field(program), repr(time.time()))
        self._programs.add(program)

    def remove(self, program: str) -> None:
        """The program was started, or it is no longer the watchdog's to start."""
        self._programs.discard(program)
        with suppress(redis.RedisError):
            self._client.hdel(RESTARTING, self._field(program))

    def _field(self, program: str) -> str:
        return f"{self._host}:{program}"


def _seconds(at: bytes) -> float | None:
    """None for what is no time."""
    try:
        seconds = float(at)
    except ValueError:
        return None
    return seconds if 0 <= seconds < math.inf else None


def _fault(_field: bytes, at: bytes) -> str:
    return "" if _seconds(at) is not None else "has no time"
