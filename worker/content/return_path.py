"""Return paths: envelope senders that tell which message a delivery report is about (variable envelope return path).

    bounces+r<40 letters>@mail.example      a campaign's message to one row of "CampaignRecipient"
    bounces+n<40 letters>@mail.example      a notification of a tenant to one address

The letters are base32 without regard to case, because servers may change it: 16 octets of an id (the recipient's row,
or the tenant) and 9 octets of proof, an HMAC of the id with the tenant and the address that the message is for. So
only who has the key can name a recipient, a row that was given to another tenant is not found, and a report about an
address says nothing about the one that the row has by then. The local part is 64 characters at most (RFC 5321,
4.5.3.1.1), too few for the ids of recipient and tenant together.
"""

import base64
import hashlib
import hmac
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

PROOF_OCTETS = 9  # 72 bits: each guess costs a mail
TOKEN_LENGTH = 41
LONGEST_LOCAL_PART = 64 - 1 - TOKEN_LENGTH  # of BOUNCE_ADDRESS
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_LABEL = b"crm-worker return path"  # no other key that is derived from the same one is equal


class TokenKind(StrEnum):
    RECIPIENT = "r"
    NOTIFICATION = "n"


@dataclass(frozen=True, slots=True)
class ReturnPathToken:
    """What a return path says, not proved yet. ``id``: a recipient row's, or for a notification its tenant's."""

    kind: TokenKind
    id: str
    proof: bytes


class ReturnPaths:
    """Makes return paths, and checks those that come back."""

    def __init__(self, bounce_address: str, key_hex: str) -> None:
        """``bounce_address``: BOUNCE_ADDRESS, whose local part has at most LONGEST_LOCAL_PART characters."""
        self._address = bounce_address
        self._local_part, _, self._domain = bounce_address.rpartition("@")
        self._key = _derived(bytes.fromhex(key_hex))
        self._pattern = re.compile(
            rf"(?<![\w.]){re.escape(self._local_part)}\+([rn])([a-z2-7]{{40}})@{re.escape(self._domain)}(?![\w.-]*\w)",
            re.IGNORECASE | re.ASCII,
        )

    def of_recipient(self, tenant_id: str, recipient_id: str, address: str) -> str:
        """The envelope sender of a campaign's message; BOUNCE_ADDRESS itself where the id is not a UUID."""
        octets = _octets(recipient_id)
        return self._made(TokenKind.RECIPIENT, octets, tenant_id, address) if octets else self._address

    def of_notification(self, tenant_id: str, address: str) -> str:
        """The envelope sender of a notification of a tenant; BOUNCE_ADDRESS itself where its id is not a UUID."""
        octets = _octets(tenant_id)
        return self._made(TokenKind.NOTIFICATION, octets, tenant_id, address) if octets else self._address

    def found_in(self, text: str) -> Iterator[ReturnPathToken]:
        """The tokens of all return paths in a text."""
        for kind, letters in self._pattern.findall(text):
            octets = base64.b32decode(letters.upper())
            yield ReturnPathToken(TokenKind(kind.lower()), str(uuid.UUID(bytes=octets[:16])), octets[16:])

    def is_proved(self, token: ReturnPathToken, tenant_id: str, address: str) -> bool:
        """Whether this worker made the token, for a message of this tenant to this address."""
        octets = uuid.UUID(token.id).bytes
        return hmac.compare_digest(token.proof, self._proof(token.kind, octets, tenant_id, address))

    def _made(self, kind: TokenKind, octets: bytes, tenant_id: str, address: str) -> str:
        letters = base64.b32encode(octets + self._proof(kind, octets, tenant_id, address)).decode("ascii").lower()
        return f"{self._local_part}+{kind}{letters}@{self._domain}"

    def _proof(self, kind: TokenKind, octets: bytes, tenant_id: str, address: str) -> bytes:
        said = f"{kind}\0{tenant_id}\0{address.lower()}\0".encode() + octets  # none of them contains a NUL
        return hmac.digest(self._key, said, "sha256")[:PROOF_OCTETS]


def _octets(row_id: str) -> bytes | None:
    """The 16 octets of a UUID in its usual spelling, from which it can be read back."""
    return bytes.fromhex(row_id.replace("-", "")) if _UUID.fullmatch(row_id) else None


def _derived(key: bytes) -> bytes:
    """HKDF with SHA-256 (RFC 5869), by hand: the library for it costs an idle process several megabytes."""
    extracted = hmac.digest(bytes(hashlib.sha256().digest_size), key, "sha256")
    return hmac.digest(extracted, _LABEL + b"\x01", "sha256")
