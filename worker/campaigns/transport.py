"""How a campaign's messages are made and sent: the compiled content, and the account they leave through."""

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import redis

from worker.campaigns.campaign import Campaign
from worker.content.campaign import EmailContent, MessageRecipient, Sender, WhatsAppContent
from worker.content.campaign_texts import CampaignTexts
from worker.errors import CampaignRejected, TransportMissing
from worker.messages import Accepted
from worker.providers import Provider
from worker.runtime.settings import Settings
from worker.sending.accounts import GmailAccount, SendingAccounts, evict_oldest
from worker.sending.pacing import Pace

log = logging.getLogger(__name__)

CONTENTS_KEPT = 512  # the least recently used go first
UNKNOWN_SENDER = "unknown@localhost.invalid"

CampaignContent = EmailContent | WhatsAppContent


@dataclass(frozen=True)
class Transport:
    """Makes the messages of one campaign, and sends them through one account."""

    content: CampaignContent
    account_key: str  # names the account: another one does not know what was sent through this one
    provider: Provider | None = None  # None: what was sent before can be settled, nothing can be sent
    pace: Pace | None = None
    gmail: GmailAccount | None = None

    @property
    def rate(self) -> float | None:
        """Messages a second that the account may send; None: the worker sets no limit."""
        return self.pace.rate_per_second if self.pace else None

    @property
    def sender_address(self) -> str:
        return self.content.sender_address

    @property
    def can_be_asked(self) -> bool:
        """Whether the provider can be asked if it has a message."""
        return self.gmail is not None

    def send(self, message: Any) -> Accepted:
        """Raises SendError, and TransportMissing where nothing can be sent."""
        if self.provider is None:
            raise TransportMissing("this campaign has no account to send through")
        return self.provider.send(message)

    def find(self, recipient: MessageRecipient) -> Accepted | None:
        """The message to this recipient, if the provider has it. Raises SendError when it cannot be asked."""
        if self.gmail is None or not isinstance(self.content, EmailContent):
            raise CampaignRejected("the account it was sent through is not connected any more")
        return self.gmail.provider.find(self.content.message_id(recipient))

    def back_off(self, seconds: float | None) -> None:
        """The provider named a pause: nobody sends through this account for so long."""
        if self.pace and seconds:
            self.pace.back_off(seconds)


class TransportRouter:
    """The transports of one process. Contents, accounts and connections are kept from batch to batch."""

    def __init__(self, settings: Settings, client: redis.Redis, clock: Callable[[], datetime]) -> None:
        """Raises SettingsError when SMTP_URL cannot be used."""
        self._settings = settings
        self._accounts = SendingAccounts(settings, client, clock, settings.campaign_concurrency)
        self._contents: OrderedDict[str, _CompiledContent] = OrderedDict()

    def route(self, campaign: Campaign) -> Transport:
        """Raises TransportMissing, and CampaignRejected when no message can be made of its content."""
        if campaign.channel == "whatsapp":
            return self._whatsapp(campaign)
        if campaign.channel == "email":
            return self._email(campaign)
        raise CampaignRejected(f"its channel {campaign.channel!r} is unknown: it can be email or whatsapp")

    def route_or_settle_only(self, campaign: Campaign) -> Transport:
        """As ``route``; where that fails, a transport with which earlier messages can be settled."""
        try:
            return self.route(campaign)
        except (TransportMissing, CampaignRejected):
            log.info("campaign has no transport: earlier messages are settled", {"campaign": campaign.id})
        return Transport(self._settle_only_content(campaign), campaign.channel)

    def close(self) -> None:
        self._accounts.close()

    def _whatsapp(self, campaign: Campaign) -> Transport:
        account = self._accounts.whatsapp(campaign.user.tenant_settings)
        texts, app_url = campaign.texts, self._settings.app_url
        content = self._content(texts, None, lambda: WhatsAppContent(texts, app_url))
        return Transport(content, campaign.channel, account.provider, account.pace)

    def _email(self, campaign: Campaign) -> Transport:
        if campaign.user.user_id is None:
            raise TransportMissing("E-mail cannot be sent: the campaign's user is not a user of its tenant")
        account = self._accounts.email(campaign.user)
        texts, sender, settings = campaign.texts, account.sender, self._settings
        content = self._content(
            texts, sender, lambda: EmailContent(texts, sender, settings.app_url, settings.unsubscribe_url)
        )
        account_key = f"gmail:{sender.email}" if account.gmail else campaign.channel
        return Transport(content, account_key, account.provider, account.pace, account.gmail)

    def _settle_only_content(self, campaign: Campaign) -> CampaignContent:
        """For the CRM's outbox: whatever became of the user's address or of the template."""
        if campaign.channel != "email":
            return WhatsAppContent(replace(campaign.texts, whatsapp_template_params=None), None)
        app_url = self._settings.app_url
        try:
            return EmailContent(campaign.texts, Sender("", campaign.user.user_email or ""), app_url, None)
        except ValueError:  # the user is gone, or has an address that cannot be used
            return EmailContent(campaign.texts, Sender("", UNKNOWN_SENDER), app_url, None)

    def _content(
        self, texts: CampaignTexts, sender: Sender | None, compiled: Callable[[], CampaignContent]
    ) -> CampaignContent:
        """The compiled content, kept as long as the campaign's texts and its sender stay the same."""
        kept = self._contents.get(texts.id)
        if kept is None or (kept.texts, kept.sender) != (texts, sender):
            try:
                kept = _CompiledContent(texts, sender, compiled())
            except ValueError as error:
                raise CampaignRejected(f"its message cannot be made: {error}") from None
            self._contents[texts.id] = kept
        evict_oldest(self._contents, texts.id, CONTENTS_KEPT)
        return kept.content


@dataclass(frozen=True, slots=True)
class _CompiledContent:
    """A content, and what it was compiled from."""

    texts: CampaignTexts
    sender: Sender | None
    content: CampaignContent
