"""The token of an unsubscribe link: who wants no more messages of which tenant, readable for the worker only.

AES-SIV (RFC 5297) encrypts it and proves that the worker made it. It takes no random number, so one key is good
for any number of messages, and a recipient has the same link in every attempt. All that is needed is in the token: it
does not expire, and it works when its campaign, its recipient or its tenant is deleted.
"""

import re
from binascii import a2b_base64, b2a_base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING
from uuid import UUID

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESSIV

_VERSION = b"\x01"  # the first byte of a token; another layout or cipher gets another one
_PURPOSE = b"crm-worker: tokens of unsubscribe links, version 1"
_KEY_BYTES = 64  # AES-256 in SIV mode has two keys
_CHANNELS = ("email", "whatsapp")  # a token has the position: add new ones at the end
_LONGEST_ID = 255  # bytes
_TOKENS_READY = 2000  # are kept, and those of one batch more
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TOKEN = re.compile(r"[A-Za-z0-9_-]{24,1500}")
_URL_SAFE = bytes.maketrans(b"+/", b"-_")  # RFC 4648 5
_STANDARD = bytes.maketrans(b"-_", b"+/")


@dataclass(frozen=True, slots=True)
class Subscription:
    """What a link ends: messages of a tenant, on one channel, to one address."""

    tenant_id: str
    channel: str  # email or whatsapp
    address: str  # of an e-mail in lower case; of a phone with plus sign and country code
    campaign_id: str  # whose message has the link


class UnsubscribeTokens:
    """Makes and reads tokens. Thread-safe."""

    def __init__(self, keys: Sequence[str]) -> None:
        """``keys``: 64 hex digits each. The first one makes tokens, all of them read; at least one."""
        self._keys = keys
        self._ready: dict[bytes, str] = {}

    @cached_property
    def _ciphers(self) -> "list[AESSIV]":
        """Made, and their library loaded, when they are needed first: an idle program does without."""
        from cryptography.hazmat.primitives.ciphers.aead import AESSIV
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        # derived: the key may be ENCRYPTION_KEY, which the CRM uses for something else
        derived = [
            HKDF(SHA256(), _KEY_BYTES, salt=None, info=_PURPOSE).derive(bytes.fromhex(key)) for key in self._keys
        ]
        return [AESSIV(key) for key in derived]

    def maker(self, tenant_id: str, channel: str, campaign_id: str) -> "TokenMaker":
        """Makes the tokens of one campaign. Raises ValueError for an id that is too long."""
        return TokenMaker(self, bytes([_CHANNELS.index(channel)]) + _packed(tenant_id) + _packed(campaign_id))

    def seal(self, data: bytes) -> str:
        """The token of ``data``."""
        return self._ready.get(data) or self._seal(data)

    def make_ready(self, many: Iterable[bytes]) -> None:
        """Makes tokens that are needed soon.

        One after the other takes 2 us each, and between the other work of a message 10: the cipher's tables and
        code are no longer in the processor's cache then.
        """
        if len(self._ready) > _TOKENS_READY:
            self._ready.clear()  # whoever needs one of these all the same makes it
        self._ready.update((data, self._seal(data)) for data in many)

    def _seal(self, data: bytes) -> str:
        sealed = _VERSION + self._ciphers[0].encrypt(data, None)
        return b2a_base64(sealed, newline=False).translate(_URL_SAFE, b"=").decode("ascii")

    def read(self, token: str) -> Subscription:
        """Raises ValueError for what is not a token of one of the keys, character for character."""
        sealed = _decoded(token)
        if sealed[:1] != _VERSION:
            raise ValueError("a token of another version")
        for cipher in self._ciphers:
            if (data := _decrypted(cipher, sealed[1:])) is not None:
                return _unpacked(data)
        raise ValueError("not a token of this worker")


class TokenMaker:
    """Called with an address as in ``Subscription``: its token, some 140 characters of ``[A-Za-z0-9_-]``, always
    the same. Thread-safe.
    """

    def __init__(self, tokens: UnsubscribeTokens, head: bytes) -> None:
        self._tokens = tokens
        self._head = head

    def __call__(self, address: str) -> str:
        return self._tokens.seal(self._head + address.encode())

    def make_ready(self, addresses: Iterable[str]) -> None:
        """Makes the tokens of addresses that are needed soon: faster than each by itself."""
        self._tokens.make_ready(self._head + address.encode() for address in addresses)


def _decrypted(cipher: "AESSIV", sealed: bytes) -> bytes | None:
    """None: it was not encrypted with this key."""
    from cryptography.exceptions import InvalidTag

    try:
        return cipher.decrypt(sealed, None)
    except InvalidTag:
        return None


def _decoded(token: str) -> bytes:
    """The bytes of a token in its one spelling: base64 alone would ignore the last bits of the last character."""
    if not _TOKEN.fullmatch(token) or len(token) % 4 == 1:
        raise ValueError("not a token")
    sealed = a2b_base64(token.encode("ascii").translate(_STANDARD) + b"=" * (-len(token) % 4))
    if b2a_base64(sealed, newline=False).translate(_URL_SAFE, b"=") != token.encode("ascii"):
        raise ValueError("not a token")
    return sealed


def _packed(text: str) -> bytes:
    """An id with its length before it; a UUID, which most ids are, as its 16 bytes after a zero."""
    if _UUID.fullmatch(text):
        return b"\0" + UUID(text).bytes
    data = text.encode()
    if not 0 < len(data) <= _LONGEST_ID:
        raise ValueError(f"an unsubscribe link needs an id of 1 to {_LONGEST_ID} bytes, this one has {len(data)}")
    return bytes([len(data)]) + data


def _unpacked(data: bytes) -> Subscription:
    tenant_id, rest = _first_id(data[1:])
    campaign_id, address = _first_id(rest)
    return Subscription(tenant_id, _CHANNELS[data[0]], address.decode(), campaign_id)


def _first_id(data: bytes) -> tuple[str, bytes]:
    """An id, and what follows it."""
    if data[0] == 0:
        return str(UUID(bytes=data[1:17])), data[17:]
    return data[1 : 1 + data[0]].decode(), data[1 + data[0] :]
