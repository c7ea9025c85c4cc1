"""Reads HTML as plain text: what a browser shows of it."""

import html as html_entities
import re
from collections.abc import Iterator
from itertools import pairwise

from worker.content.hidden_elements import Element, OpenElements, PlacedElement
from worker.content.markup import Passage, Tag, decoded, pieces, unescape
from worker.content.style_sheets import StyleSheet

_NONE: frozenset[str] = frozenset()
_SHOWN_RAW_TEXT = frozenset({"textarea", "xmp", "plaintext"})

_PARAGRAPHS = frozenset({"p", "h1", "h2", "h3", "h4", "h5", "h6", "table", "ul", "ol", "blockquote", "hr"})
_LINES = frozenset({"br", "div", "tr", "li", "section", "article", "header", "footer", "center", "body"})

# Between a link in brackets and a placeholder there is a space: its value would be taken for a part of the link.
_AFTER_LINK = "\ufdd0"  # a noncharacter
_STUCK_TO_LINK = re.compile(f"{_AFTER_LINK}(?=\\{{)")

# Spaces of all widths, and blanks that are no spaces to Unicode.
_SPACES = dict.fromkeys(
    [0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x2800, 0x3000, 0x3164, 0xFFA0], " "
)
# What never shows: soft hyphens, and what fills up the preview of an inbox.
_NEVER_SHOWN = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb]+"
)
# Joiners, direction marks and variation selectors belong to the letter or picture before them; not to Latin ones.
_LOOSE_MARKS = re.compile(
    "(?<![\u0590-\u1fff\u2020-\u2027\u2030-\u205e\u2070-\u2fff\u3001-\U0010ffff])"
    "[\u200c-\u200f\u202a-\u202e\u2066-\u2069\ufe00-\ufe0f\U000e0001-\U000e007f\U000e0100-\U000e01ef]+(?!\u20e3)"
)
# At the end of a word a joiner shows only after a virama, as in Malayalam.
_LOOSE_JOINERS = re.compile(
    "(?<![\u094d\u09cd\u0a4d\u0acd\u0b4d\u0bcd\u0c4d\u0ccd\u0d4d\u0dca])[\u200c\u200d]+(?=\\s|\\Z)"
)


def plain_text(html: str) -> str:
    """What a browser shows of ``html``: paragraphs, "- " items, "text (link)", images' alt texts.

    What is hidden (comments, declarations, the teaser that many mails begin with, and what fills it up) is left out.
    """
    found = list(pieces(html, outlook=False))
    page = _Page(html, StyleSheet(_style_sheets(html, found)))
    position = 0
    for piece in found:
        page.text(html[position : piece.start])
        position = piece.end
        if isinstance(piece, Tag):
            page.tag(piece)
        elif piece.name in _SHOWN_RAW_TEXT:
            page.raw_text(piece)
    page.text(html[position:])
    return page.read()


def _style_sheets(html: str, found: list[Tag | Passage]) -> Iterator[str]:
    """The style sheets for a screen, whatever its size."""
    for tag, content in pairwise(found):
        if isinstance(tag, Tag) and isinstance(content, Passage) and content.name == "style":
            media = _value(html, tag, "media").lower().removeprefix("only ")
            if media in {"", "all", "screen"}:
                yield html[content.start : content.end]


class _Page:
    """Reads one page from its first tag to its last."""

    def __init__(self, html: str, sheet: StyleSheet) -> None:
        self._html = html
        self._sheet = sheet
        self._open = OpenElements()
        self._pieces: list[str] = []
        self._links = 0
        # its address, the piece its text begins with, and whether it shows text itself
        self._link: tuple[str, int, bool] | None = None

    def text(self, source: str) -> None:
        if source and self._open.innermost.shows_text:
            self._pieces.append(_words(source))

    def raw_text(self, passage: Passage) -> None:
        source = self._html[passage.start : passage.end]
        self.text(html_entities.escape(source) if passage.name != "textarea" else source)

    def tag(self, tag: Tag) -> None:
        element = self._close(tag) if tag.closing else self._begin(tag)
        if tag.name == "a":
            self._end_link()
            if not (element.hidden or tag.closing):
                self._links += 1
                self._link = (_value(self._html, tag, "href"), len(self._pieces), element.shows_text)
        elif tag.name == "img":
            if element.shows_text and not _is_pixel(self._html, tag):
                self._pieces.append(_value(self._html, tag, "alt"))
        elif not element.hidden:
            self._pieces.append(_layout(tag))

    def read(self) -> str:
        """The text so far, cleaned."""
        self._drop_teasers(self._open.close_all())
        if self._link:
            self._end_link()
        text = _NEVER_SHOWN.sub("", "".join(self._pieces))
        text = _STUCK_TO_LINK.sub(" ", text).replace(_AFTER_LINK, "")
        text = _LOOSE_JOINERS.sub("", _LOOSE_MARKS.sub("", text))
        text = re.sub(r" *\n *", "\n", re.sub(r" {2,}", " ", text))
        return re.sub(r"\n{3,}", "\n\n", text).strip()

    def _begin(self, tag: Tag) -> PlacedElement:
        self._drop_teasers(self._open.close_before(tag.name))
        began, in_link = (len(self._pieces), self._links), self._link is not None
        if not tag.attributes:
            return self._open.begin(Element(tag.name, _NONE, self._sheet.style_of(tag.name), began, in_link))
        names = frozenset([attribute.name for attribute in tag.attributes])
        values = {name: _value(self._html, tag, name) for name in ("style", "class", "id") if name in names}
        return self._open.begin(Element(tag.name, names, self._sheet.style_of(tag.name, **values), began, in_link))

    def _close(self, tag: Tag) -> PlacedElement:
        element, closed = self._open.end(tag.name)
        self._drop_teasers(closed)
        return element

    def _drop_teasers(self, closed: list[Element]) -> None:
        """Elements that only Outlook is told to hide: with a link in them they are what the others show, a button."""
        for element in closed:
            since, links = element.began
            if element.is_teaser and links == self._links:
                del self._pieces[since:]

    def _end_link(self) -> None:
        if self._link:
            href, since, shows_text = self._link
            text = "".join(self._pieces[since:])
            if shows_text or text.strip():
                self._pieces.append(_target(href, text))
            self._link = None


def _words(source: str) -> str:
    return re.sub(r"[ \t\n\f\r]+", " ", decoded(source)).translate(_SPACES)


def _value(html: str, tag: Tag, name: str) -> str:
    attribute = tag.attribute(name)
    return unescape(html[attribute.start : attribute.end]).strip() if attribute else ""


def _target(href: str, text: str) -> str:
    if not href.lower().startswith(("http://", "https://")) or text.strip() == href:
        return ""
    return f" ({href}){_AFTER_LINK}" if text.strip() else f" {href} "


def _is_pixel(html: str, image: Tag) -> bool:
    """Whether an image is there to be counted, not seen."""
    return any(_value(html, image, name) in {"0", "1", "0px", "1px"} for name in ("width", "height"))


def _layout(tag: Tag) -> str:
    if tag.name in _PARAGRAPHS:
        return "\n\n"
    if tag.name == "li" and not tag.closing:
        return "\n- "
    if tag.name in _LINES:
        return "\n"
    return " " if tag.name in {"td", "th"} else ""
