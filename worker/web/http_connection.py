"""One HTTP connection: receives the head of a request, sends its answer, and so on until one side closes.

Each step has a deadline in all, however slowly or steadily the client goes on, and what is received has a limit.
"""

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from enum import Enum
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple

from worker.web.request_body import CONTINUE, body_of, expects_continue
from worker.web.wsgi_answers import BadRequest, HttpAnswer, refusal

if TYPE_CHECKING:
    from gunicorn.http import Request

REQUEST_SECONDS = 10.0  # for a request to arrive, since the connection opened or its previous answer was sent
ANSWER_SECONDS = 10.0  # for the client to take an answer
CLOSING_SECONDS = 10.0  # for the client to take the last answer and close its side
HEAD_BYTES = 65_536  # of a request line and headers
CLOSING_BYTES = 16 * 1024 * 1024  # read and dropped after the last answer
SENDING_BYTES = 65_536  # that the kernel keeps of answers that the client has not taken
_READ_BYTES = 16_384
_HEAD_END = b"\r\n\r\n"


class Phase(Enum):
    RECEIVING = "receiving"
    ANSWERING = "answering"
    SENDING = "sending"
    CLOSING = "closing"


class ReceivedRequest(NamedTuple):
    """A request; ``body`` is None where bodies are not read."""

    request: "Request"
    body: bytes | None


class HttpConnection:
    """One client's connection. All methods run in the thread of the event loop."""

    def __init__(
        self,
        client: socket.socket,
        parse: Callable[[bytes], "Request"],
        respond: Callable[[ReceivedRequest], Awaitable[HttpAnswer]],
        body_bytes: int = 0,
    ) -> None:
        """``client`` does not block; ``parse`` reads a head, or raises BadRequest; ``respond`` makes the answer.

        ``body_bytes``: the longest body that is read; 0: none is.
        """
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SENDING_BYTES)
        self._client = client
        self._parse = parse
        self._respond = respond
        self._body_bytes = body_bytes
        self._loop = asyncio.get_running_loop()
        self._received = bytearray()  # may hold the next request, too
        self._begun = False  # whether anything of the present request was received
        self.enter(Phase.RECEIVING)

    def enter(self, phase: Phase) -> None:
        self.phase = phase
        self.since = self._loop.time()  # seconds of the event loop's clock

    async def serve(self) -> None:
        """Answers all requests of the connection, then closes it."""
        with closing(self._client), suppress(OSError):  # that the client has gone is no news
            try:
                while await self._exchange():
                    await asyncio.sleep(0)  # so that a client that sends without a pause is not the only one served
                if self.phase is Phase.SENDING:
                    await self._wait_for_close()
            except (TimeoutError, asyncio.CancelledError):
                if self.phase in (Phase.SENDING, Phase.CLOSING):
                    # drops what the client does not take, which the kernel would keep for minutes
                    self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                raise

    async def _exchange(self) -> bool:
        """Receives one request and answers it. Returns whether another one may follow.

        Raises TimeoutError when the client does not take the answer.
        """
        self.enter(Phase.RECEIVING)
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                received = await self._request()
        except TimeoutError:
            if not self._begun:
                return False
            answer = refusal(HTTPStatus.REQUEST_TIMEOUT, f"No whole request within {REQUEST_SECONDS:g} s.")
        except BadRequest as error:
            answer = refusal(error.status, str(error))
        else:
            if received is None:
                return False
            self.enter(Phase.ANSWERING)
            answer = await self._respond(received)
        self.enter(Phase.SENDING)
        async with asyncio.timeout(ANSWER_SECONDS):
            await self._loop.sock_sendall(self._client, answer.data)
        return not answer.last

    async def _request(self) -> ReceivedRequest | None:
        """The next request; None when the client has closed. Raises BadRequest."""
        self._begun = bool(self._received)
        head = await self._head()
        if head is None:
            return None
        request = self._parse(head)
        if not self._body_bytes:
            return ReceivedRequest(request, None)
        body = await self._body(request)
        return None if body is None else ReceivedRequest(request, body)

    async def _head(self) -> bytes | None:
        """The head of the next request with the empty line at its end; None when the client has closed."""
        searched = 0
        while (end := self._received.find(_HEAD_END, searched)) < 0 and len(self._received) <= HEAD_BYTES:
            searched = max(0, len(self._received) - len(_HEAD_END) + 1)
            if not await self._receive():
                return None
        if not 0 <= end <= HEAD_BYTES - len(_HEAD_END):
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            raise BadRequest(status, f"The request line and headers may have {HEAD_BYTES} bytes.")
        head = bytes(self._received[: end + len(_HEAD_END)])
        del self._received[: len(head)]
        return head

    async def _body(self, request: "Request") -> bytes | None:
        """The whole body, None when the client has closed before its end. Raises BadRequest."""
        arriving = body_of(request, self._body_bytes)
        body = arriving.take(self._received)
        if body is None and expects_continue(request):
            await self._loop.sock_sendall(self._client, CONTINUE)
        while body is None:
            if not await self._receive():
                return None
            body = arriving.take(self._received)
        return body

    async def _receive(self) -> bool:
        """Whether there was more; False: the client has closed."""
        received = await self._loop.sock_recv(self._client, _READ_BYTES)
        self._received += received
        self._begun = self._begun or bool(received)
        return bool(received)

    async def _wait_for_close(self) -> None:
        """Closes our side and waits for the client's: what it still sends would destroy the answer on its way.

        See RFC 9112, section 9.6. Raises TimeoutError.
        """
        self.enter(Phase.CLOSING)
        self._client.shutdown(socket.SHUT_WR)
        dropped = 0
        async with asyncio.timeout(CLOSING_SECONDS):
            while dropped < CLOSING_BYTES and (received := await self._loop.sock_recv(self._client, _READ_BYTES)):
                dropped += len(received)
                await asyncio.sleep(0)
