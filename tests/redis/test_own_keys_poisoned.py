"""The keys of the watchdog and of the AI's knowledge, whatever somebody else wrote into them."""

import logging
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
import redis

from worker.supervision.pending_restarts import RESTARTING, PendingRestarts
from worker.vectors.snapshots import ACCEPTED, RECORDS, SnapshotRecord, SnapshotRecordStore

NOON = datetime(2026, 1, 31, 12)  # noqa: DTZ001 - UTC without a zone
RECORD = SnapshotRecord(NOON, 5, 7)
KNOWLEDGE = f"{RECORDS}:crm"
MAKE: dict[str, Callable[[redis.Redis, str], Any]] = {
    "string": lambda client, key: client.set(key, "an operator's"),
    "list": lambda client, key: client.rpush(key, "an operator's"),
    "set": lambda client, key: client.sadd(key, "an operator's"),
    "hash": lambda client, key: client.hset(key, "an", "operator's"),
    "zset": lambda client, key: client.zadd(key, {"an operator's": 1}),
    "stream": lambda client, key: client.xadd(key, {"an": "operator's"}),
}
NO_HASHES = [kind for kind in MAKE if kind != "hash"]
ASIDE = "a poisoned key in Redis was put aside"


@pytest.fixture
def records(client: redis.Redis) -> SnapshotRecordStore:
    return SnapshotRecordStore(client, "crm")


@pytest.mark.parametrize("kind", NO_HASHES)
@pytest.mark.parametrize("first", ["load", "add", "remove"])
def test_pending_restarts_of_another_type(
    first: str, kind: str, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """A program that hangs is stopped all the same, and the next watchdog knows that it has to be started."""
    MAKE[kind](client, RESTARTING)
    restarts = PendingRestarts(client, "here")
    if first == "load":
        restarts.load()
    elif first == "remove":
        restarts.remove("campaign")
    restarts.add("calls")
    again = PendingRestarts(client, "here")
    again.load()
    assert "calls" in again
    assert client.type(f"{RESTARTING}:poisoned:1") == kind
    assert ASIDE in caplog.text


@pytest.mark.parametrize("at", ["", "soon", "nan", "inf", "-1", "1e999", b"\xff", "9" * 100_000])
def test_a_time_that_is_none(at: str | bytes, client: redis.Redis) -> None:
    """The watchdog starts, and takes over the others."""
    client.hset(RESTARTING, mapping={"here:campaign": at, "here:calls": repr(time.time())})
    restarts = PendingRestarts(client, "here")
    restarts.load()
    assert ["campaign" in restarts, "calls" in restarts] == [False, True]


WRITES: dict[str, Callable[[SnapshotRecordStore], object]] = {
    "unfinished": lambda records: records.put_unfinished(RECORD),
    "record": lambda records: records.put("s", RECORD),
    "accepted": lambda records: records.put_accepted(RECORD),
    "all": lambda records: records.all(),
    "keep": lambda records: records.keep_only([]),
}


@pytest.mark.parametrize("kind", NO_HASHES)
@pytest.mark.parametrize("first", WRITES)
def test_records_of_another_type(
    first: str, kind: str, client: redis.Redis, records: SnapshotRecordStore, caplog: pytest.LogCaptureFixture
) -> None:
    """They are lost, as after a loss of Redis, and the next ones are kept."""
    MAKE[kind](client, KNOWLEDGE)
    WRITES[first](records)
    records.put("later", RECORD)
    assert records.all()["later"] == RECORD
    assert client.type(f"{KNOWLEDGE}:poisoned:1") == kind
    assert ASIDE in caplog.text


@pytest.mark.parametrize("kind", [kind for kind in MAKE if kind != "set"])
def test_pins_of_another_type(kind: str, client: redis.Redis, records: SnapshotRecordStore) -> None:
    """A snapshot that is being restored can be pinned, and released."""
    MAKE[kind](client, f"{KNOWLEDGE}:pinned")
    records.pin("s")
    assert records.pinned() == {"s"}
    records.unpin("s")
    assert records.pinned() == set()
    MAKE[kind](client, f"{KNOWLEDGE}:pinned")
    assert records.pinned() == set()


@pytest.mark.parametrize("value", ["", "1 2", "x", "999999999999 1 1", "९ १ १", b"\xff\xfe", "1 1 " + "1" * 20_000])
def test_a_record_that_is_none(
    value: str | bytes, client: redis.Redis, records: SnapshotRecordStore, caplog: pytest.LogCaptureFixture
) -> None:
    """It is put aside, and the others count."""
    caplog.set_level(logging.WARNING)
    records.put("good", RECORD)
    records.put_accepted(RECORD)
    client.hset(KNOWLEDGE, "bad", value)
    assert set(records.all()) == {"good", ACCEPTED}
    assert set(client.hkeys(KNOWLEDGE)) == {"good", ACCEPTED}
    assert ASIDE in caplog.text
