"""What a settlement writes about a recipient that failed: its row of worker.failure, and of worker.suppression."""

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from worker.campaigns.batch import Recipient
from worker.content.reply_pattern import reply_pattern, without_other_addresses
from worker.sending.outcomes import FailureKind, Outcome, failure_kind

LONGEST_REPLY = 500  # characters


@dataclass(frozen=True, slots=True)
class FailureRecord:
    """A row of worker.failure. ``source`` is not None where the address is suppressed, ``until`` None: for ever."""

    id: str
    kind: FailureKind
    code: str
    reply: str
    pattern: str
    at: datetime
    source: str | None = None
    until: datetime | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def failure_record(recipient: Recipient, outcome: Outcome, at: datetime) -> FailureRecord:
    """Of a recipient that failed with this outcome, at ``at``."""
    reason = outcome.reason or ""
    suppression = outcome.suppression
    return FailureRecord(
        id=recipient.id,
        kind=failure_kind(outcome),
        code=outcome.code,
        reply=without_other_addresses(reason, recipient.email)[:LONGEST_REPLY],
        pattern=reply_pattern(reason, outcome.code),
        at=at,
        source=suppression and suppression.source,
        until=suppression and suppression.until,
    )
