"""A CSV file of addresses, read line by line: it may have millions."""

import codecs
import csv
import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from worker.errors import CommandRefused

LONGEST_LINE = 65_536  # characters
LONGEST_FIELD = 1000  # characters that are kept; every address is shorter
_READ_CHARACTERS = 1 << 16  # of the lines that are made at once
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r", "\0": "\N{REPLACEMENT CHARACTER}"})


class AddressFile(io.BufferedIOBase):
    """The addresses in one column of a file, one a line; a first line without any is a heading.

    ``read`` is for PostgreSQL's COPY: lines of number and address. Raises CommandRefused for what is no such file;
    ``error`` is what it raised, since the client library raises an error of its own instead.
    """

    error: BaseException | None = None

    def __init__(self, stream: TextIO, column: str | None) -> None:
        """``stream``: without the byte order mark. ``column``: its number, from 1, or its name in the heading."""
        self.lines = 0  # read so far
        self._stream = stream
        self._delimiter: str | None = None
        self._name = column if column and not column.isdecimal() else None
        self._index = int(column) - 1 if column and column.isdecimal() else 0
        self._addresses = self._read_all()

    def read(self, _size: int | None = -1, /) -> bytes:
        """The next lines; empty at the end."""
        try:
            return self._next_lines().encode()
        except BaseException as error:
            self.error = error
            raise

    def _next_lines(self) -> str:
        made: list[str] = []
        length = 0
        for number, address in self._addresses:
            made.append(f"{number}\t{address[:LONGEST_FIELD].translate(_ESCAPES)}\n")
            length += len(made[-1])
            if length >= _READ_CHARACTERS:
                break
        return "".join(made)

    def _read_all(self) -> Iterator[tuple[int, str]]:
        is_first = True
        while line := self._stream.readline(LONGEST_LINE):
            self.lines += 1
            if len(line) == LONGEST_LINE:
                raise CommandRefused(
                    f"Line {self.lines} is longer than {LONGEST_LINE:,} characters: this is no CSV file."
                )
            fields = self._fields(line.strip())
            if not any(fields):
                continue
            if is_first and self._is_heading(fields):
                is_first = False
                continue
            is_first = False
            yield self.lines, fields[self._index] if self._index < len(fields) else ""

    def _fields(self, line: str) -> list[str]:
        if self._delimiter is None:
            found = re.search(r"[,;\t]", line)
            self._delimiter = found[0] if found else None
        delimiter = self._delimiter or ","
        # by itself: a quotation mark that is not closed must not swallow the lines that follow
        fields = next(csv.reader([line], delimiter=delimiter), []) if '"' in line else line.split(delimiter)
        return [field.strip() for field in fields]

    def _is_heading(self, fields: list[str]) -> bool:
        if self._name is not None:
            names = [field.casefold() for field in fields]
            if self._name.casefold() not in names:
                raise CommandRefused(f"There is no column {self._name!r} in the first line.")
            self._index = names.index(self._name.casefold())
            return True
        return not any(re.search(r"[@\d]", field) for field in fields)


@contextmanager
def opened(path: str) -> Iterator[TextIO]:
    """The text of a file, "-" for standard input: UTF-8, with or without a byte order mark, any line ends.

    Raises OSError, and CommandRefused for UTF-16. Other octets than UTF-8 are no part of an address.
    """
    # standard input stays open
    with open(sys.stdin.fileno() if path == "-" else path, "rb", closefd=path != "-") as raw:
        if raw.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise CommandRefused("The file is UTF-16: save it as CSV in UTF-8.")
        yield io.TextIOWrapper(raw, encoding="utf-8-sig", errors="replace")
