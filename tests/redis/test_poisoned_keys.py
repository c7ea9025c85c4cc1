"""Keys of the worker that somebody else wrote: the poisoned is named, put aside and made anew; all else goes on."""

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from worker.runtime.counter_readings import COUNTERS, GAUGES, JOBS, CounterReadings, MetricValue, job_key, read_all
from worker.runtime.counters import Counters
from worker.runtime.poisoned_keys import KEPT_SECONDS, LONGEST_BYTES, OwnKey, poisoned, put_aside, read_keys

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
SENT = MetricValue("messages_total", {"channel": "email", "outcome": "sent"}, 3)
RUNS = MetricValue("job_runs_total", {"job": "calls", "outcome": "success"}, 1)
PENDING = MetricValue("campaign_pending_recipients", {}, 7)
KEYS = (COUNTERS, GAUGES, JOBS, job_key("calls"))
KNOWN = ("calls", "campaign", "trial")

MAKE: dict[str, Callable[[redis.Redis, str], Any]] = {
    "string": lambda client, key: client.set(key, "an operator's"),
    "list": lambda client, key: client.rpush(key, "an operator's"),
    "set": lambda client, key: client.sadd(key, "an operator's"),
    "hash": lambda client, key: client.hset(key, "an", "operator's"),
    "zset": lambda client, key: client.zadd(key, {"an operator's": 1}),
    "stream": lambda client, key: client.xadd(key, {"an": "operator's"}),
}
WRONG = [(key, kind) for key in KEYS for kind in MAKE if kind != ("set" if key == JOBS else "hash")]


def write(client: redis.Redis) -> None:
    """What a job writes."""
    counters = Counters(client, "calls")
    counters.add("messages_total", 3, channel="email", outcome="sent")
    counters.gauge("campaign_pending_recipients", 7)
    counters.job_started(NOON, 30)
    counters.job_ended(NOON, "success", 1.0, None)
    assert counters.flush()


def named(readings: CounterReadings) -> dict[str, str]:
    return {each.own.name: each.reason for each in readings.poisoned}


def repair(client: redis.Redis) -> CounterReadings:
    for each in read_all(client, KNOWN).poisoned:
        put_aside(client, each)
    return read_all(client, KNOWN)


@pytest.mark.parametrize(("key", "kind"), WRONG)
def test_a_key_of_another_type(client: redis.Redis, key: str, kind: str) -> None:
    """The others are read; this one is renamed with all that is in it, and written anew by the next write."""
    write(client)
    client.delete(key)
    MAKE[kind](client, key)
    content = client.dump(key) if kind != "stream" else client.xrange(key)
    readings = read_all(client, KNOWN)
    assert named(readings) == {key: f"is a {kind}, not a {'set' if key == JOBS else 'hash'}"}
    assert readings.counters == ([] if key == COUNTERS else [RUNS, SENT])
    assert readings.gauges == ([] if key == GAUGES else [PENDING])
    assert list(readings.jobs) == ([] if key == job_key("calls") else ["calls"])
    repaired = repair(client)
    aside = f"{key}:poisoned:1"
    assert (named(repaired), repaired.asides) == ({}, (aside,))
    assert (client.dump(aside) if kind != "stream" else client.xrange(aside)) == content, "nothing is lost"
    assert 0 < client.ttl(aside) <= KEPT_SECONDS
    assert (repaired.jobs["calls"].last_run is None) is (key == job_key("calls"))
    write(client)
    assert read_all(client).jobs["calls"].last_run == NOON.timestamp()


