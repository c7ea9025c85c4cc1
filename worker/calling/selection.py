"""Chooses the calls that may be placed now: whose turn it is, and which of a tenant's calls come next."""

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from worker.calling.accounts import CallingAccounts, CallSettings, TwilioAccount
from worker.calling.eligibility import CallEligibility
from worker.calling.queued_call import CallCandidate, CallFailure, QueuedCall, WaitingCall
from worker.calling.requests import ROUND_SECONDS, CallRequests
from worker.calling.settlement import CallSettlement
from worker.content.call_hours import CallWindows
from worker.errors import TransportMissing
from worker.runtime.db import queries
from worker.runtime.job import JobContext

CALLS_A_TURN = 5  # of one tenant, then it is the others' turn
SPARE = 20  # calls looked at beyond those wanted, since some cannot be dialled
LONG_SPARE = 500  # ... when all of them wait for the hours of their numbers


@dataclass(frozen=True, slots=True)
class OpenAccount:
    """An account that may call now. ``slots``: how many calls its tenant may start beside those on their way."""

    account: TwilioAccount
    slots: int
    settings: CallSettings

    @property
    def wanted(self) -> int:
        """How many calls it may start in this turn, if its pace allows."""
        return min(self.slots, CALLS_A_TURN)


@dataclass(frozen=True, slots=True)
class CallChoice:
    """The calls that may be placed now, and for each tenant that has more the seconds until its next one."""

    candidates: list[CallCandidate]
    wait_seconds: list[float]


