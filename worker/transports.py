"""Chooses the way out for a campaign, from its tenant's and user's settings, and keeps providers in use.

E-mail leaves through Gmail when the campaign's user has both tokens and the tenant has mail.oauth, else
through SMTP_URL; WhatsApp through the tenant's phone id. Nothing configured: TransportMissing, with what to do.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import redis

from worker.content.campaign import EmailContent, OutboxRow, Person, Sender, WhatsAppContent
from worker.content.links import Link
from worker.content.secrets import decrypt
from worker.db import Row
from worker.errors import CampaignRejected, SettingsError, TransportMissing
from worker.pacing import Pace
from worker.providers import Accepted, Provider
from worker.providers.gmail import GmailProvider
from worker.providers.google_token import GoogleToken
from worker.providers.http import HttpPool
from worker.providers.smtp import SmtpProvider
from worker.providers.whatsapp import WhatsAppProvider
from worker.settings import Settings

log = logging.getLogger(__name__)

KEPT = 512  # compiled contents and providers; the least used go first
# A campaign is compiled anew when one of these changes; counts and states are none of them.
COUNTS = {"prepared", "holds", "started_at", "totalRecipients"}

Content = EmailContent | WhatsAppContent


@dataclass(frozen=True)
class GmailAccount:
    """The Gmail connection of a campaign's user."""

    provider: GmailProvider
    token: GoogleToken
    user_id: str
    tenant_id: str
    refresh_token: str = field(repr=False)


@dataclass(frozen=True)
class Transport:
    """How one campaign's messages are made and sent."""

    campaign: Row
    content: Content
    provider: Provider | None = None  # None: only settles what was sent before
    pace: Pace | None = None
    gmail: GmailAccount | None = None

    @property
    def rate(self) -> float | None:
        """Messages a second that the sender may send; None: no limit of ours."""
        return self.pace.rate_per_second if self.pace else None

    @property
    def links(self) -> list[Link]:
        return self.content.links

    @property
    def sender_address(self) -> str:
        return self.content.sender_address

    @property
    def sender(self) -> str:
        """Through whom the messages leave: what was sent through one is not known to another."""
        return f"gmail:{self.sender_address}" if self.gmail else str(self.campaign["channel"])

    @property
    def can_be_asked(self) -> bool:
        """Whether the provider can tell what became of a message."""
        return self.gmail is not None

    def send(self, message: Any) -> Accepted:
        if self.provider is None:
            raise TransportMissing("this transport only settles")
        return self.provider.send(message)

    def find(self, person: Person) -> Accepted | None:
        """What the provider knows of the message to this recipient. Raises SendError when it cannot be asked."""
        if self.gmail is None or not isinstance(self.content, EmailContent):
            raise CampaignRejected("the connection it was sent through is gone, so nobody can be asked")
        return self.gmail.provider.find(self.content.message_id(person))

    def outbox(self, accepted: Iterable[tuple[Person, Accepted, datetime]]) -> list[OutboxRow]:
        """The rows of "EmailLog" for accepted messages; none for WhatsApp."""
        rows = (self.content.outbox(person, ids, at) for person, ids, at in accepted)
        return [row for row in rows if row]

    def hold(self, seconds: float | None) -> None:
        """The provider asked for silence: nobody sends through this sender for so long."""
        if self.pace and seconds:
            self.pace.hold(seconds)


