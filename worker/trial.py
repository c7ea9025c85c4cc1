"""bin/trial: suspends expired trials, and notifies each tenant's contact and the operator by e-mail.

A tick suspends all expired trials in one short transaction, which also writes down who has to be notified; then it
sends the notifications that wait (worker/notifications/). Whatever becomes of an e-mail, the suspensions stand.
"""

import logging
import re
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from worker.content.campaign import Sender
from worker.content.one_line import printable
from worker.content.trial import (
    LISTED,
    contact_email,
    contact_values,
    owner_email,
    owner_values,
    read_summary,
    read_tenant,
)
from worker.notifications.claims import Deferral, NotificationClaims
from worker.notifications.delivery import Delivery
from worker.notifications.dispatcher import THREADS, NotificationDispatcher
from worker.notifications.notification import Notification, OutgoingMessage
from worker.runtime import program
from worker.runtime.db import queries
from worker.runtime.job import JobContext, TickResult
from worker.runtime.migrations import require_current
from worker.sending.accounts import SendingAccounts
from worker.sending.outbox import OutboxEmail
from worker.sending.outcomes import NextStep, OutcomeKind, RetryPolicy
from worker.sending.suppression import SuppressionList, suppress

log = logging.getLogger(__name__)

DESCRIPTION = """\
Suspends the tenants whose free trial has expired and deactivates their users, at every start and every hour. Each
tenant's contact and OWNER_EMAIL get one e-mail about it."""

LOCKED_SECONDS = 60.0  # until a tenant is looked at again that another session had locked
SENDING_SECONDS = 30.0  # then the tick ends; the next one suspends what has expired before it goes on sending
NEXT_TICK_SECONDS = 1.0  # the shortest pause between two ticks
HEARTBEAT_SECONDS = 10.0
CHUNK = 100  # notifications claimed at once
FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 60.0, 6 * 3600.0
MAX_ATTEMPTS = 12
KEPT = timedelta(days=7)  # notifications that could not be sent for so long are dropped


def main(arguments: Sequence[str] | None = None) -> int:
    return program.run_job("trial", DESCRIPTION, TrialJob, arguments)


