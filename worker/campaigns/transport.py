"""How a campaign's messages are made and sent: the account they leave through and the compiled content."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import redis

from worker.content.campaign import EmailContent, MessageRecipient, OutboxRow, Sender, WhatsAppContent
from worker.content.links import Link
from worker.errors import CampaignRejected, TransportMissing
from worker.messages import Accepted
from worker.providers import Provider
from worker.runtime.db import Row
from worker.runtime.settings import Settings
from worker.sending.accounts import EmailUser, GmailAccount, SendingAccounts, evict_oldest
from worker.sending.pacing import Pace

log = logging.getLogger(__name__)

KEPT = 512  # compiled contents and providers; the least used go first
# A campaign is compiled anew when one of these changes; counts and states are none of them.
COUNTS = {"prepared", "holds", "started_at", "totalRecipients"}

Content = EmailContent | WhatsAppContent


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

    def find(self, person: MessageRecipient) -> Accepted | None:
        """What the provider knows of the message to this recipient. Raises SendError when it cannot be asked."""
        if self.gmail is None or not isinstance(self.content, EmailContent):
            raise CampaignRejected("the connection it was sent through is gone, so nobody can be asked")
        return self.gmail.provider.find(self.content.message_id(person))

    def outbox(self, accepted: Iterable[tuple[MessageRecipient, Accepted, datetime]]) -> list[OutboxRow]:
        """The rows of "EmailLog" for accepted messages; none for WhatsApp."""
        rows = (self.content.outbox(person, ids, at) for person, ids, at in accepted)
        return [row for row in rows if row]

    def hold(self, seconds: float | None) -> None:
        """The provider asked for silence: nobody sends through this sender for so long."""
        if self.pace and seconds:
            self.pace.back_off(seconds)


class TransportRouter:
    """All ways out of one process."""

    def __init__(self, settings: Settings, client: redis.Redis, clock: Callable[[], datetime]) -> None:
        """Raises SettingsError when SMTP_URL cannot be used."""
        self._settings = settings
        self._accounts = SendingAccounts(settings, client, clock, settings.campaign_concurrency)
        self._contents: OrderedDict[str, tuple[Row, Sender | None, Content]] = OrderedDict()

    def route(self, campaign: Row) -> Transport:
        """The way out for a campaign. Raises TransportMissing, and CampaignRejected when its content is unfit."""
        if campaign["channel"] == "whatsapp":
            return self._whatsapp(campaign)
        if campaign["channel"] == "email":
            return self._email(campaign)
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
        self._accounts.close()

    def _whatsapp(self, campaign: Row) -> Transport:
        account = self._accounts.whatsapp(campaign["tenant_settings"])
        content = self._content(campaign, None, lambda: WhatsAppContent(campaign, self._settings.app_url))
        return Transport(campaign, content, account.provider, account.pace)

    def _email(self, campaign: Row) -> Transport:
        if campaign["user_id"] is None:
            raise TransportMissing("E-mail cannot be sent: the campaign's user is not a user of its tenant")
        account = self._accounts.email(_email_user(campaign))
        content = self._email_content(campaign, account.sender)
        return Transport(campaign, content, account.provider, account.pace, account.gmail)

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
        evict_oldest(self._contents, campaign["id"], KEPT)
        return kept[2]


def _email_user(campaign: Row) -> EmailUser:
    return EmailUser(
        user_id=campaign["user_id"],
        user_name=campaign["user_name"],
        user_email=campaign["user_email"],
        tenant_id=campaign["tenantId"],
        tenant_name=campaign["tenant_name"],
        tenant_settings=campaign["tenant_settings"],
        google_email=campaign["googleEmail"],
        gmail_access_token=campaign["gmailAccessToken"],
        gmail_refresh_token=campaign["gmailRefreshToken"],
        gmail_token_expiry=campaign["gmailTokenExpiry"],
    )
