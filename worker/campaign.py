"""bin/campaign: sends due e-mail and WhatsApp campaigns.

A tick starts what is due, adopts what no process sends, settles what a dead worker left behind, and then gives
every running campaign one batch after the other: claim, send, settle, publish.
"""

import logging
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta

from worker.campaigns import command_line
from worker.campaigns.batch import Batch
from worker.campaigns.campaign import Campaign
from worker.campaigns.claims import ROUND_SECONDS, BatchClaims
from worker.campaigns.dispatcher import Dispatcher, account_of
from worker.campaigns.journal import JournalDirectory
from worker.campaigns.large_campaigns import LargeCampaigns
from worker.campaigns.link_writer import LinkWriter
from worker.campaigns.opt_outs import stop_suppressed
from worker.campaigns.orphans import OrphanedBatches
from worker.campaigns.recovery import BatchRecovery
from worker.campaigns.run import LOCKED_SECONDS, PREPARING_SECONDS, CampaignRuns
from worker.campaigns.settlement import BatchSettlements, SettlementResult
from worker.campaigns.survey import CampaignBacklog, Survey
from worker.campaigns.targets import prepare
from worker.campaigns.transport import Transport, TransportRouter
from worker.errors import AccountRejected, CampaignRejected, TransportMissing
from worker.providers.google_token import InvalidGrant
from worker.runtime import program
from worker.runtime.db import queries
from worker.runtime.events import LiveEvents
from worker.runtime.job import JobContext, TickResult
from worker.runtime.lease import Lease
from worker.runtime.migrations import require_current
from worker.sending.gmail_grants import update_grant
from worker.sending.quota import QuotaUsedUp
from worker.sending.requests import RequestThreads
from worker.sending.suppression import SuppressionWatch
from worker.sending.whatsapp_limits import LimitUnread

log = logging.getLogger(__name__)

QUOTAS_SECONDS = 60.0  # from one measurement of what the accounts used to the next
UNREADABLE_SECONDS = 60.0  # how long a campaign waits whose tenant has a time zone that cannot be read
STUCK_SECONDS = 3.0  # a tick that takes longer waits for a message that hangs


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    options = command_line.parser().parse_args(arguments)
    if options.command:
        return program.run_main(lambda: command_line.run(options))
    return program.run_loop("campaign", CampaignJob, options)


