"""Header fields that differ for each recipient, in ASCII and folded; a value cannot add a field of its own.

Written by hand because the standard library's email package takes half a millisecond for the fields of one message;
the tests read every result back with that package.
"""

import re
from binascii import b2a_base64

LINE_LIMIT = 78  # characters, RFC 5322 2.1.1
ENCODED_LINE_LIMIT = 76  # of a line that holds an encoded word, RFC 2047 2

_WORD_OVERHEAD = len("=?utf-8?b??=")
_WORD_LIMIT = 75  # RFC 2047 2
_PHRASE = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?: [A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
# Control characters (C0, DEL, C1) and the line and paragraph separators, which some programs read as line ends.
_CONTROLS = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029], " ")


def cleaned(value: str) -> str:
    """``value`` with a space for each control character, and without spaces at its ends."""
    if not value.isprintable():
        value = value.translate(_CONTROLS)
    return value.strip(" ")


def unstructured(field: str, value: str) -> str:
    """A field of free text (``Subject``), folded, with its CRLF; text that is not ASCII becomes encoded words."""
    value = cleaned(value)
    if value.isascii() and "=?" not in value:
        line = f"{field}: {value}\r\n"
        if len(line) <= LINE_LIMIT + 2:
            return line
        if folded := _folded(f"{field}:", value):
            return folded
    return f"{field}: {_encoded_words(value, len(field) + 2)}\r\n"


def mailbox(field: str, name: str, address: str) -> str:
    """A field with one address (``To``), folded, with its CRLF. ``name`` may be ''; ``address`` must be valid."""
    name = cleaned(name)
    if not name:
        return f"{field}: {address}\r\n"
    if not name.isascii() or "=?" in name or len(name) > LINE_LIMIT // 2:
        phrase = _encoded_words(name, len(field) + 2)
    elif _PHRASE.fullmatch(name):
        phrase = name
    else:
        escaped = name.replace("\\", "\\\\").replace('"', '\\"')
        phrase = f'"{escaped}"'
    head = f"{field}: {phrase}"
    last_line = len(head) - head.rfind("\n") - 1
    fold = " " if last_line + len(address) + 3 <= ENCODED_LINE_LIMIT else "\r\n "
    return f"{head}{fold}<{address}>\r\n"


def _folded(first: str, value: str) -> str | None:
    """ASCII text folded at its spaces; None if that would lose a space or leave a line too long."""
    words = value.split(" ")
    if not all(0 < len(word) <= ENCODED_LINE_LIMIT - len(first) for word in words):
        return None
    lines, line = [], first
    for word in words:
        if len(line) + 1 + len(word) > LINE_LIMIT:
            lines.append(line)
            line = ""
        line += f" {word}"
    return "\r\n".join([*lines, line, ""])


def _encoded_words(value: str, indent: int) -> str:
    """``value`` as RFC 2047 encoded words, one on each line; no word ends inside a character."""
    data = value.encode("utf-8", "replace")
    words, start = [], 0
    # Four characters of base64 encode three octets.
    room = (min(ENCODED_LINE_LIMIT - indent, _WORD_LIMIT) - _WORD_OVERHEAD) // 4 * 3
    while start < len(data):
        end = start + room
        while end < len(data) and data[end] & 0xC0 == 0x80:
            end -= 1
        words.append(f"=?utf-8?b?{b2a_base64(data[start:end], newline=False).decode('ascii')}?=")
        start, room = end, (_WORD_LIMIT - _WORD_OVERHEAD) // 4 * 3
    return "\r\n ".join(words)
