"""The rows that the calls job works on: a queued call on its way to its claim, and a call that Twilio has."""

from dataclasses import dataclass
from datetime import datetime

from worker.calling.accounts import TwilioAccount
from worker.providers.twilio import PlacedCall

NO_CREATOR = "the user who queued the call is not one of its tenant's"


@dataclass(frozen=True, slots=True)
class QueuedCall:
    """A row of "CallQueue". ``attempts``: how many there were."""

    id: str
    tenant_id: str
    phone_number: str
    phone_country_code: str
    attempts: int
    created_by_id: str | None  # None: no user of the tenant


@dataclass(frozen=True, slots=True)
class CallCandidate:
    """A queued call that could be placed now. ``to_number``: E.164, which may be called until ``closes_at``."""

    account: TwilioAccount
    to_number: str
    call: QueuedCall
    closes_at: datetime | None = None  # None: it may be called at any hour


@dataclass(frozen=True, slots=True)
class CallFailure:
    """Why a queued call cannot be placed. ``is_final``: it is not tried again."""

    call: QueuedCall
    reason: str
    is_final: bool


@dataclass(frozen=True, slots=True)
class WaitingCall:
    """A queued call that may not be placed before ``until``, through no fault of its own."""

    call: QueuedCall
    until: datetime
    reason: str


@dataclass(frozen=True, slots=True)
class ClaimedCall:
    """A call that this process holds: a row of worker.call_claim. ``id``: of its row in "CallQueue"."""

    id: str
    tenant_id: str
    account_sid: str
    from_number: str
    to_number: str
    attempts: int
    claimed_at: datetime
    asked: int = 0  # how often Twilio was asked about it
    reason: str | None = None  # why it is unconfirmed; None: its process died


@dataclass(frozen=True, slots=True)
class ReadyCall:
    """A claimed call and all that is needed to place it. Lead and contact are the tenant's own."""

    claim: ClaimedCall
    account: TwilioAccount
    lead_id: str | None
    contact_id: str | None
    call_type: str
    script_recording: bool | None  # None: neither the call nor its tenant has a script
    closes_at: datetime | None = None  # when its number may not be called any more


@dataclass(frozen=True, slots=True)
class Booking:
    """A claimed call that Twilio placed: it has to be written into the log."""

    claim: ClaimedCall
    placed: PlacedCall


@dataclass(frozen=True, slots=True)
class StaleCall:
    """A row of "CallLog" that should have ended long ago: its webhook was lost."""

    id: str
    tenant_id: str
    sid: str
    status: str
