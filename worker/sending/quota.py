"""QuotaLedger: how many messages an account may send in any 24 hours, counted over all processes and machines.

Messages are reserved, and the reservation is committed, before any of them leaves; what did not leave is given back.
So no process sends more than the limit, whenever it dies: what a dead one had reserved stays counted. worker.quota
has one row for each account, tenant and hour. An hour counts until it has been over for 24 hours, so an account sends
rather a little less than it may.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from worker.runtime.db import Database, queries

ACCOUNTS = {
    "smtp": "the mail server",
    "gmail": "the Gmail account",
    "whatsapp": "the WhatsApp numbers",
}
ACCOUNT_KINDS = tuple(ACCOUNTS)
LOOK_AGAIN = timedelta(seconds=30)
COUNTED = timedelta(hours=25)  # from the beginning of an hour until it does not count any more


@dataclass(frozen=True, slots=True)
class Quota:
    """The limits of one account, for the messages of one tenant."""

    account_kind: str  # one of ACCOUNT_KINDS
    account: str
    tenant_id: str  # '': the messages of whoever runs the CRM
    limit: int  # messages in 24 hours
    share: int | None = None  # of them, for this tenant's campaigns while there are other tenants
    kept_back: int = 0  # of them, which campaigns leave to notifications

    @property
    def key(self) -> str:
        """Names the account among those of all kinds."""
        return f"{self.account_kind} {self.account}"


class HourUse(NamedTuple):
    """What was used in one hour; ``hour`` is its beginning, UTC without a zone."""

    hour: datetime
    used: int


@dataclass(frozen=True, slots=True)
class QuotaState:
    """What is used of a limit that holds for a campaign. All times are UTC without a zone."""

    account_kind: str
    account: str
    limit: int
    used_by_hour: tuple[HourUse, ...]  # the oldest first

    def used(self, at: datetime) -> int:
        """How many messages count at that time, if none is sent until then."""
        return sum(each.used for each in self.used_by_hour if each.hour + COUNTED > _hour(at))

    def left(self, now: datetime) -> int:
        """How many messages may be sent now."""
        return max(0, self.limit - self.used(now))

    def free_by(self, at: datetime) -> int:
        """How many messages may be sent at that time, if none is sent until then."""
        return self.left(at)

    def more_at(self, now: datetime) -> datetime | None:
        """When more may be sent than now; None when nothing is used."""
        now_left = self.left(now)
        ends = (each.hour + COUNTED for each in self.used_by_hour)
        return next((end for end in ends if self.left(end) > now_left), None)


def campaign_states(
    quota: Quota, used: Iterable[HourUse], used_by_tenant: Iterable[HourUse], *, is_shared: bool
) -> tuple[QuotaState, ...]:
    """The limits that hold for a campaign: the account's, and where it ``is_shared`` the tenant's share of it."""
    kind, account = quota.account_kind, quota.account
    states = [QuotaState(kind, account, quota.limit - quota.kept_back, tuple(each for each in used if each.used))]
    if quota.share is not None and is_shared:
        by_tenant = tuple(each for each in used_by_tenant if each.used)
        states.append(QuotaState(kind, account, quota.share, by_tenant))
    return tuple(states)


def free_at(states: tuple[QuotaState, ...], now: datetime) -> datetime:
    """When a campaign may send again that all these limits hold for, if nothing is given back until then."""
    waits = [each.more_at(now) or now + COUNTED for each in states if not each.left(now)]
    return max(waits, default=now + LOOK_AGAIN)  # what is left is for notifications, or was given back just now


def why_used_up(quota: Quota, states: tuple[QuotaState, ...], now: datetime) -> str:
    """Why a campaign waits, in words for its user: of the limits that it has reached, the lowest."""
    lowest = min((each.limit for each in states if not each.left(now)), default=None)
    account = ACCOUNTS[quota.account_kind]
    if lowest is None:
        return f"what is left of the limit of {account} is for reminders"
    if lowest == quota.limit:
        return f"the limit of {account}, {quota.limit:,} in 24 hours, is used up"
    return f"campaigns may use {lowest:,} of the limit of {account}, {quota.limit:,} in 24 hours, and have done so"


@dataclass(frozen=True, slots=True)
class Reservation:
    """``number`` messages that may be sent, reserved in an hour."""

    quota: Quota
    hour: datetime
    number: int


class QuotaUsedUp(Exception):
    """Nothing may be sent through the account ``until`` then, UTC without a zone."""

    def __init__(self, reason: str, until: datetime) -> None:
        super().__init__(reason)
        self.until = until


class QuotaLedger:
    """What the accounts used, in the worker's table. For the thread that has the database connection."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._sql = queries("quota")
        self._in_use = True  # as far as is known

    def reserve(self, quota: Quota, want: int, now: datetime) -> Reservation:
        """Reserves at most ``want`` messages of a campaign: not what notifications that wait need.

        Raises QuotaUsedUp when none is left.
        """
        if granted := self._reserve(quota, want, now, is_campaign=True):
            return Reservation(quota, _hour(now), granted)
        states = self.states(quota, now)
        raise QuotaUsedUp(why_used_up(quota, states, now), free_at(states, now))

    def reserve_notification(self, quota: Quota, now: datetime) -> Reservation | None:
        """Reserves one message of reminders or trial, down to the last one; None when none is left."""
        granted = self._reserve(quota, 1, now, is_campaign=False)
        return Reservation(quota, _hour(now), granted) if granted else None

    def give_back(self, reservation: Reservation, number: int) -> None:
        """So many of the reserved messages did not leave."""
        if number <= 0:
            return
        quota = reservation.quota
        self._db.execute(
            self._sql["give_back"],
            account_kind=quota.account_kind,
            account=quota.account,
            tenant_id=quota.tenant_id,
            hour=reservation.hour,
            number=number,
        )

    def states(self, quota: Quota, now: datetime) -> tuple[QuotaState, ...]:
        """The limits that hold for a campaign, in one statement: the account's, and the tenant's share of it."""
        rows = self._db.all(
            self._sql["used"],
            account_kind=quota.account_kind,
            account=quota.account,
            tenant_id=quota.tenant_id,
            now=now,
        )
        return campaign_states(
            quota,
            [HourUse(row["hour"], row["used"]) for row in rows],
            [HourUse(row["hour"], row["used_by_tenant"]) for row in rows],
            is_shared=rows[0]["is_shared"],
        )

    def used_ratios(self, now: datetime) -> dict[str, float]:
        """How much the fullest account of each kind has used of its limit; {} where there is nothing to measure."""
        if not self._in_use:
            return {}
        rows = self._db.all(self._sql["used_ratios"], now=now)
        self._in_use = bool(rows)
        return dict.fromkeys(ACCOUNT_KINDS, 0.0) | {row["account_kind"]: row["ratio"] for row in rows}

    def drop_old(self, now: datetime) -> None:
        """Deletes what does not count any more."""
        self._db.execute(self._sql["drop_old"], now=now)

    def _reserve(self, quota: Quota, want: int, now: datetime, *, is_campaign: bool) -> int:
        self._in_use = True
        row = self._db.execute_one_prepared(
            "reserve",
            self._sql["reserve"],
            account_kind=quota.account_kind,
            account=quota.account,
            tenant_id=quota.tenant_id,
            want=want,
            limit=quota.limit,
            kept_back=quota.kept_back,
            share=quota.share,
            is_campaign=is_campaign,
            now=now,
        )
        return int(row["granted"]) if row else 0


def _hour(at: datetime) -> datetime:
    return at.replace(minute=0, second=0, microsecond=0)
