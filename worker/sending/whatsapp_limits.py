"""How many people each tenant's WhatsApp number may write to first in 24 hours, read from Meta once an hour.

The answer is in worker.whatsapp_number, for all processes. It is read in a thread, so that no other campaign waits
for Meta. Where it cannot be read, what was known before holds; where nothing was, no limit is enforced.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime, timedelta

from worker.errors import SendError
from worker.providers.whatsapp_number import NumberStatus, WhatsAppNumber
from worker.runtime.db import Database, queries
from worker.sending.account_quotas import whatsapp_quota
from worker.sending.accounts import evict_oldest
from worker.sending.quota import Quota
from worker.sending.requests import RequestThreads

log = logging.getLogger(__name__)

KEPT = timedelta(hours=1)
REMEMBERED = timedelta(days=1)  # for reminders, which do not ask
OTHERS_KEPT = timedelta(minutes=1)  # how long it is remembered whether a campaign is the tenant's only one
CAMPAIGNS_KEPT = 512
THREADS = 2
QUICK_SECONDS = 0.5  # most answers come sooner: then the campaign need not wait for the next look
QUICK_PAUSE_SECONDS = 5.0  # after one that did not: many tenants must not stop all other campaigns together
PATIENCE_SECONDS = 10.0  # after that the campaign goes on without an answer


class LimitUnread(Exception):
    """The limit of the number is being read: look again in a moment."""


@dataclass(frozen=True, slots=True)
class _Known:
    phone_id: str
    people: int | None
    until: datetime


@dataclass(slots=True)
class _Question:
    tenant_id: str
    number: WhatsAppNumber
    give_up_at: float  # time.monotonic()


class WhatsAppLimits:
    """The limits as one process knows them. For the thread that has the database connection."""

    def __init__(self, db: Database, clock: Callable[[], datetime]) -> None:
        self._db = db
        self._clock = clock
        self._sql = queries("quota")
        self._known: dict[str, _Known] = {}  # by tenant
        self._asked: dict[str, _Question] = {}  # by tenant; those that are not answered
        self._threads: RequestThreads[_Question, NumberStatus] = RequestThreads(THREADS)
        self._others: OrderedDict[str, tuple[datetime, bool]] = (
            OrderedDict()
        )  # by campaign: are there others, seen when
        self._quick_from = 0.0  # time.monotonic() from which an answer may be waited for
        self._said: set[str] = set()  # tenants whose limit could not be read: that is logged once

    def quota(self, tenant_id: str, number: WhatsAppNumber) -> Quota | None:
        """The quota of a tenant's campaigns; None: no limit is known. Raises LimitUnread while it is being read."""
        now = self._clock()
        known = self._known.get(tenant_id)
        if known is None or known.phone_id != number.phone_id or known.until <= now:
            known = self._known[tenant_id] = self._look_up(tenant_id, number, now)
        return whatsapp_quota(tenant_id, known.people) if known.people else None

    def count_once(self, quota: Quota, campaign_id: str, recipient_ids: Sequence[str]) -> None:
        """Of a settled batch: who got another campaign within a day counts once, because Meta counts people."""
        now = self._clock()
        which = {"tenant_id": quota.tenant_id, "campaign_id": campaign_id, "now": now}
        looked_at, found = self._others.get(campaign_id, (now - OTHERS_KEPT, False))
        if now - looked_at >= OTHERS_KEPT:
            row = self._db.one(self._sql["other_campaigns"], **which)
            found = bool(row and row["found"])
            self._others[campaign_id] = now, found
            evict_oldest(self._others, campaign_id, CAMPAIGNS_KEPT)
        if found:
            self._db.execute(
                self._sql["count_once"],
                account_kind=quota.account_kind,
                account=quota.account,
                ids=list(recipient_ids),
                **which,
            )

    def close(self) -> bool:
        """False: a thread still waits for Meta."""
        return self._threads.close()

    def _look_up(self, tenant_id: str, number: WhatsAppNumber, now: datetime) -> _Known:
        found = self._kept(tenant_id, number, now)
        if found is None:
            self._ask(tenant_id, number)
            self._keep_answers()
            found = self._kept(tenant_id, number, now)
        if found is None:
            raise LimitUnread
        return found

    def _kept(self, tenant_id: str, number: WhatsAppNumber, now: datetime) -> _Known | None:
        """What this or another process read within the last hour."""
        row = self._db.one(self._sql["number"], tenant_id=tenant_id, phone_id=number.phone_id, since=now - KEPT)
        return _Known(number.phone_id, row["people"], row["read_at"] + KEPT) if row else None

    def _ask(self, tenant_id: str, number: WhatsAppNumber) -> None:
        open_question = self._asked.get(tenant_id)
        if open_question is None or open_question.number.phone_id != number.phone_id:
            question = _Question(tenant_id, number, time.monotonic() + PATIENCE_SECONDS)
            self._asked[tenant_id] = question
            self._threads.submit(question, number.read)
            is_slow = time.monotonic() < self._quick_from
            if not is_slow and not self._threads.wait(QUICK_SECONDS, owners=[question]):
                self._quick_from = time.monotonic() + QUICK_PAUSE_SECONDS

    def _keep_answers(self) -> None:
        for question, answer in self._threads.collect():
            if self._asked.get(question.tenant_id) is question:
                del self._asked[question.tenant_id]
                self._keep(question, answer)
        for question in self._asked.values():
            if question.give_up_at <= time.monotonic():
                self._keep_failure(question, "no answer has come yet")

    def _keep(self, question: _Question, answer: Future[NumberStatus]) -> None:
        try:
            status = answer.result()
        except SendError as error:
            self._keep_failure(question, str(error))
            return
        self._said.discard(question.tenant_id)
        self._db.execute(
            self._sql["keep_number"],
            tenant_id=question.tenant_id,
            phone_id=question.number.phone_id,
            people=status.people,
            quality=status.quality,
            now=self._clock(),
        )

    def _keep_failure(self, question: _Question, reason: str) -> None:
        if question.tenant_id not in self._said:
            self._said.add(question.tenant_id)
            log.warning(
                "WhatsApp does not say how many people may be written to: what was known before holds, or no limit",
                {"tenant": question.tenant_id, "reason": reason},
            )
        self._db.execute(
            self._sql["number_unread"],
            tenant_id=question.tenant_id,
            phone_id=question.number.phone_id,
            now=self._clock(),
        )


def known_quotas(db: Database, now: datetime) -> dict[str, Quota]:
    """The quotas of all tenants whose limit a campaign has read lately, by tenant."""
    rows = db.all(queries("quota")["numbers"], since=now - REMEMBERED)
    return {row["tenant_id"]: whatsapp_quota(row["tenant_id"], row["people"]) for row in rows}
