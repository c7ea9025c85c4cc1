"""bin/campaign-sender: sends campaigns that bin/campaign has started, with CAMPAIGN_ENGINE=procrastinate.

Any number of processes run at a time, on any number of machines. Each takes a unit ("send this campaign for some
seconds") from the queue, claims batches, sends and settles them, and settles what a dead process of its machine left.
"""

import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from worker.campaigns.campaign import Campaign
from worker.campaigns.run import LOCKED_SECONDS
from worker.campaigns.sending import STUCK_SECONDS, CampaignSending
from worker.runtime import program
from worker.runtime.db import queries
from worker.runtime.engine import open_queue, require_engine
from worker.runtime.job import JobContext, TickResult
from worker.runtime.migrations import require_current
from worker.runtime.settings import Settings
from worker.sending.quota import QuotaUsedUp

UNIT_SECONDS = 3.0  # how long a unit lasts: after it another tenant may have its turn

DESCRIPTION = """\
Sends campaigns together with other processes of the same kind: takes units of work that bin/campaign has queued.
Needs CAMPAIGN_ENGINE=procrastinate, here and for bin/campaign."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    return program.run_job("campaign-sender", DESCRIPTION, SenderJob, arguments, _why_off)


def _why_off(settings: Settings) -> str | None:
    return None if settings.is_spread else "CAMPAIGN_ENGINE is embedded: bin/campaign sends by itself"


class SenderJob:
    zone = UTC

    def __init__(self, context: JobContext) -> None:
        """Raises SettingsError for values that only show themselves in use, and without the engine's libraries."""
        self.interval_seconds = context.settings.campaign_interval_seconds
        self._db = context.database
        self._sending = CampaignSending(context)
        self._units = open_queue(context.settings, context.signals.request_tick)

    def start(self) -> None:
        require_current(self._db)
        require_engine(self._db)
        self._sending.orphans.sweep_journals()

    def tick(self, now: datetime) -> TickResult:
        if not self._sending.begin_tick():
            return TickResult(self._sending.counts, now + timedelta(seconds=LOCKED_SECONDS), unfinished=True)
        self._units.take_units()
        self._sending.recovery.settle_orphans()
        try:
            if self._units.in_hand:
                self._sending.send(self)
            else:
                self._sending.progress.close()
        finally:
            self._units.end_all()
        return TickResult(self._sending.counts, unfinished=self._any_waiting())

    def _any_waiting(self) -> bool:
        row = self._db.one(queries("engine")["waiting"])
        return bool(row and row["number"])

    def close(self) -> bool:
        self._units.close()
        return self._sending.close()

    def ready(self, busy: set[str], seconds: float) -> Sequence[str]:
        """The campaigns of the units in hand. A unit ends when its time is over, and does not wait for what hangs."""
        ready = []
        for unit in self._units.in_hand:
            over_for = time.monotonic() - unit.began - UNIT_SECONDS
            if over_for < 0:
                ready.append(unit.campaign_id)
            elif over_for > STUCK_SECONDS or not self._sending.dispatcher.number_open(unit.campaign_id):
                unit.end()
        return [each for each in ready if each not in busy]

    def nothing_left(self, campaign: Campaign, used_up: QuotaUsedUp | None) -> None:
        """Whether the run has ended is for bin/campaign to find out."""
        if used_up:
            self._sending.runs.wait_for(campaign, "quota", used_up.until, str(used_up))

    def left_out(self, campaign_id: str) -> None:
        for unit in self._units.in_hand:
            if unit.campaign_id == campaign_id:
                unit.end()

    def look(self) -> None:
        """What else there is to do is done by the next tick, or by bin/campaign."""


if __name__ == "__main__":
    sys.exit(main())
