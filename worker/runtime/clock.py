"""Two clocks: the wall clock as the CRM's database writes it, and one that also counts while the machine sleeps."""

import time
from datetime import UTC, datetime

# Where a system has no CLOCK_BOOTTIME, the clock that stands still while the machine sleeps has to do.
_BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def utc_now() -> datetime:
    """Now, as the CRM's database writes it: UTC without a zone."""
    return datetime.now(UTC).replace(tzinfo=None)


def boot_seconds() -> float:
    """Seconds since the machine booted, including the time it slept: shows whether this process was frozen."""
    return time.clock_gettime(_BOOT_CLOCK)