@pytest.mark.parametrize(("key", "kind"), WRONG)
def test_a_job_puts_aside_and_makes_anew(
    client: redis.Redis, key: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Without `web`: all that the job writes arrives, a line names the key, and it is said once."""
    MAKE[kind](client, key)
    write(client)
    readings = read_all(client)
    assert (readings.counters, readings.gauges, list(readings.jobs)) == ([RUNS, SENT], [PENDING], ["calls"])
    assert (readings.poisoned, readings.asides) == ((), (f"{key}:poisoned:1",))
    said = [record for record in caplog.records if record.message == "poisoned keys in Redis were put aside"]
    assert [record.levelno for record in said] == [logging.WARNING]
    assert f"{key}: WRONGTYPE, it was a {kind}" in str(said[0].args)
    write(client)
    assert len(caplog.records) == len(said)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("messages_total", "many"),
        ("messages_total", ""),
        ("messages_total", "nan"),
        ("messages_total", "inf"),
        ("messages_total", "-1"),
        ("messages_total", "1e400"),
        ("messages_total", "1e300"),
        ("messages_total", "0x10"),
        ("messages_total", "1_000"),
        ("messages_total", " 1"),
        ("messages_total", "1\n"),
        ("messages_total", "१"),
        ("messages_total", "1" * 10_000),
        ("messages_total", b"\xff"),
        ("messages-total", "1"),
        ("", "1"),
        ("1st", "1"),
        ("a b", "1"),
        ("messages_total{", "1"),
        ("messages_total{}", "1"),
        ('messages_total{outcome="sent"', "1"),
        ('messages_total{outcome="sent",channel="email"}', "1"),  # not in their order: another name of one series
        ('messages_total{out-come="sent"}', "1"),
        ('messages_total{outcome="a",outcome="b"}', "1"),
        ("messages_total{outcome='sent'}", "1"),
        ("नमस्ते", "1"),
        (b"messages_total\xff", "1"),
        (b'messages_total{outcome="\xff"}', "1"),
        (b"\x00", "1"),
    ],
)
@pytest.mark.parametrize("key", [COUNTERS, GAUGES])
def test_a_field_that_cannot_be_read(client: redis.Redis, key: str, field: str | bytes, value: str | bytes) -> None:
    """It is left out and named, then kept in a hash beside; a gauge may be below 0."""
    write(client)
    client.hset(key, field, value)
    readings = read_all(client)
    expected = [RUNS, SENT] if key == COUNTERS else [PENDING]
    if (key, value) == (GAUGES, "-1"):
        assert readings.gauges == [*expected, MetricValue("messages_total", {}, -1)]
        return
    assert (readings.counters if key == COUNTERS else readings.gauges) == expected
    assert named(readings).keys() == {key}
    assert readings.poisoned[0].reason.startswith("has an entry that cannot be read: ")
    repaired = repair(client)
    assert (repaired.poisoned, repaired.asides) == ((), (f"{key}:poisoned",))
    raw = redis.Redis(connection_pool=redis.ConnectionPool.from_url(url_of(client)))
    with raw:
        assert list(raw.hgetall(f"{key}:poisoned").items()) == [(as_bytes(field), as_bytes(value))]
        assert not raw.hexists(key, field)
    assert 0 < client.ttl(f"{key}:poisoned") <= KEPT_SECONDS


def as_bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def url_of(client: redis.Redis) -> str:
    where = client.get_connection_kwargs()
    return f"redis://:{where['password']}@{where['host']}:{where['port']}/{where['db']}"


@pytest.mark.parametrize("kind", [kind for kind in MAKE if kind != "string"])
def test_the_number_of_a_batch(client: redis.Redis, kind: str) -> None:
    """It is under a key of the process's own, which others can find all the same."""
    counters = Counters(client, "calls")
    counters.add("messages_total", 2, channel="email", outcome="sent")
    assert counters.flush()
    (key,) = client.keys("worker:batch:*")
    client.delete(key)
    MAKE[kind](client, key)
    counters.add("messages_total", 1, channel="email", outcome="sent")
    assert counters.flush()
    assert SENT in read_all(client).counters


@pytest.mark.parametrize("value", ["many", "nan", "inf", "1e400x", "", b"\xff"])
def test_a_counter_that_cannot_be_added_to(
    client: redis.Redis, value: str | bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """The job puts it aside and counts from 0: what it adds is never refused for ever."""
    client.hset(COUNTERS, 'messages_total{channel="email",outcome="sent"}', value)
    client.hset(job_key("calls"), "duration_sum", value)
    write(client)
    readings = read_all(client)
    assert readings.counters == [RUNS, SENT]
    assert readings.jobs["calls"].duration_sum_seconds == 1.0
    assert readings.asides == (f"{COUNTERS}:poisoned", f"{job_key('calls')}:poisoned")
    assert {record.message for record in caplog.records} == {"poisoned keys in Redis were put aside"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("pid", value) for value in ("x", "nan", "-1", "1e300", "")],
        *[("heartbeat", value) for value in ("x", "inf", "-5", "1e300", "99999999999999")],
        *[("interval", value) for value in ("0", "1e-9", "1e300", "-60", "x")],
        *[("duration_count", value) for value in ("x", "inf", "-1")],
        ("duration_bucket:0.01", "x"),
        ("duration_bucket:inf", "-1"),
        ("last_run", "x"),
        ("last_success", "2026-01-31"),
        ("last_error_at", "x"),
        ("duration_sum", "nan"),
    ],
)
def test_a_field_of_a_job(client: redis.Redis, field: str, value: str) -> None:
    """The other fields are read, and so are other jobs."""
    write(client)
    before = read_all(client).jobs["calls"]
    Counters(client, "campaign").job_started(NOON, 60)
    client.hset(job_key("calls"), field, value)
    readings = read_all(client)
    assert list(readings.jobs) == ["calls", "campaign"]
    assert (readings.jobs["calls"].host, named(readings).keys()) == (before.host, {job_key("calls")})
    assert repair(client).poisoned == ()
    assert client.hgetall(f"{job_key('calls')}:poisoned") == {field: value}
    write(client)
    assert read_all(client).jobs["calls"].interval_seconds == 30


