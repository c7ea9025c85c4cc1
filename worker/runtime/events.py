"""Live events for the CRM's pages, as if one of its Socket.IO servers had sent them.

The app servers use @socket.io/redis-adapter. What it expects is what @socket.io/redis-emitter publishes: on
the channel ``socket.io#/#<room>#`` a MessagePack array of the sender's id, the packet, and whom it is for.
"""

import json
import logging
import time
from typing import Any

import msgpack  # type: ignore[import-untyped]
import redis

log = logging.getLogger(__name__)

SENDER = "emitter"  # the adapters drop what comes from their own id; this one is nobody's
NAMESPACE = "/"
EVENT_PACKET = 2  # socket.io-protocol: EVENT


class LiveEvents:
    """Publishes events, best effort: a page that misses one shows it when it is loaded again."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._silent_until = 0.0
        self._failing = False

    def emit(self, room: str, event: str, payload: dict[str, Any]) -> None:
        """Sends ``event`` to the browsers in ``room`` (``user:<id>`` or ``tenant:<id>``).

        Redis errors are logged, once an outage. Raises TypeError or ValueError when the payload holds
        anything but JSON's types.
        """
        plain = json.loads(json.dumps(payload, allow_nan=False))
        packet = {"type": EVENT_PACKET, "data": [event, plain], "nsp": NAMESPACE}
        whom = {"rooms": [room], "except": [], "flags": {}}
        message = msgpack.packb([SENDER, packet, whom], unicode_errors="replace")
        began = time.monotonic()
        if began < self._silent_until:
            return
        try:
            self._client.publish(f"socket.io#{NAMESPACE}#{room}#", message)
        except redis.RedisError as error:
            # A server that lets us wait for its timeout would otherwise slow down the work each time.
            now = time.monotonic()
            self._silent_until = now + 10 * (now - began)
            if not self._failing:
                log.warning("live events do not get through", {"reason": error})
            self._failing = True
        else:
            self._failing = False
