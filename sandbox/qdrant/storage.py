"""All collections of the development Qdrant, in the folders that its configuration names.

    <storage>/.lock            locked by the server that uses the folder
    <storage>/collections/     one folder for each collection
    <storage>/tmp/             what is being made, restored or deleted; emptied at start

A collection appears and disappears by renaming its folder, so that a kill leaves no incomplete one.
"""

import fcntl
import os
import shutil
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from threading import RLock
from typing import Any

from sandbox.qdrant.archive import SHARD, unpack
from sandbox.qdrant.collection import Collection
from sandbox.qdrant.description import DESCRIPTION, describe, request_of
from sandbox.qdrant.errors import Conflict, NotFound, Refusal, no_collection
from sandbox.qdrant.name_checks import collection_name
from sandbox.qdrant.snapshots import Snapshots


class StorageFailed(Exception):
    """The folders cannot be used; the text has the folder and the reason."""


class Storage:
    def __init__(self, folder: Path, snapshots_folder: Path) -> None:
        """Locks the folders and opens every collection. Raises StorageFailed."""
        self._collections_folder = folder / "collections"
        self._tmp = folder / "tmp"
        self._changing = RLock()
        self._collections: dict[str, Collection] = {}
        for each in (self._collections_folder, self._tmp, snapshots_folder):
            _make_writable(each)
        self._lock = _locked(folder / ".lock")
        try:
            shutil.rmtree(self._tmp)
            self._tmp.mkdir()
            self.snapshots = Snapshots(snapshots_folder)
            for each in sorted(self._collections_folder.iterdir()):
                if not (each / DESCRIPTION).is_file():
                    raise StorageFailed(f"cannot open {each}: it was not made by the development server")
                self._collections[each.name] = Collection(each.name, each)
        except (OSError, ValueError, KeyError, Refusal) as error:
            raise StorageFailed(f"cannot open {folder}: {error}") from error

    def names(self) -> list[str]:
        return sorted(self._collections)

    def all(self) -> list[Collection]:
        return list(self._collections.values())

    def get(self, name: str) -> Collection:
        """Raises NotFound."""
        try:
            return self._collections[name]
        except KeyError:
            raise no_collection(name[:255]) from None

    def create(self, name: str, body: dict[str, Any]) -> None:
        """Raises Refusal, Conflict."""
        request = request_of(body)
        making = self.tmp_path()
        with self._changing:
            if collection_name(name) in self._collections:
                raise Conflict(f"Wrong input: Collection `{name}` already exists!")
            try:
                Collection.make(making, request)
                self._appear(name, making)
            finally:
                shutil.rmtree(making, ignore_errors=True)

    def delete(self, name: str) -> bool:
        """Returns whether there was such a collection. Its snapshots stay."""
        with self._changing:
            collection = self._collections.pop(name, None)
            if collection is None:
                return False
            collection.forget()
            deleted = collection.folder.rename(self.tmp_path())
        shutil.rmtree(deleted)
        return True

    def restore(self, name: str, path: Path) -> None:
        """Replaces the collection ``name`` by a snapshot, which may be of another collection.

        Raises Refusal, and then changes nothing.
        """
        making = self.tmp_path()
        try:
            request = request_of(unpack(path, making))
            describe(making, {"shard": SHARD, "request": request})
            Collection(name, making).close()  # checks that it can be opened
            with self._changing:
                if collection_name(name) in self._collections:
                    self._collections[name].adopt(making / SHARD, request)
                else:
                    self._appear(name, making)
        finally:
            shutil.rmtree(making, ignore_errors=True)

    def tmp_path(self) -> Path:
        """A path for a new file or folder, on the disk of the collections."""
        return self._tmp / token_hex(8)

    def flush(self) -> None:
        """Raises EngineFailed."""
        for collection in self.all():
            with suppress(NotFound):  # deleted in the meantime
                collection.flush()

    def close(self) -> None:
        """Writes everything to disk and unlocks the folders."""
        with self._changing:
            for collection in self.all():
                collection.close()
            self._collections.clear()
        os.close(self._lock)

    def _appear(self, name: str, making: Path) -> None:
        self._collections[name] = Collection(name, making.rename(self._collections_folder / name))


def _make_writable(folder: Path) -> None:
    probe = folder / f".probe-{token_hex(4)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise StorageFailed(f"cannot write into {folder}: {error.strerror}") from error


def _locked(path: Path) -> int:
    """A descriptor that holds the lock; raises StorageFailed if another server holds it."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise StorageFailed(f"another server uses {path.parent}") from error
    except OSError as error:
        raise StorageFailed(f"cannot lock {path}: {error.strerror}") from error
    return descriptor
