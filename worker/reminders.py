"""bin/reminders: reminds people of their leads that nobody has contacted for too long.

A tick reads what the tenants saved, claims a digest for each recipient who has leads to be reminded of, sends them
(worker/notifications/) and settles them. The claim writes down in the same statement which leads it reminds of.
"""

import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import psycopg2

from worker.errors import RetryLater
from worker.notifications.claims import NotificationClaims
from worker.notifications.dispatcher import THREADS, NotificationDispatcher
from worker.notifications.notification import Notification, OutgoingMessage
from worker.reminding.digest import DigestContent
from worker.reminding.messages import DigestMessages
from worker.reminding.recipients import DigestRecipient, RecipientReader
from worker.reminding.refusals import explained
from worker.reminding.settlement import DigestResult, DigestSettlement, SettledDigest
from worker.reminding.tenants import read_tenants
from worker.runtime import program
from worker.runtime.db import is_unavailable, queries
from worker.runtime.job import JobContext, TickResult
from worker.runtime.migrations import require_current
from worker.sending.accounts import SendingAccounts
from worker.sending.outcomes import OutcomeKind

log = logging.getLogger(__name__)

DESCRIPTION = """\
Sends each recipient of a tenant's lead reminders one digest, by e-mail or WhatsApp, of the leads that nobody has
contacted for the tenant's checkIntervalHours. The same recipient is reminded of the same lead only after that many
hours more."""

CHUNK = 1000  # recipients, or waiting digests, claimed at once
LISTED = 200  # leads that a digest lists; the others are counted
DEFERRALS_BEFORE_BACKOFF = 5  # in a row; then the other messages of the same account wait for the next tick
HEARTBEAT_SECONDS = 10.0
OLDEST_MEMORY = timedelta(days=366)  # longer than any checkIntervalHours

# what an attempt through an account says about the account; all others say that its provider works
_ACCOUNT_FAILED = (OutcomeKind.DEFERRED, OutcomeKind.REJECTED, OutcomeKind.UNCONFIRMED)


class AccountKey(NamedTuple):
    """What fails as a whole: a tenant's account, or the SMTP server that all tenants share (no tenant)."""

    tenant_id: str | None
    channel: str

    @classmethod
    def of(cls, notification: Notification, outgoing: OutgoingMessage) -> "AccountKey":
        shared = notification.channel == "email" and outgoing.gmail is None
        return cls(None if shared else notification.tenant_id, notification.channel)


def main(arguments: Sequence[str] | None = None) -> int:
    return program.run_job("reminders", DESCRIPTION, RemindersJob, arguments)


