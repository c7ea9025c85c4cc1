"""The body of a request, taken from what was received after its head (RFC 9112, sections 6 and 7.1)."""

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol

from worker.web.wsgi_answers import BadRequest

if TYPE_CHECKING:
    from gunicorn.http import Request

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;.*)?", re.DOTALL)
_LINES_BYTES = 4096  # of sizes, extensions and trailers that a chunked body may have besides its data


class RequestBody(Protocol):
    """A body that arrives piece by piece."""

    def take(self, received: bytearray) -> bytes | None:
        """Moves what has arrived of it out of ``received``; the whole body, or None while there is more to come.

        Raises BadRequest when it is too large, or not what its headers say.
        """


def expects_continue(request: "Request") -> bool:
    """Whether the client waits for CONTINUE before it sends the body."""
    return dict(request.headers).get("EXPECT", "").lower() == "100-continue"


def body_of(request: "Request", limit: int) -> RequestBody:
    """The body of a request, b"" when it has none. Raises BadRequest for one of more than ``limit`` bytes."""
    headers = dict(request.headers)  # gunicorn has checked them: a length is a number, and there is one of the two
    if "TRANSFER-ENCODING" in headers:
        return _ChunkedBody(limit)
    length = headers.get("CONTENT-LENGTH", "0").lstrip("0") or "0"
    if len(length) > len(str(limit)) or int(length) > limit:
        raise _too_large(limit)
    return _SizedBody(int(length))


class _SizedBody:
    def __init__(self, length: int) -> None:
        self._length = length

    def take(self, received: bytearray) -> bytes | None:
        if len(received) < self._length:
            return None
        body = bytes(received[: self._length])
        del received[: self._length]
        return body


class _ChunkedBody:
    """Looks at each byte once, however small the pieces are that it arrives in."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._data = bytearray()
        self._missing = 0  # bytes of the present chunk, with the line end after it
        self._lines_bytes = 0
        self._last_chunk = False  # has come; trailers may follow

    def take(self, received: bytearray) -> bytes | None:
        while self._take_chunk(received) and (line := self._take_line(received)) is not None:
            if not self._last_chunk:
                self._begin_chunk(line)
            elif not line:
                return bytes(self._data)
        return None

    def _take_chunk(self, received: bytearray) -> bool:
        """Whether the present chunk is whole."""
        if not self._missing:
            return True
        piece = received[: self._missing]
        del received[: self._missing]
        self._data += piece
        self._missing -= len(piece)
        if self._missing:
            return False
        if not self._data.endswith(b"\r\n"):
            raise _malformed()
        del self._data[-2:]
        return True

    def _take_line(self, received: bytearray) -> bytes | None:
        end = received.find(b"\r\n")
        if self._lines_bytes + (end if end >= 0 else len(received)) > _LINES_BYTES:
            raise _too_large(self._limit)
        if end < 0:
            return None
        line = bytes(received[:end])
        del received[: end + 2]
        self._lines_bytes += end + 2
        return line

    def _begin_chunk(self, line: bytes) -> None:
        size = _CHUNK_SIZE.fullmatch(line)
        if size is None:
            raise _malformed()
        length = int(size[1], 16)
        if len(self._data) + length > self._limit:
            raise _too_large(self._limit)
        self._last_chunk = length == 0
        self._missing = length + 2 if length else 0


def _malformed() -> BadRequest:
    return BadRequest(HTTPStatus.BAD_REQUEST, "The body is not chunked as its headers say.")


def _too_large(limit: int) -> BadRequest:
    return BadRequest(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The body may have {limit} bytes.")
