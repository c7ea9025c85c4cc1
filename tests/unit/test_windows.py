"""Windows go by the clocks of the zones given: over midnight, in several zones, and when clocks are changed."""

from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.content.windows import Window, closes_at, is_open, next_open

INDIA, NEW_YORK, LONDON = "Asia/Kolkata", "America/New_York", "Europe/London"
LORD_HOWE, KATHMANDU, SYDNEY = "Australia/Lord_Howe", "Asia/Kathmandu", "Australia/Sydney"
ZONES = [INDIA, NEW_YORK, LONDON, LORD_HOWE, KATHMANDU, SYDNEY, "America/Sao_Paulo", "Pacific/Apia", "UTC"]

# UTC: from when it is looked, when it opens, and when it closes from then on. In 2026 the clocks of New York change
# on March 8th and November 1st, London's on March 29th and October 25th, Lord Howe's (by half an hour) on April 4th.
TABLE = [
    # an ordinary day: the start is inside, the end is not
    ("09:00-21:00", [INDIA], "2026-03-06 03:29:59", "2026-03-06 03:30", "2026-03-06 15:30"),
    ("09:00-21:00", [INDIA], "2026-03-06 03:30:00", "2026-03-06 03:30", "2026-03-06 15:30"),
    ("09:00-21:00", [INDIA], "2026-03-06 15:29:59", "2026-03-06 15:29:59", "2026-03-06 15:30"),
    ("09:00-21:00", [INDIA], "2026-03-06 15:30:00", "2026-03-07 03:30", "2026-03-07 15:30"),
    ("08:00-21:00", [KATHMANDU], "2026-03-06 20:00:00", "2026-03-07 02:15", "2026-03-07 15:15"),
    # over midnight
    ("22:00-06:00", [INDIA], "2026-03-06 16:29:59", "2026-03-06 16:30", "2026-03-07 00:30"),
    ("22:00-06:00", [INDIA], "2026-03-06 18:30:00", "2026-03-06 18:30", "2026-03-07 00:30"),
    ("22:00-06:00", [INDIA], "2026-03-07 00:30:00", "2026-03-07 16:30", "2026-03-08 00:30"),
    ("09:00-24:00", [INDIA], "2026-03-06 12:00:00", "2026-03-06 12:00", "2026-03-06 18:30"),
    ("00:00-09:00", [INDIA], "2026-03-06 12:00:00", "2026-03-06 18:30", "2026-03-07 03:30"),
    ("23:59-00:00", [INDIA], "2026-03-06 12:00:00", "2026-03-06 18:29", "2026-03-06 18:30"),
    # the whole day
    ("00:00-24:00", [INDIA, NEW_YORK], "2026-03-06 12:00:00", "2026-03-06 12:00", None),
    ("09:00-09:00", [INDIA], "2026-03-06 12:00:00", "2026-03-06 12:00", None),
    # clocks change at night: it opens and closes by what they show then
    ("08:00-21:00", [NEW_YORK], "2026-03-08 02:00:00", "2026-03-08 12:00", "2026-03-09 01:00"),
    ("08:00-21:00", [NEW_YORK], "2026-03-07 02:00:00", "2026-03-07 13:00", "2026-03-08 02:00"),
    ("08:00-21:00", [NEW_YORK], "2026-11-01 02:00:00", "2026-11-01 13:00", "2026-11-02 02:00"),
    ("08:00-21:00", [LONDON], "2026-03-28 21:00:00", "2026-03-29 07:00", "2026-03-29 20:00"),
    ("08:00-21:00", [LORD_HOWE], "2026-04-04 12:00:00", "2026-04-04 21:30", "2026-04-05 10:30"),
    # an hour that the clock skips: 02:30 is not shown that night, 03:00 is
    ("02:30-04:00", [NEW_YORK], "2026-03-08 06:00:00", "2026-03-08 07:00", "2026-03-08 08:00"),
    ("02:15-02:45", [NEW_YORK], "2026-03-08 06:00:00", "2026-03-09 06:15", "2026-03-09 06:45"),
    ("01:00-02:30", [NEW_YORK], "2026-03-08 06:00:00", "2026-03-08 06:00", "2026-03-08 07:00"),
    # an hour that it shows twice
    ("01:00-01:30", [NEW_YORK], "2026-11-01 05:10:00", "2026-11-01 05:10", "2026-11-01 05:30"),
    ("01:00-01:30", [NEW_YORK], "2026-11-01 05:30:00", "2026-11-01 06:00", "2026-11-01 06:30"),
    ("01:30-03:00", [NEW_YORK], "2026-11-01 05:40:00", "2026-11-01 05:40", "2026-11-01 06:00"),
    # several zones: inside all of them
    ("08:00-21:00", [NEW_YORK, "America/Los_Angeles"], "2026-01-10 13:00:00", "2026-01-10 16:00", "2026-01-11 02:00"),
    (
        "08:00-21:00",
        ["Europe/Moscow", "Asia/Kamchatka"],
        "2026-01-10 09:00:00",
        "2026-01-11 05:00",
        "2026-01-11 09:00",
    ),
    ("22:00-06:00", [LONDON, NEW_YORK], "2026-01-10 12:00:00", "2026-01-11 03:00", "2026-01-11 06:00"),
    ("09:00-13:10", [LONDON, "America/Caracas"], "2026-01-10 12:00:00", "2026-01-10 13:00", "2026-01-10 13:10"),
]


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text)


