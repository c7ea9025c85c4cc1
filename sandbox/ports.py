"""Free TCP ports on the loopback interface."""

import secrets
import socket
from contextlib import closing

# Below the range from which the kernel takes the ports of outgoing connections: a server that is
# stopped and started again finds its port still free.
_LOWEST, _HIGHEST = 12_000, 32_000
_TRIES = 200


def free_port() -> int:
    """A port on 127.0.0.1 that nobody listens on now. Raises OSError when none can be found."""
    for _ in range(_TRIES):
        port = _LOWEST + secrets.randbelow(_HIGHEST - _LOWEST)
        if is_free(port):
            return port
    raise OSError(f"no free port found between {_LOWEST} and {_HIGHEST}")


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of 127.0.0.1 now."""
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
