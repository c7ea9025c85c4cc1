"""The journals of settled batches, kept for a while: PostgreSQL may forget a settlement when a standby takes over.

One file after the other, to which the lines of each settled batch are appended. They are no part of what makes a
batch safe: a disk that is full costs them, and nothing else.
"""

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

log = logging.getLogger(__name__)

KEPT_SECONDS = 900.0  # longer than a standby is behind its primary
KEPT_BYTES = 256 << 20  # about 1.2 million messages; beyond it the oldest are not kept so long
FILE_BYTES = 16 << 20
FILE_SECONDS = 60.0  # from a file's first batch to its last
_HEAD = b'{"batch":'


@dataclass(frozen=True, slots=True)
class KeptBatch:
    """A batch that was sent, and the lines of its journal."""

    id: str
    lines: bytes


class KeptJournals:
    """What all processes of this machine keep. Only one thread may use it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptor: int | None = None
        self._opened_at = self._swept_at = time.monotonic()
        self._bytes = 0
        self._is_reported = False

    def keep(self, batch_id: str, lines: bytes) -> None:
        """Keeps the lines of a settled batch. A disk that does not take them is reported once."""
        if not lines:
            return
        try:
            self._append(_HEAD + json.dumps(batch_id).encode() + b"}\n" + lines)
            self._is_reported = False
        except OSError as error:
            self.close()  # the next batch begins a new file
            if not self._is_reported:
                log.warning(
                    "settled journals cannot be kept: after a fail-over messages could leave twice",
                    {"reason": error.strerror, "do": "free some space on the disk of STATE_DIR"},
                )
            self._is_reported = True

    def newest_first(self) -> Iterator[KeptBatch]:
        """All that is kept, the batch that was settled last first."""
        for path in reversed(self._files()):
            with suppress(FileNotFoundError):
                for block in reversed(path.read_bytes().split(_HEAD)[1:]):
                    head, _, lines = block.partition(b"}\n")
                    with suppress(ValueError):  # its writer died here
                        yield KeptBatch(json.loads(head), lines)

    def sweep(self) -> None:
        """Removes what is old; looks once in a minute. To be called while the database is as it was."""
        if time.monotonic() - self._swept_at < FILE_SECONDS:
            return
        self._swept_at = time.monotonic()
        for path in self._files():
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > KEPT_SECONDS + FILE_SECONDS:
                    path.unlink()

    def close(self) -> None:
        """Ends the present file, which stays."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _append(self, block: bytes) -> None:
        if self._bytes + len(block) > FILE_BYTES or time.monotonic() - self._opened_at > FILE_SECONDS:
            self.close()
        if self._descriptor is None:
            self._make_room()
            path = self._folder / f"{uuid4()}.kept"
            self._descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o600)
            self._opened_at, self._bytes = time.monotonic(), 0
        self._bytes += len(block)
        while block:
            block = block[os.write(self._descriptor, block) :]

    def _make_room(self) -> None:
        room = KEPT_BYTES - FILE_BYTES
        for path in reversed(self._files()):
            with suppress(FileNotFoundError):
                room -= path.stat().st_size
                if room < 0:
                    path.unlink()

    def _files(self) -> list[Path]:
        """The oldest first."""
        found = []
        for path in self._folder.glob("*.kept"):
            with suppress(FileNotFoundError):
                found.append((path.stat().st_mtime_ns, path))
        return [path for _, path in sorted(found)]
