"""Writes the rows of a campaign's links."""

from collections.abc import Callable
from datetime import datetime
from weakref import WeakSet

from worker.campaigns.campaign import Campaign
from worker.campaigns.transport import CampaignContent
from worker.content.links import Link
from worker.runtime.db import Database, queries

UTM_NAMES = ("source", "medium", "campaign", "term", "content")


class LinkWriter:
    """Remembers which contents it has written the links of: once for each is enough."""

    def __init__(self, db: Database, clock: Callable[[], datetime]) -> None:
        self._db = db
        self._clock = clock
        self._sql = queries("campaign")
        self._written: WeakSet[CampaignContent] = WeakSet()

    def write(self, campaign: Campaign, content: CampaignContent) -> None:
        """To be called before the first message leaves: until then the short links lead nowhere."""
        if content in self._written:
            return
        if content.links:
            self._db.execute(
                self._sql["add_links"],
                tenant_id=campaign.tenant_id,
                campaign_id=campaign.id,
                channel=campaign.channel,
                now=self._clock(),
                **_columns(content.links),
            )
        self._written.add(content)


def _columns(links: list[Link]) -> dict[str, list[str | None]]:
    utms = [link.utm for link in links]
    return {
        "ids": [link.id for link in links],
        "originals": [link.original_url for link in links],
        "taggeds": [link.tagged_url for link in links],
        "codes": [link.short_code for link in links],
        "shorts": [link.short_url for link in links],
        "labels": [link.link_text for link in links],
        **{f"{name}s": [getattr(utm, name) or None if utm else None for utm in utms] for name in UTM_NAMES},
    }
