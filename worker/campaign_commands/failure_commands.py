"""bin/campaign failures and retry: who was not reached and why, and sending to them again."""

import argparse
import csv
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from worker.errors import CommandRefused
from worker.runtime.console import write
from worker.runtime.db import Database, queries
from worker.runtime.settings import Settings
from worker.sending.outcomes import FailureKind

PAGE_SIZE = 1000  # rows that are read at a time
PATTERNS_SHOWN = 10
CSV_HEAD = ("recipient", "address", "kind", "code", "reply", "failed_at")
# a spreadsheet would run a cell that begins like this; a number with its country code it shows as it is
_FORMULA = re.compile(r"[=@\t\r\n-]|\+(?!\d+\Z)")
# Why a campaign cannot be retried now, by its status
_REFUSALS = {
    "running": "it is running: wait until it has ended, or stop it in the CRM",
    "paused": "it is paused: resume it in the CRM and wait until it has ended",
    "scheduled": "it is scheduled already: wait until it has ended",
    "draft": "it is a draft: it was not sent yet",
}


@dataclass(frozen=True, slots=True)
class EndedCampaign:
    """What the commands need to know of a campaign."""

    id: str
    tenant_id: str
    name: str
    channel: str
    status: str


@dataclass(frozen=True, slots=True)
class FailedRecipient:
    """A row of the statement ``page``. ``failed_at`` is UTC."""

    recipient_id: str
    kind: str
    code: str
    reply: str
    failed_at: datetime
    address: str | None


@dataclass(frozen=True, slots=True)
class RetryCount:
    """Failed recipients of one kind: those that can be sent to again, and those that are on the suppression list."""

    kind: str
    ready: int
    suppressed: int


def run(options: argparse.Namespace, db: Database, settings: Settings) -> int:
    """Returns the exit status. Raises CommandRefused and psycopg2.Error."""
    commands = FailureCommands(db, db.read_time)
    if options.command == "failures":
        return commands.show(options.campaign, options.kinds, as_csv=options.csv)
    return commands.retry(options.campaign, options.kinds, dry_run=options.dry_run)


