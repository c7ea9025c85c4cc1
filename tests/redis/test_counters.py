"""Counters: what jobs write can be read, and during an outage nothing is lost or counted twice."""

import logging
import math
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from redis_servers import Server

from worker.runtime.counter_readings import JobState, MetricValue, parse_series, series_name
from worker.runtime.counters import Counters, read_all

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
Connected = Callable[..., redis.Redis]


def job(client: redis.Redis) -> JobState:
    return read_all(client).jobs["campaign"]


def counted(client: redis.Redis, metric: str) -> float:
    return sum(sample.value for sample in read_all(client).counters if sample.metric == metric)


def test_counters(client: redis.Redis) -> None:
    """The amounts of several processes are added up for each series when they are flushed."""
    for counters in (Counters(client, "campaign"), Counters(client, "campaign")):
        counters.add("messages_total", 3, outcome="sent", channel="email")
        counters.add("messages_total", channel="email", outcome="sent")
        counters.add("trials_suspended_total", 0.5)
        assert counters.flush()
        assert counters.flush()
    assert client.hgetall("worker:counters") == {
        'messages_total{channel="email",outcome="sent"}': "8",
        "trials_suspended_total": "1",
    }
    assert read_all(client).counters == [
        MetricValue("messages_total", {"channel": "email", "outcome": "sent"}, 8),
        MetricValue("trials_suspended_total", {}, 1),
    ]


def test_one_round_trip(client: redis.Redis) -> None:
    """Adding costs no round trip, and a flush of a hundred series costs one."""
    counters = Counters(client, "campaign")
    counters.add("first")
    counters.flush()
    before = int(client.info("commandstats")["cmdstat_evalsha"]["calls"])
    for number in range(100):
        counters.add("messages_total", tenant=str(number))
    counters.flush()
    assert int(client.info("commandstats")["cmdstat_evalsha"]["calls"]) == before + 1
    assert counted(client, "messages_total") == 100


def test_gauges(client: redis.Redis) -> None:
    """A gauge keeps its latest value."""
    counters = Counters(client, "campaign")
    counters.gauge("campaign_pending_recipients", 5)
    counters.gauge("campaign_pending_recipients", 2.5)
    counters.gauge("dependency_up", 1, service="redis")
    counters.flush()
    assert read_all(client).gauges == [
        MetricValue("campaign_pending_recipients", {}, 2.5),
        MetricValue("dependency_up", {"service": "redis"}, 1),
    ]


def test_a_gauge_that_is_dropped(client: redis.Redis) -> None:
    """It is gone with the next flush, unless it was set again meanwhile."""
    counters = Counters(client, "watchdog")
    for host in ("a", "b"):
        counters.gauge("program_state", 20, host=host)
    counters.flush()
    for host in ("a", "b"):
        counters.drop_gauge("program_state", host=host)
    counters.gauge("program_state", 100, host="b")
    counters.flush()
    assert read_all(client).gauges == [MetricValue("program_state", {"host": "b"}, 100)]


def test_life_of_a_job(client: redis.Redis) -> None:
    """A tick shows as running from its start to its end, then as a success with its duration."""
    counters = Counters(client, "campaign")
    counters.job_started(NOON, 60)
    running = job(client)
    assert running.running
    assert (running.last_run, running.interval_seconds) == (NOON.timestamp(), 60)
    assert running.last_success is None
    assert running.pid
    assert running.host
    counters.heartbeat(NOON + timedelta(seconds=10))
    assert job(client).heartbeat == NOON.timestamp() + 10
    counters.job_ended(NOON + timedelta(seconds=20), "success", 20.0, None)
    counters.flush()
    ended = job(client)
    assert not ended.running
    assert ended.last_success == ended.heartbeat == NOON.timestamp() + 20
    assert (ended.duration_count, ended.duration_sum_seconds) == (1, 20)
    assert dict(ended.duration_buckets)[10.0] == 0
    assert dict(ended.duration_buckets)[30.0] == dict(ended.duration_buckets)[math.inf] == 1
    assert read_all(client).counters == [MetricValue("job_runs_total", {"job": "campaign", "outcome": "success"}, 1)]


def test_failure(client: redis.Redis) -> None:
    """A failed tick stores its error, cut to 500 characters, and does not change the time of the last success."""
    counters = Counters(client, "campaign")
    counters.job_started(NOON.replace(tzinfo=None), 60)  # UTC without a zone, as the database has it
    counters.job_ended(NOON, "failure", 0.2, "no server \udc00" + "x" * 1000)
    counters.flush()
    state = job(client)
    assert state.last_run == state.last_error_at == NOON.timestamp()
    assert state.last_error
    assert state.last_error.startswith("no server ?x")
    assert len(state.last_error) == 500
    assert state.last_success is None
    assert not state.running


