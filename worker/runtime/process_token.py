"""Names the process that holds a lock or a claim (``host:pid:random``), and tells whether it is still alive.

A pid has a meaning only inside one process namespace. Several containers or machines may have the same host name, so
the random part begins with an id of the running kernel and of the process namespace.
"""

import functools
import os
import secrets
import socket
from pathlib import Path


def new_token() -> str:
    """A new token of this process."""
    return f"{socket.gethostname()}:{os.getpid()}:{_namespace()}.{secrets.token_hex(8)}"


def is_from_dead_process(token: str) -> bool:
    """Whether the token's process ran on this host and has ended. False when that cannot be known."""
    host, _, rest = token.partition(":")
    pid, _, random = rest.partition(":")
    if host != socket.gethostname() or not _is_pid(pid):
        return False
    namespace, dot, _ = random.partition(".")
    if dot and namespace != _namespace():
        return False
    try:
        os.kill(int(pid), 0)  # signal 0 only checks that the process exists
    except ProcessLookupError:
        return True
    except PermissionError:
        return False  # another user's process, and alive
    return False


def _is_pid(text: str) -> bool:
    # 0 and below name groups of processes; no system has pids of more than 31 bits.
    return text.isascii() and text.isdigit() and len(text) < 11 and 0 < int(text) < 2**31


@functools.cache
def _namespace() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        return f"{boot[:8]}-{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return "unknown"  # not Linux: only the host name tells machines apart
