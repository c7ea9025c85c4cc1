"""A number that one process counts up and another one reads, in a mapped file."""

import mmap
import struct
from pathlib import Path

_NUMBER = struct.Struct("=q")


class Tally:
    """Counts from 0. One writer, any number of readers."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(_NUMBER.pack(0))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _NUMBER.size)

    @property
    def value(self) -> int:
        number: int = _NUMBER.unpack_from(self._memory)[0]
        return number

    @value.setter
    def value(self, number: int) -> None:
        _NUMBER.pack_into(self._memory, 0, number)
