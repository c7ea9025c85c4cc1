"""bin/campaign: sends due e-mail and WhatsApp campaigns.

A tick starts what is due, adopts what no process sends, settles what a dead worker left behind, and then gives
every running campaign one batch after the other: claim, send, settle, publish. With CAMPAIGN_ENGINE=procrastinate it
queues units for bin/campaign-sender instead of sending.
"""

import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from worker.campaign_commands.arguments import parser
from worker.campaigns.campaign import Campaign
from worker.campaigns.claims import ROUND_SECONDS
from worker.campaigns.run import LOCKED_SECONDS, PREPARING_SECONDS
from worker.campaigns.sending import STUCK_SECONDS, CampaignSending
from worker.campaigns.survey import CampaignBacklog, Survey
from worker.campaigns.unit_scheduler import QUEUE_SECONDS, UnitScheduler
from worker.runtime import program
from worker.runtime.db import queries
from worker.runtime.job import JobContext, TickResult
from worker.runtime.migrations import require_current
from worker.sending.quota import QuotaUsedUp

QUOTAS_SECONDS = 60.0  # from one measurement of what the accounts used to the next


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    options = parser().parse_args(arguments)
    if options.command:
        from worker.campaign_commands import command_line  # the job itself does without

        return program.run_main(lambda: command_line.run(options))
    return program.run_loop("campaign", CampaignJob, options)


class CampaignJob:
    zone = UTC

    def __init__(self, context: JobContext) -> None:
        """Raises SettingsError for values that only show themselves in use (SMTP_URL, STATE_DIR, DATABASE_URL)."""
        self.interval_seconds = context.settings.campaign_interval_seconds
        self._context = context
        self._db = context.database
        spread = context.settings.is_spread
        self._sending = CampaignSending(context, QUEUE_SECONDS if spread else None)
        self._runs = self._sending.runs
        self._units = UnitScheduler(context, self._sending) if spread else None
        self._quotas_measured_at = -QUOTAS_SECONDS

    def start(self) -> None:
        require_current(self._db)
        if self._units:
            self._units.start()
        self._db.execute(queries("campaign")["drop_retries"])
        self._db.execute(queries("campaign")["drop_progress"])
        self._sending.claims.start()
        self._sending.orphans.sweep_journals()

    def tick(self, now: datetime) -> TickResult:
        if not self._sending.begin_tick():
            return TickResult(self._sending.counts, now + timedelta(seconds=LOCKED_SECONDS), unfinished=True)
        survey = self._runs.survey()
        if survey.is_idle(now):
            self._measure(CampaignBacklog())
            self._sending.progress.close()
            return TickResult(self._sending.counts, survey.next_scheduled)
        self._look_for_work(now, survey)
        if self._units:
            self._units.queue()
        else:
            self._sending.send(self)
        self._measure(self._runs.backlog())
        return self._result(self._runs.survey(), self._context.clock())

    def close(self) -> bool:
        if self._units:
            self._units.close()
        return self._sending.close()

    def ready(self, busy: set[str], seconds: float) -> Sequence[str]:
        """For one round; while a message hangs, so that the tick cannot end, the other campaigns go on."""
        return self._runs.ready(busy) if not ROUND_SECONDS <= seconds <= STUCK_SECONDS else ()

    def nothing_left(self, campaign: Campaign, used_up: QuotaUsedUp | None) -> None:
        self._sending.counts["ended"] += self._runs.end_or_wait(campaign, used_up)

    def left_out(self, campaign_id: str) -> None:
        """It waits, or has ended: the database says so at the next look."""

    def look(self) -> None:
        self._look_for_work(self._context.clock(), self._runs.survey())

    def _look_for_work(self, now: datetime, survey: Survey) -> None:
        if survey.any_batch:
            self._sending.recovery.settle_orphans()
        if survey.next_ask and survey.next_ask <= now:
            self._sending.recovery.ask(now, self._sending.settle)
        self._sending.counts["started"] += self._runs.start_due(now)
        self._runs.disown()
        adopt_after = self._context.settings.campaign_adopt_after_seconds
        self._sending.counts["adopted"] += self._runs.adopt(now, adopt_after)

    def _measure(self, backlog: CampaignBacklog) -> None:
        self._context.counters.gauge("campaign_pending_recipients", backlog.pending)
        self._context.counters.gauge("campaign_oldest_due_seconds", backlog.oldest_due_seconds)
        self._context.counters.gauge("window_waiting", backlog.outside_hours, kind="campaigns")
        if time.monotonic() - self._quotas_measured_at >= QUOTAS_SECONDS:
            for kind, ratio in self._sending.claims.quotas.used_ratios(self._context.clock()).items():
                self._context.counters.gauge("quota_used_ratio", ratio, account_kind=kind)
            self._quotas_measured_at = time.monotonic()

    def _result(self, survey: Survey, now: datetime) -> TickResult:
        next_scheduled = survey.next_scheduled
        if survey.any_due(now):  # more are due, or the CRM has them locked
            next_scheduled = now + timedelta(seconds=LOCKED_SECONDS)
        next_batch = survey.next_batch
        if self._units and next_batch:
            next_batch = max(next_batch, now + timedelta(seconds=QUEUE_SECONDS))
        due = [each for each in (next_scheduled, next_batch) if each]
        pace_seconds = max(self._context.settings.campaign_batch_delay_seconds, PREPARING_SECONDS)
        paced_until = now + timedelta(seconds=pace_seconds)
        return TickResult(
            self._sending.counts,
            next_at=min([*due, *filter(None, [survey.next_ask])], default=None),
            unfinished=any(at <= paced_until for at in due),
        )


if __name__ == "__main__":
    sys.exit(main())
