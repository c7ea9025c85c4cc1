"""What a machine reported stays for a while after its watchdog fell silent, and is dropped then."""

from worker.runtime.counter_readings import MetricValue
from worker.supervision.silent_machines import REPORTED_AT, SilentMachines

KEPT_SECONDS = 3600.0


def state(host: str) -> MetricValue:
    return MetricValue("program_state", {"host": host, "program": "campaign"}, 20)


def report(host: str, at: float) -> MetricValue:
    return MetricValue(REPORTED_AT, {"host": host}, at)


def test_one_that_is_silent_is_dropped() -> None:
    """Counted from when its latest report was seen first; the other machine's clock does not matter."""
    machines = SilentMachines(KEPT_SECONDS)
    gone = [report("gone", 9e9), state("gone")]
    for minute in range(60):
        now = minute * 60.0
        assert machines.dropped([*gone, report("here", now), state("here")], now) == []
    assert machines.dropped([*gone, report("here", 3600.0), state("here")], KEPT_SECONDS) == gone


def test_one_that_comes_back_is_kept() -> None:
    """Each new report counts anew, also one that is older than the one before."""
    machines = SilentMachines(KEPT_SECONDS)
    for now, at in ((0.0, 500.0), (KEPT_SECONDS - 1, 100.0), (2 * KEPT_SECONDS - 2, 100.0)):
        assert machines.dropped([report("crm-1", at), state("crm-1")], now) == []
    assert machines.dropped([], 2 * KEPT_SECONDS) == []
    assert machines.dropped([report("crm-1", 100.0), state("crm-1")], 3 * KEPT_SECONDS) == []


def test_what_has_no_machine_is_kept() -> None:
    """States without a time of their report count as silent; gauges of no machine are others' business."""
    machines = SilentMachines(KEPT_SECONDS)
    gauges = [MetricValue("calls_due", {}, 3.0), state("lost")]
    assert machines.dropped(gauges, 0.0) == []
    assert machines.dropped(gauges, KEPT_SECONDS) == [state("lost")]


def test_an_outage_of_redis_is_no_silence_of_the_machines() -> None:
    machines = SilentMachines(KEPT_SECONDS)
    gauges = [report("crm-1", 1.0), state("crm-1")]
    assert machines.dropped(gauges, 0.0) == []
    machines.forget()
    assert machines.dropped(gauges, KEPT_SECONDS) == []
