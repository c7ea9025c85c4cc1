"""The programs that were told to stop and have to be started when they have.

A hung program takes its ``stopwaitsecs`` to end. Should the watchdog itself end meanwhile, nobody would start it, so
what is under way also stands in Redis, for the watchdog's successor on the same host:

    worker:restarting   <host>:<program> -> Unix seconds of the stop
"""

import logging
import time
from contextlib import suppress

import redis

log = logging.getLogger(__name__)

RESTARTING = "worker:restarting"
KEPT_SECONDS = 300.0  # an older entry could not be deleted in time, and says nothing any more


class PendingRestarts:
    """Those of one host."""

    def __init__(self, client: redis.Redis, host: str) -> None:
        self._client = client
        self._host = host
        self.names: set[str] = set()

    def recall(self) -> None:
        """Takes over what a predecessor left. Redis may be away: then there is nothing to be known."""
        with suppress(redis.RedisError):
            for field, at in self._client.hgetall(RESTARTING).items():
                host, _, program = str(field).partition(":")
                if host == self._host and time.time() - float(at) < KEPT_SECONDS:
                    self.names.add(program)

    def begin(self, program: str) -> None:
        """To be called before the stop. Raises redis.RedisError, and then the program must not be stopped."""
        self._client.hset(RESTARTING, self._field(program), repr(time.time()))
        self.names.add(program)

    def done(self, program: str) -> None:
        """The program was started, or somebody else decided what becomes of it."""
        self.names.discard(program)
        with suppress(redis.RedisError):
            self._client.hdel(RESTARTING, self._field(program))

    def _field(self, program: str) -> str:
        return f"{self._host}:{program}"