def test_skipped(client: redis.Redis) -> None:
    """A worker that skips a tick counts that, and does not change the state that the other worker has written."""
    active, idle = Counters(client, "campaign"), Counters(client, "campaign")
    active.job_started(NOON, 60)
    before = job(client)
    idle.job_ended(NOON + timedelta(seconds=1), "skipped", 0.0, None)
    idle.flush()
    assert job(client) == before
    assert counted(client, "job_runs_total") == 1


def test_former_holder(client: redis.Redis) -> None:
    """A worker that lost its lock and ends late does not mark the job of its successor as not running."""
    late, successor = Counters(client, "campaign"), Counters(client, "campaign")
    late.job_started(NOON, 60)
    successor.job_started(NOON + timedelta(seconds=70), 60)
    late.job_ended(NOON + timedelta(seconds=80), "failure", 80.0, "lock lost")
    late.flush()
    assert job(client).running
    successor.job_ended(NOON + timedelta(seconds=90), "success", 20.0, None)
    successor.flush()
    assert not job(client).running


def test_outage(new_server: Callable[..., Server], connected: Connected, caplog: pytest.LogCaptureFixture) -> None:
    """What is counted while Redis is unavailable is written when it is back; one line is logged."""
    server = new_server("--appendonly", "yes", "--appendfsync", "always")
    client = connected(server.url)
    counters = Counters(client, "campaign")
    counters.add("messages_total")
    assert counters.flush()
    server.stop(kill=True)
    counters.job_started(NOON, 60)
    for _ in range(10):
        counters.add("messages_total")
        assert not counters.flush()
    counters.job_ended(NOON, "success", 1.0, None)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    server.start()
    assert counters.flush()
    assert counted(client, "messages_total") == 11
    assert not job(client).running


def test_lost_answer(new_server: Callable[..., Server], connected: Connected) -> None:
    """A batch that arrived, but whose answer was lost, is not counted twice when it is sent again."""
    server = new_server()
    client = connected(server.url)
    counters = Counters(connected(server.url, timeout_seconds=1.0), "campaign")
    counters.add("messages_total")
    assert counters.flush()
    server.freeze()
    counters.add("messages_total", 10)
    assert not counters.flush()  # in the socket of the frozen server
    assert not counters.flush()
    counters.add("messages_total", 100)
    server.thaw()
    assert counters.flush()
    assert counted(client, "messages_total") == 111


def test_read_only(client: redis.Redis, new_server: Callable[..., Server], connected: Connected) -> None:
    """A batch that a server refuses, because it takes no writes, is written completely later."""
    full = connected(new_server().url)
    counters = Counters(full, "campaign")
    full.config_set("maxmemory", 1)
    counters.add("messages_total")
    assert not counters.flush()
    full.config_set("maxmemory", 0)
    assert counters.flush()
    assert counted(full, "messages_total") == 1


def test_spoilt_key(client: redis.Redis, caplog: pytest.LogCaptureFixture) -> None:
    """The numbers for a key of another type are lost and an error is logged; all other numbers are written."""
    client.set("worker:gauges", "spoilt")
    counters = Counters(client, "campaign")
    counters.gauge("dependency_up", 1)
    counters.add("messages_total")
    assert counters.flush()
    assert client.hgetall("worker:counters") == {"messages_total": "1"}
    assert "WRONGTYPE" in str(caplog.records[0].args)


def test_threads(client: redis.Redis) -> None:
    """Nothing is lost when several threads add and flush at the same time."""
    counters = Counters(client, "campaign")

    def work() -> None:
        for number in range(200):
            counters.add("messages_total")
            if number % 20 == 0:
                counters.flush()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counters.flush()
    assert counted(client, "messages_total") == 1600


@pytest.mark.parametrize("amount", [-1, math.inf, math.nan])
def test_bad_amount(amount: float, client: redis.Redis) -> None:
    """A counter that would decrease is an error of the program."""
    with pytest.raises(ValueError, match="only grows"):
        Counters(client, "campaign").add("messages_total", amount)


def test_bad_name(client: redis.Redis) -> None:
    """A name that is not valid for Prometheus is refused when it is written."""
    with pytest.raises(ValueError, match="not the name"):
        Counters(client, "campaign").add("messages-total")


def test_nothing_yet(client: redis.Redis) -> None:
    """Before any job ran there is nothing to read."""
    readings = read_all(client)
    assert (readings.counters, readings.gauges, readings.jobs) == ([], [], {})


@given(st.dictionaries(st.from_regex(r"[a-z_][a-z0-9_]*", fullmatch=True), st.text()))
def test_labels(labels: dict[str, str]) -> None:
    """Any label value is read back unchanged, and the order of labels does not change the field's name."""
    name = series_name("messages_total", labels)
    assert parse_series(name) == ("messages_total", labels)
    assert name == series_name("messages_total", dict(reversed(labels.items())))
    assert "\n" not in name
