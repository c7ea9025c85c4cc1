"""Finds tags and attribute values in HTML as people write it, by position.

Campaign HTML comes out of editors, word processors and clipboards. It is never parsed into a tree and written
again, which would change what the user saw in the preview: callers cut the original text at the positions
found here. The rules are those of the WHATWG tokenizer (https://html.spec.whatwg.org/#tokenization) as far
as they decide where a tag, an attribute value, a comment or raw text ends.
"""

import html as html_entities
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

# Elements whose content is text and never holds a tag.
RAW_TEXT = frozenset({"style", "script", "title", "textarea", "xmp", "iframe", "noembed", "noframes", "plaintext"})

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
    return _REFERENCE.sub(lambda reference: decoded(reference[0]), value)


def decoded(text: str) -> str:
    """``text`` with its character references decoded, as they count outside of attributes."""
    # Python reads no number of more than 4,300 digits
    return html_entities.unescape(_LONG_NUMBER.sub(lambda number: f"&#{number[1].lstrip('0')[:8] or 0};", text))


def escape(value: str, quote: str) -> str:
    """``value`` fit to stand in an attribute within ``quote``, changed as little as that allows."""
    value = value.replace("&", "&amp;")
    if quote:
        return value.replace(quote, "&quot;" if quote == '"' else "&#39;")
    return re.sub(r"[ \t\n\f\r>\"'`]", lambda char: f"&#{ord(char[0])};", value)
