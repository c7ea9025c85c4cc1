"""bin/knowledge: maintains the collection of the CRM's AI in Qdrant, and takes a snapshot of it every day.

A tick every few minutes checks the collection, creates it if it is missing, and takes, copies and deletes snapshots
when that is due. It never changes or drops an existing collection.
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from worker.errors import TickFailed
from worker.runtime import program
from worker.runtime.job import JobContext, TickResult
from worker.vectors import command_line
from worker.vectors.collection import TENANT_FIELD, Collection, CollectionSnapshot, VectorStoreError
from worker.vectors.reader import VectorReader
from worker.vectors.scratch import scratch_collections
from worker.vectors.snapshots import (
    UNFINISHED,
    Backup,
    SnapshotCopies,
    SnapshotRecord,
    SnapshotRecordStore,
    backup_of_lost_points,
    backups,
    is_due,
    take,
    taken_at,
    unfinished_snapshot,
)

if TYPE_CHECKING:
    from worker.vectors.client import VectorStore

log = logging.getLogger(__name__)

CHECK_SECONDS = 300.0  # a deleted collection is created again within this time
RETRY_SECONDS = 600.0  # after a failure, such as a snapshot on a full disk
POLL_SECONDS = 0.05
DISTANCE = "Cosine"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    options = command_line.parser().parse_args(arguments)
    if options.command:
        return program.run_main(lambda: command_line.run(options))
    return program.run_loop("knowledge", KnowledgeJob, options)


@dataclass
class TickState:
    """What one tick has found and done so far."""

    now: datetime
    collection: Collection | None = None
    snapshots: list[CollectionSnapshot] = field(default_factory=list)
    records: dict[str, SnapshotRecord] = field(default_factory=dict)
    lost: Backup | None = None  # the snapshot that has what the collection has lost
    done: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class KnowledgeJob:
    """The job: its ticks do their work in a thread, so that a stop does not wait for Qdrant."""

    zone = UTC

    def __init__(self, context: JobContext) -> None:
        settings = context.settings
        self.interval_seconds = settings.knowledge_snapshot_interval_seconds
        self._collection = settings.vector_collection_name
        self._vector_size = settings.knowledge_vector_size
        self._keep = settings.knowledge_snapshot_keep
        self._context = context
        self._qdrant = VectorReader(settings.qdrant_url, settings.qdrant_api_key)
        self._records = SnapshotRecordStore(context.redis, self._collection)
        folder = settings.knowledge_snapshot_dir
        self._copies = SnapshotCopies(folder, self._collection) if folder else None
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="snapshot")
        self._running: Future[None] | None = None

    def start(self) -> None:
        """The first tick needs no preparation."""

    def tick(self, now: datetime) -> TickResult:
        state = TickState(now)
        if not self._finished(self._threads.submit(self._run_steps, state)):
            log.warning("stopping: Qdrant completes the running request by itself", {"job": self._context.name})
        elif state.problems:
            raise TickFailed("; ".join(state.problems), RETRY_SECONDS)
        return TickResult(state.done, next_at=now + timedelta(seconds=CHECK_SECONDS), may_rest=True)

    def close(self) -> bool:
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._running is not None and not self._running.done():
            return False  # Qdrant completes the request by itself
        self._qdrant.close()
        return True

    def _finished(self, work: Future[None]) -> bool:
        """Waits for work that may take minutes; False: the program has to stop first."""
        self._running = work
        while not work.done():
            if self._context.signals.stopping:
                return False
            self._context.signals.wait(POLL_SECONDS)
            self._context.counters.heartbeat(self._context.clock())
        work.result()
        return True

    def _run_steps(self, state: TickState) -> None:
        """All steps of a tick, in a thread of its own."""
        steps = (
            self._drop_scratch_collections,
            self._maintain_collection,
            self._take_snapshot,
            self._copy_snapshot,
            self._delete_old_snapshots,
            self._report,
        )
        for step in steps:
            if self._context.signals.stopping or not self._context.lock.held:
                return
            try:
                step(state)
            except (VectorStoreError, OSError) as error:  # the other steps are still done
                state.problems.append(str(error))

    def _drop_scratch_collections(self, state: TickState) -> None:
        """Left by a killed bin/knowledge verify: a living one holds the lock, and this job does not run."""
        for name in scratch_collections(self._qdrant.names(), self._collection):
            with self._opened_store() as store:
                store.drop(name)
            log.warning("deleted a scratch collection that a killed verification had left", {"collection": name})

    def _maintain_collection(self, state: TickState) -> None:
        state.collection = found = self._qdrant.collection(self._collection) or self._create_collection(state)
        if found.tenant_index is None and found.points == 0:  # also if its creator died in between
            with self._opened_store() as store:
                store.index_tenants(self._collection)
            log.info("payload index created", {"collection": self._collection, "field": TENANT_FIELD})
        else:
            state.problems.extend(collection_problems(found, self._vector_size))

    def _create_collection(self, state: TickState) -> Collection:
        with self._opened_store() as store:
            created = store.create(self._collection, self._vector_size)
        if created:
            log.info(
                "collection created",
                {"collection": self._collection, "size": self._vector_size, "distance": DISTANCE},
            )
            state.done["made"] = 1
        found = self._qdrant.collection(self._collection)
        if found is None:
            raise VectorStoreError(f"collection {self._collection} was deleted just after it was created")
        return found

    def _take_snapshot(self, state: TickState) -> None:
        if state.collection is None:
            return
        self._read_snapshots(state)
        # before the new snapshot, which may fail: what is deleted depends on it
        state.lost = backup_of_lost_points(self._everywhere(state), state.collection.points, state.records)
        if state.lost:
            had = f"{state.lost.record.points} points" if state.lost.record else "an unknown number of points"
            state.problems.append(
                f"collection {self._collection} has {state.collection.points:,} points, and snapshot "
                f"{state.lost.name} has {had}; that one is kept. Restore it with bin/knowledge restore "
                f"{state.lost.name}; if the points were deleted on purpose, confirm that with bin/knowledge snapshot"
            )
        if is_due(self._in_qdrant(state), state.now, self.interval_seconds):
            with self._opened_store() as store:
                taken = take(store, self._records, self._collection)
            log.info("snapshot taken", {"snapshot": taken.name, "bytes": taken.size_bytes})
            state.snapshots.append(taken)
            state.records = self._records.all()
            state.done["snapshots"] = 1

    def _read_snapshots(self, state: TickState) -> None:
        """Those in Qdrant and all records; records a snapshot that the worker did not wait for."""
        state.snapshots = self._qdrant.snapshots(self._collection)
        state.records = self._records.all()
        if unfinished := unfinished_snapshot(state.snapshots, state.records):
            self._records.put(unfinished.name, state.records.pop(UNFINISHED))
            state.records = self._records.all()

    def _copy_snapshot(self, state: TickState) -> None:
        newest = next(iter(self._in_qdrant(state)), None)
        for each in state.snapshots:
            if self._copies and newest and each.name == newest.name and self._copies.needs(each):
                with self._opened_store() as store:
                    self._copies.add(store, each)
                state.done["copied"] = 1

    def _delete_old_snapshots(self, state: TickState) -> None:
        if not state.snapshots:
            return
        protected = self._records.pinned() | {state.lost.name if state.lost else ""}
        kept = {each.name for each in self._in_qdrant(state)[: self._keep]} | protected
        for snapshot in [each for each in state.snapshots if each.name not in kept]:
            with self._opened_store() as store:
                store.delete_snapshot(self._collection, snapshot.name)
            state.snapshots.remove(snapshot)
            state.done["pruned"] = state.done.get("pruned", 0) + 1
        if self._copies:
            copies = backups(self._copies.names(), state.records)
            kept |= {each.name for each in copies[: self._keep]}
            for copy in copies:
                if copy.name not in kept:
                    self._copies.remove(copy.name)
            self._copies.remove_partial_files()
        self._records.keep_only(kept)

    def _report(self, state: TickState) -> None:
        if state.collection:
            self._context.counters.gauge("knowledge_points", state.collection.points)
        for newest in self._in_qdrant(state)[:1]:
            size = next(each.size_bytes for each in state.snapshots if each.name == newest.name)
            at = newest.taken_at.replace(tzinfo=UTC).timestamp()
            self._context.counters.gauge("knowledge_snapshot_timestamp_seconds", at)
            self._context.counters.gauge("knowledge_snapshot_size_bytes", size)

    def _opened_store(self) -> "closing[VectorStore]":
        """To write, which most ticks do not: so its library, which costs most of a second, is imported here."""
        from worker.vectors.client import VectorStore

        settings = self._context.settings
        return closing(VectorStore(settings.qdrant_url, settings.qdrant_api_key))

    def _in_qdrant(self, state: TickState) -> list[Backup]:
        """Newest first."""
        return backups({each.name: taken_at(each) for each in state.snapshots}, state.records)

    def _everywhere(self, state: TickState) -> list[Backup]:
        """The snapshots in Qdrant and the copies, newest first."""
        names = self._copies.names() if self._copies else {}
        return backups(names | {each.name: taken_at(each) for each in state.snapshots}, state.records)


def collection_problems(found: Collection, size: int) -> Iterator[str]:
    """What is wrong with an existing collection, and what to do; the worker changes nothing."""
    if (found.size, found.distance) != (size, DISTANCE):
        has = f"vectors of {found.size}, {found.distance}" if found.size else "named vectors, or none"
        yield (
            f"collection {found.name} has {has}; KNOWLEDGE_VECTOR_SIZE and the CRM's AI need vectors of {size}, "
            f"{DISTANCE}. Nothing was changed: set KNOWLEDGE_VECTOR_SIZE to the size of the AI model's vectors, or "
            "name another collection in VECTOR_COLLECTION_NAME and let the CRM fill that"
        )
    if found.tenant_index != "keyword":
        index = f"index of type {found.tenant_index}" if found.tenant_index else "payload index"
        yield (
            f"collection {found.name} has {'an' if found.tenant_index else 'no'} {index} on {TENANT_FIELD}, so each "
            "query of the AI reads the points of all tenants; docs/operating.md has the command for the right one"
        )
    elif not found.by_tenant:
        yield (
            f"collection {found.name} has a payload index on {TENANT_FIELD} without is_tenant; docs/operating.md "
            "has the command for the right one"
        )


if __name__ == "__main__":
    sys.exit(main())
