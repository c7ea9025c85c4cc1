"""From a digest to the message on the wire and the account it leaves through."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from worker.content.list_fields import AUTO_GENERATED
from worker.content.mime import EmailSkeleton, message_id_for
from worker.content.reminders import Digest, DigestTexts, email_texts, template_params, whatsapp_text
from worker.content.whatsapp import TemplateName, whatsapp_payload
from worker.errors import TransportMissing
from worker.messages import Email, WhatsAppMessage
from worker.notifications.notification import Notification, OutgoingMessage
from worker.reminding.digest import DigestContent
from worker.reminding.tenants import ReminderTenant
from worker.runtime.campaign_settings import DEFAULT_MESSAGE_MAX_BYTES
from worker.runtime.db import Database, queries
from worker.sending.accounts import EmailAccount, SendingAccounts, settings_object, settings_text
from worker.sending.limits import too_large
from worker.sending.outbox import OutboxEmail
from worker.sending.quota import Quota
from worker.sending.whatsapp_limits import known_quotas

TEMPLATES_BYTES = 64 * 1024 * 1024  # of the templates that are in memory at the same time


@dataclass(frozen=True, slots=True)
class ReminderTemplate:
    """A tenant's own e-mail template. One that is larger than any message may be is not read."""

    subject: str | None
    html: str | None
    size_bytes: int


class _TemplateKey(NamedTuple):
    tenant_id: str
    template_id: str


