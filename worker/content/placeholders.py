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

from worker.content.escaping import Landing, Place, landings, masked, url_landing, write
from worker.content.placeholder_spellings import unified

# Stand for the recipient row's id, and for the token of its unsubscribe link, in addresses the worker itself makes.
# PostgreSQL stores no NUL in text or jsonb, so nothing a user writes can hold them.
RECIPIENT_ID_SLOT = "\x00recipient_id\x00"
UNSUBSCRIBE_TOKEN_SLOT = "\x00unsubscribe_token\x00"  # noqa: S105 - a name
RECIPIENT_ID = "recipient_id"
UNSUBSCRIBE_TOKEN = "unsubscribe_token"  # noqa: S105 - a name

PERSONAL_NAMES = frozenset({"name", "email", "phone"})

_SLOT = re.compile(rf"\{{\{{([^{{}}]*)\}}\}}|\x00({RECIPIENT_ID}|{UNSUBSCRIBE_TOKEN})\x00")
_BARE_URL = re.compile(r'(?<![A-Za-z0-9])https?://[^\s<>"“”।॥]+', re.IGNORECASE)
_URLS = frozenset({Place.URL, Place.NUMBER, Place.WHATSAPP_NUMBER, Place.OPAQUE, Place.MAILBOX, Place.SCRIPT_URL})
_LONGEST_HEAD = 300  # characters of a link that are looked at for what it leads to
# What is written without looking at it: most values land there.
_USUAL = frozenset({Landing(Place.TEXT), Landing(Place.URL)})


class Html(str):
    """A value that is HTML already: ``fill_html`` puts it in as it is (a table the worker made, say)."""

    __slots__ = ()


class Slot(NamedTuple):
    """A place for a value: ``values[name]``.

    Were the text HTML, it would stand in an address (``in_url``), or at a ``landing`` that is neither that nor text.
    Were it plain text, it would stand at ``link`` in a link.
    """

    name: str
    in_url: bool
    landing: Landing | None = None
    link: Landing | None = None

    def html_value(self, value: str) -> str:
        """``value`` as it may stand here in HTML: percent-encoded in a URL, else escaped unless ``Html``."""
        if self.landing is not None:
            return write(self.landing, value, is_html=isinstance(value, Html))
        if self.in_url:
            return quote(value, safe="")
        return value if isinstance(value, Html) else html.escape(value, quote=True)

    def text_value(self, value: str) -> str:
        """``value`` as it may stand here in plain text: as it is, but in a link, where a space would end it."""
        return write(self.link, value) if self.link is not None else value


class Template:
    """A text with its placeholders found.

    ``unknown="keep"`` (campaigns): only name, email and phone are placeholders, others stay as they are.
    ``unknown="blank"`` (e-mail templates): any ``{{...}}`` is one, and is empty when the values lack it.
    White space inside the braces does not count, however it is written, nor do tags between them. ``text`` is the
    source with its placeholders in one spelling; ``personal``: it has any slot; ``slot_names``: which ones.

    ``segments`` is what the text is made of, in order: ``str`` for what stays the same (never empty) and
    ``Slot`` for what each recipient fills in. Two slots are the worker's own:
    ``recipient_id`` and ``unsubscribe_token``.
    """

    __slots__ = ("_pieces", "_slots", "personal", "segments", "slot_names", "text", "unknown")

    def __init__(self, text: str, unknown: Literal["keep", "blank"] = "keep") -> None:
        self.text = unified(text, PERSONAL_NAMES if unknown == "keep" else None)
        self.unknown: Literal["keep", "blank"] = unknown
        self.segments = tuple(_segments(self.text, unknown))
        self._pieces = [segment if isinstance(segment, str) else "" for segment in self.segments]
        self._slots = [(i, segment) for i, segment in enumerate(self.segments) if isinstance(segment, Slot)]
        self.personal = bool(self._slots)
        self.slot_names = frozenset(segment.name for _, segment in self._slots)

    def fill(self, values: Mapping[str, str]) -> str:
        """The plain text for one recipient; a value that is missing is empty."""
        pieces = self._pieces.copy()
        for index, slot in self._slots:
            value = values.get(slot.name, "")
            pieces[index] = slot.text_value(value) if slot.link else value
        return "".join(pieces)

    def fill_html(self, values: Mapping[str, str]) -> str:
        """The HTML for one recipient, each value escaped for its place; a value that is missing is empty."""
        pieces = self._pieces.copy()
        for index, slot in self._slots:
            pieces[index] = slot.html_value(values.get(slot.name, ""))
        return "".join(pieces)


def without_placeholders(text: str) -> str:
    """A campaign's text with braces in place of its placeholders, character for character, to find tags in."""
    return masked(text, [each.span() for each in _found(text, "keep")])


def _segments(text: str, unknown: str) -> list[str | Slot]:
    found = _found(text, unknown)
    spans = [each.span() for each in found]
    without_slots = masked(text, spans)
    links = [url.span() for url in _BARE_URL.finditer(without_slots)] if found else []
    segments: list[str | Slot] = []
    position = 0
    for each, landing in zip(found, landings(without_slots, spans), strict=True):
        if each.start() > position:
            segments.append(text[position : each.start()])
        name, in_url = _name(each), landing.place in _URLS
        index = bisect_right(links, (each.start(), len(text))) - 1
        link = None
        if index >= 0 and each.start() < links[index][1] and not in_url and each[2] is None:
            before = without_slots[links[index][0] : min(each.start(), links[index][0] + _LONGEST_HEAD)]
            link = url_landing(before, in_query="?" in before)
        segments.append(Slot(name, in_url, None if landing in _USUAL else landing, link))
        position = each.end()
    if position < len(text):
        segments.append(text[position:])
    return segments


def _found(text: str, unknown: str) -> list[re.Match[str]]:
    slots = _SLOT.finditer(text)
    return [each for each in slots if unknown == "blank" or each[2] or _name(each) in PERSONAL_NAMES]


def _name(found: re.Match[str]) -> str:
    return found[1].strip() if found[2] is None else found[2]
