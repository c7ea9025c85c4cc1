"""What an SMTP server's refusal means: whose fault it is, and whether it is worth another try.

A reply's code says whether the refusal is for good (5xx) or for now (4xx); the enhanced status code behind it
(RFC 3463, "5.1.1"), where there is one, says what is refused. Some servers answer for the recipient only after the
content, and some refuse a whole account or its sender with the codes of a recipient. docs/deliverability.md has the
table for operators.
"""

import math
import re
from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from worker.content.address_faults import DISABLED_FOR, AddressFault, address_fault
from worker.errors import (
    AccountRejected,
    CampaignRejected,
    RecipientDeferred,
    RecipientRefused,
    RetryLater,
    SendError,
)

SERVICE_NOT_AVAILABLE = 421  # RFC 5321, 3.8: the server closes the connection
# SMTP names no pause. This one is the same each time, so that one campaign that is deferred for a reason of its own
# holds up the others no longer, while its own pauses double.
ACCOUNT_SECONDS = 15.0


class Step(StrEnum):
    """What the refused command named."""

    SENDER = "sender"
    RECIPIENT = "recipient"
    CONTENT = "content"


class Fault(StrEnum):
    """Whose fault a refusal for good is, if it is not the address's."""

    RECIPIENT = "recipient"  # or a sender's fault that is said of a recipient: many in a row will tell
    SENDER = "sender"
    ACCOUNT = "account"


# Subject and detail of the enhanced code of a reply 5xx to RCPT TO or to the content (RFC 3463, 3; RFC 7372, 3;
# RFC 7505, 4; 5.7.515 is Microsoft's) -> whose fault it is. content/address_faults.py has those of an address.
PERMANENT: Mapping[str, Fault] = MappingProxyType(
    {
        "1.7": Fault.SENDER,
        "1.8": Fault.SENDER,
        "3.4": Fault.SENDER,
        "4.5": Fault.ACCOUNT,  # it may send no more today
        **{f"7.{detail}": Fault.SENDER for detail in range(25, 31)},
        "7.515": Fault.SENDER,
    }
)
SUPPRESS_SECONDS: Mapping[AddressFault, float] = MappingProxyType(
    {AddressFault.NO_ADDRESS: math.inf, AddressFault.DISABLED: DISABLED_FOR.total_seconds()}
)

_FROM = "correct the sender's address: mail.smtp.fromEmail in the tenant's settings, else the user's own"
_AUTHENTICATION = (
    "check the DNS records of the sender's domain: SPF must name the mail server, DKIM must sign for the domain of "
    "From, and DMARC must find one of them aligned (docs/deliverability.md)"
)
# Subject and detail -> what an operator can do
ADVICE: Mapping[str, str] = MappingProxyType(
    {
        "1.7": _FROM,
        "1.8": _FROM,
        "3.4": "the message is larger than the server accepts: make it smaller",
        "7.25": "the mail server's address needs a PTR record whose name leads back to it",
        "7.27": f"{_AUTHENTICATION}; the domain of From must not have a null MX record",
        "7.28": f"the provider saw too much unwanted mail: send to people who asked for it; {_AUTHENTICATION}",
    }
)

_ADVICE_BY_STEP: Mapping[Step, str] = MappingProxyType(
    {
        Step.SENDER: f"{_FROM}; {_AUTHENTICATION}",
        Step.RECIPIENT: _FROM,
        Step.CONTENT: f"change what the server objects to in the content; {_AUTHENTICATION}",
    }
)

# RFC 4954, 6: a login is needed, or is not good enough. Servers may say so only when a recipient is named.
_LOGIN_NEEDED = frozenset({530, 534, 535, 538})
_ENHANCED = re.compile(r"(?<![\d.])([245])\.(\d{1,3})\.(\d{1,3})(?!\.?\d)")
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
# What is said for now to a client that may not send here, whoever the recipient is. Postfix answers 454 4.7.1 to one
# that may not relay.
_OF_CLIENT = re.compile(
    r"relay|client host|helo command|host ?name|sender address rejected|server busy|\bSPF\b|\bDKIM\b|\bDMARC\b",
    re.IGNORECASE,
)
# What is said for now of all that a client or its account sends, whoever it is from.
_TOO_FAST = re.compile(
    r"too (?:much|fast)|too many (?:messages|mails?|e-?mails?|recipients|requests|errors)|\brate\b|throttl|quota"
    r"|(?:send|sending|message|mail|hourly|daily) limit|server busy",
    re.IGNORECASE,
)
_OF_SENDER = re.compile(r"sender|\bfrom\b.{0,60}@", re.IGNORECASE | re.DOTALL)
_POLICY_DETAILS = {"", "0", "1"}  # of subject 7: it may be about the recipient, such as greylisting
_GREYLISTED = re.compile(r"gr[ea]y.?list", re.IGNORECASE)


