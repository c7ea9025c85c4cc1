"""A look at a campaign before it is sent: what the worker would do with it, found by the worker's own code.

It reads only, in one transaction that cannot write.
"""

from contextlib import suppress
from dataclasses import dataclass

from worker.campaign_commands.campaign_state import CampaignState, read_campaign, read_only, read_state
from worker.campaign_commands.check_problems import CheckedParts, Problem, problems
from worker.campaign_commands.expected_end import ExpectedEnd, expected_end
from worker.campaign_commands.preview import Preview, preview
from worker.campaign_commands.recipient_review import RecipientReview, review_recipients
from worker.campaigns.campaign import Campaign
from worker.campaigns.transport import Transport, TransportRouter
from worker.content.links import Link
from worker.errors import CampaignRejected, SendError, TransportMissing
from worker.providers.smtp import SmtpProvider
from worker.runtime.db import Database
from worker.runtime.settings import Settings


@dataclass(frozen=True, slots=True)
class CampaignCheck:
    """All that was found out. ``message`` and ``end``: None where no message can be made."""

    state: CampaignState
    review: RecipientReview
    message: Preview | None
    links: tuple[Link, ...]
    end: ExpectedEnd | None
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
                review_recipients(self._db, campaign, transport, state, review)
            except CampaignRejected as error:  # its target
                rejection = rejection or str(error)
            end = self._end(transport, state, review) if transport else None
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
        links = tuple(transport.content.links) if transport else ()
        return CampaignCheck(state, review, message, links, end, tuple(problems(parts, self._settings)))

    def _transport(self, campaign: Campaign) -> tuple[Transport | None, str]:
        """None, and why, where nothing can be sent."""
        try:
            return self._transports.route(campaign), ""
        except (TransportMissing, CampaignRejected) as error:
            return None, str(error)

    def _end(self, transport: Transport, state: CampaignState, review: RecipientReview) -> ExpectedEnd:
        return expected_end(self._db, self._settings, transport, state, review.to_send, review.recently_sent)


def _smtp_host(transport: Transport | None) -> str | None:
    return transport.provider.host if transport and isinstance(transport.provider, SmtpProvider) else None
