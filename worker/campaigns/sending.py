"""The sending loop of one process: claim, send, settle, publish, for several campaigns side by side.

``bin/campaign`` and ``bin/campaign-sender`` share it. They differ in which campaigns may have a batch (``Source``).
"""

import logging
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import timedelta
from typing import Protocol

from worker.campaigns.batch import Batch
from worker.campaigns.campaign import Campaign
from worker.campaigns.claims import ROUND_SECONDS, BatchClaims
from worker.campaigns.dispatcher import Dispatcher, account_of
from worker.campaigns.forgotten_messages import ForgottenMessages
from worker.campaigns.journal import JournalDirectory
from worker.campaigns.large_campaigns import LargeCampaigns
from worker.campaigns.link_writer import LinkWriter
from worker.campaigns.opt_outs import stop_suppressed
from worker.campaigns.orphans import OrphanedBatches
from worker.campaigns.progress import ProgressRecord
from worker.campaigns.recovery import BatchRecovery
from worker.campaigns.run import CampaignRuns
from worker.campaigns.settlement import BatchSettlements
from worker.campaigns.targets import prepare
from worker.campaigns.transport import Transport, TransportRouter
from worker.errors import AccountRejected, CampaignRejected, TransportMissing
from worker.providers.google_token import InvalidGrant
from worker.runtime.db import Database
from worker.runtime.events import LiveEvents
from worker.runtime.job import JobContext
from worker.runtime.lease import Lease
from worker.runtime.timeline import Timeline
from worker.sending.gmail_grants import update_grant
from worker.sending.quota import QuotaUsedUp
from worker.sending.requests import RequestThreads
from worker.sending.suppression import SuppressionWatch
from worker.sending.whatsapp_limits import LimitUnread

log = logging.getLogger(__name__)

UNREADABLE_SECONDS = 60.0  # how long a campaign waits whose tenant has a time zone that cannot be read
STUCK_SECONDS = 3.0  # a message that takes longer hangs
OTHERS_SECONDS = 30.0  # after a fail-over, so that senders of other machines can settle what it forgot of theirs
COUNTS = ("started", "adopted", "sent", "failed", "ended")


class Source(Protocol):
    """Which campaigns may have a batch."""

    def ready(self, busy: set[str], seconds: float) -> Sequence[str]:
        """The ids of campaigns that may have a batch now, without those that are ``busy``.

        ``seconds``: for how long the loop has been running.
        """

    def nothing_left(self, campaign: Campaign, used_up: QuotaUsedUp | None) -> None:
        """Nothing could be claimed, and this process has no batch of the campaign."""

    def left_out(self, campaign_id: str) -> None:
        """The campaign was ready, and this process still has no batch of it."""

    def look(self) -> None:
        """Called every second while the loop takes long, since messages hang."""


