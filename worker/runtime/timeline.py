"""Whether PostgreSQL is still the server that it was, or one that may have forgotten the latest commits.

A standby that follows without being waited for (asynchronous replication) lacks the last seconds when it takes over.
It then counts a **timeline** of its own, as does a server that was restored to an earlier time. The timeline that
this machine knows is in a file, so that a restart between the fail-over and the next connection hides nothing.
"""

import json
import logging
import os
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from uuid import uuid4

import psycopg2

from worker.errors import SettingsError
from worker.runtime.db import Database, is_unavailable

log = logging.getLogger(__name__)

DOUBT_SECONDS = 900.0  # after a change, how long something may turn up that the database has forgotten

# Of what is being written now: after a promotion pg_control_checkpoint() names the former timeline for a while.
_READ = """
SELECT substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8) AS name,
       (SELECT system_identifier::text FROM pg_control_system()) AS cluster
"""


class Timeline:
    """The timeline of one program's database."""

    def __init__(self, db: Database, path: Path, clock: Callable[[], datetime]) -> None:
        """``path``: of the file that has it. Raises SettingsError when it cannot be used."""
        self._db = db
        self._path = path
        self._clock = clock
        self._connection = 0  # the number of the one over which it was read
        self._found = ""
        self._is_reported = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._known, self.changed_at = self._load()
        except (OSError, ValueError) as error:
            raise SettingsError(
                f"{path} cannot be used ({error}): STATE_DIR has to name a directory on a local disk that this user "
                "may write; delete the file if it is damaged"
            ) from error

    def has_changed(self) -> bool:
        """Whether the server may have forgotten commits, and ``accept`` was not called since.

        Asks after each connect, and each time behind a pooler, which may connect to another server unseen. Raises
        psycopg2.Error when the server is unavailable, and OSError.
        """
        if self._connection != self._db.connection_number() or self._db.pooled:
            self._read()
        if self._found and not self._known:
            self._store(self._found, None)  # the first time: there is nothing to compare it with
        return bool(self._found) and self._found != self._known

    @property
    def name(self) -> str:
        """As the server has it; empty: it does not say."""
        return self._db.timeline

    def accept(self) -> None:
        """What may have been forgotten is dealt with, or remembered by ``changed_at``. Raises OSError."""
        self._store(self._found, self._clock())

    def changed_within(self, seconds: float) -> bool:
        """Whether the latest change was noticed at most so long ago."""
        return self.changed_at is not None and self._clock() < self.changed_at + timedelta(seconds=seconds)

    def _read(self) -> None:
        try:
            row = self._db.one(_READ)
        except psycopg2.Error as error:
            if is_unavailable(error):
                raise
            row = None
            self._report(error)
        self._connection = self._db.connection_number()
        self._known, self.changed_at = self._load()  # another process of this machine may have noticed it first
        self._db.timeline = row["name"] if row else ""
        self._found = f"{row['cluster']}/{row['name']}" if row else ""

    def _report(self, error: psycopg2.Error) -> None:
        if not self._is_reported:
            log.warning(
                "PostgreSQL does not tell its timeline, so a fail-over that loses commits is not noticed",
                {
                    "reason": error.diag.message_primary or type(error).__name__,
                    "do": "let the worker's user execute pg_walfile_name, pg_current_wal_insert_lsn and "
                    "pg_control_system; nothing, if the server's standbys share its disk",
                },
            )
        self._is_reported = True

    def _load(self) -> tuple[str, datetime | None]:
        try:
            known, changed_at = json.loads(self._path.read_text("utf-8"))
        except FileNotFoundError:
            return "", None
        return str(known), datetime.fromisoformat(changed_at) if changed_at else None

    def _store(self, timeline: str, changed_at: datetime | None) -> None:
        draft = self._path.with_name(f"{self._path.name}.{uuid4()}")
        try:
            with draft.open("x", encoding="utf-8") as file:
                json.dump([timeline, changed_at and changed_at.isoformat()], file)
                file.flush()
                os.fsync(file.fileno())
            draft.rename(self._path)
        finally:
            draft.unlink(missing_ok=True)
        self._known, self.changed_at = timeline, changed_at
