"""What follows from a report: whose fault a failure is, and for how long its address is not written to.

Sources: RFC 3463 (the enhanced codes), RFC 5248 (their registry); 5.1.10 and "5.4.1 Recipient address rejected" are
Microsoft's.
"""

import re
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from worker.bouncing.report import Report, ReportKind

SOFT_BOUNCES = 3  # within SOFT_WINDOW: then the address is not written to any more
SOFT_WINDOW = timedelta(days=30)
DISABLED = timedelta(days=30)  # a mailbox that is out of use may come back

_NO_ADDRESS = {"5.1.1", "5.1.2", "5.1.3", "5.1.6", "5.1.10"}
_DISABLED = "5.2.1"
_FULL = "5.2.2"
_REJECTED_ADDRESS = re.compile(r"recipient address rejected", re.IGNORECASE)
# What servers say with a code that has no more than its class
_NO_SUCH_USER = re.compile(
    r"(?:no such|unknown|invalid|unrouteable|non-?existent) (?:user|recipient|mailbox|address|local part)|"
    r"(?:user|recipient|mailbox|address|account) (?:is )?(?:unknown|not found|does not exist|doesn't exist|rejected)",
    re.IGNORECASE,
)


class BounceKind(StrEnum):
    """The label ``kind`` of bounces_total, and worker.bounce.kind."""

    HARD = "hard"  # no such address, or its mailbox is out of use
    SOFT = "soft"  # not delivered now: mailbox full, server unavailable for days
    REFUSED = "refused"  # the message or its sender, which says nothing about the address
    COMPLAINT = "complaint"


@dataclass(frozen=True, slots=True)
class Verdict:
    """``failure``: the kind of worker.failure; None: the message was delivered. ``suppressed_for`` is None: for ever.

    Whether the address is suppressed at all says ``suppresses``; a soft bounce is counted first.
    """

    kind: BounceKind
    failure: str | None
    suppresses: bool = False
    suppressed_for: timedelta | None = None


def verdict(report: Report) -> Verdict | None:
    """None: nothing follows from the report."""
    if report.kind is ReportKind.COMPLAINT:
        return Verdict(BounceKind.COMPLAINT, None, suppresses=True)
    if report.kind is not ReportKind.FAILED:
        return None
    code = report.status
    if code.startswith("4"):
        return Verdict(BounceKind.SOFT, "deferred")
    if code == _FULL:
        return Verdict(BounceKind.SOFT, "refused")
    if code == _DISABLED:
        return Verdict(BounceKind.HARD, "address", suppresses=True, suppressed_for=DISABLED)
    if code in _NO_ADDRESS or _says_no_address(code, report.words):
        return Verdict(BounceKind.HARD, "address", suppresses=True)
    return Verdict(BounceKind.REFUSED, "refused")


def _says_no_address(code: str, words: str) -> bool:
    if code == "5.4.1":
        return _REJECTED_ADDRESS.search(words) is not None
    return code == "5.0.0" and _NO_SUCH_USER.search(words) is not None
