"""The accounts that messages leave through, made from a tenant's and a user's settings; providers are kept in use.

E-mail leaves through Gmail when the user has both tokens and the tenant has mail.oauth, else through SMTP_URL;
WhatsApp through the tenant's phone id. Where nothing is configured, TransportMissing says what to do.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

import redis

from worker.content.campaign import Sender
from worker.content.freemail import aligned
from worker.content.secrets import decrypt
from worker.errors import SettingsError, TransportMissing
from worker.messages import Email
from worker.providers import Provider
from worker.providers.gmail import GmailProvider
from worker.providers.google_token import GoogleToken
from worker.providers.http import HttpPool
from worker.providers.smtp import SmtpProvider
from worker.providers.smtp_url import parse_smtp_url
from worker.providers.whatsapp import WhatsAppProvider
from worker.providers.whatsapp_number import WhatsAppNumber
from worker.runtime.settings import Settings
from worker.sending.account_quotas import gmail_quota, smtp_quota
from worker.sending.connection_places import ConnectionPlaces
from worker.sending.pacing import OpenPace, Pace
from worker.sending.quota import Quota

MOST_KEPT = 512  # accounts kept in use; the least recently used go first

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class GmailConnection:
    """A user's connection to Gmail, as the CRM has stored it; the client secret is encrypted."""

    user_id: str
    tenant_id: str
    address: str
    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    token_expiry: datetime | None
    client_id: str
    client_secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class EmailUser:
    """The user whom e-mails are sent for, and the user's tenant.

    The user's fields are None where the tenant has no such user. ``gmail_token_expiry`` is UTC without a zone.
    """

    user_id: str | None
    user_name: str | None
    user_email: str | None
    tenant_id: str
    tenant_name: str
    tenant_settings: object = field(repr=False)  # whatever JSON holds
    google_email: str | None = None
    gmail_access_token: str | None = field(default=None, repr=False)
    gmail_refresh_token: str | None = field(default=None, repr=False)
    gmail_token_expiry: datetime | None = None

    def gmail_connection(self) -> GmailConnection | None:
        """None: the user's e-mails leave through SMTP_URL."""
        oauth = settings_object(settings_object(self.tenant_settings, "mail"), "oauth")
        address = self.google_email or self.user_email
        if not (self.user_id and address and self.gmail_access_token and self.gmail_refresh_token and oauth):
            return None
        return GmailConnection(
            user_id=self.user_id,
            tenant_id=self.tenant_id,
            address=address,
            access_token=self.gmail_access_token,
            refresh_token=self.gmail_refresh_token,
            token_expiry=self.gmail_token_expiry,
            client_id=settings_text(oauth, "clientId") or "",
            client_secret=str(oauth.get("clientSecret")),
        )


@dataclass(frozen=True)
class GmailAccount:
    """The Gmail account of a user, in use by this process."""

    provider: GmailProvider
    token: GoogleToken
    user_id: str
    tenant_id: str
    refresh_token: str = field(repr=False)


@dataclass(frozen=True)
class WhatsAppAccount:
    """A tenant's phone id, its pace, and what can be asked about it."""

    provider: Provider
    pace: Pace
    number: WhatsAppNumber


@dataclass(frozen=True)
class EmailAccount:
    """Who an e-mail is from, and how it leaves."""

    provider: Provider
    sender: Sender
    pace: Pace
    gmail: GmailAccount | None = None
    quota: Quota | None = None  # None: as much as there is


@dataclass(frozen=True)
class SmtpAccount:
    """The operator's own mail server, and what one tenant may send through it."""

    provider: SmtpProvider
    pace: Pace
    quota: Quota | None


