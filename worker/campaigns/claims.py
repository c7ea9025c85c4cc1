"""Claims: takes recipients of a campaign for this process, and renews the leases of what it took.

A claim is committed before the first message leaves. Its journal is created before that: a claim that is committed
after this process was killed is recovered from it.
"""

import time
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any
from uuid import uuid4

import psycopg2

from worker.campaigns.batch import Batch, Recipient
from worker.campaigns.campaign import Campaign
from worker.campaigns.claim_size import ClaimSize
from worker.campaigns.journal import JournalDirectory
from worker.campaigns.refusal_breaker import RefusalBreaker, RefusalStreak
from worker.campaigns.sending_hours import OUTSIDE, SendingHours
from worker.campaigns.transport import Transport
from worker.runtime.db import Database, is_unavailable, queries
from worker.runtime.lease import Lease
from worker.runtime.settings import Settings
from worker.sending.quota import QuotaLedger, Reservation
from worker.sending.whatsapp_limits import WhatsAppLimits

ROUND_SECONDS = 1.0  # the batch of an account with a pace is no larger than what it can send in this time

BATCH_BYTES = 8 * 1024 * 1024  # the messages of one batch are no larger in all; a batch has at least one


class BatchClaims:
    """The claims of one process."""

    def __init__(
        self,
        db: Database,
        settings: Settings,
        journals: JournalDirectory,
        lease: Lease,
        clock: Callable[[], datetime],
    ) -> None:
        self._db = db
        self._settings = settings
        self._journals = journals
        self._lease = lease
        self._clock = clock
        self.hours = SendingHours(settings.campaign_window, clock)
        self.quotas = QuotaLedger(db)
        self.whatsapp_limits = WhatsAppLimits(db, clock)
        self.breaker = RefusalBreaker(db, settings.refusal_breaker)
        self._sql = queries("campaign")
        self._size = ClaimSize(settings)

    @property
    def side_by_side(self) -> int:
        """How many batches of one campaign are sent at the same time."""
        return self._size.side_by_side

    def start(self) -> None:
        """Once, before the first claim: what another CAMPAIGN_WINDOW put off, and old hours of quotas."""
        now = self._clock()
        self._db.execute(self._sql["end_other_waits"], outside=OUTSIDE, reason=self.hours.reason, now=now)
        self.quotas.drop_old(now)

    def claim(self, campaign: Campaign, transport: Transport, *, campaigns: int = 1) -> Batch | None:
        """Claims the next recipients of a run; None when none can be claimed now.

        ``campaigns``: how many are sent together, with this one.
        Raises QuotaUsedUp when the account may not send more for now, and LimitUnread.
        """
        size, reservation, quota = self._limit(campaign, transport), None, transport.quota
        if transport.number:
            quota = self.whatsapp_limits.quota(campaign.tenant_id, transport.number)
        if quota:
            reservation = self.quotas.reserve(quota, size, self._clock())
            size = reservation.number
        batch = None
        try:
            batch = self._claim(
                "claim",
                campaign,
                transport,
                transport.account_key,
                size,
                channel=campaign.channel,
                streak=self.breaker.streak_of(campaign),
                reservation=reservation,
                allowance=self._size.allowance(campaign.id, campaigns),
                user_id=campaign.user_id,
                pause_seconds=self._settings.campaign_batch_delay_seconds,
                full_size=self._settings.campaign_batch_size,
                outside=OUTSIDE,
            )
            if batch:
                batch.hours = self.hours.of_batch(campaign, {each.id: each.phone for each in batch.recipients})
        except psycopg2.Error as error:
            if is_unavailable(error):
                reservation = None  # the claim may have been committed all the same
            raise
        finally:
            if reservation:  # what it did not take; another process may wait for it
                self.quotas.give_back(reservation, size - (len(batch.recipients) if batch else 0))
        if batch:
            transport.prepare(batch.recipients)
        return batch

    def give_back(self, batch: Batch, untried: int) -> None:
        """The batch is settled, and so many of its messages were not offered to the provider."""
        if batch.reservation is None:
            return
        self.quotas.give_back(batch.reservation, untried)
        if batch.transport.number:
            ids = [recipient.id for recipient in batch.recipients]
            self.whatsapp_limits.count_once(batch.reservation.quota, batch.campaign.id, ids)

    def claim_unconfirmed(self, campaign: Campaign, transport: Transport, account_key: str) -> Batch | None:
        """Claims unconfirmed messages that left through this account, to ask the provider about them."""
        return self._claim("claim_unconfirmed", campaign, transport, account_key, self._settings.campaign_concurrency)

    def close(self) -> bool:
        """False: a thread still waits for a provider."""
        return self.whatsapp_limits.close()

    def measured(self, batch: Batch) -> None:
        """The batch was sent to its end: the campaign's next claim takes what takes a moment."""
        if batch.sending:
            tried = sum(each.was_tried for each in batch.outcomes.values())
            self._size.measured(batch.campaign.id, tried, time.monotonic() - batch.claimed_at)

    def renew(self, batches: Iterable[Batch]) -> None:
        """Renews the leases of these batches now and then. A batch that another process has settled stops."""
        open_batches = list(batches)
        if not open_batches or not self._lease.take_renewal():
            return
        expires_at = self._lease.expires_at()
        for batch in open_batches:
            if self._db.execute(self._sql["renew"], ids=[batch.id], holder=batch.holder):
                batch.renew_lease(expires_at)
            else:
                batch.lose_lease()

    def _claim(
        self,
        statement: str,
        campaign: Campaign,
        transport: Transport,
        account_key: str,
        size: int,
        *,
        streak: RefusalStreak | None = None,
        reservation: Reservation | None = None,
        allowance: int | None = None,
        **more: Any,
    ) -> Batch | None:
        batch_id, holder = str(uuid4()), self._lease.holder
        journal = self._journals.create(batch_id, size)
        lease_until = self._lease.expires_at()
        try:
            rows = self._db.execute_prepared(
                statement, self._sql[statement], campaign_id=campaign.id, batch_id=batch_id, holder=holder,
                machine=self._journals.machine, sender=account_key, size=size, now=self._clock(),
                tenant_id=campaign.tenant_id, may_leave=allowance, timeline=self._db.timeline, **more,
            )  # fmt: skip
        except BaseException:
            journal.close()  # the claim may have been committed all the same: it is recovered from its journal
            raise
        if not rows:
            journal.remove()
            return None
        return Batch(
            batch_id,
            holder,
            campaign,
            transport,
            [Recipient(**row) for row in rows],
            journal,
            lease_until=lease_until,
            same_account=account_key == transport.account_key,
            asking=streak is None,
            streak=streak,
            reservation=reservation,
            allowance=allowance,
        )

    def _limit(self, campaign: Campaign, transport: Transport) -> int:
        """How many recipients a claim may take: by time, by bytes, and by what the account may send."""
        size = min(self._size.of(campaign.id), max(1, BATCH_BYTES // max(1, transport.message_bytes)))
        return size if transport.rate is None else min(size, max(1, int(transport.rate * ROUND_SECONDS)))
