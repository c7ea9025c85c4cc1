"""How a stranger's value is written at the place in HTML where it lands, so that it can do nothing but be read there.

``landings`` finds the places of a template, once; ``write`` writes a value, for each recipient.
"""

import html
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from enum import Enum, auto
from typing import NamedTuple
from urllib.parse import quote, unquote

from worker.content import invisible_characters as invisible
from worker.content.addresses import parse_address
from worker.content.markup import Attribute, Passage, Tag, comment_end, pieces, unescape
from worker.content.phones import to_e164


class Place(Enum):
    """What stands around a value."""

    TEXT = auto()
    ATTRIBUTE = auto()  # in quotes; also the text of a title, where no tag can stand
    UNQUOTED = auto()  # an attribute's value without quotes
    AFTER_BRACKET = auto()  # text directly after "<" or "</": a letter would make it a tag
    URL = auto()
    NUMBER = auto()  # in tel: and the like
    WHATSAPP_NUMBER = auto()  # in https://wa.me/ and the like
    OPAQUE = auto()  # in an address without a host: skype:, sip:
    MAILBOX = auto()  # in mailto:, before its "?"
    SCRIPT_URL = auto()  # in javascript:, which is decoded and run
    STYLE = auto()
    SCRIPT = auto()
    DOCUMENT = auto()  # srcdoc: HTML in an attribute
    COMMENT = auto()
    DECLARATION = auto()
    TAG = auto()  # its name, or the name of an attribute


class Landing(NamedTuple):
    """Where a value lands."""

    place: Place
    typed: str = ""  # what the template itself has of a number, before it
    opens: bool = (
        False  # the first value of an attribute that is made of values alone and has no quotes: it gets them
    )
    closes: bool = False  # the last one
    never_empty: bool = False  # without it a quote would be the first of an attribute that begins without one
    commented: bool = False  # markup for Outlook, in what is a comment to all others


_URL_ATTRIBUTES = frozenset({
    "href", "src", "action", "formaction", "background", "poster", "xlink:href", "cite", "longdesc", "data",
    "codebase", "srcset", "ping", "manifest", "icon", "usemap", "profile", "lowsrc", "dynsrc",
})  # fmt: skip
_ATTRIBUTES = {"style": Place.STYLE, "srcdoc": Place.DOCUMENT}
_RAW_TEXTS = {"style": Place.STYLE, "script": Place.SCRIPT}
_PASSAGES = {"comment": Place.COMMENT, "declaration": Place.DECLARATION, "unfinished": Place.TAG}
_NUMBER_SCHEMES = frozenset({"tel", "sms", "smsto", "mms", "mmsto", "callto", "facetime", "facetime-audio"})
_SCRIPT_SCHEMES = frozenset({"javascript", "vbscript", "livescript", "data"})
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):(.*)", re.IGNORECASE | re.DOTALL)
_HOST_SCHEMES = frozenset({"http", "https", "ftp"})
_WHATSAPP = re.compile(
    r"(?:https?:)?//(?:www\.)?wa\.me/([+0-9]*)"
    r"|(?:(?:https?:)?//(?:[a-z]+\.)?whatsapp\.com/send/?|whatsapp:/*send/?)\?(?:[^#]*&)?phone=([+0-9]*)",
    re.IGNORECASE,
)
_LAST_NUMBER = re.compile(r"(?<![^,;])[^,;&=?]*\Z")  # of several in sms:, the one that a value belongs to
_REFRESH = re.compile(r"[\s0-9.;,]*url\s*=", re.IGNORECASE)
_AFTER_BRACKET = re.compile(r"<(?:/[A-Za-z]{0,10})?\Z")
_LONGEST_HEAD = 300  # characters of an address that are looked at for its scheme

_NO_WORD = re.compile(r"[^A-Za-z0-9]")
_ENDS_UNQUOTED = re.compile(r"[\x00-\x20\"'`=<>&]")
_WORD_JOINER = "&#8288;"  # shows nothing, and no tag begins with it
_QUOTES = {False: "", True: '"'}