class CampaignSending:
    """What a process sends campaigns with. ``counts``: what it did in the present tick."""

    def __init__(self, context: JobContext, look_again_seconds: float | None = None) -> None:
        """``look_again_seconds``: see ``CampaignRuns``.

        Raises SettingsError for values that only show themselves in use (SMTP_URL, STATE_DIR, DATABASE_URL).
        """
        settings, clock = context.settings, context.clock
        self._context = context
        self._db = context.database
        self._transports = TransportRouter(settings, context.redis, clock, lambda: context.signals.stopping)
        self.runs = CampaignRuns(
            self._db,
            LiveEvents(context.redis),
            context.counters,
            clock,
            message_max_bytes=settings.message_max_bytes,
            refusal_breaker=settings.refusal_breaker,
            look_again_seconds=look_again_seconds,
        )
        self._links = LinkWriter(self._db, clock)
        self._journals = journals = JournalDirectory(settings.state_dir)
        self._timeline = Timeline(self._db, settings.state_dir / "timeline.campaign", clock)
        self._forgotten = ForgottenMessages(self._db, journals, self._timeline, clock)
        self.claims = BatchClaims(self._db, settings, journals, Lease(), clock)
        self.progress = ProgressRecord(Database(settings.database_url, "crm-worker campaign progress"))
        self.dispatcher = Dispatcher(RequestThreads(settings.campaign_concurrency, account_of), clock, self.progress)
        self._suppressions = SuppressionWatch(self._db)
        self._settlements = BatchSettlements(self._db, settings, context.counters, clock)
        self.orphans = OrphanedBatches(self._db, journals, clock)
        self.recovery = BatchRecovery(
            context, self.runs, self.claims, self.orphans, self._settlements, self._transports
        )
        self._exhausted: set[str] = set()  # campaigns with a batch in progress and nothing left to claim
        self._large = LargeCampaigns(self.dispatcher)
        self._connection = 0  # the number of the one that the latest tick had
        self._said_stuck = False
        self.counts: dict[str, int] = {}

    def begin_tick(self) -> bool:
        """False: nothing may be claimed yet, since PostgreSQL may have forgotten messages that have left."""
        self.counts = dict.fromkeys(COUNTS, 0)
        self._said_stuck = False  # once a tick is enough
        self.dispatcher.reap()
        if not self._forgotten.claim_again():
            return False
        if self._connection != self._db.connection_number():
            self._connection = self._db.connection_number()
            self.progress.close()  # its connection leads to the same server, which was lost
        return not (self._context.settings.is_spread and self._timeline.changed_within(OTHERS_SECONDS))

    def close(self) -> bool:
        """False: threads still wait for a provider."""
        self._transports.close()
        self._journals.close()
        self.progress.close()
        ended = self.claims.close()
        return self.dispatcher.close() and ended

    def send(self, source: Source) -> None:
        """Gives every ready campaign a batch, again and again, and settles each batch as it ends.

        Ends when no campaign is ready and all batches are settled. While a message hangs, the other campaigns go on.
        """
        began = looked = time.monotonic()
        try:
            while True:
                now = time.monotonic()
                if now - began > STUCK_SECONDS and now - looked > ROUND_SECONDS and self._context.may_continue:
                    self._heartbeat()
                    source.look()
                    looked = time.monotonic()
                if self._context.may_continue:
                    self._claim_for_ready_runs(source, now - began)
                if not self.dispatcher.open:
                    return
                stop_suppressed(self._suppressions, self.dispatcher)
                for batch in self._finished_batches():
                    self.claims.measured(batch)
                    with self.runs.contained(batch.campaign.id), closing(batch.journal):
                        self.settle(batch)
                    self.dispatcher.forget(batch)
                self.claims.renew(self.dispatcher.open)
        finally:
            # on an error the batches stay claimed, and the next tick settles them from their journals
            self.dispatcher.abandon()
            self._exhausted.clear()
            self._large.clear()

    def transport(self, campaign: Campaign) -> Transport | None:
        """How the campaign is sent, when its recipients and links are ready; None: not now, or it has failed."""
        try:
            transport = self._transports.route(campaign)
            if not (campaign.prepared or self._prepare(campaign)):
                self.runs.wait_a_moment(campaign)
                return None
            self._links.write(campaign, transport.content)
        except (TransportMissing, CampaignRejected) as error:
            self.runs.fail([campaign.id], str(error))
            return None
        return transport

    def _prepare(self, campaign: Campaign) -> bool:
        """False: not now. Recipients that are built may be those of messages that the database has forgotten."""
        if not (prepare(self._db, campaign, self._context.clock()) and self._forgotten.claim_again(built=True)):
            return False
        self.recovery.settle_orphans()
        return True

    def settle(self, batch: Batch) -> None:
        self._exhausted.discard(batch.campaign.id)
        settled = self._settlements.settle(batch)
        self.claims.give_back(batch, settled.untried)
        self.counts["sent"] += settled.sent
        self.counts["failed"] += settled.failed
        if gmail := batch.transport.gmail:
            revoked = isinstance(batch.rejection, InvalidGrant)
            update_grant(self._db, gmail, self._context.clock(), revoked=revoked)
        if batch.stopped_by_provider:
            self.dispatcher.stop(batch.campaign.id)  # its other batch, too
        self.runs.follow_up(batch, settled)
        if batch.rejection:
            kind = "account" if isinstance(batch.rejection, AccountRejected) else "campaign"
            self._context.counters.add("refusals_total", channel=batch.campaign.channel, kind=kind)
        if batch.refused_in_a_row and self.dispatcher.number_open(batch.campaign.id) == 1:
            self._break_off(batch.campaign)

    def _heartbeat(self) -> None:
        """Says so when the tick does nothing but wait for messages that have had no answer for long."""
        stuck = self.dispatcher.stuck
        self._context.counters.heartbeat(self._context.clock(), stuck)
        if stuck and not self._said_stuck:
            log.warning("all messages that are being sent wait for their provider", {"messages": stuck})
            self._said_stuck = True

    def _claim_for_ready_runs(self, source: Source, seconds: float) -> None:
        batches = self.dispatcher.open
        stopped = {batch.campaign.id for batch in batches if not batch.sending}
        full = {
            batch.campaign.id
            for batch in batches
            if self.dispatcher.number_open(batch.campaign.id) >= self.claims.side_by_side
        }
        busy = stopped | full | self._exhausted | self._large.waiting()
        ready = source.ready(busy, seconds)
        together = len({batch.campaign.id for batch in batches}.union(ready))
        for campaign_id in ready:
            if not self._context.may_continue:
                return
            with self.runs.contained(campaign_id):
                campaign = self.runs.find(campaign_id)
                if campaign is None:
                    self.runs.fail([campaign_id], "its tenant was deleted")  # nothing, if it was deleted itself
                elif self._large.may_open(campaign):
                    self._claim(campaign, source, together)
            if not self.dispatcher.number_open(campaign_id):
                source.left_out(campaign_id)

    def _claim(self, campaign: Campaign, source: Source, together: int) -> None:
        """``together``: how many campaigns are sent at the same time."""
        transport = self.transport(campaign)
        if transport is None:
            return
        if self.claims.breaker.streak_of(campaign).is_full:
            self._break_off(campaign)
            return
        if self._wait_for_hours(campaign):
            return
        batch, used_up = None, None
        try:
            batch = self.claims.claim(campaign, transport, campaigns=together)
        except QuotaUsedUp as reason:
            used_up = reason
        except LimitUnread:
            self.runs.wait_a_moment(campaign)
            return
        if batch:
            self.dispatcher.add(batch)
        elif self.dispatcher.number_open(campaign.id):
            self._exhausted.add(campaign.id)  # until its last batch is settled
        else:
            source.nothing_left(campaign, used_up)

    def _wait_for_hours(self, campaign: Campaign) -> bool:
        """Whether none of its recipients may be written to now; when all its batches are settled, the run waits."""
        hours = self.claims.hours
        try:
            opens_at, reason = hours.opens_at(campaign), hours.reason
        except ValueError as error:  # looked at again soon: the tenant may correct it
            opens_at, reason = self._context.clock() + timedelta(seconds=UNREADABLE_SECONDS), str(error)
        if opens_at is None:
            return False
        if self.dispatcher.number_open(campaign.id):
            self._exhausted.add(campaign.id)
        else:
            self.runs.wait_for(campaign, "window", opens_at, reason)
        return True

    def _break_off(self, campaign: Campaign) -> None:
        """Too many recipients in a row were refused: ends the run, unless a batch of it is not settled."""
        if not self.runs.break_off(campaign):
            self.runs.wait_a_moment(campaign)
        self.claims.breaker.forget(campaign)

    def _finished_batches(self) -> list[Batch]:
        """The next finished batches; on a signal all of them, within the grace time."""
        if self._context.signals.stopping:
            return self.dispatcher.drain(self._context.settings.shutdown_grace_seconds)
        return self.dispatcher.finished()
