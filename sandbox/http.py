"""A small HTTP/1.1 server with kept connections, which can also cut a connection where an answer is due."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import cached_property
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

_LONGEST_HEAD = 64 * 1024
_LONGEST_BODY = 64 * 1024 * 1024
_PHRASES = {status.value: status.phrase for status in HTTPStatus}


@dataclass
class Request:
    method: str
    target: str
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    @cached_property
    def path(self) -> str:
        return unquote(urlsplit(self.target).path)

    @cached_property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.target).query, keep_blank_values=True))

    def form(self) -> dict[str, str]:
        """The fields of a form-encoded body; {} when it is none. Of a repeated field the last."""
        return dict(self.form_pairs())

    def form_pairs(self) -> list[tuple[str, str]]:
        if not self.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
            return []
        return parse_qsl(self.body.decode("utf-8", "replace"), keep_blank_values=True)

    def json(self) -> Any:
        """The body as JSON; None when it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    def bearer(self) -> str:
        """The bearer token, '' when there is none."""
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        return token.strip() if scheme.lower() == "bearer" else ""


@dataclass
class Reply:
    """``body``: a str or bytes goes out as it is, None as nothing, anything else as JSON."""

    status: int
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)

    def encoded(self) -> bytes:
        content = b"" if self.body is None else self.body
        if isinstance(content, str):
            content = content.encode()
        elif not isinstance(content, bytes):
            content = json.dumps(content).encode()
        headers = {
            "Content-Type": "application/json; charset=UTF-8",
            "Content-Length": str(len(content)),
            "Date": formatdate(usegmt=True),
        } | self.headers
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"HTTP/1.1 {self.status} {_PHRASES.get(self.status, '')}\r\n{lines}\r\n".encode() + content


class Cut(Exception):
    """Raised by a handler that wants the connection broken instead of an answer."""


Handler = Callable[[Request], Awaitable[Reply]]


async def serve(handler: Handler, port: int) -> asyncio.Server:
    """Listens on 127.0.0.1."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await _exchange(handler, reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, Cut):
            writer.transport.abort()
        finally:
            writer.close()

    return await asyncio.start_server(connected, "127.0.0.1", port, limit=_LONGEST_HEAD, backlog=1024)


async def _exchange(handler: Handler, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Answers one request; returns whether the connection is kept."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.split("\r\n")
    method, _, rest = first.partition(" ")
    target, _, protocol = rest.rpartition(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    if headers.get("expect", "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    refusal, body = await _body(headers, reader)
    reply = refusal or await handler(Request(method, target, headers, body))
    keep = refusal is None and protocol == "HTTP/1.1" and headers.get("connection", "").lower() != "close"
    if not keep:
        reply.headers["Connection"] = "close"
    writer.write(reply.encoded())
    await writer.drain()
    return keep


async def _body(headers: Mapping[str, str], reader: asyncio.StreamReader) -> tuple[Reply | None, bytes]:
    """The request's body, and what to answer at once when it cannot be read."""
    if "transfer-encoding" in headers:
        return Reply(411, {"error": "this stand-in reads bodies with a Content-Length only"}), b""
    length = headers.get("content-length", "0")
    if not length.isdigit() or int(length) > _LONGEST_BODY:
        return Reply(400, {"error": f"Content-Length: {length}"}), b""
    return None, await reader.readexactly(int(length))
