"""Claims, marks, settles and releases notifications: all that is written to worker.notice.

A notification is a row of worker.notice until it is settled. It is marked as handed over, and the mark is committed,
before it is sent to its provider. What a dead process held without the mark was never sent, and is sent again; what
has the mark is unconfirmed, and its provider is asked about it where it can be asked (Gmail).
"""

import json
import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import psycopg2

from worker.notifications.delivery import Delivery
from worker.notifications.notification import Notification
from worker.runtime.db import Database, queries
from worker.runtime.lease import LEASE_SECONDS, Lease
from worker.sending.outbox import is_refused_row, json_chunks
from worker.sending.outcomes import ASK_AFTER_SECONDS
from worker.sending.quota import QuotaLedger

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Deferral:
    """A notification that has to wait. ``may_have_arrived``: its provider is asked before anything is sent again.

    ``waits_for``: the account whose quota is used up; campaigns leave a message of it.
    """

    id: str
    due_at: datetime
    attempts: int
    may_have_arrived: bool
    waits_for: str | None = None


class NotificationClaims:
    """The notifications that one process has claimed for one job."""

    def __init__(self, db: Database, job: str) -> None:
        self._db = db
        self._job = job
        self._lease = Lease()
        self.quotas = QuotaLedger(db)
        self._sql = queries("notifications")

    @property
    def holder(self) -> str:
        """The name that this process's claims are held under."""
        return self._lease.holder

    def claim_waiting(self, now: datetime, size: int) -> list[Notification]:
        """Claims notifications that wait and are due, those that waited longest first."""
        rows = self._db.execute(self._sql["claim_waiting"], job=self._job, holder=self.holder, now=now, size=size)
        return [Notification(**row) for row in rows]

    def next_due(self) -> datetime | None:
        """When the next waiting notification is due."""
        row = self._db.one(self._sql["next_due"], job=self._job)
        return row["at"] if row else None

    def release_orphans(self, now: datetime, in_hand: Collection[str]) -> None:
        """Lets the notifications wait that a dead process left behind; those of living processes are left alone.

        To be called at the start of a tick. ``in_hand``: the ids that this process still works on. What it holds
        beside them was left behind by a tick that failed.
        """
        orphans = [
            row
            for row in self._db.all(self._sql["held"], job=self._job, lease_seconds=LEASE_SECONDS)
            if self._lease.is_orphaned(row["holder"], lapsed=row["lapsed"], in_hand=row["id"] in in_hand)
        ]
        if not orphans:
            return
        ids, holders = [row["id"] for row in orphans], [row["holder"] for row in orphans]
        ask_at = now + timedelta(seconds=ASK_AFTER_SECONDS)
        self._db.execute(self._sql["release_orphans"], ids=ids, holders=holders, now=now, ask_at=ask_at)
        log.warning("messages left by a dead process were released", {"job": self._job, "messages": len(orphans)})

    def hand_over(self, ids: Sequence[str]) -> dict[str, str | None]:
        """Marks messages as handed over, just before they are sent: those that this process still holds.

        Returns their ids. With a reason: its address is suppressed, so it is not marked and must not be sent.
        """
        if not ids:
            return {}
        rows = self._db.execute(self._sql["hand_over"], ids=ids, holder=self.holder)
        return {row["id"]: row["opted_out"] for row in rows}

    def opted_out(self, ids: Sequence[str]) -> dict[str, str]:
        """Which of these messages may not be sent any more, and why: their address was suppressed meanwhile."""
        rows = self._db.all(self._sql["opted_out"], ids=ids, holder=self.holder)
        return {row["id"]: row["reason"] for row in rows}

    def renew(self) -> None:
        """Says that this process is alive, when it is time to say so again."""
        if self._lease.take_renewal():
            self._db.execute(self._sql["renew"], job=self._job, holder=self.holder)

    def settle(self, deliveries: Iterable[Delivery]) -> set[str]:
        """Deletes the notifications and files the accepted e-mails; returns the ids that this process still held.

        Where "EmailLog" refuses an e-mail (its user was deleted meanwhile) the notification is settled without it.
        """
        ended = list(deliveries)
        try:
            return self._settle(ended)
        except psycopg2.Error as error:
            if not is_refused_row(error):
                raise
            if len(ended) == 1:
                reason = error.diag.message_primary
                log.warning(
                    "an e-mail was sent but not filed", {"notice": ended[0].notification.id, "reason": reason}
                )
                return self._settle([replace(ended[0], outgoing=None)])
        return {settled for each in ended for settled in self.settle([each])}

    def _settle(self, ended: Sequence[Delivery]) -> set[str]:
        """In one statement, or in several where the outbox is too large for that: each files what it deletes."""
        unfiled = [each.notification.id for each in ended if not _is_filed(each)]
        settled = set()
        for chunk in json_chunks(_outbox_record(each) for each in ended if _is_filed(each)):
            ids = unfiled + [record["notice_id"] for record in json.loads(chunk)]
            settled |= self._settle_chunk(ids, chunk)
            unfiled = []
        return settled | (self._settle_chunk(unfiled, "[]") if unfiled else set())

    def _settle_chunk(self, ids: Sequence[str], outbox: str) -> set[str]:
        rows = self._db.execute(self._sql["settle"], ids=ids, holder=self.holder, outbox=outbox)
        return {row["id"] for row in rows}

    def defer(self, deferrals: Iterable[Deferral]) -> None:
        """Releases claims: each notification waits until it is due."""
        as_json = json.dumps([asdict(each) for each in deferrals], default=datetime.isoformat)
        self._db.execute(self._sql["defer"], deferrals=as_json, holder=self.holder)


def _is_filed(delivery: Delivery) -> bool:
    return bool(delivery.outcome.accepted and delivery.outgoing and delivery.outgoing.outbox)


def _outbox_record(delivery: Delivery) -> dict[str, Any]:
    outcome, outgoing = delivery.outcome, delivery.outgoing
    if not (outcome.accepted and outgoing and outgoing.outbox):
        raise ValueError("this message is not filed")
    return {**outgoing.outbox.record(outcome.accepted, outcome.at), "notice_id": delivery.notification.id}
