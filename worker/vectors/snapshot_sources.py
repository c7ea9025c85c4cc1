"""Where a snapshot that an operator names comes from: Qdrant itself, a copy, or any file of this machine."""

from dataclasses import dataclass
from pathlib import Path

from worker.errors import CommandRefused
from worker.runtime.settings import Settings
from worker.vectors.client import VectorStore
from worker.vectors.collection import CollectionSnapshot
from worker.vectors.snapshots import SnapshotCopies


@dataclass(frozen=True, slots=True)
class SnapshotSource:
    """Exactly one of ``snapshot`` (in Qdrant) and ``path`` (of a file) is set."""

    name: str
    snapshot: CollectionSnapshot | None = None
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class FoundSource:
    """``created_collection``: the collection was missing and had to be created, empty."""

    source: SnapshotSource
    created_collection: bool = False


class SnapshotFinder:
    """Finds the snapshots of one collection. Every method raises what VectorStore raises, or CommandRefused."""

    def __init__(self, store: VectorStore, copies: SnapshotCopies | None, settings: Settings) -> None:
        self._store = store
        self._copies = copies
        self._collection = settings.vector_collection_name
        self._vector_size = settings.knowledge_vector_size

    def find(self, name: str) -> FoundSource:
        """The snapshot that has this name in Qdrant, else the copy with this name, else the file at this path."""
        if self._store.collection(self._collection):
            found = self._in_qdrant(name)
            if found:
                return FoundSource(SnapshotSource(found.name, snapshot=found))
        if self._copies and name in self._copies.names():
            return FoundSource(SnapshotSource(name, path=self._copies.path(name)))
        if Path(name).is_file():
            return FoundSource(SnapshotSource(Path(name).name, path=Path(name)))
        return self._find_without_collection(name)

    def newest(self) -> SnapshotSource:
        """Raises CommandRefused when there is no snapshot."""
        has_collection = self._store.collection(self._collection) is not None
        if has_collection:
            for each in self._store.snapshots(self._collection):
                return SnapshotSource(each.name, snapshot=each)
        copies = self._copies.names() if self._copies else {}
        if self._copies and copies:
            name = max(copies, key=lambda each: (copies[each], each))
            return SnapshotSource(name, path=self._copies.path(name))
        if has_collection:
            raise CommandRefused(f"There is no snapshot of {self._collection} yet: bin/knowledge snapshot takes one.")
        raise CommandRefused(
            f"There is no collection {self._collection}, and Qdrant only lists snapshots of existing collections: "
            "the job knowledge creates it within five minutes, or bin/knowledge restore with a snapshot's name does"
        )

    def is_copy(self, source: SnapshotSource) -> bool:
        return self._copies is not None and source.path == self._copies.path(source.name)

    def _find_without_collection(self, name: str) -> FoundSource:
        """Qdrant only lists snapshots of existing collections: creates the collection to see them."""
        created = self._store.create(self._collection, self._vector_size)
        found = self._in_qdrant(name)
        if found:
            return FoundSource(SnapshotSource(found.name, snapshot=found), created_collection=created)
        refusal = CommandRefused(f"There is no snapshot {name}, and no such file. {self._list()}")
        if created:
            self._store.drop(self._collection)
        raise refusal

    def _in_qdrant(self, name: str) -> CollectionSnapshot | None:
        return next((each for each in self._store.snapshots(self._collection) if each.name == name), None)

    def _list(self) -> str:
        """The snapshots that exist, as text for the operator."""
        snapshots = self._store.snapshots(self._collection)
        lines = [f"  {each.name}  {each.taken_at}  {file_size(each.size_bytes)}" for each in snapshots]
        copies = sorted(self._copies.names()) if self._copies else []
        lines += [f"  {each}  (a copy)" for each in copies if each not in {one.name for one in snapshots}]
        return f"Snapshots of {self._collection}:\n" + ("\n".join(lines) or "  none")


def file_size(count: int) -> str:
    """A number of bytes as text for the operator."""
    return f"{count / 1e6:,.1f} MB" if count >= 100_000 else f"{count:,} bytes"
