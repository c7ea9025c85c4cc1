"""Messages whose process died, froze, lost the database or broke: taken over, or settled late, and never twice."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta

import pytest
from notice_hall import NOW, Hall, halls, kinds

from sandbox.crm import Crm
from worker.notifications.claims import ASK_AFTER_SECONDS, LEASE_SECONDS
from worker.notifications.dispatcher import LANES
from worker.runtime.db import queries
from worker.sending.outcomes import OutcomeKind as Kind

HOLDING = """
import sys
from worker.runtime.process_token import new_token
print(new_token(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def hall(crm: Crm, database_url: str) -> Iterator[Hall]:
    yield from halls(crm, database_url)


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


def test_orphans(hall: Hall, neighbour: tuple[str, "subprocess.Popen[str]"]) -> None:
    """A living process keeps what it holds; a dead one's goes out at once, or is asked after when it was marked."""
    token, process = neighbour
    hall.waiting("fresh", holder=token)
    hall.waiting("marked", holder=token, handed_over=True)
    hall.waiting("elsewhere", holder="another.machine:1:x.y")
    desk = hall.desk()
    desk.notices.release_orphans(NOW)
    assert all(held for _, held, *_ in hall.rows())
    process.kill()
    process.wait()
    desk.notices.release_orphans(NOW)
    ask_at = NOW + timedelta(seconds=ASK_AFTER_SECONDS)
    assert hall.rows("address, holder IS NULL, due_at") == [
        ("elsewhere", False, NOW), ("fresh", True, NOW), ("marked", True, ask_at)
    ]  # fmt: skip


def test_another_machine_that_says_nothing(hall: Hall, neighbour: tuple[str, "subprocess.Popen[str]"]) -> None:
    """What nobody renewed for as long as a lease is anybody's, whether its holder can be seen from here or not."""
    hall.waiting("elsewhere", holder="another.machine:1:x.y")
    hall.waiting("frozen", holder=neighbour[0])
    hall.lapse()
    desk = hall.desk()
    desk.notices.release_orphans(NOW)
    assert [each.address for each in desk.claim()] == ["elsewhere", "frozen"]


def test_left_behind_by_itself(hall: Hall) -> None:
    """What this process claimed in a tick that failed goes out in the next one."""
    hall.waiting("a")
    desk = hall.desk()
    desk.claim()
    desk.notices.release_orphans(NOW)
    assert [each.address for each in desk.claim()] == ["a"]


def test_a_wave_that_could_not_be_settled(hall: Hall) -> None:
    """The database goes away at the settlement: outcomes are kept, longer than a lease, and settled later."""
    hall.waiting("a", "b", "c")
    desk = hall.desk()
    over = threading.Event()
    desk.post.answers["c"] = lambda: over.wait(20) and None
    waves = desk.notices.deliver(desk.claim(), desk.letter, lambda: True)
    assert len(next(waves)) == 2
    waves.close()  # as an exception in its loop does
    hall.lapse()
    desk.notices.release_orphans(NOW)
    assert all(held for _, held, *_ in hall.rows()), "its own, whose outcome it knows or will know"
    over.set()
    settled = [desk.notices.settle(wave) for wave in desk.notices.deliver([], desk.letter, lambda: True)]
    assert [len(each) for each in settled] == [2, 1]
    assert sorted(desk.post.sent) == ["a", "b", "c"]
    assert desk.deliver([]) == []


def test_settled_waves_do_not_come_again(hall: Hall) -> None:
    """A later failure of the same call yields nothing a second time that was settled before."""
    hall.waiting(*(f"a{number:02}" for number in range(3 * LANES)))
    desk = hall.desk()
    waves = desk.notices.deliver(desk.claim(), desk.letter, lambda: True)
    first = desk.notices.settle(next(waves))
    second = next(waves)
    waves.close()
    again = next(desk.notices.deliver([], desk.letter, lambda: True))
    assert again == second
    assert first.isdisjoint(each.notice.id for each in again)


def test_a_bug_in_one_lane(hall: Hall) -> None:
    """What a lane died of is raised, and the others' outcomes are not lost."""
    hall.waiting("a", "b")
    desk = hall.desk()

    def bug() -> None:
        raise LookupError("a bug")

    desk.post.answers["a"] = bug
    with pytest.raises(LookupError):
        desk.deliver(desk.claim())
    desk.notices.release_orphans(NOW)
    assert kinds(desk.deliver([])) == {"b": (Kind.ACCEPTED, False)}
    assert hall.rows("address, holder IS NULL, handed_over") == [("a", True, True), ("b", False, True)]


def test_renewed_while_it_lasts(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for its turn is renewed as long as its process is at it."""
    monkeypatch.setattr("worker.notifications.claims.RENEW_SECONDS", 0.0)
    hall.waiting(*(f"a{number:02}" for number in range(3 * LANES)))
    desk = hall.desk()
    claimed = desk.claim()
    waves = desk.notices.deliver(claimed, desk.letter, lambda: True)
    next(waves)
    hall.lapse()
    next(waves)
    held = desk.db.all(queries("notifications")["held"], job="reminders", lease_seconds=LEASE_SECONDS)
    assert not any(row["lapsed"] for row in held)
    waves.close()