class Transports:
    """All ways out of one process."""

    def __init__(self, settings: Settings, client: redis.Redis, clock: Callable[[], datetime]) -> None:
        """Raises SettingsError when SMTP_URL cannot be used."""
        self._settings = settings
        self._redis = client
        self._pool = HttpPool(settings.campaign_concurrency)
        self._aware_clock = lambda: clock().replace(tzinfo=UTC)
        self._contents: OrderedDict[str, tuple[Row, Sender | None, Content]] = OrderedDict()
        self._gmail: OrderedDict[tuple[str, ...], GmailAccount] = OrderedDict()
        try:
            self._smtp = SmtpProvider(settings.smtp_url) if settings.smtp_url else None
        except ValueError as error:
            raise SettingsError(f"SMTP_URL (a secret, not shown): {error}") from None

    def route(self, campaign: Row) -> Transport:
        """The way out for a campaign. Raises TransportMissing, and CampaignRejected when its content is unfit."""
        tenant = campaign["tenant_settings"] if isinstance(campaign["tenant_settings"], dict) else {}
        if campaign["channel"] == "whatsapp":
            return self._whatsapp(campaign, _part(tenant, "whatsapp"))
        if campaign["channel"] == "email":
            return self._email(campaign, _part(tenant, "mail"))
        raise CampaignRejected(f"its channel {campaign['channel']!r} is unknown: it can be email or whatsapp")

    def route_or_settle_only(self, campaign: Row) -> Transport:
        """As ``route``; where there is no way out any more, what was sent before can still be settled."""
        try:
            return self.route(campaign)
        except (TransportMissing, CampaignRejected):
            log.info("settling without a way out", {"campaign": campaign["id"]})
        if campaign["channel"] == "email":
            sender = Sender("", campaign["user_email"] or "unknown@localhost.invalid")
            return Transport(campaign, EmailContent(campaign, sender, self._settings.app_url, None))
        return Transport(campaign, WhatsAppContent(campaign | {"whatsappTemplateParams": []}, None))

    def close(self) -> None:
        self._pool.close()
        if self._smtp:
            self._smtp.close()

    def _whatsapp(self, campaign: Row, account: Row) -> Transport:
        token, phone_id = account.get("token"), account.get("phoneId")
        if not (isinstance(token, str) and token and isinstance(phone_id, str | int) and phone_id):
            raise TransportMissing("WhatsApp is not configured: enter token and phone id in the tenant's settings")
        content = self._content(campaign, None, lambda: WhatsAppContent(campaign, self._settings.app_url))
        try:
            provider = WhatsAppProvider(self._settings.whatsapp_api_url, str(phone_id), token, self._pool)
        except ValueError as error:
            raise TransportMissing(f"WhatsApp is not configured: {error}") from None
        pace = Pace(self._redis, f"pace:whatsapp:{phone_id}", self._settings.whatsapp_rate)
        return Transport(campaign, content, provider, pace)

    def _email(self, campaign: Row, mail: Row) -> Transport:
        if campaign["user_id"] is None:
            raise TransportMissing("E-mail cannot be sent: the campaign's user is not a user of its tenant")
        smtp, oauth = _part(mail, "smtp"), _part(mail, "oauth")
        name = _text(smtp, "fromName") or campaign["user_name"] or campaign["tenant_name"]
        reply_to = _text(smtp, "replyTo")
        if campaign["gmailAccessToken"] and campaign["gmailRefreshToken"] and oauth:
            account = self._gmail_account(campaign, oauth)
            sender = Sender(name, campaign["googleEmail"] or campaign["user_email"], reply_to)
            pace = Pace(self._redis, f"pace:gmail:{account.user_id}", self._settings.gmail_rate)
            return Transport(campaign, self._email_content(campaign, sender), account.provider, pace, account)
        if self._smtp is None:
            raise TransportMissing(
                "E-mail is not configured: connect the user's Gmail (with mail.oauth in the tenant's settings), or "
                "let the operator set SMTP_URL"
            )
        sender = Sender(name, _text(smtp, "fromEmail") or campaign["user_email"], reply_to)
        return Transport(campaign, self._email_content(campaign, sender), self._smtp)

    def _email_content(self, campaign: Row, sender: Sender) -> Content:
        settings = self._settings
        return self._content(
            campaign,
            sender,
            lambda: EmailContent(campaign, sender, settings.app_url, settings.unsubscribe_url),
        )

    def _content(self, campaign: Row, sender: Sender | None, compiled: Callable[[], Content]) -> Content:
        """The compiled content, kept as long as the campaign's texts and its sender stay the same."""
        texts = {key: value for key, value in campaign.items() if key not in COUNTS}
        kept = self._contents.get(campaign["id"])
        if kept is None or kept[:2] != (texts, sender):
            try:
                kept = (texts, sender, compiled())
            except ValueError as error:
                raise CampaignRejected(f"its message cannot be made: {error}") from None
            self._contents[campaign["id"]] = kept
        _trim(self._contents, campaign["id"])
        return kept[2]

    def _gmail_account(self, campaign: Row, oauth: Row) -> GmailAccount:
        """Kept as long as nobody connected the account anew: its token is refreshed once for all campaigns."""
        client_id, stored = _text(oauth, "clientId"), oauth.get("clientSecret")
        refresh_token = campaign["gmailRefreshToken"]
        key = (campaign["user_id"], refresh_token, client_id or "", str(stored))
        account = self._gmail.get(key)
        if account is None:
            token = GoogleToken(
                self._settings.google_token_url, client_id or "", self._client_secret(stored), refresh_token,
                campaign["gmailAccessToken"], campaign["gmailTokenExpiry"], self._pool, self._aware_clock,
            )  # fmt: skip
            provider = GmailProvider(self._settings.gmail_api_url, token, self._pool, self._aware_clock)
            account = GmailAccount(provider, token, campaign["user_id"], campaign["tenantId"], refresh_token)
            self._gmail[key] = account
        _trim(self._gmail, key)
        return account

    def _client_secret(self, stored: object) -> str:
        if self._settings.encryption_key is None:
            raise TransportMissing("Gmail cannot be used: the operator has to set ENCRYPTION_KEY")
        try:
            return decrypt(str(stored), self._settings.encryption_key)
        except ValueError as error:
            raise TransportMissing(f"Gmail cannot be used: mail.oauth.clientSecret: {error}") from None


def grant_update(transport: Transport, revoked: bool) -> tuple[str, Row] | None:
    """The statement that keeps what Google said about the user's grant, with its parameters; None: nothing new."""
    account = transport.gmail
    if account is None:
        return None
    which = {
        "user_id": account.user_id,
        "tenant_id": account.tenant_id,
        "refresh_token": account.refresh_token,
    }
    if revoked:
        return "clear_gmail", which
    changed = account.token.take_changed()
    if changed is None:
        return None
    expiry = changed.expires_at.astimezone(UTC).replace(tzinfo=None)
    return "save_token", which | {"token": changed.access_token, "expiry": expiry}


def _part(settings: Row, name: str) -> Row:
    """A part of the tenant's settings; {} when it is missing or no object."""
    found = settings.get(name)
    return found if isinstance(found, dict) else {}


def _text(settings: Row, name: str) -> str | None:
    found = settings.get(name)
    return found.strip() or None if isinstance(found, str) else None


def _trim(kept: OrderedDict[Any, Any], used: object) -> None:
    kept.move_to_end(used)
    while len(kept) > KEPT:
        kept.popitem(last=False)
