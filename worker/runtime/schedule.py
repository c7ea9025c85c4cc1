"""When the next tick is due: at multiples of an interval on the wall clock of a time zone."""

from bisect import bisect_left
from datetime import UTC, datetime, timedelta, tzinfo

EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - a reading of any zone's clock


def next_aligned(now: datetime, interval_seconds: float, zone: tzinfo = UTC) -> datetime:
    """The next time, later than ``now``, that the clock of ``zone`` shows a multiple of the interval.

    Multiples count from 1970-01-01T00:00 on that clock; ``now`` and the result are UTC without a zone. When the clock
    is put forward and skips a multiple, the tick is at that moment. When the clock is put back and shows a multiple
    twice, only the first time counts; but both count if the interval is shorter than the repeated stretch, because
    otherwise the job would not run during that stretch.
    """
    interval = timedelta(seconds=interval_seconds)
    offset = _offset(now, zone)
    reading = _multiple_after(now + offset, interval)
    tick = reading - offset
    offset_then = _offset(tick, zone)
    if offset_then == offset:
        again = _repeated(tick, zone)
        return next_aligned(tick, interval_seconds, zone) if timedelta(0) < again <= interval else tick
    change = _change_after(now, tick, zone)
    if interval < offset - offset_then:
        shown = change + offset_then
        return _multiple_after(shown - timedelta.resolution, interval) - offset_then
    return max(change, reading - offset_then)


def _multiple_after(reading: datetime, interval: timedelta) -> datetime:
    return EPOCH + ((reading - EPOCH) // interval + 1) * interval


def _offset(at: datetime, zone: tzinfo) -> timedelta:
    """How far the zone's clock is ahead of UTC at this time."""
    return at.replace(tzinfo=UTC).astimezone(zone).utcoffset() or timedelta(0)


def _repeated(at: datetime, zone: tzinfo) -> timedelta:
    """How long ago the zone's clock showed the same time before; 0: it never did."""
    local = at.replace(tzinfo=UTC).astimezone(zone)
    return local.fold * ((local.replace(fold=0).utcoffset() or timedelta(0)) - _offset(at, zone))


def _change_after(early: datetime, late: datetime, zone: tzinfo) -> datetime:
    """When the zone's offset changes between two times; it changes at full seconds only."""
    before = _offset(early, zone)
    start = early.replace(microsecond=0)
    seconds = range(int((late - start).total_seconds()) + 2)
    changed = bisect_left(
        seconds, True, key=lambda second: _offset(start + timedelta(seconds=second), zone) != before
    )
    return start + timedelta(seconds=changed)
