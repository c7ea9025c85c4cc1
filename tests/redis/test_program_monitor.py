"""The watchdog's reports in Redis."""

import logging

import pytest
import redis

from worker.runtime.counters import Counters, read_all
from worker.runtime.db import Database
from worker.supervision.event_listener import SupervisordEvent
from worker.supervision.limits import WatchdogLimits
from worker.supervision.program_monitor import ProgramMonitor
from worker.supervision.supervisord_client import Supervisord

NO_DATABASE = "postgresql://nobody@127.0.0.1:9/none"
TICK = SupervisordEvent()


def test_a_machine_that_is_gone(client: redis.Redis, caplog: pytest.LogCaptureFixture) -> None:
    """What its watchdog reported leaves Redis, and nothing else does; the log names it once."""
    caplog.set_level(logging.INFO)
    gone = Counters(client, "watchdog")
    gone.gauge("watchdog_timestamp_seconds", 1.0, host="worker-1")
    gone.gauge("program_state", 20, program="campaign", host="worker-1")
    gone.gauge("calls_due", 3)
    gone.flush()
    supervisord = Supervisord({"SUPERVISOR_SERVER_URL": "http://127.0.0.1:9"})
    limits = WatchdogLimits(machine_kept_seconds=0.0)
    monitor = ProgramMonitor(supervisord, client, Database(NO_DATABASE, "test"), limits)
    monitor.start()
    assert {each.labels.get("host") for each in read_all(client).gauges} >= {"worker-1", None}
    for _ in range(2):
        monitor.handle([TICK])
    left = read_all(client).gauges
    assert [each.value for each in left if each.metric == "calls_due"] == [3.0]
    assert "worker-1" not in {each.labels.get("host") for each in left}
    said = [each.args for each in caplog.records if "what it reported is dropped" in each.getMessage()]
    assert [each for each in said if each == {"host": "worker-1"}] == [{"host": "worker-1"}]
