"""How many recipients a claim takes.

With a pause between batches it is what the operator wrote. Without one it is free: a larger claim costs the
database less for each recipient, and leaves more of them unconfirmed when the machine is lost. So a claim takes what
is sent in a tenth of a second.
"""

from collections import OrderedDict

from worker.runtime.settings import Settings
from worker.sending.accounts import evict_oldest

CLAIM_SECONDS = 0.1
LARGEST_CLAIM = 500
SHARE_OF_BATCH = 1 / 3  # from which on an allowance is not worth its commits: a whole batch is sent in so few of them
CAMPAIGNS_KEPT = 512  # whose rate is remembered


class ClaimSize:
    """The sizes of the claims of one process, by the rates that were measured."""

    def __init__(self, settings: Settings) -> None:
        self._fixed = bool(settings.campaign_batch_delay_seconds)
        # Without a pause between batches, one half is sent while the database settles and claims the other.
        self.side_by_side = 1 if self._fixed else 2
        self._first = max(1, settings.campaign_batch_size // self.side_by_side)
        self._concurrency = settings.campaign_concurrency
        self._smallest = min(self._first, settings.campaign_concurrency)
        self._sizes: OrderedDict[str, int] = OrderedDict()

    def of(self, campaign_id: str) -> int:
        """How many recipients of a campaign to claim."""
        return self._sizes.get(campaign_id, self._first)

    def allowance(self, campaign_id: str, campaigns: int, commit_seconds: float) -> int | None:
        """How many recipients of a batch may have been written to without an outcome that PostgreSQL knows.

        None: all, where a batch is what is sent in a tenth of a second. Else the batches of all ``campaigns`` that
        are sent together share twice the number of threads: so many does a lost machine leave unconfirmed.
        """
        if campaign_id in self._sizes:
            return None
        return max(1, 2 * self._concurrency // (self.side_by_side * campaigns))

    def measured(self, campaign_id: str, recipients: int, seconds: float) -> None:
        """A batch of so many recipients was sent in ``seconds``. The next claim is at most twice as large."""
        if self._fixed or not recipients:
            return
        largest = min(2 * self.of(campaign_id), max(LARGEST_CLAIM, self._first))
        wanted = int(recipients * CLAIM_SECONDS / max(seconds, 0.001))
        self._sizes[campaign_id] = max(self._smallest, min(wanted, largest))
        evict_oldest(self._sizes, campaign_id, CAMPAIGNS_KEPT)
