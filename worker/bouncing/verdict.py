"""What follows from a report: whose fault a failure is, and for how long its address is not written to."""

import re
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from worker.bouncing.report import Report, ReportKind
from worker.content.address_faults import DISABLED_FOR, AddressFault, address_fault

SOFT_BOUNCES = 3  # within SOFT_WINDOW: then the address is not written to any more
SOFT_WINDOW = timedelta(days=30)

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
    if report.status.startswith("4"):
        return Verdict(BounceKind.SOFT, "deferred")
    match _fault(report):
        case AddressFault.FULL:
            return Verdict(BounceKind.SOFT, "refused")
        case AddressFault.DISABLED:
            return Verdict(BounceKind.HARD, "address", suppresses=True, suppressed_for=DISABLED_FOR)
        case AddressFault.NO_ADDRESS:
            return Verdict(BounceKind.HARD, "address", suppresses=True)
    return Verdict(BounceKind.REFUSED, "refused")


def _fault(report: Report) -> AddressFault | None:
    if report.status == "5.0.0" and _NO_SUCH_USER.search(report.words):
        return AddressFault.NO_ADDRESS
    return address_fault(report.status.removeprefix("5."), report.words)
