"""Whether a queued call may be placed now: whether it can be dialled, and by the hours of the called number."""

from datetime import datetime, timedelta
from functools import lru_cache

from worker.calling.accounts import CallingAccounts, CallSettings, TwilioAccount
from worker.calling.queued_call import NO_CREATOR, CallCandidate, CallFailure, QueuedCall, WaitingCall
from worker.content.call_hours import CallHours, CallWindows
from worker.content.calls import WHAT_TO_DO
from worker.content.hours import BusinessHours
from worker.content.phones import e164, phone_number

NEVER_MEET = f"{WHAT_TO_DO}the tenant's business hours never meet those hours: change them, or CALL_WINDOWS"

_WEEK, _STEP = timedelta(days=7), timedelta(minutes=15)


class CallEligibility:
    """Judges calls by the hours of their numbers and by what Twilio permits their accounts."""

    def __init__(self, windows: CallWindows, accounts: CallingAccounts) -> None:
        self._windows = windows
        self._accounts = accounts

    def judge(
        self, call: QueuedCall, account: TwilioAccount, settings: CallSettings, now: datetime
    ) -> CallCandidate | WaitingCall | CallFailure:
        """``settings``: the tenant's, whose business hours can be read."""
        if call.created_by_id is None:
            return CallFailure(call, NO_CREATOR, is_final=True)
        try:
            number = phone_number(call.phone_number, call.phone_country_code)
        except ValueError as error:
            return CallFailure(call, str(error), is_final=True)
        try:
            hours = self._windows.hours_of(number, settings.zone)
        except ValueError as error:
            return CallFailure(call, str(error), is_final=False)
        opens_at = hours.opens_at(now)
        if opens_at is None:
            return CallFailure(call, hours.why_never, is_final=True)
        if opens_at > now:
            meet = _meet(settings.business_hours(), hours, now.replace(hour=0, minute=0, second=0, microsecond=0))
            return WaitingCall(call, opens_at, hours.why_waiting + ("" if meet else NEVER_MEET))
        to_number = e164(number)
        if backoff := self._accounts.country_backoff(account, to_number):
            return WaitingCall(call, backoff.until, backoff.reason)
        return CallCandidate(account, to_number, call, hours.closes_at(now))


@lru_cache(maxsize=256)
def _meet(business: BusinessHours, hours: CallHours, day: datetime) -> bool:
    """Whether in the week from ``day`` on a call may be placed at any time, but for hours shorter than a step."""
    steps = (day + step * _STEP for step in range(_WEEK // _STEP))
    return any(business.open_at(at) and hours.is_open(at) for at in steps)
