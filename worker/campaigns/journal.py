"""What this process has handed to providers, written to a local file message by message.

The database learns the outcome of a batch in one statement, after the batch. A process killed before that
leaves its batch claimed; the journal tells its successor on the same machine which messages were
accepted, which were on the wire, and which were not started. The file is mapped into memory: a kill loses
nothing of what was stored there, and storing takes no system call (two writes for each message, with the
threads they wake, took a fifth of all CPU time). A machine that loses its power may lose some: then the whole batch
counts as unconfirmed (``machine`` changes with every boot).

One file for each batch, there before the claim is committed and gone after its settlement is. Its writer keeps
an flock on it, which ends with the process and not before: a successor that gets the lock knows that no other
process will send from that batch any more, and one that does not leaves the batch alone, frozen holder or not.

The file of a settled batch becomes that of a later one of the same process, by two renames: to create and remove a
file for each batch took a fifth of the main thread's time. Its lines are appended to another file before that, where
they are kept for a while (``KeptJournals``).
"""

import fcntl
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from worker.campaigns.journal_entries import BYTES_FOR_A_RECIPIENT, ended_line, read_lines, started_line
from worker.campaigns.kept_journals import KeptJournals
from worker.errors import SettingsError, WorkerError
from worker.sending.outcomes import Outcome

SPARE_FILES = 8  # of settled batches, kept to be used again; more campaigns than half of that create new ones
OLD_SECONDS = 3600.0  # longer than a statement of a dead process can run on in the database


class JournalUnwritable(WorkerError):
    """The local disk does not take the journal: without it nothing may be sent."""


class JournalDirectory:
    """The directory of all journals of this machine."""

    def __init__(self, state_dir: Path) -> None:
        """Raises SettingsError when the directory cannot be created or written to."""
        self.path = state_dir / "journals"
        self.kept = KeptJournals(self.path)
        self._spare: list[_JournalFile] = []
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.machine = f"{boot_id()}/{self._own_id()}"
        except OSError as error:
            raise SettingsError(
                f"STATE_DIR is {str(state_dir)!r}, which cannot be used ({error.strerror}): name a directory on a "
                "local disk that this user may write"
            ) from error

    def _own_id(self) -> str:
        """The name of this directory, which differs from machine to machine even where their host names do not."""
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
        """The empty journal of a batch of at most so many recipients, locked by this process."""
        path = self.path / f"{batch_id}.journal"
        needed_bytes = max(1, recipients) * BYTES_FOR_A_RECIPIENT
        if spare := next((each for each in self._spare if each.size >= needed_bytes), None):
            self._spare.remove(spare)
            with suppress(FileNotFoundError):  # somebody has deleted it
                spare.rename(path)
                return Journal(spare, self._keep)
            spare.close()
        return Journal(self._create(path, needed_bytes), self._keep)

    def take_over(self, batch_id: str) -> "Journal | None":
        """Locks the journal of a dead process; None while its writer lives. Raises FileNotFoundError."""
        path = self.path / f"{batch_id}.journal"
        descriptor = _locked(path)
        return Journal(_JournalFile(path, descriptor), self._remove) if descriptor is not None else None

    def batch_ids(self) -> list[str]:
        """The batches that have a journal here: they were not settled, or are just being claimed or settled."""
        return [path.stem for path in self.path.glob("*.journal")]

    def age_seconds(self, batch_id: str) -> float:
        """How long ago the journal of a batch was created or written to; 0: there is none."""
        return _age_seconds(self.path / f"{batch_id}.journal")

    def lines_of(self, batch_id: str) -> bytes:
        """What the journal of a batch holds now, whoever has it. Raises FileNotFoundError."""
        return (self.path / f"{batch_id}.journal").read_bytes().partition(b"\0")[0]

    def restore(self, batch_id: str, lines: bytes) -> None:
        """Makes the journal of a batch that is not settled after all, for the process that settles it."""
        path = self.path / f"{batch_id}.journal"
        if not path.exists():
            file = self._create(path, max(1, len(lines)))
            file.append(lines)
            file.close()

    def close(self) -> None:
        """Removes the files that wait to be used again."""
        self.kept.close()
        while self._spare:
            self._spare.pop().remove()

    def sweep_spare(self) -> None:
        """Removes the files that dead processes kept to use again: they belong to no batch."""
        for path in self.path.glob("*.spare"):
            with suppress(FileNotFoundError):
                descriptor = _locked(path)
                if descriptor is not None:
                    path.unlink()
                    os.close(descriptor)

    def _create(self, path: Path, size: int) -> "_JournalFile":
        draft = path.with_suffix(".new")
        descriptor = -1
        try:
            descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_APPEND, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # reserved now: a disk that is full later would kill the process at a store
            os.posix_fallocate(descriptor, 0, size)
            draft.rename(path)  # locked before another process can find it
        except OSError as error:
            if descriptor >= 0:
                os.close(descriptor)
                draft.unlink(missing_ok=True)
            raise JournalUnwritable(
                f"journal {path} cannot be created: {error.strerror}; free some space on its disk"
            ) from error
        return _JournalFile(path, descriptor)

    def _keep(self, file: "_JournalFile") -> None:
        """The file of a settled batch is used again, unless there are enough of them."""
        self.kept.keep(file.path.stem, file.lines())
        if len(self._spare) >= SPARE_FILES:
            file.remove()
            return
        try:
            file.rename(file.path.with_suffix(".spare"))
        except FileNotFoundError:
            file.close()
            return
        file.clear()
        self._spare.append(file)

    def _remove(self, file: "_JournalFile") -> None:
        self.kept.keep(file.path.stem, file.lines())
        file.remove()

    def abandoned(self) -> list[str]:
        """The ids of batches whose journal is so old that their claim cannot be in progress any more."""
        for draft in self.path.glob("*.new"):
            if _age_seconds(draft) > OLD_SECONDS:
                draft.unlink(missing_ok=True)
        return [path.stem for path in self.path.glob("*.journal") if _age_seconds(path) > OLD_SECONDS]


