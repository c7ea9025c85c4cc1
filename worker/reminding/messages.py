"""From a digest's notice to the message and its way out."""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from worker.content.mime import EmailSkeleton, message_id_for
from worker.content.reminders import Digest, DigestTexts, email_texts, whatsapp_text
from worker.content.whatsapp import whatsapp_payload
from worker.errors import TransportMissing
from worker.messages import Email, WhatsAppMessage
from worker.notifications.notification import Notification, OutgoingMessage
from worker.reminding.recipients import gmail_address
from worker.runtime.db import Database, Row, queries
from worker.sending.accounts import AccountOwner, Accounts, EmailAccount, part, text


class DigestMessages:
    """The letters of one tick. ``tenants``: rows of the statement ``tenants`` by tenant id."""

    def __init__(self, db: Database, accounts: Accounts, clock: Callable[[], datetime]) -> None:
        self._db = db
        self._accounts = accounts
        self._clock = clock
        self._sql = queries("reminders")
        self._tenants: dict[str, Row] = {}
        self._templates: dict[str, Row] = {}

    def begin(self, tenants: Iterable[Row]) -> None:
        self._tenants = {row["tenantId"]: row for row in tenants}
        self._templates = {}

    def read_templates(self, notices: Iterable[Notification]) -> None:
        """Keeps the templates that these notices need, and no others: their texts may be long."""
        ids = list({each for notice in notices if (each := notice.content["templateId"])})
        rows = self._db.all(self._sql["templates"], ids=ids) if ids else []
        self._templates = {row["id"]: row for row in rows}

    def letter(self, notice: Notification) -> OutgoingMessage:
        """Raises TransportMissing, and ValueError for an address that cannot be written to."""
        tenant = self._tenants.get(notice.tenant_id or "")
        if tenant is None:
            raise TransportMissing("the tenant's reminders were switched off meanwhile")
        return self._whatsapp(notice, tenant) if notice.channel == "whatsapp" else self._email(notice, tenant)

    def _whatsapp(self, notice: Notification, tenant: Row) -> OutgoingMessage:
        account = self._accounts.whatsapp(tenant["tenant_settings"])
        body = whatsapp_text(_digest(notice, tenant))
        payload = whatsapp_payload(recipient_row_id=notice.id, to=notice.address, message_type="text", text=body)
        return OutgoingMessage(WhatsAppMessage(notice.address, payload), account.provider, account.pace)

    def _email(self, notice: Notification, tenant: Row) -> OutgoingMessage:
        account = self._email_account(tenant)
        texts = self._texts(notice, tenant)
        message = self._message(notice, account, texts)
        outbox = self._outbox(notice, tenant, message, texts)
        # asked is only the account that it left through: another one would say that it knows nothing
        same = notice.content["gmail"] == gmail_address(tenant)
        gmail = account.gmail if same or not notice.handed_over else None
        return OutgoingMessage(message, account.provider, account.pace, gmail, outbox)

    def _email_account(self, tenant: Row) -> EmailAccount:
        sender = text(part(part(tenant["tenant_settings"], "mail"), "smtp"), "fromEmail")
        if tenant["user_id"] is None and sender is None:
            raise TransportMissing(
                "E-mail is not configured: the tenant has no active user, and no mail.smtp.fromEmail in its settings"
            )
        return self._accounts.email(AccountOwner.from_row(tenant))

    def _texts(self, notice: Notification, tenant: Row) -> DigestTexts:
        template = self._templates.get(notice.content["templateId"])
        if template is None:  # the tenant has none, or deleted it meanwhile
            return email_texts(_digest(notice, tenant))
        return email_texts(_digest(notice, tenant), template["subject"], template["htmlBody"])

    def _message(self, notice: Notification, account: EmailAccount, texts: DigestTexts) -> Email:
        sender = account.sender
        skeleton = EmailSkeleton(
            texts.subject, texts.text, texts.html, from_name=sender.name, from_email=sender.email,
            reply_to=sender.reply_to, boundary_seed=notice.id,
        )  # fmt: skip
        message_id = message_id_for(notice.id, skeleton.from_email)
        date = self._clock().replace(tzinfo=UTC)
        name = notice.content["recipientName"]
        content = skeleton.build(name, notice.address, texts.values, message_id, date)
        return Email(skeleton.from_email, notice.address, message_id, content)

    def _outbox(self, notice: Notification, tenant: Row, message: Email, texts: DigestTexts) -> Row | None:
        """For "EmailLog", whose rows belong to a user: none where the tenant has no active one."""
        user_id = notice.content["userId"] or tenant["user_id"]
        if user_id is None:
            return None
        return {
            "sender": message.envelope_from,
            "subject": texts.subject.fill(texts.values),
            "body": texts.text.fill(texts.values),
            "html": texts.html.fill_html(texts.values),
            "entity_type": "LeadReminder",
            "entity_id": tenant["tenantId"],
            "tenant_id": tenant["tenantId"],
            "user_id": user_id,
        }


def _digest(notice: Notification, tenant: Row) -> Digest:
    content = notice.content
    company = text(part(tenant["tenant_settings"], "openai"), "companyName") or tenant["tenant_name"]
    return Digest(
        recipient_name=content["recipientName"],
        address=notice.address,
        count=content["leadsCount"],
        leads=content["leads"],
        hours=content["checkIntervalHours"],
        company_name=company,
    )
