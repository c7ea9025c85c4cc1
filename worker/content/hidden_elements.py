"""Which elements of a mail a browser shows: by their attributes, their style, and the elements around them.

Only what hides text is looked at (https://www.w3.org/TR/CSS2/cascade.html decides which declaration wins). Rules of
style sheets count when they name one tag, class or id; those for narrow screens or for print do not. Elements are
closed as browsers close them where an end tag is missing (https://html.spec.whatwg.org/#parsing-main-inbody).
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

VOID = frozenset({
    "area", "base", "basefont", "bgsound", "br", "col", "embed", "frame", "hr", "img", "input", "keygen", "link",
    "meta", "param", "source", "track", "wbr",
})  # fmt: skip

Style = Mapping[str, str]

_PROPERTIES = frozenset({
    "display", "visibility", "opacity", "max-height", "height", "max-width", "width", "overflow", "overflow-x",
    "overflow-y", "font", "font-size", "mso-hide",
})  # fmt: skip
_NEVER_SHOWN = frozenset({"template", "datalist", "rp"})
_SPECIAL = _NEVER_SHOWN | {"dialog"}  # hidden by their name alone
_COMMENT = re.compile(r"/\*.*?(?:\*/|\Z)", re.DOTALL)
_DECLARATION = re.compile(r"""((?:[^;"'()]|"[^"]*(?:"|\Z)|'[^']*(?:'|\Z)|\([^)]*(?:\)|\Z)|\))*+);?""")
_SELECTOR = re.compile(r"(?:(?:html|body|\*)\s+)?([a-z][a-z0-9]*|\*)?(?:([.#])([\w-]+))?", re.IGNORECASE)
_ZERO = re.compile(r"[+-]?(?:0++(?:\.0*+)?|\.0++)(?:[a-z]++|%)?")
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
}  # fmt: skip
_SCOPES = ("table", "td", "th", "caption", "template", "object", "marquee", "button")
_LIST_SCOPES = (*_SCOPES, "ul", "ol", "menu", "dl")
_TABLE_SCOPES = ("table", "template")
_TABLE_PARTS = frozenset({"table", "tr", "td", "th", "tbody", "thead", "tfoot", "caption"})
_NOTHING: Style = {}
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
        clipped = any(style.get(name, "visible") != "visible" for name in ("overflow", "overflow-x", "overflow-y"))
        return (
            style.get("display") == "none"
            or ("hidden" in self.attributes and "display" not in style)
            or self.name in _NEVER_SHOWN
            or (self.name == "dialog" and "open" not in self.attributes)
            or any(_is_zero(style.get(name)) for name in ("opacity", "max-height"))
            or (clipped and any(_is_zero(style.get(name)) for name in ("height", "width", "max-width")))
        )

    @property
    def is_teaser(self) -> bool:
        """Whether only Outlook is told to hide it: what an inbox shows of a mail, unless there is a link in it.
        Buttons for all programs but Outlook have the same style."""
        return self.style.get("mso-hide") == "all" and self.name != "a" and not self.in_link


@dataclass(slots=True)
class _Open:
    element: Element
    hidden: bool
    invisible: bool  # visibility:hidden and font-size:0 are inherited, and what is inside may be shown all the same
    tiny: bool

    @property
    def shown(self) -> bool:
        return not (self.hidden or self.invisible or self.tiny)


class OpenElements:
    """The elements that are open, the innermost last. A tag takes the same time however many they are."""

    def __init__(self) -> None:
        self._stack = [_Open(Element("", frozenset(), {}), hidden=False, invisible=False, tiny=False)]
        self._places: defaultdict[str, list[int]] = defaultdict(list)  # in the stack, of each name

    @property
    def shown(self) -> bool:
        """Whether text that stands here is shown."""
        return self._stack[-1].shown

    def close_before(self, name: str) -> list[Element]:
        """Closes what the start tag ``name`` closes, and returns it."""
        closed: list[Element] = []
        for other in _CLOSED_BY.get(name, ()):
            place = self._last(other)
            if place and place > self._innermost(_scopes_of(name if other != "p" else "p"), other):
                closed += self._close(place)
        return closed

    def begin(self, element: Element) -> bool:
        """Whether the element is shown. It stays open, unless it never has content."""
        around = self._stack[-1]
        if not (element.style or element.attributes or element.name in _SPECIAL):
            opened = _Open(element, around.hidden, around.invisible, around.tiny)
        else:
            opened = self._styled(element, around)
        if element.name not in VOID:
            self._places[element.name].append(len(self._stack))
            self._stack.append(opened)
        return opened.shown

    @staticmethod
    def _styled(element: Element, around: _Open) -> _Open:
        style = element.style
        return _Open(
            element,
            hidden=around.hidden or element.is_hidden,
            invisible=style.get("visibility", "visible" if not around.invisible else "hidden")
            in {"hidden", "collapse"},
            tiny=_is_tiny(style, around.tiny),
        )

    def end(self, name: str) -> tuple[bool, list[Element]]:
        """Closes the innermost element ``name``, if it is open here: was that shown, and what was closed?"""
        place = self._last(name)
        scopes = _TABLE_SCOPES if name in _TABLE_PARTS else _SCOPES
        if not place or name in _STAY_OPEN or place <= self._innermost(scopes, name):
            return self.shown, []
        return self._stack[place].shown, self._close(place)

    def close_all(self) -> list[Element]:
        return self._close(1)

    def _last(self, name: str) -> int:
        places = self._places.get(name)
        return places[-1] if places else 0

    def _innermost(self, scopes: Iterable[str], name: str) -> int:
        return max(self._last(scope) for scope in scopes if scope != name)

    def _close(self, place: int) -> list[Element]:
        closed = [opened.element for opened in reversed(self._stack[place:])]
        del self._stack[place:]
        for element in closed:
            self._places[element.name].pop()
        return closed


@dataclass(slots=True)
class _Declared:
    """The value that a property has so far, and the weight of the declaration that gave it."""

    weight: tuple[bool, int, int]
    value: str


@dataclass(slots=True)
class StyleSheet:
    """The rules in the <style> elements of a mail, in their order."""

    sources: Iterable[str]
    _rules: dict[tuple[str, str], dict[str, _Declared]] = field(default_factory=lambda: defaultdict(dict), init=False)

    def __post_init__(self) -> None:
        for order, (selectors, body) in enumerate(rule for source in self.sources for rule in _rules_of(source)):
            declared = _declarations(body)
            for selector in selectors.split(",") if declared else ():
                if (found := _SELECTOR.fullmatch(selector.strip())) and (found[1] or found[2]):
                    tag = "" if found[1] in {None, "*"} else found[1].lower()
                    specificity = {None: 0, ".": 10, "#": 100}[found[2]] + (tag != "")
                    rule = self._rules[tag, (found[2] or "") + (found[3] or "")]
                    _cascade(rule, declared, specificity, order)

    def style_of(self, name: str, *, style: str = "", **selected: str) -> Style:
        """What an element's declarations and the rules come to. ``selected``: its class and its id."""
        if not (style or self._rules):
            return _NOTHING
        result: dict[str, _Declared] = {}
        if self._rules:
            for selector in _selectors(**selected):
                for tag in ("", name):
                    for key, declared in self._rules.get((tag, selector), {}).items():
                        if key not in result or result[key].weight <= declared.weight:
                            result[key] = declared
        if style:
            _cascade(result, _declarations(style), 1000, 0)
        return {key: declared.value for key, declared in result.items()}


def _selectors(**selected: str) -> list[str]:
    classes = dict.fromkeys(selected.get("class", "").split())
    return ["", *(f".{each}" for each in classes), *([f"#{selected['id']}"] if selected.get("id") else [])]


def _cascade(
    rule: dict[str, _Declared], declared: Iterable[tuple[str, str, bool]], specificity: int, order: int
) -> None:
    for key, value, important in declared:
        weight = (important, specificity, order)
        if key not in rule or rule[key].weight <= weight:
            rule[key] = _Declared(weight, value)


def _declarations(body: str) -> list[tuple[str, str, bool]]:
    """(property, value, whether it is !important) of those that hide text, in lower case."""
    found = []
    for declaration in _DECLARATION.finditer(_COMMENT.sub(" ", body)):
        key, colon, value = declaration[1].partition(":")
        key = key.strip().lower()
        if colon and key in _PROPERTIES:
            value, mark, importance = value.strip().lower().partition("!")
            found.append((key, value.strip(), bool(mark) and importance.strip() == "important"))
    return found


def _rules_of(source: str) -> Iterable[tuple[str, str]]:
    """(selectors, body) of the rules that hold for every screen."""
    css = re.sub(r"<!--|-->", " ", _COMMENT.sub(" ", source))
    depth, start, selectors = 0, 0, ""
    for brace in re.finditer(r"[{}]", css):
        before = css[start : brace.start()]
        start = brace.end()
        if brace[0] == "}":
            if depth == 1 and not selectors.startswith("@"):
                yield selectors, before
            depth = max(depth - 1, 0)
            continue
        head = before.rpartition(";")[2].strip()
        if depth == 0 and re.fullmatch(r"@media\s+(?:only\s+)?(?:screen|all)", head, re.IGNORECASE):
            continue
        depth += 1
        if depth == 1:
            selectors = head


def _is_zero(value: str | None) -> bool:
    return value is not None and _ZERO.fullmatch(value) is not None


def _is_tiny(style: Style, around: bool) -> bool:
    size = style.get("font-size")
    if size is None and (found := _FONT_SIZE.search(style.get("font", ""))):
        size = found[1]
    if size is None:
        return around
    return _is_zero(size) or (around and _RELATIVE.fullmatch(size) is not None and not size.endswith("rem"))
