"""Stored secrets come back only with the right key, and no error shows any of them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.stored_secrets import encrypt
from worker.content.secrets import decrypt

KEY = "0f" * 32
IV = bytes(range(16))


@given(st.text(st.characters(exclude_categories=["Cs"])), st.binary(min_size=16, max_size=16))
def test_what_was_encrypted_is_decrypted(plain: str, iv: bytes) -> None:
    stored = encrypt(plain, KEY, iv)
    assert decrypt(stored, KEY) == plain
    assert json.loads(stored).keys() == {"iv", "encryptedData", "authTag"}


def test_a_value_written_by_the_crypto_module_of_node_is_read() -> None:
    stored = """{"iv": "000102030405060708090a0b0c0d0e0f", "authTag": "db405b0ea29d536c4c91ffd15a093372",
        "encryptedData": "f4bcdb4cd5acdf8d850ef7a7a886de18e97e06a0dfdf"}"""
    with pytest.raises(ValueError, match="not encrypted with"):
        decrypt(stored.replace("f4bc", "f4bd"), KEY)
    assert decrypt(stored, KEY) == "GOCSPX-रहस्य"


@pytest.mark.parametrize("part", ["iv", "encryptedData", "authTag"])
def test_a_changed_part_is_noticed_and_not_shown(part: str) -> None:
    holder = json.loads(encrypt("GOCSPX-secret", KEY, IV))
    changed = bytes.fromhex(holder[part])
    holder[part] = (changed[:-1] + bytes([changed[-1] ^ 1])).hex()
    with pytest.raises(ValueError, match="ENCRYPTION_KEY") as caught:
        decrypt(json.dumps(holder), KEY)
    assert holder[part] not in str(caught.value)
    assert caught.value.__cause__ is None


def test_another_key_is_refused() -> None:
    with pytest.raises(ValueError, match="not encrypted with this ENCRYPTION_KEY") as caught:
        decrypt(encrypt("GOCSPX-secret", KEY, IV), "1e" * 32)
    assert "1e1e" not in str(caught.value)


@pytest.mark.parametrize("key", ["", "00", "zz" * 32, "0f" * 31, "0f " * 32, KEY + "00"])
def test_a_key_that_is_none_is_named_and_not_shown(key: str) -> None:
    with pytest.raises(ValueError, match="ENCRYPTION_KEY must be 64 hex") as caught:
        decrypt(encrypt("x", KEY, IV), key)
    assert not key or key not in str(caught.value)


@pytest.mark.parametrize("stored", ["", "GOCSPX-clear", "[]", "null", "{}", '{"iv": 1}', '{"iv": "zz"}', '"x"'])
def test_a_value_that_was_never_encrypted_is_refused_without_showing_it(stored: str) -> None:
    with pytest.raises(ValueError, match="not the JSON the CRM writes") as caught:
        decrypt(stored, KEY)
    assert "GOCSPX" not in str(caught.value)


def test_a_short_tag_is_refused() -> None:
    holder = json.loads(encrypt("x", KEY, IV))
    with pytest.raises(ValueError, match="a tag of 4 bytes"):
        decrypt(json.dumps({**holder, "authTag": holder["authTag"][:8]}), KEY)
