"""What dead processes and broken connections left behind: orphaned batches, and messages without an answer."""

import logging
import time
from collections.abc import Callable
from contextlib import closing
from datetime import datetime

from worker.campaigns.batch import Batch
from worker.campaigns.claims import ROUND_SECONDS, BatchClaims
from worker.campaigns.orphans import OrphanedBatch, OrphanedBatches
from worker.campaigns.run import REFUSED_SECONDS, CampaignRuns
from worker.campaigns.settlement import BatchSettlements
from worker.campaigns.transport import TransportRouter
from worker.errors import RetryLater, SendError
from worker.providers.google_token import InvalidGrant
from worker.runtime.db import queries
from worker.runtime.job import JobContext
from worker.sending.outcomes import Outcome, OutcomeKind

log = logging.getLogger(__name__)


class BatchRecovery:
    """Settles orphaned batches, and asks providers about unconfirmed messages."""

    def __init__(
        self,
        context: JobContext,
        runs: CampaignRuns,
        claims: BatchClaims,
        orphans: OrphanedBatches,
        settlements: BatchSettlements,
        transports: TransportRouter,
    ) -> None:
        self._context = context
        self._db = context.database
        self._sql = queries("campaign")
        self._runs = runs
        self._claims = claims
        self._orphans = orphans
        self._settlements = settlements
        self._transports = transports
        self._retry_at: dict[str, float] = {}  # time.monotonic() before which a batch is not settled again

    def settle_orphans(self) -> None:
        """A batch that could not be settled, because of its own campaign, waits before it is tried again."""
        for orphan in self._orphans.find():
            batch_id, settled = orphan.row.id, False
            with self._runs.contained(orphan.row.campaign_id), closing(orphan):
                if time.monotonic() < self._retry_at.get(batch_id, 0.0):
                    continue
                self._settle_orphan(orphan)
                settled = True
            if settled:
                self._retry_at.pop(batch_id, None)
            else:
                self._retry_at[batch_id] = time.monotonic() + REFUSED_SECONDS

    def ask(self, now: datetime, settle: Callable[[Batch], None]) -> None:
        """Asks providers, for a moment, whether they have messages that are due; ``settle`` writes what they say."""
        until = time.monotonic() + ROUND_SECONDS
        self._db.execute(self._sql["drop_unconfirmed"])
        for due in self._db.all(self._sql["due_to_ask"], now=now):
            if time.monotonic() > until or not self._context.may_continue:
                return
            with self._runs.contained(due["campaign_id"]):
                if batch := self._claim_unconfirmed(due["campaign_id"], due["sender"]):
                    with closing(batch.journal):
                        self._ask_about(batch)
                        settle(batch)

    def _claim_unconfirmed(self, campaign_id: str, account_key: str) -> Batch | None:
        campaign = self._runs.find(campaign_id)
        if campaign is None:
            return None
        transport = self._transports.route_or_settle_only(campaign)
        return self._claims.claim_unconfirmed(campaign, transport, account_key)

    def _settle_orphan(self, orphan: OrphanedBatch) -> None:
        campaign = self._runs.find(orphan.row.campaign_id)
        if campaign is None:
            self._orphans.drop(orphan)
            return
        batch = self._orphans.recover(orphan, campaign, self._transports.route_or_settle_only(campaign))
        if batch is None:
            return
        settled = self._settlements.settle(batch)
        kinds = [outcome.kind for outcome in batch.outcomes.values()]
        log.warning(
            "orphaned batch settled",
            {"campaign": campaign.id, "holder": batch.holder, "sent": settled.sent,
             "unconfirmed": kinds.count(OutcomeKind.UNCONFIRMED), "recipients": len(batch.recipients)},
        )  # fmt: skip

    def _ask_about(self, batch: Batch) -> None:
        """Gives each recipient the outcome that the provider knows. If it cannot be asked, none is confirmed."""
        reason = None if batch.can_ask else "the account it was sent through is not connected any more"
        for recipient in batch.recipients:
            try:
                accepted = None if reason else batch.transport.find(recipient)
            except SendError as error:
                reason = str(error)
                if isinstance(error, InvalidGrant):
                    batch.reject(error)
                # a grant that was withdrawn, or that allows sending only, will never answer
                if not isinstance(error, RetryLater):
                    batch.stop_asking()
            if reason:
                outcome = Outcome(OutcomeKind.UNCONFIRMED, self._context.clock(), reason)
            elif accepted:
                outcome = Outcome(OutcomeKind.ACCEPTED, self._context.clock(), accepted=accepted)
            else:
                outcome = Outcome(OutcomeKind.NOT_SENT, self._context.clock(), "the provider does not know it")
            batch.set_outcome(recipient.id, outcome)
