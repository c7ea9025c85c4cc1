"""bin/knowledge verify, restore and snapshot: what a person does with the snapshots of Qdrant's collection.

They hold the job's lock meanwhile, so that it prunes nothing that they need.
"""

import argparse
import logging
import re
import secrets
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import redis

from worker.errors import ServerUnavailable, SettingsError, WorkerError
from worker.runtime import program
from worker.runtime.clock import utc_now
from worker.runtime.lock import Lock
from worker.runtime.redis_client import connect
from worker.runtime.settings import Settings
from worker.vectors.client import CollectionSnapshot, VectorStore
from worker.vectors.snapshots import RecordStore, SnapshotCopies, SnapshotRecord, take

log = logging.getLogger(__name__)

LOCK = "knowledge"
DESCRIPTION = """\
Keeps the collection of the CRM's AI in Qdrant right: makes it where it is missing, takes a snapshot each
KNOWLEDGE_SNAPSHOT_INTERVAL, and deletes old ones. It never alters or drops a collection that is there."""

PROGRESS_SECONDS = 5.0
LOCK_PATIENCE_SECONDS = 90.0  # longer than a lock outlives its holder
LOCK_POLL_SECONDS = 0.5
SCRATCH = "-verify-"


class CommandRefused(WorkerError):
    """What was asked for is not done; the text says why and what to do."""


@dataclass(frozen=True)
class Source:
    """Where a snapshot comes from: Qdrant itself, or a file of this machine."""

    name: str
    snapshot: CollectionSnapshot | None = None
    path: Path | None = None


def parser() -> argparse.ArgumentParser:
    """The arguments of bin/knowledge; ``command`` is None for the job itself."""
    result = program.job_parser("knowledge", DESCRIPTION)
    result.epilog = (
        f"{result.epilog}\nA command ends with 1 when it was refused, failed, or found a snapshot not good."
    )
    commands = result.add_subparsers(dest="command", metavar="COMMAND", title="commands, instead of the job")
    commands.add_parser("snapshot", help="take a snapshot now", description="Takes a snapshot now.")
    what = "its name in Qdrant or in KNOWLEDGE_SNAPSHOT_DIR, or the path of a file"
    text = "Puts a snapshot into a collection of its own, counts its points, and deletes that collection again."
    verify = commands.add_parser("verify", help="prove that a snapshot can be put back", description=text)
    verify.add_argument("snapshot", metavar="SNAPSHOT", nargs="?", help=f"{what}; the newest if none is named")
    text = "Puts a snapshot in the place of the collection. What is there now is snapshotted first."
    restore = commands.add_parser("restore", help="put a snapshot back (asks first)", description=text)
    restore.add_argument("snapshot", metavar="SNAPSHOT", help=what)
    restore.add_argument("--yes", action="store_true", help="do not ask")
    return result


def run(options: argparse.Namespace) -> int:
    """Runs one command. Returns the exit status, 1 when it could not be done; raises SettingsError."""
    settings = program.settings_from_environment("knowledge")
    try:
        client = connect(settings.redis_url)
    except ValueError as error:
        raise SettingsError(f"REDIS_URL: {error}") from error
    desk = KnowledgeCommands(settings, client)
    try:
        with closing(client), closing(desk.store):
            if options.command == "restore":
                return desk.restore(options.snapshot, ask=not options.yes)
            return desk.verify(options.snapshot) if options.command == "verify" else desk.take()
    except ServerUnavailable as error:
        say(f"{error.server} does not answer: {error}")
    except redis.RedisError as error:
        say(f"Redis does not answer: {str(error).strip()}")
    except (WorkerError, OSError) as error:
        say(str(error))
    except KeyboardInterrupt:
        say("Stopped.")
    return 1


def scratch_collections(names: Iterable[str], collection: str) -> list[str]:
    """Those of ``names`` that a verification of ``collection`` made."""
    pattern = re.compile(re.escape(collection + SCRATCH) + "[0-9a-f]{8}")
    return [name for name in names if pattern.fullmatch(name)]


def say(text: str) -> None:
    """To the person who typed the command."""
    print(text, flush=True)  # noqa: T201 - a person reads it


