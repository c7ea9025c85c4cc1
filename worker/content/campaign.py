"""A campaign's content, compiled once: makes each recipient's message, and its row in the CRM's outbox."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple, Protocol

from worker.content import invisible_characters as invisible
from worker.content.campaign_texts import CampaignTexts
from worker.content.links import Link, prepare_links
from worker.content.list_fields import list_fields
from worker.content.mime import EmailSkeleton, message_id_for, parse_address
from worker.content.phones import whatsapp_id
from worker.content.placeholders import PERSONAL_NAMES, UNSUBSCRIBE_TOKEN, Template
from worker.content.unsubscribe_link import UnsubscribeLink
from worker.content.whatsapp import whatsapp_payload
from worker.messages import Accepted, Email, WhatsAppMessage


class MessageRecipient(Protocol):
    """What the content needs to know of a recipient."""

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


class OutboxRow(NamedTuple):
    """A row of "EmailLog", the CRM's outbox: one accepted e-mail."""

    address: str  # as its user wrote it: an international domain is not in punycode
    subject: str
    body: str
    html: str | None
    accepted: Accepted
    at: datetime


def values_of(recipient: MessageRecipient) -> dict[str, str]:
    """The values of the placeholders; addresses without what is invisible around them."""
    return {
        "name": recipient.name,
        "email": invisible.trimmed(recipient.email or ""),
        "phone": invisible.trimmed(recipient.phone or ""),
        "recipient_id": recipient.id,
    }


def _personal_names(*parts: Template) -> frozenset[str]:
    return frozenset(name for part in parts for name in part.slot_names) & PERSONAL_NAMES


class EmailContent:
    """An e-mail campaign. Raises ValueError when an address of its sender cannot be used."""

    def __init__(
        self, texts: CampaignTexts, sender: Sender, app_url: str | None, unsubscribe: UnsubscribeLink | None
    ) -> None:
        prepared = prepare_links(texts, app_url, unsubscribe)
        self._token = unsubscribe.token if unsubscribe else None
        self.links: list[Link] = prepared.links
        self.sender_address = sender.email
        self._subject = Template(texts.subject or texts.name)
        self._text = Template(prepared.text)
        self._html = Template(prepared.html) if prepared.html else None
        self._skeleton = EmailSkeleton(
            self._subject,
            self._text,
            self._html,
            from_name=sender.name,
            from_email=sender.email,
            reply_to=sender.reply_to,
            unsubscribe=unsubscribe,
            fields=list_fields(texts.tenant_id, texts.id, parse_address(sender.email)),
            boundary_seed=texts.id,
        )
        self._copy_has_token = any(
            template and UNSUBSCRIBE_TOKEN in template.slot_names for template in (self._text, self._html)
        )

    @property
    def personal_names(self) -> frozenset[str]:
        """The placeholders that its parts have."""
        return _personal_names(self._subject, self._text, *filter(None, [self._html]))

    def prepare(self, recipients: Iterable[MessageRecipient]) -> None:
        """Makes ready what is made faster for many than for each: to be called before ``message``."""
        if self._token:
            self._token.make_ready(_in_one_spelling(each.email or "") for each in recipients)

    def message_id(self, recipient: MessageRecipient) -> str:
        """The same on every attempt for a recipient."""
        return message_id_for(recipient.id, self._skeleton.from_email)

    def message(self, recipient: MessageRecipient, at: datetime) -> Email:
        """The message for one recipient; ``at`` is UTC without zone. Raises ValueError for a bad address."""
        to, message_id = parse_address(recipient.email or ""), self.message_id(recipient)
        date = at.replace(tzinfo=UTC)
        values = values_of(recipient)
        if self._token:
            values[UNSUBSCRIBE_TOKEN] = self._token(to.lower())
        content = self._skeleton.build(recipient.name, to, values, message_id, date)
        return Email(self._skeleton.from_email, to, message_id, content)

    def outbox_row(self, recipient: MessageRecipient, accepted: Accepted, at: datetime) -> OutboxRow | None:
        """The row of the message that was accepted ``at``, UTC without zone."""
        values = values_of(recipient)
        address = values["email"]
        if self._token and self._copy_has_token:
            values[UNSUBSCRIBE_TOKEN] = self._token(_in_one_spelling(address))
        return OutboxRow(
            address=address,
            subject=self._subject.fill(values),
            body=self._text.fill(values),
            html=self._html.fill_html(values) if self._html else None,
            accepted=accepted,
            at=at,
        )


def _in_one_spelling(address: str) -> str:
    """As worker.address has it. What is no address any more, since its message was sent, stays as it is."""
    with suppress(ValueError):
        address = parse_address(address)
    return address.lower()


class WhatsAppContent:
    """A WhatsApp campaign. Raises ValueError when its template parameters are not a list of strings."""

    sender_address = ""

    def __init__(self, texts: CampaignTexts, app_url: str | None, unsubscribe: UnsubscribeLink | None = None) -> None:
        prepared = prepare_links(texts, app_url, unsubscribe)
        self.links: list[Link] = prepared.links
        params = texts.whatsapp_template_params or []
        if not isinstance(params, list) or not all(isinstance(each, str) for each in params):
            raise ValueError("whatsappTemplateParams is not a list of strings")
        self._text = Template(prepared.text)
        self._caption = Template(prepared.caption or "")
        self._params = [Template(unsubscribe.in_text(each) if unsubscribe else each) for each in params]
        used = {name for each in (self._text, self._caption, *self._params) for name in each.slot_names}
        self._token = unsubscribe.token if unsubscribe and UNSUBSCRIBE_TOKEN in used else None
        self._same_for_all = {
            "message_type": texts.whatsapp_message_type,
            "media_type": texts.whatsapp_media_type,
            "media_url": texts.whatsapp_media_url,
            "template_name": texts.whatsapp_template_name,
            "template_language": texts.whatsapp_template_language,
        }

    @property
    def personal_names(self) -> frozenset[str]:
        """The placeholders that the parts have of which its message is made."""
        match self._same_for_all["message_type"] or "text":
            case "text":
                return _personal_names(self._text)
            case "media":
                return _personal_names(self._caption)
        return _personal_names(*self._params)

    def message(self, recipient: MessageRecipient, at: datetime) -> WhatsAppMessage:
        """The message for one recipient. Raises ValueError for a bad number, and CampaignRejected."""
        to, values = whatsapp_id(recipient.phone or ""), values_of(recipient)
        if self._token:
            values[UNSUBSCRIBE_TOKEN] = self._token(f"+{to}")
        payload = whatsapp_payload(
            recipient_row_id=recipient.id,
            to=to,
            text=self._text.fill(values),
            caption=self._caption.fill(values) or None,
            template_params=[each.fill(values) for each in self._params],
            **self._same_for_all,
        )
        return WhatsAppMessage(to, payload)

    def outbox_row(self, recipient: MessageRecipient, accepted: Accepted, at: datetime) -> OutboxRow | None:
        """None: the CRM's outbox shows e-mail only."""
        return None
