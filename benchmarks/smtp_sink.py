"""An SMTP server that takes every message and keeps none, for machines without Postfix's smtp-sink.

    python -m benchmarks.smtp_sink PORT FILE [SECONDS]

listens on 127.0.0.1, counts the messages it accepted in FILE, and takes SECONDS for each, as a distant server does.
It speaks as much of RFC 5321 and of
PIPELINING (RFC 2920) as a benchmark's clients do: EHLO, MAIL, RCPT, DATA, RSET, NOOP, QUIT.
"""

import asyncio
import sys
from pathlib import Path

from benchmarks.tally import Tally

_END = b"\r\n.\r\n"
_REPLIES = {
    b"EHLO": b"250-sink\r\n250-PIPELINING\r\n250 8BITMIME\r\n",
    b"HELO": b"250 sink\r\n",
    b"MAIL": b"250 2.1.0 Ok\r\n",
    b"RCPT": b"250 2.1.5 Ok\r\n",
    b"DATA": b"354 End data with <CR><LF>.<CR><LF>\r\n",
    b"RSET": b"250 2.0.0 Ok\r\n",
    b"NOOP": b"250 2.0.0 Ok\r\n",
    b"QUIT": b"221 2.0.0 Bye\r\n",
}
_UNKNOWN = b"502 5.5.2 Command not recognized\r\n"


class Session(asyncio.Protocol):
    """One connection."""

    def __init__(self, tally: Tally, seconds: float) -> None:
        self._tally = tally
        self._seconds = seconds
        self._answers_at = 0.0  # by the loop's clock: replies keep their order
        self._received = b""
        self._in_content = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - what a TCP server hands over
        self._transport = transport
        transport.write(b"220 sink ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None  # noqa: S101 - set before any data comes
        self._received += data
        replies = b""
        while reply := self._content_reply() if self._in_content else self._command_reply():
            replies += reply
        if replies:
            self._answer(self._transport, replies)
        if replies.endswith(_REPLIES[b"QUIT"]):
            self._transport.close()

    def _answer(self, transport: asyncio.Transport, replies: bytes) -> None:
        loop = asyncio.get_running_loop()
        if self._answers_at > loop.time():
            loop.call_at(self._answers_at, transport.write, replies)
        else:
            transport.write(replies)

    def _command_reply(self) -> bytes:
        """The reply to the next whole command; empty when there is none yet."""
        line, end, rest = self._received.partition(b"\r\n")
        if not end:
            return b""
        self._received = rest
        verb = line[:4].upper()
        self._in_content = verb == b"DATA"
        return _REPLIES.get(verb, _UNKNOWN)

    def _content_reply(self) -> bytes:
        _content, end, rest = self._received.partition(_END)
        if not end:
            return b""
        self._received, self._in_content = rest, False
        self._tally.value += 1
        if self._seconds:
            self._answers_at = asyncio.get_running_loop().time() + self._seconds
        return b"250 2.0.0 Ok\r\n"


async def serve(port: int, tally: Tally, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Session(tally, seconds), "127.0.0.1", port, backlog=512)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), Tally(Path(sys.argv[2])), float(sys.argv[3]) if sys.argv[3:] else 0.0))
