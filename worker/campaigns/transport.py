"""How a campaign's messages are made and sent: the compiled content, and the account they leave through."""

import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any

import redis

from worker.campaigns.campaign import Campaign
from worker.campaigns.message_size import MessageSize
from worker.content.campaign import EmailContent, MessageRecipient, Sender, WhatsAppContent
from worker.content.campaign_texts import CampaignTexts
from worker.content.unsubscribe_link import UnsubscribeLink
from worker.content.unsubscribe_token import UnsubscribeTokens
from worker.errors import CampaignRejected, TransportMissing
from worker.messages import Accepted, Email, WhatsAppMessage
from worker.providers import Provider
from worker.providers.smtp import SmtpProvider
from worker.providers.whatsapp_number import WhatsAppNumber
from worker.runtime.settings import Settings
from worker.sending.accounts import GmailAccount, SendingAccounts, evict_oldest
from worker.sending.limits import too_large
from worker.sending.pacing import Pace
from worker.sending.quota import Quota

log = logging.getLogger(__name__)

CONTENTS_KEPT = 512  # the least recently used go first
KEPT_BYTES = 64 * 1024 * 1024  # of messages, in all contents that are kept
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
    size: MessageSize | None = None
    return_path: Callable[[str, str], str] | None = None  # of recipient's id and address; None: the sender's address
    quota: Quota | None = None  # of an e-mail account; None: it has none
    number: WhatsAppNumber | None = None  # whose quota Meta knows

    @property
    def message_bytes(self) -> int:
        """How large a message is at least."""
        return self.size.fixed_bytes if self.size else 0

    @property
    def rate(self) -> float | None:
        """Messages a second that the account may send; None: the worker sets no limit."""
        return self.pace.rate_per_second if self.pace and math.isfinite(self.pace.rate_per_second) else None

    @property
    def sender_address(self) -> str:
        return self.content.sender_address

    @property
    def can_be_asked(self) -> bool:
        """Whether the provider can be asked if it has a message."""
        return self.gmail is not None

    def prepare(self, recipients: Iterable[MessageRecipient]) -> None:
        """To be called before the messages of a batch are made: it is faster for many than for each."""
        if isinstance(self.content, EmailContent):
            self.content.prepare(recipients)

    def message(self, recipient: MessageRecipient, at: datetime) -> Email | WhatsAppMessage:
        """The message for one recipient; ``at`` is UTC without a zone.

        Raises ValueError where none can be made for this recipient, and CampaignRejected.
        """
        if self.size:
            self.size.check(recipient)
        message = self.content.message(recipient, at)
        if self.size:
            self.size.check_made(message)
        if self.return_path and isinstance(message, Email):
            return message._replace(envelope_from=self.return_path(recipient.id, message.to))
        return message

    @property
    def announces(self) -> bool:
        """Whether ``send`` is faster when it is told which message the thread sends next."""
        return isinstance(self.provider, SmtpProvider) and self.provider.announces

    @property
    def most_connections(self) -> int | None:
        """How many connections this process may have to the account's server now; None: there is no limit."""
        return (
            self.provider.places.number if isinstance(self.provider, SmtpProvider) and self.provider.places else None
        )

    def want_connections(self, number: int) -> None:
        """So many threads would send now, if they had connections."""
        if isinstance(self.provider, SmtpProvider) and self.provider.places:
            self.provider.places.want(number)

    def send(self, message: Any, following: Any = None) -> Accepted:
        """Raises SendError, and TransportMissing where nothing can be sent.

        ``following``: only where it ``announces``; it must be sent or withdrawn afterwards.
        """
        if self.provider is None:
            raise TransportMissing("this campaign has no account to send through")
        if following is not None and isinstance(self.provider, SmtpProvider):
            return self.provider.send(message, following)
        return self.provider.send(message)

    def withdraw(self, message: Any) -> None:
        """A message that may have been announced is not sent."""
        if isinstance(self.provider, SmtpProvider):
            self.provider.withdraw(message)

    def find(self, recipient: MessageRecipient) -> Accepted | None:
        """The message to this recipient, if the provider has it. Raises SendError when it cannot be asked."""
        if self.gmail is None or not isinstance(self.content, EmailContent):
            raise CampaignRejected("the account it was sent through is not connected any more")
        return self.gmail.provider.find(self.content.message_id(recipient))

    def back_off(self, seconds: float | None) -> None:
        """The provider named a pause: nobody sends through this account for so long."""
        if self.pace and seconds:
            with suppress(redis.RedisError):  # then the provider refuses once more
                self.pace.back_off(seconds)


