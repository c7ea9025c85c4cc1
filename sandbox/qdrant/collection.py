"""One collection: a shard of the engine, and the request that created the collection.

Its folder holds collection.json, which names the folder of the shard beside it: replacing that file replaces the
shard by a restored one. The engine writes each operation to a log before it answers, so that what was acknowledged
survives a kill; ``flush`` makes it survive a power cut and shortens the log.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from secrets import token_hex
from threading import Lock
from typing import Any, TypeVar

import qdrant_edge as engine

from sandbox.qdrant import payload_index
from sandbox.qdrant.description import config_of, describe, described, vectors_of
from sandbox.qdrant.errors import Refusal, engine_errors, no_collection

T = TypeVar("T")


class Collection:
    """An open collection. Reads run in parallel; changes run one after the other."""

    def __init__(self, name: str, folder: Path) -> None:
        """Opens what ``make`` or ``adopt`` wrote to ``folder``; raises Refusal, or OSError."""
        self.name = name
        self.folder = folder
        self._changing = Lock()
        self._operations = count()
        self._shard: engine.EdgeShard | None = None
        self._load()
        for path in folder.iterdir():
            if path.is_dir() and path.name != self._shard_name:  # left by a kill before it was removed
                shutil.rmtree(path)

    @staticmethod
    def make(folder: Path, request: dict[str, Any]) -> None:
        """Makes the files of a new, empty collection in a new ``folder``. Raises Refusal."""
        vectors = vectors_of(request)
        shard = _new_shard_name()
        folder.mkdir()
        with engine_errors():
            engine.EdgeShard.create(str(folder / shard), vectors.config()).close()
        describe(folder, {"shard": shard, "request": request})

    def read(self, ask: Callable[[engine.EdgeShard], T]) -> T:
        """The result of ``ask`` on the shard, which stays open meanwhile, even if the collection is deleted."""
        with engine_errors():
            return ask(self._open_shard())

    def change(self, operation: engine.UpdateOperation) -> int:
        """Applies one operation and returns its number."""
        with self._changing, engine_errors():
            self._open_shard().update(operation)
            return next(self._operations)

    def flush(self) -> None:
        with self._changing, engine_errors():
            self._open_shard().flush()

    @contextmanager
    def frozen(self) -> Iterator[Path]:
        """The folder of the flushed shard, without changes while it is used."""
        with self._changing:
            with engine_errors():
                self._open_shard().flush()
            yield self.folder / self._shard_name

    def adopt(self, shard: Path, request: dict[str, Any]) -> None:
        """Replaces its own shard by the one in that folder, which is moved here. Raises Refusal."""
        wanted, own = vectors_of(request).described(), self.vectors.described()
        if wanted != own:
            raise Refusal(f"Wrong input: the snapshot's vectors are {wanted}, those of `{self.name}` are {own}")
        with self._changing:
            self._open_shard()
            name, former = _new_shard_name(), self._shard_name
            shard.rename(self.folder / name)
            describe(self.folder, {"shard": name, "request": request})
            self._load()
            shutil.rmtree(self.folder / former)

    def close(self) -> None:
        """Writes everything to disk; the collection cannot be used afterwards."""
        with self._changing, engine_errors():
            shard, self._shard = self._open_shard(), None
            shard.close()

    def forget(self) -> None:
        """Ends the use of a collection that is being deleted; running reads are completed."""
        with self._changing:
            self._shard = None

    def info(self) -> dict[str, Any]:
        """The `result` of GET /collections/NAME."""
        found = self.read(lambda shard: shard.info())
        return {
            "status": "green",
            "optimizer_status": "ok",
            "indexed_vectors_count": found.indexed_vectors_count,
            "points_count": found.points_count,
            "segments_count": found.segments_count,
            "config": config_of(self._request),
            "payload_schema": payload_index.described(found.payload_schema),
        }

    def _load(self) -> None:
        description = described(self.folder)
        self._shard_name: str = description["shard"]
        self._request: dict[str, Any] = description["request"]
        self.vectors = vectors_of(self._request)
        with engine_errors():
            self._shard = engine.EdgeShard.load(str(self.folder / self._shard_name))

    def _open_shard(self) -> engine.EdgeShard:
        shard = self._shard
        if shard is None:
            raise no_collection(self.name)
        return shard


def _new_shard_name() -> str:
    return f"shard-{token_hex(8)}"
