"""What is left of a quota, and when there will be more."""

from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.sending.quota import COUNTED, HourUse, Quota, QuotaState, free_at, why_used_up

NOON = datetime.fromisoformat("2026-03-10 12:00")


def state(limit: int, **used: int) -> QuotaState:
    """``used``: h<hours before noon> -> messages."""
    hours = sorted((NOON - timedelta(hours=int(key[1:])), number) for key, number in used.items())
    return QuotaState("smtp", "relay", limit, tuple(HourUse(*each) for each in hours))


def test_an_unused_quota_is_all_there() -> None:
    assert state(100).left(NOON) == 100
    assert state(100).more_at(NOON) is None


def test_an_hour_counts_until_it_has_been_over_for_a_day() -> None:
    """A message of its last second is a day old by then, and none is forgotten sooner."""
    used = state(100, h24=100)
    assert used.left(NOON) == 0
    assert used.left(NOON + timedelta(minutes=59, seconds=59)) == 0
    assert used.left(NOON + timedelta(hours=1)) == 100
    assert used.more_at(NOON + timedelta(minutes=30)) == NOON + timedelta(hours=1)


def test_it_becomes_free_hour_by_hour() -> None:
    used = state(100, h20=30, h2=70)
    assert used.more_at(NOON) == NOON + timedelta(hours=5)
    assert [used.free_by(NOON + timedelta(hours=hours)) for hours in (0, 5, 22, 23)] == [0, 30, 30, 100]


def test_a_lower_limit_than_what_was_used_waits_for_as_much_as_it_takes() -> None:
    """Where the operator lowered it, the first hour that ends does not free anything."""
    used = state(50, h20=30, h2=70)
    assert used.left(NOON) == 0
    assert used.more_at(NOON) == NOON + timedelta(hours=23)


def test_a_campaign_waits_for_the_last_of_its_limits() -> None:
    account, share = state(100, h20=30, h2=70), state(50, h1=50)
    assert free_at((account, share), NOON) == NOON + timedelta(hours=24)
    assert free_at((account, state(50)), NOON) == NOON + timedelta(hours=5)


def test_what_is_free_and_not_granted_is_asked_for_again_soon() -> None:
    """It is left to notifications, or was given back in between."""
    assert NOON < free_at((state(100),), NOON) <= NOON + timedelta(minutes=1)


def test_the_user_is_told_which_limit_was_reached() -> None:
    """In words that name the account, and no address."""
    quota = Quota("smtp", "relay", "t", 10_000, share=5_000)
    full, share = state(10_000, h1=10_000), state(5_000, h1=5_000)
    assert why_used_up(quota, (full,), NOON) == "the limit of the mail server, 10,000 in 24 hours, is used up"
    assert "campaigns may use 5,000 of the limit of the mail server" in why_used_up(quota, (full, share), NOON)
    assert "for reminders" in why_used_up(quota, (state(10_000),), NOON)


@given(
    used=st.dictionaries(st.integers(0, 30), st.integers(1, 500), max_size=31),
    limit=st.integers(1, 2000),
    minutes=st.integers(0, 59),
)
def test_more_is_there_at_the_time_that_is_told_and_not_before(
    used: dict[int, int], limit: int, minutes: int
) -> None:
    now = NOON + timedelta(minutes=minutes)
    quota = state(limit, **{f"h{hours}": number for hours, number in used.items()})
    at = quota.more_at(now)
    if at is None:
        assert quota.left(now + COUNTED) == quota.left(now)
    else:
        assert quota.left(at) > quota.left(at - timedelta(microseconds=1)) == quota.left(now)


@pytest.mark.parametrize("limit", [1, 10, 1000])
def test_never_less_than_nothing_is_left(limit: int) -> None:
    assert state(limit, h1=5000).left(NOON) == 0
