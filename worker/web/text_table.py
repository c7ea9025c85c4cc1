"""Text tables that fit the terminal. Cells are coloured after they are cut and padded."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from worker.web.terminal import Terminal, fitted, width

GAP = 2
CUT_COLUMNS = 24  # the first column is cut to this width before other columns are left out
SMALLEST_COLUMNS = 8


@dataclass(frozen=True)
class Cell:
    text: str
    colour: str = ""


def text_table(
    heads: Sequence[str], rows: Sequence[Sequence[Cell]], terminal: Terminal, optional: Sequence[str] = ()
) -> Iterator[str]:
    """A head line and the rows.

    If they do not fit, the first column is cut; then the columns in ``optional`` are left out, in that order.
    """
    lines = [[Cell(head, "quiet") for head in heads], *rows]
    kept = list(range(len(heads)))
    widths = [max(width(line[column].text) for line in lines) for column in kept]

    def over() -> int:
        taken = sum(widths[column] + GAP for column in kept) - GAP
        return 0 if terminal.columns is None else taken - terminal.columns

    def cut(smallest: int) -> None:
        widths[0] = max(min(smallest, widths[0]), widths[0] - max(0, over()))

    natural = widths[0]
    cut(CUT_COLUMNS)
    for head in optional:
        if over() > 0:
            kept.remove(heads.index(head))
    widths[0] = natural  # columns that were left out may have made room
    cut(SMALLEST_COLUMNS)
    for line in lines:
        yield _joined([line[column] for column in kept], [widths[column] for column in kept], terminal)


def _joined(cells: Sequence[Cell], widths: Sequence[int], terminal: Terminal) -> str:
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