class SendingAccounts:
    """All accounts that one process sends through."""

    def __init__(
        self,
        settings: Settings,
        client: redis.Redis,
        clock: Callable[[], datetime],
        concurrency: int,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """``concurrency``: threads that send at once. ``is_stopping``: see SmtpProvider.

        Raises SettingsError when SMTP_URL or BOUNCE_ADDRESS cannot be used.
        """
        self._settings = settings
        self._redis = client
        self._aware_clock = lambda: clock().replace(tzinfo=UTC)
        self._pool = HttpPool(concurrency, clock=lambda: clock().replace(tzinfo=UTC).timestamp())
        self._gmail: OrderedDict[tuple[str, ...], GmailAccount] = OrderedDict()
        self.return_paths = settings.return_paths  # of e-mails through SMTP_URL; None: their sender's address
        try:
            self._smtp_host = parse_smtp_url(settings.smtp_url).host if settings.smtp_url else ""
            limit = settings.smtp_connections
            places = ConnectionPlaces(client, f"smtp:{self._smtp_host}", limit) if limit else None
            self._smtp = (
                SmtpProvider(settings.smtp_url, places=places, is_stopping=is_stopping) if settings.smtp_url else None
            )
        except ValueError as error:
            raise SettingsError(f"SMTP_URL (a secret, not shown): {error}") from None
        self._smtp_pace = (
            Pace(client, f"pace:smtp:{self._smtp_host}", settings.smtp_rate)
            if settings.smtp_rate
            else OpenPace(client, f"pace:smtp:{self._smtp_host}")
        )

    def whatsapp(self, tenant_settings: object) -> WhatsAppAccount:
        """The tenant's phone id. Raises TransportMissing."""
        account = settings_object(tenant_settings, "whatsapp")
        token, phone_id = account.get("token"), account.get("phoneId")
        if not (isinstance(token, str) and token and isinstance(phone_id, str | int) and phone_id):
            raise TransportMissing("WhatsApp is not configured: enter token and phone id in the tenant's settings")
        try:
            provider = WhatsAppProvider(self._settings.whatsapp_api_url, str(phone_id), token, self._pool)
        except ValueError as error:
            raise TransportMissing(f"WhatsApp is not configured: {error}") from None
        pace = Pace(self._redis, f"pace:whatsapp:{phone_id}", self._settings.whatsapp_rate)
        number = WhatsAppNumber(self._settings.whatsapp_api_url, str(phone_id), token, self._pool)
        return WhatsAppAccount(provider, pace, number)

    def email(self, user: EmailUser) -> EmailAccount:
        """The user's Gmail, else SMTP_URL. Raises TransportMissing."""
        smtp = settings_object(settings_object(user.tenant_settings, "mail"), "smtp")
        name = settings_text(smtp, "fromName") or user.user_name or user.tenant_name
        reply_to = settings_text(smtp, "replyTo")
        if connection := user.gmail_connection():
            account = self._gmail_account(connection)
            pace = Pace(self._redis, f"pace:gmail:{account.user_id}", self._settings.gmail_rate)
            sender = Sender(name, connection.address, reply_to)
            quota = gmail_quota(self._settings, connection.tenant_id, connection.address)
            return EmailAccount(account.provider, sender, pace, account, quota)
        address = settings_text(smtp, "fromEmail") or user.user_email or self._settings.smtp_from
        if address is None:
            raise TransportMissing(
                "E-mail is not configured: the tenant has no active user, and no mail.smtp.fromEmail in its settings"
            )
        smtp_account = self.smtp(user.tenant_id)
        sender = self.through_smtp(Sender(name, address, reply_to))
        return EmailAccount(smtp_account.provider, sender, smtp_account.pace, quota=smtp_account.quota)

    def through_smtp(self, sender: Sender) -> Sender:
        """Who an e-mail through SMTP_URL is from: SMTP_FROM, where the sender's own address cannot pass DMARC."""
        return aligned(sender, self._settings.smtp_from, self._smtp_host)

    def smtp(self, tenant_id: str | None) -> SmtpAccount:
        """The operator's own mail server; None: for a message to the operator. Raises TransportMissing."""
        if self._smtp is None:
            raise TransportMissing(
                "E-mail is not configured: connect the user's Gmail (with mail.oauth in the tenant's settings), or "
                "let the operator set SMTP_URL"
            )
        quota = smtp_quota(self._settings, self._smtp_host, tenant_id or "")
        return SmtpAccount(self._smtp, self._smtp_pace, quota)

    def with_return_path(self, notification: Email, tenant_id: str) -> Email:
        """A notification of a tenant through SMTP_URL, with its own envelope sender."""
        if self.return_paths is None:
            return notification
        return_path = self.return_paths.of_notification(tenant_id, notification.to)
        return notification._replace(envelope_from=return_path)

    def close(self) -> None:
        self._pool.close()
        if self._smtp:
            self._smtp.close()

    def _gmail_account(self, connection: GmailConnection) -> GmailAccount:
        """Kept until the user connects the account again, so that its token is refreshed once for all messages."""
        key = (connection.user_id, connection.refresh_token, connection.client_id, connection.client_secret)
        account = self._gmail.get(key)
        if account is None:
            token = GoogleToken(
                self._settings.google_token_url, connection.client_id, self._client_secret(connection.client_secret),
                connection.refresh_token, connection.access_token, connection.token_expiry, self._pool,
                self._aware_clock,
            )  # fmt: skip
            provider = GmailProvider(self._settings.gmail_api_url, token, self._pool, self._aware_clock)
            account = GmailAccount(
                provider, token, connection.user_id, connection.tenant_id, connection.refresh_token
            )
            self._gmail[key] = account
        evict_oldest(self._gmail, key, MOST_KEPT)
        return account

    def _client_secret(self, encrypted: str) -> str:
        if self._settings.encryption_key is None:
            raise TransportMissing("Gmail cannot be used: the operator has to set ENCRYPTION_KEY")
        try:
            return decrypt(encrypted, self._settings.encryption_key)
        except ValueError as error:
            raise TransportMissing(f"Gmail cannot be used: mail.oauth.clientSecret: {error}") from None


def settings_object(settings: object, name: str) -> dict[str, Any]:
    """An object inside a tenant's settings; {} when it is missing or not an object."""
    found = settings.get(name) if isinstance(settings, dict) else None
    return found if isinstance(found, dict) else {}


def settings_text(settings: dict[str, Any], name: str) -> str | None:
    """A string inside a tenant's settings, stripped; None when it is missing, blank or not a string."""
    found = settings.get(name)
    return found.strip() or None if isinstance(found, str) else None


def evict_oldest(kept: OrderedDict[_Key, _Value], just_used: _Key, limit: int) -> None:
    """Removes the entries that were used least recently, down to ``limit``; ``just_used`` is the newest now."""
    kept.move_to_end(just_used)
    while len(kept) > limit:
        kept.popitem(last=False)
