"""Snapshots of a collection: when one is due, their copies, and how many points each of them should have."""

import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import redis

from worker.runtime.clock import utc_now
from worker.runtime.poisoned_keys import OwnKey, read_own
from worker.runtime.schedule import next_aligned
from worker.vectors.collection import (
    LONGEST_SNAPSHOT_SECONDS,
    PARTIAL_SUFFIX,
    CollectionSnapshot,
    VectorStoreError,
)

if TYPE_CHECKING:  # it costs most of a second, and who imports this module may have nothing to write
    from worker.vectors.client import VectorStore

log = logging.getLogger(__name__)

RECORDS = "worker:knowledge"  # worker:knowledge:<collection>, a hash: snapshot name -> Unix seconds, least, most
UNFINISHED, ACCEPTED = "", "accepted"  # fields of that hash that are not the name of a snapshot
PINNED = "pinned"  # worker:knowledge:<collection>:pinned, a set of names
SUFFIX = ".snapshot"
PARTIAL_FILES = f".*{SUFFIX}{PARTIAL_SUFFIX}"
TIME_LENGTH = len("2026-01-31-09-30-00")
CLOCK_DIFFERENCE = timedelta(minutes=10)  # at most, between this machine and Qdrant's
LONGEST_SNAPSHOT = timedelta(seconds=LONGEST_SNAPSHOT_SECONDS)
MIN_LOST_POINTS = 20  # a loss of fewer points is not reported


@dataclass(frozen=True)
class SnapshotRecord:
    """When a snapshot was taken, by the worker's clock, and how many points it can have."""

    taken_at: datetime  # naive UTC
    least: int  # points just before or just after it was taken, the smaller number
    most: int  # the larger number

    def fits(self, points: int) -> bool:
        return self.least <= points <= self.most

    def is_fuller_than(self, points: int) -> bool:
        """Whether a collection with this many points has lost most of those that were there then."""
        if points == 0:
            return self.most > 0
        return self.least >= max(2 * points, points + MIN_LOST_POINTS)

    @property
    def points(self) -> str:
        """As text for the operator."""
        return f"{self.least:,}" if self.least == self.most else f"{self.least:,} to {self.most:,}"


@dataclass(frozen=True)
class Backup:
    """A snapshot in Qdrant, or a copy of one. ``record`` is None if the number of points is unknown."""

    name: str
    taken_at: datetime  # naive UTC: by the worker's clock if it has a record, else by Qdrant's
    record: SnapshotRecord | None = None

    def is_fuller_than(self, points: int) -> bool:
        """Whether a collection with this many points has lost most of the points that the backup has, or may have."""
        return self.record.is_fuller_than(points) if self.record else points == 0


class SnapshotRecordStore:
    """The records of one collection's snapshots, in Redis. Every method raises redis.RedisError."""

    def __init__(self, client: redis.Redis, collection: str) -> None:
        self._client = client
        self._key = f"{RECORDS}:{collection}"
        self._pinned = f"{self._key}:{PINNED}"
        self._own_records, self._own_pins = OwnKey(self._key, "hash"), OwnKey(self._pinned, "set")

    def put_unfinished(self, record: SnapshotRecord) -> None:
        """Before a snapshot is taken, whose name is not known yet: the worker may die in the meantime."""
        self._put(UNFINISHED, record)

    def put(self, snapshot: str, record: SnapshotRecord) -> None:
        """After the snapshot was taken."""
        read_own(self._client, self._own_records)
        with self._client.pipeline() as pipeline:
            pipeline.hset(self._key, snapshot, _to_text(record))
            pipeline.hdel(self._key, UNFINISHED)
            pipeline.execute()

    def put_accepted(self, record: SnapshotRecord) -> None:
        """An operator took or restored a snapshot: the collection is as it should be, with the points of this record.

        ``record.taken_at``: older snapshots with more points are not a loss.
        """
        self._put(ACCEPTED, record)

    def all(self) -> dict[str, SnapshotRecord]:
        """By the snapshots' names, UNFINISHED and ACCEPTED. Lost records, and snapshots of others, are missing."""
        stored = read_own(self._client, self._own_records, _fault)
        known = {_text(name): _from_text(_text(value)) for name, value in stored.fields.items()}
        return {name: record for name, record in known.items() if record}

    def pin(self, snapshot: str) -> None:
        """It is being restored: it must not be deleted before that has succeeded."""
        read_own(self._client, self._own_pins)
        self._client.sadd(self._pinned, snapshot)

    def unpin(self, snapshot: str) -> None:
        read_own(self._client, self._own_pins)
        self._client.srem(self._pinned, snapshot)

    def pinned(self) -> set[str]:
        return {_text(name) for name in read_own(self._client, self._own_pins).entries}

    def keep_only(self, snapshots: Iterable[str]) -> None:
        """Deletes the records of all other snapshots."""
        stored = read_own(self._client, self._own_records)
        gone = {_text(name) for name in stored.fields} - {UNFINISHED, ACCEPTED, *snapshots}
        if gone:
            self._client.hdel(self._key, *gone)

    def _put(self, name: str, record: SnapshotRecord) -> None:
        read_own(self._client, self._own_records)  # a key of another type takes no record
        self._client.hset(self._key, name, _to_text(record))


