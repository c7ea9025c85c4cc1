"""What the watchdogs reported of programs, kept apart by machine."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from worker.runtime.counter_readings import MetricValue

BY_HOST = ("program_state", "program_bad_settings")
REPORTED_AT = "watchdog_timestamp_seconds"
SILENT_SECONDS = 600.0  # a watchdog reports once a minute; of a machine that is silent for so long nothing is known


def of_live_hosts(gauges: Iterable[MetricValue], now: float) -> Iterator[MetricValue]:
    """All gauges, without the states of machines whose watchdog is silent. ``now``: Unix seconds.

    States without a machine are an older watchdog's; they count, with an empty name, as long as there are no others.
    """
    known = list(gauges)
    reported = {each.labels.get("host"): each.value for each in known if each.metric == REPORTED_AT}
    live = {host for host, at in reported.items() if abs(now - at) < SILENT_SECONDS}
    for each in known:
        if each.metric not in BY_HOST or each.labels.get("host") in live:
            yield each
        elif "host" not in each.labels and not reported:
            yield replace(each, labels=each.labels | {"host": ""})
