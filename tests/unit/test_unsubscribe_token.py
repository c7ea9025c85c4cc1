"""Tokens of unsubscribe links: only the worker makes and reads them, and each has one spelling."""

import re
import subprocess
import sys
from base64 import urlsafe_b64decode
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.content.unsubscribe_token import Subscription, UnsubscribeTokens

PROJECT = Path(__file__).parents[2]
KEY, OTHER_KEY = "5a" * 32, "0f" * 32
TENANT, OTHER_TENANT = "5b9a1c2e-1111-4222-8333-444455556666", "5b9a1c2e-1111-4222-8333-444455556667"
CAMPAIGN = "0c9a1c2e-1111-4222-8333-444455556668"
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

TOKENS = UnsubscribeTokens([KEY])
IDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60)


def made(address: str = "asha@example.com", tenant: str = TENANT, channel: str = "email") -> str:
    return TOKENS.maker(tenant, channel, CAMPAIGN)(address)


@given(tenant=IDS | st.uuids().map(str), campaign=IDS | st.uuids().map(str), address=IDS,
       channel=st.sampled_from(["email", "whatsapp"]))  # fmt: skip
def test_what_goes_in_comes_out(tenant: str, campaign: str, address: str, channel: str) -> None:
    """Whatever the ids are, also ids that look like a UUID in another spelling."""
    token = TOKENS.maker(tenant, channel, campaign)(address)
    assert TOKENS.read(token) == Subscription(tenant, channel, address, campaign)
    assert re.fullmatch(r"[A-Za-z0-9_-]+", token)


@pytest.mark.parametrize("tenant", [TENANT.upper(), TENANT.replace("-", ""), "\0" * 17, "t", "x" * 255])
def test_ids_keep_their_spelling(tenant: str) -> None:
    assert TOKENS.read(made(tenant=tenant)).tenant_id == tenant


def test_it_is_short_always_the_same_and_shows_nothing() -> None:
    """A link fits on a line, an attempt more makes the same message, and no part of an address can be seen."""
    token = made()
    assert len(token) < 110
    assert token == made() == UnsubscribeTokens([KEY]).maker(TENANT, "email", CAMPAIGN)("asha@example.com")
    raw = urlsafe_b64decode(token + "=" * (-len(token) % 4))
    assert b"asha" not in raw
    assert b"example" not in raw
    assert len({made(), made("ravi@example.com"), made(tenant=OTHER_TENANT), made(channel="whatsapp")}) == 4


def test_what_is_made_ready_is_the_same() -> None:
    """For two campaigns in turn, and for more addresses than are kept."""
    many = [f"person{number}@example.com" for number in range(5000)]
    tokens = UnsubscribeTokens([KEY])
    makers = [tokens.maker(tenant, "email", CAMPAIGN) for tenant in (TENANT, OTHER_TENANT)]
    for batch in (many[:1500], many[1500:3000], many[3000:]):
        for maker in makers:
            maker.make_ready(batch)
        for maker, tenant in zip(makers, (TENANT, OTHER_TENANT), strict=True):
            assert [maker(each) for each in (batch[0], many[0])] == [made(batch[0], tenant), made(many[0], tenant)]
            assert tokens.read(maker(batch[-1])) == Subscription(tenant, "email", batch[-1], CAMPAIGN)


def test_no_character_can_be_changed() -> None:
    """Each character replaced by each other one, left out, doubled: never a token, and never somebody else's."""
    token = made()
    for at, char in enumerate(token):
        changed = [token[:at] + other + token[at + 1 :] for other in ALPHABET if other != char]
        for each in [*changed, token[:at] + token[at + 1 :], token[:at] + char + token[at:]]:
            if each != token:
                with pytest.raises(ValueError, match="token"):
                    TOKENS.read(each)


@pytest.mark.parametrize(
    "token",
    [
        "", "A", "AQ", "A" * 24, "A" * 1500, "A" * 1501, made() + "=", made() + "\n", " " + made(), made() + "AAAA",
        made().replace("_", "/").replace("-", "+") + "/", made()[:40], "é" * 40, "%00" * 20, "\0" * 40,
    ],
)  # fmt: skip
def test_what_is_no_token(token: str) -> None:
    with pytest.raises(ValueError, match="token"):
        TOKENS.read(token)


@given(st.text(max_size=200) | st.text(ALPHABET, max_size=200))
def test_anything_else_is_no_token(text: str) -> None:
    """There is no other error than the one that is expected."""
    with pytest.raises(ValueError, match="token"):
        TOKENS.read(text)


def test_another_version() -> None:
    """The first byte is the version: what a later worker makes is not misread by this one."""
    token = made()
    assert urlsafe_b64decode(token[:4])[0] == 1
    with pytest.raises(ValueError, match="another version"):
        TOKENS.read("Ag" + token[2:])


def test_keys() -> None:
    """A key that was replaced still reads its links as long as it is there; the first key makes new ones."""
    token = made()
    with pytest.raises(ValueError, match="not a token of this worker"):
        UnsubscribeTokens([OTHER_KEY]).read(token)
    rotated = UnsubscribeTokens([OTHER_KEY, KEY])
    assert rotated.read(token).address == "asha@example.com"
    renewed = rotated.maker(TENANT, "email", CAMPAIGN)("asha@example.com")
    assert UnsubscribeTokens([OTHER_KEY]).read(renewed) == rotated.read(renewed)
    with pytest.raises(ValueError, match="not a token of this worker"):
        TOKENS.read(renewed)


@pytest.mark.parametrize("tenant", ["", "x" * 256, "आ" * 100])
def test_an_id_that_no_link_can_have(tenant: str) -> None:
    with pytest.raises(ValueError, match="1 to 255 bytes"):
        TOKENS.maker(tenant, "email", CAMPAIGN)


def test_the_library_is_loaded_when_it_is_needed() -> None:
    """A program that waits for work, or whose messages have no link, does without its memory."""
    script = (
        "import sys; from worker.content.unsubscribe_token import UnsubscribeTokens; "
        f"token = UnsubscribeTokens(['{KEY}']).maker('t', 'email', 'c'); before = 'cryptography' in sys.modules; "
        "token('a@b.in'); print(before, 'cryptography' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
