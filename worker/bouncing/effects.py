"""What follows from a report, in one transaction: its address is suppressed, its recipient fails, it is remembered.

A report names its recipient by the return path of the message (worker/content/return_path.py) and by nothing else. A
Message-ID would not do: it holds the recipient's id, which stands in every short link, too, so that others know it.
"""

import hashlib
import logging
from dataclasses import dataclass
from datetime import datetime

from worker.bouncing.report import Report, read_report
from worker.bouncing.verdict import SOFT_BOUNCES, SOFT_WINDOW, BounceKind, Verdict, verdict
from worker.content.addresses import parse_address
from worker.content.reply_pattern import reply_pattern, without_other_addresses
from worker.content.return_path import ReturnPaths, ReturnPathToken, TokenKind
from worker.runtime.counters import Counters
from worker.runtime.db import Database, queries

log = logging.getLogger(__name__)

TRIED_ADDRESSES = 20  # of those that a report names
UNRECOGNISED = "unrecognised"  # no report, or about no message that the worker can be proved to have sent
NO_EFFECT = "no_effect"  # delayed, delivered, read before
POSTPONED = "postponed"  # its message is not settled yet


@dataclass(frozen=True, slots=True)
class ReportedMessage:
    """The message that a report is about.

    ``address``: the one that it was for, as in worker.suppression. ``status``: its recipient's; '' for a
    notification, and where the recipient has another address by now, so that the report does not concern it any more.
    """

    message: str
    tenant_id: str
    address: str
    campaign_id: str | None = None
    status: str = ""


class ReportEffects:
    """Applies reports to the database."""

    def __init__(self, db: Database, return_paths: ReturnPaths, counters: Counters) -> None:
        self._db = db
        self._return_paths = return_paths
        self._counters = counters
        self._sql = queries("bounces")

    def apply(self, raw: bytes, now: datetime) -> str:
        """Reads a message and does what follows from it: once, however often it is read.

        Returns a BounceKind, or UNRECOGNISED, NO_EFFECT or POSTPONED.
        """
        report = read_report(raw)
        about = self._about(report, raw) if report else None
        if report is None or about is None:
            return UNRECOGNISED
        found = verdict(report)
        if found is None:
            return NO_EFFECT
        if found.failure and about.status == "sending":
            return POSTPONED
        with self._db.transaction():
            if not self._record(about, found, report, _digest(raw), now):
                return NO_EFFECT
            suppresses = found.suppresses or (found.kind is BounceKind.SOFT and self._is_third(about, now))
            suppressed = suppresses and self._suppress(about, found, report, now)
            failed = found.failure is not None and self._fail(about, found, report, now)
        self._count(about, found, suppressed=suppressed, failed=failed)
        return found.kind

    def _about(self, report: Report, raw: bytes) -> ReportedMessage | None:
        named = [address for address in map(_spelling, report.addresses[:TRIED_ADDRESSES]) if address]
        for token in self._return_paths.found_in(report.envelopes):
            is_recipient = token.kind is TokenKind.RECIPIENT
            found = self._recipient(token, named) if is_recipient else self._notification(token, named, raw)
            if found:
                return found
        return None

    def _recipient(self, token: ReturnPathToken, named: list[str]) -> ReportedMessage | None:
        row = self._db.one(self._sql["recipient"], id=token.id)
        if row is None:
            return None
        current = _spelling(row["email"] or "")
        address = self._written_to(token, row["tenant_id"], [current, *named] if current else named)
        if not address:
            return None
        status = row["status"] if current in ("", address) else ""
        return ReportedMessage(token.id, row["tenant_id"], address, row["campaign_id"], status)

    def _notification(self, token: ReturnPathToken, named: list[str], raw: bytes) -> ReportedMessage | None:
        address = self._written_to(token, token.id, named)
        return ReportedMessage(_digest(raw), token.id, address) if address else None

    def _written_to(self, token: ReturnPathToken, tenant_id: str, addresses: list[str]) -> str | None:
        """The one of these addresses for which the return path was made."""
        return next((each for each in addresses if self._return_paths.is_proved(token, tenant_id, each)), None)

    def _record(self, about: ReportedMessage, found: Verdict, report: Report, digest: str, now: datetime) -> bool:
        """False: the report had its effect before, or has it in another process, which this one has waited for."""
        self._db.execute(self._sql["lock_address"], tenant_id=about.tenant_id, address=about.address)
        row = self._db.execute_one(
            self._sql["record"],
            report=digest,
            message=about.message,
            tenant_id=about.tenant_id,
            address=about.address,
            kind=found.kind,
            code=report.status,
            now=now,
        )
        return row is not None

    def _is_third(self, about: ReportedMessage, now: datetime) -> bool:
        row = self._db.one(
            self._sql["soft_bounces"], tenant_id=about.tenant_id, address=about.address, since=now - SOFT_WINDOW
        )
        return bool(row and row["number"] >= SOFT_BOUNCES)

    def _suppress(self, about: ReportedMessage, found: Verdict, report: Report, now: datetime) -> bool:
        """Whether the list has changed."""
        row = self._db.execute_one(
            self._sql["suppress"],
            tenant_id=about.tenant_id,
            address=about.address,
            reason=report.words,
            source=_source(found),
            until=now + found.suppressed_for if found.suppressed_for else None,
            campaign_id=about.campaign_id,
            code=report.status,
        )
        return bool(row and row["changed"])

    def _fail(self, about: ReportedMessage, found: Verdict, report: Report, now: datetime) -> bool:
        """Whether the recipient was 'sent'."""
        if not about.status:
            return False
        words = without_other_addresses(report.words, about.address)
        row = self._db.execute_one(
            self._sql["fail_recipient"],
            id=about.message,
            tenant_id=about.tenant_id,
            reason=f"Not delivered: {words}",
            failure=found.failure,
            code=report.status,
            words=words,
            pattern=reply_pattern(report.words, report.status),
            now=now,
        )
        return bool(row and row["number"])

    def _count(self, about: ReportedMessage, found: Verdict, *, suppressed: bool, failed: bool) -> None:
        self._counters.add("bounces_total", kind=str(found.kind))
        if suppressed:
            self._counters.add("suppressions_total", channel="email", source=_source(found))
        details = {"kind": str(found.kind), "tenant": about.tenant_id, "campaign": about.campaign_id or ""}
        log.debug("report applied", details | {"suppressed": suppressed, "failed": failed})


def _source(found: Verdict) -> str:
    return "complaint" if found.kind is BounceKind.COMPLAINT else "bounce"


def _spelling(address: str) -> str:
    """As worker.address has it; '' for what is no address (any more)."""
    try:
        return parse_address(address).lower()
    except ValueError:
        return ""


def _digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
