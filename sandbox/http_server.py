"""A small HTTP/1.1 server with persistent connections, which can also cut a connection instead of answering."""

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
        """The fields of a form-encoded body, the last one of a repeated field; {} for another body."""
        return dict(self.form_pairs())

    def form_pairs(self) -> list[tuple[str, str]]:
        if not self.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
            return []
        return parse_qsl(self.body.decode("utf-8", "replace"), keep_blank_values=True)

    def json(self) -> Any:
        """The body as JSON; None if it is not JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    def bearer(self) -> str:
        """The bearer token, '' if there is none."""
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        return token.strip() if scheme.lower() == "bearer" else ""


@dataclass
class Reply:
    """``body``: a str or bytes is sent as it is, None as nothing, anything else as JSON."""

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


class ConnectionCut(Exception):
    """Raised by a handler to break the connection instead of answering."""


Handler = Callable[[Request], Awaitable[Reply]]


async def serve(handler: Handler, port: int) -> asyncio.Server:
    """Listens on 127.0.0.1."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await _exchange(handler, reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionCut):
            writer.transport.abort()
        finally:
            writer.close()

    return await asyncio.start_server(connected, "127.0.0.1", port, limit=_LONGEST_HEAD, backlog=1024)


async def _exchange(handler: Handler, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Answers one request; returns whether the connection stays open."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.split("\r\n")
    method, _, rest = first.partition(" ")
    target, _, protocol = rest.rpartition(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    if headers.get("expect", "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    refusal = _length_problem(headers)
    if refusal:
        reply = refusal
    else:
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        reply = await handler(Request(method, target, headers, body))
    keep = refusal is None and protocol == "HTTP/1.1" and headers.get("connection", "").lower() != "close"
    if not keep:
        reply.headers["Connection"] = "close"
    writer.write(reply.encoded())
    await writer.drain()
    return keep


def _length_problem(headers: Mapping[str, str]) -> Reply | None:
    """What to answer if the length of the request's body is not known or too large."""
    if "transfer-encoding" in headers:
        return Reply(411, {"error": "this stand-in only reads bodies with a Content-Length"})
    length = headers.get("content-length", "0")
    if not length.isdigit() or int(length) > _LONGEST_BODY:
        return Reply(400, {"error": f"Content-Length: {length}"})
    return None
