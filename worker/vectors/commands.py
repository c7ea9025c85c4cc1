"""bin/knowledge snapshot, verify and restore: what an operator does with the snapshots of Qdrant's collection.

A command holds the job's lock while it runs, so that the job deletes no snapshot that the command needs.
"""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import redis

from worker.errors import CommandRefused, ServerUnavailable, WorkerError
from worker.registry import LOCKS
from worker.runtime import program
from worker.runtime.clock import utc_now
from worker.runtime.console import progress, write
from worker.runtime.lock import Lock
from worker.runtime.settings import Settings
from worker.vectors.client import VectorStore
from worker.vectors.collection import CollectionSnapshot
from worker.vectors.scratch import new_scratch_name
from worker.vectors.snapshot_sources import SnapshotFinder, SnapshotSource, file_size
from worker.vectors.snapshots import SnapshotCopies, SnapshotRecord, SnapshotRecordStore, take

log = logging.getLogger(__name__)

LOCK_WAIT_SECONDS = 90.0  # longer than the lock of a dead process lasts
LOCK_POLL_SECONDS = 0.5


class KnowledgeCommands:
    """The commands, for one collection. They raise what VectorStore raises, and CommandRefused."""

    def __init__(self, settings: Settings, client: redis.Redis) -> None:
        """Connects to nothing yet; ``client`` stays the caller's."""
        self._settings = settings
        self._collection = settings.vector_collection_name
        self._client = client
        self._store = VectorStore(settings.qdrant_url, settings.qdrant_api_key)
        self._records = SnapshotRecordStore(client, self._collection)
        folder = settings.knowledge_snapshot_dir
        self._copies = SnapshotCopies(folder, self._collection) if folder else None
        self._finder = SnapshotFinder(self._store, self._copies, settings)

    def close(self) -> None:
        self._store.close()

    def take(self) -> int:
        """Takes a snapshot. Returns the exit status."""
        with self._lock():
            snapshot = self._take()
            record = self._record_of(snapshot.name)
            write(f"Snapshot {snapshot.name}: {file_size(snapshot.size_bytes)}, {_points_text(record)}.")
            if self._copies:
                self._copies.add(self._store, snapshot)
                write(f"Copied to {self._copies.path(snapshot.name)}.")
            if record:
                self._accept(record)
        return 0

    def verify(self, name: str | None) -> int:
        """Proves that a snapshot can be restored. Returns the exit status."""
        with self._lock():
            source = self._finder.newest() if name is None else self._find(name)
            scratch = new_scratch_name(self._collection)
            write(f"Restoring {source.name} into {scratch} ...")
            try:
                self._restore(source, scratch)
                points = self._store.count(scratch)
            finally:
                self._drop(scratch)
            return self._report_verification(source, points)

    def restore(self, name: str, *, ask: bool) -> int:
        """Replaces the collection by a snapshot. Returns the exit status."""
        source = self._find(name)
        write(
            f"Collection {self._collection} at {self._settings.qdrant_url} has {self._count():,} points. They are "
            f"replaced by {source.name} ({_points_text(self._record_of(source.name))}). What was written after that "
            "snapshot is lost then; a snapshot of the present collection is taken first."
        )
        if ask:
            self._confirm()
        with self._lock():
            self._pin(source)  # the snapshot that is taken first may be one more than the job keeps
            if self._count():  # counted again: the operator may have taken long to confirm
                write(f"Taken first: {self._take().name}")
            try:
                self._restore(source, self._collection)
            except (KeyboardInterrupt, ServerUnavailable):
                write(f"The end was not awaited: Qdrant may still be restoring. Check {self._collection} later.")
                raise
            points = self._store.count(self._collection)
            write(f"Restored: collection {self._collection} has {points:,} points.")
            record = self._record_of(source.name)
            if record and not record.fits(points):
                write(f"It should have {record.points}: check Qdrant's log before the CRM uses it.")
                return 1
            with suppress(redis.RedisError):  # then the snapshot is kept for longer than necessary
                self._records.unpin(source.name)
            self._accept(SnapshotRecord(utc_now(), points, points))
        return 0

    def _find(self, name: str) -> SnapshotSource:
        found = self._finder.find(name)
        if found.created_collection:
            write(f"The collection {self._collection} did not exist: created, empty.")
        return found.source

    def _count(self) -> int:
        """The points of the collection, 0 when it does not exist."""
        found = self._store.collection(self._collection)
        return found.points if found else 0

    def _pin(self, source: SnapshotSource) -> None:
        """Keeps the job from deleting the snapshot, also if this process dies."""
        if source.path is not None and not self._finder.is_copy(source):
            return  # a file that the job does not know
        try:
            self._records.pin(source.name)
        except redis.RedisError as error:
            log.warning(
                "Redis is unavailable: keep the job knowledge stopped until this is done", {"reason": str(error)}
            )

    def _accept(self, record: SnapshotRecord) -> None:
        """From now on older snapshots with more points are not a loss: the operator knows the present number."""
        with suppress(redis.RedisError):  # then the job continues to report the loss
            self._records.put_accepted(record)

    def _confirm(self) -> None:
        """Raises CommandRefused unless the operator confirms."""
        if not sys.stdin.isatty():
            raise CommandRefused("Nothing was done: there is no terminal to confirm in. Add --yes to confirm.")
        print(f"Type {self._collection} to continue: ", end="", flush=True)  # noqa: T201 - a person reads it
        if sys.stdin.readline().strip() != self._collection:
            raise CommandRefused("Nothing was done.")

    def _take(self) -> CollectionSnapshot:
        if self._store.collection(self._collection) is None:
            raise CommandRefused(f"There is no collection {self._collection} to take a snapshot of.")
        with progress():
            return take(self._store, self._records, self._collection)

    def _restore(self, source: SnapshotSource, collection: str) -> None:
        with progress():
            if source.snapshot is not None:
                self._store.restore(collection, self._collection, source.snapshot)
            elif source.path is not None:
                self._store.restore_file(collection, source.path)

    def _drop(self, scratch: str) -> None:
        try:
            if self._store.collection(scratch) is None:
                return
            for each in self._store.snapshots(scratch):  # Qdrant may keep uploaded files there
                self._store.delete_snapshot(scratch, each.name)
            self._store.drop(scratch)
        except WorkerError as error:
            write(f"Collection {scratch} could not be deleted ({error}): the job knowledge does it within minutes.")

    def _report_verification(self, source: SnapshotSource, points: int) -> int:
        """Returns the exit status."""
        record = self._record_of(source.name)
        if record:
            good = record.fits(points)
            write(f"{'Good' if good else 'NOT GOOD'}: {points:,} points restored, {record.points} when it was taken.")
            return 0 if good else 1
        present = self._store.count(self._collection)
        if points == present:
            write(f"Good: {points:,} points restored, as many as the collection has now.")
            return 0
        write(
            f"Unclear: {points:,} points restored, {present:,} in the collection now, and no number was recorded "
            "when the snapshot was taken. Take one with bin/knowledge snapshot, and verify that."
        )
        return 1

    def _record_of(self, name: str) -> SnapshotRecord | None:
        try:
            return self._records.all().get(name)
        except redis.RedisError as error:
            log.warning(
                "Redis is unavailable: the number of points in the snapshot is unknown",
                {"reason": str(error).strip()},
            )
            return None

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """The job's lock. Continues without Redis: an operator may have lost Redis together with Qdrant."""
        lock = program.create_lock(self._settings, self._client, LOCKS["knowledge"])
        try:
            self._wait_for(lock)
        except redis.RedisError as error:
            log.warning(
                "Redis is unavailable: continuing without lock:knowledge, keep the job knowledge stopped",
                {"reason": str(error)},
            )
        try:
            yield
        finally:
            lock.close()

    def _wait_for(self, lock: Lock) -> None:
        deadline, reported = time.monotonic() + LOCK_WAIT_SECONDS, False
        while not lock.acquire():
            if time.monotonic() > deadline:
                raise CommandRefused(
                    f"{lock.key} is still held by {lock.holder()}: stop the job knowledge, and try again."
                )
            if not reported:
                write(f"{lock.key} is held by {lock.holder()}: waiting ...")
            reported = True
            time.sleep(LOCK_POLL_SECONDS)


def _points_text(record: SnapshotRecord | None) -> str:
    return f"{record.points} points" if record else "an unknown number of points"