@pytest.mark.parametrize("member", ["", "a b", "x" * 200, "../x", "a\nb", b"\xff", "x" * 10_000_000])
def test_a_name_that_is_no_job(client: redis.Redis, member: str | bytes) -> None:
    """It leaves the set, and the other jobs stay."""
    write(client)
    client.sadd(JOBS, member)
    readings = read_all(client)
    assert (list(readings.jobs), named(readings).keys()) == (["calls"], {JOBS})
    assert repair(client).poisoned == ()
    assert client.smembers(JOBS) == {"calls"}
    assert client.hlen(f"{JOBS}:poisoned") == 1


@pytest.mark.parametrize("place", ["field", "value", "key"])
def test_ten_megabytes(client: redis.Redis, place: str) -> None:
    """They never leave Redis: reading takes no longer and no more memory."""
    write(client)
    large = "x" * 10_000_000
    if place == "key":
        client.set(GAUGES, large)
    else:
        client.hset(COUNTERS, *(("a_total", large) if place == "value" else (large, "1")))
    before = client.info("stats")["total_net_output_bytes"]
    readings = read_all(client)
    assert client.info("stats")["total_net_output_bytes"] - before < 1_000_000
    assert readings.counters == [RUNS, SENT]
    (found,) = readings.poisoned
    assert len(found.reason) < 300
    assert repair(client).poisoned == ()
    kept = client.strlen(f"{GAUGES}:poisoned:1") if place == "key" else client.memory_usage(f"{COUNTERS}:poisoned")
    assert kept >= 10_000_000, "nothing is lost"


def test_a_value_just_as_long_as_possible(client: redis.Redis) -> None:
    """A label may be long; a value one byte longer than the limit is poisoned."""
    label = "x" * (LONGEST_BYTES - len('a_total{b=""}'))
    client.hset(COUNTERS, f'a_total{{b="{label}"}}', "1")
    assert [each.labels["b"] for each in read_all(client).counters] == [label]
    client.hset(COUNTERS, f'a_total{{b="{label}x"}}', "1")
    assert named(read_all(client)).keys() == {COUNTERS}


def test_far_too_many_entries(client: redis.Redis) -> None:
    """A hash or set that grew without end is put aside whole."""
    write(client)
    client.hset(GAUGES, mapping={f"g{number}": "1" for number in range(10_001)})
    client.sadd(JOBS, *(f"job-{number}" for number in range(1_001)))
    readings = read_all(client, KNOWN)
    assert named(readings) == {
        GAUGES: "has 10,002 entries, at most 10,000 are possible",
        JOBS: "has 1,002 entries, at most 1,000 are possible",
    }
    assert readings.counters == [RUNS, SENT]
    assert repair(client).poisoned == ()
    assert (client.hlen(f"{GAUGES}:poisoned:1"), client.scard(f"{JOBS}:poisoned:1")) == (10_002, 1_002)


def test_many_bad_fields_are_moved_step_by_step(client: redis.Redis) -> None:
    write(client)
    client.hset(COUNTERS, mapping={f"bad-{number}": "1" for number in range(450)})
    assert named(read_all(client))[COUNTERS].endswith(", and 449 more")
    for _ in range(3):
        repair(client)
    assert named(read_all(client)) == {}
    assert client.hlen(f"{COUNTERS}:poisoned") == 450


