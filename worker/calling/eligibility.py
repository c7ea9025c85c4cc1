"""Whether a queued call may be placed now: whether it can be dialled, and by the hours of the called number."""

from collections.abc import Callable
from datetime import datetime
from zoneinfo import ZoneInfo

from worker.calling.accounts import CallingAccounts, TwilioAccount
from worker.calling.queued_call import NO_CREATOR, CallCandidate, CallFailure, QueuedCall, WaitingCall
from worker.content.call_hours import CallWindows
from worker.content.phones import to_e164


class CallEligibility:
    """Judges calls by the hours of their numbers and by what Twilio permits their accounts."""

    def __init__(self, windows: CallWindows, accounts: CallingAccounts) -> None:
        self._windows = windows
        self._accounts = accounts

    def judge(
        self, call: QueuedCall, account: TwilioAccount, home: Callable[[], ZoneInfo], now: datetime
    ) -> CallCandidate | WaitingCall | CallFailure:
        """``home``: the tenant's zone, for a number of no place; it raises ValueError for settings that say none."""
        if call.created_by_id is None:
            return CallFailure(call, NO_CREATOR, is_final=True)
        try:
            number = to_e164(call.phone_number, call.phone_country_code)
        except ValueError as error:
            return CallFailure(call, str(error), is_final=True)
        try:
            hours = self._windows.hours_of(number, home)
        except ValueError as error:
            return CallFailure(call, str(error), is_final=False)
        opens_at = hours.opens_at(now)
        if opens_at is None:
            return CallFailure(call, hours.why_never, is_final=True)
        if opens_at > now:
            return WaitingCall(call, opens_at, hours.why_waiting)
        if backoff := self._accounts.country_backoff(account, hours.country):
            return WaitingCall(call, backoff.until, backoff.reason)
        return CallCandidate(account, number, call, hours.closes_at(now))