class DigestMessages:
    """The messages of one tick at a time."""

    def __init__(
        self,
        db: Database,
        accounts: SendingAccounts,
        clock: Callable[[], datetime],
        message_max_bytes: int = DEFAULT_MESSAGE_MAX_BYTES,
        whatsapp_template: TemplateName | None = None,
    ) -> None:
        """``clock`` returns UTC without a zone. Without a template, WhatsApp messages are texts."""
        self._db = db
        self._message_max_bytes = message_max_bytes
        self._whatsapp_template = whatsapp_template
        self._accounts = accounts
        self._clock = clock
        self._sql = queries("reminders")
        self._tenants: Mapping[str, ReminderTenant] = {}
        self._templates: dict[_TemplateKey, ReminderTemplate | None] = {}
        self._whatsapp_quotas: Mapping[str, Quota] = {}  # by tenant

    def begin(self, tenants: Iterable[ReminderTenant]) -> None:
        """A tick begins, with these tenants."""
        self._tenants = {tenant.id: tenant for tenant in tenants}
        self._templates = {}
        self._whatsapp_quotas = known_quotas(self._db, self._clock())

    def read_templates(self, notifications: Iterable[Notification]) -> None:
        """Keeps the templates that these digests need, and no others: their texts may be long.

        Where they are too much for the memory, only some of them; the others are read when their digest is prepared.
        """
        keys = {_TemplateKey(digest.tenant_id or "", each) for digest in notifications
                if (each := DigestContent.of(digest).template_id)}  # fmt: skip
        self._templates = {}
        self._read(keys)

    def _read(self, keys: Collection[_TemplateKey]) -> None:
        if not keys:
            return
        rows = self._db.all(
            self._sql["templates"],
            tenant_ids=[key.tenant_id for key in keys],
            ids=[key.template_id for key in keys],
            largest=self._message_max_bytes,
            most=TEMPLATES_BYTES,
        )
        for row in rows:
            template = ReminderTemplate(row["subject"], row["html"], row["bytes"])
            self._templates[_TemplateKey(row["tenant_id"], row["id"])] = template

    def _template(self, tenant_id: str, template_id: str | None) -> ReminderTemplate | None:
        """None where the tenant has deleted it in the meantime. Raises ValueError where it is too large."""
        if template_id is None:
            return None
        key = _TemplateKey(tenant_id, template_id)
        if key not in self._templates:
            kept = sum(each.size_bytes for each in self._templates.values() if each)
            if kept > TEMPLATES_BYTES:
                self._templates = {}
            self._read([key])
        template = self._templates.setdefault(key, None)
        if template and template.size_bytes > self._message_max_bytes:
            raise ValueError(too_large("the tenant's e-mail template", template.size_bytes, self._message_max_bytes))
        return template

    def prepare(self, notification: Notification) -> OutgoingMessage:
        """Raises TransportMissing, and ValueError for an address that cannot be written to."""
        tenant = self._tenants.get(notification.tenant_id or "")
        if tenant is None:
            raise TransportMissing("the tenant has switched its reminders off in the meantime")
        content = DigestContent.of(notification)
        if notification.channel == "whatsapp":
            return self._whatsapp(notification, content, tenant)
        return self._email(notification, content, tenant)

    def _whatsapp(
        self, notification: Notification, content: DigestContent, tenant: ReminderTenant
    ) -> OutgoingMessage:
        account = self._accounts.whatsapp(tenant.settings)
        to, digest, template = notification.address, _digest(notification, content, tenant), self._whatsapp_template
        if template:
            payload = whatsapp_payload(
                recipient_row_id=notification.id,
                to=to,
                message_type="template",
                template_name=template.name,
                template_language=template.language,
                template_params=template_params(digest),
            )
        else:
            text = whatsapp_text(digest)
            payload = whatsapp_payload(recipient_row_id=notification.id, to=to, message_type="text", text=text)
        quota = self._whatsapp_quotas.get(tenant.id)
        return OutgoingMessage(WhatsAppMessage(to, payload), account.provider, account.pace, quota=quota)

    def _email(self, notification: Notification, content: DigestContent, tenant: ReminderTenant) -> OutgoingMessage:
        account = self._accounts.email(tenant.user)
        template = self._template(tenant.id, content.template_id)
        digest = _digest(notification, content, tenant)
        texts = email_texts(digest, template.subject, template.html) if template else email_texts(digest)
        message = self._message(notification, content, account, texts)
        # only the account that it was sent through can be asked: another one would say that it does not know it
        same_account = content.gmail == tenant.gmail_address
        return OutgoingMessage(
            message if account.gmail else self._accounts.with_return_path(message, tenant.id),
            account.provider,
            account.pace,
            account.gmail if same_account or not notification.handed_over else None,
            _outbox_email(notification, content, tenant, texts, message.envelope_from),
            account.quota,
        )

    def _message(
        self, notification: Notification, content: DigestContent, account: EmailAccount, texts: DigestTexts
    ) -> Email:
        sender, to = account.sender, notification.address
        skeleton = EmailSkeleton(
            texts.subject, texts.text, texts.html, from_name=sender.name, from_email=sender.email,
            reply_to=sender.reply_to, fields=AUTO_GENERATED, boundary_seed=notification.id,
        )  # fmt: skip
        message_id = message_id_for(notification.id, skeleton.from_email)
        date = self._clock().replace(tzinfo=UTC)
        built = skeleton.build(content.recipient_name, to, texts.values, message_id, date)
        return Email(skeleton.from_email, to, message_id, built)


def _outbox_email(
    notification: Notification, content: DigestContent, tenant: ReminderTenant, texts: DigestTexts, sender: str
) -> OutboxEmail | None:
    """None where the tenant has no active user: a row of "EmailLog" belongs to a user."""
    user_id = content.user_id or tenant.user.user_id
    if user_id is None:
        return None
    return OutboxEmail(
        texts.copy(sender),
        address=notification.address,
        entity_type="LeadReminder",
        entity_id=tenant.id,
        tenant_id=tenant.id,
        user_id=user_id,
    )


def _digest(notification: Notification, content: DigestContent, tenant: ReminderTenant) -> Digest:
    company = settings_text(settings_object(tenant.settings, "openai"), "companyName") or tenant.name
    return Digest(
        recipient_name=content.recipient_name,
        address=notification.address,
        count=content.leads_count,
        leads=content.leads,
        hours=content.check_interval_hours,
        company_name=company,
    )
