"""Turns the head of a request into the bytes of its answer, with gunicorn's parser and the web application.

No socket is read or written here, so a thread that answers never waits for a client.
"""

import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from gunicorn.http import RequestParser, wsgi
from gunicorn.http.errors import (
    ExpectationFailed,
    LimitRequestHeaders,
    LimitRequestLine,
    ParseException,
    UnsupportedTransferCoding,
)

from worker.web.answer_headers import HEADERS

if TYPE_CHECKING:
    from gunicorn.config import Config
    from gunicorn.http import Request

WsgiApplication = Callable[..., Iterable[bytes]]  # PEP 3333

# what gunicorn's parser raises -> the status; 400 for all others
_STATUSES: tuple[tuple[type[Exception], HTTPStatus], ...] = (
    (LimitRequestLine, HTTPStatus.REQUEST_URI_TOO_LONG),
    (LimitRequestHeaders, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE),
    (UnsupportedTransferCoding, HTTPStatus.NOT_IMPLEMENTED),
    (ExpectationFailed, HTTPStatus.EXPECTATION_FAILED),
)


class BadRequest(Exception):
    """The head of a request is not HTTP, or larger than gunicorn's settings allow."""

    def __init__(self, status: HTTPStatus, description: str) -> None:
        super().__init__(description)
        self.status = status


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """The bytes of an answer, and whether the connection ends with it."""

    data: bytes
    last: bool


class WsgiAnswers:
    """The answers of one WSGI application."""

    def __init__(self, application: WsgiApplication, settings: "Config", server: tuple[str, int]) -> None:
        """``server``: the address that it listens on."""
        self._application = application
        self._settings = settings
        self._server = server

    def parse(self, head: bytes, client: tuple[str, int]) -> "Request":
        """The request whose head, with the empty line at its end, is given. Raises BadRequest."""
        try:
            return next(RequestParser(self._settings, [head], client))
        except (ParseException, OSError, StopIteration) as error:
            status = next((each for kind, each in _STATUSES if isinstance(error, kind)), HTTPStatus.BAD_REQUEST)
            raise BadRequest(status, "The request is not HTTP, or larger than allowed.") from error

    def answer(self, request: "Request", body: bytes | None = None, *, last: bool) -> HttpAnswer:
        """What the application answers; ``last``: the connection ends with it in any case.

        It also ends with the answer to a request that has a body: what follows that was not read. ``body``: the whole
        one, without chunks; None where bodies are not read.
        """
        written = _Written()
        stands_for_socket: Any = written
        response, environ = wsgi.create(request, stands_for_socket, request.peer_addr, self._server, self._settings)
        environ["wsgi.multithread"] = True
        if body is not None:
            environ["wsgi.input"], environ["CONTENT_LENGTH"] = io.BytesIO(body), str(len(body))
        if last or _has_body(request):
            response.force_close()
        chunks = self._application(environ, response.start_response)
        try:
            for chunk in chunks:
                response.write(chunk)
            response.close()
        finally:
            if hasattr(chunks, "close"):
                chunks.close()
        return HttpAnswer(bytes(written.data), response.should_close())


def refusal(status: HTTPStatus, description: str) -> HttpAnswer:
    """The answer to a request that does not reach the application, in the form of the application's errors."""
    body = json.dumps({"title": f"{status.value} {status.phrase}", "description": description}).encode()
    headers = {"Connection": "close", "Content-Type": "application/json", "Content-Length": str(len(body)), **HEADERS}
    lines = [f"HTTP/1.1 {status.value} {status.phrase}", *(f"{name}: {value}" for name, value in headers.items())]
    return HttpAnswer("\r\n".join([*lines, "", ""]).encode() + body, last=True)


class _Written:
    """Stands for the socket that gunicorn writes an answer to."""

    def __init__(self) -> None:
        self.data = bytearray()

    def sendall(self, data: bytes) -> None:
        self.data += data

    def send(self, data: bytes) -> int:
        """Leaves out "100 Continue": the answer itself follows at once."""
        return len(data)


def _has_body(request: "Request") -> bool:
    headers = dict(request.headers)
    return "TRANSFER-ENCODING" in headers or headers.get("CONTENT-LENGTH", "0").strip("0") != ""
