"""Reads delivery reports (RFC 3464) and complaints (feedback reports in ARF, RFC 5965).

What arrives in a mailbox may have been written by anybody. So a report is taken apart by hand, at one level and with
a limit for each part: the standard library's parser of whole messages makes an object for each part, block and level,
however many there are. Its parser of header fields reads what is left.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesHeaderParser
from enum import StrEnum

from worker.content.one_line import one_line

LARGEST_REPORT = 262_144  # octets that are read of a message; what matters stands before the returned content
HEAD_OCTETS = 65_536
PART_OCTETS = 65_536
PARTS, BLOCKS, FIELDS = 12, 30, 40
FIELD_CHARACTERS = 2_000
WORDS = 300

_ENHANCED = re.compile(r"(?<![\d.])([245])\.(\d{1,3})\.(\d{1,3})(?![\d.]*\d)")
_ADDRESS = re.compile(r"[^\s<>@;,:\"]{1,64}@[A-Za-z0-9.-]{1,255}")
_BLANK_LINE = re.compile(rb"\n[ \t]*\n")
# Where a return path may stand: fields of the report itself, of the returned message, of a complaint
_ENVELOPE_FIELDS = ("Delivered-To", "X-Original-To", "Envelope-To", "X-Envelope-To", "To", "Return-Path")
_COMPLAINTS = {"abuse", "fraud", "opt-out"}


class ReportKind(StrEnum):
    FAILED = "failed"  # the message was not delivered, and will not be
    COMPLAINT = "complaint"  # somebody called the message spam
    OTHER = "other"  # delayed, delivered, "not spam": nothing follows from it


@dataclass(frozen=True, slots=True)
class Report:
    """What a report says. ``status``: the enhanced code (RFC 3463), '' if there is none; ``words``: on one line.

    ``envelopes``: the fields that may hold a return path. ``addresses``: those that it names as the recipient's.
    """

    kind: ReportKind
    status: str
    words: str
    envelopes: str
    addresses: tuple[str, ...]


def read_report(raw: bytes) -> Report | None:
    """The report in a message, of which the first LARGEST_REPORT octets are enough; None: it is none."""
    text = raw[:LARGEST_REPORT].replace(b"\r\n", b"\n")
    head, _, body = text.partition(b"\n\n")
    message = _fields(head[:HEAD_OCTETS])
    parts = {_type(part): part for part in reversed(list(_parts(message, body)))}  # the first one of each type
    returned = _returned(parts)
    if status := parts.get("message/delivery-status"):
        return _delivery_report(message, status, returned)
    if feedback := parts.get("message/feedback-report"):
        return _complaint(message, feedback, returned)
    return None


def _delivery_report(message: Message, part: Message, returned: Message) -> Report | None:
    blocks = [_fields(block) for block in _BLANK_LINE.split(_content(part).strip(), BLOCKS)[:BLOCKS]]
    about = [block for block in blocks if _field(block, "Action")]
    if not about:
        return None
    block = next((each for each in about if _action(each) == "failed"), about[0])
    diagnosis = _without_type(_field(block, "Diagnostic-Code"))
    status = _status(_field(block, "Status"), diagnosis)
    if not status:
        return None
    return Report(
        ReportKind.FAILED if _action(block) == "failed" else ReportKind.OTHER,
        status,
        one_line(diagnosis or _field(block, "Status"), WORDS),
        _envelopes(message, returned),
        _addresses(block, ("Original-Recipient", "Final-Recipient"), returned),
    )


def _complaint(message: Message, part: Message, returned: Message) -> Report | None:
    fields = _fields(_content(part).strip())
    feedback = _field(fields, "Feedback-Type").lower()
    if not feedback:
        return None
    agent = _field(fields, "User-Agent")
    return Report(
        ReportKind.COMPLAINT if feedback in _COMPLAINTS else ReportKind.OTHER,
        "",
        one_line(f"{feedback} complaint" + (f" by {agent}" if agent else ""), WORDS),
        "\n".join((_envelopes(message, returned), _field(fields, "Original-Mail-From"))),
        _addresses(fields, ("Original-Rcpt-To", "Removal-Recipient"), returned),
    )


def _status(field: str, diagnosis: str) -> str:
    """The enhanced code. The reply's own one where the report has only a class ('5.0.0' of Exim), if they agree."""
    (said, general), (replied, _) = _code(field), _code(diagnosis)
    return replied if replied and (not said or (general and replied[0] == said[0])) else said


def _code(text: str) -> tuple[str, bool]:
    """The first enhanced code in a text, and whether it says no more than its class."""
    found = _ENHANCED.search(text)
    if not found:
        return "", False
    code = f"{found[1]}.{int(found[2])}.{int(found[3])}"
    return code, code.endswith(".0.0")


def _parts(message: Message, body: bytes) -> Iterator[Message]:
    """The parts of a multipart message, with their fields, and their content as payload."""
    boundary = _boundary(message)
    if boundary:
        line = re.compile(rb"^--" + re.escape(boundary) + rb"(?:--)?[ \t]*$", re.MULTILINE)
        for part in line.split(body, PARTS)[1 : PARTS + 1]:
            yield _fields(part.lstrip(b"\n")[:PART_OCTETS])


def _boundary(message: Message) -> bytes:
    try:
        found = message.get_boundary("") if message.get_content_maintype() == "multipart" else ""
    except (ValueError, LookupError, TypeError, AttributeError):  # of the library, for parameters that are broken
        return b""
    return found.encode("ascii", "replace") if len(found) <= 200 else b""


def _fields(octets: bytes) -> Message:
    """The header fields at the beginning, and what follows as payload."""
    return BytesHeaderParser().parsebytes(octets)


def _type(part: Message) -> str:
    return part.get_content_type()


def _content(part: Message) -> bytes:
    """The decoded payload; as it is where it cannot be decoded."""
    try:
        payload = part.get_payload(decode=True)
    except (ValueError, LookupError, TypeError, AttributeError):  # of the library, for encodings that are broken
        return b""
    return payload if isinstance(payload, bytes) else b""


def _returned(parts: dict[str, Message]) -> Message:
    """The header of the message that the report is about."""
    for kind in ("message/rfc822", "text/rfc822-headers", "message/global", "message/global-headers"):
        if kind in parts:
            return _fields(_content(parts[kind]).lstrip(b"\n")[:HEAD_OCTETS])
    return Message()


def _field(fields: Message, name: str) -> str:
    """The first field of a name, unfolded; '' if there is none."""
    return next(_values(fields, name), "")


def _values(fields: Message, name: str) -> Iterator[str]:
    for value in fields.get_all(name, [])[:FIELDS]:
        yield one_line(value, FIELD_CHARACTERS)


def _action(block: Message) -> str:
    return _field(block, "Action").lower().split(";")[0].strip()


def _without_type(value: str) -> str:
    """'smtp; 550 5.1.1 ...' without its first word (RFC 3464, 2.3.6)."""
    return re.sub(r"^[A-Za-z0-9-]{1,30}\s*;\s*", "", value)


def _envelopes(message: Message, returned: Message) -> str:
    found = [value for name in _ENVELOPE_FIELDS for value in _values(message, name)]
    return "\n".join([*found, *_values(returned, "Return-Path")])


def _addresses(fields: Message, names: tuple[str, ...], returned: Message) -> tuple[str, ...]:
    said = [value for name in names for value in _values(fields, name)] + list(_values(returned, "To"))
    found = [address for value in said for address in _ADDRESS.findall(value.rpartition(";")[2])]
    return tuple(dict.fromkeys(found))[:FIELDS]
