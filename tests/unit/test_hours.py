"""Calls start only inside a tenant's business hours, in the tenant's local time."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.content.hours import BusinessHours

DAYS = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
WEEK = DAYS[:5]
INDIA, NEW_YORK, LONDON = "Asia/Kolkata", "America/New_York", "Europe/London"
LORD_HOWE, KATHMANDU = "Australia/Lord_Howe", "Asia/Kathmandu"
ZONES = [INDIA, NEW_YORK, LONDON, LORD_HOWE, KATHMANDU]


PARAMETERS = {
    "enableBusinessHours": "enabled",
    "businessHoursStart": "start",
    "businessHoursEnd": "end",
    "businessDays": "days",
    "timezone": "zone",
}


def business_hours(hours: str = "09:00-18:00", days: Any = None, zone: Any = INDIA, **columns: Any) -> BusinessHours:
    """``columns`` of "CallSettings" win over the other parameters."""
    start, end = hours.split("-")
    values = {"start": start, "end": end, "days": days, "zone": zone}
    return BusinessHours.of(**values | {PARAMETERS[column]: value for column, value in columns.items()})


def at(hours: BusinessHours, wall: str, zone: str = INDIA, fold: int = 0) -> bool:
    """Whether it is open at this local time."""
    local = datetime.fromisoformat(wall).replace(tzinfo=ZoneInfo(zone), fold=fold)
    return hours.open_at(local.astimezone(UTC).replace(tzinfo=None))


# In March 2026 the 6th is a Friday, the 7th a Saturday, the 8th a Sunday.
TABLE = [
    # both ends belong to it, the whole minute
    ("09:00-18:00", WEEK, INDIA, "2026-03-06 08:59:59.999", False),
    ("09:00-18:00", WEEK, INDIA, "2026-03-06 09:00:00", True),
    ("09:00-18:00", WEEK, INDIA, "2026-03-06 18:00:59.999", True),
    ("09:00-18:00", WEEK, INDIA, "2026-03-06 18:01:00", False),
    ("9:00-18:00", WEEK, INDIA, "2026-03-06 09:00:00", True),
    ("09:00-18:00", WEEK, INDIA, "2026-03-07 12:00:00", False),
    ("09:00-18:00", None, INDIA, "2026-03-08 12:00:00", True),
    ("09:00-18:00", [], INDIA, "2026-03-06 12:00:00", False),
    ("00:00-00:00", [], INDIA, "2026-03-06 12:00:00", False),
    # the day is the local one, not that of UTC
    ("00:00-05:00", ["fri"], INDIA, "2026-03-06 00:00:00", True),
    ("19:00-24:00", ["fri"], NEW_YORK, "2026-03-06 23:59:59", True),
    ("09:00-18:00", ["fri"], KATHMANDU, "2026-03-06 08:59:00", False),
    ("09:00-18:00", ["fri"], KATHMANDU, "2026-03-06 09:00:00", True),
    ("09:00-18:00", ["fri"], LORD_HOWE, "2026-03-06 18:00:00", True),
    # a night belongs to the day on which it began
    ("22:00-06:00", WEEK, INDIA, "2026-03-06 21:59:59", False),
    ("22:00-06:00", WEEK, INDIA, "2026-03-06 22:00:00", True),
    ("22:00-06:00", WEEK, INDIA, "2026-03-07 06:00:59", True),
    ("22:00-06:00", WEEK, INDIA, "2026-03-07 06:01:00", False),
    ("22:00-06:00", WEEK, INDIA, "2026-03-07 22:00:00", False),
    ("22:00-06:00", WEEK, INDIA, "2026-03-09 05:00:00", False),
    ("22:00-06:00", ["sun"], INDIA, "2026-03-09 05:00:00", True),
    ("22:00-00:00", ["fri"], INDIA, "2026-03-07 00:00:59", True),
    ("22:00-00:00", ["fri"], INDIA, "2026-03-07 00:01:00", False),
    # 24:00 ends the day: nothing of it lies in the next one
    ("09:00-24:00", ["fri"], INDIA, "2026-03-06 23:59:59", True),
    ("09:00-24:00", ["fri"], INDIA, "2026-03-07 00:00:00", False),
    ("00:00-24:00", ["fri"], INDIA, "2026-03-05 23:59:59", False),
    ("00:00-24:00", ["fri"], INDIA, "2026-03-06 00:00:00", True),
    ("23:59-24:00", ["fri"], INDIA, "2026-03-06 23:59:00", True),
    ("23:59-24:00", ["fri"], INDIA, "2026-03-06 23:58:59", False),
    # the same start and end: 24 hours from then on
    ("00:00-00:00", ["fri"], INDIA, "2026-03-06 23:59:59", True),
    ("00:00-00:00", ["fri"], INDIA, "2026-03-07 00:00:00", False),
    ("09:00-09:00", ["fri"], INDIA, "2026-03-06 08:59:59", False),
    ("09:00-09:00", ["fri"], INDIA, "2026-03-06 09:00:00", True),
    ("09:00-09:00", ["fri"], INDIA, "2026-03-07 08:59:59", True),
    ("09:00-09:00", ["fri"], INDIA, "2026-03-07 09:00:00", False),
    # spellings of days
    ("09:00-18:00", [" FRI ", "Friday"], INDIA, "2026-03-06 12:00:00", True),
    ("09:00-18:00", ["Saturday", "SUNDAY"], INDIA, "2026-03-08 12:00:00", True),
    ("09:00-18:00", {"value": ["fri"]}, INDIA, "2026-03-06 12:00:00", True),
    ("09:00-18:00", {"value": ["fri"]}, INDIA, "2026-03-07 12:00:00", False),
    ("09:00-18:00", {"value": []}, INDIA, "2026-03-06 12:00:00", False),
]


@pytest.mark.parametrize(("hours", "days", "zone", "wall", "is_open"), TABLE)
def test_the_table(hours: str, days: Any, zone: str, wall: str, is_open: bool) -> None:
    assert at(business_hours(hours, days, zone), wall, zone) is is_open


# UTC, because on these days a clock skips or repeats an hour (Lord Howe: half an hour).
CLOCK_CHANGES = [
    ("09:00-18:00", NEW_YORK, "2026-03-07 14:00", True),  # 09:00 in winter
    ("09:00-18:00", NEW_YORK, "2026-03-08 12:59", False),
    ("09:00-18:00", NEW_YORK, "2026-03-08 13:00", True),  # 09:00 in summer
    ("09:00-18:00", NEW_YORK, "2026-11-01 13:00", False),  # 08:00 in winter again
    ("09:00-18:00", NEW_YORK, "2026-11-01 14:00", True),
    ("01:00-02:59", NEW_YORK, "2026-03-08 06:59", True),  # 01:59, and then it is 03:00
    ("01:00-02:59", NEW_YORK, "2026-03-08 07:00", False),
    ("02:00-02:59", NEW_YORK, "2026-03-08 07:00", False),  # an hour that this day does not have
    ("01:00-01:59", NEW_YORK, "2026-11-01 05:59", True),  # 01:59 for the first time
    ("01:00-01:59", NEW_YORK, "2026-11-01 06:00", True),  # 01:00 for the second time
    ("01:00-01:59", NEW_YORK, "2026-11-01 07:00", False),
    ("09:00-18:00", LONDON, "2026-03-28 08:59", False),
    ("09:00-18:00", LONDON, "2026-03-29 08:00", True),
    ("09:00-18:00", LONDON, "2026-10-25 08:59", False),
    ("09:00-18:00", LONDON, "2026-10-25 09:00", True),
    ("09:00-18:00", LORD_HOWE, "2026-04-04 22:29", False),  # half an hour back that morning: +10:30 again
    ("09:00-18:00", LORD_HOWE, "2026-04-04 22:30", True),
    ("09:00-18:00", LORD_HOWE, "2026-10-03 21:59", False),  # half an hour on that morning: +11
    ("09:00-18:00", LORD_HOWE, "2026-10-03 22:00", True),
]


@pytest.mark.parametrize(("hours", "zone", "utc", "is_open"), CLOCK_CHANGES)
def test_the_clock_on_the_wall_counts_when_it_is_changed(hours: str, zone: str, utc: str, is_open: bool) -> None:
    assert business_hours(hours, zone=zone).open_at(datetime.fromisoformat(utc)) is is_open


@pytest.mark.parametrize("zone", [None, "", "  "])
def test_without_a_zone_it_is_indias(zone: str | None) -> None:
    assert business_hours(zone=zone) == business_hours(zone=INDIA)
    assert BusinessHours.of(start="9:00", end="18:00") == business_hours()


@pytest.mark.parametrize(
    "columns",
    [
        {"enableBusinessHours": False},
        {"enableBusinessHours": False, "timezone": "Mars", "businessDays": 7, "businessHoursStart": "late"},
        {"businessHoursStart": None},
        {"businessHoursStart": "", "businessDays": []},
        {"businessHoursEnd": None, "timezone": "Mars"},
        {"businessHoursEnd": "  "},
    ],
)
@given(now=st.datetimes())
def test_what_is_switched_off_or_not_configured_is_always_open(columns: dict[str, Any], now: datetime) -> None:
    assert business_hours(**{"businessDays": ["mon"]} | columns).open_at(now)


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        *[("businessHoursStart", each, "HH:MM from 00:00 to 23:59") for each in ("24:00", "9", "9:5", 540, "9am")],
        *[("businessHoursStart", each, "HH:MM") for each in ("09:00:00", "-1:00", "09:60", "०९:००", "09:00\x00")],
        *[("businessHoursEnd", each, "HH:MM from 00:00 to 24:00") for each in ("24:01", "25:00", [], True)],
        *[("businessDays", each, "a list of mon") for each in ("mon", 5, True, {}, {"days": ["mon"]})],
        *[("businessDays", each, "a list of mon") for each in ({"value": None}, {"value": {"value": ["mon"]}})],
        *[("businessDays", each, "mon, tue") for each in (["mon", "sunn"], ["mon", None], [1], [""], [["mon"]])],
        *[("timezone", each, "such as Asia/Kolkata") for each in ("Mars", "Asia", "../etc/passwd", "/etc/localtime")],
        *[("timezone", each, "such as Asia/Kolkata") for each in ("a" * 9999, "a/" * 30, "UTC\0", "IST+5:30", 5.5)],
        *[
            ("timezone", each, "such as Asia/Kolkata")
            for each in ("Asia/", "/", "\ud800", "__init__.py", "__init__/0", {})
        ],
    ],
)
def test_a_wrong_value_is_named_shown_and_what_is_allowed_said(column: str, value: Any, says: str) -> None:
    with pytest.raises(
        ValueError, match=rf'^CallSettings\."{column}" (is|has a day) .+; allowed: .*{says}'
    ) as caught:
        business_hours(**{column: value})
    assert len(str(caught.value)) < 250
    assert str(caught.value).isprintable()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([*DAYS, *ZONES, "09:00"]),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.just("value"), inner),
)


@given(columns=st.tuples(*[json_values] * 4), now=st.datetimes())
def test_whatever_the_row_holds_it_is_hours_or_a_value_error(columns: tuple[Any, ...], now: datetime) -> None:
    names = ("businessHoursStart", "businessHoursEnd", "businessDays", "timezone")
    try:
        hours = business_hours(**dict(zip(names, columns, strict=True)))
    except ValueError:
        return
    hours.open_at(now)


@given(st.lists(st.sampled_from(["Asia", "/", "..", ".", "\0", "__init__", "py", "zone", "a" * 300, "\ud800"])))
def test_a_zone_is_found_or_a_value_error(parts: list[str]) -> None:
    with suppress(ValueError):
        business_hours(zone="".join(parts))


clock_minutes = st.integers(0, 1439)
times = st.datetimes(datetime.fromisoformat("1990-01-01"), datetime.fromisoformat("2037-12-31"))


def text(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


def oracle(start: int, end: int, days: set[str], zone: str, now: datetime) -> bool:
    """Walks from each of the last business days' starts, a minute a step, and sees whether it meets ``now``."""
    wall = now.replace(tzinfo=UTC, second=0, microsecond=0).astimezone(ZoneInfo(zone)).replace(tzinfo=None, fold=0)
    for back in (0, 1):
        midnight = wall.replace(hour=0, minute=0) - timedelta(days=back)
        if DAYS[midnight.weekday()] not in days:
            continue
        each = midnight + timedelta(minutes=start)
        for step in range(1440):
            if each == wall:
                return True
            if text(end) == f"{each:%H:%M}" and step > 0:
                break
            each += timedelta(minutes=1)
    return False


