"""How digests end: filed and counted, forgotten so that their leads are due again, or left to be asked after.

What was reminded of stays remembered for what was sent and for what nobody knows; it is forgotten, in one statement
with the digest, for what surely did not leave.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum

import psycopg2

from worker.notifications.claims import ASK_AFTER_SECONDS, NotificationClaims
from worker.notifications.notification import Delivery, Notification
from worker.runtime.backoff import backoff_seconds
from worker.runtime.db import Database, is_unavailable, queries
from worker.runtime.settings import Settings
from worker.sending.accounts import GmailAccount
from worker.sending.outcomes import OutcomeKind as Kind

log = logging.getLogger(__name__)

ASKS = 12  # times that Gmail is asked while it puts off the question: about six hours
ASK_LIMIT_SECONDS = 3600.0


class DigestEnding(StrEnum):
    """What has to happen with a digest."""

    SENT = "sent"
    OPTED_OUT = "opted out"
    LOST = "lost"  # nobody will ever know: not sent again
    DUE_AGAIN = "due again"
    ASK_LATER = "ask later"


@dataclass(frozen=True, slots=True)
class SettledDigest:
    """A digest that this process settled: sent, failed or unconfirmed."""

    delivery: Delivery
    outcome: str


class DigestSettlement:
    def __init__(
        self, db: Database, notices: NotificationClaims, settings: Settings, clock: Callable[[], datetime]
    ) -> None:
        self._db = db
        self._notices = notices
        self._resend = settings.unconfirmed_sends == "resend"
        self._clock = clock
        self._sql = queries("reminders")
        self._grants = queries("campaign")  # what Google says of a user's grant is kept in one way

    def settle(self, wave: Sequence[Delivery]) -> list[SettledDigest]:
        """Settles them all in one transaction; returns what ended, but for what somebody else settled meanwhile.

        Where the database refuses that, each by itself, so that one tenant's row stops no other's.
        """
        try:
            with self._db.transaction():
                return self._settle(wave)
        except psycopg2.Error as error:
            if is_unavailable(error):
                raise
            if len(wave) > 1:
                return [ended for each in wave for ended in self.settle([each])]
            return self._settle_unfiled(wave[0], error)

    def forget(self, notices: Sequence[Notification]) -> set[str]:
        """Gives the leads of digests back that surely did not leave: due at once, as they are by then.

        Returns the ids of those that were still this process's.
        """
        ids = [notice.id for notice in notices]
        return {row["id"] for row in self._db.all(self._sql["forget"], ids=ids, holder=self._notices.holder)}

    def _settle_unfiled(self, delivery: Delivery, error: psycopg2.Error) -> list[SettledDigest]:
        """What was sent was sent, even where it cannot be filed (its user was deleted meanwhile, say)."""
        reason = error.diag.message_primary or type(error).__name__  # its details may hold addresses
        which = {"tenant": delivery.notice.tenant_id, "channel": delivery.notice.channel, "reason": reason}
        if delivery.outcome.kind is not Kind.ACCEPTED:
            log.error("a digest stays unsettled: the database refuses it", which)
            return []
        log.error("a digest was sent, and the database refuses to file it", which)
        settled = self._notices.settle([replace(delivery, letter=None)])
        return [SettledDigest(delivery, "sent")] if delivery.notice.id in settled else []

    def _settle(self, wave: Sequence[Delivery]) -> list[SettledDigest]:
        self._keep_grants(wave)
        ended: list[SettledDigest] = []
        by_ending: dict[DigestEnding, list[Delivery]] = {}
        for delivery in wave:
            by_ending.setdefault(self._ending(delivery), []).append(delivery)
        sent, opted_out, lost = (
            by_ending.get(each, []) for each in (DigestEnding.SENT, DigestEnding.OPTED_OUT, DigestEnding.LOST)
        )
        again = by_ending.get(DigestEnding.DUE_AGAIN, [])
        if over := [*sent, *opted_out, *lost]:
            mine = self._notices.settle(over)
            self._count_templates([each for each in sent if each.notice.id in mine])
            self._suppress([each for each in opted_out if each.notice.id in mine])
            ended += [SettledDigest(each, _outcome(each)) for each in over if each.notice.id in mine]
        if again:
            mine = self.forget([each.notice for each in again])
            tried = [each for each in again if each.outcome.kind is not Kind.NOT_SENT]
            ended += [SettledDigest(each, _outcome(each)) for each in tried if each.notice.id in mine]
        back = [self._put_back(each) for each in by_ending.get(DigestEnding.ASK_LATER, [])]
        if back:
            self._notices.put_back(back)
        return ended

    def _ending(self, delivery: Delivery) -> DigestEnding:
        kind, asked = delivery.outcome.kind, delivery.notice.handed_over
        if kind is Kind.ACCEPTED:
            return DigestEnding.SENT
        if kind is Kind.OPTED_OUT:
            return DigestEnding.OPTED_OUT
        if kind is Kind.UNCONFIRMED and not asked and delivery.letter and delivery.letter.gmail:
            return DigestEnding.ASK_LATER
        if not delivery.may_have_arrived:
            return DigestEnding.DUE_AGAIN
        put_off = kind in (Kind.DEFERRED, Kind.RECIPIENT_DEFERRED)
        if kind is Kind.NOT_SENT or (put_off and delivery.letter and delivery.notice.attempts < ASKS):
            return DigestEnding.ASK_LATER
        return DigestEnding.DUE_AGAIN if self._resend else DigestEnding.LOST

    def _put_back(self, delivery: Delivery) -> tuple[Delivery, datetime, int]:
        """When it is asked after, again and again where the question was put off."""
        if delivery.outcome.kind is Kind.NOT_SENT:
            return delivery, self._clock(), delivery.notice.attempts
        attempts = delivery.notice.attempts + 1
        pause = max(
            backoff_seconds(attempts, ASK_AFTER_SECONDS, ASK_LIMIT_SECONDS), delivery.outcome.delay_seconds or 0
        )
        return delivery, delivery.outcome.at + timedelta(seconds=min(pause, ASK_LIMIT_SECONDS)), attempts

    def _count_templates(self, sent: Sequence[Delivery]) -> None:
        made_from = [
            (template, each.notice.tenant_id) for each in sent if (template := each.notice.content["templateId"])
        ]
        for (template_id, tenant_id), count in sorted(Counter(made_from).items()):
            self._db.all(
                self._sql["count_template"],
                template_id=template_id,
                tenant_id=tenant_id,
                used=count,
                now=self._clock(),
            )

    def _suppress(self, opted_out: Sequence[Delivery]) -> None:
        for each in opted_out:
            notice = each.notice
            self._db.all(
                self._sql["suppress"], tenant_id=notice.tenant_id, channel=notice.channel, address=notice.address,
                reason=each.outcome.reason, now=self._clock(),
            )  # fmt: skip

    def _keep_grants(self, wave: Sequence[Delivery]) -> None:
        """Saves refreshed Gmail tokens, and clears those of a grant that was withdrawn."""
        accounts = {
            each.letter.gmail.user_id: each.letter.gmail for each in wave if each.letter and each.letter.gmail
        }
        revoked = {each.letter.gmail.user_id for each in wave if each.revoked and each.letter and each.letter.gmail}
        for user_id, account in accounts.items():
            self._keep_grant(account, revoked=user_id in revoked)

    def _keep_grant(self, account: GmailAccount, *, revoked: bool) -> None:
        which = {
            "user_id": account.user_id, "tenant_id": account.tenant_id, "refresh_token": account.refresh_token,
            "now": self._clock(),
        }  # fmt: skip
        if revoked:
            self._db.all(self._grants["clear_gmail"], **which)
        elif changed := account.token.take_changed():
            expiry = changed.expires_at.astimezone(UTC).replace(tzinfo=None)
            self._db.all(self._grants["save_token"], **which, token=changed.access_token, expiry=expiry)


def _outcome(delivery: Delivery) -> str:
    kind = delivery.outcome.kind
    if kind is Kind.ACCEPTED:
        return "sent"
    return "unconfirmed" if delivery.may_have_arrived else "failed"
