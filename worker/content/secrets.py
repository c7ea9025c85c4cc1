"""The tenants' encrypted secrets: AES-256-GCM, in the format of the CRM's app servers.

A stored secret is a JSON object ``{"iv", "encryptedData", "authTag"}``, each in hex, with a 16-byte iv and a
16-byte tag. No error text contains a key, a stored value or a decrypted one.
"""

import json

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
IV_BYTES = 16
TAG_BYTES = 16


def decrypt(stored: str, key_hex: str) -> str:
    """The decrypted secret. Raises ValueError, which says whether the key or the stored value is wrong."""
    cipher = _cipher(key_hex)
    iv, encrypted, tag = _parts(stored)
    try:
        return cipher.decrypt(iv, encrypted + tag, None).decode("utf-8")
    except InvalidTag:
        raise ValueError(
            "the stored secret was not encrypted with this ENCRYPTION_KEY, or it was changed since"
        ) from None
    except UnicodeDecodeError:
        raise ValueError("the stored secret is not UTF-8 text") from None


def encrypt(plain: str, key_hex: str, iv: bytes) -> str:
    """The JSON that the CRM stores. ``iv``: 16 bytes, different each time for one key (NIST SP 800-38D, 8)."""
    if len(iv) != IV_BYTES:
        raise ValueError(f"an iv has {IV_BYTES} bytes, not {len(iv)}")
    sealed = _cipher(key_hex).encrypt(iv, plain.encode("utf-8"), None)
    encrypted, tag = sealed[:-TAG_BYTES], sealed[-TAG_BYTES:]
    return json.dumps({"iv": iv.hex(), "encryptedData": encrypted.hex(), "authTag": tag.hex()})


def _cipher(key_hex: str) -> AESGCM:
    try:
        key = bytes.fromhex(key_hex)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES or len(key_hex) != 2 * KEY_BYTES:
        raise ValueError("ENCRYPTION_KEY must be 64 hexadecimal digits (32 bytes)")
    return AESGCM(key)


def _parts(stored: str) -> tuple[bytes, bytes, bytes]:
    """The iv, the encrypted data and the tag. A short tag would be easy to forge, so its length is checked."""
    try:
        holder = json.loads(stored)
        iv, encrypted, tag = (bytes.fromhex(holder[key]) for key in ("iv", "encryptedData", "authTag"))
    except (ValueError, TypeError, KeyError):
        raise ValueError(
            'the stored secret is not the JSON the CRM writes: {"iv", "encryptedData", "authTag"} in hex'
        ) from None
    if len(iv) != IV_BYTES or len(tag) != TAG_BYTES:
        raise ValueError(
            f"the stored secret has an iv of {len(iv)} and a tag of {len(tag)} bytes, not {IV_BYTES} and {TAG_BYTES}"
        )
    return iv, encrypted, tag
