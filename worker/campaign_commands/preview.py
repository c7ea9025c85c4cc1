"""One message of a campaign, as its reader would see it: made by the worker's own content, and not sent."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

from worker.campaign_commands.recipient_review import ReviewedRecipient
from worker.campaigns.transport import Transport
from worker.messages import Email, WhatsAppMessage
from worker.sending.limits import wire_bytes

# Stands in for a campaign without recipients, and its id for that of the recipient: what is shown is no real link.
EXAMPLE = ReviewedRecipient(
    "00000000-0000-4000-8000-000000000000", "Asha Rao", "asha@example.com", "+919876543210", False, False
)

_PLACEHOLDER = re.compile(r"\{\{\s*(\w{1,60})\s*\}\}")
_TOKEN = re.compile(r"(/u/)[A-Za-z0-9_-]{24,}")  # of an unsubscribe link: whoever has it can unsubscribe its reader


@dataclass(frozen=True, slots=True)
class Preview:
    """A message. What an e-mail or a WhatsApp message does not have is ''."""

    sender: str
    reply_to: str
    to: str
    subject: str
    text: str  # of WhatsApp: the text, or the caption
    html: str
    template: str  # of WhatsApp: its name and language
    parameters: tuple[str, ...]
    media: str  # of WhatsApp: its link
    size_bytes: int  # as it leaves
    unsubscribes: bool  # it tells its reader how to leave
    unknown_placeholders: tuple[str, ...]  # that stay in the message as they are

    @property
    def html_bytes(self) -> int:
        return len(self.html.encode())


def preview(transport: Transport, recipient: ReviewedRecipient | None, at: datetime) -> Preview:
    """The message for this recipient, or for an example. Raises ValueError and SendError where none can be made."""
    message = transport.message(replace(recipient or EXAMPLE, id=EXAMPLE.id), at)
    return _email(message) if isinstance(message, Email) else _whatsapp(message)


def _email(message: Email) -> Preview:
    parsed = message_from_bytes(message.content, policy=policy.default)
    text, html = (_part(parsed, subtype) for subtype in ("plain", "html"))
    subject = str(parsed["Subject"] or "")
    return Preview(
        sender=str(parsed["From"] or ""),
        reply_to=str(parsed["Reply-To"] or ""),
        to=str(parsed["To"] or ""),
        subject=subject,
        text=text,
        html=html,
        template="",
        parameters=(),
        media="",
        size_bytes=wire_bytes(message),
        unsubscribes=parsed["List-Unsubscribe"] is not None,
        unknown_placeholders=_placeholders(subject, text, html),
    )


def _part(message: EmailMessage, subtype: str) -> str:
    part = message.get_body((subtype,))
    return _without_tokens(str(part.get_content())) if part else ""


def _whatsapp(message: WhatsAppMessage) -> Preview:
    payload = message.payload
    kind: str = payload["type"]
    content: dict[str, Any] = payload[kind]
    parameters = tuple(_without_tokens(each) for each in _parameters(content)) if kind == "template" else ()
    text = _without_tokens(str(content.get("body") or content.get("caption") or ""))
    return Preview(
        sender="",
        reply_to="",
        to=f"+{message.to}",
        subject="",
        text=text,
        html="",
        template=f"{content['name']} ({content['language']['code']})" if kind == "template" else "",
        parameters=parameters,
        media=str(content.get("link") or ""),
        size_bytes=wire_bytes(message),
        unsubscribes=True,  # by an answer, or in WhatsApp itself
        unknown_placeholders=_placeholders(text, *parameters),
    )


def _parameters(template: dict[str, Any]) -> Iterator[str]:
    for component in template.get("components", ()):
        yield from (str(each["text"]) for each in component["parameters"])


def _placeholders(*texts: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for text in texts for name in _PLACEHOLDER.findall(text)))


def _without_tokens(text: str) -> str:
    return _TOKEN.sub(r"\1…", text)
