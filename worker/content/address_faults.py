"""The enhanced status codes by which mail servers say that an address, or its mailbox, is at fault.

Replies and delivery reports have the same ones (RFC 3463; RFC 5248 has their registry; 5.1.10, and 5.4.1 with
"Recipient address rejected", are Microsoft's). docs/deliverability.md has the table for operators.
"""

import re
from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum
from types import MappingProxyType


class AddressFault(StrEnum):
    NO_ADDRESS = "no such address"
    DISABLED = "mailbox out of use"
    FULL = "mailbox full"


DISABLED_FOR = timedelta(days=30)  # a mailbox that is out of use may come back

# Subject and detail of a code 5.x.x
_FAULTS: Mapping[str, AddressFault] = MappingProxyType(
    {
        **dict.fromkeys(("1.1", "1.2", "1.3", "1.6", "1.10"), AddressFault.NO_ADDRESS),
        "2.1": AddressFault.DISABLED,
        "2.2": AddressFault.FULL,
    }
)
_REJECTED_ADDRESS = re.compile(r"recipient address rejected", re.IGNORECASE)


def address_fault(code: str, text: str) -> AddressFault | None:
    """What a refusal for good says about the address; None: nothing. ``code``: subject and detail, such as '1.1'."""
    if code == "4.1" and _REJECTED_ADDRESS.search(text):
        return AddressFault.NO_ADDRESS
    return _FAULTS.get(code)
