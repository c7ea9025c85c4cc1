"""Finds tags and attribute values in HTML as people write it, by position, and reads it as plain text.

Campaign HTML comes out of editors, word processors and clipboards. It is never parsed into a tree and written
again, which would change what the user saw in the preview: callers cut the original text at the positions
found here. The rules are those of the WHATWG tokenizer (https://html.spec.whatwg.org/#tokenization) as far
as they decide where a tag, an attribute value, a comment or raw text ends.
"""

import html as html_entities
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from worker.content.hidden_elements import Element, OpenElements, StyleSheet

# Elements whose content is text and never holds a tag.
RAW_TEXT = frozenset({"style", "script", "title", "textarea", "xmp", "iframe", "noembed", "noframes", "plaintext"})

_NONE: frozenset[str] = frozenset()
_SHOWN_RAW_TEXT = frozenset({"textarea", "xmp", "plaintext"})

# Outlook's conditional comments hold the buttons (VML) that Outlook shows: their content counts as markup.
_OPENING = re.compile(
    r"<(?:(?P<conditional>!--\[if\b[^\]>]*\]>)|(?P<comment>!--)"
    r"|(?P<slash>/?)(?P<name>[A-Za-z][^ \t\n\f\r/>]*)|(?P<other>[!?/]))"
)
_COMMENT_END = re.compile(r"--!?>")
_ATTRIBUTE = re.compile(
    r"""[ \t\n\f\r/]*(?:(?P<end>>)
    |(?P<name>[^ \t\n\f\r/>][^ \t\n\f\r/>=]*)
     (?:[ \t\n\f\r]*=[ \t\n\f\r]*
        (?:"(?P<double>[^"]*)(?:"|\Z)
        |'(?P<single>[^']*)(?:'|\Z)
        |(?P<bare>[^ \t\n\f\r>"'][^ \t\n\f\r>]*))?)?)""",
    re.VERBOSE,
)
_RAW_TEXT_END = {name: re.compile(rf"</{name}(?=[ \t\n\f\r/>])", re.IGNORECASE) for name in RAW_TEXT}
_REFERENCE = re.compile(r"&(?:#[0-9]+|#[xX][0-9a-fA-F]+|[A-Za-z][A-Za-z0-9]*);")
_LONG_NUMBER = re.compile(r"&#([0-9]{8,});?")
_QUOTES = {"double": '"', "single": "'", "bare": ""}

_PARAGRAPHS = frozenset({"p", "h1", "h2", "h3", "h4", "h5", "h6", "table", "ul", "ol", "blockquote", "hr"})
_LINES = frozenset({"br", "div", "tr", "li", "section", "article", "header", "footer", "center", "body"})

# Spaces of all widths, and blanks that are no spaces to Unicode.
_SPACES = dict.fromkeys(
    [0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x2800, 0x3000, 0x3164, 0xFFA0], " "
)
# What never shows: soft hyphens, and what fills up the preview of an inbox.
_NEVER_SHOWN = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u2060-\u2064\u206a-\u206f\ufeff]+"
)
# Joiners, direction marks and variation selectors belong to the letter or picture before them; not to Latin ones.
_LOOSE_MARKS = re.compile(
    "(?<![\u0590-\u1fff\u2020-\u2027\u2030-\u205e\u2070-\u2fff\u3001-\U0010ffff])"
    "[\u200c-\u200f\u202a-\u202e\u2066-\u2069\ufe00-\ufe0f]+(?!\u20e3)"
)
# At the end of a word a joiner shows only after a virama, as in Malayalam.
_LOOSE_JOINERS = re.compile(
    "(?<![\u094d\u09cd\u0a4d\u0acd\u0b4d\u0bcd\u0c4d\u0ccd\u0d4d\u0dca])[\u200c\u200d]+(?=\\s|\\Z)"
)


@dataclass(frozen=True, slots=True)
class Attribute:
    """One attribute: ``html[start:end]`` is its value; around it stands ``quote`` (may be '')."""

    name: str  # lower case
    start: int
    end: int
    quote: str


@dataclass(frozen=True, slots=True)
class Tag:
    """One tag: ``html[start:end]`` is all of it, angle brackets included."""

    name: str  # lower case
    closing: bool
    start: int
    end: int
    attributes: tuple[Attribute, ...]

    def attribute(self, name: str) -> Attribute | None:
        """The attribute a browser would use: of several with one name, the first."""
        return next((attribute for attribute in self.attributes if attribute.name == name), None)


@dataclass(frozen=True, slots=True)
class Passage:
    """What is neither a tag nor text: ``html[start:end]``.

    ``raw`` is the content of a RAW_TEXT element ``name``; ``unfinished`` a tag that the text ends in.
    """

    kind: Literal["comment", "declaration", "raw", "unfinished"]
    name: str
    start: int
    end: int


def tags(html: str) -> Iterator[Tag]:
    """The tags of ``html`` in their order; none from comments and raw text, no unfinished one."""
    return (piece for piece in pieces(html) if isinstance(piece, Tag))


def pieces(html: str, *, outlook: bool = True) -> Iterator[Tag | Passage]:
    """All of ``html`` that is not text, in its order and in one pass.

    ``outlook``: what conditional comments hold is markup, as Outlook reads it; else they are comments.
    """
    position = 0
    while opening := _OPENING.search(html, position):
        start = opening.start()
        if opening["name"] is None:
            position = _after_declaration(html, opening, outlook)
            is_comment = opening["comment"] or (opening["conditional"] and not outlook)
            yield Passage("comment" if is_comment else "declaration", "", start, position)
            continue
        attributes, position = _attributes(html, opening.end())
        if position < 0:
            yield Passage("unfinished", "", start, len(html))
            return
        name = opening["name"].lower()
        closing = bool(opening["slash"])
        yield Tag(name, closing, start, position, attributes)
        if name in RAW_TEXT and not closing:
            ending = _RAW_TEXT_END[name].search(html, position) if name != "plaintext" else None
            end = ending.start() if ending else len(html)
            yield Passage("raw", name, position, end)
            position = end