class TransportRouter:
    """The transports of one process. Contents, accounts and connections are kept from batch to batch."""

    def __init__(
        self,
        settings: Settings,
        client: redis.Redis,
        clock: Callable[[], datetime],
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """``is_stopping``: see SmtpProvider. Raises SettingsError when SMTP_URL or BOUNCE_ADDRESS cannot be used."""
        self._settings = settings
        self._accounts = SendingAccounts(settings, client, clock, settings.campaign_concurrency, is_stopping)
        self._contents: OrderedDict[str, _CompiledContent] = OrderedDict()
        own_page = settings.public_url and not settings.unsubscribe_url
        self._tokens = UnsubscribeTokens(settings.link_keys) if own_page else None

    def route(self, campaign: Campaign) -> Transport:
        """Raises TransportMissing, and CampaignRejected when no message may be made of its content."""
        if campaign.moved:
            raise CampaignRejected("it was given to another tenant while it was sent")
        if campaign.user.user_id is None:
            raise CampaignRejected("its user is not a user of its tenant")
        largest = self._settings.message_max_bytes
        if campaign.text_bytes > largest:
            raise CampaignRejected(too_large("its message", campaign.text_bytes, largest))
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
        kept = self._content(texts, None, lambda: WhatsAppContent(texts, app_url, self._unsubscribe_link(texts)))
        return Transport(
            kept.content, campaign.channel, account.provider, account.pace, size=kept.size, number=account.number
        )

    def _email(self, campaign: Campaign) -> Transport:
        account = self._accounts.email(campaign.user)
        texts, sender, settings = campaign.texts, account.sender, self._settings
        kept = self._content(
            texts, sender, lambda: EmailContent(texts, sender, settings.app_url, self._unsubscribe_link(texts))
        )
        account_key = f"gmail:{sender.email}" if account.gmail else campaign.channel
        return_path = None
        if self._accounts.return_paths and not account.gmail:  # Gmail's users get their reports themselves
            return_path = partial(self._accounts.return_paths.of_recipient, campaign.tenant_id)
        return Transport(
            kept.content,
            account_key,
            account.provider,
            account.pace,
            account.gmail,
            kept.size,
            return_path,
            account.quota,
        )

    def _unsubscribe_link(self, texts: CampaignTexts) -> UnsubscribeLink | None:
        """The CRM's own page, else the worker's. Raises ValueError for an id that a token cannot have."""
        if self._settings.unsubscribe_url:
            return UnsubscribeLink.of_crm(self._settings.unsubscribe_url)
        if not (self._tokens and self._settings.public_url):
            return None
        token = self._tokens.maker(texts.tenant_id, texts.channel, texts.id)
        return UnsubscribeLink.of_worker(self._settings.public_url, token)

    def _settle_only_content(self, campaign: Campaign) -> CampaignContent:
        """For the CRM's outbox: whatever became of the user's address or of the template."""
        if campaign.channel != "email":
            return WhatsAppContent(replace(campaign.texts, whatsapp_template_params=None), None)
        app_url, unsubscribe = self._settings.app_url, None
        with suppress(ValueError):  # then no message with such a link was sent
            unsubscribe = self._unsubscribe_link(campaign.texts)
        try:
            return EmailContent(campaign.texts, Sender("", campaign.user.user_email or ""), app_url, unsubscribe)
        except ValueError:  # the user is gone, or has an address that cannot be used
            return EmailContent(campaign.texts, Sender("", UNKNOWN_SENDER), app_url, None)

    def _content(
        self, texts: CampaignTexts, sender: Sender | None, compiled: Callable[[], CampaignContent]
    ) -> "_CompiledContent":
        """The compiled content, kept as long as the campaign's texts and its sender stay the same.

        Raises CampaignRejected when no message can be made of it, or only one that is too large.
        """
        kept = self._contents.get(texts.id)
        if kept is None or (kept.texts, kept.sender) != (texts, sender):
            try:
                content = compiled()
            except ValueError as error:
                raise CampaignRejected(f"its message cannot be made: {error}") from None
            kept = _CompiledContent(texts, sender, content, MessageSize.of(content, self._settings.message_max_bytes))
            self._contents[texts.id] = kept
        evict_oldest(self._contents, texts.id, CONTENTS_KEPT)
        while len(self._contents) > 1 and sum(each.size.fixed_bytes for each in self._contents.values()) > KEPT_BYTES:
            self._contents.popitem(last=False)
        if kept.size.fixed_bytes > kept.size.largest_bytes:
            raise CampaignRejected(too_large("its message", kept.size.fixed_bytes, kept.size.largest_bytes))
        return kept


@dataclass(frozen=True, slots=True)
class _CompiledContent:
    """A content, and what it was compiled from."""

    texts: CampaignTexts
    sender: Sender | None
    content: CampaignContent
    size: MessageSize
