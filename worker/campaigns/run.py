"""What happens to a campaign as a whole: it starts, is taken over or given up, waits, fails or ends, and who is told.

Every change is written first; then the log and the CRM's pages hear of it.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

import psycopg2

from worker.campaigns.batch import Batch, Kind
from worker.campaigns.claims import SettlementResult
from worker.runtime.db import Database, Row, is_unavailable, queries
from worker.runtime.events import LiveEvents

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 0.5  # the pages hear of one campaign's progress no more often
LOCKED_SECONDS = 0.2  # until rows are looked at again that somebody had locked
PREPARING_SECONDS = 1.0  # until a run is looked at again that another worker prepares
LOOK_AGAIN_SECONDS = 10.0  # at a campaign whose last recipients another process holds
REFUSED_SECONDS = 300.0  # how long a campaign waits whose rows the database refused
WAIT_LIMIT_SECONDS = 60.0  # how long a campaign that has nobody to send to now is left unlooked at


class CampaignRuns:
    """The running campaigns of the worker."""

    def __init__(self, db: Database, events: LiveEvents, clock: Callable[[], datetime]) -> None:
        self._db = db
        self._events = events
        self._clock = clock
        self._sql = queries("campaign")
        self._told_at: dict[str, float] = {}  # time.monotonic() of the last progress event

    def start_due(self, now: datetime) -> int:
        """Starts the campaigns whose time has come and returns how many."""
        started = self._db.all(self._sql["start_due"], now=now)
        for row in started:
            log.info(
                "campaign started",
                {"campaign": row["id"], "tenant": row["tenantId"], "channel": row["channel"],
                 "recipients": row["totalRecipients"]},
            )  # fmt: skip
        return len(started)

    def disown(self) -> None:
        """Gives up the runs that are no longer the worker's."""
        for row in self._db.all(self._sql["disown"]):
            self._told_at.pop(row["id"], None)
            log.info("campaign given up: paused, stopped or resumed in the CRM", {"campaign": row["id"]})

    def adopt(self, now: datetime, after_seconds: float) -> int:
        """Takes over running campaigns that nobody has touched for so long, and returns how many."""
        adopted = self._db.all(self._sql["adopt"], now=now, quiet_seconds=after_seconds)
        for row in adopted:
            log.info("campaign adopted: nobody was sending it", {"campaign": row["id"]})
        return len(adopted)

    def progress(self, campaign: Row, settled: SettlementResult) -> None:
        """After a batch: one DEBUG line, and now and then an event for the user's page."""
        counts = settled.campaign
        if counts is None:
            return
        log.debug("batch settled", {"campaign": campaign["id"], "sent": settled.sent, "failed": settled.failed})
        now = time.monotonic()
        if now - self._told_at.get(campaign["id"], -PROGRESS_SECONDS) >= PROGRESS_SECONDS:
            self._told_at[campaign["id"]] = now
            self._tell(campaign["userId"], "campaign:progress", {"campaignId": campaign["id"], **counts})

    def held(self, campaign: Row, batch: Batch) -> None:
        """The provider put off a handful of messages in a row: the campaign waits as a whole."""
        reason = next((each.reason for each in batch.outcomes.values() if each.kind is Kind.DEFERRED), "its pace")
        log.warning(
            "campaign waits: the provider puts its messages off",
            {"campaign": campaign["id"], "reason": reason},
        )

    def fail(self, campaign_ids: list[str], reason: str) -> None:
        """Ends runs that cannot go on; their recipients stay pending."""
        for row in self._db.all(self._sql["fail"], campaign_ids=campaign_ids, reason=reason, now=self._clock()):
            self._told_at.pop(row["id"], None)
            log.error("campaign failed", {"campaign": row["id"], "tenant": row["tenantId"], "reason": reason})
            self._tell(row["userId"], "campaign:failed", {"campaignId": row["id"], "error": reason})

    def fail_account(self, batch: Batch, reason: str) -> None:
        """Ends all runs that send through the account that was refused: a user's Gmail, a tenant's WhatsApp.

        SMTP_URL is the operator's: each campaign finds out by itself whether it works again.
        """
        campaign, gmail = batch.campaign, batch.transport.gmail
        if campaign["channel"] == "email" and gmail is None:
            self.fail([campaign["id"]], reason)
            return
        rows = self._db.all(
            self._sql["account_runs"],
            tenant_id=campaign["tenantId"],
            channel=campaign["channel"],
            user_id=gmail and gmail.user_id,
        )
        self.fail([row["id"] for row in rows], reason)

    @contextmanager
    def contained(self, campaign_id: str) -> Iterator[None]:
        """Keeps what the database refuses for one campaign (a row deleted meanwhile, say) from the others' work.

        The campaign waits; a batch of it that was sent stays claimed, and is settled from its journal when it can be.
        """
        try:
            yield
        except psycopg2.Error as error:
            if is_unavailable(error):
                raise
            reason = error.diag.message_primary or type(error).__name__  # its details may hold addresses
            log.error("campaign waits: the database refuses its rows", {"campaign": campaign_id, "reason": reason})
            until = self._clock() + timedelta(seconds=REFUSED_SECONDS)
            self._db.all(self._sql["postpone"], campaign_id=campaign_id, next_batch_at=until, holds=0)

    def end_or_wait(self, campaign: Row) -> bool:
        """Nothing of the run could be claimed: ends it if all is settled (True), else says when to look again."""
        now, which = self._clock(), {"campaign_id": campaign["id"]}
        left = self._db.one(self._sql["remaining"], **which)
        if left is None:
            return False  # somebody else ended it
        if left["ahead"]:
            self._wait(campaign, now + timedelta(seconds=LOCKED_SECONDS))  # locked by the CRM just now
        elif left["behind"]:
            again = now + timedelta(seconds=PREPARING_SECONDS)
            self._db.all(self._sql["unprepare"], next_batch_at=again, **which)
        elif left["held_elsewhere"]:
            self._wait(campaign, now + timedelta(seconds=LOOK_AGAIN_SECONDS))
        elif left["next_retry"] or left["next_ask"]:
            due = min(each for each in (left["next_retry"], left["next_ask"]) if each)
            # an overdue one may be locked by the CRM just now; a far one may be overtaken by added recipients
            soonest, latest = (now + timedelta(seconds=each) for each in (LOCKED_SECONDS, WAIT_LIMIT_SECONDS))
            self._wait(campaign, min(max(due, soonest), latest))
        else:
            return self._end(campaign, now)
        return False

    def wait_for_another(self, campaign: Row) -> None:
        """Another worker prepares the run."""
        self._wait(campaign, self._clock() + timedelta(seconds=PREPARING_SECONDS))

    def _wait(self, campaign: Row, until: datetime) -> None:
        self._db.all(self._sql["postpone"], campaign_id=campaign["id"], next_batch_at=until, holds=campaign["holds"])

    def _end(self, campaign: Row, now: datetime) -> bool:
        with self._db.transaction():
            self._db.all(self._sql["fail_lost"], campaign_id=campaign["id"], now=now)
            ended = self._db.one(self._sql["finish"], campaign_id=campaign["id"], now=now)
        if ended is None:
            self._wait(campaign, now + timedelta(seconds=LOOK_AGAIN_SECONDS))
            return False
        self._told_at.pop(campaign["id"], None)
        seconds = max((now - campaign["started_at"]).total_seconds(), 0.001)
        counts = {key: ended[key] for key in ("sentCount", "failedCount", "totalRecipients")}
        log.info(
            "campaign ended",
            {"campaign": campaign["id"], "status": ended["status"], "sent": ended["sentCount"],
             "failed": ended["failedCount"], "seconds": round(seconds, 1),
             "per_second": round(ended["sentCount"] / seconds)},
        )  # fmt: skip
        if ended["status"] == "failed":
            error = {"campaignId": campaign["id"], "error": "Every send failed"}
            self._tell(campaign["userId"], "campaign:failed", error)
        else:
            self._tell(campaign["userId"], "campaign:completed", {"campaignId": campaign["id"], "stats": counts})
        return True

    def _tell(self, user_id: str, event: str, payload: dict[str, object]) -> None:
        self._events.emit(f"user:{user_id}", event, payload)
