"""One connection to an HTTP server: writes requests, reads answers, each within limits (RFC 9112).

The standard http.client takes five times the CPU time for an exchange, most of it to parse the head as an e-mail's.

What a server sends is untrusted. Its answer has to end where its head says; one whose length is not clear beyond
doubt counts by its status only. A connection is used again only after an answer that ended, with nothing behind it.
"""

import re
import select
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote, urlsplit

from worker.providers.deadlines import Deadline
from worker.providers.handover import check_handover

LONGEST_HEAD = 65_536  # octets, with the interim answers before it
LONGEST_BODY = 1_048_576  # octets

_LONGEST_CHUNK_LINE = 1024  # octets, with the chunk's extensions
_AT_ONCE = 65_536  # octets of one read
_PART = 262_144  # octets of a request that are written at once

_EMPTY_LINE = re.compile(rb"\n\r?\n")
_STATUS_LINE = re.compile(rb"HTTP/1\.([0-9]) +([1-9][0-9][0-9])(?: |$)")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;.*)?", re.DOTALL)
_LENGTH = re.compile(r"[0-9]{1,18}")
_SWITCHING_PROTOCOLS = 101
_WITHOUT_BODY = (204, 304)
_LISTS = {b"connection", b"content-length", b"transfer-encoding"}  # fields whose repetitions count
_FIELDS = _LISTS | {b"content-encoding", b"retry-after"}
_UNCHANGED_IN_URLS = "%!$&'()*+,;=:@/?~-._"


class MalformedAnswer(Exception):
    """The server sent something that is no answer, or that exceeds a limit."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a connection leads to. ``authority``: its name in the Host header."""

    host: str
    port: int
    tls: bool
    authority: str


@dataclass(frozen=True, slots=True)
class AnswerHead:
    """``fields``: those of the header that this client reads, by their names in lower case."""

    status: int
    fields: Mapping[bytes, str]
    keeps_open: bool  # as far as the head says


@lru_cache(maxsize=1024)
def origin_and_target(url: str) -> tuple[Origin, str]:
    """Where to connect for a URL, and what its request line asks for. Raises ValueError for a URL that is none."""
    parts = urlsplit(url)
    if not parts.hostname or parts.scheme not in ("http", "https"):
        raise ValueError("not a URL of http or https")
    usual_port = 443 if parts.scheme == "https" else 80
    port = usual_port if parts.port is None else parts.port
    host = parts.hostname.encode("idna").decode("ascii")
    name = f"[{host}]" if ":" in host else host
    authority = name if port == usual_port else f"{name}:{port}"
    target = quote(parts.path or "/", safe=_UNCHANGED_IN_URLS)
    if parts.query:
        target += "?" + quote(parts.query, safe=_UNCHANGED_IN_URLS)
    return Origin(host, port, parts.scheme == "https", authority), target


def request_octets(method: str, target: str, fields: Mapping[str, str], body: bytes) -> bytes:
    """A whole request. Raises ValueError, without quoting it, for a field that could be read as more than one."""
    lines = [f"{method} {target} HTTP/1.1", *[f"{name}: {value}" for name, value in fields.items()]]
    if not all(line.isascii() and line.isprintable() for line in lines):
        raise ValueError("a header has characters that no header can have")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii") + body


