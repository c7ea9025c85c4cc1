"""E-mail messages: a skeleton is compiled once for a campaign, and filled in for each recipient.

The standard library's email package writes what all messages of a campaign have in common, once. What differs (To,
Subject, Date, Message-ID, the slots of the bodies) is inserted as bytes, because the email package would take more
than a millisecond for each message.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from email import policy
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime
from functools import lru_cache
from urllib.parse import quote

from worker.content.addresses import message_id_for, parse_address
from worker.content.headers import mailbox, unstructured
from worker.content.placeholders import UNSUBSCRIBE_TOKEN, Template
from worker.content.plain_text import plain_text
from worker.content.transfer import compiled
from worker.content.unsubscribe_link import UnsubscribeLink

__all__ = ["EmailSkeleton", "message_id_for", "parse_address"]

_MESSAGE_ID = re.compile(r"<[!-;=?-~]{1,400}>")
_UNSUBSCRIBE_URL = re.compile(r"(?:https?://|mailto:)[!-;=?-~]+", re.IGNORECASE)
_UNSUBSCRIBE_LIMIT = 900  # characters; a URL cannot be folded, and a line ends at 998 (RFC 5322 2.1.1)


class EmailSkeleton:
    """The message of a campaign without its recipients.

    With HTML it is multipart/alternative, text first (RFC 2046 5.1.4), else text/plain. If the text is blank, it is
    made from the HTML. ``unsubscribe`` becomes List-Unsubscribe (RFC 2369), and for https and the worker's own page
    also List-Unsubscribe-Post (RFC 8058). ``fields`` are further ones in ASCII, name and value. The boundary
    is made from ``boundary_seed`` and
    contains ``=_``, which neither quoted-printable nor base64 can produce.

    The attribute ``from_email`` is the sender's bare address, valid for the envelope. Raises ValueError for a sender,
    reply address or unsubscribe URL that cannot be used.
    """

    def __init__(
        self,
        subject: Template,
        text: Template,
        html: Template | None,
        *,
        from_name: str,
        from_email: str,
        reply_to: str | None = None,
        unsubscribe: UnsubscribeLink | None = None,
        fields: Sequence[tuple[str, str]] = (),
        boundary_seed: str,
    ) -> None:
        self.from_email = parse_address(from_email)
        self._subject = subject
        self._fixed_subject = None if subject.personal else unstructured("Subject", subject.text)
        self._unsubscribe = _UnsubscribeFields(unsubscribe) if unsubscribe else None

        # Not written by the email package: its encoded words can be one character too long, and it does not encode
        # a name that looks like an encoded word, and it cannot write a long value without spaces.
        sender = mailbox("From", from_name, self.from_email)
        first = "".join([sender, *(f"{name}: {value}\r\n" for name, value in fields)]).encode("ascii")
        shared = EmailMessage(policy=policy.SMTP)
        if reply_to:
            shared["Reply-To"] = Address(addr_spec=parse_address(reply_to))
        shared["MIME-Version"] = "1.0"

        if html is None or not html.text.strip():
            encoding, self._text = compiled(text, as_html=False)
            self._html = None
            self._head = first + _fields(shared) + _part_head("plain", encoding)
            return
        if not text.text.strip():
            text = Template(plain_text(html.text), unknown=html.unknown)
        boundary = f"=_{hashlib.sha256(boundary_seed.encode()).hexdigest()[:32]}"
        shared.add_header("Content-Type", "multipart/alternative", boundary=boundary)
        encoding, self._text = compiled(text, as_html=False)
        self._head = first + _fields(shared) + f"\r\n--{boundary}\r\n".encode() + _part_head("plain", encoding)
        encoding, self._html = compiled(html, as_html=True)
        self._between = f"\r\n--{boundary}\r\n".encode() + _part_head("html", encoding)
        self._close = f"\r\n--{boundary}--\r\n".encode()

    def build(self, to_name: str, to_email: str, values: Mapping[str, str], message_id: str, date: datetime) -> bytes:
        """The message for one recipient (RFC 5322, CRLF), as ``worker.messages.Email.content`` needs it.

        ``values`` fill the placeholders: name, email, phone, recipient_id. ``date`` is aware; ``message_id`` has its
        angle brackets. Raises ValueError for an address that cannot be sent to.
        """
        if date.tzinfo is None:
            raise ValueError("the date of a message needs a time zone")
        if not _MESSAGE_ID.fullmatch(message_id):
            raise ValueError(f"not a Message-ID: {message_id[:80]!r}")
        head = (
            mailbox("To", to_name, parse_address(to_email))
            + (self._fixed_subject or unstructured("Subject", self._subject.fill(values)))
            + f"Date: {_date(date.replace(microsecond=0))}\r\nMessage-ID: {message_id}\r\n"
        )
        if self._unsubscribe:
            head += self._unsubscribe.fill(values)
        text = self._text(values)
        if self._html is None:
            return b"".join((head.encode("ascii"), self._head, text, b"" if text.endswith(b"\r\n") else b"\r\n"))
        return b"".join((head.encode("ascii"), self._head, text, self._between, self._html(values), self._close))


@lru_cache(maxsize=8)  # one a second is made, however many messages leave in it
def _date(date: datetime) -> str:
    return format_datetime(date)


def _fields(message: EmailMessage) -> bytes:
    return b"".join(policy.SMTP.fold_binary(name, value) for name, value in message.items())


def _part_head(subtype: str, encoding: str) -> bytes:
    return (f'Content-Type: text/{subtype}; charset="utf-8"\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n').encode(
        "ascii"
    )


class _UnsubscribeFields:
    """List-Unsubscribe, and List-Unsubscribe-Post where one click is taken."""

    def __init__(self, link: UnsubscribeLink) -> None:
        """Raises ValueError for an address that cannot be in a header field."""
        self._template = template = Template(link.url)
        fixed = "".join(segment for segment in template.segments if isinstance(segment, str))
        if not _UNSUBSCRIBE_URL.fullmatch(fixed) or len(link.url) > _UNSUBSCRIBE_LIMIT:
            raise ValueError(f"not an https, http or mailto address to unsubscribe at: {link.url[:80]!r}")
        one_click = link.token is not None or fixed[:6].lower() == "https:"
        self._end = ">\r\n" + ("List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n" if one_click else "")

    def fill(self, values: Mapping[str, str]) -> str:
        """The fields with their CRLF; '' if the values make the URL too long for a line."""
        url = "".join(
            [
                segment if isinstance(segment, str) else _quoted(segment.name, values)
                for segment in self._template.segments
            ]
        )
        return f"List-Unsubscribe: <{url}{self._end}" if len(url) <= _UNSUBSCRIBE_LIMIT else ""


def _quoted(name: str, values: Mapping[str, str]) -> str:
    value = values.get(name, "")
    return value if name == UNSUBSCRIBE_TOKEN else quote(value, safe="")
