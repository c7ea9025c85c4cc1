"""bin/suppress: what an operator does with the list of one tenant for one channel."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import psycopg2.extensions

from worker.consent.address_file import AddressFile
from worker.content.one_line import one_line
from worker.errors import CommandRefused
from worker.runtime.console import progress, to_stderr, write
from worker.runtime.counters import Counters
from worker.runtime.db import Database, queries
from worker.sending.suppression import SuppressionList, count_suppressions

SHOWN_LINES = 20  # of the bad ones
IMPORTED_WITH_BAD_LINES = 3


@dataclass(frozen=True, slots=True)
class SuppressionEntry:
    """One address on the list. Times are UTC without a zone; ``until`` None: for ever."""

    address: str
    source: str
    reason: str
    campaign_id: str | None
    code: str | None
    until: datetime | None
    since: datetime

    def __str__(self) -> str:
        ends = f" until {self.until:%Y-%m-%d %H:%M}" if self.until else ""
        told = [f"campaign {self.campaign_id}" if self.campaign_id else "", self.code or "", self.reason]
        why = one_line(", ".join(filter(None, told)), 200)
        return f"{self.address:<32} {self.source:<11} {self.since:%Y-%m-%d %H:%M}{ends}  {why}"


@dataclass(frozen=True, slots=True)
class ImportCounts:
    """What an import did. ``lines``: without blank ones and the heading; ``addresses``: different ones."""

    lines: int
    addresses: int
    added: int
    bad: int
    bad_lines: list[dict[str, Any]] | None


class SuppressionCommands:
    """The commands, for one list. They return the exit status, and raise psycopg2.Error and CommandRefused.

    ``may_have_changed``: until then an error, or an interrupt, means that nothing was changed.
    """

    may_have_changed = False

    def __init__(self, db: Database, counters: Counters, of: SuppressionList) -> None:
        self._db = db
        self._counters = counters
        self._list = of
        self._key = {"tenant_id": of.tenant_id, "channel": of.channel}
        self._sql = queries("suppress")

    def add(self, addresses: Sequence[str], source: str, reason: str | None, until: datetime | None) -> int:
        """Suppresses these addresses: all of them, or none when one is no address."""
        self._require_tenant()
        added = self._each("add", addresses, source=source, reason=reason, until=until)
        count_suppressions(self._counters, self._list.channel, source, added)
        to_stderr(f"{added} added, {len(addresses) - added} on the list already.")
        return 0

    def remove(self, addresses: Sequence[str], source: str | None) -> int:
        """Takes these addresses off the list; ``source`` None: whatever they are on it for."""
        removed = self._each("remove", addresses, source=source)
        to_stderr(f"{removed} taken off the list, {len(addresses) - removed} not on it.")
        return 0

    def remove_campaign(self, campaign_id: str, source: str) -> int:
        """Takes off the list what came from one campaign: all of it, or nothing when it is interrupted."""
        with self._session() as cursor, progress(stream=sys.stderr):
            cursor.execute(self._sql["remove_campaign"], {**self._key, "campaign_id": campaign_id, "source": source})
            removed = cursor.rowcount
        to_stderr(f"{removed:,} taken off the list.")
        return 0

    def show(self, addresses: Sequence[str], source: str | None, limit: int) -> int:
        """Writes the list, or what is on it of these addresses."""
        rows = self._db.all(
            self._sql["entries"], source=source, addresses=list(addresses) or None, limit=limit + 1, **self._key
        )
        for row in rows[:limit]:
            write(str(SuppressionEntry(**row)))
        if len(rows) > limit:
            to_stderr(f"There are more than {limit}: --limit shows more of them, bin/suppress export all.")
        elif not rows:
            to_stderr("None of them is on the list." if addresses else "The list is empty.")
        return 0

    def import_file(self, file: AddressFile, source: str, reason: str | None, until: datetime | None) -> int:
        """Suppresses the addresses of a file, in one transaction: whatever ends it early, nothing is imported."""
        self._require_tenant()
        with self._session() as cursor:
            cursor.execute(self._sql["create_imported"])
            with progress(lambda: f"{file.lines:,} lines read", sys.stderr):
                self._copy(cursor, file)
                cursor.execute(
                    self._sql["import"],
                    {**self._key, "source": source, "reason": reason or source, "until": until, "shown": SHOWN_LINES},
                )
            names = [column.name for column in cursor.description or ()]
            counts = ImportCounts(**dict(zip(names, cursor.fetchone() or (), strict=True)))
        count_suppressions(self._counters, self._list.channel, source, counts.added)
        self._report(counts)
        return IMPORTED_WITH_BAD_LINES if counts.bad else 0

    def export(self, path: str, source: str | None) -> int:
        """Writes the list as CSV; "-": to standard output. A file is there when all of it is written."""
        with self._session() as cursor, _written(path) as stream, progress(stream=sys.stderr):
            statement = cursor.mogrify(self._sql["export"].rstrip(";"), {**self._key, "source": source})
            cursor.copy_expert(statement, stream)
            to_stderr(f"{cursor.rowcount:,} entries.")
        return 0

    def _copy(self, cursor: psycopg2.extensions.cursor, file: AddressFile) -> None:
        try:
            cursor.copy_expert(self._sql["copy_imported"].rstrip(";"), file)
        except psycopg2.Error:
            if file.error:
                raise file.error from None
            raise

    def _report(self, counts: ImportCounts) -> None:
        good = counts.lines - counts.bad
        to_stderr(
            f"{counts.lines:,} lines, {counts.addresses:,} addresses: {counts.added:,} added, "
            f"{counts.addresses - counts.added:,} on the list already. {good - counts.addresses:,} lines repeat an "
            f"address, {counts.bad:,} have none."
        )
        for each in counts.bad_lines or ():
            to_stderr(f"  line {each['line']}: {one_line(each['text'], 60) or '(nothing)'}")
        if counts.bad > SHOWN_LINES:
            to_stderr(f"  ... and {counts.bad - SHOWN_LINES:,} more")

    def _each(self, statement: str, addresses: Sequence[str], **parameters: Any) -> int:
        """For how many of the addresses something changed."""
        with self._db.transaction():
            changed = sum(self._changes(statement, address, parameters) for address in addresses)
            self.may_have_changed = True
        return changed

    def _changes(self, statement: str, address: str, parameters: dict[str, Any]) -> bool:
        try:
            row = self._db.execute_one(self._sql[statement], address=address, **self._key, **parameters)
        except psycopg2.errors.InvalidParameterValue as error:
            raise CommandRefused(
                f"{one_line(address, 60)}: {error.diag.message_primary}. Nothing was done."
            ) from None
        return bool(row and row["changed"])

    def _require_tenant(self) -> None:
        """Else a misspelt id would make a list that nobody looks at."""
        if not self._db.one(self._sql["find_tenant"], tenant_id=self._list.tenant_id):
            raise CommandRefused(f"There is no tenant {one_line(self._list.tenant_id, 60)}: --tenant is its id.")

    @contextmanager
    def _session(self) -> Iterator[psycopg2.extensions.cursor]:
        with self._db.long_transaction() as cursor:
            yield cursor
            self.may_have_changed = True


@contextmanager
def _written(path: str) -> Iterator[IO[bytes]]:
    """A file that replaces the one at ``path`` when it is complete; only its owner may read it."""
    if path == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    part = Path(f"{path}.part")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
            yield stream
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
