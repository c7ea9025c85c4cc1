"""What bin/campaign does instead of sending, with CAMPAIGN_ENGINE=procrastinate: it queues units for the senders.

It stays the only one that prepares runs and completes them. A unit is queued where somebody can be written to now.
"""

import logging

from worker.campaigns.sending import CampaignSending
from worker.campaigns.unit_shares import QueuedUnit, ReadyRun, next_units
from worker.runtime.db import queries
from worker.runtime.engine import open_queue, require_engine
from worker.runtime.job import JobContext

log = logging.getLogger(__name__)

QUEUE_SECONDS = 0.5  # how often units are queued while campaigns run


class UnitScheduler:
    """The units of all runs."""

    def __init__(self, context: JobContext, sending: CampaignSending) -> None:
        """Raises SettingsError when the engine's libraries are not installed."""
        self._context = context
        self._db = context.database
        self._sending = sending
        self._runs = sending.runs
        self._queue = open_queue(context.settings)
        self._sql = queries("engine")
        self._said_no_sender = False

    def start(self) -> None:
        """Raises SchemaError and SettingsError when the engine cannot be used."""
        require_engine(self._db)

    def queue(self) -> None:
        """Prepares and ends runs, takes back the units of lost senders, and queues what is missing."""
        for campaign_id in self._queue.take_back():
            log.warning("unit taken back: its sender gave no sign of life", {"campaign": campaign_id})
        runs = self._ready_runs()
        if not runs:
            return
        settings = self._context.settings
        units = [QueuedUnit(**row) for row in self._db.all(self._sql["units"])]
        senders = self._db.all(self._sql["senders"], timeout_seconds=settings.campaign_sender_timeout_seconds)
        if not (senders or self._said_no_sender):
            log.warning("campaigns wait: no bin/campaign-sender takes their units", {"campaigns": len(runs)})
        self._said_no_sender = not senders
        for unit in next_units(runs, units, spread=settings.campaign_spread, senders=len(senders)):
            if not self._context.may_continue:
                return
            self._queue.add(unit.campaign_id, unit.number)

    def close(self) -> None:
        self._queue.close()

    def _ready_runs(self) -> list[ReadyRun]:
        """Those with somebody to write to; the others are prepared, end or wait."""
        ready = []
        for row in self._db.all(self._sql["ready"], now=self._context.clock()):
            campaign_id = row["campaign_id"]
            with self._runs.contained(campaign_id):
                if (row["prepared"] and row["has_due"]) or (self._looked_after(campaign_id, row["prepared"])):
                    ready.append(ReadyRun(campaign_id, row["tenant_id"]))
        return ready

    def _looked_after(self, campaign_id: str, prepared: bool) -> bool:
        """Whether the run could be prepared just now. A prepared one ends, or waits."""
        campaign = self._runs.find(campaign_id)
        if campaign is None:
            self._runs.fail([campaign_id], "its tenant was deleted")  # nothing, if it was deleted itself
        elif not prepared:
            return self._sending.transport(campaign) is not None
        else:
            self._sending.counts["ended"] += self._runs.end_or_wait(campaign)
        return False
