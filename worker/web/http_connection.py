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

from worker.web.wsgi_answers import HttpAnswer, refusal

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


class HttpConnection:
    """One client's connection. All methods run in the thread of the event loop."""

    def __init__(self, client: socket.socket, respond: Callable[[bytes], Awaitable[HttpAnswer]]) -> None:
        """``client`` does not block; ``respond`` makes the answer to the head of a request."""
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SENDING_BYTES)
        self._client = client
        self._respond = respond
        self._loop = asyncio.get_running_loop()
        self._received = bytearray()  # may hold the next request, too
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
                head = await self._head()
        except TimeoutError:
            if not self._received:
                return False
            answer = refusal(HTTPStatus.REQUEST_TIMEOUT, f"No whole request within {REQUEST_SECONDS:g} s.")
        else:
            if head is None:
                return False
            self.enter(Phase.ANSWERING)
            answer = await self._answer(head)
        self.enter(Phase.SENDING)
        async with asyncio.timeout(ANSWER_SECONDS):
            await self._loop.sock_sendall(self._client, answer.data)
        return not answer.last

    async def _head(self) -> bytes | None:
        """The head of the next request with the empty line at its end; None when the client has closed.

        A head that is too long is returned as far as it was received, without its end.
        """
        searched = 0
        while (end := self._received.find(_HEAD_END, searched)) < 0:
            if len(self._received) > HEAD_BYTES:
                return bytes(self._received)
            searched = max(0, len(self._received) - len(_HEAD_END) + 1)
            received = await self._loop.sock_recv(self._client, _READ_BYTES)
            if not received:
                return None
            self._received += received
        head = bytes(self._received[: end + len(_HEAD_END)])
        del self._received[: len(head)]
        return head

    async def _answer(self, head: bytes) -> HttpAnswer:
        if len(head) > HEAD_BYTES:
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            return refusal(status, f"The request line and headers may have {HEAD_BYTES} bytes.")
        return await self._respond(head)

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