class Journal:
    """The journal of one batch: lines of JSON, one after the other, then zero bytes. Threads may write to it."""

    def __init__(self, file: "_JournalFile", settled: "Callable[[_JournalFile], None]") -> None:
        """``settled`` is called with the file when the batch is settled."""
        self._path = file.path
        self._settled = settled
        self._lock = threading.Lock()  # a thread that comes late must not write into another batch's journal
        self._file: _JournalFile | None = file

    def started(self, recipient_id: str) -> None:
        """To be called before the first byte of a message may leave. Raises JournalUnwritable."""
        self._append(started_line(recipient_id))

    def ended(self, recipient_id: str, outcome: Outcome) -> None:
        """To be called with what the provider answered. Raises JournalUnwritable."""
        self._append(ended_line(recipient_id, outcome))

    def read(self, recipient_ids: Iterable[str] = ()) -> dict[str, Outcome | None]:
        """What was handed over: the outcome of each recipient, None where no answer is known.

        ``recipient_ids``: of the batch; very long ones are not in the file as they are.
        """
        with self._lock:
            lines = self._file.content() if self._file else b""
        return read_lines(lines, recipient_ids)

    def lines(self) -> bytes:
        """All that was written."""
        with self._lock:
            return self._file.lines() if self._file else b""

    def close(self) -> None:
        """Releases the lock and leaves the file to the process that settles the batch."""
        if file := self._detached():
            file.close()

    def remove(self) -> None:
        """To be called when the batch is settled."""
        if file := self._detached():
            self._settled(file)

    def _append(self, line: bytes) -> None:
        with self._lock:
            if self._file is None:
                raise JournalUnwritable(f"journal {self._path} cannot be written: it is closed")
            try:
                self._file.append(line)
            except (ValueError, IndexError) as error:  # full
                raise JournalUnwritable(f"journal {self._path} cannot be written: {error}") from error

    def _detached(self) -> "_JournalFile | None":
        with self._lock:
            file, self._file = self._file, None
            return file


class _JournalFile:
    """A journal's file, mapped into memory and locked."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self._map = mmap.mmap(descriptor, 0)
        self.size = len(self._map)
        end = self._map.find(b"\0")
        self._end = end if end >= 0 else self.size

    def append(self, line: bytes) -> None:
        """Raises IndexError when the file is full."""
        end = self._end + len(line)
        self._map[self._end : end] = line
        self._end = end

    def content(self) -> bytes:
        return self._map[:]

    def lines(self) -> bytes:
        return self._map[: self._end]

    def clear(self) -> None:
        self._map[: self._end] = bytes(self._end)
        self._end = 0

    def rename(self, path: Path) -> None:
        """Raises FileNotFoundError when somebody has deleted it."""
        self.path.rename(path)
        self.path = path
        os.utime(self._descriptor)  # it is as old as its batch

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        self._map.close()
        os.close(self._descriptor)


def _locked(path: Path) -> int | None:
    """A descriptor of the file, locked; None while another process has it locked. Raises FileNotFoundError."""
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # who had it locked may have renamed it since it was opened: then it is another batch's journal by now
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
    except BlockingIOError:
        os.close(descriptor)
        return None
    except FileNotFoundError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    raise FileNotFoundError(path)


def _age_seconds(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def boot_id() -> str:
    """Changes with every boot of this machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
