"""Transfer encodings of bodies: quoted-printable or base64 (RFC 2045 6.7 and 6.8), compiled once from a template.

Quoted-printable text stays readable, and its fixed segments are encoded only once: a slot's value stands between two
soft line breaks, so the encoding of a segment does not depend on where its line begins. Where most octets are not
ASCII, quoted-printable would make the message three times as long, and the filled text is encoded as base64.
"""

import re
from binascii import b2a_base64
from collections.abc import Callable, Mapping

from worker.content.placeholders import Slot, Template

Fill = Callable[[Mapping[str, str]], bytes]

_LINE_LIMIT = 76  # characters, the soft line break's "=" included
_ROOM = _LINE_LIMIT - 3  # the first character of a line may grow by two, and "=" ends the line
_BASE64_OCTETS = 57  # make 76 characters

_SOFT_BREAK = b"=\r\n"
_LINE_END = re.compile(r"\r\n|\r|\n")
_OCTETS = [chr(octet) if 32 <= octet < 127 and octet != 61 else f"={octet:02X}" for octet in range(256)]
_OCTETS[9] = "\t"
# Short values like this need no encoding: they have no "=", and nothing that may not begin or end a line.
_WORD = re.compile(r"[A-Za-z0-9_-]+")  # such as the token of an unsubscribe link
_PLAIN = re.compile(r"(?!From )[A-Za-z0-9@+_-](?:[A-Za-z0-9 @.,;:&#/'+_-]{0,70}[A-Za-z0-9@.;+_-])?")


def compiled(template: Template, as_html: bool) -> tuple[str, Fill]:
    """The Content-Transfer-Encoding for a template, and a function that makes the encoded body from values.

    Bodies have CRLF line ends, whatever the template or a value has, and no line longer than 76 characters.
    """
    literals = "".join(segment for segment in template.segments if isinstance(segment, str))
    octets = len(literals.encode("utf-8"))
    if len(quoted_printable(literals)) > (octets + 2) // 3 * 4 * 78 // 76 + 78:
        return "base64", _base64_fill(template, as_html)
    return "quoted-printable", _quoted_printable_fill(template, as_html)


def quoted_printable(text: str) -> bytes:
    """``text`` in quoted-printable. No line begins with a dot or "From ", which some mail servers change."""
    return "\r\n".join([_encoded_line(line) for line in _LINE_END.split(text)]).encode("ascii")


def _encoded_line(line: str) -> str:
    encoded = "".join([_OCTETS[octet] for octet in line.encode("utf-8")])
    if encoded[-1:] in {" ", "\t"}:
        encoded = f"{encoded[:-1]}={ord(encoded[-1]):02X}"
    pieces, start = [], 0
    while len(encoded) - start > _ROOM:
        end = start + _ROOM
        if "=" in encoded[end - 2 : end]:  # do not cut inside "=E0"
            end = encoded.rindex("=", start, end)
        pieces.append(encoded[start:end])
        start = end
    pieces.append(encoded[start:])
    return "=\r\n".join([_without_special_start(piece) for piece in pieces])


def _without_special_start(piece: str) -> str:
    if piece.startswith((".", "From ")):
        return f"={ord(piece[0]):02X}{piece[1:]}"
    return piece


def _encoded_value(value: str) -> bytes:
    if _PLAIN.fullmatch(value):
        return value.encode("ascii")
    if _WORD.fullmatch(value):
        return _SOFT_BREAK.join([value[i : i + _ROOM].encode("ascii") for i in range(0, len(value), _ROOM)])
    return quoted_printable(value)


def _quoted_printable_fill(template: Template, as_html: bool) -> Fill:
    compiled_pieces: list[bytes] = []
    slots: list[tuple[int, Slot]] = []
    for segment in template.segments:
        if isinstance(segment, Slot):
            slots.append((len(compiled_pieces) + 1, segment))
            compiled_pieces += [_SOFT_BREAK, b"", _SOFT_BREAK]
        else:
            compiled_pieces.append(quoted_printable(segment))

    def fill(values: Mapping[str, str]) -> bytes:
        pieces = compiled_pieces.copy()
        for index, slot in slots:
            value = values.get(slot.name, "")
            pieces[index] = _encoded_value(slot.html_value(value) if as_html else slot.text_value(value))
        return b"".join(pieces)

    return fill


def _base64_fill(template: Template, as_html: bool) -> Fill:
    filled = template.fill_html if as_html else template.fill

    def fill(values: Mapping[str, str]) -> bytes:
        data = _LINE_END.sub("\r\n", filled(values)).encode("utf-8")
        lines = [b2a_base64(data[i : i + _BASE64_OCTETS], newline=False) for i in range(0, len(data), _BASE64_OCTETS)]
        return b"\r\n".join(lines)

    return fill
