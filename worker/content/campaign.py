"""A campaign's content, compiled once: from a recipient to the message on the wire and the row in the outbox."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from worker.content.links import Link, prepare_links
from worker.content.mime import EmailSkeleton, message_id_for, parse_address
from worker.content.phones import whatsapp_id
from worker.content.placeholders import RECIPIENT_ID_SLOT, Template
from worker.content.whatsapp import whatsapp_payload
from worker.messages import Accepted, Email, WhatsAppMessage


class MessageRecipient(Protocol):
    """What content needs of a recipient."""

    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def email(self) -> str | None: ...
    @property
    def phone(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Sender:
    """Who an e-mail is from; ``email`` and ``reply_to`` are bare addresses."""

    name: str
    email: str
    reply_to: str | None = None


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """What "EmailLog" keeps of an accepted e-mail."""

    address: str
    subject: str
    body: str
    html: str | None
    accepted: Accepted
    at: datetime


def values_of(person: MessageRecipient) -> dict[str, str]:
    """What the placeholders stand for."""
    return {
        "name": person.name,
        "email": person.email or "",
        "phone": person.phone or "",
        "recipient_id": person.id,
    }


class EmailContent:
    """An e-mail campaign. Raises ValueError when its sender's addresses cannot be used."""

    def __init__(
        self, campaign: Mapping[str, Any], sender: Sender, app_url: str | None, unsubscribe_url: str | None
    ) -> None:
        prepared = prepare_links(campaign, app_url)
        self.links: list[Link] = prepared.links
        self.links_written = False
        self.sender_address = sender.email
        self._subject = Template(campaign["subject"] or campaign["name"])
        self._text = Template(prepared.text)
        self._html = Template(prepared.html) if prepared.html else None
        self._skeleton = EmailSkeleton(
            self._subject,
            self._text,
            self._html,
            from_name=sender.name,
            from_email=sender.email,
            reply_to=sender.reply_to,
            unsubscribe_url=unsubscribe_url and unsubscribe_url.replace("{{recipient_id}}", RECIPIENT_ID_SLOT),
            boundary_seed=campaign["id"],
        )

    def message_id(self, person: MessageRecipient) -> str:
        """The same on every attempt for a recipient."""
        return message_id_for(person.id, self._skeleton.from_email)

    def message(self, person: MessageRecipient, at: datetime) -> Email:
        """The message for one recipient; ``at`` is UTC without zone. Raises ValueError for a bad address."""
        to, message_id = parse_address(person.email or ""), self.message_id(person)
        date = at.replace(tzinfo=UTC)
        content = self._skeleton.build(person.name, to, values_of(person), message_id, date)
        return Email(self._skeleton.from_email, to, message_id, content)

    def outbox(self, person: MessageRecipient, accepted: Accepted, at: datetime) -> OutboxRow | None:
        values = values_of(person)
        html = self._html.fill_html(values) if self._html else None
        return OutboxRow(person.email or "", self._subject.fill(values), self._text.fill(values), html, accepted, at)


class WhatsAppContent:
    """A WhatsApp campaign. Raises ValueError when its template parameters are no list of texts."""

    sender_address = ""

    def __init__(self, campaign: Mapping[str, Any], app_url: str | None) -> None:
        prepared = prepare_links(campaign, app_url)
        self.links: list[Link] = prepared.links
        self.links_written = False
        params = campaign["whatsappTemplateParams"] or []
        if not isinstance(params, list) or not all(isinstance(each, str) for each in params):
            raise ValueError("whatsappTemplateParams is no list of texts")
        self._text = Template(prepared.text)
        self._caption = Template(prepared.caption or "")
        self._params = [Template(each) for each in params]
        self._fixed = {
            "message_type": campaign["whatsappMessageType"],
            "media_type": campaign["whatsappMediaType"],
            "media_url": campaign["whatsappMediaUrl"],
            "template_name": campaign["whatsappTemplateName"],
            "template_language": campaign["whatsappTemplateLanguage"],
        }

    def message(self, person: MessageRecipient, at: datetime) -> WhatsAppMessage:
        """The message for one recipient. Raises ValueError for a bad number, and CampaignRejected."""
        to, values = whatsapp_id(person.phone or ""), values_of(person)
        payload = whatsapp_payload(
            recipient_row_id=person.id,
            to=to,
            text=self._text.fill(values),
            caption=self._caption.fill(values) or None,
            template_params=[each.fill(values) for each in self._params],
            **self._fixed,
        )
        return WhatsAppMessage(to, payload)

    def outbox(self, person: MessageRecipient, accepted: Accepted, at: datetime) -> OutboxRow | None:
        """The outbox page shows e-mail only."""
        return None
