"""Snapshots of a collection: when one is due, how many stay, their copies, and how many points each should hold."""

import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import redis

from worker.runtime.clock import utc_now
from worker.runtime.schedule import next_aligned
from worker.vectors.client import PART, WORK_SECONDS, CollectionSnapshot, VectorStore, VectorStoreError

log = logging.getLogger(__name__)

RECORDS = "worker:knowledge"  # :<collection>, a hash: name of a snapshot -> Unix seconds, least, most
UNFINISHED, ACCEPTED = "", "accepted"  # in the place of a name
PINNED = "pinned"  # worker:knowledge:<collection>:pinned, a set of names
SUFFIX = ".snapshot"
PARTS = f".*{SUFFIX}{PART}"
TIME_LENGTH = len("2026-01-31-09-30-00")
CLOCKS_DIFFER = timedelta(minutes=10)  # at most, between us and Qdrant
LONGEST_SNAPSHOT = timedelta(seconds=WORK_SECONDS)
LEAST_LOSS = 20  # points; of a few of them nobody is told


@dataclass(frozen=True)
class SnapshotRecord:
    """What was known when a snapshot was taken: when, by the worker's clock, and how many points it may hold."""

    taken_at: datetime  # naive UTC
    least: int  # points just before or just after, whichever were fewer
    most: int

    def fits(self, points: int) -> bool:
        return self.least <= points <= self.most

    @property
    def points(self) -> str:
        """For people."""
        return f"{self.least:,}" if self.least == self.most else f"{self.least:,} to {self.most:,}"


@dataclass(frozen=True)
class Backup:
    """A snapshot in Qdrant, or a copy of one. ``record`` is None where nobody counted."""

    name: str
    taken_at: datetime  # naive UTC: by the worker's clock where it has a record, else by Qdrant's
    record: SnapshotRecord | None = None

    def outdoes(self, points: int) -> bool:
        """Whether a collection of so many points has lost most of what this one holds, or may hold."""
        if points == 0:
            return self.record is None or self.record.most > 0
        return self.record is not None and self.record.least >= max(2 * points, points + LEAST_LOSS)


class RecordStore:
    """The records of one collection's snapshots, in Redis. Every method raises redis.RedisError."""

    def __init__(self, client: redis.Redis, collection: str) -> None:
        self._client = client
        self._key = f"{RECORDS}:{collection}"
        self._pinned = f"{self._key}:{PINNED}"

    def begin(self, record: SnapshotRecord) -> None:
        """Before a snapshot is taken, whose name nobody knows yet: the worker may die meanwhile."""
        self._client.hset(self._key, UNFINISHED, _written(record))

    def put(self, snapshot: str, record: SnapshotRecord) -> None:
        """Once it is taken."""
        with self._client.pipeline() as pipeline:
            pipeline.hset(self._key, snapshot, _written(record))
            pipeline.hdel(self._key, UNFINISHED)
            pipeline.execute()

    def accept(self, now: datetime) -> None:
        """A person took a snapshot: what was fuller before is no loss."""
        self._client.hset(self._key, ACCEPTED, _written(SnapshotRecord(now, 0, 0)))

    def all(self) -> dict[str, SnapshotRecord]:
        """By the snapshots' names, UNFINISHED and ACCEPTED. What Redis lost, or somebody else took, is missing."""
        known = {str(name): _record(str(value)) for name, value in self._client.hgetall(self._key).items()}
        return {name: record for name, record in known.items() if record}

    def pin(self, snapshot: str) -> None:
        """It is being put back: not to be pruned before that has come to a good end."""
        self._client.sadd(self._pinned, snapshot)

    def unpin(self, snapshot: str) -> None:
        self._client.srem(self._pinned, snapshot)

    def pinned(self) -> set[str]:
        return {str(name) for name in self._client.smembers(self._pinned)}

    def keep_only(self, snapshots: Iterable[str]) -> None:
        """Forgets all others."""
        gone = {str(name) for name in self._client.hkeys(self._key)} - {UNFINISHED, ACCEPTED, *snapshots}
        if gone:
            self._client.hdel(self._key, *gone)


