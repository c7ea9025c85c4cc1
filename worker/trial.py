"""bin/trial: suspends expired trials and tells whom it concerns.

A tick suspends all of them in one short transaction that also writes down who has to be told, and then sends what
waits to be told (worker/notices.py): whatever becomes of an e-mail, the suspensions stand.
"""

import logging
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from worker import migrate, program
from worker.accounts import Accounts
from worker.batch import Kind
from worker.content.trial import LISTED, contact_mail, contact_values, owner_mail, owner_values
from worker.counters import Counters
from worker.db import Database, queries
from worker.lock import Lock
from worker.loop import Result, Signals, growing_pause, utc_now
from worker.notices import LANES, Delivery, Letter, Notice, Notices
from worker.providers.untrusted import printable
from worker.redis_client import connect
from worker.settings import Settings

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
    return program.run_job("trial", "trial-expiration", DESCRIPTION, TrialJob, arguments)


class TrialJob:
    name = "trial"
    zone = UTC

    def __init__(
        self,
        settings: Settings,
        counters: Counters,
        lock: Lock,
        signals: Signals,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        """Raises SettingsError for values that only show themselves in use (SMTP_URL, DATABASE_URL)."""
        self.interval_seconds = settings.trial_check_interval_seconds
        self._settings = settings
        self._counters = counters
        self._lock = lock
        self._signals = signals
        self._clock = clock
        self._redis = connect(settings.redis_url)
        self._db = Database(settings.database_url, "crm-worker trial")
        self._sql = queries("trial")
        self._accounts = Accounts(settings, self._redis, clock, LANES)
        self._notices = Notices(self._db, self.name, signals, settings.shutdown_grace_seconds, clock)
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
        migrate.require_current(self._db)
        if self._missing:
            log.warning(
                "nobody can be told of suspended trials; their mails wait for 7 days",
                {"set": " and ".join(self._missing)},
            )

    def tick(self, now: datetime) -> Result:
        # as the tables hold it, which would round it up: what is due now must not look due a moment later
        now = now.replace(microsecond=now.microsecond // 1000 * 1000)
        self._counts = dict.fromkeys(("suspended", "users", "told", "failed"), 0)
        left = self._suspend(now)
        self._drop_stale(now)
        self._notices.release_orphans(now)
        due = [now + timedelta(seconds=LOCKED_SECONDS)] if left else []
        if self._missing:
            return Result(self._counts, min(due, default=None))
        self._tell(now)
        next_due = self._notices.next_due()
        if next_due:
            due.append(max(next_due, now + timedelta(seconds=AGAIN_SECONDS)))
        return Result(self._counts, min(due, default=None), unfinished=bool(next_due and next_due <= now))

    def close(self) -> bool:
        self._db.close()
        self._accounts.close()
        self._redis.close()
        return self._notices.close()

    def _suspend(self, now: datetime) -> bool:
        """Suspends what expired; returns whether a tenant was left alone because somebody had it locked."""
        done = None
        with self._db.transaction():
            # in a statement of its own: the next ones see whatever was committed until the locks were had
            ids = [row["id"] for row in self._db.all(self._sql["lock_expired"], now=now)]
            if ids:
                self._db.all(self._sql["supersede"], ids=ids)
                owner = self._settings.owner_email
                done = self._db.one(self._sql["suspend"], ids=ids, now=now, owner=owner, listed=LISTED)
        if done:
            self._counts["suspended"], self._counts["users"] = done["tenants"], done["users"]
            self._counters.add("trials_suspended_total", done["tenants"])
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
            return self._lock.held and not self._signals.stopping and time.monotonic() < until

        claimed = None
        while claimed is None or claimed:
            claimed = self._notices.claim_waiting(now, CHUNK) if may_go_on() else []
            # also of none: what an earlier tick sent and could not settle is settled first of all
            for wave in self._notices.deliver(claimed, self._letter_of, may_go_on):
                self._settle(wave)
            self._counters.heartbeat(self._clock())
        if self._counts["told"] or self._counts["failed"]:
            log.info("told of suspended trials", {"mails": self._counts["told"], "failed": self._counts["failed"]})

    def _letter_of(self, notice: Notice) -> Letter:
        facts, at = notice.content, self._clock()
        try:
            if notice.tenant_id is None:
                values = owner_values(facts, notice.created_at)
                message = self._owner_mail.message(notice.id, "", notice.address, values, at)
                return Letter(message, self._accounts.smtp())
            values = contact_values(facts)
            message = self._contact_mail.message(notice.id, facts["name"], notice.address, values, at)
        except (KeyError, TypeError) as error:
            raise ValueError(f"its content cannot be read: {error!r}") from error
        entry = {"entity_type": "Tenant", "entity_id": notice.tenant_id, "tenant_id": notice.tenant_id}
        written_by = facts.get("user_id")
        outbox = {**self._contact_mail.outbox(values), **entry, "user_id": written_by} if written_by else None
        return Letter(message, self._accounts.smtp(), outbox=outbox)

    def _settle(self, wave: Sequence[Delivery]) -> None:
        ended, back = [], []
        for each in wave:
            due_at = self._due_again(each)
            if due_at is None:
                ended.append(each)
            else:
                tried = each.outcome.kind is not Kind.UNTOUCHED
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
        if outcome.kind is Kind.UNTOUCHED:
            return delivery.notice.created_at  # so it keeps its place
        resend = outcome.kind is Kind.UNCONFIRMED and self._settings.unconfirmed_sends == "resend"
        if not (resend or outcome.kind in (Kind.PUT_OFF, Kind.PUT_OFF_ALONE)) or attempts >= MAX_ATTEMPTS:
            return None
        pause = growing_pause(attempts, FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
        return outcome.at + timedelta(seconds=max(pause, outcome.delay_seconds or 0.0))

    def _count(self, delivery: Delivery) -> None:
        """Counts a mail that came to an end, and says of one that failed why."""
        outcome = delivery.outcome
        sent = outcome.kind is Kind.ACCEPTED
        self._counts["told" if sent else "failed"] += 1
        self._counters.add("messages_total", channel="email", outcome="sent" if sent else "failed")
        if outcome.kind is Kind.UNCONFIRMED:
            self._counters.add("unconfirmed_total", channel="email")
        if not sent:
            reason = printable(re.sub(r"\S*@\S*", "***", outcome.reason or ""))  # servers repeat the address
            about = delivery.notice.tenant_id or "all: the owner's summary"
            log.warning(
                "mail about a suspended trial given up",
                {"tenant": about, "outcome": str(outcome.kind), "reason": reason},
            )


if __name__ == "__main__":
    sys.exit(main())
