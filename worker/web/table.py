"""Text tables that fit the terminal; cells are coloured after they are cut and padded, where that is wanted."""

import textwrap
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

GAP = 2
CUT_COLUMNS = 24  # a first column is cut to so many before others are left out
LEAST_COLUMNS = 8
_COLOURS = {"good": "32", "soso": "33", "bad": "31", "quiet": "2", "head": "1"}


@dataclass(frozen=True)
class Terminal:
    """What it can show. ``columns`` None: as wide as it takes."""

    columns: int | None
    colours: bool

    def painted(self, text: str, colour: str) -> str:
        """``text`` in a colour (good, soso, bad, quiet, head), if there are any."""
        return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if self.colours and colour and text.strip() else text

    def wrapped(self, text: str, colour: str = "", indent: str = "") -> Iterator[str]:
        """``text`` in as many lines as it takes, those after the first one further in."""
        columns = max(20, self.columns or len(indent + text))
        for line in textwrap.wrap(text, columns, initial_indent=indent, subsequent_indent=indent + "    "):
            yield self.line(line, colour)

    def line(self, text: str, colour: str = "") -> str:
        """``text``, cut to the terminal's width."""
        return self.painted(text if self.columns is None else fitted(text, self.columns), colour)


@dataclass(frozen=True)
class Cell:
    text: str
    colour: str = ""


def table(
    heads: Sequence[str], rows: Sequence[Sequence[Cell]], terminal: Terminal, spare: Sequence[str] = ()
) -> Iterator[str]:
    """A head line and the rows.

    Where they do not fit, the first column is cut, then those in ``spare`` are left out, the first of them first.
    """
    lines = [[Cell(head, "quiet") for head in heads], *rows]
    kept = list(range(len(heads)))
    widths = [max(width(line[column].text) for line in lines) for column in kept]

    def over() -> int:
        taken = sum(widths[column] + GAP for column in kept) - GAP
        return 0 if terminal.columns is None else taken - terminal.columns

    def cut(least: int) -> None:
        widths[0] = max(min(least, widths[0]), widths[0] - max(0, over()))

    natural = widths[0]
    cut(CUT_COLUMNS)
    for head in spare:
        if over() > 0:
            kept.remove(heads.index(head))
    widths[0] = natural  # there may be room again
    cut(LEAST_COLUMNS)
    for line in lines:
        yield _drawn([line[column] for column in kept], [widths[column] for column in kept], terminal)


def fitted(text: str, columns: int) -> str:
    """``text`` cut to so many columns, with an ellipsis where something was cut."""
    if width(text) <= columns:
        return text
    kept = ""
    for char in text:
        if width(kept + char) >= columns:
            break
        kept += char
    return kept + "…"


def width(text: str) -> int:
    """How many columns a terminal takes for it: marks on letters take none, Chinese and emoji two."""
    return sum(map(_char_width, text))


def _char_width(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def _drawn(cells: Sequence[Cell], widths: Sequence[int], terminal: Terminal) -> str:
    pieces: list[str] = []
    left = terminal.columns
    for cell, wanted in zip(cells, widths, strict=True):
        columns = wanted if left is None else min(wanted, left)
        if columns <= 0:
            break
        text = fitted(cell.text, columns)
        pieces.append(terminal.painted(text, cell.colour) + " " * (columns - width(text)))
        left = None if left is None else left - columns - GAP
    return (" " * GAP).join(pieces).rstrip()
