"""What a benchmark found: progress while it runs, a table, targets, JSON."""

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TextIO

_LINE_SECONDS = 10.0  # between two lines of progress where there is no terminal
_REDRAW_SECONDS = 0.2


class Failure(Exception):
    """The measurement is worth nothing: a count is wrong, or a program failed. The text says which."""


class Progress:
    """Tells a person what goes on: in place on a terminal, else a line now and then."""

    def __init__(self, stream: TextIO = sys.stderr) -> None:
        self._stream = stream
        self._in_place = stream.isatty()
        self._next_at = 0.0

    def say(self, text: str) -> None:
        start = "\r\x1b[K" if self._in_place else ""
        print(f"{start}{text}", file=self._stream, flush=True)
        self._next_at = time.monotonic() + (_REDRAW_SECONDS if self._in_place else _LINE_SECONDS)

    def count(self, what: str, done: int, total: int) -> None:
        """May be called often; most calls show nothing."""
        if time.monotonic() < self._next_at:
            return
        text = f"  {what}: {done:,} of {total:,}"
        if not self._in_place:
            self.say(text)
            return
        print(f"\r\x1b[K{text}", end="", file=self._stream, flush=True)
        self._next_at = time.monotonic() + _REDRAW_SECONDS


@dataclass(frozen=True)
class Target:
    what: str
    wanted: str
    measured: str
    met: bool


@dataclass(frozen=True)
class Report:
    """``rows`` are dataclasses of one kind; ``columns`` are what the table shows of them, by their headings."""

    title: str
    columns: Sequence[str]
    lines: Sequence[Sequence[str]]
    rows: Sequence[Any]
    targets: list[Target] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {"results": [asdict(row) for row in self.rows], "targets": [asdict(each) for each in self.targets]}

    def text(self) -> str:
        parts = [self.title, "", *_aligned([self.columns, *self.lines])]
        if self.targets:
            parts += ["", "Targets"]
        parts += _aligned(
            [("  met" if each.met else "  NOT MET", each.what, each.wanted, each.measured) for each in self.targets],
            left=4,
        )
        return "\n".join(parts)


def _aligned(lines: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Columns as wide as they need to be; the first ``left`` ones begin, the others end, at one place."""
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
