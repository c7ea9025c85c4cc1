"""What a terminal can show: its width, colours, and how many columns a text takes."""

import textwrap
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

SHORTEST_LINE_COLUMNS = 20  # text is not wrapped to fewer columns
_COLOURS = {"good": "32", "warning": "33", "bad": "31", "quiet": "2", "strong": "1"}


@dataclass(frozen=True)
class Terminal:
    """``columns`` None: lines of any length."""

    columns: int | None
    colours: bool

    def painted(self, text: str, colour: str) -> str:
        """``text`` in a colour (good, warning, bad, quiet, strong), if the terminal has colours."""
        return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if self.colours and colour and text.strip() else text

    def wrapped(self, text: str, colour: str = "", indent: str = "") -> Iterator[str]:
        """``text`` in as many lines as it takes, all but the first indented further."""
        columns = max(SHORTEST_LINE_COLUMNS, self.columns or len(indent + text))
        for line in textwrap.wrap(text, columns, initial_indent=indent, subsequent_indent=indent + "    "):
            yield self.line(line, colour)

    def line(self, text: str, colour: str = "") -> str:
        """``text``, cut to the terminal's width."""
        return self.painted(text if self.columns is None else fitted(text, self.columns), colour)


def fitted(text: str, columns: int) -> str:
    """``text`` cut to ``columns``; a text that was cut ends with an ellipsis."""
    if width(text) <= columns:
        return text
    kept = ""
    for char in text:
        if width(kept + char) >= columns:
            break
        kept += char
    return kept + "…"


def width(text: str) -> int:
    """How many columns a terminal takes for it: combining marks take none, Chinese characters and emoji two."""
    return sum(map(_char_width, text))


def _char_width(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
