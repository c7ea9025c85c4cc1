"""bin/campaign: sends due e-mail and WhatsApp campaigns.

A tick starts what is due, adopts what nobody sends, settles what a dead worker left behind, and then gives
every running campaign one batch after the other: claim, send, settle, tell.
"""

import logging
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta

from worker.campaigns.batch import Batch, Kind, Outcome
from worker.campaigns.claims import ROUND_SECONDS, BatchClaims, OrphanedBatch
from worker.campaigns.dispatcher import Dispatcher
from worker.campaigns.run import LOCKED_SECONDS, PREPARING_SECONDS, CampaignRuns
from worker.campaigns.targets import prepare, write_links
from worker.campaigns.transport import TransportRouter
from worker.errors import AccountRejected, CampaignRejected, RetryLater, SendError, TransportMissing
from worker.providers.google_token import InvalidGrant
from worker.runtime import program
from worker.runtime.db import Row, queries
from worker.runtime.events import LiveEvents
from worker.runtime.job import JobContext, TickResult
from worker.runtime.migrations import require_current
from worker.sending.gmail_grants import update_grant

log = logging.getLogger(__name__)

DESCRIPTION = """\
Sends the due e-mail and WhatsApp campaigns of all tenants, each message once: starts campaigns whose time has
come, gives every running campaign one batch after the other, and settles what a killed worker left behind."""

STUCK_SECONDS = 3.0  # a tick that takes longer waits for a message that hangs


def main(arguments: Sequence[str] | None = None) -> int:
    return program.run_job("campaign", DESCRIPTION, CampaignJob, arguments)


