"""Snapshots of a collection: when one is due, how many stay, their copies, and how many points each should hold."""

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import redis

from worker.alignment import next_aligned
from worker.loop import utc_now
from worker.vector_store import PART, Snapshot, VectorStore

log = logging.getLogger(__name__)

RECORDS = "worker:knowledge"  # :<collection>, a hash: name of a snapshot -> Unix seconds, least, most
UNFINISHED = ""  # in the place of a name
SUFFIX = ".snapshot"
PARTS = f".*{SUFFIX}{PART}"
TIME_LENGTH = len("2026-01-31-09-30-00")
CLOCKS_DIFFER = timedelta(minutes=10)  # at most, between us and Qdrant


@dataclass(frozen=True)
class Record:
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


class Records:
    """The records of one collection's snapshots, in Redis. Every method raises redis.RedisError."""

    def __init__(self, client: redis.Redis, collection: str) -> None:
        self._client = client
        self._key = f"{RECORDS}:{collection}"

    def begin(self, record: Record) -> None:
        """Before a snapshot is taken, whose name nobody knows yet: the worker may die meanwhile."""
        self._client.hset(self._key, UNFINISHED, _written(record))

    def put(self, snapshot: str, record: Record) -> None:
        """Once it is taken."""
        with self._client.pipeline() as pipeline:
            pipeline.hset(self._key, snapshot, _written(record))
            pipeline.hdel(self._key, UNFINISHED)
            pipeline.execute()

    def all(self) -> dict[str, Record]:
        """By the snapshots' names, and UNFINISHED; those that Redis lost, or somebody else took, are missing."""
        known = {str(name): _record(str(value)) for name, value in self._client.hgetall(self._key).items()}
        return {name: record for name, record in known.items() if record}

    def keep_only(self, snapshots: Iterable[str]) -> None:
        """Forgets all others."""
        gone = {str(name) for name in self._client.hkeys(self._key)} - {UNFINISHED, *snapshots}
        if gone:
            self._client.hdel(self._key, *gone)


class Copies:
    """The copies of a collection's snapshots in a folder. Every method raises OSError."""

    def __init__(self, folder: Path, collection: str) -> None:
        self._folder = folder
        self._collection = collection
        self._pattern = re.compile(re.escape(collection) + r"-\d+-\d{4}(-\d\d){5}" + re.escape(SUFFIX))

    def names(self) -> list[str]:
        """The newest first, by the time in their names. Other files in the folder are nobody's business."""
        if not self._folder.is_dir():
            return []
        found = [path.name for path in self._folder.iterdir() if self._pattern.fullmatch(path.name)]
        return sorted(found, key=_time_in, reverse=True)

    def path(self, name: str) -> Path:
        return self._folder / name

    def add(self, store: VectorStore, snapshot: Snapshot) -> None:
        """Copies a snapshot. Raises ServerAway and StoreError, too."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.path(snapshot.name)
        store.download(self._collection, snapshot, path)
        log.info("snapshot copied", {"snapshot": snapshot.name, "to": path, "bytes": snapshot.size_bytes})

    def lacks(self, snapshot: Snapshot) -> bool:
        """Whether it is to be copied. What is not called like a snapshot of this collection is not."""
        return bool(self._pattern.fullmatch(snapshot.name)) and not self.path(snapshot.name).exists()

    def prune(self, keep: int) -> list[str]:
        """Deletes all but the newest, and what a copying that was killed left. Returns the names that stay."""
        names = self.names()
        for name in names[keep:]:
            self.path(name).unlink(missing_ok=True)
        for part in self._folder.glob(PARTS):
            if self._pattern.fullmatch(part.name.removeprefix(".").removesuffix(PART)):
                part.unlink(missing_ok=True)
        return names[:keep]


def take(store: VectorStore, records: Records, collection: str) -> Snapshot:
    """Takes a snapshot and records it. Raises what VectorStore and Records raise."""
    began, before = utc_now(), store.count(collection)
    records.begin(Record(began, before, before))
    snapshot = store.take_snapshot(collection)
    after = store.count(collection)
    records.put(snapshot.name, Record(began, min(before, after), max(before, after)))
    return snapshot


def may_hold_points(newest: Snapshot, records: Mapping[str, Record]) -> bool:
    """Whether the newest snapshot is not known to be of an empty collection."""
    record, unfinished = records.get(newest.name), records.get(UNFINISHED)
    if record is None and unfinished and newest.taken_at >= unfinished.taken_at - CLOCKS_DIFFER:
        record = unfinished  # Qdrant took it to its end, and the worker did not see that
    return record is None or record.most > 0


def is_due(newest: Snapshot | None, record: Record | None, now: datetime, interval_seconds: float) -> bool:
    """Whether the newest one is older than the latest moment at which one had to be taken.

    So a restart takes none, and one that was missed while the worker was down is taken at once. The worker's own
    clock counts where it was looked at; a snapshot out of Qdrant's future says nothing.
    """
    if newest is None:
        return True
    taken_at = record.taken_at if record else newest.taken_at
    latest_moment = next_aligned(now - timedelta(seconds=interval_seconds), interval_seconds)
    return not latest_moment <= taken_at <= now + CLOCKS_DIFFER


def _time_in(name: str) -> str:
    """Qdrant's snapshots are called collection-number-2026-01-31-09-30-00.snapshot."""
    return name.removesuffix(SUFFIX)[-TIME_LENGTH:]


def _written(record: Record) -> str:
    return f"{record.taken_at.replace(tzinfo=UTC).timestamp():.0f} {record.least} {record.most}"


def _record(value: str) -> Record | None:
    match = re.fullmatch(r"(\d{1,12}) (\d{1,15}) (\d{1,15})", value)
    if not match:
        return None
    taken_at = datetime.fromtimestamp(int(match[1]), UTC).replace(tzinfo=None)
    return Record(taken_at, int(match[2]), int(match[3]))
