"""A campaign as a whole: it starts, is adopted or given up, waits, fails or ends.

Every change is written to the database first; then it is logged and published to the CRM's pages.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

import psycopg2

from worker.campaigns.batch import BackoffCause, Batch, BatchState
from worker.campaigns.campaign import Campaign
from worker.campaigns.campaign_events import CampaignEvents
from worker.campaigns.deferrals import why_ended
from worker.campaigns.sending_hours import OUTSIDE
from worker.campaigns.settlement import SettlementResult
from worker.campaigns.survey import CampaignBacklog, RemainingWork, Survey
from worker.content.reply_pattern import without_other_addresses
from worker.errors import AccountRejected
from worker.runtime.campaign_settings import DEFAULT_MESSAGE_MAX_BYTES, DEFAULT_REFUSAL_BREAKER
from worker.runtime.counters import Counters
from worker.runtime.db import Database, Row, is_unavailable, queries
from worker.runtime.events import LiveEvents
from worker.sending.quota import QuotaUsedUp

log = logging.getLogger(__name__)

LOCKED_SECONDS = 0.2  # until rows are looked at again that another session had locked
PREPARING_SECONDS = 1.0  # until a run is looked at again that another worker prepares
LOOK_AGAIN_SECONDS = 10.0  # the usual one
REFUSED_SECONDS = 300.0  # how long a campaign waits whose rows the database refused
WAIT_LIMIT_SECONDS = 60.0  # the longest time until a campaign is looked at again that has no recipient to claim now
# SQLSTATEs of a statement that the server cannot take: "invalid message length", out of memory
STATEMENT_TOO_LARGE = ("08P01", "53200")
SHUT_DOWN = "57P"  # SQLSTATEs of a server that is shut down
BROKEN_IN_A_ROW = 3  # so often a campaign's statement breaks the connection until that counts as the campaign's fault


class CampaignRuns:
    """The campaigns that the worker sends."""

    def __init__(
        self,
        db: Database,
        events: LiveEvents,
        counters: Counters,
        clock: Callable[[], datetime],
        *,
        message_max_bytes: int = DEFAULT_MESSAGE_MAX_BYTES,
        refusal_breaker: int = DEFAULT_REFUSAL_BREAKER,
        look_again_seconds: float | None = None,
    ) -> None:
        """Texts that make a message larger than ``message_max_bytes`` are not read.

        ``refusal_breaker``: so many recipients in a row that are refused with the same reply end a run.
        ``look_again_seconds``: until a campaign is looked at again whose last recipients another process holds.
        """
        self._db = db
        self._look_again_seconds = look_again_seconds or LOOK_AGAIN_SECONDS
        self._message_max_bytes = message_max_bytes
        self._refusal_breaker = refusal_breaker
        self._events = CampaignEvents(events)
        self._counters = counters
        self._clock = clock
        self._sql = queries("campaign")
        self._broke_connection: Counter[str] = Counter()  # campaigns whose statements lost the server, times in a row

    def survey(self) -> Survey:
        [row] = self._db.all(self._sql["survey"])
        return Survey(**row)

    def backlog(self) -> CampaignBacklog:
        [row] = self._db.all(self._sql["backlog"], now=self._clock())
        return CampaignBacklog(**row)

    def ready(self, busy: Iterable[str]) -> list[str]:
        """The ids of campaigns that may send a batch now, the longest waiting first, without those that are busy."""
        rows = self._db.execute_prepared("ready", self._sql["ready"], now=self._clock(), busy=list(busy))
        return [row["id"] for row in rows]

    def find(self, campaign_id: str) -> Campaign | None:
        """The campaign as it is now; None when it or its tenant was deleted."""
        row = self._db.execute_one_prepared(
            "campaign", self._sql["campaign"], campaign_id=campaign_id, largest=self._message_max_bytes
        )
        return Campaign.from_row(row) if row else None

    def start_due(self, now: datetime) -> int:
        """Starts the campaigns whose time has come and returns how many."""
        started = self._db.execute(self._sql["start_due"], now=now)
        for row in started:
            log.info(
                "campaign started",
                {"campaign": row["id"], "tenant": row["tenantId"], "channel": row["channel"],
                 "recipients": row["totalRecipients"]},
            )  # fmt: skip
        return len(started)

    def disown(self) -> None:
        """Gives up the runs that are not the worker's any more."""
        for row in self._db.execute(self._sql["disown"]):
            self._events.forget(row["id"])
            log.info("campaign given up: paused, stopped, resumed or started in the CRM", {"campaign": row["id"]})

    def adopt(self, now: datetime, after_seconds: float) -> int:
        """Takes over running campaigns in which nothing has changed for so long, and returns how many."""
        adopted = self._db.execute(self._sql["adopt"], now=now, quiet_seconds=after_seconds)
        for row in adopted:
            log.info("campaign adopted: no process was sending it", {"campaign": row["id"]})
        return len(adopted)

    def follow_up(self, batch: Batch, settled: SettlementResult) -> None:
        """What a settled batch means for its campaign: progress, a backoff, or the end."""
        if settled.counts:
            counted = {"campaign": batch.campaign.id, "sent": settled.sent, "failed": settled.failed}
            log.debug("batch settled", counted)
            self._events.progress(batch.campaign, settled.counts)
        if batch.state is BatchState.REJECTED:
            self._fail_rejected(batch)
        elif batch.state is BatchState.BACKING_OFF:
            # a wait for the pace is there already, and a lack of memory says nothing about the account
            if batch.backoff_cause in (BackoffCause.DEFERRED, BackoffCause.NO_ANSWER):
                batch.transport.back_off(batch.delay_seconds)
            reason = without_other_addresses(batch.reason, None)
            log.warning(batch.backoff_cause, {"campaign": batch.campaign.id, "reason": reason})
            if why := why_ended(batch, settled.backoffs, reason):
                self.fail([batch.campaign.id], why)

    def fail(self, campaign_ids: list[str], reason: str) -> None:
        """Ends runs that cannot go on; their recipients stay pending."""
        for row in self._end_settled("fail", campaign_ids, reason=reason):
            self._report_failure(row, reason)

    def break_off(self, campaign: Campaign) -> bool:
        """Ends a run of which too many recipients in a row were refused with the same reply; they are pending again.

        False while a batch of it is not settled, or when a message was accepted meanwhile.
        """
        rows = self._end_settled("break_off", [campaign.id], campaign_id=campaign.id, limit=self._refusal_breaker)
        for row in rows:
            self._counters.add("refusals_total", channel=campaign.channel, kind="breaker")
            self._report_failure(row, row["reason"])
        return bool(rows)

    @contextmanager
    def contained(self, campaign_id: str) -> Iterator[None]:
        """Limits what the database refuses for one campaign (a row deleted meanwhile, say) to that campaign.

        The campaign waits. A batch of it that was sent stays claimed, and is settled from its journal when it can be.
        So does a campaign that needs more memory than there is, or whose statements break the connection again and
        again while those before them were answered.
        """
        try:
            yield
        except MemoryError:
            self._postpone(campaign_id, "it needs more memory than there is")
        except psycopg2.Error as error:
            if is_unavailable(error) and not self._breaks_connection(campaign_id, error):
                raise
            # the details may hold addresses
            self._postpone(campaign_id, error.diag.message_primary or type(error).__name__)
        else:
            self._broke_connection.pop(campaign_id, None)

    def _breaks_connection(self, campaign_id: str, error: psycopg2.Error) -> bool:
        """Whether it is this campaign's statement, and no outage, that the server was lost by."""
        code = error.pgcode or ""
        if code in STATEMENT_TOO_LARGE:
            return True
        if not code.startswith(SHUT_DOWN):
            self._broke_connection[campaign_id] += 1
        return self._broke_connection[campaign_id] >= BROKEN_IN_A_ROW

    def _postpone(self, campaign_id: str, reason: str) -> None:
        log.error("campaign waits: the database refuses its rows", {"campaign": campaign_id, "reason": reason})
        self._wait_until(campaign_id, self._clock() + timedelta(seconds=REFUSED_SECONDS), backoffs=0)
        self._broke_connection.pop(campaign_id, None)

    def end_or_wait(self, campaign: Campaign, used_up: QuotaUsedUp | None = None) -> bool:
        """Nothing of the run could be claimed: ends it if all is settled (True), else says when to look again.

        ``used_up``: nothing was tried to be claimed, since its account may not send more for now.
        """
        now = self._clock()
        row = self._db.one(self._sql["remaining"], campaign_id=campaign.id)
        if row is None:
            return False  # another process ended it
        left = RemainingWork(**row)
        if used_up and left.has_due(now):
            self.wait_for(campaign, "quota", used_up.until, str(used_up))
        elif left.ahead:
            self._wait(campaign, now + timedelta(seconds=LOCKED_SECONDS))  # the CRM writes to these rows just now
        elif left.behind:
            again = now + timedelta(seconds=PREPARING_SECONDS)
            self._db.execute(self._sql["unprepare"], next_batch_at=again, campaign_id=campaign.id)
        elif left.claimed_elsewhere:
            self._wait(campaign, now + timedelta(seconds=self._look_again_seconds))
        elif left.next_retry or left.next_ask:
            due = min(each for each in (left.next_retry, left.next_ask) if each)
            if due == left.next_retry and due > now and (left.next_retry_reason or "").startswith(OUTSIDE):
                self.wait_for(campaign, "window", due, str(left.next_retry_reason))
                return False
            # an overdue row may be locked by the CRM; before a far one, recipients may be added
            soonest, latest = (now + timedelta(seconds=each) for each in (LOCKED_SECONDS, WAIT_LIMIT_SECONDS))
            self._wait(campaign, min(max(due, soonest), latest))
        else:  # all is settled: now the streaks of all processes are in the database
            return not self.break_off(campaign) and self._end(campaign, now)
        return False

    def wait_for(self, campaign: Campaign, what: str, until: datetime, reason: str) -> None:
        """Nothing may be sent for a reason that the campaign's user is told, once in a wait: ``what`` is 'quota' or
        'window', ``reason`` the words for it.

        The campaign is looked at again at least every minute: something may become free, or be allowed, sooner.
        """
        now = self._clock()
        row = self._db.execute_one(
            self._sql["wait_for"],
            campaign_id=campaign.id,
            next_batch_at=min(until, now + timedelta(seconds=WAIT_LIMIT_SECONDS)),
            waits_for=what,
            waits_until=until,
            message=f"Waits until {until:%Y-%m-%d %H:%M} UTC: {reason}",
            now=now,
        )
        if row and row["is_new"]:
            log.info(
                "campaign waits for its account or its hours",
                {"campaign": campaign.id, "until": f"{until:%Y-%m-%dT%H:%MZ}", "reason": reason},
            )

    def wait_a_moment(self, campaign: Campaign) -> None:
        """Another worker prepares the run or has a batch of it, or the limit of its number is being read."""
        again = self._clock() + timedelta(seconds=PREPARING_SECONDS)
        self._db.execute(self._sql["look_again"], campaign_id=campaign.id, next_batch_at=again)

    def _fail_rejected(self, batch: Batch) -> None:
        """A refused account ends all runs that send through it: through a user's Gmail, or a tenant's WhatsApp.

        SMTP_URL is the operator's: each campaign finds out by itself whether it works again.
        """
        campaign, gmail = batch.campaign, batch.transport.gmail
        shared = campaign.channel != "email" or gmail is not None
        if not (isinstance(batch.rejection, AccountRejected) and shared):
            self.fail([campaign.id], batch.reason)
            return
        rows = self._db.all(
            self._sql["account_runs"],
            tenant_id=campaign.tenant_id,
            channel=campaign.channel,
            user_id=gmail and gmail.user_id,
        )
        self.fail([row["id"] for row in rows], batch.reason)

    def _end_settled(self, statement: str, campaign_ids: list[str], **more: Any) -> list[Row]:
        """A settlement is finished before, and its refusals are seen; or it comes later, and sees that the run has
        ended."""
        with self._db.transaction():
            self._db.execute(self._sql["lock_runs"], campaign_ids=campaign_ids)
            return self._db.execute(self._sql[statement], campaign_ids=campaign_ids, now=self._clock(), **more)

    def _report_failure(self, row: Row, reason: str) -> None:
        log.error("campaign failed", {"campaign": row["id"], "tenant": row["tenantId"], "reason": reason})
        self._events.failed(row["id"], row["user_id"], reason)

    def _wait(self, campaign: Campaign, until: datetime) -> None:
        self._wait_until(campaign.id, until, campaign.backoffs)

    def _wait_until(self, campaign_id: str, until: datetime, backoffs: int) -> None:
        """A later time that another process has set stays."""
        self._db.execute(
            self._sql["postpone"], campaign_id=campaign_id, next_batch_at=until, backoffs=backoffs, now=self._clock()
        )

    def _end(self, campaign: Campaign, now: datetime) -> bool:
        with self._db.transaction():
            which = {"campaign_id": campaign.id, "tenant_id": campaign.tenant_id, "now": now}
            self._db.execute(self._sql["fail_lost"], **which)
            ended = self._db.execute_one(self._sql["finish"], **which)
        if ended is None:
            self._wait(campaign, now + timedelta(seconds=self._look_again_seconds))
            return False
        counts = {key: ended[key] for key in ("sentCount", "failedCount", "totalRecipients")}
        seconds = max((now - (campaign.started_at or now)).total_seconds(), 0.001)
        log.info(
            "campaign ended",
            {"campaign": campaign.id, "status": ended["status"], "sent": ended["sentCount"],
             "failed": ended["failedCount"], "seconds": round(seconds, 1),
             "per_second": round(ended["sentCount"] / seconds)},
        )  # fmt: skip
        if ended["status"] == "failed":
            self._events.failed(campaign.id, campaign.user.user_id, "Every send failed")
        else:
            self._events.completed(campaign.id, campaign.user.user_id, counts)
        return True