class KeptConnection:
    """A connection; used by one thread at a time.

    ``usable``: another request can follow. ``idle_since``: its owner's note, by time.monotonic().
    """

    def __init__(
        self,
        origin: Origin,
        tls: ssl.SSLContext | None,
        deadline: Deadline,
        *,
        connect_timeout_seconds: float,
        read_timeout_seconds: float,
    ) -> None:
        """Connects. Raises OSError, ssl.SSLCertVerificationError for a certificate that is not valid."""
        self.usable = False
        self.idle_since = 0.0
        self._received = bytearray()
        self._sock = socket.create_connection((origin.host, origin.port), connect_timeout_seconds)
        try:
            deadline.attach(self._sock)
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls is not None:
                self._sock = tls.wrap_socket(self._sock, server_hostname=origin.host, do_handshake_on_connect=False)
                deadline.attach(self._sock)
                self._sock.do_handshake()
            self._sock.settimeout(read_timeout_seconds)
            self._poll = select.poll()
            self._poll.register(self._sock, select.POLLIN)
        except BaseException:
            self._sock.close()
            raise

    def begin(self, deadline: Deadline, seconds: float) -> None:
        """Another exchange begins, which ``deadline`` ends after so long."""
        deadline.begin(seconds, self._sock)

    def is_silent(self) -> bool:
        """Whether nothing came after the last answer: no octet, and no end of the stream."""
        return not self._poll.poll(0)

    def hand_over(self, request: bytes) -> None:
        """Writes a request. An OSError means that the kernel did not take all of it. Raises TooLate."""
        self.usable = False  # until its answer has ended
        for start in range(0, len(request), _PART):
            check_handover()
            self._sock.sendall(request[start : start + _PART])

    def head(self) -> AnswerHead:
        """The head of the answer, after the interim ones. Raises OSError and MalformedAnswer."""
        left = LONGEST_HEAD
        while True:
            octets = self._until_empty_line(left)
            left -= len(octets)
            head = _parsed(octets)
            if head.status >= 200:
                return head
            if head.status == _SWITCHING_PROTOCOLS:
                raise MalformedAnswer("the server answered 101, which is no answer to this request")

    def body(self, head: AnswerHead) -> bytes:
        """The body of the answer. Raises OSError and MalformedAnswer."""
        if head.fields.get(b"content-encoding", "identity").lower() not in ("", "identity"):
            raise MalformedAnswer("the answer is encoded, which was not asked for")
        coding, length = head.fields.get(b"transfer-encoding"), head.fields.get(b"content-length")
        if head.status in _WITHOUT_BODY:
            body = b""
        elif coding is None and length is None:
            return self._until_end()
        elif length is None and coding is not None and coding.lower() == "chunked":
            body = self._chunks()
        elif coding is None and length is not None and _LENGTH.fullmatch(length):
            body = self._exactly(int(length), LONGEST_BODY)
        else:
            raise MalformedAnswer("the length of the answer is not clear")
        self.usable = head.keeps_open and not self._received
        return body

    def close(self) -> None:
        self.usable = False
        self._sock.close()

    def _until_empty_line(self, limit: int) -> bytes:
        searched = 0
        while True:
            found = _EMPTY_LINE.search(self._received, searched)
            if found:
                return self._taken(found.end())
            if len(self._received) > limit:
                raise MalformedAnswer(f"the head of the answer is longer than {LONGEST_HEAD} octets")
            searched = max(0, len(self._received) - 2)
            self._receive()

    def _chunks(self) -> bytes:
        content = bytearray()
        while size := self._chunk_size():
            content += self._exactly(size, LONGEST_BODY - len(content))
            if self._line(2):
                raise MalformedAnswer("a chunk of the answer does not end where it should")
        left = LONGEST_HEAD
        while trailer := self._line(left):
            left -= len(trailer)
        return bytes(content)

    def _chunk_size(self) -> int:
        found = _CHUNK_LINE.fullmatch(self._line(_LONGEST_CHUNK_LINE))
        if found is None:
            raise MalformedAnswer("a chunk of the answer has no size")
        return int(found[1], 16)

    def _line(self, limit: int) -> bytes:
        """A line without its end."""
        while (end := self._received.find(b"\n", 0, limit + 2)) < 0:
            if len(self._received) > limit + 1:
                raise MalformedAnswer("a line in the body of the answer is too long")
            self._receive()
        return self._taken(end + 1).rstrip(b"\r\n")

    def _exactly(self, length: int, limit: int) -> bytes:
        if length > limit:
            raise MalformedAnswer(f"the answer is longer than {LONGEST_BODY} octets")
        while len(self._received) < length:
            self._receive()
        return self._taken(length)

    def _until_end(self) -> bytes:
        while octets := self._sock.recv(_AT_ONCE):
            self._received += octets
            if len(self._received) > LONGEST_BODY:
                raise MalformedAnswer(f"the answer is longer than {LONGEST_BODY} octets")
        return self._taken(len(self._received))

    def _receive(self) -> None:
        octets = self._sock.recv(_AT_ONCE)
        if not octets:
            raise ConnectionError("the server closed the connection")
        self._received += octets

    def _taken(self, length: int) -> bytes:
        octets = bytes(self._received[:length])
        del self._received[:length]
        return octets


def _parsed(head: bytes) -> AnswerHead:
    """Raises MalformedAnswer."""
    first, *lines = head.splitlines()
    status = _STATUS_LINE.match(first)
    if status is None:
        raise MalformedAnswer("the server did not answer in HTTP")
    fields: dict[bytes, str] = {}
    for line in lines:
        name, _, raw = line.partition(b":")
        if (name := name.lower()) in _FIELDS:
            value = raw.strip().decode("latin-1")
            if name not in fields:
                fields[name] = value
            elif name in _LISTS:
                fields[name] += f", {value}"
    closes = status[1] == b"0" or "close" in fields.get(b"connection", "").lower()
    return AnswerHead(int(status[2]), fields, not closes)
