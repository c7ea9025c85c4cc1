"""E-mail messages: a skeleton is compiled once for a campaign, and filled in for each recipient.

The standard library's email package writes what all messages of a campaign have in common, once. What differs (To,
Subject, Date, Message-ID, the slots of the bodies) is inserted as bytes, because the email package would take more
than a millisecond for each message.
"""

import hashlib
import re
from collections.abc import Mapping
from datetime import datetime
from email import policy
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import format_datetime
from functools import lru_cache
from urllib.parse import quote

from worker.content.addresses import message_id_for, parse_address
from worker.content.headers import mailbox, unstructured
from worker.content.placeholders import Template
from worker.content.plain_text import plain_text
from worker.content.transfer import compiled

__all__ = ["EmailSkeleton", "message_id_for", "parse_address"]

_MESSAGE_ID = re.compile(r"<[!-;=?-~]{1,400}>")
_UNSUBSCRIBE_URL = re.compile(r"(?:https?://|mailto:)[!-;=?-~]+", re.IGNORECASE)
_UNSUBSCRIBE_LIMIT = 900  # characters; a URL cannot be folded, and a line ends at 998 (RFC 5322 2.1.1)


class EmailSkeleton:
    """The message of a campaign without its recipients.

    With HTML it is multipart/alternative, text first (RFC 2046 5.1.4), else text/plain. If the text is blank, it is
    made from the HTML. ``unsubscribe_url`` (https, http or mailto, with placeholders) becomes List-Unsubscribe
    (RFC 2369), and for https also List-Unsubscribe-Post (RFC 8058). The boundary is made from ``boundary_seed`` and
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
        unsubscribe_url: str | None = None,
        boundary_seed: str,
    ) -> None:
        self.from_email = parse_address(from_email)
        self._subject = subject
        self._fixed_subject = None if subject.personal else unstructured("Subject", subject.text)
        self._unsubscribe = _unsubscribe_template(unsubscribe_url) if unsubscribe_url else None

        # Not written by the email package: its encoded words can be one character too long, and it does not encode
        # a name that looks like an encoded word.
        sender = mailbox("From", from_name, self.from_email).encode("ascii")
        shared = EmailMessage(policy=policy.SMTP)
        if reply_to:
            shared["Reply-To"] = Address(addr_spec=parse_address(reply_to))
        shared["MIME-Version"] = "1.0"

        if html is None or not html.text.strip():
            encoding, self._text = compiled(text, as_html=False)
            self._html = None
            self._head = sender + _fields(shared) + _part_head("plain", encoding)
            return
        if not text.text.strip():
            text = Template(plain_text(html.text), unknown=html.unknown)
        boundary = f"=_{hashlib.sha256(boundary_seed.encode()).hexdigest()[:32]}"
        shared.add_header("Content-Type", "multipart/alternative", boundary=boundary)
        encoding, self._text = compiled(text, as_html=False)
        self._head = sender + _fields(shared) + f"\r\n--{boundary}\r\n".encode() + _part_head("plain", encoding)
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
            head += _unsubscribe_fields(self._unsubscribe, values)
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


def _unsubscribe_template(url: str) -> Template:
    template = Template(url)
    fixed = "".join(segment for segment in template.segments if isinstance(segment, str))
    if not _UNSUBSCRIBE_URL.fullmatch(fixed) or len(url) > _UNSUBSCRIBE_LIMIT:
        raise ValueError(f"not an https, http or mailto address to unsubscribe at: {url[:80]!r}")
    return template


def _unsubscribe_fields(template: Template, values: Mapping[str, str]) -> str:
    """The fields with their CRLF; '' if the values make the URL too long for a line."""
    url = "".join(
        segment if isinstance(segment, str) else quote(values.get(segment.name, ""), safe="")
        for segment in template.segments
    )
    if len(url) > _UNSUBSCRIBE_LIMIT:
        return ""
    one_click = "List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n" if url[:6].lower() == "https:" else ""
    return f"List-Unsubscribe: <{url}>\r\n{one_click}"
