"""A look at a campaign before it is sent: what the worker would do with it, found by the worker's own code.

It reads only, in one transaction that cannot write.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from worker.campaigns.campaign import Campaign
from worker.campaigns.campaign_state import CampaignState, read_campaign, read_only, read_state
from worker.campaigns.check_problems import CheckedParts, Problem, problems
from worker.campaigns.forecast import Forecast, Rate, RemainingSends, forecast, planned_rate
from worker.campaigns.preview import Preview, preview
from worker.campaigns.recipient_review import RecipientReview, review_recipients
from worker.campaigns.transport import Transport, TransportRouter
from worker.content.links import Link
from worker.errors import CampaignRejected, SendError, TransportMissing
from worker.providers.smtp import SmtpProvider
from worker.runtime.db import Database
from worker.runtime.settings import Settings


@dataclass(frozen=True, slots=True)
class AppliedLimit:
    """A setting that bounds the campaign, its value, and what it does."""

    name: str
    value: str
    effect: str


@dataclass(frozen=True, slots=True)
class CampaignCheck:
    """All that was found out. ``message``, ``rate`` and ``forecast``: None where no message can be made."""

    state: CampaignState
    review: RecipientReview
    message: Preview | None
    links: tuple[Link, ...]
    tags_links: bool
    limits: tuple[AppliedLimit, ...]
    rate: Rate | None
    forecast: Forecast | None
    problems: tuple[Problem, ...]


class CampaignChecker:
    """Checks campaigns. Raises CommandRefused where there is none, and psycopg2.Error."""

    def __init__(self, db: Database, settings: Settings, transports: TransportRouter) -> None:
        self._db = db
        self._settings = settings
        self._transports = transports

    def check(self, campaign_id: str, review: RecipientReview) -> CampaignCheck:
        """Fills ``review``, which another thread may look at meanwhile."""
        with read_only(self._db):
            state = read_state(self._db, campaign_id)
            campaign = read_campaign(self._db, campaign_id, self._settings.message_max_bytes)
            transport, rejection = self._transport(campaign)
            try:
                review_recipients(self._db, campaign, transport, state.now, review)
            except CampaignRejected as error:  # its target
                rejection = rejection or str(error)
        rejection = rejection or review.rejection
        message = None
        if transport and not rejection:
            with suppress(ValueError, SendError):  # of the example: each recipient was looked at
                message = preview(transport, review.sample, state.now)
        parts = CheckedParts(
            state=state,
            campaign=campaign,
            review=review,
            message=message,
            rejection=rejection,
            sender_address=transport.sender_address if transport else "",
            smtp_host=_smtp_host(transport),
        )
        rate = self._rate(transport) if transport else None
        return CampaignCheck(
            state=state,
            review=review,
            message=message,
            links=tuple(transport.content.links) if transport else (),
            tags_links=campaign.texts.auto_tag_links,
            limits=tuple(self._limits(transport)) if transport else (),
            rate=rate,
            forecast=self._forecast(state, review, rate) if rate else None,
            problems=tuple(problems(parts, self._settings)),
        )

    def _transport(self, campaign: Campaign) -> tuple[Transport | None, str]:
        """None, and why, where nothing can be sent."""
        try:
            return self._transports.route(campaign), ""
        except (TransportMissing, CampaignRejected) as error:
            return None, str(error)

    def _rate(self, transport: Transport) -> Rate:
        settings = self._settings
        pause = settings.campaign_batch_delay_seconds / settings.campaign_batch_size
        return planned_rate(transport.rate, pause, settings.campaign_concurrency)

    def _forecast(self, state: CampaignState, review: RecipientReview, rate: Rate) -> Forecast:
        starts_at = max(filter(None, [state.now, state.scheduled_at, state.next_batch_at]))
        work = RemainingSends(recipients=review.to_send, rate=rate, starts_at=starts_at)
        return forecast(work, state.now)

    def _limits(self, transport: Transport) -> Iterator[AppliedLimit]:
        settings = self._settings
        if transport.gmail:
            yield AppliedLimit("GMAIL_RATE", f"{settings.gmail_rate:g} a second", "for one Gmail user")
        elif isinstance(transport.provider, SmtpProvider):
            pass
        else:
            yield AppliedLimit("WHATSAPP_RATE", f"{settings.whatsapp_rate:g} a second", "for one phone id")
        if settings.campaign_batch_delay_seconds:
            per_second = settings.campaign_batch_size / settings.campaign_batch_delay_seconds
            value = f"{settings.campaign_batch_size} and {settings.campaign_batch_delay_seconds:g} s"
            effect = f"at most {per_second:g} a second for one campaign"
            yield AppliedLimit("CAMPAIGN_BATCH_SIZE, CAMPAIGN_BATCH_DELAY", value, effect)
        yield AppliedLimit(
            "MESSAGE_MAX_BYTES", f"{settings.message_max_bytes:,} bytes", "a larger message is not sent"
        )
        effect = "so many refusals in a row with the same reply end the campaign"
        yield AppliedLimit("REFUSAL_BREAKER", str(settings.refusal_breaker), effect)


def _smtp_host(transport: Transport | None) -> str | None:
    return transport.provider.host if transport and isinstance(transport.provider, SmtpProvider) else None
