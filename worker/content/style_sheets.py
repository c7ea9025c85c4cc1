"""What the style sheets and style attributes of a mail come to, as far as it decides whether text is shown.

Which declaration wins is decided by https://www.w3.org/TR/CSS2/cascade.html; one that a browser cannot read does not
count. Rules of style sheets count when they name one tag, class or id; those for narrow screens or for print do not.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

Style = Mapping[str, str]

_NOTHING: Style = {}
_SIZES = frozenset({
    "max-height", "height", "max-width", "width", "font-size", "opacity", "text-indent", "left", "top", "right",
    "bottom", "margin-left", "margin-top",
})  # fmt: skip
_PROPERTIES = _SIZES | {
    "display", "visibility", "overflow", "overflow-x", "overflow-y", "font", "mso-hide", "position", "clip",
    "clip-path", "transform", "filter", "content-visibility",
}  # fmt: skip
_DISPLAY = re.compile(
    r"-(?:webkit|moz|ms|o|khtml)-[a-z-]+|none|contents|initial|inherit|unset|revert(?:-layer)?"
    r"|(?:(?:block|inline|run-in|flow|flow-root|flex|grid|ruby|math|list-item)(?:\s+|\Z))+"
    r"|(?:inline-)?(?:block|flex|grid)|(?:inline-)?table|(?:table|ruby)-[a-z-]+"
)
_SIZE = re.compile(
    r"[+-]?(?:[0-9]++(?:\.[0-9]*+)?|\.[0-9]++)(?:e[+-]?[0-9]++)?(?:[a-z]++|%)?|[a-z-]++(?:\(.*)?", re.DOTALL
)
_ESCAPE = re.compile(r"\\(?:([0-9a-fA-F]{1,6})[ \t\n\r\f]?|([^\n]))")
_COMMENT = re.compile(r"/\*.*?(?:\*/|\Z)", re.DOTALL)
_DECLARATION = re.compile(r"""((?:[^;"'()]|"[^"]*(?:"|\Z)|'[^']*(?:'|\Z)|\([^)]*(?:\)|\Z)|\))*+);?""")
_SELECTOR = re.compile(r"(?:(?:html|body|\*)\s+)?([a-z][a-z0-9]*|\*)?(?:([.#])([\w-]+))?", re.IGNORECASE)


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
        key, _, value = _ESCAPE.sub(_unescaped, declaration[1]).lower().partition(":")
        value, mark, importance = value.partition("!")
        key, value, importance = key.strip(), value.strip(), importance.strip()
        if key in _PROPERTIES and _is_valid(key, value) and importance == ("important" if mark else ""):
            found.append((key, value, bool(mark)))
    return found


def _unescaped(escape: re.Match[str]) -> str:
    return chr(min(int(escape[1], 16), 0x10FFFF)) if escape[1] else escape[2]


def _is_valid(key: str, value: str) -> bool:
    """Whether a browser knows the value: else the declaration before stays."""
    if key == "display":
        return _DISPLAY.fullmatch(value) is not None
    return _SIZE.fullmatch(value) is not None if key in _SIZES else value != ""


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
