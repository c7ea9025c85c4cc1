"""Refusals in a row: what counts as the same reply, and what ends a row of them."""

from datetime import datetime

import pytest

from worker.campaigns.refusal_breaker import RefusalStreak
from worker.content.reply_pattern import LONGEST_PATTERN, reply_pattern, without_other_addresses
from worker.messages import Accepted
from worker.sending.outcomes import FailureKind, Outcome, OutcomeKind

AT = datetime(2026, 1, 31, 12)  # noqa: DTZ001 - UTC without a zone, as the CRM writes it
REFUSED = Outcome(OutcomeKind.REFUSED, AT, "553 5.7.1 <a@x.example>: not owned", code="553 5.7.1")
ACCEPTED = Outcome(OutcomeKind.ACCEPTED, AT, accepted=Accepted("<1@x>"))


@pytest.mark.parametrize(
    ("reply", "code", "pattern"),
    [
        ("553 5.7.1 <asha@a.example>: Sender rejected", "553 5.7.1", "553 5.7.1 … Sender rejected"),
        ("553 5.7.1 <ravi@b.example>: Sender rejected", "553 5.7.1", "553 5.7.1 … Sender rejected"),
        ("550 5.7.1 blocked a12-2002q1.9 - gsmtp", "550 5.7.1", "550 5.7.1 blocked … - gsmtp"),
        ("550 5.7.1 see https://help.example/?id=a for mx.a.example", "550 5.7.1", "550 5.7.1 see … for …"),
        ("550 relay   denied\t(10.0.0.1, 2001:db8::1) 7", "550", "550 relay denied …"),
        ("WhatsApp 999001: (#999001) Not allowed", "999001", "999001 WhatsApp … Not allowed"),
        ("", "", ""),
        ("क" * 500, "550", ("550 " + "क" * 500)[:LONGEST_PATTERN]),
    ],
)
def test_what_is_the_same_in_replies(reply: str, code: str, pattern: str) -> None:
    """Addresses, numbers, ids and names of hosts are left out; the code stays."""
    assert reply_pattern(reply, code) == pattern


def test_a_long_reply_has_the_pattern_that_its_journal_gives() -> None:
    """A journal keeps 300 characters of a reply: a successor comes to the same pattern."""
    reply = "550 5.7.1 " + "a word and asha@a.example " * 40
    assert reply_pattern(reply[:300], "550 5.7.1") == reply_pattern(reply, "550 5.7.1")


@pytest.mark.parametrize("length", [1, 60, 120, 180, 240])
def test_what_differs_may_be_long(length: int) -> None:
    """The pattern has the words behind it all the same."""
    reply = f"550 5.7.1 see https://help.example/{'a' * length} and mx.a.example: relay access denied for this sender"
    assert reply_pattern(reply, "550 5.7.1") == "550 5.7.1 see … and … relay access denied for this sender"


def test_addresses_of_others_are_left_out() -> None:
    """What a server says of other people is not kept with a recipient."""
    reply = "550 <Asha@a.example>: not for <ravi@b.example>, ask admin@c.example;"
    assert without_other_addresses(reply, "asha@a.example") == "550 <Asha@a.example>: not for <…>, ask …;"
    assert without_other_addresses(reply, None) == "550 <…>: not for <…>, ask …;"


def test_so_many_with_the_same_reply() -> None:
    """The last of them fills the row; it stays full."""
    streak = RefusalStreak(3)
    for _ in range(2):
        streak.record(REFUSED)
    assert not streak.is_full
    streak.record(REFUSED)
    assert streak.is_full
    streak.record(ACCEPTED)
    assert streak.is_full


def test_what_was_settled_before_counts() -> None:
    """Refusals of earlier batches and of dead processes are part of the row."""
    pattern = reply_pattern(REFUSED.reason or "", REFUSED.code)
    assert RefusalStreak(3, {pattern: 3}).is_full
    streak = RefusalStreak(3, {pattern: 2})
    assert not streak.is_full
    streak.record(REFUSED)
    assert streak.is_full


def test_an_accepted_message_ends_the_row() -> None:
    """A provider that takes messages does not refuse their sender."""
    streak = RefusalStreak(3)
    for outcome in (REFUSED, REFUSED, ACCEPTED, REFUSED, REFUSED):
        streak.record(outcome)
    assert not streak.is_full


@pytest.mark.parametrize(
    "other",
    [
        Outcome(OutcomeKind.REFUSED, AT, "550 5.1.1 unknown", code="550 5.1.1", fault=FailureKind.ADDRESS),
        Outcome(OutcomeKind.REFUSED, AT, "on the list", fault=FailureKind.SUPPRESSED),
        Outcome(OutcomeKind.REFUSED, AT, "no address", fault=FailureKind.CONTENT),
        Outcome(OutcomeKind.OPTED_OUT, AT, "131050"),
        Outcome(OutcomeKind.RECIPIENT_DEFERRED, AT, "450 later"),
        Outcome(OutcomeKind.UNCONFIRMED, AT, "no answer"),
    ],
)
def test_what_neither_counts_nor_ends_the_row(other: Outcome) -> None:
    """A recipient's own fault, a deferral or a missing answer says nothing about the sender."""
    streak = RefusalStreak(2)
    for outcome in (REFUSED, other, other):
        streak.record(outcome)
    assert not streak.is_full
    streak.record(REFUSED)
    assert streak.is_full
