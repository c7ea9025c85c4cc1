"""Notifications whose process died, froze, lost the database or failed: released or settled late, never twice."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta

import pytest
from notification_workers import NOW, NotificationTable, opened_table, outcomes

from sandbox.crm import Crm
from worker.notifications.dispatcher import THREADS
from worker.runtime.db import queries
from worker.runtime.lease import LEASE_SECONDS
from worker.sending.outcomes import ASK_AFTER_SECONDS
from worker.sending.outcomes import OutcomeKind as Kind

HOLDING = """
import sys
from worker.runtime.process_token import new_token
print(new_token(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def table(crm: Crm, database_url: str) -> Iterator[NotificationTable]:
    yield from opened_table(crm, database_url)


@pytest.fixture
def neighbour() -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """The token of another living process of this machine, and that process."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    yield process.stdout.readline().strip(), process
    process.kill()
    process.communicate()


def test_orphans(table: NotificationTable, neighbour: tuple[str, "subprocess.Popen[str]"]) -> None:
    """A living process keeps its claims; a dead one's are sent at once, or asked about where they were marked."""
    token, process = neighbour
    table.add("fresh", holder=token)
    table.add("marked", holder=token, handed_over=True)
    table.add("elsewhere", holder="another.machine:1:x.y")
    worker = table.worker()
    worker.release_orphans()
    assert all(held for _, held, *_ in table.rows())
    process.kill()
    process.wait()
    worker.release_orphans()
    ask_at = NOW + timedelta(seconds=ASK_AFTER_SECONDS)
    assert table.rows("address, holder IS NULL, due_at") == [
        ("elsewhere", False, NOW), ("fresh", True, NOW), ("marked", True, ask_at)
    ]  # fmt: skip


def test_a_lapsed_lease(table: NotificationTable, neighbour: tuple[str, "subprocess.Popen[str]"]) -> None:
    """A claim that was not renewed for a whole lease is released, whether its holder can be seen from here or not."""
    table.add("elsewhere", holder="another.machine:1:x.y")
    table.add("frozen", holder=neighbour[0])
    table.lapse()
    worker = table.worker()
    worker.release_orphans()
    assert [each.address for each in worker.claim()] == ["elsewhere", "frozen"]


def test_left_behind_by_itself(table: NotificationTable) -> None:
    """What this process claimed in a tick that failed is sent in the next one."""
    table.add("a")
    worker = table.worker()
    worker.claim()
    worker.release_orphans()
    assert [each.address for each in worker.claim()] == ["a"]


def test_outcomes_that_could_not_be_settled(table: NotificationTable) -> None:
    """The database goes away at the settlement: outcomes are kept, longer than a lease, and settled later."""
    table.add("a", "b", "c")
    worker = table.worker()
    over = threading.Event()
    worker.provider.answers["c"] = lambda: over.wait(20) and None
    waves = worker.dispatcher.deliver(worker.claim(), worker.prepare, lambda: True)
    first = next(waves)
    waves.close()  # as an exception in its loop does
    table.lapse()
    worker.release_orphans()
    assert all(held for _, held, *_ in table.rows()), "its own claims, whose outcome it knows or will know"
    over.set()
    settled = [worker.claims.settle(wave) for wave in worker.dispatcher.deliver([], worker.prepare, lambda: True)]
    assert settled[0] == {each.notification.id for each in first}
    assert sum(map(len, settled)) == 3
    assert sorted(worker.provider.sent) == ["a", "b", "c"]
    assert worker.deliver([]) == []


def test_settled_late_and_once(table: NotificationTable) -> None:
    """Outcomes of an earlier call that are settled by now do not come again, also when nothing else was sent."""
    table.add("a")
    worker = table.worker()
    waves = worker.dispatcher.deliver(worker.claim(), worker.prepare, lambda: True)
    first = next(waves)
    waves.close()
    assert worker.deliver([]) == first
    assert worker.deliver([]) == []


def test_settled_outcomes_do_not_come_again(table: NotificationTable) -> None:
    """After a later failure nothing is yielded a second time that was settled before."""
    table.add(*(f"a{number:02}" for number in range(3 * THREADS)))
    worker = table.worker()
    waves = worker.dispatcher.deliver(worker.claim(), worker.prepare, lambda: True)
    first = worker.claims.settle(next(waves))
    second = next(waves)
    waves.close()
    again = next(worker.dispatcher.deliver([], worker.prepare, lambda: True))
    assert again == second
    assert first.isdisjoint(each.notification.id for each in again)


def test_a_bug_in_one_thread(table: NotificationTable) -> None:
    """A thread's unexpected error is raised, and the others' outcomes are not lost."""
    table.add("a", "b")
    worker = table.worker()

    def bug() -> None:
        raise LookupError("a bug")

    worker.provider.answers["a"] = bug
    with pytest.raises(LookupError):
        worker.deliver(worker.claim())
    worker.release_orphans()
    assert outcomes(worker.deliver([])) == {"b": (Kind.ACCEPTED, False)}
    assert table.rows("address, holder IS NULL, handed_over") == [("a", True, True), ("b", False, True)]


def test_renewed_while_it_sends(table: NotificationTable, monkeypatch: pytest.MonkeyPatch) -> None:
    """The claims that wait for a thread are renewed as long as their process sends."""
    monkeypatch.setattr("worker.runtime.lease.RENEW_SECONDS", 0.0)
    table.add(*(f"a{number:02}" for number in range(3 * THREADS)))
    worker = table.worker()
    claimed = worker.claim()
    waves = worker.dispatcher.deliver(claimed, worker.prepare, lambda: True)
    next(waves)
    table.lapse()
    next(waves)
    held = worker.db.all(queries("notifications")["held"], job="reminders", lease_seconds=LEASE_SECONDS)
    assert not any(row["lapsed"] for row in held)
    waves.close()