def test_what_was_put_aside_is_not_replaced(client: redis.Redis) -> None:
    """Ten times: nine are kept, and the tenth takes the place of the ninth."""
    for number in range(10):
        client.delete(GAUGES)
        client.set(GAUGES, str(number))
        repair(client)
    kept = {key: client.get(key) for key in sorted(client.keys("*:poisoned:*"))}
    assert list(kept.values()) == ["0", "1", "2", "3", "4", "5", "6", "7", "9"]


def test_the_hash_beside_may_be_poisoned_itself(client: redis.Redis) -> None:
    write(client)
    client.set(f"{COUNTERS}:poisoned", "an operator's")
    client.hset(COUNTERS, "bad-name", "1")
    assert repair(client).poisoned == ()
    assert client.hgetall(f"{COUNTERS}:poisoned") == {"bad-name": "1"}
    assert client.get(f"{COUNTERS}:poisoned:poisoned:1") == "an operator's"


def test_what_is_right_again_stays(client: redis.Redis) -> None:
    """Another process may have made the key anew since it was read."""
    client.set(GAUGES, "x")
    client.hset(COUNTERS, "a_total", "many")
    found = read_all(client).poisoned
    client.delete(GAUGES, COUNTERS)
    client.hset(GAUGES, "a", "1")
    client.hset(COUNTERS, "a_total", "5")
    for each in found:
        put_aside(client, each)
    assert client.keys("*:poisoned*") == []
    assert [each.value for each in read_all(client).counters] == [5]


def test_jobs_are_found_without_their_set(client: redis.Redis) -> None:
    """While it is poisoned, and as long as what was in it is kept: then each job has written its name again."""
    write(client)
    Counters(client, "trial").job_started(NOON, 3600)
    client.srem(JOBS, "trial")
    assert list(read_all(client, KNOWN).jobs) == ["calls"], "taken out of service by an operator"
    client.delete(JOBS)
    client.rpush(JOBS, "x")
    assert list(read_all(client, KNOWN).jobs) == ["calls", "trial"]
    write(client)
    assert list(read_all(client, KNOWN).jobs) == ["calls", "trial"]
    client.delete(f"{JOBS}:poisoned:1")
    assert list(read_all(client, KNOWN).jobs) == ["calls"]


def test_a_list_is_read_as_far_as_it_is_wanted(client: redis.Redis) -> None:
    """A long one is not poisoned; entries that are too long are left out."""
    own = OwnKey("worker:history", "list", most=3)
    client.rpush(own.name, "a", "x" * 1_000_000, "b", "c", "d")
    (stored,) = read_keys(client, [own])
    assert (stored.size, stored.entries) == (5, (b"a", b"b"))
    assert poisoned(stored) is None
    client.delete(own.name)
    client.set(own.name, "x")
    found = poisoned(read_keys(client, [own])[0])
    assert found
    put_aside(client, found)
    assert client.get("worker:history:poisoned:1") == "x"


def test_a_server_that_takes_no_writes(client: redis.Redis) -> None:
    """Reading goes on, and putting aside says so as Redis does."""
    write(client)
    client.hset(COUNTERS, "bad-name", "1")
    found = read_all(client).poisoned[0]
    client.config_set("maxmemory", 1)
    try:
        assert read_all(client).counters == [RUNS, SENT]
        with pytest.raises(redis.RedisError):
            put_aside(client, found)
    finally:
        client.config_set("maxmemory", 0)
    assert client.hget(COUNTERS, "bad-name") == "1"


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.sampled_from(KEYS),
    st.binary(max_size=40) | st.sampled_from([b"running", b"pid", b"last_run", b"messages_total", b"duration_count"]),
    st.binary(max_size=40) | st.floats().map(lambda number: repr(number).encode()),
)
def test_anything(client: redis.Redis, key: str, entry: bytes, value: bytes) -> None:
    """Whatever bytes are written: reading never fails, and after one repair nothing is poisoned."""
    client.flushall()
    write(client)
    if key == JOBS:
        client.sadd(key, entry)
    else:
        client.hset(key, entry, value)
    assert read_all(client, KNOWN).jobs
    assert repair(client).poisoned == ()


def test_reading_is_quick(client: redis.Redis) -> None:
    """As many series as there can be on the page are read in a few milliseconds."""
    write(client)
    client.hset(COUNTERS, mapping={f'program_exits_total{{program="p{number}"}}': "1" for number in range(500)})

    def seconds() -> float:
        began = time.monotonic()
        read_all(client)
        return time.monotonic() - began

    assert min(seconds() for _ in range(5)) < 0.2
