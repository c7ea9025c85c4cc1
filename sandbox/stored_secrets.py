"""Encrypts a tenant's secret as the CRM's app servers do; worker/content/secrets.py decrypts it."""

import json

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

IV_BYTES = 16
_TAG_BYTES = 16


def encrypt(plain: str, key_hex: str, iv: bytes) -> str:
    """The JSON that the CRM stores. ``iv``: 16 bytes, different each time for one key (NIST SP 800-38D, 8)."""
    if len(iv) != IV_BYTES:
        raise ValueError(f"an iv has {IV_BYTES} bytes, not {len(iv)}")
    sealed = AESGCM(bytes.fromhex(key_hex)).encrypt(iv, plain.encode("utf-8"), None)
    encrypted, tag = sealed[:-_TAG_BYTES], sealed[-_TAG_BYTES:]
    return json.dumps({"iv": iv.hex(), "encryptedData": encrypted.hex(), "authTag": tag.hex()})
