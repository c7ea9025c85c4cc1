"""The tenants' encrypted secrets: AES-256-GCM, in the format of the CRM's app servers.

A stored secret is a JSON object ``{"iv", "encryptedData", "authTag"}``, each in hex, with a 16-byte iv and a
16-byte tag. No error text contains a key, a stored value or a decrypted one.
"""

import json
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
IV_BYTES = 16
TAG_BYTES = 16


class _Encrypted(NamedTuple):
    iv: bytes
    data: bytes
    tag: bytes


def decrypt(stored: str, key_hex: str) -> str:
    """The decrypted secret. Raises ValueError, which says whether the key or the stored value is wrong."""
    from cryptography.exceptions import InvalidTag  # some megabytes, and most processes never decrypt anything

    cipher = _cipher(key_hex)
    encrypted = _parse(stored)
    try:
        return cipher.decrypt(encrypted.iv, encrypted.data + encrypted.tag, None).decode("utf-8")
    except InvalidTag:
        raise ValueError(
            "the stored secret was not encrypted with this ENCRYPTION_KEY, or it was changed since"
        ) from None
    except UnicodeDecodeError:
        raise ValueError("the stored secret is not UTF-8 text") from None


def _cipher(key_hex: str) -> "AESGCM":
    try:
        key = bytes.fromhex(key_hex)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES or len(key_hex) != 2 * KEY_BYTES:
        raise ValueError("ENCRYPTION_KEY must be 64 hexadecimal digits (32 bytes)")
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key)


def _parse(stored: str) -> _Encrypted:
    """A short tag would be easy to forge, so its length is checked."""
    try:
        parts = json.loads(stored)
        encrypted = _Encrypted(*(bytes.fromhex(parts[key]) for key in ("iv", "encryptedData", "authTag")))
    except (ValueError, TypeError, KeyError):
        raise ValueError(
            'the stored secret is not the JSON the CRM writes: {"iv", "encryptedData", "authTag"} in hex'
        ) from None
    iv_bytes, tag_bytes = len(encrypted.iv), len(encrypted.tag)
    if (iv_bytes, tag_bytes) != (IV_BYTES, TAG_BYTES):
        raise ValueError(
            f"the stored secret has an iv of {iv_bytes} bytes and a tag of {tag_bytes} bytes, "
            f"not {IV_BYTES} and {TAG_BYTES}"
        )
    return encrypted
