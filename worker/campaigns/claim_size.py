"""How many recipients a claim takes.

With a pause between batches it is what the operator wrote. Without one it is free: a larger claim costs the
database less for each recipient, and leaves more of them unconfirmed when the machine is lost. So a claim takes what
is sent in a tenth of a second; the first ones of a campaign, whose rate is not known, take few.
"""

from collections import OrderedDict

from worker.runtime.settings import Settings
from worker.sending.accounts import evict_oldest

CLAIM_SECONDS = 0.1
FIRST_CLAIM = 16  # recipients: enough to see whether a provider defers all of them
LARGEST_CLAIM = 100  # with 500 a fifth quicker, but 74 MB instead of 65 after a million e-mails
QUICK_CLAIM = 50  # a larger one is for a server so quick that commits between its messages cost a tenth of the rate
GROWTH = 4  # a claim is at most so many times as large as the one before: a few messages say little about the rate
CAMPAIGNS_KEPT = 512  # whose rate is remembered


class ClaimSize:
    """The sizes of the claims of one process, by the rates that were measured."""

    def __init__(self, settings: Settings) -> None:
        self._fixed = bool(settings.campaign_batch_delay_seconds)
        # Without a pause between batches, one half is sent while the database settles and claims the other.
        self.side_by_side = 1 if self._fixed else 2
        self._concurrency = settings.campaign_concurrency
        # where it is free, what the operator wrote bounds only the first claims of a campaign
        share = max(1, settings.campaign_batch_size // self.side_by_side)
        self._first = share if self._fixed else min(share, max(FIRST_CLAIM, settings.campaign_concurrency))
        self._smallest = min(share, settings.campaign_concurrency)
        self._sizes: OrderedDict[str, int] = OrderedDict()

    def of(self, campaign_id: str) -> int:
        """How many recipients of a campaign to claim."""
        return self._sizes.get(campaign_id, self._first)

    def allowance(self, campaign_id: str, campaigns: int) -> int | None:
        """How many recipients of a batch may have been written to without an outcome that PostgreSQL knows.

        None: all, where a batch is what a quick server takes in a tenth of a second. Else the batches of all
        ``campaigns`` that are sent together share twice the number of threads: so many does a lost machine leave
        unconfirmed.
        """
        if not self._fixed and self.of(campaign_id) > max(QUICK_CLAIM, self._first):
            return None
        return max(1, 2 * self._concurrency // (self.side_by_side * campaigns))

    def measured(self, campaign_id: str, recipients: int, seconds: float) -> None:
        """A batch of so many recipients was sent in ``seconds``."""
        if self._fixed or not recipients:
            return
        largest = min(GROWTH * self.of(campaign_id), LARGEST_CLAIM)
        wanted = int(recipients * CLAIM_SECONDS / max(seconds, 0.001))
        self._sizes[campaign_id] = max(self._smallest, min(wanted, largest))
        evict_oldest(self._sizes, campaign_id, CAMPAIGNS_KEPT)
