"""From a digest to the message on the wire and the account it leaves through."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from worker.content.mime import EmailSkeleton, message_id_for
from worker.content.reminders import Digest, DigestTexts, email_texts, whatsapp_text
from worker.content.whatsapp import whatsapp_payload
from worker.errors import TransportMissing
from worker.messages import Email, WhatsAppMessage
from worker.notifications.notification import Notification, OutgoingMessage
from worker.reminding.digest import DigestContent
from worker.reminding.tenants import ReminderTenant
from worker.runtime.db import Database, queries
from worker.sending.accounts import EmailAccount, SendingAccounts, settings_object, settings_text
from worker.sending.outbox import OutboxEmail


@dataclass(frozen=True, slots=True)
class ReminderTemplate:
    """A tenant's own e-mail template."""

    subject: str | None
    html: str | None


class DigestMessages:
    """The messages of one tick at a time."""

    def __init__(self, db: Database, accounts: SendingAccounts, clock: Callable[[], datetime]) -> None:
        """``clock`` returns UTC without a zone."""
        self._db = db
        self._accounts = accounts
        self._clock = clock
        self._sql = queries("reminders")
        self._tenants: Mapping[str, ReminderTenant] = {}
        self._templates: Mapping[str, ReminderTemplate] = {}

    def begin(self, tenants: Iterable[ReminderTenant]) -> None:
        """A tick begins, with these tenants."""
        self._tenants = {tenant.id: tenant for tenant in tenants}
        self._templates = {}

    def read_templates(self, notifications: Iterable[Notification]) -> None:
        """Keeps the templates that these digests need, and no others: their texts may be long."""
        ids = list({each for digest in notifications if (each := DigestContent.of(digest).template_id)})
        rows = self._db.all(self._sql["templates"], ids=ids) if ids else []
        self._templates = {row["id"]: ReminderTemplate(row["subject"], row["htmlBody"]) for row in rows}

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
        to, body = notification.address, whatsapp_text(_digest(notification, content, tenant))
        payload = whatsapp_payload(recipient_row_id=notification.id, to=to, message_type="text", text=body)
        return OutgoingMessage(WhatsAppMessage(to, payload), account.provider, account.pace)

    def _email(self, notification: Notification, content: DigestContent, tenant: ReminderTenant) -> OutgoingMessage:
        account = self._accounts.email(tenant.user)
        template = self._templates.get(content.template_id or "")  # the tenant may have deleted it in the meantime
        digest = _digest(notification, content, tenant)
        texts = email_texts(digest, template.subject, template.html) if template else email_texts(digest)
        message = self._message(notification, content, account, texts)
        # only the account that it was sent through can be asked: another one would say that it does not know it
        same_account = content.gmail == tenant.gmail_address
        return OutgoingMessage(
            message,
            account.provider,
            account.pace,
            account.gmail if same_account or not notification.handed_over else None,
            _outbox_email(notification, content, tenant, texts, message.envelope_from),
        )

    def _message(
        self, notification: Notification, content: DigestContent, account: EmailAccount, texts: DigestTexts
    ) -> Email:
        sender, to = account.sender, notification.address
        skeleton = EmailSkeleton(
            texts.subject, texts.text, texts.html, from_name=sender.name, from_email=sender.email,
            reply_to=sender.reply_to, boundary_seed=notification.id,
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
