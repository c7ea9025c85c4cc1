"""What an SMTP server's refusal means: whose fault it is, and whether it is worth another try.

A reply's code says whether the refusal is for good (5xx) or for now (4xx); the enhanced status code behind it
(RFC 3463, "5.1.1"), where there is one, says what is refused. Some servers answer for the recipient only after the
content, and some refuse a whole account with the codes of a recipient.
"""

import re
from enum import StrEnum

from worker.errors import (
    AccountRejected,
    CampaignRejected,
    RecipientDeferred,
    RecipientRefused,
    RetryLater,
    SendError,
)

SERVICE_NOT_AVAILABLE = 421  # RFC 5321, 3.8: the server closes the connection
# RFC 4954, 6: a login is needed, or is not good enough. Servers may say so only when a recipient is named.
_LOGIN_NEEDED = frozenset({530, 534, 535, 538})
_ENHANCED = re.compile(r"(?<![\d.])([245])\.(\d{1,3})\.(\d{1,3})(?!\.?\d)")
_SENDING_QUOTA = ("4", "5")  # with 5xx: the account may send no more today
# RFC 3463: 1 is about addresses, 2 about mailboxes; of the former 7 and 8 are about the sender's
_SENDER_DETAILS = {"7", "8"}
_OF_ACCOUNT = re.compile(
    r"too many|too much|too fast|\brate|throttl|quota|limit|exceeded|connections?\b|blocked|black ?list|block ?list|"
    r"reputation",
    re.IGNORECASE,
)
# Of servers without enhanced codes that look at the recipient only after the content.
_OF_RECIPIENT = re.compile(
    r"\b(?:user|recipient|mailbox|mail box|inbox|addressee)\b.{0,60}?"
    r"\b(?:unknown|unavailable|full|disabled|inactive|not found|not exist|doesn't exist|over quota)\b"
    r"|\b(?:unknown|invalid|no such|nonexistent) (?:local )?(?:user|recipient|mailbox|address)\b",
    re.IGNORECASE | re.DOTALL,
)
_CONNECTIONS = re.compile(
    r"(?:too many|limit|maximum|exceed|concurrent|simultaneous)\b.{0,60}\b(?:connection|session)s?\b"
    r"|\b(?:connection|session)s?\b.{0,60}\b(?:limit|exceeded|maximum)",
    re.IGNORECASE | re.DOTALL,
)
_GREYLISTED = re.compile(r"gr[ea]y.?list", re.IGNORECASE)


class Step(StrEnum):
    """What the refused command named."""

    SENDER = "sender"
    RECIPIENT = "recipient"
    CONTENT = "content"


def refusal(step: Step, code: int, text: str, reason: str) -> SendError:
    """The error for a reply of 4xx or 5xx, or an invalid one. ``reason`` is the text for the operator."""
    enhanced = _enhanced_code(code, text)
    if code in _LOGIN_NEEDED or (code // 100 == 5 and enhanced == _SENDING_QUOTA):
        return AccountRejected(f"{step} refused: {reason}")
    concerns_recipient = _concerns_recipient(step, code, enhanced, text)
    if code // 100 == 5:
        if concerns_recipient:
            return RecipientRefused(reason)
        return CampaignRejected(f"{step} refused: {reason}")
    return RecipientDeferred(reason) if concerns_recipient else RetryLater(reason)


def is_one_too_many(code: int, text: str) -> bool:
    """Whether a connection is refused because there are too many: 421, or another temporary reply that says so."""
    return code == SERVICE_NOT_AVAILABLE or (code // 100 == 4 and _CONNECTIONS.search(text) is not None)


def _enhanced_code(code: int, text: str) -> tuple[str, str]:
    """Subject and detail of the first enhanced code that agrees with the reply's code; '' if there is none."""
    found = (each.groups() for each in _ENHANCED.finditer(text))
    return next(((subject, detail) for kind, subject, detail in found if int(kind) == code // 100), ("", ""))


def _concerns_recipient(step: Step, code: int, enhanced: tuple[str, str], text: str) -> bool:
    subject, detail = enhanced
    if step is Step.SENDER or code == SERVICE_NOT_AVAILABLE:
        return False
    if subject == "1":
        return detail not in _SENDER_DETAILS
    if subject == "2":
        return True
    if step is Step.CONTENT:
        return not subject and _OF_RECIPIENT.search(text) is not None
    if code // 100 == 5:
        return True  # to RCPT TO: whatever it is, others may be accepted
    if subject in {"3", "4"}:  # the server's own system, or its network
        return False
    return bool(_GREYLISTED.search(text)) or not _OF_ACCOUNT.search(text)
