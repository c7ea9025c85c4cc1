"""Placeholders however an editor wrote them, in the one spelling that is compiled: ``{{name}}``.

White space and invisible characters inside the braces do not count, as characters, as references (``&nbsp;``) or
percent-encoded; nor do tags that an editor put between (``{{<span>name</span>}}``): those stay, beside the
placeholder. All other bytes of the text stay as they are.
"""

import html
import re
from collections.abc import Iterable
from functools import cache

from worker.content import invisible_characters as invisible

# A tag, but of none whose content is text: a placeholder does not reach into a script.
_TAG = (
    r"</?(?!(?:script|style|title|textarea|xmp|iframe|noembed|noframes|plaintext)[\s/>])"
    r"[a-z][a-z0-9:-]*(?:[\s/][^<>{}]*)?>|<!--(?!\[)[^<>{}]*-->"
)
_REFERENCE = (
    r"&(?!#0{0,5}12[35];|#x0{0,5}7[bd];|[lr]brace;|[lr]cub;)(?:#[0-9]{1,7}|#x[0-9a-f]{1,6}|[a-z][a-z0-9]{1,20});"
    r"|&nbsp"
)
_PERCENT = r"%(?:0[9ad]|20|c2%a0|e2%80%8[0-f]|ef%bb%bf)"
_BETWEEN = rf"(?i:{_TAG}|{_REFERENCE}|{_PERCENT}|[\s{invisible.CLASS}])*+"
_OPEN = r"(?i:\{|%7b|&#0{0,5}123;|&#x0{0,5}7b;|&lbrace;|&lcub;)"
_CLOSE = r"(?i:\}|%7d|&#0{0,5}125;|&#x0{0,5}7d;|&rbrace;|&rcub;)"
# Inside a name, and between two braces, only what has no width may stand.
_INSIDE = rf"(?i:{_TAG}|&(?:shy|zwnj|zwj|zerowidthspace|nobreak);|[\u00ad\u034f\u200b-\u200d\u2060\ufeff])*+"

_TAGS = re.compile(_TAG, re.IGNORECASE)
_REFERENCES = re.compile(_REFERENCE, re.IGNORECASE)
_PLAIN = re.compile(r"\{\{\s*\w+\s*\}\}")
_ENCODED = re.compile(r"%7b|&#0{0,5}123;|&#x0{0,5}7b;|&lbrace;|&lcub;", re.IGNORECASE)


def unified(text: str, names: Iterable[str] | None = None) -> str:
    """``text`` with its placeholders spelled ``{{name}}``: those of ``names``, or all whose name is a word."""
    if text.count("{") == 2 * len(_PLAIN.findall(text)) and not _ENCODED.search(text):
        return text
    return _pattern(None if names is None else tuple(sorted(names))).sub(_respelled, text)


@cache
def _pattern(names: tuple[str, ...] | None) -> re.Pattern[str]:
    """One pass: each part ends where the next brace, tag or reference begins, and is not tried again."""
    known = rf"[A-Za-z_]\w*+(?:{_INSIDE}\w++)*+" if names is None else "|".join(map(_INSIDE.join, names))
    opening, closing = f"{_OPEN}{_INSIDE}{_OPEN}", f"{_CLOSE}{_INSIDE}{_CLOSE}"
    return re.compile(rf"{opening}{_BETWEEN}(?P<name>{known}){_BETWEEN}{closing}")


def _respelled(found: re.Match[str]) -> str:
    whole, start = found[0], found.start("name") - found.start()
    if _PLAIN.fullmatch(whole):
        return whole
    before, after = _TAGS.findall(whole[:start]), _TAGS.findall(whole[start:])
    if any(invisible.trimmed(html.unescape(each)) for each in _REFERENCES.findall(_TAGS.sub("", whole))):
        return whole  # something between the braces shows
    name = invisible.removed(html.unescape(_TAGS.sub("", found["name"])))
    return f"{''.join(before)}{{{{{name}}}}}{''.join(after)}"
