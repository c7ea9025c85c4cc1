"""How digests end: filed and counted, forgotten so that their leads are due again, or deferred until Gmail is asked.

The leads of a digest that was sent, or is unconfirmed, stay remembered. Those of a digest that was surely not sent
are forgotten in one statement with the digest.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

import psycopg2

from worker.notifications.claims import Deferral, NotificationClaims
from worker.notifications.delivery import Delivery
from worker.notifications.notification import Notification
from worker.reminding.digest import DigestContent
from worker.reminding.refusals import is_for_long
from worker.runtime.counters import Counters
from worker.runtime.db import Database, is_unavailable, queries
from worker.runtime.settings import Settings
from worker.sending.gmail_grants import update_grant
from worker.sending.outcomes import NextStep, OutcomeKind, RetryPolicy
from worker.sending.suppression import SuppressionList, suppress

log = logging.getLogger(__name__)


class DigestResult(StrEnum):
    """What a settled digest counts as."""

    SENT = "sent"
    FAILED = "failed"
    UNCONFIRMED = "unconfirmed"

    @classmethod
    def of(cls, delivery: Delivery) -> "DigestResult":
        if delivery.outcome.kind is OutcomeKind.ACCEPTED:
            return cls.SENT
        return cls.UNCONFIRMED if delivery.may_have_arrived else cls.FAILED


@dataclass(frozen=True, slots=True)
class SettledDigest:
    """A digest that this process settled."""

    delivery: Delivery
    result: DigestResult


class DigestSettlement:
    """Settles the digests of one process."""

    def __init__(
        self,
        db: Database,
        claims: NotificationClaims,
        settings: Settings,
        counters: Counters,
        clock: Callable[[], datetime],
    ) -> None:
        """``clock`` returns UTC without a zone."""
        self._db = db
        self._counters = counters
        self._claims = claims
        self._clock = clock
        self._sql = queries("reminders")
        self._policy = RetryPolicy(
            max_attempts=None,
            first_delay_seconds=0.0,  # the next tick claims a new digest of the same leads
            longest_delay_seconds=0.0,
            resend_unconfirmed=settings.unconfirmed_sends == "resend",
            after_rejection=NextStep.RETRY,
        )

    def settle(self, deliveries: Sequence[Delivery]) -> list[SettledDigest]:
        """Settles them all in one transaction; returns those that ended and that this process still held.

        Where the database refuses that, each is settled by itself: one tenant's row must not stop the others.
        """
        if not deliveries:
            return []
        try:
            with self._db.transaction():
                return self._settle(deliveries)
        except psycopg2.Error as error:
            if is_unavailable(error):
                raise
            if len(deliveries) > 1:
                return [ended for each in deliveries for ended in self.settle([each])]
            return self._settle_unfiled(deliveries[0], error)

    def forget(self, notifications: Sequence[Notification]) -> set[str]:
        """Deletes digests that were surely not sent: their leads are due again at once.

        Returns the ids of those that this process still held.
        """
        ids = [notification.id for notification in notifications]
        return {row["id"] for row in self._db.execute(self._sql["forget"], ids=ids, holder=self._claims.holder)}

    def _settle_unfiled(self, delivery: Delivery, error: psycopg2.Error) -> list[SettledDigest]:
        """A digest that was sent stays sent, even where it cannot be filed (its user was deleted meanwhile, say)."""
        notification = delivery.notification
        reason = error.diag.message_primary or type(error).__name__  # its details may hold addresses
        about = {"tenant": notification.tenant_id, "channel": notification.channel, "reason": reason}
        if delivery.outcome.kind is not OutcomeKind.ACCEPTED:
            log.error("a digest cannot be settled: the database refuses it", about)
            return []
        log.error("a digest was sent but not filed: the database refuses it", about)
        settled = self._claims.settle([replace(delivery, outgoing=None)])
        return [SettledDigest(delivery, DigestResult.SENT)] if notification.id in settled else []

    def _settle(self, deliveries: Sequence[Delivery]) -> list[SettledDigest]:
        self._update_grants(deliveries)
        final: list[Delivery] = []
        due_again: list[Delivery] = []
        waiting: list[Delivery] = []
        for each in deliveries:
            self._suppress(each)
            match each.next_step(self._policy):
                case NextStep.SENT | NextStep.FAIL_UNCONFIRMED:
                    final.append(each)
                case NextStep.FAIL | NextStep.RETRY if is_for_long(each.outcome):
                    final.append(each)
                case NextStep.ASK:
                    waiting.append(each)
                case NextStep.RELEASE if each.waits_for:
                    waiting.append(each)
                case NextStep.FAIL | NextStep.RETRY | NextStep.RELEASE:
                    due_again.append(each)
        if waiting:
            self._claims.defer([self._deferral(each) for each in waiting])
        return [*self._settle_final(final), *self._forget(due_again)]

    def _settle_final(self, final: Sequence[Delivery]) -> list[SettledDigest]:
        if not final:
            return []
        ids = self._claims.settle(final)
        settled = [each for each in final if each.notification.id in ids]
        self._count_templates([each for each in settled if each.outcome.kind is OutcomeKind.ACCEPTED])
        return [SettledDigest(each, DigestResult.of(each)) for each in settled]

    def _forget(self, due_again: Sequence[Delivery]) -> list[SettledDigest]:
        """Those that were not tried, or that Gmail does not know, count as nothing."""
        if not due_again:
            return []
        ids = self.forget([each.notification for each in due_again])
        tried = [each for each in due_again if each.outcome.kind is not OutcomeKind.NOT_SENT]
        return [SettledDigest(each, DigestResult.of(each)) for each in tried if each.notification.id in ids]

    def _deferral(self, delivery: Delivery) -> Deferral:
        """Gmail is asked half a minute later, and again, later each time, while it defers the question.

        A digest whose account may not send more waits as it is, so that campaigns leave a message for it; then it is
        claimed anew.
        """
        notification, outcome = delivery.notification, delivery.outcome
        if delivery.waits_for and outcome.delay_seconds:
            due_at = outcome.at + timedelta(seconds=outcome.delay_seconds)
            return Deferral(notification.id, due_at, 0, may_have_arrived=False, waits_for=delivery.waits_for)
        if outcome.kind is OutcomeKind.NOT_SENT:  # the question was not asked
            due_at, attempts = self._clock(), notification.attempts
        else:
            attempts = notification.attempts + 1
            due_at = outcome.at + timedelta(seconds=self._policy.question_delay_seconds(outcome, attempts))
        return Deferral(notification.id, due_at, attempts, may_have_arrived=delivery.may_have_arrived)

    def _count_templates(self, sent: Sequence[Delivery]) -> None:
        used = Counter(
            (template_id, each.notification.tenant_id)
            for each in sent
            if (template_id := DigestContent.of(each.notification).template_id)
        )
        for (template_id, tenant_id), count in sorted(used.items()):
            self._db.execute(
                self._sql["count_template"],
                template_id=template_id,
                tenant_id=tenant_id,
                used=count,
                now=self._clock(),
            )

    def _suppress(self, delivery: Delivery) -> None:
        """The address opted out, or there is no such mailbox: later messages to it are not tried."""
        notification, suppression = delivery.notification, delivery.outcome.suppression
        if suppression is None or notification.tenant_id is None:
            return
        suppress(
            self._db,
            self._counters,
            SuppressionList(notification.tenant_id, notification.channel),
            notification.address if notification.channel == "email" else f"+{notification.address}",
            suppression,
            reason=delivery.outcome.reason,
            code=delivery.outcome.code,
        )

    def _update_grants(self, deliveries: Sequence[Delivery]) -> None:
        """Saves refreshed Gmail tokens, and clears those of revoked grants."""
        accounts = {
            each.outgoing.gmail.user_id: each.outgoing.gmail
            for each in deliveries
            if each.outgoing and each.outgoing.gmail
        }
        revoked = {
            each.outgoing.gmail.user_id
            for each in deliveries
            if each.grant_revoked and each.outgoing and each.outgoing.gmail
        }
        for user_id, account in accounts.items():
            update_grant(self._db, account, self._clock(), revoked=user_id in revoked)
