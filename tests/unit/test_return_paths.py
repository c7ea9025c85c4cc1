"""Return paths: what they carry comes back, and nobody else can make one."""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.content.return_path import LONGEST_LOCAL_PART, ReturnPaths, TokenKind

KEY, OTHER_KEY = "ab" * 32, "ac" * 32
TENANT, OTHER_TENANT = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))
ADDRESS = "asha@gone.example"
PATHS = ReturnPaths("bounces@mail.example", KEY)


@given(st.uuids(), st.uuids())
def test_a_recipient_comes_back(recipient: uuid.UUID, tenant: uuid.UUID) -> None:
    """Also in capital letters, as some servers write addresses; it proves itself for its own tenant."""
    made = PATHS.of_recipient(str(tenant), str(recipient), ADDRESS)
    assert len(made.partition("@")[0]) <= 64
    for text in (made, made.upper(), f"Asha <{made}>", f"rfc822; {made}\nx", f"<SRS0=ab=cd={made}>"):
        (token,) = PATHS.found_in(text)
        assert (token.kind, token.id) == (TokenKind.RECIPIENT, str(recipient))
        assert PATHS.is_proved(token, str(tenant), ADDRESS.upper())
        assert not PATHS.is_proved(token, str(tenant), "ravi@here.example")
        assert not PATHS.is_proved(token, str(tenant), "")


def test_a_notification_is_for_its_address() -> None:
    (token,) = PATHS.found_in(PATHS.of_notification(TENANT, "Asha@gone.example"))
    assert (token.kind, token.id) == (TokenKind.NOTIFICATION, TENANT)
    assert PATHS.is_proved(token, TENANT, "asha@gone.example")
    assert not PATHS.is_proved(token, TENANT, "ravi@gone.example")
    assert not PATHS.is_proved(token, TENANT, "")


def test_what_others_make_proves_nothing() -> None:
    """Another tenant, another key, the other kind, another recipient, and each letter that is changed."""
    recipient = str(uuid.UUID(int=3))
    made = PATHS.of_recipient(TENANT, recipient, ADDRESS)
    (token,) = PATHS.found_in(made)
    assert not PATHS.is_proved(token, OTHER_TENANT, ADDRESS)
    assert not ReturnPaths("bounces@mail.example", OTHER_KEY).is_proved(token, TENANT, ADDRESS)
    local, _, domain = made.partition("@")
    for at in range(len("bounces+"), len(local)):
        for letter in "rnq7":
            changed = local[:at] + letter + local[at + 1 :]
            if changed != local:
                for each in PATHS.found_in(f"{changed}@{domain}"):
                    assert not PATHS.is_proved(each, TENANT, ADDRESS)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "bounces@mail.example",
        "bounces+r@mail.example",
        "bounces+r" + "a" * 39 + "@mail.example",
        "bounces+r" + "a" * 41 + "@mail.example",
        "bounces+r" + "1" * 40 + "@mail.example",
        "bounces+x" + "a" * 40 + "@mail.example",
        "bounces+r" + "a" * 40 + "@mail.example.org",
        "bounces+r" + "a" * 40 + "@mail.examples",
        "bounces+r" + "a" * 40 + "@othermail.example",
        "mybounces+r" + "a" * 40 + "@mail.example",
    ],
)
def test_other_addresses(text: str) -> None:
    assert list(PATHS.found_in(text)) == []


def test_ids_that_are_no_uuid() -> None:
    """Their messages have the plain address: a report about them is not recognised."""
    for odd in ("", "7", "x" * 36, str(uuid.UUID(int=10**30)).upper(), "{00000000-0000-0000-0000-000000000001}"):
        assert PATHS.of_recipient(TENANT, odd, ADDRESS) == "bounces@mail.example"
        assert PATHS.of_notification(odd, "a@x.example") == "bounces@mail.example"


def test_the_longest_local_part() -> None:
    """64 octets before the @ are what servers have to accept (RFC 5321, 4.5.3.1.1)."""
    local = "b" * LONGEST_LOCAL_PART
    made = ReturnPaths(f"{local}@mail.example", KEY).of_recipient(TENANT, TENANT, ADDRESS)
    assert len(made.partition("@")[0]) == 64
