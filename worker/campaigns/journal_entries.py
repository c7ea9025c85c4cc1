"""The lines of a journal: what became of one message, as JSON that older and newer versions of the worker read."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any

import orjson

from worker.messages import Accepted
from worker.sending.outcomes import FailureKind, Outcome, OutcomeKind

BYTES_FOR_A_RECIPIENT = 2048
LONGEST_KEY = 200  # bytes
LONGEST_ENTRY = BYTES_FOR_A_RECIPIENT - LONGEST_KEY - 10  # bytes; the entry before it says that the message started
LONGEST_REASON = 300  # characters
LONGEST_ID = 255  # characters of a provider's id
LONGEST_CODE = 20  # characters

# How the file names the outcomes, in words of the first version. Older and newer versions of the worker read them:
# they must not change.
KIND_CODES: Mapping[OutcomeKind, str] = MappingProxyType(
    {
        OutcomeKind.ACCEPTED: "accepted",
        OutcomeKind.REFUSED: "refused",
        OutcomeKind.OPTED_OUT: "opted out",
        OutcomeKind.DEFERRED: "put off",
        OutcomeKind.RECIPIENT_DEFERRED: "put off alone",
        OutcomeKind.UNCONFIRMED: "unconfirmed",
        OutcomeKind.REJECTED: "untouched",  # read as NOT_SENT: the recipient is released either way
        OutcomeKind.NOT_SENT: "untouched",
    }
)
_KINDS = {code: kind for kind, code in KIND_CODES.items() if kind is not OutcomeKind.REJECTED}


_encoded = json.JSONEncoder(
    ensure_ascii=False
).encode  # one for all: to make one for each line takes as long as its use


def key_of(recipient_id: str) -> str:
    """The recipient's id, or what stands for one that would take the room of others."""
    if recipient_id.isascii() and recipient_id.isprintable() and 2 * len(recipient_id) + 2 <= LONGEST_KEY:
        return recipient_id
    encoded = json.dumps(recipient_id, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return recipient_id if len(encoded) <= LONGEST_KEY else f"sha256:{hashlib.sha256(encoded).hexdigest()}"


def started_line(recipient_id: str) -> bytes:
    """Says that the message to this recipient may be on the wire."""
    return _line(key_of(recipient_id))


def ended_line(recipient_id: str, outcome: Outcome) -> bytes:
    """Says what the provider answered.

    Never longer than the room of a recipient: what the provider said is left out as far as necessary.
    """
    key = key_of(recipient_id)
    kind, at, reason, delay_seconds, ids = _as_entry(outcome)
    more = _more_of(outcome)  # after the entry, where older versions do not look
    line = _line(key, [kind, at, reason, delay_seconds, ids], *more)
    if len(line) <= LONGEST_ENTRY:
        return line
    shorter = (
        (reason and reason[:50], ids),
        (None, ids and [ids[0], ids[1], None]),
        (None, ids and [ids[0], None, None]),
        (None, ids and [None, None, None]),
    )
    lines = (_line(key, [kind, at, a_reason, delay_seconds, some_ids], *more) for a_reason, some_ids in shorter)
    return next(line for line in lines if len(line) <= LONGEST_ENTRY)


def read_lines(lines: bytes, recipient_ids: Iterable[str] = ()) -> dict[str, Outcome | None]:
    """The outcome of each recipient that the lines name, None where no answer is known.

    ``recipient_ids``: of the batch; very long ones are not in the lines as they are.
    """
    long_ids = {key_of(each): each for each in recipient_ids}
    entries: dict[str, Outcome | None] = {}
    for line in lines.split(b"\n"):
        # what a writer was storing when it died is no line; the one that says 'started' stands before it
        if entry := read_line(line):
            entries[long_ids.get(entry[0], entry[0])] = entry[1]
    return entries


def read_line(line: bytes) -> tuple[str, Outcome | None] | None:
    """The key of a recipient and the outcome, None where no answer is known; None for what is not a whole line."""
    try:
        key, *outcome = json.loads(line.strip(b"\0"))
    except ValueError:
        return None
    return key, _from_entry(*outcome) if outcome else None


def _line(*record: Any) -> bytes:
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)


def _as_entry(outcome: Outcome) -> list[Any]:
    reason = outcome.reason and outcome.reason[:LONGEST_REASON]
    ids = outcome.accepted
    stored = ids and [
        each and each[:LONGEST_ID] for each in (ids.message_id, ids.gmail_message_id, ids.gmail_thread_id)
    ]
    return [KIND_CODES[outcome.kind], outcome.at, reason, outcome.delay_seconds, stored]


def _more_of(outcome: Outcome) -> list[list[Any]]:
    """What later versions added: the provider's code, what a refusal is for, how long nothing may be sent, and for a
    deferral how often it is tried and by what its delay grows."""
    limits = [[outcome.max_attempts, outcome.delay_base]] if outcome.max_attempts or outcome.delay_base else []
    if not (outcome.code or outcome.fault or outcome.suppress_seconds or limits):
        return []
    suppress_seconds = str(outcome.suppress_seconds)  # JSON has no infinity
    return [[outcome.code[:LONGEST_CODE], outcome.fault, suppress_seconds, *limits]]


def _from_entry(entry: list[Any], more: Sequence[Any] = (), *_: Any) -> Outcome | None:
    code, at, reason, delay_seconds, ids = entry
    kind = _KINDS.get(code)
    if kind is None:  # of a newer version
        return None
    outcome = Outcome(kind, datetime.fromisoformat(at), reason, delay_seconds, Accepted(*ids) if ids else None)
    if not more:
        return outcome
    said, fault, suppress_seconds = more[:3]
    known = FailureKind(fault) if fault in set(FailureKind) else None
    outcome = outcome._replace(code=said, fault=known, suppress_seconds=float(suppress_seconds))
    match more[3:]:
        case [[max_attempts, delay_base, *_], *_]:
            return outcome._replace(max_attempts=max_attempts, delay_base=delay_base)
    return outcome