def _after_declaration(html: str, opening: re.Match[str], outlook: bool) -> int:
    if opening["conditional"] and outlook:
        return opening.end()
    if opening["comment"] or opening["conditional"]:
        return comment_end(html, opening.start())
    end = html.find(">", opening.start())
    return end + 1 if end >= 0 else len(html)


def comment_end(html: str, start: int) -> int:
    """Where the comment that begins at ``start`` ends, to all but Outlook."""
    ending = _COMMENT_END.search(html, start + 2)  # "<!-->" is a whole comment
    return ending.end() if ending else len(html)


def _attributes(html: str, position: int) -> tuple[tuple[Attribute, ...], int]:
    """The attributes from ``position`` on, and where the tag ends: -1 when it does not."""
    found: list[Attribute] = []
    while part := _ATTRIBUTE.match(html, position):
        position = part.end()
        if part["end"]:
            return tuple(found), position
        for group, quote in _QUOTES.items():
            if part[group] is not None:
                found.append(Attribute(part["name"].lower(), part.start(group), part.end(group), quote))
                break
        else:
            found.append(Attribute(part["name"].lower(), position, position, ""))
    return (), -1


def unescape(value: str) -> str:
    """An attribute's value with its character references decoded.

    Only references that end with ``;`` count: in an attribute ``?a=1&copy=2`` holds no copyright sign.
    """
    return _REFERENCE.sub(lambda reference: _decoded(reference[0]), value)


def _decoded(text: str) -> str:
    # Python reads no number of more than 4,300 digits
    return html_entities.unescape(_LONG_NUMBER.sub(lambda number: f"&#{number[1].lstrip('0')[:8] or 0};", text))


def escape(value: str, quote: str) -> str:
    """``value`` fit to stand in an attribute within ``quote``, changed as little as that allows."""
    value = value.replace("&", "&amp;")
    if quote:
        return value.replace(quote, "&quot;" if quote == '"' else "&#39;")
    return re.sub(r"[ \t\n\f\r>\"'`]", lambda char: f"&#{ord(char[0])};", value)


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
        self._link: tuple[str, int] | None = None  # its address, and the piece its text begins with

    def text(self, source: str) -> None:
        if source and self._open.shown:
            self._pieces.append(_words(source))

    def raw_text(self, passage: Passage) -> None:
        source = self._html[passage.start : passage.end]
        self.text(html_entities.escape(source) if passage.name != "textarea" else source)

    def tag(self, tag: Tag) -> None:
        shown = self._close(tag) if tag.closing else self._begin(tag)
        if tag.name == "a":
            self._end_link()
            if shown and not tag.closing:
                self._links += 1
                self._link = (_value(self._html, tag, "href"), len(self._pieces))
        elif shown:
            self._pieces.append(_layout(self._html, tag))

    def read(self) -> str:
        """The text so far, cleaned."""
        self._drop_teasers(self._open.close_all())
        if self._link:
            self._end_link()
        text = _NEVER_SHOWN.sub("", "".join(self._pieces))
        text = _LOOSE_JOINERS.sub("", _LOOSE_MARKS.sub("", text))
        text = re.sub(r" *\n *", "\n", re.sub(r" {2,}", " ", text))
        return re.sub(r"\n{3,}", "\n\n", text).strip()

    def _begin(self, tag: Tag) -> bool:
        self._drop_teasers(self._open.close_before(tag.name))
        began, in_link = (len(self._pieces), self._links), self._link is not None
        if not tag.attributes:
            return self._open.begin(Element(tag.name, _NONE, self._sheet.style_of(tag.name), began, in_link))
        names = frozenset([attribute.name for attribute in tag.attributes])
        values = {name: _value(self._html, tag, name) for name in ("style", "class", "id") if name in names}
        return self._open.begin(Element(tag.name, names, self._sheet.style_of(tag.name, **values), began, in_link))

    def _close(self, tag: Tag) -> bool:
        shown, closed = self._open.end(tag.name)
        self._drop_teasers(closed)
        return shown

    def _drop_teasers(self, closed: list[Element]) -> None:
        """Elements that only Outlook is told to hide: with a link in them they are what the others show, a button."""
        for element in closed:
            since, links = element.began
            if element.is_teaser and links == self._links:
                del self._pieces[since:]

    def _end_link(self) -> None:
        if self._link:
            href, since = self._link
            self._pieces.append(_target(href, "".join(self._pieces[since:])))
            self._link = None


def _words(source: str) -> str:
    return re.sub(r"[ \t\n\f\r]+", " ", _decoded(source)).translate(_SPACES)


def _value(html: str, tag: Tag, name: str) -> str:
    attribute = tag.attribute(name)
    return unescape(html[attribute.start : attribute.end]).strip() if attribute else ""


def _target(href: str, text: str) -> str:
    if not href.lower().startswith(("http://", "https://")) or text.strip() == href:
        return ""
    return f" ({href})" if text.strip() else href


def _layout(html: str, tag: Tag) -> str:
    if tag.name == "img":
        return _value(html, tag, "alt")
    if tag.name in _PARAGRAPHS:
        return "\n\n"
    if tag.name == "li" and not tag.closing:
        return "\n- "
    if tag.name in _LINES:
        return "\n"
    return " " if tag.name in {"td", "th"} else ""