@given(clock_minutes, clock_minutes, st.sets(st.sampled_from(DAYS)), st.sampled_from(ZONES), times)
def test_it_agrees_with_walking_through_the_minutes(
    start: int, end: int, days: set[str], zone: str, now: datetime
) -> None:
    hours = business_hours(f"{text(start)}-{text(end)}", sorted(days), zone)
    assert hours.open_at(now) is oracle(start, end, days, zone, now)


@given(clock_minutes, st.integers(1, 1438), st.sampled_from(ZONES), times)
def test_hours_and_the_rest_of_the_day_are_never_both_open_nor_both_closed(
    start: int, length: int, zone: str, now: datetime
) -> None:
    end = (start + length) % 1440
    hours = business_hours(f"{text(start)}-{text(end)}", zone=zone)
    rest = business_hours(f"{text((end + 1) % 1440)}-{text((start - 1) % 1440)}", zone=zone)
    one_minute = (end + 1) % 1440 == (start - 1) % 1440  # which, written so, means 24 hours
    assert hours.open_at(now) is not rest.open_at(now) or one_minute


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("now", ["0001-01-01 00:00:00", "9999-12-31 23:59:59.999999"])
def test_the_ends_of_time_are_no_error(zone: str, now: str) -> None:
    assert business_hours("00:00-24:00", zone=zone).open_at(datetime.fromisoformat(now))
