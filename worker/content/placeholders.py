"""``{{name}}``, ``{{email}}`` and ``{{phone}}``: a text compiled once, filled in for each recipient.

Filling in is a single pass over the template, so a value that holds ``{{email}}``, ``$`` or ``\\`` arrives as
it is. In HTML a value is escaped for the place it stands in: a name cannot close a tag, and a name in an
``href`` cannot choose the scheme of the address.
"""

import html
import re
from bisect import bisect_right
from collections.abc import Mapping
from typing import Literal, NamedTuple
from urllib.parse import quote

from worker.content.markup import tags

# Stands for the recipient row's id in texts the worker itself makes. PostgreSQL stores no NUL in text or
# jsonb, so nothing a user writes can hold it.
RECIPIENT_ID_SLOT = "\x00recipient\x00"

PERSONAL_NAMES = frozenset({"name", "email", "phone"})

_SLOT = re.compile(r"\{\{([^{}]*)\}\}|" + RECIPIENT_ID_SLOT)
_URL_ATTRIBUTES = frozenset({"href", "src", "action", "formaction", "background", "poster", "xlink:href"})


class Html(str):
    """A value that is HTML already: ``fill_html`` puts it in as it is (a table the worker made, say)."""

    __slots__ = ()


class Slot(NamedTuple):
    """A place for a value: ``values[name]``; ``in_url`` when that is in an ``href`` or the like."""

    name: str
    in_url: bool

    def html_value(self, value: str) -> str:
        """``value`` as it may stand here in HTML: percent-encoded in a URL, else escaped unless ``Html``."""
        if self.in_url:
            return quote(value, safe="")
        return value if isinstance(value, Html) else html.escape(value, quote=True)


class Template:
    """A text with its placeholders found.

    ``unknown="keep"`` (campaigns): only name, email and phone are placeholders, others stay as they are.
    ``unknown="blank"`` (e-mail templates): any ``{{...}}`` is one, and is empty when the values lack it.
    White space inside the braces does not count. ``text`` is the source; ``personal``: it has any slot.

    ``segments`` is what the text is made of, in order: ``str`` for what stays the same (never empty) and
    ``Slot`` for what each recipient fills in. The recipient's id is the slot ``recipient_id``.
    """

    __slots__ = ("_pieces", "_slots", "personal", "segments", "text", "unknown")

    def __init__(self, text: str, unknown: Literal["keep", "blank"] = "keep") -> None:
        self.text = text
        self.unknown: Literal["keep", "blank"] = unknown
        self.segments = tuple(_segments(text, unknown))
        self._pieces = [segment if isinstance(segment, str) else "" for segment in self.segments]
        self._slots = [(i, segment) for i, segment in enumerate(self.segments) if isinstance(segment, Slot)]
        self.personal = bool(self._slots)

    def fill(self, values: Mapping[str, str]) -> str:
        """The plain text for one recipient; a value that is missing is empty."""
        pieces = self._pieces.copy()
        for index, slot in self._slots:
            pieces[index] = values.get(slot.name, "")
        return "".join(pieces)

    def fill_html(self, values: Mapping[str, str]) -> str:
        """The HTML for one recipient, each value escaped for its place; a value that is missing is empty."""
        pieces = self._pieces.copy()
        for index, slot in self._slots:
            pieces[index] = slot.html_value(values.get(slot.name, ""))
        return "".join(pieces)


def _segments(text: str, unknown: str) -> list[str | Slot]:
    segments: list[str | Slot] = []
    starts, ends = _url_values(text)
    position = 0
    for found in _SLOT.finditer(text):
        name = "recipient_id" if found[1] is None else found[1].strip()
        if unknown == "keep" and found[1] is not None and name not in PERSONAL_NAMES:
            continue
        if found.start() > position:
            segments.append(text[position : found.start()])
        value = bisect_right(starts, found.start()) - 1
        segments.append(Slot(name, in_url=value >= 0 and found.start() < ends[value]))
        position = found.end()
    if position < len(text):
        segments.append(text[position:])
    return segments


def _url_values(text: str) -> tuple[list[int], list[int]]:
    """Where the values of attributes that hold an address start and end, were ``text`` HTML."""
    found = [
        (attribute.start, attribute.end)
        for tag in tags(text)
        for attribute in tag.attributes
        if attribute.name in _URL_ATTRIBUTES
    ]
    return [start for start, _ in found], [end for _, end in found]
