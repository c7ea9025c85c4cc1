"""An HTTP server that accepts every message and every call with a new id, as the Cloud API, Gmail and Twilio do.

    python -m benchmarks.http_sink PORT FILE

listens on 127.0.0.1, keeps connections open, and counts the messages and calls it accepted in FILE.
"""

import asyncio
import re
import sys
from pathlib import Path

from benchmarks.tally import Tally

_HEAD_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
# what is asked for, and the answer's body around a number
_KINDS = [
    (
        re.compile(rb"POST /\S*/messages HTTP/1\.1\r\n"),
        b'{"messaging_product":"whatsapp","messages":[{"id":"wamid.%024d"}]}',
    ),
    (
        re.compile(rb"POST /gmail/v1/users/me/messages/send HTTP/1\.1\r\n"),
        b'{"id":"%016x","threadId":"19a0000000000000","labelIds":["SENT"]}',
    ),
    (
        re.compile(rb"POST /\S*/Accounts/AC[0-9a-f]{32}/Calls\.json HTTP/1\.1\r\n"),
        b'{"sid":"CA%032x","status":"queued"}',
    ),
]
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


class Session(asyncio.Protocol):
    """One connection, its requests one after the other."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._received = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - what a TCP server hands over
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None  # noqa: S101 - set before any data comes
        self._received += data
        while head := self._whole_request():
            self._transport.write(self._answer(head))

    def _whole_request(self) -> bytes:
        """The head of the next request whose body has arrived; empty when there is none yet."""
        head, end, rest = self._received.partition(_HEAD_END)
        length = _LENGTH.search(head)
        octets = int(length[1]) if length else 0
        if not end or len(rest) < octets:
            return b""
        self._received = rest[octets:]
        return head

    def _answer(self, head: bytes) -> bytes:
        for request, answer in _KINDS:
            if request.match(head):
                self._tally.value += 1
                body = answer % self._tally.value
                return _ANSWER % (len(body), body)
        return _NOT_FOUND


async def serve(port: int, tally: Tally) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Session(tally), "127.0.0.1", port, backlog=512)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), Tally(Path(sys.argv[2]))))
