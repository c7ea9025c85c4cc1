"""What LiveEvents publishes, and what it does during an outage; tests/wire has the test with a real Socket.IO."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import msgpack
import pytest
import redis
from redis_servers import Server

from worker.runtime.events import LiveEvents


@contextmanager
def subscribed(url: str) -> Iterator[redis.client.PubSub]:
    """An adapter's subscription."""
    with (
        redis.Redis.from_url(url) as client,
        client.pubsub(ignore_subscribe_messages=True) as subscription,
    ):
        subscription.psubscribe("socket.io#/#*")
        subscription.get_message(timeout=5)  # the confirmation
        yield subscription


def received(url: str, emit: Callable[[], None]) -> tuple[str, object]:
    """The channel and the decoded message that an adapter's subscription receives."""
    with subscribed(url) as subscription:
        emit()
        message = subscription.get_message(timeout=5)
        assert message
        return message["channel"].decode(), msgpack.unpackb(message["data"])


def test_packet(url: str, client: redis.Redis) -> None:
    """An event is a MessagePack array of the emitter's id, packet and rooms, on the channel of its room."""
    payload = {"sentCount": 5, "part": 0.5, "reason": "größer", "ok": True, "error": None, "list": [1, {"a": []}]}
    channel, message = received(url, lambda: LiveEvents(client).emit("user:7", "campaign:progress", payload))
    assert channel == "socket.io#/#user:7#"
    assert message == [
        "emitter",
        {"type": 2, "data": ["campaign:progress", payload], "nsp": "/"},
        {"rooms": ["user:7"], "except": [], "flags": {}},
    ]


def test_half_a_character(url: str, client: redis.Redis) -> None:
    """Text that is not valid Unicode, as providers may send it, does not stop an event."""
    _, message = received(url, lambda: LiveEvents(client).emit("user:7", "campaign:failed", {"error": "a\udc00b"}))
    assert message[1]["data"][1] == {"error": "a?b"}


@pytest.mark.parametrize("value", [datetime.now(UTC), b"bytes", {1, 2}, float("nan"), object()])
def test_not_json(value: object, client: redis.Redis) -> None:
    """A value that is not JSON is an error of the program, and raises."""
    with pytest.raises((TypeError, ValueError)):
        LiveEvents(client).emit("user:7", "campaign:failed", {"error": value})


def test_outage(
    new_server: Callable[..., Server], connected: Callable[..., redis.Redis], caplog: pytest.LogCaptureFixture
) -> None:
    """While Redis is unavailable, events are dropped and one line is logged; they arrive again when it is back."""
    server = new_server()
    events = LiveEvents(connected(server.url))
    for outages in (1, 2):
        server.stop(kill=True)
        for _ in range(20):
            events.emit("user:7", "campaign:failed", {})
        assert [record.levelno for record in caplog.records] == [logging.WARNING] * outages
        server.start()
        deadline = time.monotonic() + 60

        with subscribed(server.url) as subscription:
            message = None
            while not message:
                assert time.monotonic() < deadline
                events.emit("user:7", "campaign:completed", {})
                message = subscription.get_message(timeout=0.01)
        assert message["channel"] == b"socket.io#/#user:7#"


def test_frozen_redis(new_server: Callable[..., Server], connected: Callable[..., redis.Redis]) -> None:
    """A server that does not answer delays the caller by one timeout, not by one for each event."""
    server = new_server()
    events = LiveEvents(connected(server.url, timeout_seconds=1.5))
    events.emit("user:7", "campaign:progress", {})
    server.freeze()
    began = time.monotonic()
    for _ in range(50):
        events.emit("user:7", "campaign:progress", {})
    assert 1.4 < time.monotonic() - began < 3.0