class CampaignJob:
    zone = UTC

    def __init__(self, context: JobContext) -> None:
        """Raises SettingsError for values that only show themselves in use (SMTP_URL, STATE_DIR, DATABASE_URL)."""
        settings, clock = context.settings, context.clock
        self.interval_seconds = settings.campaign_interval_seconds
        self._context = context
        self._db = context.database
        self._transports = TransportRouter(settings, context.redis, clock)
        self._runs = CampaignRuns(self._db, LiveEvents(context.redis), clock, settings.message_max_bytes)
        self._links = LinkWriter(self._db, clock)
        self._journals = journals = JournalDirectory(settings.state_dir)
        self._claims = BatchClaims(self._db, settings, journals, Lease(), clock)
        self._dispatcher = Dispatcher(RequestThreads(settings.campaign_concurrency, account_of), clock)
        self._suppressions = SuppressionWatch(self._db)
        self._settlements = BatchSettlements(self._db, settings, context.counters, clock)
        self._orphans = OrphanedBatches(self._db, journals, clock)
        self._recovery = BatchRecovery(
            context, self._runs, self._claims, self._orphans, self._settlements, self._transports
        )
        self._exhausted: set[str] = set()  # campaigns with a batch in progress and nothing left to claim
        self._large = LargeCampaigns(self._dispatcher)
        self._rejected: dict[str, Batch] = {}  # of campaigns that end when their other batch is settled
        self._said_stuck = False
        self._counts: dict[str, int] = {}
        self._quotas_measured_at = -QUOTAS_SECONDS

    def start(self) -> None:
        require_current(self._db)
        self._db.execute(queries("campaign")["drop_retries"])
        self._claims.start()
        self._orphans.sweep_journals()

    def tick(self, now: datetime) -> TickResult:
        self._counts = dict.fromkeys(("started", "adopted", "sent", "failed", "ended"), 0)
        self._said_stuck = False  # once a tick is enough
        self._dispatcher.reap()
        survey = self._runs.survey()
        if survey.is_idle(now):
            self._measure(CampaignBacklog())
            return TickResult(self._counts, survey.next_scheduled)
        self._look_for_work(now, survey)
        self._send()
        self._measure(self._runs.backlog())
        return self._result(self._runs.survey(), self._context.clock())

    def close(self) -> bool:
        self._transports.close()
        self._journals.close()
        ended = self._claims.close()
        return self._dispatcher.close() and ended

    def _look_for_work(self, now: datetime, survey: Survey) -> None:
        if survey.any_batch:
            self._recovery.settle_orphans()
        if survey.next_ask and survey.next_ask <= now:
            self._recovery.ask(now, self._settle)
        self._counts["started"] += self._runs.start_due(now)
        self._runs.disown()
        self._counts["adopted"] += self._runs.adopt(now, self._context.settings.campaign_adopt_after_seconds)

    def _send(self) -> None:
        """Gives every ready run a batch, again and again for a second, and settles each batch as it ends.

        While a message hangs, so that the tick cannot end, the other campaigns go on.
        """
        began = looked = time.monotonic()
        try:
            while True:
                seconds = time.monotonic() - began
                stuck = seconds > STUCK_SECONDS
                if stuck and time.monotonic() - looked > ROUND_SECONDS and self._context.may_continue:
                    self._heartbeat()
                    self._look_for_work(self._context.clock(), self._runs.survey())
                    looked = time.monotonic()
                if (seconds < ROUND_SECONDS or stuck) and self._context.may_continue:
                    self._claim_for_ready_runs()
                if not self._dispatcher.open:
                    return
                stop_suppressed(self._suppressions, self._dispatcher)
                for batch in self._finished_batches():
                    self._claims.measured(batch)
                    with self._runs.contained(batch.campaign.id), closing(batch.journal):
                        self._settle(batch)
                    self._dispatcher.forget(batch)
                self._claims.renew(self._dispatcher.open)
        finally:
            # on an error the batches stay claimed, and the next tick settles them from their journals
            self._dispatcher.abandon()
            self._exhausted.clear()
            self._large.clear()
            self._rejected.clear()  # what is sent of these campaigns next is rejected again

    def _heartbeat(self) -> None:
        """Says so when the tick does nothing but wait for messages that have had no answer for long."""
        stuck = self._dispatcher.stuck
        self._context.counters.heartbeat(self._context.clock(), stuck)
        if stuck and not self._said_stuck:
            log.warning("all messages that are being sent wait for their provider", {"messages": stuck})
            self._said_stuck = True

    def _claim_for_ready_runs(self) -> None:
        batches = self._dispatcher.open
        stopped = {batch.campaign.id for batch in batches if not batch.sending}
        full = {
            batch.campaign.id
            for batch in batches
            if self._dispatcher.number_open(batch.campaign.id) >= self._claims.side_by_side
        }
        for campaign_id in self._runs.ready(busy=stopped | full | self._exhausted | self._large.waiting()):
            if not self._context.may_continue:
                return
            with self._runs.contained(campaign_id):
                campaign = self._runs.find(campaign_id)
                if campaign is None:
                    self._runs.fail([campaign_id], "its tenant was deleted")  # nothing, if it was deleted itself
                elif self._large.may_open(campaign):
                    self._claim(campaign)

    def _claim(self, campaign: Campaign) -> None:
        transport = self._transport(campaign)
        if transport is None:
            return
        if self._claims.breaker.streak_of(campaign).is_full:
            self._break_off(campaign)
            return
        if self._wait_for_hours(campaign):
            return
        batch, used_up = None, None
        try:
            batch = self._claims.claim(campaign, transport)
        except QuotaUsedUp as reason:
            used_up = reason
        except LimitUnread:
            self._runs.wait_a_moment(campaign)
            return
        if batch:
            self._dispatcher.add(batch)
        elif self._dispatcher.number_open(campaign.id):
            self._exhausted.add(campaign.id)  # until its last batch is settled
        else:
            self._counts["ended"] += self._runs.end_or_wait(campaign, used_up)

    def _transport(self, campaign: Campaign) -> Transport | None:
        """How the campaign is sent, when its recipients and links are ready; None: not now, or it has failed."""
        try:
            transport = self._transports.route(campaign)
            if not (campaign.prepared or prepare(self._db, campaign, self._context.clock())):
                self._runs.wait_a_moment(campaign)
                return None
            self._links.write(campaign, transport.content)
        except (TransportMissing, CampaignRejected) as error:
            self._runs.fail([campaign.id], str(error))
            return None
        return transport

    def _wait_for_hours(self, campaign: Campaign) -> bool:
        """Whether none of its recipients may be written to now; when all its batches are settled, the run waits."""
        hours = self._claims.hours
        try:
            opens_at, reason = hours.opens_at(campaign), hours.reason
        except ValueError as error:  # looked at again soon: the tenant may correct it
            opens_at, reason = self._context.clock() + timedelta(seconds=UNREADABLE_SECONDS), str(error)
        if opens_at is None:
            return False
        if self._dispatcher.number_open(campaign.id):
            self._exhausted.add(campaign.id)
        else:
            self._runs.wait_for(campaign, "window", opens_at, reason)
        return True

    def _break_off(self, campaign: Campaign) -> None:
        """Too many recipients in a row were refused: ends the run, unless a batch of it is not settled."""
        if not self._runs.break_off(campaign, self._context.settings.refusal_breaker):
            self._runs.wait_a_moment(campaign)
        else:
            self._context.counters.add("refusals_total", channel=campaign.channel, kind="breaker")
        self._claims.breaker.forget(campaign)

    def _finished_batches(self) -> list[Batch]:
        """The next finished batches; on a signal all of them, within the grace time."""
        if self._context.signals.stopping:
            return self._dispatcher.drain(self._context.settings.shutdown_grace_seconds)
        return self._dispatcher.finished()

    def _settle(self, batch: Batch) -> None:
        self._exhausted.discard(batch.campaign.id)
        settled = self._settlements.settle(batch)
        self._claims.give_back(batch, settled.untried)
        self._counts["sent"] += settled.sent
        self._counts["failed"] += settled.failed
        if gmail := batch.transport.gmail:
            revoked = isinstance(batch.rejection, InvalidGrant)
            update_grant(self._db, gmail, self._context.clock(), revoked=revoked)
        if batch.stopped_by_provider:
            self._dispatcher.stop(batch.campaign.id)  # its other batch, too
        self._follow_up(batch, settled)
        if batch.rejection:
            kind = "account" if isinstance(batch.rejection, AccountRejected) else "campaign"
            self._context.counters.add("refusals_total", channel=batch.campaign.channel, kind=kind)
        if batch.refused_in_a_row and self._dispatcher.number_open(batch.campaign.id) == 1:
            self._break_off(batch.campaign)

    def _follow_up(self, batch: Batch, settled: SettlementResult) -> None:
        """A rejection ends the run when its other batches are settled: what was refused in them is pending again."""
        key = batch.campaign.id
        if any(each is not batch and each.campaign.id == key for each in self._dispatcher.open):
            if batch.rejection:
                self._rejected.setdefault(key, batch)
                return
        elif rejected := self._rejected.pop(key, None):
            batch = rejected
        self._runs.follow_up(batch, settled)

    def _measure(self, backlog: CampaignBacklog) -> None:
        self._context.counters.gauge("campaign_pending_recipients", backlog.pending)
        self._context.counters.gauge("campaign_oldest_due_seconds", backlog.oldest_due_seconds)
        self._context.counters.gauge("window_waiting", backlog.outside_hours, kind="campaigns")
        if time.monotonic() - self._quotas_measured_at >= QUOTAS_SECONDS:
            for kind, ratio in self._claims.quotas.used_ratios(self._context.clock()).items():
                self._context.counters.gauge("quota_used_ratio", ratio, account_kind=kind)
            self._quotas_measured_at = time.monotonic()

    def _result(self, survey: Survey, now: datetime) -> TickResult:
        next_scheduled = survey.next_scheduled
        if survey.any_due(now):  # more are due, or the CRM has them locked
            next_scheduled = now + timedelta(seconds=LOCKED_SECONDS)
        due = [each for each in (next_scheduled, survey.next_batch) if each]
        pace_seconds = max(self._context.settings.campaign_batch_delay_seconds, PREPARING_SECONDS)
        paced_until = now + timedelta(seconds=pace_seconds)
        return TickResult(
            self._counts,
            next_at=min([*due, *filter(None, [survey.next_ask])], default=None),
            unfinished=any(at <= paced_until for at in due),
        )


if __name__ == "__main__":
    sys.exit(main())
