"""Live events for the CRM's pages, published as if one of its Socket.IO servers had sent them.

The CRM's app servers use @socket.io/redis-adapter, which reads what @socket.io/redis-emitter publishes: on the
channel ``socket.io#/#<room>#`` a MessagePack array of the emitter's id, the packet, and the rooms that it is for.
"""

import json
import logging
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgpack  # type: ignore[import-untyped]
import redis

log = logging.getLogger(__name__)

EMITTER_ID = "emitter"  # an adapter ignores events with its own id; no adapter has this one
NAMESPACE = "/"
EVENT_PACKET = 2  # socket.io-protocol: EVENT


class EncodedEvent(NamedTuple):
    """An event as it is published: the channel in Redis, and the message there."""

    channel: str
    message: bytes

    @classmethod
    def of(cls, room: str, event: str, payload: dict[str, Any]) -> "EncodedEvent":
        """``event`` for the browsers in ``room`` (``user:<id>`` or ``tenant:<id>``).

        Raises TypeError or ValueError when the payload contains anything but JSON's types.
        """
        plain = json.loads(json.dumps(payload, allow_nan=False))
        packet = {"type": EVENT_PACKET, "data": [event, plain], "nsp": NAMESPACE}
        options = {"rooms": [room], "except": [], "flags": {}}
        message = msgpack.packb([EMITTER_ID, packet, options], unicode_errors="replace")
        return cls(f"socket.io#{NAMESPACE}#{room}#", message)


class LiveEvents:
    """Publishes events without a guarantee: a page that misses one shows the change when it is loaded again."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._silent_until = 0.0
        self._failing = False

    def emit(self, room: str, event: str, payload: dict[str, Any]) -> None:
        """Publishes one event. Raises as ``EncodedEvent.of``."""
        self.publish([EncodedEvent.of(room, event, payload)])

    def publish(self, events: Sequence[EncodedEvent]) -> None:
        """Publishes events in one round trip. Redis errors are logged, once for each outage."""
        began = time.monotonic()
        if not events or began < self._silent_until:
            return
        try:
            with self._client.pipeline(transaction=False) as pipeline:
                for event in events:
                    pipeline.publish(event.channel, event.message)
                pipeline.execute()
        except redis.RedisError as error:
            # Otherwise each event would wait for the timeout of a server that does not answer.
            now = time.monotonic()
            self._silent_until = now + 10 * (now - began)
            if not self._failing:
                log.warning("live events cannot be published, they are dropped", {"reason": error})
            self._failing = True
        else:
            self._failing = False