def landings(text: str, slots: Sequence[tuple[int, int]]) -> list[Landing]:
    """Where values land in HTML that replace ``slots``: (start, end) of each, in order. ``text`` is ``masked``."""
    found: list[Landing] = []
    comments: list[tuple[int, int]] = [(0, 0)]
    for piece in pieces(text) if slots else ():
        if piece.start >= comments[-1][1] and text.startswith("<!--[", piece.start):
            comments.append((piece.start, comment_end(text, piece.start)))
        if piece.end <= slots[len(found)][0]:
            continue
        end = bisect_left(slots, (piece.start, 0), lo=len(found))
        found += [_in_text(text, start) for start, _ in slots[len(found) : end]]
        end = bisect_left(slots, (piece.end, 0), lo=end)
        found += _in_piece(text, piece, slots[len(found) : end])
        if len(found) == len(slots):
            break
    found += [_in_text(text, start) for start, _ in slots[len(found) :]]
    for index, (start, _) in enumerate(slots):
        if start < comments[bisect_right(comments, (start, len(text))) - 1][1]:
            found[index] = found[index]._replace(commented=True)
    return found


def masked(text: str, slots: Iterable[tuple[int, int]]) -> str:
    """``text`` with nothing in its slots that could be markup: "{" is none anywhere."""
    parts, position = [], 0
    for start, end in slots:
        parts += [text[position:start], "{" * (end - start)]
        position = end
    return "".join([*parts, text[position:]])


def write(landing: Landing, value: str, *, is_html: bool = False) -> str:
    """``value`` as it may stand at ``landing``; ``is_html``: it is markup already, where text may stand."""
    if landing.place is Place.NUMBER:
        written = _number(value, landing.typed)
    elif landing.place is Place.WHATSAPP_NUMBER:
        written = _number(value, landing.typed or "+")
    elif landing.place is Place.TEXT and is_html:
        written = value
    else:
        written = _WRITERS[landing.place](value)
    if landing.never_empty and not written:
        written = _WORD_JOINER
    if landing.commented:
        written = written.replace("-", "&#45;")  # two and a bracket would end the comment
    return f"{_QUOTES[landing.opens]}{written}{_QUOTES[landing.closes]}"


def _in_text(text: str, start: int, place: Place = Place.TEXT) -> Landing:
    return Landing(Place.AFTER_BRACKET if _AFTER_BRACKET.search(text, max(start - 12, 0), start) else place)


def _in_piece(text: str, piece: Tag | Passage, slots: Sequence[tuple[int, int]]) -> list[Landing]:
    if not slots:
        return []
    if isinstance(piece, Tag):
        return _in_tag(text, piece, slots)
    if piece.kind == "raw" and piece.name not in _RAW_TEXTS:
        return [_in_text(text, start, Place.ATTRIBUTE) for start, _ in slots]
    place = _RAW_TEXTS[piece.name] if piece.kind == "raw" else _PASSAGES[piece.kind]
    return [Landing(place)] * len(slots)


def _in_tag(text: str, tag: Tag, slots: Sequence[tuple[int, int]]) -> list[Landing]:
    starts = [attribute.start for attribute in tag.attributes]
    found: list[Landing] = []
    while len(found) < len(slots):
        start = slots[len(found)][0]
        index = bisect_right(starts, start) - 1
        if index < 0 or start >= tag.attributes[index].end:
            found.append(Landing(Place.TAG))
        else:
            end = bisect_left(slots, (tag.attributes[index].end, 0), lo=len(found))
            found += _in_value(text, tag, tag.attributes[index], slots[len(found) : end])
    return found


def _in_value(text: str, tag: Tag, attribute: Attribute, slots: Sequence[tuple[int, int]]) -> list[Landing]:
    name, value = attribute.name, text[attribute.start : attribute.end]
    if name in _URL_ATTRIBUTES or (tag.name == "meta" and name == "content" and _REFRESH.match(value)):
        found = _in_url(value, [start - attribute.start for start, _ in slots])
    else:
        usual = Place.ATTRIBUTE if attribute.quote else Place.UNQUOTED
        place = Place.SCRIPT if name.startswith("on") else _ATTRIBUTES.get(name, usual)
        found = [Landing(place)] * len(slots)
    is_whole = (slots[0][0], slots[-1][1]) == (attribute.start, attribute.end) and not value.strip("{")
    if is_whole and not attribute.quote:  # empty, it would take the next attribute for its value
        found[0] = found[0]._replace(opens=True)
        found[-1] = found[-1]._replace(closes=True)
    elif not attribute.quote and slots[0][0] == attribute.start and value.lstrip("{").startswith(("'", '"')):
        found[0] = found[0]._replace(never_empty=True)
    return found


