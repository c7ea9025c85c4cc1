"""Free TCP ports on the loopback interface."""

import secrets
import socket
from contextlib import closing
from dataclasses import dataclass

_TRIES = 200
_CLUSTER_DISTANCE = 10_000


@dataclass
class PortRange:
    """The ports from ``lowest`` to ``highest`` - 1."""

    lowest: int
    highest: int

    def use_share(self, number: int, of: int) -> None:
        """Narrows the range to one of several equal parts, so that processes do not take each other's ports."""
        size = (self.highest - self.lowest) // of
        self.lowest += number * size
        self.highest = self.lowest + size


# Below the range from which the kernel takes the ports of outgoing connections: when a server is
# stopped and started again, its port is still free.
RANGE = PortRange(12_000, 32_000)


def free_port() -> int:
    """A port on 127.0.0.1 that no server listens on now. Raises OSError when none can be found."""
    for _ in range(_TRIES):
        port = RANGE.lowest + secrets.randbelow(RANGE.highest - RANGE.lowest)
        if is_free(port):
            return port
    raise OSError(f"no free port found between {RANGE.lowest} and {RANGE.highest}")


def cluster_port() -> int:
    """A port for a Redis in cluster mode, which listens 10,000 ports above its own one, too. Raises OSError.

    That second one, and not the first, is taken from the range: above it the kernel would give it away.
    """
    for _ in range(_TRIES):
        port = free_port() - _CLUSTER_DISTANCE
        if is_free(port):
            return port
    raise OSError(f"no free port found {_CLUSTER_DISTANCE} below {RANGE.lowest} to {RANGE.highest}")


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of 127.0.0.1 now."""
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