class CallSelection:
    """Chooses calls for one process; remembers when each tenant had its last turn."""

    def __init__(
        self,
        context: JobContext,
        accounts: CallingAccounts,
        settlement: CallSettlement,
        requests: CallRequests,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._context = context
        self._db = context.database
        self._accounts = accounts
        self._settlement = settlement
        self._requests = requests
        self._monotonic = monotonic
        windows = CallWindows(context.settings.call_window, context.settings.call_windows)
        self._eligibility = CallEligibility(windows, accounts)
        self._sql = queries("calls")
        self._served_at: dict[str, float] = {}  # tenant -> monotonic() of its last turn

    def open_accounts(self, now: datetime) -> list[OpenAccount]:
        """The accounts whose tenants may call now, the longest waiting first.

        The calls of tenants without a usable account fail here.
        """
        found = []
        for row in self._db.all(self._sql["due_tenants"], now=now):
            if row["slots"] <= 0 or not self._context.may_continue:
                continue
            settings = CallSettings.from_row(row)
            account = self._open_account(settings, now)
            if account is not None:
                found.append(OpenAccount(account, row["slots"], settings))
        return sorted(found, key=lambda each: self._served_at.get(each.account.tenant_id, float("-inf")))

    def choose(self, accounts: Sequence[OpenAccount], now: datetime) -> CallChoice:
        """The calls that the pace of these accounts allows. Raises redis.RedisError."""
        candidates: list[CallCandidate] = []
        waits: list[float] = []
        dialable = self._dialable(accounts, now)
        for each in accounts:
            tenant_id = each.account.tenant_id
            calls = dialable.get(tenant_id, [])
            if not calls or self._accounts.is_refused(each.account):
                continue
            granted, wait_seconds = each.account.pace.take(min(each.wanted, len(calls)))
            if wait_seconds > 2 / each.account.pace.rate_per_second:
                continue  # more than its pace asks for: Twilio deferred the account in an answer to another process
            candidates += calls[:granted]
            if granted:
                self._served_at[tenant_id] = self._monotonic()
            if len(calls) > granted and each.slots > granted:
                waits.append(wait_seconds)
        return CallChoice(candidates, waits)

    def _open_account(self, settings: CallSettings, now: datetime) -> TwilioAccount | None:
        try:
            if not settings.business_hours().open_at(now):
                return None
            account = self._accounts.account(settings)
        except TransportMissing as error:
            self._fail_next_calls(settings.tenant_id, str(error), now)
        except ValueError as error:
            self._accounts.report_problem(settings.tenant_id, str(error))
        else:
            return None if self._accounts.is_in_backoff(account) else account
        return None

    def _fail_next_calls(self, tenant_id: str, reason: str, now: datetime) -> None:
        calls = self._candidates([tenant_id], [SPARE], now)
        self._settlement.unclaimed.fail([CallFailure(call, reason, is_final=False) for call in calls])

    def _dialable(self, accounts: Sequence[OpenAccount], now: datetime) -> dict[str, list[CallCandidate]]:
        """Each tenant's next calls, one more than wanted if there are so many.

        Those before them that cannot be dialled fail here, those whose numbers may not be called now are put off, and
        neither use a slot.
        """
        found: defaultdict[str, list[CallCandidate]] = defaultdict(list)
        left, spare, until = list(accounts), SPARE, self._monotonic() + ROUND_SECONDS
        while left:
            queued: defaultdict[str, deque[QueuedCall]] = defaultdict(deque)
            tenant_ids, limits = [each.account.tenant_id for each in left], [each.wanted + spare for each in left]
            for call in self._candidates(tenant_ids, limits, now):
                queued[call.tenant_id].append(call)
            read = {tenant_id: len(calls) for tenant_id, calls in queued.items()}
            put_off = self._look_through(left, queued, found, now)
            if self._monotonic() > until:
                break
            # those that may have more calls behind the ones that were put off
            left = [
                each
                for each, limit in zip(left, limits, strict=True)
                if put_off[each.account.tenant_id]
                and not found[each.account.tenant_id]
                and read[each.account.tenant_id] == limit
            ]
            spare = LONG_SPARE
        return found

    def _look_through(
        self,
        accounts: Sequence[OpenAccount],
        queued: Mapping[str, deque[QueuedCall]],
        found: Mapping[str, list[CallCandidate]],
        now: datetime,
    ) -> Counter[str]:
        """Adds to ``found`` what may be called of the ``queued`` calls; returns how many each tenant has put off."""
        by_tenant = {each.account.tenant_id: each for each in accounts}
        failures: list[CallFailure] = []
        waiting: list[WaitingCall] = []
        while looked_at := [
            queued[tenant_id].popleft()
            for tenant_id, account in by_tenant.items()
            for _ in range(min(account.wanted + 1 - len(found[tenant_id]), len(queued[tenant_id])))
        ]:
            judged = [self._judge(by_tenant[call.tenant_id], call, now) for call in looked_at]
            failures += [each for each in judged if isinstance(each, CallFailure)]
            waiting += [each for each in judged if isinstance(each, WaitingCall)]
            candidates = [each for each in judged if isinstance(each, CallCandidate)]
            blocked = self._blocked_numbers(candidates)
            for each in candidates:
                key = each.call.tenant_id, each.to_number
                if key not in blocked:
                    found[each.call.tenant_id].append(each)
                elif reason := blocked[key]:
                    failures.append(CallFailure(each.call, f"not called: {reason}", is_final=True))
        self._settlement.unclaimed.fail(failures)
        self._settlement.unclaimed.put_off(waiting)
        return Counter(each.call.tenant_id for each in waiting)

    def _judge(
        self, account: OpenAccount, call: QueuedCall, now: datetime
    ) -> CallCandidate | WaitingCall | CallFailure:
        return self._eligibility.judge(call, account.account, account.settings, now)

    def _candidates(self, tenant_ids: list[str], limits: list[int], now: datetime) -> list[QueuedCall]:
        """The next calls of each tenant, at most as many as its limit."""
        # a call that another worker put back while this one was frozen: its request here may still end, and settle it
        left_alone = [*self._settlement.unclaimed.left_alone, *self._requests.keys]
        rows = self._db.all(
            self._sql["candidates"], tenant_ids=tenant_ids, limits=limits, left_alone=left_alone, now=now
        )
        return [QueuedCall(**row) for row in rows]

    def _blocked_numbers(self, candidates: Sequence[CallCandidate]) -> dict[tuple[str, str], str | None]:
        """(tenant, number) -> why the tenant may not call it; None: it has to wait for an unsettled call there."""
        if not candidates:
            return {}
        rows = self._db.all(
            self._sql["blocked_numbers"],
            tenant_ids=[each.call.tenant_id for each in candidates],
            account_sids=[each.account.account_sid for each in candidates],
            numbers=[each.to_number for each in candidates],
        )
        return {(row["tenant_id"], row["number"]): row["reason"] for row in rows}