def _in_url(url: str, starts: Sequence[int]) -> list[Landing]:
    query = url.find("?") if "?" in url else len(url)
    landed: list[Landing] = []
    for index, start in enumerate(starts):
        if index and starts[index - 1] >= _LONGEST_HEAD and (start < query) == (starts[index - 1] < query):
            landed.append(landed[-1])  # with the same head
        else:
            landed.append(url_landing(url[: min(start, _LONGEST_HEAD)], in_query=start > query))
    return landed


def url_landing(before: str, *, in_query: bool) -> Landing:
    """Where a value lands in an address whose beginning stands ``before`` it, ``masked``.

    The scheme is what stands before the first value, so that no value can choose it.
    """
    head = re.sub(r"[\t\n\r]", "", unescape(before)).lstrip()
    scheme = found[1].lower() if (found := _SCHEME.match(head)) else ""
    if scheme in _SCRIPT_SCHEMES:
        return Landing(Place.SCRIPT_URL)
    if whatsapp := _WHATSAPP.fullmatch(head):
        return Landing(Place.WHATSAPP_NUMBER, whatsapp[1] or whatsapp[2] or "")
    has_host = found is None or found[2].startswith("//") or scheme in _HOST_SCHEMES
    if in_query or (has_host and scheme not in _NUMBER_SCHEMES):
        return Landing(Place.URL)
    if scheme == "mailto":
        return Landing(Place.MAILBOX)
    if found and scheme in _NUMBER_SCHEMES and (number := _LAST_NUMBER.search(unquote(found[2]))):
        return Landing(Place.NUMBER, re.sub(r"[^0-9+]", "", number[0]))
    return Landing(Place.OPAQUE)


def _number(value: str, typed: str) -> str:
    """What is dialled: with a plus sign and the country code, less what the template has of them already."""
    try:
        number = to_e164(value)
    except ValueError:
        number = "+"[: value.strip().startswith("+")] + re.sub(r"[^0-9]", "", value)
    return number.removeprefix("+").removeprefix(re.sub(r"^(?:\+|00)", "", typed)) if typed else number


def _mailbox(value: str) -> str:
    try:
        value = parse_address(value)
    except ValueError:
        value = invisible.trimmed(value)
    return quote(value, safe="@+!$*")  # RFC 6068 2


def _reference(char: re.Match[str]) -> str:
    return f"&#{ord(char[0])};"


def _utf16(char: re.Match[str]) -> str:
    units = char[0].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))


def _comment(value: str) -> str:
    return html.escape(value).replace("-", "&#45;")


_WRITERS: dict[Place, Callable[[str], str]] = {
    Place.TEXT: html.escape,
    Place.ATTRIBUTE: html.escape,
    Place.UNQUOTED: lambda value: _ENDS_UNQUOTED.sub(_reference, value),
    Place.AFTER_BRACKET: lambda value: _WORD_JOINER + html.escape(value),
    Place.URL: lambda value: quote(value, safe=""),
    Place.OPAQUE: lambda value: quote(value, safe="+@"),
    Place.MAILBOX: _mailbox,
    Place.SCRIPT_URL: lambda value: _NO_WORD.sub("", value),
    Place.STYLE: lambda value: _NO_WORD.sub(lambda char: f"\\{ord(char[0]):06x}", value),
    Place.SCRIPT: lambda value: _NO_WORD.sub(_utf16, value),
    Place.DOCUMENT: lambda value: _NO_WORD.sub(_reference, value).replace("&", "&amp;"),
    Place.COMMENT: lambda value: _comment(value) or " ",  # "<!-->" would end it
    Place.DECLARATION: lambda value: f" {_comment(value)}",  # a letter would make "</" a tag
    Place.TAG: lambda value: "x",
}