class SnapshotCopies:
    """The copies of a collection's snapshots in a folder. Every method raises OSError."""

    def __init__(self, folder: Path, collection: str) -> None:
        self._folder = folder
        self._collection = collection
        self._pattern = re.compile(re.escape(collection) + r"-\d+-\d{4}(-\d\d){5}" + re.escape(SUFFIX))

    def names(self) -> dict[str, datetime]:
        """When each was taken, by the time in its name. Other files in the folder are nobody's business."""
        if not self._folder.is_dir():
            return {}
        found = [path.name for path in self._folder.iterdir() if self._pattern.fullmatch(path.name)]
        return {name: taken_at for name in found if (taken_at := _time_in(name))}

    def path(self, name: str) -> Path:
        return self._folder / name

    def add(self, store: VectorStore, snapshot: CollectionSnapshot) -> None:
        """Copies a snapshot. Raises ServerUnavailable and VectorStoreError only."""
        path = self.path(snapshot.name)
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            store.download(self._collection, snapshot, path)
        except OSError as error:
            reason = error.strerror or str(error)
            raise VectorStoreError(
                f"no copy of {snapshot.name} in KNOWLEDGE_SNAPSHOT_DIR {self._folder}: {reason}"
            ) from error
        log.info("snapshot copied", {"snapshot": snapshot.name, "to": path, "bytes": snapshot.size_bytes})

    def lacks(self, snapshot: CollectionSnapshot) -> bool:
        """Whether it is to be copied. What is not called like a snapshot of this collection is not."""
        return bool(self._pattern.fullmatch(snapshot.name)) and not self.path(snapshot.name).exists()

    def remove(self, name: str) -> None:
        self.path(name).unlink(missing_ok=True)

    def remove_parts(self) -> None:
        """What a copying that was killed left."""
        for part in self._folder.glob(PARTS):
            if self._pattern.fullmatch(part.name.removeprefix(".").removesuffix(PART)):
                part.unlink(missing_ok=True)


def take(store: VectorStore, records: RecordStore, collection: str) -> CollectionSnapshot:
    """Takes a snapshot and records it. Raises what VectorStore raises; without Redis nothing is recorded."""
    began, before = utc_now(), store.count(collection)
    with _best_effort():
        records.begin(SnapshotRecord(began, before, before))
    snapshot = store.take_snapshot(collection)
    after = store.count(collection)
    with _best_effort():
        records.put(snapshot.name, SnapshotRecord(began, min(before, after), max(before, after)))
    return snapshot


def backups(names: Mapping[str, datetime], records: Mapping[str, SnapshotRecord]) -> list[Backup]:
    """The newest first. ``names``: when each was taken, by Qdrant's clock."""
    found = []
    for name, taken_at in names.items():
        record = records.get(name)
        found.append(Backup(name, record.taken_at if record else taken_at, record))
    return sorted(found, key=lambda each: (each.taken_at, each.name), reverse=True)


def unrecorded(
    snapshots: Iterable[CollectionSnapshot], records: Mapping[str, SnapshotRecord]
) -> CollectionSnapshot | None:
    """The snapshot that UNFINISHED is about: Qdrant took it to its end, and the worker did not see that.

    The first one since then that has no record; later ones are somebody else's.
    """
    begun = records.get(UNFINISHED)
    if begun is None:
        return None
    earliest, latest = begun.taken_at - CLOCKS_DIFFER, begun.taken_at + LONGEST_SNAPSHOT + CLOCKS_DIFFER
    open_ones = [each for each in snapshots if each.name not in records and earliest <= taken_at(each) <= latest]
    return min(open_ones, key=taken_at, default=None)


def is_due(known: Iterable[Backup], now: datetime, interval_seconds: float) -> bool:
    """Whether none was taken since the latest moment at which one had to be.

    So a restart takes none, and one that was missed while the worker was down is taken at once. A snapshot out of
    Qdrant's future says nothing.
    """
    latest_moment = next_aligned(now - timedelta(seconds=interval_seconds), interval_seconds)
    return not any(latest_moment <= each.taken_at <= now + CLOCKS_DIFFER for each in known)


def fuller(known: Iterable[Backup], points: int, records: Mapping[str, SnapshotRecord]) -> Backup | None:
    """The newest backup that holds, or may hold, most of what a collection of so many ``points`` has lost."""
    accepted = records.get(ACCEPTED)
    for each in known:
        if each.outdoes(points):
            return None if accepted and each.taken_at < accepted.taken_at else each
    return None


def taken_at(snapshot: CollectionSnapshot) -> datetime:
    """By the time in its name, else by that of its file, which a copied folder does not keep."""
    return _time_in(snapshot.name) or snapshot.taken_at


@contextmanager
def _best_effort() -> Iterator[None]:
    try:
        yield
    except redis.RedisError as error:
        log.warning(
            "Redis is away: nobody will know how many points the snapshot has", {"reason": str(error).strip()}
        )


def _time_in(name: str) -> datetime | None:
    """Qdrant's snapshots are called collection-number-2026-01-31-09-30-00.snapshot, in UTC."""
    with suppress(ValueError):
        return datetime.strptime(name.removesuffix(SUFFIX)[-TIME_LENGTH:], "%Y-%m-%d-%H-%M-%S")  # noqa: DTZ007 - naive UTC
    return None


def _written(record: SnapshotRecord) -> str:
    seconds = math.floor(record.taken_at.replace(tzinfo=UTC).timestamp())  # never later than it was
    return f"{seconds} {record.least} {record.most}"


def _record(value: str) -> SnapshotRecord | None:
    match = re.fullmatch(r"(\d{1,12}) (\d{1,15}) (\d{1,15})", value)
    if not match:
        return None
    taken_at = datetime.fromtimestamp(int(match[1]), UTC).replace(tzinfo=None)
    return SnapshotRecord(taken_at, int(match[2]), int(match[3]))
