"""When a number may be called: which window counts for it, and by which clocks."""

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import phonenumbers
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.content.call_hours import CallWindows, is_calling_code
from worker.content.windows import Window, is_open

USUAL = CallWindows(Window.parse("08:00-21:00"), {})
WINTER, SUMMER = datetime(2026, 1, 14), datetime(2026, 7, 15)  # UTC  # noqa: DTZ001


def home() -> ZoneInfo:
    return ZoneInfo("Asia/Kolkata")


def opened(number: str, day: datetime, windows: CallWindows = USUAL) -> str:
    """When the number may be called next, in UTC; one that may be called at midnight: when it opens again."""
    hours = windows.hours_of(phonenumbers.parse(number), home)
    opens = hours.opens_at(hours.closes_at(day) or day)
    assert opens is not None
    closes = hours.closes_at(opens)
    return f"{opens:%H:%M}-{closes:%H:%M}" if closes else "always"


@pytest.mark.parametrize(
    ("number", "winter", "summer"),
    [
        ("+919876543210", "03:30-15:30", "03:30-15:30"),  # India: 09:00-21:00
        ("+912066118900", "03:30-15:30", "03:30-15:30"),  # a fixed line in Pune
        ("+12125550100", "13:00-02:00", "12:00-01:00"),  # New York
        ("+12135550100", "16:00-05:00", "15:00-04:00"),  # Los Angeles
        ("+16025550100", "15:00-04:00", "15:00-04:00"),  # Phoenix, which has no summer time
        ("+19075550100", "18:00-06:00", "17:00-05:00"),  # Alaska has two zones
        ("+442079460000", "08:00-21:00", "07:00-20:00"),  # London
        ("+33142685300", "07:00-20:00", "06:00-19:00"),  # Paris
        ("+97145550100", "04:00-17:00", "04:00-17:00"),  # Dubai
        ("+9779841234567", "02:15-15:15", "02:15-15:15"),  # Nepal
        ("+5511987654321", "11:00-00:00", "11:00-00:00"),  # a mobile number of São Paulo
        ("+61412345678", "01:30-10:00", "01:30-10:30"),  # an Australian one: anywhere from its islands to Sydney
        ("+79161234567", "06:00-09:00", "05:00-09:00"),  # a Russian one: anywhere from Kaliningrad to Kamchatka
        ("+74951234567", "05:00-18:00", "05:00-18:00"),  # a fixed line in Moscow
        ("+77172123456", "03:00-16:00", "03:00-16:00"),  # Astana, with the same country code
        ("+18005550100", "22:00-00:30", "22:00-23:30"),  # toll-free: anywhere from Guam to Hawaii
        ("+521234567890", "16:00-02:00", "15:00-01:00"),  # in no known range: anywhere in Mexico
        ("+80012345678", "02:30-15:30", "02:30-15:30"),  # of no place: CALL_WINDOW by the tenant's clock
        ("+870773111632", "02:30-15:30", "02:30-15:30"),  # a ship
    ],
)
def test_the_hours_of_a_number(number: str, winter: str, summer: str) -> None:
    assert (opened(number, WINTER), opened(number, SUMMER)) == (winter, summer)


def test_the_day_on_which_clocks_change() -> None:
    """In New York on March 8th it opens an hour earlier, and closes an hour earlier."""
    hours = USUAL.hours_of(phonenumbers.parse("+12125550100"), home)
    saturday_night = datetime(2026, 3, 8, 2)  # noqa: DTZ001
    opens = hours.opens_at(saturday_night)
    assert opens == datetime(2026, 3, 8, 12)  # noqa: DTZ001
    assert hours.closes_at(opens) == datetime(2026, 3, 9, 1)  # noqa: DTZ001


def test_a_country_may_have_other_hours() -> None:
    """CALL_WINDOWS has the last word, also about those that are built in; the others stay as they are."""
    windows = CallWindows(
        Window.parse("10:00-18:00"), {91: Window.parse("10:00-19:00"), 44: Window.parse("00:00-24:00")}
    )
    assert opened("+919876543210", WINTER, windows) == "04:30-13:30"
    assert opened("+442079460000", WINTER, windows) == "always"
    assert opened("+12125550100", WINTER, windows) == "13:00-02:00"
    assert opened("+33142685300", WINTER, windows) == "09:00-17:00"


def test_hours_that_the_zones_of_a_number_never_share() -> None:
    """No wait would ever end: the reason says what to set."""
    hours = CallWindows(Window.parse("09:00-17:00"), {7: Window.parse("09:00-17:00")}).hours_of(
        phonenumbers.parse("+79161234567"), home
    )
    assert hours.opens_at(WINTER) is None
    assert "it is never 09:00-17:00 in all 16 time zones" in hours.why_never
    assert "CALL_WINDOWS=+7=" in hours.why_never


def test_the_tenants_zone_is_asked_for_only_when_it_counts() -> None:
    def unreadable() -> ZoneInfo:
        raise ValueError("its timezone is Mars")

    assert USUAL.hours_of(phonenumbers.parse("+919876543210"), unreadable).country == 91
    with pytest.raises(ValueError, match="Mars"):
        USUAL.hours_of(phonenumbers.parse("+80012345678"), unreadable)


def test_calling_codes() -> None:
    assert [code for code in (1, 7, 44, 91, 800, 870, 971, 999, 0, 12) if not is_calling_code(code)] == [999, 0, 12]


numbers = st.sampled_from(
    ["+919876543210", "+12125550100", "+18005550100", "+79161234567", "+61412345678", "+442079460000", "+80012345678"]
)
times = st.datetimes(datetime(2020, 1, 1), datetime(2035, 1, 1))  # noqa: DTZ001


@given(numbers, times)
def test_no_phone_rings_at_night_in_any_place_of_the_number(number: str, now: datetime) -> None:
    """Whatever the moment: it may be called until it closes, and not at all between closing and opening."""
    hours = USUAL.hours_of(phonenumbers.parse(number), home)
    opens = hours.opens_at(now)
    assert opens is not None
    assert opens - now < timedelta(days=1, hours=1)
    closes = hours.closes_at(opens)
    assert closes is not None
    assert closes > opens
    for moment in (opens, closes - timedelta(seconds=1)):
        local = [moment.replace(tzinfo=ZoneInfo("UTC")).astimezone(zone) for zone in hours.zones]
        assert all(8 <= clock.hour < 21 for clock in local)
    assert not is_open(hours.window, hours.zones, closes)
