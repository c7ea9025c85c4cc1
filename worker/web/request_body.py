"""The body of a request, taken from what was received after its head (RFC 9112, sections 6 and 7.1)."""

import re
from http import HTTPStatus
from typing import TYPE_CHECKING

from worker.web.wsgi_answers import BadRequest

if TYPE_CHECKING:
    from gunicorn.http import Request

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?\r\n")
_CHUNKED_OVERHEAD = 4096  # bytes of sizes, extensions and trailers that a chunked body may have besides its data


def expects_continue(request: "Request") -> bool:
    """Whether the client waits for CONTINUE before it sends the body."""
    return dict(request.headers).get("EXPECT", "").lower() == "100-continue"


def body_of(request: "Request", received: bytes, limit: int) -> bytes | None:
    """The decoded body at the beginning of ``received``; None while it is not whole; b"" when there is none.

    Raises BadRequest for one of more than ``limit`` bytes, and for chunks that are none.
    """
    headers = dict(request.headers)  # gunicorn has checked them: a length is a number, and there is one of the two
    if "TRANSFER-ENCODING" in headers:
        return _chunked(received, limit)
    length = headers.get("CONTENT-LENGTH", "0").lstrip("0") or "0"
    if len(length) > len(str(limit)) or int(length) > limit:
        raise _too_large(limit)
    return received[: int(length)] if len(received) >= int(length) else None


def _chunked(received: bytes, limit: int) -> bytes | None:
    if len(received) > limit + _CHUNKED_OVERHEAD:
        raise _too_large(limit)
    body, position = b"", 0
    while size := _CHUNK_SIZE.match(received, position):
        length = int(size[1], 16)
        if len(body) + length > limit:
            raise _too_large(limit)
        position = size.end() + length
        if length == 0:
            ended = received.startswith(b"\r\n", position) or b"\r\n\r\n" in received[position:]  # trailers
            return body if ended else None
        body += received[size.end() : position]
        if received[position : position + 2] not in (b"", b"\r", b"\r\n"):
            raise BadRequest(HTTPStatus.BAD_REQUEST, "The body is not chunked as its headers say.")
        position += 2
    if b"\r\n" in received[position:]:
        raise BadRequest(HTTPStatus.BAD_REQUEST, "The body is not chunked as its headers say.")
    return None


def _too_large(limit: int) -> BadRequest:
    return BadRequest(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"The body may have {limit} bytes.")