class CampaignJob:
    zone = UTC

    def __init__(self, context: JobContext) -> None:
        """Raises SettingsError for values that only show themselves in use (SMTP_URL, STATE_DIR, DATABASE_URL)."""
        settings, clock = context.settings, context.clock
        self.interval_seconds = settings.campaign_interval_seconds
        self._context = context
        self._db = context.database
        self._sql = queries("campaign")
        self._transports = TransportRouter(settings, context.redis, clock)
        self._batches = BatchClaims(self._db, settings, context.counters, clock)
        self._runs = CampaignRuns(self._db, LiveEvents(context.redis), clock)
        self._dispatcher = Dispatcher(settings.campaign_concurrency, clock)
        self._exhausted: set[str] = set()  # campaigns with a batch on its way and nobody left to claim
        self._counts: dict[str, int] = {}

    def start(self) -> None:
        require_current(self._db)
        self._db.all(self._sql["drop_retries"])
        self._batches.sweep_journals()

    def tick(self, now: datetime) -> TickResult:
        self._counts = dict.fromkeys(("started", "adopted", "sent", "failed", "ended"), 0)
        self._dispatcher.reap()
        todo = self._survey()
        idle = not (todo["any_running"] or todo["next_batch"] or todo["any_batch"] or todo["next_ask"])
        if idle and not (todo["next_scheduled"] and todo["next_scheduled"] <= now):
            self._measure(pending=0.0, oldest_due_seconds=0.0)
            return TickResult(self._counts, todo["next_scheduled"])
        self._look_for_work(now, todo)
        self._send()
        todo = self._survey()
        self._measure(**(self._db.one(self._sql["backlog"], now=self._context.clock()) or {}))
        if todo["next_scheduled"] and todo["next_scheduled"] <= self._context.clock():
            todo["next_scheduled"] = self._context.clock() + timedelta(
                seconds=LOCKED_SECONDS
            )  # more are due, or locked
        due = [todo[key] for key in ("next_scheduled", "next_batch") if todo[key]]
        pace_seconds = max(self._context.settings.campaign_batch_delay_seconds, PREPARING_SECONDS)
        paced_until = self._context.clock() + timedelta(seconds=pace_seconds)
        return TickResult(
            self._counts,
            next_at=min([*due, *filter(None, [todo["next_ask"]])], default=None),
            unfinished=any(at <= paced_until for at in due),
        )

    def close(self) -> bool:
        self._transports.close()
        return self._dispatcher.close()

    def _measure(self, pending: float, oldest_due_seconds: float) -> None:
        self._context.counters.gauge("campaign_pending_recipients", pending)
        self._context.counters.gauge("campaign_oldest_due_seconds", oldest_due_seconds)

    def _survey(self) -> Row:
        return self._db.one(self._sql["survey"]) or {}

    def _look_for_work(self, now: datetime, todo: Row) -> None:
        if todo["any_batch"]:
            self._recover()
        if todo["next_ask"] and todo["next_ask"] <= now:
            self._ask(now)
        self._counts["started"] += self._runs.start_due(now)
        self._runs.disown()
        self._counts["adopted"] += self._runs.adopt(now, self._context.settings.campaign_adopt_after_seconds)

    def _send(self) -> None:
        """Gives every ready run a batch, again and again for a second, and settles each as it ends.

        When a message hangs, so that the tick cannot end, it goes on for the others.
        """
        began = looked = time.monotonic()
        try:
            while True:
                seconds = time.monotonic() - began
                stuck = seconds > STUCK_SECONDS
                if stuck and time.monotonic() - looked > ROUND_SECONDS and self._context.may_continue:
                    self._context.counters.heartbeat(self._context.clock())
                    self._look_for_work(self._context.clock(), self._survey())
                    looked = time.monotonic()
                if (seconds < ROUND_SECONDS or stuck) and self._context.may_continue:
                    self._claim_for_ready_runs()
                if not self._dispatcher.open:
                    return
                for batch in self._finished_batches():
                    with self._runs.contained(batch.campaign["id"]), closing(batch.journal):
                        self._settle(batch)
                    self._dispatcher.forget(batch)
                self._batches.renew(self._dispatcher.open)
        finally:
            # on an error the batches stay claimed, and the next tick settles them from their journals
            self._dispatcher.abandon()
            self._exhausted.clear()

    def _claim_for_ready_runs(self) -> None:
        sending = {batch.campaign["id"] for batch in self._dispatcher.open}
        full = {each for each in sending if self._dispatcher.number_open(each) >= self._batches.side_by_side}
        full |= {batch.campaign["id"] for batch in self._dispatcher.open if batch.halted}  # refused, or put off
        for ready in self._db.all(self._sql["ready"], now=self._context.clock(), busy=list(full | self._exhausted)):
            campaign = self._db.one(self._sql["campaign"], campaign_id=ready["id"])
            if campaign and self._context.may_continue:
                with self._runs.contained(campaign["id"]):
                    self._claim(campaign)

    def _claim(self, campaign: Row) -> None:
        try:
            transport = self._transports.route(campaign)
            if not (campaign["prepared"] or prepare(self._db, self._sql, campaign, self._context.clock())):
                self._runs.wait_for_another(campaign)
                return
            write_links(self._db, self._sql, campaign, transport, self._context.clock())
        except (TransportMissing, CampaignRejected) as error:
            self._runs.fail([campaign["id"]], str(error))
            return
        batch = self._batches.claim(campaign, transport, self._context.lock.token)
        if batch:
            self._dispatcher.add(batch)
        elif self._dispatcher.number_open(campaign["id"]):
            self._exhausted.add(campaign["id"])  # until its last batch is settled
        else:
            self._counts["ended"] += self._runs.end_or_wait(campaign)

    def _finished_batches(self) -> list[Batch]:
        """The next finished batches; on a signal all of them, within the grace time."""
        if self._context.signals.stopping:
            return self._dispatcher.drain(self._context.settings.shutdown_grace_seconds)
        return self._dispatcher.finished()

    def _settle(self, batch: Batch) -> None:
        campaign = batch.campaign
        self._exhausted.discard(campaign["id"])
        settled = self._batches.settle(campaign, batch)
        self._counts["sent"] += settled.sent
        self._counts["failed"] += settled.failed
        self._runs.progress(campaign, settled)
        self._keep_grant(batch)
        reason = str(batch.rejected)
        if batch.rejected or batch.held:
            self._dispatcher.halt(campaign["id"])
        if isinstance(batch.rejected, AccountRejected):
            self._runs.fail_account(batch, reason)
        elif batch.rejected:
            self._runs.fail([campaign["id"]], reason)
        elif batch.held:
            batch.transport.hold(batch.hold_seconds)
            self._runs.held(campaign, batch)

    def _keep_grant(self, batch: Batch) -> None:
        """Saves a refreshed Gmail token, or clears the tokens of a grant that was revoked."""
        if account := batch.transport.gmail:
            revoked = isinstance(batch.rejected, InvalidGrant)
            update_grant(self._db, account, self._context.clock(), revoked=revoked)

    def _recover(self) -> None:
        """Settles the batches of dead workers from what they wrote down."""
        for orphan in self._batches.orphans():
            with self._runs.contained(orphan.row["campaign_id"]), closing(orphan):
                self._recover_one(orphan)

    def _recover_one(self, orphan: OrphanedBatch) -> None:
        campaign = self._db.one(self._sql["campaign"], campaign_id=orphan.row["campaign_id"])
        if campaign is None:
            self._batches.drop(orphan)
            return
        batch = self._batches.recover(orphan, campaign, self._transports.route_or_settle_only(campaign))
        settled = self._batches.settle(campaign, batch)
        kinds = [outcome.kind for outcome in batch.outcomes.values()]
        log.warning(
            "batch of a dead worker settled",
            {"campaign": campaign["id"], "holder": batch.holder, "sent": settled.sent,
             "unconfirmed": kinds.count(Kind.UNCONFIRMED), "recipients": len(batch.recipients)},
        )  # fmt: skip

    def _ask(self, now: datetime) -> None:
        """Asks providers, for a moment, about messages of which nobody knows whether they were sent."""
        until = time.monotonic() + ROUND_SECONDS
        self._db.all(self._sql["drop_unconfirmed"])
        for due in self._db.all(self._sql["due_to_ask"], now=now):
            campaign = self._db.one(self._sql["campaign"], campaign_id=due["campaign_id"])
            if campaign is None or time.monotonic() > until or not self._context.may_continue:
                continue
            transport = self._transports.route_or_settle_only(campaign)
            batch = self._batches.claim_unconfirmed(campaign, transport, due["sender"], self._context.lock.token)
            if batch is None:
                continue
            with self._runs.contained(campaign["id"]), closing(batch.journal):
                self._ask_about(batch)
                self._settle(batch)

    def _ask_about(self, batch: Batch) -> None:
        """Gives each recipient the outcome that the provider knows of; if it cannot be asked, none."""
        reason = None if batch.may_ask else "the connection it was sent through is gone"
        for recipient in batch.recipients:
            try:
                accepted = None if reason else batch.transport.find(recipient)
            except SendError as error:
                reason = str(error)
                # refused, not put off: a grant that was withdrawn, or that only lets us send, will never tell
                batch.may_ask = isinstance(error, RetryLater)
                batch.rejected = error if isinstance(error, InvalidGrant) else None
            if reason:
                outcome = Outcome(Kind.UNCONFIRMED, self._context.clock(), reason)
            elif accepted:
                outcome = Outcome(Kind.ACCEPTED, self._context.clock(), accepted=accepted)
            else:
                outcome = Outcome(Kind.NOT_SENT, self._context.clock(), "the provider does not know it")
            batch.outcomes[recipient.id] = outcome


if __name__ == "__main__":
    sys.exit(main())
