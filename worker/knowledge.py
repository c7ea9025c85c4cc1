"""bin/knowledge: keeps the collection of the CRM's AI in Qdrant right, and takes a snapshot of it every day.

A tick looks every few minutes whether the collection is as it should be, makes it where it is missing, and takes,
copies and prunes snapshots when they are due. It never alters or drops a collection that is there.
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from worker.errors import TickFailed
from worker.runtime import program
from worker.runtime.job import JobContext, TickResult
from worker.vectors import commands as recovery
from worker.vectors.client import TENANT_FIELD, Collection, CollectionSnapshot, VectorStore, VectorStoreError
from worker.vectors.snapshots import (
    UNFINISHED,
    Backup,
    RecordStore,
    SnapshotCopies,
    SnapshotRecord,
    backups,
    fuller,
    is_due,
    take,
    taken_at,
    unrecorded,
)

log = logging.getLogger(__name__)

LOOK_SECONDS = 300.0  # so soon a collection that was deleted is there again
RETRY_SECONDS = 600.0  # after something failed, a snapshot for want of disk, say
POLL_SECONDS = 0.05
DISTANCE = "Cosine"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    options = recovery.parser().parse_args(arguments)
    if options.command:
        return program.run_main(lambda: recovery.run(options))
    return program.run_loop("knowledge", KnowledgeJob, once=options.once)


@dataclass
class TickState:
    """What one tick has seen and done so far."""

    now: datetime
    collection: Collection | None = None
    snapshots: list[CollectionSnapshot] = field(default_factory=list)
    records: dict[str, SnapshotRecord] = field(default_factory=dict)
    lost: Backup | None = None  # the snapshot that holds what the collection has lost
    done: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class KnowledgeJob:
    zone = UTC

    def __init__(self, context: JobContext) -> None:
        """Raises SettingsError for a REDIS_URL that cannot be read."""
        settings = context.settings
        self.interval_seconds = settings.knowledge_snapshot_interval_seconds
        self._collection = settings.vector_collection_name
        self._size = settings.knowledge_vector_size
        self._keep = settings.knowledge_snapshot_keep
        self._context = context
        self._store = VectorStore(settings.qdrant_url, settings.qdrant_api_key)
        self._records = RecordStore(context.redis, self._collection)
        folder = settings.knowledge_snapshot_dir
        self._copies = SnapshotCopies(folder, self._collection) if folder else None
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="snapshot")
        self._under_way: Future[None] | None = None

    def start(self) -> None:
        """Nothing has to be there before the first tick."""

    def tick(self, now: datetime) -> TickResult:
        view = TickState(now)
        if not self._ended(self._threads.submit(self._look, view)):
            log.warning("stopping: what is under way in Qdrant is left to itself", {"job": self._context.name})
        elif view.problems:
            raise TickFailed("; ".join(view.problems), RETRY_SECONDS)
        return TickResult(view.done, next_at=now + timedelta(seconds=LOOK_SECONDS))

    def close(self) -> bool:
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._under_way is not None and not self._under_way.done():
            return False  # Qdrant goes on by itself
        self._store.close()
        return True

    def _ended(self, work: Future[None]) -> bool:
        """Waits for what may take minutes; False: the program is to stop, and nobody waits any longer."""
        self._under_way = work
        while not work.done():
            if self._context.signals.stopping:
                return False
            self._context.signals.wait(POLL_SECONDS)
            self._context.counters.heartbeat(self._context.clock())
        work.result()
        return True

    def _look(self, view: TickState) -> None:
        """All the steps of a tick, in a thread of its own."""
        for step in (self._clear_away, self._keep_right, self._back_up, self._copy, self._prune, self._tell):
            if self._context.signals.stopping or not self._context.lock.held:
                return
            try:
                step(view)
            except (VectorStoreError, OSError) as error:  # the other steps have to be done all the same
                view.problems.append(str(error))

    def _clear_away(self, view: TickState) -> None:
        """Scratch collections of a bin/knowledge verify that was killed: while it lives it has the lock."""
        for name in recovery.scratch_collections(self._store.names(), self._collection):
            self._store.drop(name)
            log.warning("a verification that was killed had left a collection: deleted", {"collection": name})

    def _keep_right(self, view: TickState) -> None:
        if self._store.make(self._collection, self._size):
            log.info("collection made", {"collection": self._collection, "size": self._size, "distance": DISTANCE})
            view.done["made"] = 1
        view.collection = found = self._store.collection(self._collection)
        if found is None:
            raise VectorStoreError(f"collection {self._collection} was deleted just after it was made")
        if found.tenant_index is None and found.points == 0:  # also where its maker died in between
            self._store.index_tenants(self._collection)
            log.info("payload index made", {"collection": self._collection, "field": TENANT_FIELD})
        else:
            view.problems.extend(misfits(found, self._size))

    def _back_up(self, view: TickState) -> None:
        if view.collection is None:
            return
        view.snapshots = self._store.snapshots(self._collection)
        view.records = self._records.all()
        if overlooked := unrecorded(view.snapshots, view.records):
            self._records.put(overlooked.name, view.records.pop(UNFINISHED))
            view.records = self._records.all()
        # before anything here can fail: what is pruned depends on it
        view.lost = fuller(self._everywhere(view), view.collection.points, view.records)
        if view.lost:
            had = f"{view.lost.record.points} points" if view.lost.record else "points that nobody counted"
            view.problems.append(
                f"collection {self._collection} has {view.collection.points:,} points, and snapshot {view.lost.name} "
                f"has {had}; that one is kept. Put it back with bin/knowledge restore {view.lost.name}; where "
                "nothing is lost, say so with bin/knowledge snapshot"
            )
        if is_due(self._in_qdrant(view), view.now, self.interval_seconds):
            taken = take(self._store, self._records, self._collection)
            log.info("snapshot taken", {"snapshot": taken.name, "bytes": taken.size_bytes})
            view.snapshots.append(taken)
            view.records = self._records.all()
            view.done["snapshots"] = 1

    def _copy(self, view: TickState) -> None:
        newest = next(iter(self._in_qdrant(view)), None)
        for each in view.snapshots:
            if self._copies and newest and each.name == newest.name and self._copies.lacks(each):
                self._copies.add(self._store, each)
                view.done["copied"] = 1

    def _prune(self, view: TickState) -> None:
        if not view.snapshots:
            return
        spared = self._records.pinned() | {view.lost.name if view.lost else ""}
        kept = {each.name for each in self._in_qdrant(view)[: self._keep]} | spared
        for snapshot in [each for each in view.snapshots if each.name not in kept]:
            self._store.delete_snapshot(self._collection, snapshot.name)
            view.snapshots.remove(snapshot)
            view.done["pruned"] = view.done.get("pruned", 0) + 1
        if self._copies:
            copies = backups(self._copies.names(), view.records)
            kept |= {each.name for each in copies[: self._keep]}
            for copy in copies:
                if copy.name not in kept:
                    self._copies.remove(copy.name)
            self._copies.remove_parts()
        self._records.keep_only(kept)

    def _tell(self, view: TickState) -> None:
        if view.collection:
            self._context.counters.gauge("knowledge_points", view.collection.points)
        for newest in self._in_qdrant(view)[:1]:
            size = next(each.size_bytes for each in view.snapshots if each.name == newest.name)
            at = newest.taken_at.replace(tzinfo=UTC).timestamp()
            self._context.counters.gauge("knowledge_snapshot_timestamp_seconds", at)
            self._context.counters.gauge("knowledge_snapshot_size_bytes", size)

    def _in_qdrant(self, view: TickState) -> list[Backup]:
        """The newest first."""
        return backups({each.name: taken_at(each) for each in view.snapshots}, view.records)

    def _everywhere(self, view: TickState) -> list[Backup]:
        """Those in Qdrant and the copies, the newest first."""
        names = self._copies.names() if self._copies else {}
        return backups(names | {each.name: taken_at(each) for each in view.snapshots}, view.records)


def misfits(found: Collection, size: int) -> Iterator[str]:
    """What is wrong with a collection that is there, and what to do; nothing of it is mended by the worker."""
    if (found.size, found.distance) != (size, DISTANCE):
        has = f"vectors of {found.size}, {found.distance}" if found.size else "named vectors, or none"
        yield (
            f"collection {found.name} has {has}; KNOWLEDGE_VECTOR_SIZE and the CRM's AI want vectors of {size}, "
            f"{DISTANCE}. Nothing was changed: set KNOWLEDGE_VECTOR_SIZE to what the AI's model makes, or name "
            "another collection in VECTOR_COLLECTION_NAME and have the CRM fill that"
        )
    if found.tenant_index != "keyword":
        index = f"index of type {found.tenant_index}" if found.tenant_index else "payload index"
        yield (
            f"collection {found.name} has {'an' if found.tenant_index else 'no'} {index} on {TENANT_FIELD}, so each "
            "question of the AI reads the points of all tenants; docs/operating.md says how to make the right one"
        )
    elif not found.by_tenant:
        yield (
            f"collection {found.name} has a payload index on {TENANT_FIELD} without is_tenant; docs/operating.md "
            "says how to make the right one"
        )


if __name__ == "__main__":
    sys.exit(main())
