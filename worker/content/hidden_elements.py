"""Which elements of a mail a browser shows: by their attributes, their style, and the elements around them.

Elements are closed as browsers close them where an end tag is missing
(https://html.spec.whatwg.org/#parsing-main-inbody). style_sheets.py says what their style comes to.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from worker.content.style_sheets import Style

VOID = frozenset({
    "area", "base", "basefont", "bgsound", "br", "col", "embed", "frame", "hr", "img", "input", "keygen", "link",
    "meta", "param", "source", "track", "wbr",
})  # fmt: skip

_NEVER_SHOWN = frozenset({"template", "datalist", "rp"})
_SPECIAL = _NEVER_SHOWN | {"dialog"}  # hidden by their name alone
_LENGTH = re.compile(r"([+-]?(?:[0-9]{1,20}\.?[0-9]{0,20}|\.[0-9]{1,20}))([a-z]+|%)?")  # also a number without a unit
_PIXELS = {None: 1.0, "px": 1.0, "pt": 4 / 3, "em": 16.0, "rem": 16.0, "ex": 8.0, "ch": 8.0, "vw": 10.0, "vh": 10.0}
_LEAST_PIXELS = 1.0  # what is no larger is not read
_OUTSIDE_PIXELS = -900.0  # before the left or upper edge: no screen shows it
_PLACES = ("left", "top", "right", "bottom")
_NO_AREA = re.compile(
    r"rect\(\s*(?:auto|[01](?:px)?)(?:[\s,]+(?:auto|[01](?:px)?)){3}\s*\)|inset\(\s*(?:[5-9][0-9]|100)(?:\.0*)?%.*"
    r"|circle\(\s*0.*"
)
_FONT_SIZE = re.compile(r"(?:\A|\s)((?:\d++(?:\.\d*+)?|\.\d++)(?:[a-z]++|%)?)(?:\s*+/|\s)")
_RELATIVE = re.compile(r".*(?:em|ex|ch|%)|smaller|larger|inherit|unset", re.DOTALL)

# A start tag closes the elements on the right that are open, unless one of SCOPES was opened since.
_PARAGRAPH_ENDS = frozenset({
    "address", "article", "aside", "blockquote", "center", "details", "dialog", "dir", "div", "dl", "fieldset",
    "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hgroup", "hr", "li",
    "main", "menu", "nav", "ol", "p", "pre", "section", "summary", "table", "ul", "dd", "dt",
})  # fmt: skip
_CELLS = ("td", "th", "caption")
_CLOSED_BY: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(_PARAGRAPH_ENDS, ("p",)),
    "li": ("p", "li"), "dd": ("p", "dd", "dt"), "dt": ("p", "dd", "dt"),
    "option": ("option",), "optgroup": ("option", "optgroup"),
    "td": _CELLS, "th": _CELLS, "tr": (*_CELLS, "tr"),
    **dict.fromkeys(("tbody", "thead", "tfoot"), (*_CELLS, "tr", "tbody", "thead", "tfoot")),
    **{name: (name,) for name in ("a", "button", "nobr")},
}  # fmt: skip
_SCOPES = ("table", "td", "th", "caption", "template", "object", "marquee", "button")
_LIST_SCOPES = (*_SCOPES, "ul", "ol", "menu", "dl")
_TABLE_SCOPES = ("table", "template")
_TABLE_PARTS = frozenset({"table", "tr", "td", "th", "tbody", "thead", "tfoot", "caption"})
_STAY_OPEN = frozenset({"html", "body"})


def _scopes_of(name: str) -> tuple[str, ...]:
    if name == "p":
        return _SCOPES
    return _TABLE_SCOPES if name in _TABLE_PARTS else _LIST_SCOPES


@dataclass(frozen=True, slots=True)
class Element:
    """A start tag. ``began`` and ``in_link`` are the reader's: where its content begins, and whether in a link."""

    name: str
    attributes: frozenset[str]
    style: Style
    began: tuple[int, int] = (0, 0)
    in_link: bool = False

    @property
    def is_hidden(self) -> bool:
        """Whether neither it nor anything in it is shown."""
        style = self.style
        if style.get("display") == "none" or self.name in _NEVER_SHOWN:
            return True
        if "hidden" in self.attributes and "display" not in style:
            return True
        if self.name == "dialog" and "open" not in self.attributes:
            return True
        return bool(style) and (_is_transparent(style) or _has_no_size(style) or _is_elsewhere(style))

    @property
    def is_teaser(self) -> bool:
        """Whether only Outlook is told to hide it: what an inbox shows of a mail, unless there is a link in it.
        Buttons for all programs but Outlook have the same style."""
        return self.style.get("mso-hide") == "all" and self.name != "a" and not self.in_link


@dataclass(slots=True)
class PlacedElement:
    """An element with what it has of those around it."""

    element: Element
    hidden: bool  # and all that is in it
    invisible: bool  # visibility:hidden and font-size:0 are inherited, and what is inside may be shown all the same
    tiny: bool

    @property
    def shows_text(self) -> bool:
        """Whether text that stands in it is shown, and the alt text that stands for an image."""
        return not (self.hidden or self.invisible or self.tiny)


