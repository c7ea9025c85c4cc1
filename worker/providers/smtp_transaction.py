"""A message in the form in which SMTP carries it."""

import re
from typing import NamedTuple

from worker.errors import CampaignRejected, RecipientRefused
from worker.messages import Email
from worker.providers.untrusted import safe_text

# What may stand between < and > in MAIL FROM and RCPT TO: nothing that could end the command or add a parameter to
# it. Quoted local parts with spaces are legal, but nobody uses them.
_ADDRESS = re.compile(r"[!-;=?-~]{1,254}")
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


def transaction_of(message: Email) -> Transaction:
    """Raises RecipientRefused and CampaignRejected for addresses that could change the dialogue."""
    if not _ADDRESS.fullmatch(message.to):
        raise RecipientRefused(f"not a valid address for SMTP: {safe_text(message.to)}", address_fault=True)
    if not _ADDRESS.fullmatch(message.envelope_from):
        raise CampaignRejected(f"not a valid sender address for SMTP: {safe_text(message.envelope_from)}")
    return Transaction(message.envelope_from, message.to, wire_content(message.content))
