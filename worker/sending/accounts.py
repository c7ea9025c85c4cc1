"""The accounts that messages leave through, from a tenant's and a user's settings; providers are kept in use.

E-mail leaves through Gmail when the user has both tokens and the tenant has mail.oauth, else through SMTP_URL;
WhatsApp through the tenant's phone id. Nothing configured: TransportMissing, with what to do.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import redis

from worker.content.campaign import Sender
from worker.content.secrets import decrypt
from worker.errors import SettingsError, TransportMissing
from worker.providers import Provider
from worker.providers.gmail import GmailProvider
from worker.providers.google_token import GoogleToken
from worker.providers.http import HttpPool
from worker.providers.smtp import SmtpProvider
from worker.providers.whatsapp import WhatsAppProvider
from worker.runtime.db import Row
from worker.runtime.settings import Settings
from worker.sending.pacing import Pace

KEPT = 512  # of each kind; the least used go first


@dataclass(frozen=True, slots=True)
class AccountOwner:
    """The tenant whose accounts messages leave through, and the user whom its e-mail is from, if any."""

    tenant_id: str
    tenant_name: str
    tenant_settings: object = field(repr=False)  # a JSON column, which may hold anything
    user_id: str | None
    user_name: str | None
    user_email: str | None
    google_email: str | None
    gmail_access_token: str | None = field(repr=False)
    gmail_refresh_token: str | None = field(repr=False)
    gmail_token_expiry: datetime | None

    @classmethod
    def from_row(cls, row: Row) -> "AccountOwner":
        """From a statement that joins "Tenant" and "User"."""
        return cls(
            tenant_id=row["tenantId"],
            tenant_name=row["tenant_name"],
            tenant_settings=row["tenant_settings"],
            user_id=row["user_id"],
            user_name=row["user_name"],
            user_email=row["user_email"],
            google_email=row["googleEmail"],
            gmail_access_token=row["gmailAccessToken"],
            gmail_refresh_token=row["gmailRefreshToken"],
            gmail_token_expiry=row["gmailTokenExpiry"],
        )


@dataclass(frozen=True)
class GmailAccount:
    """The Gmail connection of a user."""

    provider: GmailProvider
    token: GoogleToken
    user_id: str
    tenant_id: str
    refresh_token: str = field(repr=False)


@dataclass(frozen=True)
class WhatsAppAccount:
    """A tenant's phone id and its pace."""

    provider: Provider
    pace: Pace


@dataclass(frozen=True)
class EmailAccount:
    """Who an e-mail is from, and how it leaves."""

    provider: Provider
    sender: Sender
    pace: Pace | None = None  # None: no limit of ours
    gmail: GmailAccount | None = None


class Accounts:
    """All accounts that one process sends through."""

    def __init__(
        self, settings: Settings, client: redis.Redis, clock: Callable[[], datetime], concurrency: int
    ) -> None:
        """``concurrency``: threads that send at once. Raises SettingsError when SMTP_URL cannot be used."""
        self._settings = settings
        self._redis = client
        self._pool = HttpPool(concurrency)
        self._aware_clock = lambda: clock().replace(tzinfo=UTC)
        self._gmail: OrderedDict[tuple[str, ...], GmailAccount] = OrderedDict()
        try:
            self._smtp = SmtpProvider(settings.smtp_url) if settings.smtp_url else None
        except ValueError as error:
            raise SettingsError(f"SMTP_URL (a secret, not shown): {error}") from None

    def whatsapp(self, tenant_settings: object) -> WhatsAppAccount:
        """The tenant's phone id. Raises TransportMissing."""
        account = part(tenant_settings, "whatsapp")
        token, phone_id = account.get("token"), account.get("phoneId")
        if not (isinstance(token, str) and token and isinstance(phone_id, str | int) and phone_id):
            raise TransportMissing("WhatsApp is not configured: enter token and phone id in the tenant's settings")
        try:
            provider = WhatsAppProvider(self._settings.whatsapp_api_url, str(phone_id), token, self._pool)
        except ValueError as error:
            raise TransportMissing(f"WhatsApp is not configured: {error}") from None
        return WhatsAppAccount(provider, Pace(self._redis, f"pace:whatsapp:{phone_id}", self._settings.whatsapp_rate))

    def email(self, owner: AccountOwner) -> EmailAccount:
        """The user's Gmail or SMTP_URL. Raises TransportMissing."""
        mail = part(owner.tenant_settings, "mail")
        smtp, oauth = part(mail, "smtp"), part(mail, "oauth")
        name = text(smtp, "fromName") or owner.user_name or owner.tenant_name
        reply_to = text(smtp, "replyTo")
        address = owner.user_email or ""
        gmail = self._gmail_account(owner, oauth) if oauth else None
        if gmail:
            sender = Sender(name, owner.google_email or address, reply_to)
            pace = Pace(self._redis, f"pace:gmail:{gmail.user_id}", self._settings.gmail_rate)
            return EmailAccount(gmail.provider, sender, pace, gmail)
        return EmailAccount(self.smtp(), Sender(name, text(smtp, "fromEmail") or address, reply_to))

    def smtp(self) -> SmtpProvider:
        """The operator's own way out. Raises TransportMissing."""
        if self._smtp is None:
            raise TransportMissing(
                "E-mail is not configured: connect the user's Gmail (with mail.oauth in the tenant's settings), or "
                "let the operator set SMTP_URL"
            )
        return self._smtp

    def close(self) -> None:
        self._pool.close()
        if self._smtp:
            self._smtp.close()

    def _gmail_account(self, owner: AccountOwner, oauth: Row) -> GmailAccount | None:
        """Kept until somebody connects the account anew: its token is refreshed once for all messages.

        None when the user is not connected.
        """
        access_token, refresh_token, user_id = owner.gmail_access_token, owner.gmail_refresh_token, owner.user_id
        if not (access_token and refresh_token and user_id):
            return None
        client_id, stored = text(oauth, "clientId") or "", oauth.get("clientSecret")
        key = (user_id, refresh_token, client_id, str(stored))
        account = self._gmail.get(key)
        if account is None:
            token = GoogleToken(
                self._settings.google_token_url, client_id, self._client_secret(stored), refresh_token,
                access_token, owner.gmail_token_expiry, self._pool, self._aware_clock,
            )  # fmt: skip
            provider = GmailProvider(self._settings.gmail_api_url, token, self._pool, self._aware_clock)
            account = GmailAccount(provider, token, user_id, owner.tenant_id, refresh_token)
            self._gmail[key] = account
        trim(self._gmail, key)
        return account

    def _client_secret(self, stored: object) -> str:
        if self._settings.encryption_key is None:
            raise TransportMissing("Gmail cannot be used: the operator has to set ENCRYPTION_KEY")
        try:
            return decrypt(str(stored), self._settings.encryption_key)
        except ValueError as error:
            raise TransportMissing(f"Gmail cannot be used: mail.oauth.clientSecret: {error}") from None


def part(settings: object, name: str) -> Row:
    """A part of the tenant's settings; {} when it is missing or no object."""
    found = settings.get(name) if isinstance(settings, dict) else None
    return found if isinstance(found, dict) else {}


def text(settings: Row, name: str) -> str | None:
    """A text among the tenant's settings; None when it is missing, blank or no text."""
    found = settings.get(name)
    return found.strip() or None if isinstance(found, str) else None


def trim(kept: OrderedDict[Any, Any], used: object) -> None:
    """Forgets what was used least, once there is more than KEPT."""
    kept.move_to_end(used)
    while len(kept) > KEPT:
        kept.popitem(last=False)
