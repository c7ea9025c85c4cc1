"""The watchdog's limits: how long a program may be silent or down, and how long it waits between restarts."""

from dataclasses import dataclass

from worker.runtime.db import STATEMENT_TIMEOUT_SECONDS


@dataclass(frozen=True, kw_only=True)
class WatchdogLimits:
    """All in seconds except ``silent_intervals``."""

    # A job hangs when its heartbeat is older than this many of its intervals ...
    silent_intervals: int = 3
    # ... and older than this: a job writes no heartbeat while a statement runs in the database
    min_silence_seconds: float = STATEMENT_TIMEOUT_SECONDS + 60.0
    # ... and the watchdog has seen the same heartbeat for this long while Redis answered. Longer than the loop's
    # longest pause after an outage, so that a job can write a heartbeat first when Redis is available again.
    min_observed_seconds: float = 120.0
    # Between two restarts of a program that hangs; doubles each time up to the limit
    restart_pause_seconds: float = 600.0
    restart_pause_limit_seconds: float = 7200.0
    # Until a FATAL program is started again; doubles each time up to the limit
    fatal_pause_seconds: float = 30.0
    fatal_pause_limit_seconds: float = 900.0
    # A program that has run for this long counts as stable: the pauses begin at the shortest again
    stable_seconds: float = 600.0
    # What a machine's watchdog reported stays for so long after it has fallen silent
    machine_kept_seconds: float = 3600.0


DEFAULT_LIMITS = WatchdogLimits()