class FailureCommands:
    """The commands. They raise CommandRefused, and psycopg2.Error."""

    def __init__(self, db: Database, clock: Callable[[], datetime]) -> None:
        self._db = db
        self._clock = clock
        self._sql = queries("failures")

    def show(self, campaign_id: str, kinds: Sequence[FailureKind], *, as_csv: bool) -> int:
        """Writes the failures of a campaign: a summary and one line each, or CSV alone. Returns the exit status."""
        campaign = self._campaign("campaign", campaign_id)
        if as_csv:
            self._write_csv(self._failures(campaign, kinds))
            return 0
        rows = self._db.all(self._sql["summary"], **self._of(campaign, kinds))
        total = sum(row["number"] for row in rows)
        write(f"Campaign {_printable(campaign.name)!r} ({campaign.status}): {_recipients(total)} failed.")
        for row in rows[:PATTERNS_SHOWN]:
            write(f"{row['number']:8,}  {row['kind']:<11}  {_printable(row['pattern'])}")
        if len(rows) > PATTERNS_SHOWN:
            write(f"          and {len(rows) - PATTERNS_SHOWN} other replies")
        for each in self._failures(campaign, kinds):
            fields = (f"{each.failed_at:%Y-%m-%d %H:%M:%S}", each.kind, each.address or "-", each.reply)
            write("  ".join(map(_printable, fields)))
        return 0

    def retry(self, campaign_id: str, kinds: Sequence[FailureKind], *, dry_run: bool) -> int:
        """Sets failed recipients back and schedules their campaign. Returns the exit status, 1 if there are none."""
        with self._db.transaction():
            campaign = self._campaign("campaign" if dry_run else "lock_campaign", campaign_id)
            if campaign.status not in ("completed", "failed"):
                reason = _REFUSALS.get(campaign.status, f"its status is {campaign.status!r}")
                raise CommandRefused(f"Nothing was done with campaign {campaign.id}: {reason}.")
            of = self._of(campaign, kinds) | {"now": self._clock()}
            counts = [RetryCount(**row) for row in self._db.all(self._sql["count_retries"], **of)]
            ready = sum(each.ready for each in counts)
            if ready and not dry_run:
                by_kind = {each.kind: each.ready for each in counts if each.ready}
                message = f"Retry: {_recipients(ready)} pending again ({_by_kind(counts)})"
                self._db.execute(self._sql["set_back"], message=message, metadata=json.dumps(by_kind), **of)
        self._report(campaign, counts, kinds, dry_run=dry_run)
        return 0 if ready else 1

    def _report(
        self, campaign: EndedCampaign, counts: Sequence[RetryCount], kinds: Sequence[FailureKind], *, dry_run: bool
    ) -> None:
        ready, suppressed = sum(each.ready for each in counts), sum(each.suppressed for each in counts)
        name = f"Campaign {_printable(campaign.name)!r}"
        if not ready:
            write(f"{name}: nothing was done, no recipient failed as {' or '.join(kinds)} that can be sent to again.")
        elif dry_run:
            write(f"{name}: {_recipients(ready)} would be sent to again ({_by_kind(counts)}). Nothing was changed.")
        else:
            write(
                f"{name}: {_recipients(ready)} pending again ({_by_kind(counts)}). It is scheduled for now: the job "
                "starts it within CAMPAIGN_INTERVAL."
            )
        if suppressed:
            write(f"{_recipients(suppressed)} left failed: their address is on the suppression list.")
        if ready and any(each.kind == FailureKind.UNCONFIRMED and each.ready for each in counts):
            write("An unconfirmed message may have arrived: its recipient may get a second copy.")

    def _campaign(self, statement: str, campaign_id: str) -> EndedCampaign:
        row = self._db.execute_one(self._sql[statement], campaign_id=campaign_id)
        if row is None:
            raise CommandRefused(f"There is no campaign with the id {_printable(campaign_id)}.")
        return EndedCampaign(**row)

    def _failures(self, campaign: EndedCampaign, kinds: Sequence[FailureKind]) -> Iterator[FailedRecipient]:
        after: dict[str, object] = {"after_at": "-infinity", "after": ""}
        while rows := self._db.all(self._sql["page"], size=PAGE_SIZE, **after, **self._of(campaign, kinds)):
            page = [FailedRecipient(**row) for row in rows]
            yield from page
            after = {"after_at": page[-1].failed_at, "after": page[-1].recipient_id}

    @staticmethod
    def _of(campaign: EndedCampaign, kinds: Sequence[FailureKind]) -> dict[str, object]:
        return {
            "campaign_id": campaign.id, "tenant_id": campaign.tenant_id, "channel": campaign.channel,
            "kinds": list(map(str, kinds)),
        }  # fmt: skip

    @staticmethod
    def _write_csv(failures: Iterator[FailedRecipient]) -> None:
        out = csv.writer(sys.stdout)
        out.writerow(CSV_HEAD)
        for each in failures:
            at = f"{each.failed_at.isoformat(timespec='seconds')}Z"
            fields = (each.recipient_id, each.address or "", each.kind, each.code, each.reply, at)
            out.writerow(f"'{field}" if _FORMULA.match(field) else field for field in fields)


def _recipients(number: int) -> str:
    return f"{number:,} recipient{'' if number == 1 else 's'}"


def _by_kind(counts: Sequence[RetryCount]) -> str:
    return ", ".join(f"{each.ready:,} {each.kind}" for each in counts if each.ready)


def _printable(text: str) -> str:
    """Without what could change a terminal: the text comes from the CRM, or from a mail server."""
    return "".join(char if char.isprintable() else "�" for char in text)
