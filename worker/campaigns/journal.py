"""What this process has handed to providers, written to a local file message by message.

The database learns the outcome of a batch in one statement, after the batch. A process killed before that
leaves its batch claimed; the journal tells its successor on the same machine which messages were
accepted, which were on the wire, and which were not started. The file is mapped into memory: a kill loses
nothing of what was stored there, and storing takes no system call (two writes for each message, with the
threads they wake, took a fifth of all CPU time). A machine that loses its power may lose some: then the whole batch
counts as unconfirmed (``machine`` changes with every boot).

One file for each batch, created before the claim is committed and removed after its settlement is. Its writer keeps
an flock on it, which ends with the process and not before: a successor that gets the lock knows that no other
process will send from that batch any more, and one that does not leaves the batch alone, frozen holder or not.
"""

import fcntl
import hashlib
import json
import mmap
import os
import threading
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any
from uuid import uuid4

from worker.errors import SettingsError, WorkerError
from worker.messages import Accepted
from worker.sending.outcomes import Outcome, OutcomeKind

BYTES_FOR_A_RECIPIENT = 2048
LONGEST_KEY = 200  # bytes
LONGEST_ENTRY = BYTES_FOR_A_RECIPIENT - LONGEST_KEY - 10  # bytes; the entry before it says that the message started
LONGEST_REASON = 300  # characters
LONGEST_ID = 255  # characters of a provider's id
OLD_SECONDS = 3600.0  # longer than a statement of a dead process can run on in the database

# How the file names the outcomes, in words of the first version. Older and newer versions of the worker read them:
# they must not change.
KIND_CODES: Mapping[OutcomeKind, str] = MappingProxyType(
    {
        OutcomeKind.ACCEPTED: "accepted",
        OutcomeKind.REFUSED: "refused",
        OutcomeKind.OPTED_OUT: "opted out",
        OutcomeKind.DEFERRED: "put off",
        OutcomeKind.RECIPIENT_DEFERRED: "put off alone",
        OutcomeKind.UNCONFIRMED: "unconfirmed",
        OutcomeKind.REJECTED: "untouched",  # read as NOT_SENT: the recipient is released either way
        OutcomeKind.NOT_SENT: "untouched",
    }
)
_KINDS = {code: kind for kind, code in KIND_CODES.items() if kind is not OutcomeKind.REJECTED}


class JournalUnwritable(WorkerError):
    """The local disk does not take the journal: without it nothing may be sent."""


class JournalDirectory:
    """The directory of all journals of this machine."""

    def __init__(self, state_dir: Path) -> None:
        """Raises SettingsError when the directory cannot be created or written to."""
        self.path = state_dir / "journals"
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
        """Creates the journal of a batch of at most so many recipients, locked by this process."""
        path = self.path / f"{batch_id}.journal"
        draft = self.path / f"{batch_id}.new"
        descriptor = -1
        try:
            descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_APPEND, 0o600)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # reserved now: a disk that is full later would kill the process at a store
            os.posix_fallocate(descriptor, 0, max(1, recipients) * BYTES_FOR_A_RECIPIENT)
            draft.rename(path)  # locked before another process can find it
        except OSError as error:
            if descriptor >= 0:
                os.close(descriptor)
                draft.unlink(missing_ok=True)
            raise JournalUnwritable(
                f"journal {path} cannot be created: {error.strerror}; free some space on its disk"
            ) from error
        return Journal(path, descriptor)

    def take_over(self, batch_id: str) -> "Journal | None":
        """Locks the journal of a dead process; None while its writer lives. Raises FileNotFoundError."""
        path = self.path / f"{batch_id}.journal"
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return Journal(path, descriptor)

    def abandoned(self) -> list[str]:
        """The ids of batches whose journal is so old that their claim cannot be in progress any more."""
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
        self._append(_line(_key(recipient_id)))

    def ended(self, recipient_id: str, outcome: Outcome) -> None:
        """To be called with what the provider answered. Raises JournalUnwritable."""
        self._append(_ended_line(_key(recipient_id), outcome))

    def read(self, recipient_ids: Iterable[str] = ()) -> dict[str, Outcome | None]:
        """What was handed over: the outcome of each recipient, None where no answer is known.

        ``recipient_ids``: of the batch; very long ones are not in the file as they are.
        """
        long_ids = {_key(each): each for each in recipient_ids}
        entries: dict[str, Outcome | None] = {}
        for line in self._file[:].split(b"\n"):
            try:
                recipient_id, *outcome = json.loads(line.strip(b"\0"))
            except ValueError:
                continue  # what a writer was storing when it died; the line that says 'started' stands before it
            entries[long_ids.get(recipient_id, recipient_id)] = _from_entry(outcome[0]) if outcome else None
        return entries

    def close(self) -> None:
        """Releases the lock and leaves the file to the process that settles the batch."""
        if self._descriptor >= 0:
            self._file.close()
            os.close(self._descriptor)
            self._descriptor = -1

    def remove(self) -> None:
        """To be called when the batch is settled."""
        self._path.unlink(missing_ok=True)
        self.close()

    def _append(self, line: bytes) -> None:
        with self._lock:
            end = self._end + len(line)
            try:
                self._file[self._end : end] = line
            except (ValueError, IndexError) as error:  # closed, or full
                raise JournalUnwritable(f"journal {self._path} cannot be written: {error}") from error
            self._end = end


def _key(recipient_id: str) -> str:
    """The recipient's id, or what stands for one that would take the room of others."""
    encoded = json.dumps(recipient_id, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return recipient_id if len(encoded) <= LONGEST_KEY else f"sha256:{hashlib.sha256(encoded).hexdigest()}"


def _line(*record: Any) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


def _ended_line(key: str, outcome: Outcome) -> bytes:
    """Never longer than the room of a recipient: what the provider said is left out as far as necessary."""
    kind, at, reason, delay_seconds, ids = _as_entry(outcome)
    shorter = (
        (reason, ids),
        (reason and reason[:50], ids),
        (None, ids and [ids[0], ids[1], None]),
        (None, ids and [ids[0], None, None]),
        (None, ids and [None, None, None]),
    )
    lines = (_line(key, [kind, at, a_reason, delay_seconds, some_ids]) for a_reason, some_ids in shorter)
    return next(line for line in lines if len(line) <= LONGEST_ENTRY)


def _as_entry(outcome: Outcome) -> list[Any]:
    reason = outcome.reason and outcome.reason[:LONGEST_REASON]
    ids = outcome.accepted
    stored = ids and [
        each and each[:LONGEST_ID] for each in (ids.message_id, ids.gmail_message_id, ids.gmail_thread_id)
    ]
    return [KIND_CODES[outcome.kind], outcome.at.isoformat(), reason, outcome.delay_seconds, stored]


def _from_entry(entry: list[Any]) -> Outcome | None:
    code, at, reason, delay_seconds, ids = entry
    kind = _KINDS.get(code)
    if kind is None:  # of a newer version
        return None
    return Outcome(kind, datetime.fromisoformat(at), reason, delay_seconds, Accepted(*ids) if ids else None)


def _age_seconds(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def boot_id() -> str:
    """Changes with every boot of this machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
