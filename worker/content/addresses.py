"""E-mail addresses: which ones mail can be sent to, in the form SMTP without SMTPUTF8 carries.

worker.address in the database finds double addresses. It gives ``parse_address(raw).lower()`` for every ``raw`` that
is an address (tests/postgres/test_address_agreement.py), so what is one address there is one here.
"""

import hashlib
import re
from functools import lru_cache

import idna

from worker.content import invisible_characters as invisible

LONGEST_WRITTEN = 1000  # characters, with what is dropped; what is longer is refused before it is looked at
ADDRESS_LIMIT = 254  # octets, RFC 5321 4.5.3.1.3 less the angle brackets
LOCAL_PART_LIMIT = 64  # octets, RFC 5321 4.5.3.1.1

_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_LOCAL_PART = re.compile(rf"{_ATOM}(?:\.{_ATOM})*")
# The last label holds a letter: numbers alone would be an IP address.
_DOMAIN = re.compile(rf"(?:{_LABEL}\.)+(?=[0-9-]*[A-Za-z]){_LABEL}")
_ADDRESS = re.compile(rf"{_LOCAL_PART.pattern}@{_DOMAIN.pattern}")
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


@lru_cache(maxsize=256)  # a message needs its sender's and its recipient's several times
def parse_address(raw: str) -> str:
    """The bare ASCII address that ``raw`` is: no invisible characters around it, an international domain in punycode.

    The local part is a dot-atom (RFC 5321 4.1.2), the domain has at least two labels; quoted local parts,
    address literals and display names are refused. Raises ValueError with a reason fit for a user.
    """
    if len(raw) > LONGEST_WRITTEN:
        raise ValueError(f"not an e-mail address: {raw[:80]!r} (longer than {LONGEST_WRITTEN} characters)")
    address = raw
    if not (len(raw) <= LOCAL_PART_LIMIT and _ADDRESS.fullmatch(raw)):
        address = invisible.trimmed(raw)
        local_part, at_sign, domain = address.rpartition("@")
        address = f"{local_part}@{_ascii_domain(domain)}"
        if reason := _fault(local_part, at_sign, address):
            raise ValueError(f"not an e-mail address: {raw[:80]!r} ({reason})")
    return address


def _ascii_domain(domain: str) -> str:
    """``domain`` in ASCII; '' when it has no form that DNS could look up.

    Mapped by UTS 46, non-transitional, then each label by IDNA 2008 (RFC 5891): ``straße`` is not ``strasse``. A
    label that is in ASCII already is looked up as it is, whatever it stands for (RFC 5891 5.3).
    """
    if not domain.isascii():
        try:
            labels = idna.uts46_remap(domain, std3_rules=False).split(".")
            domain = ".".join(label if label.isascii() else idna.alabel(label).decode("ascii") for label in labels)
        except idna.IDNAError:
            return ""
    return domain if _DOMAIN.fullmatch(domain) else ""


def _fault(local_part: str, at_sign: str, address: str) -> str | None:
    if not at_sign:
        return "it has no @"
    if "@" in local_part:
        return "it has more than one @"
    if not local_part.isascii():
        return "only plain Latin letters can stand before the @"
    if not _LOCAL_PART.fullmatch(local_part):
        return "what stands before the @ is empty, or holds a space, a misplaced dot or a forbidden character"
    if address.endswith("@"):
        return "what stands after the @ is not a domain"
    if len(local_part) > LOCAL_PART_LIMIT or len(address) > ADDRESS_LIMIT:
        return f"longer than {LOCAL_PART_LIMIT} characters before the @ or {ADDRESS_LIMIT} in all"
    return None


def message_id_for(recipient_id: str, from_email: str) -> str:
    """The Message-ID (RFC 5322 3.6.4, with its angle brackets) of the one message to a recipient row.

    The same on every attempt, so that a mailbox can be asked whether it got an earlier one. Its right side is
    the domain of ``from_email``. Raises ValueError when that is not an address.
    """
    domain = parse_address(from_email).rpartition("@")[2].lower()
    if _ID.fullmatch(recipient_id):
        return f"<{recipient_id}@{domain}>"
    return f"<{hashlib.sha256(recipient_id.encode()).hexdigest()[:40]}@{domain}>"