def zones(names: list[str]) -> list[ZoneInfo]:
    return [ZoneInfo(name) for name in names]


@pytest.mark.parametrize(("text", "names", "now", "opens", "closes"), TABLE)
def test_the_table(text: str, names: list[str], now: str, opens: str, closes: str | None) -> None:
    window, places = Window.parse(text), zones(names)
    found = next_open(window, places, utc(now))
    assert found == utc(opens)
    assert found is not None
    assert closes_at(window, places, found) == (closes and utc(closes))
    assert is_open(window, places, utc(now)) is (found == utc(now))


def test_hours_that_never_meet_never_open() -> None:
    window, places = Window.parse("10:00-14:00"), zones([INDIA, NEW_YORK])
    assert next_open(window, places, utc("2026-03-06 12:00")) is None
    assert not is_open(window, places, utc("2026-03-06 12:00"))


def test_hours_that_meet_on_a_few_days_of_the_year_open_then() -> None:
    """New York has summer time three weeks before London: only then are they four hours apart."""
    window, places = Window.parse("09:00-13:30"), zones([LONDON, NEW_YORK])
    found = next_open(window, places, utc("2026-01-10 12:00"))
    assert found == utc("2026-03-08 13:00")
    assert closes_at(window, places, utc("2026-03-08 13:00")) == utc("2026-03-08 13:30")


def test_a_closed_window_closes_now() -> None:
    now = utc("2026-03-06 20:00")
    assert closes_at(Window.parse("09:00-21:00"), zones([INDIA]), now) == now


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("09:00-21:00", "09:00-21:00"),
        (" 9:00-21:00 ", "09:00-21:00"),
        ("22:00-00:00", "22:00-24:00"),
        ("0:00-24:00", "00:00-24:00"),
        ("22:00-6:00", "22:00-06:00"),
    ],
)
def test_what_is_written_is_shown(text: str, shown: str) -> None:
    assert str(Window.parse(text)) == shown
    assert Window.parse(shown) == Window.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "9-21",
        "09:00",
        "24:00-09:00",
        "09:00-24:01",
        "09:60-21:00",
        "09:00 - 21:00",
        "09:00-21:00,",
        "०९:००-21:00",
    ],
)
def test_what_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="hours such as 09:00-21:00"):
        Window.parse(text)


minutes = st.integers(0, 1439).map(lambda minute: time(minute // 60, minute % 60))
windows = st.builds(Window, minutes, minutes)
times = st.datetimes(utc("1990-01-01"), utc("2037-12-31"))
near_changes = st.sampled_from(
    [
        "2026-03-08 07:00",
        "2026-11-01 06:00",
        "2026-03-29 01:00",
        "2026-10-25 01:00",
        "2026-04-04 15:00",
        "2026-10-03 15:30",
    ]
).flatmap(lambda change: st.integers(-2880, 1440).map(lambda minute: utc(change) + timedelta(minutes=minute)))
some_zones = st.lists(st.sampled_from(ZONES), min_size=1, max_size=3, unique=True)


def walked(window: Window, names: list[str], now: datetime, *, wanted: bool) -> datetime | None:
    """Walks minute after minute, for two days, until the clocks on the wall are all inside or not."""
    at = now
    for _ in range(2 * 1440):
        clocks = [at.replace(tzinfo=UTC).astimezone(ZoneInfo(name)).time() for name in names]
        inside = [
            window.start <= clock < window.end
            if window.start < window.end
            else not window.end <= clock < window.start or window.start == window.end
            for clock in clocks
        ]
        if all(inside) is wanted:
            return at
        at += timedelta(minutes=1)
    return None


@given(windows, some_zones, times | near_changes)
def test_it_agrees_with_walking_through_the_minutes(window: Window, names: list[str], now: datetime) -> None:
    now = now.replace(second=0, microsecond=0)
    places = zones(names)
    assert is_open(window, places, now) is (walked(window, names, now, wanted=True) == now)
    opens = next_open(window, places, now)
    if opens is None or opens - now < timedelta(days=2):
        assert opens == walked(window, names, now, wanted=True)
    assert closes_at(window, places, now) == walked(window, names, now, wanted=False)


@given(windows, some_zones, times)
def test_it_opens_at_once_or_was_closed_just_before(window: Window, names: list[str], now: datetime) -> None:
    places = zones(names)
    opens = next_open(window, places, now)
    if opens is None or opens == now:
        assert is_open(window, places, now) is (opens == now)
        return
    assert opens > now
    assert is_open(window, places, opens)
    assert not is_open(window, places, opens - timedelta(microseconds=1))
    assert not is_open(window, places, now)


@given(windows, times)
def test_without_a_zone_nothing_is_closed(window: Window, now: datetime) -> None:
    assert is_open(window, [], now)
    assert next_open(window, [], now) == now
