"""bin/trial: suspends expired trials and tells whom it concerns.

A tick suspends all of them in one short transaction that also writes down who has to be told, and then sends what
waits to be told (worker/notifications/claims.py): whatever becomes of an e-mail, the suspensions stand.
"""

import logging
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from worker.campaigns.batch import Kind
from worker.content.trial import LISTED, contact_mail, contact_values, owner_mail, owner_values
from worker.notifications.claims import NotificationClaims
from worker.notifications.dispatcher import LANES
from worker.notifications.notification import Delivery, Notification, OutgoingMessage
from worker.providers.untrusted import safe_text
from worker.runtime import program
from worker.runtime.backoff import backoff_seconds
from worker.runtime.db import queries
from worker.runtime.job import JobContext, TickResult
from worker.runtime.migrations import require_current
from worker.sending.accounts import Accounts

log = logging.getLogger(__name__)

DESCRIPTION = """\
Suspends the tenants whose free trial has expired and deactivates their users, at every start and every hour; tells
the tenant's contact and OWNER_EMAIL by e-mail, once."""

LOCKED_SECONDS = 60.0  # until a tenant that somebody had locked is looked at again
TELLING_SECONDS = 30.0  # then the tick ends, and the next one looks for expired trials before it goes on telling
AGAIN_SECONDS = 1.0  # the least pause between two ticks
CHUNK = 100  # mails claimed at once
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 60.0, 6 * 3600.0
MAX_ATTEMPTS = 12
KEPT = timedelta(days=7)  # mails that nobody could send for so long are no news any more


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
        self._accounts = Accounts(settings, context.redis, clock, LANES)
        self._notices = NotificationClaims(
            self._db, context.name, context.signals, settings.shutdown_grace_seconds, clock
        )
        self._missing = [
            name
            for name, value in (("OWNER_EMAIL", settings.owner_email), ("SMTP_URL", settings.smtp_url))
            if not value
        ]
        sender = settings.owner_email or "nobody@localhost.invalid"  # nothing is sent then
        self._contact_mail = contact_mail(settings.company_name, sender)
        self._owner_mail = owner_mail(settings.company_name, sender)
        self._counts: dict[str, int] = {}

    def start(self) -> None:
        require_current(self._db)
        if self._missing:
            log.warning(
                "nobody can be told of suspended trials; their mails wait for 7 days",
                {"set": " and ".join(self._missing)},
            )

    def tick(self, now: datetime) -> TickResult:
        # as the tables hold it, which would round it up: what is due now must not look due a moment later
        now = now.replace(microsecond=now.microsecond // 1000 * 1000)
        self._counts = dict.fromkeys(("suspended", "users", "told", "failed"), 0)
        left = self._suspend(now)
        self._drop_stale(now)
        self._notices.release_orphans(now)
        due = [now + timedelta(seconds=LOCKED_SECONDS)] if left else []
        if self._missing:
            return TickResult(self._counts, min(due, default=None))
        self._tell(now)
        next_due = self._notices.next_due()
        if next_due:
            due.append(max(next_due, now + timedelta(seconds=AGAIN_SECONDS)))
        return TickResult(self._counts, min(due, default=None), unfinished=bool(next_due and next_due <= now))

    def close(self) -> bool:
        self._accounts.close()
        return self._notices.close()

    def _suspend(self, now: datetime) -> bool:
        """Suspends what expired; returns whether a tenant was left alone because somebody had it locked."""
        done = None
        with self._db.transaction():
            # in a statement of its own: the next ones see whatever was committed until the locks were had
            ids = [row["id"] for row in self._db.all(self._sql["lock_expired"], now=now)]
            if ids:
                self._db.all(self._sql["supersede"], ids=ids)
                owner = self._context.settings.owner_email
                done = self._db.one(self._sql["suspend"], ids=ids, now=now, owner=owner, listed=LISTED)
        if done:
            self._counts["suspended"], self._counts["users"] = done["tenants"], done["users"]
            self._context.counters.add("trials_suspended_total", done["tenants"])
            log.info("expired trials suspended", {"tenants": done["tenants"], "users": done["users"]})
        left = self._db.one(self._sql["any_expired"], now=now)
        return bool(left and left["found"])

    def _drop_stale(self, now: datetime) -> None:
        dropped = self._db.all(self._sql["drop_stale"], oldest=now - KEPT)
        too_old = sum(row["too_old"] for row in dropped)
        if too_old:
            log.warning("mails about trials dropped: they waited for 7 days", {"mails": too_old})
        if len(dropped) > too_old:
            log.info("mails about trials dropped: no longer suspended", {"mails": len(dropped) - too_old})

    def _tell(self, now: datetime) -> None:
        """Sends what waits, for a while."""
        until = time.monotonic() + TELLING_SECONDS

        def may_go_on() -> bool:
            return self._context.may_continue and time.monotonic() < until

        claimed = None
        while claimed is None or claimed:
            claimed = self._notices.claim_waiting(now, CHUNK) if may_go_on() else []
            # also of none: what an earlier tick sent and could not settle is settled first of all
            for wave in self._notices.deliver(claimed, self._letter_of, may_go_on):
                self._settle(wave)
            self._context.counters.heartbeat(self._context.clock())
        if self._counts["told"] or self._counts["failed"]:
            log.info("told of suspended trials", {"mails": self._counts["told"], "failed": self._counts["failed"]})

    def _letter_of(self, notice: Notification) -> OutgoingMessage:
        facts, at = notice.content, self._context.clock()
        try:
            if notice.tenant_id is None:
                values = owner_values(facts, notice.created_at)
                message = self._owner_mail.message(notice.id, "", notice.address, values, at)
                return OutgoingMessage(message, self._accounts.smtp())
            values = contact_values(facts)
            message = self._contact_mail.message(notice.id, facts["name"], notice.address, values, at)
        except (KeyError, TypeError) as error:
            raise ValueError(f"its content cannot be read: {error!r}") from error
        entry = {"entity_type": "Tenant", "entity_id": notice.tenant_id, "tenant_id": notice.tenant_id}
        written_by = facts.get("user_id")
        outbox = {**self._contact_mail.outbox(values), **entry, "user_id": written_by} if written_by else None
        return OutgoingMessage(message, self._accounts.smtp(), outbox=outbox)

    def _settle(self, wave: Sequence[Delivery]) -> None:
        ended, back = [], []
        for each in wave:
            due_at = self._due_again(each)
            if due_at is None:
                ended.append(each)
            else:
                tried = each.outcome.kind is not Kind.NOT_SENT
                # what is sent again although it may have arrived must not be asked after first
                known = replace(each, may_have_arrived=False) if each.outcome.kind is Kind.UNCONFIRMED else each
                back.append((known, due_at, each.notice.attempts + tried))
        if back:
            self._notices.put_back(back)
        settled = self._notices.settle(ended) if ended else set()
        for each in ended:
            if each.notice.id in settled:
                self._count(each)

    def _due_again(self, delivery: Delivery) -> datetime | None:
        """When the mail is tried again; None: it came to an end."""
        outcome, attempts = delivery.outcome, delivery.notice.attempts + 1
        if outcome.kind is Kind.NOT_SENT:
            return delivery.notice.created_at  # so it keeps its place
        resend = outcome.kind is Kind.UNCONFIRMED and self._context.settings.unconfirmed_sends == "resend"
        if not (resend or outcome.kind in (Kind.DEFERRED, Kind.RECIPIENT_DEFERRED)) or attempts >= MAX_ATTEMPTS:
            return None
        pause = backoff_seconds(attempts, FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
        return outcome.at + timedelta(seconds=max(pause, outcome.delay_seconds or 0.0))

    def _count(self, delivery: Delivery) -> None:
        """Counts a mail that came to an end, and says of one that failed why."""
        outcome = delivery.outcome
        sent = outcome.kind is Kind.ACCEPTED
        self._counts["told" if sent else "failed"] += 1
        self._context.counters.add("messages_total", channel="email", outcome="sent" if sent else "failed")
        if outcome.kind is Kind.UNCONFIRMED:
            self._context.counters.add("unconfirmed_total", channel="email")
        if not sent:
            reason = safe_text(re.sub(r"\S*@\S*", "***", outcome.reason or ""))  # servers repeat the address
            about = delivery.notice.tenant_id or "all: the owner's summary"
            log.warning(
                "mail about a suspended trial given up",
                {"tenant": about, "outcome": str(outcome.kind), "reason": reason},
            )


if __name__ == "__main__":
    sys.exit(main())
