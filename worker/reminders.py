"""bin/reminders: tells people which of their leads nobody has contacted for too long.

A tick reads what the tenants saved, claims a digest for each recipient who has leads to be reminded of, sends them
(worker/notifications/) and settles them. What was reminded of is written down by the claim, in the same statement.
"""

import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

import psycopg2

from worker.errors import RetryLater
from worker.notifications.claims import NotificationClaims
from worker.notifications.dispatcher import LANES
from worker.notifications.notification import Notification, OutgoingMessage
from worker.reminding.messages import DigestMessages
from worker.reminding.recipients import RecipientReader
from worker.reminding.settlement import DigestSettlement, SettledDigest
from worker.runtime import program
from worker.runtime.db import Row, is_unavailable, queries
from worker.runtime.job import JobContext, TickResult
from worker.runtime.migrations import require_current
from worker.sending.accounts import Accounts
from worker.sending.outcomes import OutcomeKind as Kind

log = logging.getLogger(__name__)

DESCRIPTION = """\
Sends each recipient of a tenant's lead reminders one digest, by e-mail or WhatsApp, of the leads that nobody has
contacted for the tenant's checkIntervalHours; no lead again to the same recipient before as many hours."""

CHUNK = 1000  # recipients claimed, or digests taken over, at once
LISTED = 200  # leads of a digest; the others are counted
DEFERRALS_BEFORE_BACKOFF = (
    5  # messages put off in a row, before the others of the same way out wait for the next tick
)
HEARTBEAT_SECONDS = 10.0
OLDEST_MEMORY = timedelta(days=366)  # longer than any checkIntervalHours

Way = tuple[str | None, str]


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
        self._accounts = Accounts(settings, context.redis, clock, LANES)
        self._notices = NotificationClaims(
            self._db, context.name, context.signals, settings.shutdown_grace_seconds, clock
        )
        self._letters = DigestMessages(self._db, self._accounts, clock)
        self._endings = DigestSettlement(self._db, self._notices, settings, clock)
        self._recipients = RecipientReader()
        self._counts: dict[str, int] = {}
        self._put_off: Counter[Way] = Counter()  # in a row
        self._warned: set[tuple[str | None, str, str | None]] = set()
        self._heartbeat_at = time.monotonic()

    def start(self) -> None:
        require_current(self._db)
        self._db.all(self._sql["drop_memory"], oldest=self._context.clock() - OLDEST_MEMORY)

    def tick(self, now: datetime) -> TickResult:
        self._counts = dict.fromkeys(("digests", "leads", "failed", "unconfirmed"), 0)
        self._put_off.clear()
        self._warned.clear()
        self._notices.release_orphans(now)
        tenants = self._db.all(self._sql["tenants"])
        self._letters.begin(tenants)
        self._deliver([])  # what came back earlier and could not be settled then
        for taken_over in self._take_over(now):
            self._deliver(taken_over)
        for claimed in self._claim(self._recipients.of(tenants, now), now):
            self._deliver(claimed)
        if any(self._counts.values()):
            log.info("reminded", {key: count for key, count in self._counts.items() if count})
        next_due = self._notices.next_due()
        return TickResult(self._counts, next_due, unfinished=bool(next_due and next_due <= self._context.clock()))

    def close(self) -> bool:
        self._accounts.close()
        return self._notices.close()

    def _take_over(self, now: datetime) -> Iterator[list[Notification]]:
        """What waits and is due: digests of dead workers whose provider can be asked by now.

        Those that never left are given back, and claimed afresh with whatever is true by now.
        """
        while self._context.may_continue and (notices := self._notices.claim_waiting(now, CHUNK)):
            self._endings.forget([notice for notice in notices if not notice.handed_over])
            yield [notice for notice in notices if notice.handed_over]

    def _claim(self, recipients: list[Row], now: datetime) -> Iterator[list[Notification]]:
        """New digests of all tenants, chunk by chunk."""
        for first in range(0, len(recipients), CHUNK):
            if self._context.may_continue:
                yield self._claim_chunk(recipients[first : first + CHUNK], now)

    def _claim_chunk(self, recipients: list[Row], now: datetime) -> list[Notification]:
        """A chunk that the database refuses is claimed in halves, until it is known whose digest it refuses."""
        claim = {"job": self._context.name, "holder": self._notices.holder, "now": now, "listed": LISTED}
        try:
            rows = self._db.all(self._sql["claim"], recipients=json.dumps(recipients), **claim)
        except psycopg2.Error as error:
            if is_unavailable(error):
                raise
            if len(recipients) > 1:
                middle = len(recipients) // 2
                return [*self._claim_chunk(recipients[:middle], now), *self._claim_chunk(recipients[middle:], now)]
            reason = error.diag.message_primary or type(error).__name__  # its details may hold addresses
            log.error(
                "a digest waits: the database refuses it", {"tenant": recipients[0]["tenant_id"], "reason": reason}
            )
            return []
        return [Notification(**row) for row in rows]

    def _deliver(self, notices: list[Notification]) -> None:
        self._letters.read_templates(notices)
        for wave in self._notices.deliver(notices, self._letter_of, lambda: self._context.may_continue):
            for ended in self._endings.settle(wave):
                self._count(ended)
            if time.monotonic() - self._heartbeat_at > HEARTBEAT_SECONDS:
                self._context.counters.heartbeat(self._context.clock())
                self._heartbeat_at = time.monotonic()

    def _letter_of(self, notice: Notification) -> OutgoingMessage:
        """Raises TransportMissing, RetryLater, and ValueError for an address that cannot be written to."""
        letter = self._letters.letter(notice)
        if self._put_off[_way(notice, letter)] >= DEFERRALS_BEFORE_BACKOFF and not notice.handed_over:
            raise RetryLater("other messages were put off there just before")
        return letter

    def _count(self, ended: SettledDigest) -> None:
        """Counts a digest that came to an end, and says once for each tenant and channel why it failed."""
        notice = ended.delivery.notice
        if (letter := ended.delivery.letter) and not notice.handed_over:  # an earlier one says nothing about now
            if ended.delivery.outcome.kind in (Kind.DEFERRED, Kind.UNCONFIRMED):
                self._put_off[_way(notice, letter)] += 1
            else:
                self._put_off.pop(_way(notice, letter), None)  # its provider answers
        if ended.outcome == "sent":
            self._counts["digests"] += 1
            self._counts["leads"] += notice.content["leadsCount"]
        else:
            self._counts[ended.outcome] += 1
            self._warn(ended)
        self._context.counters.add("reminders_total", channel=notice.channel, outcome=ended.outcome)
        if ended.outcome == "unconfirmed":
            self._context.counters.add("unconfirmed_total", channel=notice.channel)

    def _warn(self, ended: SettledDigest) -> None:
        notice, reason = ended.delivery.notice, ended.delivery.outcome.reason
        key = (notice.tenant_id, notice.channel, reason)
        if key not in self._warned:
            said = "nobody knows whether a digest arrived" if ended.outcome == "unconfirmed" else "a digest waits"
            log.warning(said, {"tenant": notice.tenant_id, "channel": notice.channel, "reason": reason})
        self._warned.add(key)


def _way(notice: Notification, letter: OutgoingMessage) -> Way:
    """What fails as a whole: a tenant's account, or the SMTP server that all tenants share."""
    shared = notice.channel == "email" and letter.gmail is None
    return (None if shared else notice.tenant_id), notice.channel


if __name__ == "__main__":
    sys.exit(main())
