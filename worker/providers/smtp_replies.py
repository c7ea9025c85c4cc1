"""Reading an SMTP server's replies: from one buffer, each with a deadline, none without an end."""

import re
import socket
import ssl
import struct
import time
from collections.abc import Sequence

from worker.providers.untrusted import printable

Reply = tuple[int, bytes]

# Python's own timeout, and the kernel's.
TIMED_OUT = (TimeoutError, BlockingIOError)

_REPLY_LINE = re.compile(rb"[2-5][0-9][0-9](?:[ -]|\r?\Z)")
_LONGEST_REPLY = 65_536
# A reply whose octets do arrive may be this late. One that trickles must not hold its thread for ever.
_GRACE_SECONDS = 10.0


class MalformedReply(Exception):
    """The server answered with something that is no SMTP reply."""


def let_kernel_time(sock: socket.socket, timeout_seconds: float) -> None:
    """Time out in the kernel instead of Python, which calls poll before each send and recv.

    Half the system calls, half the fights for the interpreter lock: a quarter more messages a second
    with 8 threads. OpenSSL cannot work this way, so lines inside TLS keep Python's timeout.
    """
    whole, part = divmod(timeout_seconds, 1)
    timeval = struct.pack("ll", int(whole), max(int(part * 1_000_000), 1))
    sock.settimeout(None)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)


class ReplyReader:
    """The replies that arrive on one connection (RFC 5321, 4.2)."""

    def __init__(self, sock: socket.socket | ssl.SSLSocket, secrets: Sequence[str]) -> None:
        self._sock = sock
        self._secrets = secrets
        self._pending = b""

    @property
    def pending(self) -> bool:
        """Whether octets have been read that belong to no reply yet."""
        return bool(self._pending)

    def read(self, timeout_seconds: float) -> Reply:
        """One reply, its lines joined. Raises OSError (TimeoutError included) and MalformedReply."""
        deadline = time.monotonic() + timeout_seconds
        lines: list[bytes] = []
        length = 0
        while True:
            end = self._pending.find(b"\n")
            while end < 0:
                self._fill(deadline)
                end = self._pending.find(b"\n")
            line, self._pending = self._pending[:end], self._pending[end + 1 :]
            length += end
            if not _REPLY_LINE.match(line) or length > _LONGEST_REPLY:
                raise MalformedReply(f"no SMTP reply: {printable(line, self._secrets)}")
            lines.append(line[4:])
            if line[3:4] != b"-":
                return int(line[:3]), b" ".join(lines)

    def _fill(self, deadline: float) -> None:
        while True:
            try:
                octets = self._sock.recv(4096)
                break
            except TIMED_OUT:
                if time.monotonic() >= deadline:
                    raise TimeoutError("the server did not answer in time") from None
        if not octets:
            raise ConnectionError("the server closed the connection")
        self._pending += octets
        if len(self._pending) > _LONGEST_REPLY:
            raise MalformedReply("no SMTP reply: a line without an end")
        if time.monotonic() > deadline + _GRACE_SECONDS:
            raise TimeoutError("the reply came too slowly")
