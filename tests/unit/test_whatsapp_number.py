"""The tiers in which Meta states how many people a number may write to."""

import pytest

from worker.providers.whatsapp_number import people_of
from worker.sending.account_quotas import whatsapp_quota


@pytest.mark.parametrize(
    ("tier", "people"),
    [
        ("TIER_50", 50), ("TIER_250", 250), ("TIER_1K", 1000), ("TIER_2K", 2000), ("TIER_10K", 10_000),
        ("TIER_100K", 100_000), ("TIER_UNLIMITED", None), ("", None), ("TIER_", None), ("TIER_0", None),
        ("TIER_250 ", None), ("tier_250", None), ("TIER_9999999999K", None), ("TIER_NOT_SET", None),
    ],
)  # fmt: skip
def test_tiers(tier: str, people: int | None) -> None:
    """An unknown one is no limit: Meta would refuse what is too much."""
    assert people_of(tier) == people


@pytest.mark.parametrize(("people", "for_campaigns"), [(250, 225), (2000, 1800), (50, 45), (1, 0), (100_000, 90_000)])
def test_campaigns_use_nine_tenths(people: int, for_campaigns: int) -> None:
    quota = whatsapp_quota("t", people)
    assert quota.limit - quota.kept_back == for_campaigns