class SnapshotCopies:
    """The copies of a collection's snapshots in a folder. Every method raises OSError."""

    def __init__(self, folder: Path, collection: str) -> None:
        self._folder = folder
        self._collection = collection
        self._pattern = re.compile(re.escape(collection) + r"-\d+-\d{4}(-\d\d){5}" + re.escape(SUFFIX))

    def names(self) -> dict[str, datetime]:
        """When each was taken, by the time in its name. Other files in the folder are ignored."""
        if not self._folder.is_dir():
            return {}
        found = [path.name for path in self._folder.iterdir() if self._pattern.fullmatch(path.name)]
        return {name: taken_at for name in found if (taken_at := _time_in(name))}

    def path(self, name: str) -> Path:
        return self._folder / name

    def add(self, store: "VectorStore", snapshot: CollectionSnapshot) -> None:
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

    def needs(self, snapshot: CollectionSnapshot) -> bool:
        """Whether it has to be copied. Only a name of this collection's snapshots becomes a file name."""
        return bool(self._pattern.fullmatch(snapshot.name)) and not self.path(snapshot.name).exists()

    def remove(self, name: str) -> None:
        self.path(name).unlink(missing_ok=True)

    def remove_partial_files(self) -> None:
        """What a killed process left of its copies."""
        for part in self._folder.glob(PARTIAL_FILES):
            if self._pattern.fullmatch(part.name.removeprefix(".").removesuffix(PARTIAL_SUFFIX)):
                part.unlink(missing_ok=True)


def take(store: "VectorStore", records: SnapshotRecordStore, collection: str) -> CollectionSnapshot:
    """Takes a snapshot and records it. Raises what VectorStore raises; without Redis nothing is recorded."""
    began, before = utc_now(), store.count(collection)
    with _best_effort():
        records.put_unfinished(SnapshotRecord(began, before, before))
    snapshot = store.take_snapshot(collection)
    after = store.count(collection)
    with _best_effort():
        records.put(snapshot.name, SnapshotRecord(began, min(before, after), max(before, after)))
    return snapshot


def backups(names: Mapping[str, datetime], records: Mapping[str, SnapshotRecord]) -> list[Backup]:
    """Newest first. ``names``: when each was taken, by Qdrant's clock."""
    found = []
    for name, taken_at in names.items():
        record = records.get(name)
        found.append(Backup(name, record.taken_at if record else taken_at, record))
    return sorted(found, key=lambda each: (each.taken_at, each.name), reverse=True)


def unfinished_snapshot(
    snapshots: Iterable[CollectionSnapshot], records: Mapping[str, SnapshotRecord]
) -> CollectionSnapshot | None:
    """The snapshot of the record UNFINISHED: Qdrant completed it after the worker had stopped waiting.

    It is the first one since then that has no record; later ones were not taken by the worker.
    """
    unfinished = records.get(UNFINISHED)
    if unfinished is None:
        return None
    earliest = unfinished.taken_at - CLOCK_DIFFERENCE
    latest = unfinished.taken_at + LONGEST_SNAPSHOT + CLOCK_DIFFERENCE
    candidates = [each for each in snapshots if each.name not in records and earliest <= taken_at(each) <= latest]
    return min(candidates, key=taken_at, default=None)


def is_due(known: Iterable[Backup], now: datetime, interval_seconds: float) -> bool:
    """Whether no snapshot was taken since the latest scheduled time.

    So a restart takes none, and one that was missed while the worker was down is taken at once. A snapshot whose time
    is in the future does not count.
    """
    scheduled_at = next_aligned(now - timedelta(seconds=interval_seconds), interval_seconds)
    return not any(scheduled_at <= each.taken_at <= now + CLOCK_DIFFERENCE for each in known)


def backup_of_lost_points(
    known: Iterable[Backup], points: int, records: Mapping[str, SnapshotRecord]
) -> Backup | None:
    """The newest backup that has, or may have, what a collection that is down to ``points`` has lost.

    What an operator accepted is no loss, unless what was there then is lost as well.
    """
    accepted = records.get(ACCEPTED)
    if accepted and accepted.is_fuller_than(points):
        return next((each for each in known if each.is_fuller_than(points) and _has_most_of(each, accepted)), None)
    for each in known:
        if each.is_fuller_than(points):
            return None if accepted and each.taken_at < accepted.taken_at else each
    return None


def _has_most_of(backup: Backup, accepted: SnapshotRecord) -> bool:
    return backup.record is None or not accepted.is_fuller_than(backup.record.most)


def taken_at(snapshot: CollectionSnapshot) -> datetime:
    """By the time in its name, else by the time of its file, which copying a folder changes."""
    return _time_in(snapshot.name) or snapshot.taken_at


@contextmanager
def _best_effort() -> Iterator[None]:
    try:
        yield
    except redis.RedisError as error:
        log.warning(
            "Redis is unavailable: the number of points in the snapshot is not recorded",
            {"reason": str(error).strip()},
        )


def _time_in(name: str) -> datetime | None:
    """Qdrant names snapshots <collection>-<number>-2026-01-31-09-30-00.snapshot, in UTC."""
    with suppress(ValueError):
        return datetime.strptime(name.removesuffix(SUFFIX)[-TIME_LENGTH:], "%Y-%m-%d-%H-%M-%S")  # noqa: DTZ007 - naive UTC
    return None


def _to_text(record: SnapshotRecord) -> str:
    seconds = math.floor(record.taken_at.replace(tzinfo=UTC).timestamp())  # never later than it was
    return f"{seconds} {record.least} {record.most}"


def _text(entry: bytes) -> str:
    return entry.decode("utf-8", "replace")


def _fault(_name: bytes, value: bytes) -> str:
    return "" if _from_text(_text(value)) else "is no record of a snapshot"


def _from_text(value: str) -> SnapshotRecord | None:
    match = re.fullmatch(r"([0-9]{1,11}) ([0-9]{1,15}) ([0-9]{1,15})", value)
    if not match:
        return None
    taken_at = datetime.fromtimestamp(int(match[1]), UTC).replace(tzinfo=None)
    return SnapshotRecord(taken_at, int(match[2]), int(match[3]))
