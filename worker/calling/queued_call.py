"""The rows that the calls job works on: a queued call on its way to its claim, and a call that Twilio has."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

from worker.calling.accounts import TwilioAccount

# field of QueuedCall -> column of "CallQueue"
_COLUMNS = {
    "id": "id",
    "tenant_id": "tenantId",
    "lead_id": "leadId",
    "contact_id": "contactId",
    "phone_number": "phoneNumber",
    "phone_country_code": "phoneCountryCode",
    "call_type": "callType",
    "script_id": "callScriptId",
    "trigger_type": "triggerType",
    "automation_rule_id": "automationRuleId",
    "attempts": "attempts",
    "created_by_id": "createdById",
    "metadata": "metadata",
}


@dataclass(frozen=True, slots=True)
class QueuedCall:
    """A row of "CallQueue". ``attempts``: how many there were; ``metadata``: any JSON value."""

    id: str
    tenant_id: str
    lead_id: str | None
    contact_id: str | None
    phone_number: str
    phone_country_code: str
    call_type: str
    script_id: str | None
    trigger_type: str
    automation_rule_id: str | None
    attempts: int
    created_by_id: str
    metadata: Any
    script_recording: bool | None = None  # None: the call has no script

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Self:
        values = {field: row[column] for field, column in _COLUMNS.items()}
        return cls(**values, script_recording=row.get("script_recording"))

    def as_item(self) -> dict[str, Any]:
        """The row as worker.call_claim keeps it in ``item``, in the names of "CallQueue"."""
        return {column: getattr(self, field) for field, column in _COLUMNS.items()}


@dataclass(frozen=True, slots=True)
class CallCandidate:
    """A queued call that could be placed now. ``to_number``: E.164."""

    account: TwilioAccount
    to_number: str
    call: QueuedCall


@dataclass(frozen=True, slots=True)
class CallFailure:
    """Why a queued call cannot be placed. ``is_final``: it is not tried again."""

    call: QueuedCall
    reason: str
    is_final: bool


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
class StuckCall:
    """A call that has been 'processing' without a claim since ``updated_at``."""

    call: QueuedCall
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class StaleCall:
    """A row of "CallLog" that should have ended long ago: its webhook was lost."""

    id: str
    tenant_id: str
    sid: str
    status: str
