"""Whose turn it is: each tenant and channel has an equal share, however long its line is."""

from collections import Counter
from datetime import datetime

from worker.notifications.fair_queue import FairQueue, TenantChannel
from worker.notifications.notification import Notification

NOW = datetime(2026, 1, 31, 12)  # noqa: DTZ001 - UTC without a zone, as the CRM writes it
THREADS = 4


def notification(name: str, channel: str = "email") -> Notification:
    """``name`` is a tenant's letter and a number."""
    return Notification(
        id=name,
        tenant_id=name[0],
        channel=channel,
        address=name,
        content={},
        created_at=NOW,
        attempts=0,
        handed_over=False,
    )


def queue(*names: str) -> FairQueue:
    return FairQueue(notification(name) for name in names)


def test_one_of_each_first() -> None:
    """The heads of all lines come before a second one of any line."""
    waiting = queue("a1", "a2", "a3", "b1", "c1", "c2")
    taken = []
    for head in waiting.heads(Counter(), THREADS):
        waiting.take(head)
        taken.append(head.id)
    assert taken == ["a1", "b1", "c1", "a2", "c2", "a3"]
    assert not waiting


def test_who_has_threads_waits() -> None:
    """A line that has threads already gets another one only after the lines that have fewer."""
    busy = Counter({TenantChannel("a", "email"): 2})
    assert [head.id for head in queue("a1", "b1").heads(busy, 3)] == ["b1", "b1", "a1", "b1"]


def test_channels_are_lines_of_their_own() -> None:
    """A tenant's WhatsApp does not wait for its e-mail."""
    waiting = FairQueue([notification("a1"), notification("a2"), notification("a3", "whatsapp")])
    busy = Counter({TenantChannel("a", "email"): THREADS})
    assert {head.id for head in waiting.heads(busy, THREADS)} == {"a3"}


def test_a_line_that_was_served_goes_behind_the_others() -> None:
    """After a head was taken, the other lines come first."""
    waiting = queue("a1", "a2", "b1")
    waiting.take(next(waiting.heads(Counter(), THREADS)))
    assert [head.id for head in waiting.heads(Counter(), 1)] == ["b1", "a2"]


def test_take_all() -> None:
    """Everything is taken out, and nothing is left."""
    waiting = queue("a1", "b1", "a2")
    assert {each.id for each in waiting.take_all()} == {"a1", "a2", "b1"}
    assert not waiting
    assert waiting.take_all() == []
