"""What this process has handed to providers, written to a local file message by message.

The database learns the outcome of a batch in one statement, after the batch. A process killed before that
leaves its batch claimed; the journal tells its successor on the same machine which messages were
accepted, which were on the wire, and which were never touched. The file is mapped into memory: a kill loses
nothing of what was stored there, and storing takes no system call (two writes for each message, with the
threads they wake, took a fifth of all CPU time). A machine that loses its power may lose some: then the whole batch
counts as unconfirmed (``machine`` changes with every boot).

One file a batch, made before the claim is committed and removed after its settlement is. Its writer keeps
an flock on it, which ends with the process and not before: a successor that gets the lock knows that
nobody will send from that batch any more, and one that does not leaves the batch alone, frozen holder or not.
"""

import fcntl
import json
import mmap
import os
import threading
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

from worker.errors import SettingsError, WorkerError

Entry = list[Any] | None  # None: handed over, no answer known

BYTES_FOR_A_RECIPIENT = 2048
OLD_SECONDS = 3600.0  # longer than a statement of a dead process can go on in the database


class JournalUnwritable(WorkerError):
    """The local disk refuses the journal: nothing may be sent without it."""


class JournalDirectory:
    """The place of all journals of this machine."""

    def __init__(self, state_dir: Path) -> None:
        """Raises SettingsError when the directory cannot be made or written."""
        self.path = state_dir / "journals"
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.machine = f"{_boot_id()}/{self._own_id()}"
        except OSError as error:
            raise SettingsError(
                f"STATE_DIR is {str(state_dir)!r}, which cannot be used ({error.strerror}): name a directory on a "
                "local disk that this user may write"
            ) from error

    def _own_id(self) -> str:
        """A name for this directory, made with it, so that machines with alike hosts and boots differ."""
        path = self.path / "id"
        if not path.exists():
            draft = self.path / f"id.{uuid4()}"
            draft.write_text(str(uuid4()))
            try:
                os.link(draft, path)  # the first of several processes wins
            except FileExistsError:
                pass
            finally:
                draft.unlink()
        probe = self.path / f"probe.{uuid4()}"
        probe.write_bytes(b"")
        probe.unlink()
        return path.read_text()

    def create(self, batch_id: str, recipients: int) -> "Journal":
        """The journal of a new batch of at most so many recipients, locked by this process."""
        path = self.path / f"{batch_id}.journal"
        draft = self.path / f"{batch_id}.new"
        descriptor = -1
        try:
            descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_APPEND, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # reserved now: a disk that is full later would kill the process at a store
            os.posix_fallocate(descriptor, 0, max(1, recipients) * BYTES_FOR_A_RECIPIENT)
            draft.rename(path)  # locked before anybody can find it
        except OSError as error:
            if descriptor >= 0:
                os.close(descriptor)
                draft.unlink(missing_ok=True)
            raise JournalUnwritable(
                f"journal {path} cannot be made: {error.strerror}; make room on its disk"
            ) from error
        return Journal(path, descriptor)

    def seize(self, batch_id: str) -> "Journal | None":
        """The journal that a dead process left behind; None while its writer lives. FileNotFoundError: none."""
        path = self.path / f"{batch_id}.journal"
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return Journal(path, descriptor)

    def left_behind(self) -> list[str]:
        """The ids of batches whose journal is so old that their claim cannot be under way any more."""
        for draft in self.path.glob("*.new"):
            if _age_seconds(draft) > OLD_SECONDS:
                draft.unlink(missing_ok=True)
        return [path.stem for path in self.path.glob("*.journal") if _age_seconds(path) > OLD_SECONDS]


class Journal:
    """The journal of one batch: lines of JSON, one after the other, then zero bytes."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self._file = mmap.mmap(descriptor, 0)
        self._end = self._file.find(b"\0") if self._file[:1] != b"\0" else 0
        self._lock = threading.Lock()

    def started(self, recipient_id: str) -> None:
        """To be called before the first byte of a message may leave. Raises JournalUnwritable."""
        self._append([recipient_id])

    def ended(self, recipient_id: str, outcome: list[Any]) -> None:
        """To be called with what the provider said, JSON types only."""
        self._append([recipient_id, outcome])

    def read(self) -> dict[str, Entry]:
        """What was handed over: the outcome of each recipient, None where there is none."""
        entries: dict[str, Entry] = {}
        for line in self._file[:].split(b"\n"):
            try:
                recipient_id, *outcome = json.loads(line.strip(b"\0"))
            except ValueError:
                continue  # what a writer was storing when it died; the line that says 'started' stands before it
            entries[recipient_id] = outcome[0] if outcome else None
        return entries

    def close(self) -> None:
        """Gives up the lock and leaves the file to whoever settles the batch."""
        if self._descriptor >= 0:
            self._file.close()
            os.close(self._descriptor)
            self._descriptor = -1

    def remove(self) -> None:
        """The batch is settled: nobody needs the file any more."""
        self._path.unlink(missing_ok=True)
        self.close()

    def _append(self, record: list[Any]) -> None:
        line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            end = self._end + len(line)
            try:
                self._file[self._end : end] = line
            except (ValueError, IndexError) as error:  # closed, or full
                raise JournalUnwritable(f"journal {self._path} takes no more: {error}") from error
            self._end = end


def _age_seconds(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
