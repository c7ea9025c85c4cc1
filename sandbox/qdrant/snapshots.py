"""Snapshots of collections, each in one file (see archive.py).

They have the same paths as Qdrant's, <snapshots>/<collection>/<name>.snapshot and <name>.snapshot.checksum beside
it, and stay when their collection is deleted. A file gets its name when it is complete.
"""

import hashlib
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from secrets import token_hex
from typing import Any, BinaryIO

from sandbox.qdrant.archive import pack
from sandbox.qdrant.collection import Collection
from sandbox.qdrant.description import described
from sandbox.qdrant.errors import NotFound, Refusal
from sandbox.qdrant.name_checks import SNAPSHOT_SUFFIX, snapshot_name

_CHECKSUM_SUFFIX = ".checksum"
_PEER = 1  # Qdrant's names have the number of the peer that took the snapshot


class Snapshots:
    def __init__(self, folder: Path) -> None:
        """Removes incomplete files that a kill left behind."""
        self.folder = folder
        for path in folder.glob("*/.*.part"):
            path.unlink()

    def take(self, collection: Collection) -> dict[str, Any]:
        """Takes a snapshot and returns its description."""
        folder = self.folder / collection.name
        folder.mkdir(exist_ok=True)
        making = folder / f".{token_hex(8)}.part"
        try:
            with collection.frozen() as shard:
                pack(described(collection.folder), shard, making)
            return _description(_named(making, collection.name))
        finally:
            making.unlink(missing_ok=True)

    def list(self, collection: str) -> list[dict[str, Any]]:
        found = []
        for path in sorted((self.folder / collection).glob(f"*{SNAPSHOT_SUFFIX}")):
            with suppress(FileNotFoundError):  # deleted in the meantime
                found.append(_description(path))
        return found

    def open(self, collection: str, name: str) -> tuple[BinaryIO, int]:
        """A snapshot's file and its size in bytes; raises NotFound."""
        path = self._path(collection, name)
        return path.open("rb"), path.stat().st_size

    def delete(self, collection: str, name: str) -> None:
        """Raises NotFound."""
        path = self._path(collection, name)
        path.unlink(missing_ok=True)
        _checksum_path(path).unlink(missing_ok=True)

    def _path(self, collection: str, name: str) -> Path:
        path = self.folder / collection / snapshot_name(name)
        if not path.is_file():
            raise NotFound(f"Not found: Snapshot {name[:100]!r} not found")
        return path


def check(path: Path, checksum: str | None) -> None:
    """Raises Refusal if the file does not have ``checksum`` (SHA-256, hex)."""
    if checksum is not None and (found := _sha256(path)) != checksum.lower():
        raise Refusal(f"Wrong input: Snapshot checksum mismatch: expected {checksum[:64]}, got {found}")


def _named(making: Path, collection: str) -> Path:
    """Gives the file its name, with the next free second."""
    checksum = _sha256(making)
    moment = datetime.now(UTC)
    while True:
        path = making.with_name(f"{collection}-{_PEER}-{moment:%Y-%m-%d-%H-%M-%S}{SNAPSHOT_SUFFIX}")
        try:
            path.hardlink_to(making)
        except FileExistsError:
            moment += timedelta(seconds=1)
            continue
        _checksum_path(path).write_text(checksum, "ascii")
        return path


def _description(path: Path) -> dict[str, Any]:
    status = path.stat()
    checksum = _checksum_path(path)
    return {
        "name": path.name,
        "creation_time": datetime.fromtimestamp(status.st_mtime, UTC).strftime("%Y-%m-%dT%H:%M:%S"),
        "size": status.st_size,
        "checksum": checksum.read_text("ascii") if checksum.exists() else _sha256(path),
    }


def _checksum_path(path: Path) -> Path:
    return path.with_name(path.name + _CHECKSUM_SUFFIX)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
