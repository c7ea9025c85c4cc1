"""The tar files that snapshots are: a collection's description and its shard.

The engine's files are long and mostly holes. They are stored in the sparse format 1.0 of GNU tar, which tar and
Python's tarfile restore with their holes.
"""

import json
import os
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from sandbox.qdrant.description import DESCRIPTION, described
from sandbox.qdrant.errors import Refusal

SHARD = "shard"  # its folder in the tar file
_FASTEST = 1


def pack(description: dict[str, Any], shard: Path, target: Path) -> None:
    with tarfile.open(target, "w:gz", compresslevel=_FASTEST, format=tarfile.PAX_FORMAT) as archive:
        _add_content(archive, tarfile.TarInfo(DESCRIPTION), json.dumps(description).encode())
        archive.add(shard, SHARD, recursive=False)
        # with the log, in which the engine numbers its operations: it ignores operations with known numbers
        for path in sorted(shard.rglob("*")):
            member = archive.gettarinfo(path, str(PurePosixPath(SHARD, path.relative_to(shard))))
            if member.isfile():
                _add_sparse(archive, member, path)
            else:
                archive.addfile(member)


def unpack(path: Path, folder: Path) -> Any:
    """Unpacks a snapshot into a new folder; returns the request that created its collection. Raises Refusal."""
    folder.mkdir()
    try:
        with tarfile.open(path, "r:*") as archive:
            # the names are checked here, for every version of Python
            archive.extraction_filter = lambda member, _path: member
            for member in archive:
                archive.extract(_checked(member), folder, set_attrs=False)
        request = described(folder)["request"]
    except (tarfile.TarError, EOFError, OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).partition("\n")[0].rstrip(":")
        raise Refusal(f"Wrong input: this is not a snapshot of a development Qdrant: {reason}") from error
    if not (folder / SHARD).is_dir():
        raise Refusal("Wrong input: this is not a snapshot of a development Qdrant: there is no shard in it")
    return request


def _checked(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Only files and folders, and only below the folder into which they are unpacked."""
    name = PurePosixPath(member.name)
    if name.is_absolute() or ".." in name.parts or not (member.isfile() or member.isdir()):
        raise ValueError(f"{member.name!r} does not belong in a snapshot")
    return member


def _add_content(archive: tarfile.TarFile, member: tarfile.TarInfo, content: bytes) -> None:
    member.size = len(content)
    archive.addfile(member, BytesIO(content))


def _add_sparse(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    """https://www.gnu.org/software/tar/manual/html_section/Sparse-Formats.html: a map of the data, then the data."""
    with path.open("rb") as file:
        parts = list(_data(file, member.size))
        numbers = [len(parts), *(number for part in parts for number in part)]
        table = "".join(f"{number}\n" for number in numbers).encode()
        content = [table.ljust(-(-len(table) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE, b"\0")]
        for start, length in parts:
            file.seek(start)
            content.append(file.read(length))
    member.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": member.name,
        "GNU.sparse.realsize": str(member.size),
    }
    _add_content(archive, member, b"".join(content))


def _data(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    """Start and length of each part that is not a hole; at the end an empty part, which marks the size."""
    start = end = 0
    while end < size:
        try:
            start = os.lseek(file.fileno(), end, os.SEEK_DATA)
        except OSError:  # a hole up to the end
            break
        end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
        yield start, end - start
    yield size, 0
