"""What the CRM's pages are told of a campaign: progress now and then, and its end."""

import time
from collections.abc import Mapping

from worker.campaigns.campaign import Campaign
from worker.campaigns.settlement import CampaignCounts
from worker.runtime.events import LiveEvents

PROGRESS_SECONDS = 0.5  # the progress of one campaign is published no more often


class CampaignEvents:
    """Publishes to the campaign's user; a ``user_id`` None: the tenant has no such user."""

    def __init__(self, events: LiveEvents) -> None:
        self._events = events
        self._published_at: dict[str, float] = {}  # time.monotonic() of the last progress event

    def progress(self, campaign: Campaign, counts: CampaignCounts) -> None:
        """After a settlement; not published if that was done a moment ago."""
        now = time.monotonic()
        if now - self._published_at.get(campaign.id, -PROGRESS_SECONDS) >= PROGRESS_SECONDS:
            self._published_at[campaign.id] = now
            self._publish(
                campaign.user.user_id,
                "campaign:progress",
                {"campaignId": campaign.id, "sentCount": counts.sent, "failedCount": counts.failed,
                 "totalRecipients": counts.total, "status": counts.status},
            )  # fmt: skip

    def completed(self, campaign_id: str, user_id: str | None, stats: Mapping[str, int]) -> None:
        self.forget(campaign_id)
        self._publish(user_id, "campaign:completed", {"campaignId": campaign_id, "stats": stats})

    def failed(self, campaign_id: str, user_id: str | None, reason: str) -> None:
        self.forget(campaign_id)
        self._publish(user_id, "campaign:failed", {"campaignId": campaign_id, "error": reason})

    def forget(self, campaign_id: str) -> None:
        """The campaign is not the worker's any more."""
        self._published_at.pop(campaign_id, None)

    def _publish(self, user_id: str | None, event: str, payload: dict[str, object]) -> None:
        if user_id is not None:
            self._events.emit(f"user:{user_id}", event, payload)