class KnowledgeCommands:
    """The commands, with what they need."""

    def __init__(self, settings: Settings, client: redis.Redis) -> None:
        self.store = VectorStore(settings.qdrant_url, settings.qdrant_api_key)
        self._settings = settings
        self._collection = settings.vector_collection_name
        self._client = client
        self._records = RecordStore(client, self._collection)
        folder = settings.knowledge_snapshot_dir
        self._copies = SnapshotCopies(folder, self._collection) if folder else None

    def take(self) -> int:
        """Takes a snapshot. Returns the exit status."""
        with self._lock():
            snapshot = self._take()
            say(f"Snapshot {snapshot.name}: {_size(snapshot.size_bytes)}, {self._points_of(snapshot.name)}.")
            if self._copies:
                self._copies.add(self.store, snapshot)
                say(f"Copied to {self._copies.path(snapshot.name)}.")
            self._accept()
        return 0

    def verify(self, name: str | None) -> int:
        """Proves that a snapshot can be put back. Returns the exit status."""
        with self._lock():
            source = self._newest() if name is None else self._file(name) or self._listed(name)
            scratch = f"{self._collection}{SCRATCH}{secrets.token_hex(4)}"
            say(f"Putting {source.name} into {scratch} ...")
            try:
                self._put_back(source, scratch)
                points = self.store.count(scratch)
            finally:
                self._drop(scratch)
            return self._judge(source, points)

    def restore(self, name: str, *, ask: bool) -> int:
        """Puts a snapshot in the place of the collection. Returns the exit status."""
        source = self._file(name) or self._listed(name)
        say(
            f"Collection {self._collection} at {self._settings.qdrant_url}: {self._count():,} points, which are "
            f"replaced by {source.name} ({self._points_of(source.name)}). What was written after it is lost then; a "
            "snapshot of what is there is taken first."
        )
        if ask:
            self._ask()
        with self._lock():
            self._pin(source)  # the snapshot that is taken first may be one too many
            if self._count():  # anew: a person may have thought about it for long
                say(f"Taken first: {self._take().name}")
            try:
                self._put_back(source, self._collection)
            except (KeyboardInterrupt, ServerUnavailable):
                say(f"Nobody waited for the end: Qdrant may go on with it. Look at {self._collection} in a while.")
                raise
            points = self.store.count(self._collection)
            say(f"Put back: collection {self._collection} has {points:,} points.")
            record = self._recorded(source.name)
            if record and not record.fits(points):
                say(f"It should have {record.points}: look at Qdrant's log before the CRM uses it.")
                return 1
            self._release(source.name)
        return 0

    def _count(self) -> int:
        """The points of the collection, 0 when there is none."""
        found = self.store.collection(self._collection)
        return found.points if found else 0

    def _file(self, name: str) -> Source | None:
        """A copy or a file of that name, where the collection or its snapshot is not in Qdrant."""
        if self.store.collection(self._collection) and self._in_qdrant(name):
            return None
        if self._copies and name in self._copies.names():
            return Source(name, path=self._copies.path(name))
        return Source(Path(name).name, path=Path(name)) if Path(name).is_file() else None

    def _listed(self, name: str) -> Source:
        """A snapshot in Qdrant, which lists those of a collection that is there only. Raises CommandRefused."""
        made = self.store.make(self._collection, self._settings.knowledge_vector_size)
        found = self._in_qdrant(name)
        if found:
            if made:
                say(f"There was no collection {self._collection}: made, empty.")
            return Source(found.name, snapshot=found)
        refusal = CommandRefused(f"There is no snapshot {name}, and no such file. {self._known()}")
        if made:
            self.store.drop(self._collection)
        raise refusal

    def _in_qdrant(self, name: str) -> CollectionSnapshot | None:
        return next((each for each in self.store.snapshots(self._collection) if each.name == name), None)

    def _known(self) -> str:
        """The names that there are, for people."""
        snapshots = self.store.snapshots(self._collection)
        lines = [f"  {each.name}  {each.taken_at}  {_size(each.size_bytes)}" for each in snapshots]
        copies = sorted(self._copies.names()) if self._copies else []
        lines += [f"  {each}  (a copy)" for each in copies if each not in {one.name for one in snapshots}]
        return f"Snapshots of {self._collection}:\n" + ("\n".join(lines) or "  none")

    def _newest(self) -> Source:
        """Raises CommandRefused when there is none."""
        if self.store.collection(self._collection):
            for each in self.store.snapshots(self._collection):
                return Source(each.name, snapshot=each)
        copies = self._copies.names() if self._copies else {}
        if self._copies and copies:
            name = max(copies, key=lambda each: (copies[each], each))
            return Source(name, path=self._copies.path(name))
        if self.store.collection(self._collection) is None:
            raise CommandRefused(
                f"There is no collection {self._collection}, and Qdrant lists no snapshots of one that is not there: "
                "the job knowledge makes it within five minutes, or bin/knowledge restore with a snapshot's name"
            )
        raise CommandRefused(f"There is no snapshot of {self._collection} yet: bin/knowledge snapshot takes one.")

    def _pin(self, source: Source) -> None:
        if source.path is not None and not (self._copies and source.path == self._copies.path(source.name)):
            return  # a file that nobody prunes
        try:
            self._records.pin(source.name)
        except redis.RedisError as error:
            log.warning("Redis is away: keep the job knowledge stopped until this is done", {"reason": str(error)})

    def _release(self, snapshot: str) -> None:
        """It is put back, and whoever wanted that knows how many points there are now."""
        with suppress(redis.RedisError):  # it stays for longer than it has to
            self._records.unpin(snapshot)
        self._accept()

    def _accept(self) -> None:
        """Fuller snapshots of before are no loss any more."""
        with suppress(redis.RedisError):  # the job goes on to speak of a loss
            self._records.accept(utc_now())

    def _ask(self) -> None:
        """Raises CommandRefused unless a person says yes."""
        if not sys.stdin.isatty():
            raise CommandRefused("Nothing was done: nobody can be asked here. Add --yes if you mean it.")
        print(f"Type {self._collection} to go on: ", end="", flush=True)  # noqa: T201 - a person reads it
        if sys.stdin.readline().strip() != self._collection:
            raise CommandRefused("Nothing was done.")

    def _take(self) -> CollectionSnapshot:
        if self.store.collection(self._collection) is None:
            raise CommandRefused(f"There is no collection {self._collection} to take a snapshot of.")
        with _progress():
            return take(self.store, self._records, self._collection)

    def _put_back(self, source: Source, collection: str) -> None:
        with _progress():
            if source.snapshot is not None:
                self.store.recover(collection, self._collection, source.snapshot)
            elif source.path is not None:
                self.store.upload(collection, source.path)

    def _drop(self, scratch: str) -> None:
        try:
            if self.store.collection(scratch) is None:
                return
            for each in self.store.snapshots(scratch):  # Qdrant may keep there what was sent to it
                self.store.delete_snapshot(scratch, each.name)
            self.store.drop(scratch)
        except WorkerError as error:
            say(f"Collection {scratch} could not be deleted ({error}): the job knowledge does it within minutes.")

    def _judge(self, source: Source, points: int) -> int:
        """Says what ``points`` means. Returns the exit status."""
        record = self._recorded(source.name)
        if record:
            right = record.fits(points)
            say(f"{'Good' if right else 'NOT GOOD'}: {points:,} points put back, {record.points} when it was taken.")
            return 0 if right else 1
        now = self.store.count(self._collection)
        if points == now:
            say(f"Good: {points:,} points put back, as many as the collection has now.")
            return 0
        say(
            f"Unclear: {points:,} points put back, {now:,} in the collection now, and nobody counted when it was "
            "taken. Take one with bin/knowledge snapshot, and verify that."
        )
        return 1

    def _recorded(self, name: str) -> SnapshotRecord | None:
        try:
            return self._records.all().get(name)
        except redis.RedisError as error:
            log.warning("Redis does not tell how many points a snapshot has", {"reason": str(error).strip()})
            return None

    def _points_of(self, name: str) -> str:
        record = self._recorded(name)
        return f"{record.points} points" if record else "nobody counted its points"

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """The job's lock. Without Redis it goes on without: whoever restores may have lost more than Qdrant."""
        lock = program.create_lock(self._settings, self._client, LOCK)
        try:
            self._wait_for(lock)
        except redis.RedisError as error:
            log.warning("going on without lock:knowledge; keep the job knowledge stopped", {"reason": str(error)})
        try:
            yield
        finally:
            lock.close()

    def _wait_for(self, lock: Lock) -> None:
        until, told = time.monotonic() + LOCK_PATIENCE_SECONDS, False
        while not lock.acquire():
            if time.monotonic() > until:
                raise CommandRefused(
                    f"{lock.key} is still held by {lock.holder()}: stop the job knowledge, and try again."
                )
            if not told:
                say(f"{lock.key} is held by {lock.holder()}: waiting ...")
            told = True
            time.sleep(LOCK_POLL_SECONDS)


@contextmanager
def _progress() -> Iterator[None]:
    """Says now and then that it is still at it."""
    done, began = threading.Event(), time.monotonic()

    def tell() -> None:
        while not done.wait(PROGRESS_SECONDS):
            say(f"... {time.monotonic() - began:.0f} s")

    threading.Thread(target=tell, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _size(count: int) -> str:
    """Of a file, for people."""
    return f"{count / 1e6:,.1f} MB" if count >= 100_000 else f"{count:,} bytes"