class TrialJob:
    zone = UTC

    def __init__(self, context: JobContext) -> None:
        """Raises SettingsError for values that only show themselves in use (SMTP_URL, DATABASE_URL)."""
        settings, clock = context.settings, context.clock
        self.interval_seconds = settings.trial_check_interval_seconds
        self._context = context
        self._db = context.database
        self._sql = queries("trial")
        self._accounts = SendingAccounts(settings, context.redis, clock, THREADS, lambda: context.signals.stopping)
        self._claims = NotificationClaims(self._db, context.name)
        self._dispatcher = NotificationDispatcher(
            self._claims, context.signals, settings.shutdown_grace_seconds, clock, settings.message_max_bytes
        )
        self._policy = RetryPolicy(
            max_attempts=MAX_ATTEMPTS,
            first_delay_seconds=FIRST_DELAY_SECONDS,
            longest_delay_seconds=LONGEST_DELAY_SECONDS,
            resend_unconfirmed=settings.unconfirmed_sends == "resend",
            after_rejection=NextStep.RETRY,
        )
        self._missing = [
            name
            for name, value in (("OWNER_EMAIL", settings.owner_email), ("SMTP_URL", settings.smtp_url))
            if not value
        ]
        owner = settings.owner_email or "nobody@localhost.invalid"  # nothing is sent then
        sender = self._accounts.through_smtp(Sender(settings.company_name, owner))
        self._contact_email = contact_email(sender.name, sender.email, sender.reply_to)
        self._owner_email = owner_email(sender.name, sender.email, sender.reply_to)
        self._heartbeat_at = time.monotonic()
        self._counts: dict[str, int] = {}

    def start(self) -> None:
        require_current(self._db)
        if self._missing:
            log.warning(
                "notifications about suspended trials cannot be sent; they wait for 7 days",
                {"set": " and ".join(self._missing)},
            )

    def tick(self, now: datetime) -> TickResult:
        # cut to milliseconds as in the tables, which would round it up: what is due now must not be due later
        now = now.replace(microsecond=now.microsecond // 1000 * 1000)
        self._counts = dict.fromkeys(("suspended", "users", "told", "failed"), 0)
        left = self._suspend(now)
        self._drop_stale(now)
        self._claims.release_orphans(now, self._dispatcher.in_hand)
        due = [now + timedelta(seconds=LOCKED_SECONDS)] if left else []
        if self._missing:
            return TickResult(self._counts, min(due, default=None), may_rest=True)
        self._notify(now)
        next_due = self._claims.next_due()
        if next_due:
            due.append(max(next_due, now + timedelta(seconds=NEXT_TICK_SECONDS)))
        return TickResult(
            self._counts,
            min(due, default=None),
            unfinished=bool(next_due and next_due <= now),
            may_rest=not self._dispatcher.in_hand,
        )

    def close(self) -> bool:
        self._accounts.close()
        return self._dispatcher.close()

    def _suspend(self, now: datetime) -> bool:
        """Suspends what has expired; returns whether a tenant was left because another session had locked it."""
        done = None
        with self._db.transaction():
            # in a statement of its own: the next ones see whatever was committed before the locks were taken
            ids = [row["id"] for row in self._db.execute(self._sql["lock_expired"], now=now)]
            if ids:
                self._db.execute(self._sql["supersede"], ids=ids)
                owner = self._context.settings.owner_email
                done = self._db.execute_one(self._sql["suspend"], ids=ids, now=now, owner=owner, listed=LISTED)
        if done:
            self._counts["suspended"], self._counts["users"] = done["tenants"], done["users"]
            self._context.counters.add("trials_suspended_total", done["tenants"])
            log.info("expired trials suspended", {"tenants": done["tenants"], "users": done["users"]})
        left = self._db.one(self._sql["any_expired"], now=now)
        return bool(left and left["found"])

    def _drop_stale(self, now: datetime) -> None:
        dropped = self._db.execute(self._sql["drop_stale"], oldest=now - KEPT)
        too_old = sum(row["too_old"] for row in dropped)
        if too_old:
            log.warning("notifications about trials dropped: they waited for 7 days", {"mails": too_old})
        if len(dropped) > too_old:
            log.info(
                "notifications about trials dropped: their tenants are no longer suspended",
                {"mails": len(dropped) - too_old},
            )

    def _notify(self, now: datetime) -> None:
        """Sends what waits, for a limited time."""
        until = time.monotonic() + SENDING_SECONDS

        def may_continue() -> bool:
            return self._context.may_continue and time.monotonic() < until

        claimed = None
        while claimed is None or claimed:
            claimed = self._claims.claim_waiting(now, CHUNK) if may_continue() else []
            # even without any: what an earlier tick sent and could not settle is settled before all others
            for deliveries in self._dispatcher.deliver(claimed, self._prepare, may_continue):
                self._settle(deliveries)
                if time.monotonic() - self._heartbeat_at > HEARTBEAT_SECONDS:
                    self._heartbeat()
            self._heartbeat()
        if self._counts["told"] or self._counts["failed"]:
            log.info(
                "notifications about suspended trials sent",
                {"mails": self._counts["told"], "failed": self._counts["failed"]},
            )

    def _heartbeat(self) -> None:
        self._context.counters.heartbeat(self._context.clock(), self._dispatcher.stuck)
        self._heartbeat_at = time.monotonic()

    def _prepare(self, notification: Notification) -> OutgoingMessage:
        """Raises TransportMissing, and ValueError for an address or a content that cannot be used."""
        if notification.tenant_id is None:
            return self._to_owner(notification)
        return self._to_contact(notification, notification.tenant_id)

    def _to_owner(self, notification: Notification) -> OutgoingMessage:
        values = owner_values(read_summary(notification.content), notification.created_at)
        message = self._owner_email.message(notification.id, "", notification.address, values, self._context.clock())
        account = self._accounts.smtp(None)
        return OutgoingMessage(message, account.provider, account.pace, quota=account.quota)

    def _to_contact(self, notification: Notification, tenant_id: str) -> OutgoingMessage:
        tenant = read_tenant(notification.content)
        values = contact_values(tenant)
        message = self._contact_email.message(
            notification.id, tenant.name, notification.address, values, self._context.clock()
        )
        outbox = tenant.user_id and OutboxEmail(
            self._contact_email.copy(values),
            address=notification.address,
            entity_type="Tenant",
            entity_id=tenant_id,
            tenant_id=tenant_id,
            user_id=tenant.user_id,
        )
        message = self._accounts.with_return_path(message, tenant_id)
        account = self._accounts.smtp(tenant_id)
        return OutgoingMessage(message, account.provider, account.pace, outbox=outbox or None, quota=account.quota)

    def _settle(self, deliveries: Sequence[Delivery]) -> None:
        ended: list[Delivery] = []
        deferrals: list[Deferral] = []
        for each in deliveries:
            match each.next_step(self._policy):
                case NextStep.SENT | NextStep.FAIL | NextStep.FAIL_UNCONFIRMED:
                    ended.append(each)
                case NextStep.RETRY:
                    deferrals.append(self._retry(each))
                case NextStep.RELEASE | NextStep.ASK:
                    deferrals.append(_in_its_place(each))
        if deferrals:
            self._claims.defer(deferrals)
        if ended:
            self._end(ended)

    def _end(self, ended: Sequence[Delivery]) -> None:
        for each in ended:
            self._suppress(each)  # first: to say it twice does no harm, to forget it does
        settled = self._claims.settle(ended)
        for each in ended:
            if each.notification.id in settled:
                self._count(each)

    def _suppress(self, delivery: Delivery) -> None:
        """There is no such mailbox: later messages to it are not tried. The owner is no customer of a tenant's."""
        notification, outcome = delivery.notification, delivery.outcome
        if outcome.suppression and notification.tenant_id:
            suppress(
                self._db,
                self._context.counters,
                SuppressionList(notification.tenant_id, "email"),
                notification.address,
                outcome.suppression,
                reason=outcome.reason,
                code=outcome.code,
            )

    def _retry(self, delivery: Delivery) -> Deferral:
        """It is sent again even if it may have arrived: then the operator has set UNCONFIRMED_SENDS=resend."""
        attempts = delivery.notification.attempts + 1
        delay = timedelta(seconds=self._policy.delay_seconds(delivery.outcome, attempts))
        return Deferral(delivery.notification.id, delivery.outcome.at + delay, attempts, may_have_arrived=False)

    def _count(self, delivery: Delivery) -> None:
        """Counts a notification that ended, and logs why it failed."""
        outcome = delivery.outcome
        sent = outcome.kind is OutcomeKind.ACCEPTED
        self._counts["told" if sent else "failed"] += 1
        self._context.counters.add("messages_total", channel="email", outcome="sent" if sent else "failed")
        if outcome.kind is OutcomeKind.UNCONFIRMED:
            self._context.counters.add("unconfirmed_total", channel="email")
        if not sent:
            reason = printable(re.sub(r"\S*@\S*", "***", outcome.reason or ""))  # servers repeat the address
            about = delivery.notification.tenant_id or "all: the owner's summary"
            log.warning(
                "notification about a suspended trial given up",
                {"tenant": about, "outcome": str(outcome.kind), "reason": reason},
            )


def _in_its_place(delivery: Delivery) -> Deferral:
    """It was not tried: it is due at once, before those that were written later, unless its account is the reason."""
    notification, outcome = delivery.notification, delivery.outcome
    return Deferral(
        notification.id,
        outcome.at + timedelta(seconds=outcome.delay_seconds) if outcome.delay_seconds else notification.created_at,
        notification.attempts,
        may_have_arrived=delivery.may_have_arrived,
        waits_for=delivery.waits_for,
    )


if __name__ == "__main__":
    sys.exit(main())