class OpenElements:
    """The elements that are open, the innermost last. A tag takes the same time however many they are."""

    def __init__(self) -> None:
        self._stack = [PlacedElement(Element("", frozenset(), {}), hidden=False, invisible=False, tiny=False)]
        self._places: defaultdict[str, list[int]] = defaultdict(list)  # in the stack, of each name

    @property
    def innermost(self) -> PlacedElement:
        return self._stack[-1]

    def close_before(self, name: str) -> list[Element]:
        """Closes what the start tag ``name`` closes, and returns it."""
        closed: list[Element] = []
        for other in _CLOSED_BY.get(name, ()):
            place = self._last(other)
            if place and place > self._last_scope(_scopes_of(name if other != "p" else "p"), other):
                closed += self._close(place)
        return closed

    def begin(self, element: Element) -> PlacedElement:
        """The element, which stays open unless it never has content."""
        around = self._stack[-1]
        if not (element.style or element.attributes or element.name in _SPECIAL):
            opened = PlacedElement(element, around.hidden, around.invisible, around.tiny)
        else:
            opened = self._styled(element, around)
        if element.name not in VOID:
            self._places[element.name].append(len(self._stack))
            self._stack.append(opened)
        return opened

    @staticmethod
    def _styled(element: Element, around: PlacedElement) -> PlacedElement:
        style = element.style
        return PlacedElement(
            element,
            hidden=around.hidden or element.is_hidden,
            invisible=style.get("visibility", "visible" if not around.invisible else "hidden")
            in {"hidden", "collapse"},
            tiny=_is_tiny(style, around.tiny),
        )

    def end(self, name: str) -> tuple[PlacedElement, list[Element]]:
        """Closes the innermost element ``name``: it, or the one around if there is none, and all that was closed."""
        place = self._last(name)
        scopes = _TABLE_SCOPES if name in _TABLE_PARTS else _SCOPES
        if not place or name in _STAY_OPEN or place <= self._last_scope(scopes, name):
            return self.innermost, []
        return self._stack[place], self._close(place)

    def close_all(self) -> list[Element]:
        return self._close(1)

    def _last(self, name: str) -> int:
        places = self._places.get(name)
        return places[-1] if places else 0

    def _last_scope(self, scopes: Iterable[str], name: str) -> int:
        return max(self._last(scope) for scope in scopes if scope != name)

    def _close(self, place: int) -> list[Element]:
        closed = [opened.element for opened in reversed(self._stack[place:])]
        del self._stack[place:]
        for element in closed:
            self._places[element.name].pop()
        return closed


def _is_transparent(style: Style) -> bool:
    filtered = re.fullmatch(r"opacity\(\s*(.*?)\s*\)", style.get("filter", ""))
    degrees = (_pixels(style.get("opacity")), _pixels(filtered[1] if filtered else None))
    if any(degree is not None and degree <= 0 for degree in degrees):
        return True
    return style.get("content-visibility") == "hidden"


def _has_no_size(style: Style) -> bool:
    """``max-height:0`` alone is enough: teasers are written so, and nothing else is."""
    if _pixels(style.get("max-height")) == 0 or re.match(r"scale[xy]?\(\s*0\s*[,)]", style.get("transform", "")):
        return True
    clipped = any(style.get(name, "visible") != "visible" for name in ("overflow", "overflow-x", "overflow-y"))
    sizes = (_pixels(style.get(name)) for name in ("height", "max-height", "width", "max-width"))
    return clipped and any(size is not None and 0 <= size <= _LEAST_PIXELS for size in sizes)


def _is_elsewhere(style: Style) -> bool:
    """Moved out of the page, or cut off."""
    moved = ["text-indent", "margin-left", "margin-top"]
    if style.get("position") in {"absolute", "fixed"}:
        if _NO_AREA.fullmatch(style.get("clip", "")):
            return True
        moved += _PLACES
    elif style.get("position") == "relative":
        moved += _PLACES
    if _NO_AREA.fullmatch(style.get("clip-path", "")):
        return True
    return any((_pixels(style.get(name)) or 0) <= _OUTSIDE_PIXELS for name in moved)


def _pixels(value: str | None) -> float | None:
    """About how many pixels a length is; None: no length, or a share of another one that is not 0."""
    found = _LENGTH.fullmatch(value or "")
    if found is None:
        return None
    number = float(found[1])
    return number * _PIXELS[found[2]] if found[2] in _PIXELS else (None if number else 0.0)


def _is_tiny(style: Style, around: bool) -> bool:
    size = style.get("font-size")
    if size is None and (found := _FONT_SIZE.search(style.get("font", ""))):
        size = found[1]
    if size is None:
        return around
    if around and _RELATIVE.fullmatch(size) and not size.endswith("rem"):
        return True
    pixels = _pixels(size)
    return pixels is not None and 0 <= pixels <= _LEAST_PIXELS