class RemindersJob:
    zone = UTC

    def __init__(self, context: JobContext) -> None:
        """Raises SettingsError for values that only show themselves in use (SMTP_URL, DATABASE_URL)."""
        settings, clock = context.settings, context.clock
        self.interval_seconds = settings.lead_reminder_interval_seconds
        self._context = context
        self._db = context.database
        self._sql = queries("reminders")
        self._accounts = SendingAccounts(settings, context.redis, clock, THREADS, lambda: context.signals.stopping)
        self._claims = NotificationClaims(self._db, context.name)
        self._dispatcher = NotificationDispatcher(
            self._claims, context.signals, settings.shutdown_grace_seconds, clock, settings.message_max_bytes
        )
        self._template = settings.reminder_whatsapp_template
        self._messages = DigestMessages(self._db, self._accounts, clock, settings.message_max_bytes, self._template)
        self._settlement = DigestSettlement(self._db, self._claims, settings, context.counters, clock)
        self._recipients = RecipientReader()
        self._counts: dict[str, int] = {}
        self._failures: Counter[AccountKey] = Counter()  # of the account in a row
        self._warned: set[tuple[str | None, str, str | None]] = set()
        self._heartbeat_at = time.monotonic()

    def start(self) -> None:
        require_current(self._db)
        self._db.execute(self._sql["drop_memory"], oldest=self._context.clock() - OLDEST_MEMORY)

    def tick(self, now: datetime) -> TickResult:
        self._counts = dict.fromkeys(("digests", "leads", "failed", "unconfirmed"), 0)
        self._failures.clear()
        self._warned.clear()
        self._claims.release_orphans(now, self._dispatcher.in_hand)
        tenants = read_tenants(self._db)
        self._messages.begin(tenants)
        self._deliver([])  # what an earlier tick sent and could not settle
        for waiting in self._claim_waiting(now):
            self._deliver(waiting)
        for claimed in self._claim_new(self._recipients.recipients_of_all(tenants, now), now):
            self._deliver(claimed)
        if any(self._counts.values()):
            log.info("reminded", {key: count for key, count in self._counts.items() if count})
        next_due = self._claims.next_due()
        return TickResult(
            self._counts,
            next_due,
            unfinished=bool(next_due and next_due <= self._context.clock()),
            may_rest=not (self._dispatcher.in_hand or self._recipients.complained),
        )

    def close(self) -> bool:
        self._accounts.close()
        return self._dispatcher.close()

    def _claim_waiting(self, now: datetime) -> Iterator[list[Notification]]:
        """Digests that dead workers had handed over, and whose provider can be asked by now.

        Those that were never sent are forgotten, and claimed anew from what is in the database by now.
        """
        while self._context.may_continue and (waiting := self._claims.claim_waiting(now, CHUNK)):
            self._settlement.forget([digest for digest in waiting if not digest.handed_over])
            yield [digest for digest in waiting if digest.handed_over]

    def _claim_new(self, recipients: list[DigestRecipient], now: datetime) -> Iterator[list[Notification]]:
        """New digests of all tenants, chunk by chunk."""
        for first in range(0, len(recipients), CHUNK):
            if self._context.may_continue:
                yield self._claim_chunk(recipients[first : first + CHUNK], now)

    def _claim_chunk(self, recipients: list[DigestRecipient], now: datetime) -> list[Notification]:
        """A chunk that the database refuses is claimed in halves, until it is known whose digest it refuses."""
        claim = {"job": self._context.name, "holder": self._claims.holder, "now": now, "listed": LISTED}
        as_json = json.dumps([recipient.as_json() for recipient in recipients])
        try:
            rows = self._db.execute(self._sql["claim"], recipients=as_json, **claim)
        except psycopg2.Error as error:
            if is_unavailable(error):
                raise
            if len(recipients) > 1:
                middle = len(recipients) // 2
                return [*self._claim_chunk(recipients[:middle], now), *self._claim_chunk(recipients[middle:], now)]
            reason = error.diag.message_primary or type(error).__name__  # its details may hold addresses
            log.error(
                "a digest cannot be claimed: the database refuses it",
                {"tenant": recipients[0].tenant_id, "reason": reason},
            )
            return []
        return [Notification(**row) for row in rows]

    def _deliver(self, digests: list[Notification]) -> None:
        self._messages.read_templates(digests)
        for deliveries in self._dispatcher.deliver(digests, self._prepare, lambda: self._context.may_continue):
            for settled in self._settlement.settle(deliveries):
                self._count(settled)
            if time.monotonic() - self._heartbeat_at > HEARTBEAT_SECONDS:
                self._context.counters.heartbeat(self._context.clock(), self._dispatcher.stuck)
                self._heartbeat_at = time.monotonic()

    def _prepare(self, digest: Notification) -> OutgoingMessage:
        """Raises TransportMissing, RetryLater, and ValueError for an address that cannot be written to."""
        outgoing = self._messages.prepare(digest)
        failures = self._failures[AccountKey.of(digest, outgoing)]
        if failures >= DEFERRALS_BEFORE_BACKOFF and not digest.handed_over:
            raise RetryLater("the messages before it failed through the same account")
        return outgoing

    def _count(self, settled: SettledDigest) -> None:
        """Counts a digest that ended; a failure is logged once for each tenant, channel and reason."""
        digest, outgoing = settled.delivery.notification, settled.delivery.outgoing
        if outgoing and not digest.handed_over:  # an earlier attempt says nothing about the account now
            key = AccountKey.of(digest, outgoing)
            if settled.delivery.outcome.kind in _ACCOUNT_FAILED:
                self._failures[key] += 1
            else:
                self._failures.pop(key, None)
        if settled.result is DigestResult.SENT:
            self._counts["digests"] += 1
            self._counts["leads"] += DigestContent.of(digest).leads_count
        else:
            self._counts[settled.result] += 1
            self._warn(settled)
        self._context.counters.add("reminders_total", channel=digest.channel, outcome=settled.result)
        if settled.result is DigestResult.UNCONFIRMED:
            self._context.counters.add("unconfirmed_total", channel=digest.channel)

    def _warn(self, settled: SettledDigest) -> None:
        digest, reason = settled.delivery.notification, explained(settled.delivery.outcome, self._template)
        key = (digest.tenant_id, digest.channel, reason)
        if key not in self._warned:
            unconfirmed = settled.result is DigestResult.UNCONFIRMED
            message = "a digest is unconfirmed: it may have arrived" if unconfirmed else "a digest was not sent"
            log.warning(message, {"tenant": digest.tenant_id, "channel": digest.channel, "reason": reason})
        self._warned.add(key)


if __name__ == "__main__":
    sys.exit(main())
