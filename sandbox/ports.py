"""Free TCP ports on the loopback interface."""

import secrets
import socket
from contextlib import closing

# Below the range from which the kernel takes the ports of outgoing connections: a server that is
# stopped and started again finds its port still free.
PORTS = range(12_000, 32_000)
_TRIES = 200

_share = PORTS


def take_share(number: int, shares: int) -> None:
    """From now on ``free_port`` takes ports of one of several equal shares, counted from 0.

    Several processes with a share each do not take the port of a server that another one has stopped for a while.
    """
    global _share
    size = len(PORTS) // shares
    _share = PORTS[number * size : (number + 1) * size]


def free_port() -> int:
    """A port on 127.0.0.1 that nobody listens on now. Raises OSError when none can be found."""
    for _ in range(_TRIES):
        port = secrets.choice(_share)
        if is_free(port):
            return port
    raise OSError(f"no free port found between {_share.start} and {_share.stop}")


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of 127.0.0.1 now."""
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
