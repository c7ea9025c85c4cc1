"""Reads JSON of the database, also where Python's parser gives up.

A number with thousands of digits, or a thousand nested levels, must not make the whole statement fail.
"""

import json
import re
from typing import Any

JSON_LEVELS = 100  # of an object in whose parts Python's parser gives up
UNREADABLE = "JSON that cannot be parsed"
_JSON_BRACKET = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]')  # or a string, which may have brackets in it


class UnreadableJson(str):
    """Takes the place of a JSON value that Python cannot parse; it has the wrong type where an object is expected."""

    __slots__ = ()


class UnreadablePart(tuple[str]):
    """Takes the place of what Python cannot parse inside an object: true, and of a type that JSON never has."""

    __slots__ = ()


def parse_json(raw: str) -> Any:
    """The value, UnreadableJson, or an object with UnreadablePart in it.

    The other parts of such an object (a tenant's settings) stay what they are.
    """
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        if not raw.lstrip().startswith("{"):
            return UnreadableJson(UNREADABLE)
    # PostgreSQL's JSON has no NaN: so it can stand for the parts that were left out
    return json.loads(
        _without_deep_parts(raw), parse_int=_whole_number, parse_constant=lambda _: UnreadablePart([UNREADABLE])
    )


def _whole_number(digits: str) -> int | UnreadablePart:
    try:
        return int(digits)
    except ValueError:  # more digits than Python converts
        return UnreadablePart([UNREADABLE])


def _without_deep_parts(raw: str) -> str:
    """The JSON text with NaN for each list and object that is more than JSON_LEVELS deep."""
    kept: list[str] = []
    depth = copied = 0
    for found in _JSON_BRACKET.finditer(raw):
        bracket = found[0]
        if bracket in ("[", "{"):
            depth += 1
            if depth == JSON_LEVELS + 1:
                kept += raw[copied : found.start()], "NaN"
        elif bracket in ("]", "}"):
            if depth == JSON_LEVELS + 1:
                copied = found.end()
            depth -= 1
    return "".join(kept) + raw[copied:]
