"""Text and JSON from servers, made safe to use in log lines, error messages and database columns.

A reply is not under our control: its text may be long, contain control characters or escape sequences, and repeat
what was sent, even a password or a token (Meta does so: "Malformed access token ..."); its JSON may have any shape.
"""

import re
from collections.abc import Iterable
from typing import Any

from worker.content.one_line import one_line

_WHOLE_NUMBER = re.compile(r"[0-9]{1,18}")

LONGEST_TEXT = 300
LONGEST_ID = 255
_NOT_IN_IDS = re.compile(r"[^!-~]+")


def safe_text(reply: str | bytes, secrets: Iterable[str] = ()) -> str:
    """One line of at most 300 printable characters; each of ``secrets`` is replaced by ``***``.

    Secrets are replaced before the text is cut, so that no part of one stays at the end.
    """
    text = reply.decode("utf-8", "replace") if isinstance(reply, bytes) else reply
    for secret in secrets:
        if secret:
            text = text.replace(secret, "***")
    return one_line(text, LONGEST_TEXT)


def id_at(value: Any, *path: str | int) -> str:
    """The identifier at a path in JSON: printable ASCII without spaces, at most 255 characters; '' if there is none.

    Other characters are left out: NUL and lone surrogates fit in no column, and no identifier has them.
    """
    return _NOT_IN_IDS.sub("", text_at(value, *path)[: 4 * LONGEST_ID])[:LONGEST_ID]


def text_at(value: Any, *path: str | int) -> str:
    """The string at a path of keys and indexes in JSON; '' if there is none."""
    found = _value_at(value, path)
    return found if isinstance(found, str) else ""


def number_at(value: Any, *path: str | int) -> int | None:
    """The whole number at a path of keys and indexes in JSON; None if there is none."""
    found = _value_at(value, path)
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def code_at(value: Any, *path: str | int) -> int | None:
    """The whole number at a path of keys and indexes in JSON, also as a string or a float; None if there is none."""
    found = _value_at(value, path)
    if isinstance(found, str) and _WHOLE_NUMBER.fullmatch(found):
        return int(found)
    if isinstance(found, float) and found.is_integer():
        return int(found)
    return number_at(value, *path)


def list_at(value: Any, *path: str | int) -> list[Any]:
    """The list at a path of keys and indexes in JSON; [] if there is none."""
    found = _value_at(value, path)
    return found if isinstance(found, list) else []


def _value_at(value: Any, path: Iterable[str | int]) -> Any:
    for step in path:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return None
    return value