def refusal(step: Step, code: int, text: str, reason: str) -> SendError:
    """The error for a reply of 4xx or 5xx, or an invalid one. ``reason`` is the text for the operator."""
    subject, detail = _enhanced_code(code, text)
    said = f"{code} {code // 100}.{subject}.{detail}" if subject else str(code)
    if code in _LOGIN_NEEDED:
        return AccountRejected(f"{step} refused: {reason}", code=said)
    if code // 100 != 5:
        if _defers_recipient(step, code, subject, detail, text):
            return RecipientDeferred(reason, code=said)
        return RetryLater(reason, code=said, account_seconds=account_pause(code, text))
    fault = _fault(step, subject, detail, text)
    if fault is Fault.ACCOUNT:
        return AccountRejected(f"{step} refused: {reason}", code=said)
    if fault is Fault.SENDER:
        advice = ADVICE.get(f"{subject}.{detail}", _AUTHENTICATION if subject == "7" else _ADVICE_BY_STEP[step])
        return CampaignRejected(f"{step} refused: {reason}", code=said, advice=advice)
    if fault is AddressFault.FULL:
        return RecipientRefused(reason, code=said, mailbox_full=True)
    if isinstance(fault, AddressFault):
        return RecipientRefused(reason, code=said, address_fault=True, suppress_seconds=SUPPRESS_SECONDS[fault])
    return RecipientRefused(reason, code=said)


def is_one_too_many(code: int, text: str) -> bool:
    """Whether a connection is refused because there are too many: 421, or another temporary reply that says so."""
    return code == SERVICE_NOT_AVAILABLE or limits_connections(code, text)


def limits_connections(code: int, text: str) -> bool:
    """Whether a temporary reply to any command says that there are too many connections."""
    return code // 100 == 4 and _CONNECTIONS.search(text) is not None


def account_pause(code: int, text: str) -> float | None:
    """For how many seconds nothing should be sent through the account after this temporary reply.

    None: it may be about one message or its sender, or about connections, whose number is limited instead.
    """
    if limits_connections(code, text) or _OF_SENDER.search(text):
        return None
    return ACCOUNT_SECONDS if code == SERVICE_NOT_AVAILABLE or _TOO_FAST.search(text) else None


def _enhanced_code(code: int, text: str) -> tuple[str, str]:
    """Subject and detail of the first enhanced code that agrees with the reply's code; '' if there is none."""
    found = (each.groups() for each in _ENHANCED.finditer(text))
    return next(((subject, detail) for kind, subject, detail in found if int(kind) == code // 100), ("", ""))


def _fault(step: Step, subject: str, detail: str, text: str) -> Fault | AddressFault:
    """Whose fault a reply 5xx is."""
    code = f"{subject}.{detail}"
    known = PERMANENT.get(code)
    if known is Fault.ACCOUNT:
        return known
    if step is Step.SENDER:
        return Fault.SENDER
    if found := known or address_fault(code, text):
        return found
    if step is Step.RECIPIENT or subject in {"1", "2"}:
        return Fault.RECIPIENT
    return Fault.RECIPIENT if not subject and _OF_RECIPIENT.search(text) else Fault.SENDER


def _defers_recipient(step: Step, code: int, subject: str, detail: str, text: str) -> bool:
    """Whether a reply 4xx, or an invalid one, says nothing about other recipients."""
    if step is Step.SENDER or code == SERVICE_NOT_AVAILABLE:
        return False
    if subject == "1":
        return detail not in _SENDER_DETAILS
    if subject == "2" or _GREYLISTED.search(text):
        return True
    if step is Step.CONTENT:
        return not subject and _OF_RECIPIENT.search(text) is not None
    if subject in {"3", "4"}:  # the server's own system, or its network
        return False
    if subject == "7" and detail not in _POLICY_DETAILS:
        return False
    return not (_OF_ACCOUNT.search(text) or _OF_CLIENT.search(text))
