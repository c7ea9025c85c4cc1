"""The clocks: the wall clock as the CRM's database writes it, and one that never stands still."""

import time
from datetime import UTC, datetime

# Counts on while the process is stopped and while the machine sleeps; systems without it have the next best.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def utc_now() -> datetime:
    """Now, as the CRM's database writes it: UTC without a zone."""
    return datetime.now(UTC).replace(tzinfo=None)


def boot_seconds() -> float:
    """Seconds since the machine booted, sleep included: to find out whether this process was frozen."""
    return time.clock_gettime(_CLOCK)
