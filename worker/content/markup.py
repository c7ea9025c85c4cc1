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

# Elements whose content is text and never holds a tag.
RAW_TEXT = frozenset({"style", "script", "title", "textarea", "xmp", "iframe", "noembed", "noframes"})

# Outlook's conditional comments hold the buttons (VML) that Outlook shows: their content counts as markup.
_OPENING = re.compile(
    r"<(?:(?P<conditional>!--\[if\b[^\]>]*\]>)|(?P<comment>!--)"
    r"|(?P<slash>/?)(?P<name>[A-Za-z][^ \t\n\f\r/>]*)|(?P<other>[!?/]))"
)
_COMMENT_END = re.compile(r"--!?>")
_COMMENT = re.compile(r"<!--(?:>|->|.*?--!?>|.*\Z)", re.DOTALL)
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
_QUOTES = {"double": '"', "single": "'", "bare": ""}

_PARAGRAPHS = frozenset({"p", "h1", "h2", "h3", "h4", "h5", "h6", "table", "ul", "ol", "blockquote", "hr"})
_LINES = frozenset({"br", "div", "tr", "li", "section", "article", "header", "footer", "center", "body"})


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


def tags(html: str) -> Iterator[Tag]:
    """The tags of ``html`` in their order; none from comments and raw text, no unfinished one."""
    position = 0
    while opening := _OPENING.search(html, position):
        if opening["name"] is None:
            position = _after_declaration(html, opening)
            continue
        attributes, position = _attributes(html, opening.end())
        if position < 0:
            return
        name = opening["name"].lower()
        closing = bool(opening["slash"])
        yield Tag(name, closing, opening.start(), position, attributes)
        if name in RAW_TEXT and not closing:
            ending = _RAW_TEXT_END[name].search(html, position)
            position = ending.start() if ending else len(html)


def _after_declaration(html: str, opening: re.Match[str]) -> int:
    if opening["conditional"]:
        return opening.end()
    if opening["comment"]:
        ending = _COMMENT_END.search(html, opening.start() + 2)  # "<!-->" is a whole comment
        return ending.end() if ending else len(html)
    end = html.find(">", opening.start())
    return end + 1 if end >= 0 else len(html)


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
    return (), -1


def unescape(value: str) -> str:
    """An attribute's value with its character references decoded.

    Only references that end with ``;`` count: in an attribute ``?a=1&copy=2`` holds no copyright sign.
    """
    return _REFERENCE.sub(lambda reference: html_entities.unescape(reference[0]), value)


def escape(value: str, quote: str) -> str:
    """``value`` fit to stand in an attribute within ``quote``, changed as little as that allows."""
    value = value.replace("&", "&amp;")
    if quote:
        return value.replace(quote, "&quot;" if quote == '"' else "&#39;")
    return re.sub(r"[ \t\n\f\r>\"'`]", lambda char: f"&#{ord(char[0])};", value)


def plain_text(html: str) -> str:
    """What ``html`` says, without the HTML: paragraphs, "- " items, "text (link)", images' alt texts."""
    html = _COMMENT.sub("", html)
    pieces: list[str] = []
    link: tuple[str, int] | None = None  # its address, and the piece its text begins with
    position, hidden = 0, False
    for tag in tags(html):
        if not hidden:
            pieces.append(_words(html[position : tag.start]))
        position, hidden = tag.end, tag.name in RAW_TEXT and not tag.closing
        if tag.name == "a":
            if link:
                pieces.append(_target(link[0], "".join(pieces[link[1] :])))
            link = None if tag.closing else (_value(html, tag, "href"), len(pieces))
        else:
            pieces.append(_layout(html, tag))
    if not hidden:
        pieces.append(_words(html[position:]))
    text = re.sub(r" *\n *", "\n", re.sub(r" {2,}", " ", "".join(pieces)))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _words(source: str) -> str:
    return html_entities.unescape(re.sub(r"[ \t\n\f\r]+", " ", source)).replace("\xa0", " ")


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
