"""The machines whose watchdog reports nothing any more: what it reported last does not stay in Redis for ever.

Machines of a cloud and containers come with a new name each time. ``web`` shows nothing of one that is silent
(worker/web/program_states.py). Whether one is, is seen by this machine's monotonic clock: clocks may differ.
"""

from collections.abc import Sequence

from worker.runtime.counter_readings import MetricValue

REPORTED_AT = "watchdog_timestamp_seconds"


class SilentMachines:
    """Remembers since when each machine has reported nothing new."""

    def __init__(self, kept_seconds: float) -> None:
        self._kept_seconds = kept_seconds
        self._seen: dict[str, tuple[float, float]] = {}  # host -> its latest report, monotonic() when we first saw it

    def forget(self) -> None:
        """Redis was silent, and not the machines."""
        self._seen = {}

    def dropped(self, gauges: Sequence[MetricValue], now: float) -> list[MetricValue]:
        """Those of machines that have been silent for too long. ``now``: monotonic()."""
        reports = {each.labels["host"]: 0.0 for each in gauges if "host" in each.labels}
        reports |= {each.labels.get("host", ""): each.value for each in gauges if each.metric == REPORTED_AT}
        known = self._seen
        self._seen = {
            host: known[host] if host in known and known[host][0] == report else (report, now)
            for host, report in reports.items()
        }
        return [
            each
            for each in gauges
            if (host := each.labels.get("host")) and now - self._seen[host][1] >= self._kept_seconds
        ]
