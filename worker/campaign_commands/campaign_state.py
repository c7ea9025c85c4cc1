"""A campaign as an operator's command finds it: its own row, and its run."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from worker.campaigns.campaign import Campaign
from worker.campaigns.forecast import LaterRetries, later_retries
from worker.content.hours import USUAL_ZONE, tenant_zone
from worker.content.one_line import printable
from worker.errors import CommandRefused
from worker.runtime.db import Database, queries

MEASURED = timedelta(minutes=10)  # a campaign's rate is what it sent in this time


@dataclass(frozen=True, slots=True)
class CampaignState:
    """A row of the statement ``state``. Times are UTC without a zone."""

    id: str
    tenant_id: str
    tenant: str | None
    name: str
    channel: str
    status: str
    total: int
    sent: int
    failed: int
    scheduled_at: datetime | None
    started_at: datetime | None  # of the run, as all that follows
    next_batch_at: datetime | None
    prepared: bool
    backoffs: int
    is_run: bool  # False: it is not the worker's now
    next_retry: datetime | None
    retries: tuple[LaterRetries, ...]
    unconfirmed: int
    waits_for: str | None  # 'quota' or 'window', ``waits_until`` then
    waits_until: datetime | None
    timezone: str | None  # of the tenant, as it was entered
    quality: str  # of the tenant's WhatsApp number, as Meta says: GREEN, YELLOW, RED; '' unknown
    now: datetime

    @property
    def has_zone(self) -> bool:
        """Whether the tenant's zone can be read."""
        return self._zone() is not None

    @property
    def zone(self) -> ZoneInfo:
        """The tenant's; the usual one where it cannot be read."""
        return self._zone() or ZoneInfo(USUAL_ZONE)

    @property
    def is_waiting(self) -> bool:
        """Whether a quota or its hours keep it for now."""
        return self.waits_until is not None and self.waits_until > self.now

    def _zone(self) -> ZoneInfo | None:
        try:
            return tenant_zone(self.timezone)
        except ValueError:
            return None

    @property
    def measured_from(self) -> datetime:
        """What was sent since then tells its rate: the last minutes, and nothing that others sent before its run."""
        return max(self.now - MEASURED, self.started_at or self.now - MEASURED)

    @property
    def due_at(self) -> datetime | None:
        """When its next message may leave, as far as that is known."""
        if not self.is_run:
            return self.scheduled_at if self.status == "scheduled" else None
        return self.waits_until if self.waits_for else self.next_batch_at


@dataclass(frozen=True, slots=True)
class RecipientCounts:
    """The recipients of a campaign as they are now."""

    statuses: dict[str, int]
    recently_sent: int  # since CampaignState.measured_from
    of_other_tenants: int


def read_state(db: Database, campaign_id: str) -> CampaignState:
    """Raises CommandRefused where there is no such campaign."""
    row = db.one(queries("campaign_check")["state"], campaign_id=campaign_id)
    if row is None:
        raise CommandRefused(
            f"There is no campaign with the id {printable(campaign_id)}. bin/campaign list shows the ids."
        )
    return CampaignState(**row | {"retries": later_retries(row["retries"])})


def read_campaign(db: Database, campaign_id: str, message_max_bytes: int) -> Campaign:
    """With all that its messages are made of, as the job reads it. Raises CommandRefused without its tenant."""
    row = db.one(queries("campaign")["campaign"], campaign_id=campaign_id, largest=message_max_bytes)
    if row is None:
        raise CommandRefused(f"The tenant of campaign {printable(campaign_id)} was deleted.")
    return Campaign.from_row(row)


def count_recipients(db: Database, state: CampaignState) -> RecipientCounts:
    rows = db.all(
        queries("campaign_check")["statuses"],
        campaign_id=state.id,
        tenant_id=state.tenant_id,
        since=state.measured_from,
    )
    return RecipientCounts(
        statuses={row["status"]: row["number"] for row in rows if row["own"]},
        recently_sent=sum(row["recently_sent"] for row in rows if row["own"]),
        of_other_tenants=sum(row["number"] for row in rows if not row["own"]),
    )


@contextmanager
def read_only(db: Database) -> Iterator[None]:
    """A transaction that cannot write, and that may take its time."""
    with db.transaction():
        db.execute("SET TRANSACTION READ ONLY")
        db.execute("SET LOCAL statement_timeout = 0")
        yield
