"""What there is to do, in one look at the database."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Survey:
    """The row of the statement ``survey``. Times are UTC without zone, None where nothing waits."""

    next_scheduled: datetime | None  # when the next campaign is due
    any_running: bool
    any_batch: bool
    next_batch: datetime | None  # when a run may send its next batch
    next_ask: datetime | None  # when a provider can be asked about an unconfirmed message

    def is_idle(self, now: datetime) -> bool:
        """Whether there is nothing to do before the next campaign is due."""
        in_progress = self.any_running or self.any_batch or self.next_batch or self.next_ask
        return not in_progress and not self.any_due(now)

    def any_due(self, now: datetime) -> bool:
        """Whether a campaign waits to be started."""
        return self.next_scheduled is not None and self.next_scheduled <= now


@dataclass(frozen=True, slots=True)
class CampaignBacklog:
    """What waits, for the metrics."""

    pending: float = 0.0  # recipients
    oldest_due_seconds: float = 0.0
    outside_hours: float = 0.0  # campaigns


@dataclass(frozen=True, slots=True)
class RemainingWork:
    """The row of the statement ``remaining``: why a run does not end, though nothing could be claimed."""

    next_retry: datetime | None
    next_retry_reason: str | None  # why that recipient was not sent to
    claimed_elsewhere: bool
    next_ask: datetime | None
    ahead: bool  # recipients that could not be claimed: their rows are locked
    behind: bool  # recipients that were added or set back meanwhile

    def has_due(self, now: datetime) -> bool:
        """Whether a recipient could be claimed now, if its row is not locked."""
        return self.ahead or (self.next_retry is not None and self.next_retry <= now)
