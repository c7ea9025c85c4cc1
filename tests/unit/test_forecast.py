"""When a campaign is expected to end: by its rate, its window, and what its account may send."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.campaigns.forecast import (
    HORIZON,
    Forecast,
    LaterRetries,
    Rate,
    RemainingSends,
    forecast,
    planned_rate,
)
from worker.content.windows import Window, is_open

INDIA, UTC = ZoneInfo("Asia/Kolkata"), ZoneInfo("UTC")
NOW = datetime(2026, 3, 4, 10)  # noqa: DTZ001 - UTC without a zone, as everywhere; 15:30 in India
DAY = Window.parse("09:00-21:00")


@dataclass(frozen=True)
class Used:
    """A quota of which ``used`` were sent in the hour that began ``hours`` ago."""

    limit: int
    used: int = 0
    hours: float = 0.0

    def free_by(self, at: datetime) -> int:
        gone = at - (NOW - timedelta(hours=self.hours)) >= timedelta(days=1)
        return self.limit - (0 if gone else self.used)


def expected(
    recipients: int,
    per_second: float = 1.0,
    *,
    after: timedelta = timedelta(0),
    window: Window | None = None,
    quotas: Sequence[Used] = (),
    zone: ZoneInfo = UTC,
    retries: Sequence[tuple[timedelta, int]] = (),
) -> Forecast:
    work = RemainingSends(
        recipients=recipients,
        rate=Rate(per_second),
        starts_at=NOW + after,
        window=window,
        zones=(INDIA,) if window else (),
        quotas=quotas,
        zone=zone,
        retries=[LaterRetries(NOW + after, number) for after, number in retries],
    )
    return forecast(work, NOW)


def test_what_waits_for_a_change() -> None:
    """Nothing is expected of a campaign that goes on only when somebody changes something."""
    work = RemainingSends(recipients=1200, rate=Rate(1.0), starts_at=NOW, obstacle="its zone cannot be read")
    found = forecast(work, NOW)
    assert (found.today, found.begins_at, found.ends_at) == (0, None, None)
    assert found.words == "1,200 wait: its zone cannot be read"


def test_at_its_rate() -> None:
    """Without limits a campaign ends after as long as its rate takes."""
    found = expected(3600)
    assert (found.today, found.ends_at) == (3600, NOW + timedelta(hours=1))
    assert found.words == "ends today about 11:00 UTC"
    assert expected(0).words == "nothing left to send"


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (expected(10_000, 10, zone=INDIA), "ends today about 15:46 (Asia/Kolkata)"),
        (expected(86_400), "50,400 of 86,400 today, the rest until tomorrow 10:00 UTC"),
        (expected(200_000), "50,400 of 200,000 today, the rest until 6 March 17:33 UTC"),
        (
            expected(20_000, window=DAY, zone=INDIA),
            "19,800 of 20,000 today, the rest tomorrow from 09:00 (Asia/Kolkata)",
        ),
        (
            expected(100_000, window=DAY, zone=INDIA),
            "19,800 of 100,000 today, the rest from tomorrow 09:00 until 6 March 19:16 (Asia/Kolkata)",
        ),
        (expected(100, after=timedelta(hours=8), window=DAY, zone=INDIA), "100 tomorrow from 09:00 (Asia/Kolkata)"),
        (expected(100, after=timedelta(days=4)), "100 on 8 March from 10:00 UTC"),
        (expected(10_000, quotas=[Used(120)]), "120 of 10,000 today, the rest takes more than 31 days UTC"),
        (expected(200, quotas=[Used(120)]), "120 of 200 today, the rest tomorrow from 10:00 UTC"),
        (expected(200, quotas=[Used(120, used=120, hours=20)]), "120 of 200 today, the rest tomorrow from 14:00 UTC"),
        (expected(200, quotas=[Used(120, used=120)]), "200 from tomorrow 10:00 until 6 March 10:01 UTC"),
        (expected(200, quotas=[Used(1000), Used(150)]), "150 of 200 today, the rest tomorrow from 10:00 UTC"),
        (expected(10, quotas=[Used(0)]), "10 not within 31 days UTC"),
        (expected(10, retries=[(timedelta(days=1), 10)]), "10 tomorrow from 10:00 UTC"),
        (expected(10, retries=[(timedelta(days=1), 4)]), "6 of 10 today, the rest tomorrow from 10:00 UTC"),
        (
            expected(700, retries=[(timedelta(hours=1), 300), (timedelta(days=1), 400)]),
            "300 of 700 today, the rest tomorrow from 10:00 UTC",
        ),
        (
            expected(10, window=DAY, zone=INDIA, retries=[(timedelta(hours=8), 10)]),
            "10 tomorrow from 09:00 (Asia/Kolkata)",
        ),
        (
            expected(30, 0.005, window=Window.parse("09:00-09:10"), zone=INDIA),
            "30 from tomorrow 09:00 until 14 March 09:10 (Asia/Kolkata)",
        ),
    ],
)
def test_words(found: Forecast, words: str) -> None:
    """What goes out today, and when the rest does, by the clock of the zone."""
    assert found.words == words


def test_retries_are_not_sooner_than_their_time() -> None:
    """A campaign of which only later retries are left ends with them, however fast it was; those due now go first."""
    day, week = timedelta(days=1), timedelta(days=7)
    assert expected(3, 100.0, retries=[(day, 3)]).ends_at == NOW + day + timedelta(seconds=0.03)
    found = expected(7200, retries=[(timedelta(hours=1), 10), (week, 5)])
    assert (found.today, found.ends_at) == (7195, NOW + week + timedelta(seconds=5))
    assert found.resumes_at == NOW + week
    # some of them ended meanwhile
    assert expected(3, retries=[(day, 5), (2 * day, 2)]).ends_at == NOW + 2 * day + timedelta(seconds=2)


def test_a_window_and_a_quota() -> None:
    """Both hold: what the quota leaves goes out while the window is open, and no sooner."""
    found = expected(500, window=DAY, quotas=[Used(300)], zone=INDIA)
    assert found.today == 300
    assert found.resumes_at == NOW + timedelta(days=1)  # 15:30 in India, a day after the first ones
    assert found.words == "300 of 500 today, the rest tomorrow from 15:30 (Asia/Kolkata)"


@pytest.mark.parametrize(
    ("account", "pause", "per_second", "source"),
    [
        (None, 0.0, 40.0, "assumed: 0.2 s for a message, 8 at a time"),
        (2.0, 0.0, 2.0, "the rate of its account"),
        (1000.0, 0.0, 40.0, "assumed: 0.2 s for a message, 8 at a time"),
        (None, 0.05, 1 / 0.075, "by CAMPAIGN_BATCH_SIZE and CAMPAIGN_BATCH_DELAY"),
        (2.0, 0.5, 1.0, "the rate of its account, with the pauses of CAMPAIGN_BATCH_DELAY"),
    ],
)
def test_a_planned_rate(account: float | None, pause: float, per_second: float, source: str) -> None:
    """The account's limit, the pauses between batches, or an assumption that is said to be one."""
    rate = planned_rate(account, pause, 8)
    assert rate.per_second == pytest.approx(per_second)
    assert rate.source == source


@given(
    st.integers(1, 100_000),
    st.floats(0.01, 100),
    st.timedeltas(timedelta(0), timedelta(days=3)),
    st.booleans(),
    st.lists(st.builds(Used, st.integers(0, 5000), st.integers(0, 5000), st.floats(0, 24)), max_size=2),
)
def test_nothing_is_promised_that_a_limit_forbids(
    recipients: int, per_second: float, after: timedelta, windowed: bool, quotas: list[Used]
) -> None:
    """None is quicker than its rate, begins while its window is closed, or exceeds a quota on its first day."""
    found = expected(recipients, per_second, after=after, window=DAY if windowed else None, quotas=quotas, zone=INDIA)
    assert 0 <= found.today <= recipients
    if found.begins_at is None:
        assert found.ends_at is None
        return
    assert found.begins_at >= NOW + after
    assert not windowed or is_open(DAY, [INDIA], found.begins_at)
    for quota in quotas:
        assert found.today <= max(0, quota.limit)
    if found.ends_at is not None:
        assert found.ends_at <= NOW + HORIZON
        seconds = (found.ends_at - found.begins_at).total_seconds()
        assert seconds >= recipients / per_second - 1
        assert found.resumes_at is None or found.begins_at <= found.resumes_at <= found.ends_at
