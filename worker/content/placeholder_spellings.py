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
    r"""[a-z][a-z0-9:-]*(?:[\s/](?:[^<>{}"']|"[^"{}]*"|'[^'{}]*'|["'])*+)?>|<!--(?!\[)[^<>{}]*-->"""
)
# References as browsers read them: those by number, and the oldest names, also without their semicolon.
_REFERENCE = (
    r"&(?!#0*+12[35](?![0-9])|#x0*+7[bd](?![0-9a-f])|[lr]brace;|[lr]cub;)"
    r"(?:#0*+[0-9]{1,7}(?![0-9]);?|#x0*+[0-9a-f]{1,6}(?![0-9a-f]);?|[a-z][a-z0-9]{1,20};|nbsp|shy)"
)
# Invisible characters in a URL, as browsers and forms encode them.
_PERCENT = (
    r"%(?:0[9ad]|20|c2%a[0d]|e1%a0%8e|e2%80%8[0-f]|e2%80%a[89a-f]|e2%81%9f|e2%81%a[0-9a-f]|e3%80%80|ef%bb%bf)|\+"
)
_BETWEEN = rf"(?i:{_TAG}|{_REFERENCE}|{_PERCENT}|[\s{invisible.CLASS}])*+"
_OPEN = r"(?i:\{|%7b|&#0*+123(?![0-9]);?|&#x0*+7b(?![0-9a-f]);?|&lbrace;|&lcub;)"
_CLOSE = r"(?i:\}|%7d|&#0*+125(?![0-9]);?|&#x0*+7d(?![0-9a-f]);?|&rbrace;|&rcub;)"
# Inside a name, and between two braces, only what has no width may stand.
_WIDTHLESS = r"\u00ad\u034f\u200b-\u200f\u2060-\u2064\ufeff"
_WIDTHLESS_REFERENCE = (
    r"&(?:shy|zwnj|zwj|lrm|rlm|zerowidthspace|nobreak);|&#0*+(?:173|847|820[3-7]|828[89]|829[0-2]|65279)(?![0-9]);?"
    r"|&#x0*+(?:ad|34f|200[b-f]|206[0-4]|feff)(?![0-9a-f]);?"
)
_INSIDE = rf"(?i:{_TAG}|{_WIDTHLESS_REFERENCE}|[{_WIDTHLESS}])*+"

_TAGS = re.compile(_TAG, re.IGNORECASE)
_REFERENCES = re.compile(_REFERENCE, re.IGNORECASE)
_PLAIN = re.compile(r"\{\{\s*\w+\s*\}\}")
_ENCODED = re.compile(r"%7b|&#0*+123(?![0-9])|&#x0*+7b(?![0-9a-f])|&lbrace;|&lcub;", re.IGNORECASE)


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
