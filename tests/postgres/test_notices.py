"""Single messages: claimed by one process, marked before they may leave, settled once, by who holds them."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from notice_hall import NOW, SECOND, Desk, Hall, Mailbox, halls, kinds

from sandbox.crm import Crm
from worker.errors import (
    AccountRejected,
    RecipientDeferred,
    RecipientOptedOut,
    RecipientRefused,
    RetryLater,
    SendError,
    TransportMissing,
    Unconfirmed,
)
from worker.messages import Accepted
from worker.notifications.dispatcher import LANES
from worker.notifications.notification import Delivery, Notification, OutgoingMessage
from worker.sending.accounts import GmailAccount
from worker.sending.outcomes import OutcomeKind as Kind
from worker.sending.pacing import Pace


@pytest.fixture
def hall(crm: Crm, database_url: str) -> Iterator[Hall]:
    yield from halls(crm, database_url)


def test_claimed_once(hall: Hall) -> None:
    """A waiting notice is in one process's hands, the longest due first, and not before its time."""
    hall.waiting("late", due_at=NOW - SECOND)
    hall.waiting("later", due_at=NOW - 2 * SECOND)
    hall.waiting("early", due_at=NOW + SECOND)
    hall.waiting("foreign", job="trial")
    one, other = hall.desk(), hall.desk()
    assert [each.address for each in one.claim(1)] == ["later"]
    assert [each.address for each in other.claim()] == ["late"]
    assert one.claim() == []
    assert one.notices.next_due() == NOW + SECOND


def test_claims_at_the_same_time(hall: Hall) -> None:
    """Many processes claim at once: nobody gets what another one has."""
    hall.waiting(*(f"a{number:03}" for number in range(200)))
    desks = [hall.desk() for _ in range(4)]
    together = threading.Barrier(len(desks))
    claimed: list[str] = []

    def claim(desk: Desk) -> None:
        together.wait(20)
        while found := desk.claim(7):
            claimed.extend(each.address for each in found)

    threads = [threading.Thread(target=claim, args=[each]) for each in desks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(claimed) == len(set(claimed)) == 200


def test_marked_before_it_leaves(hall: Hall) -> None:
    """When its provider hears of a message, the database says already that it was handed over."""
    hall.waiting("a")
    desk = hall.desk()
    seen: list[tuple[Any, ...]] = []
    desk.post.answers["a"] = lambda: seen.extend(hall.rows("handed_over"))
    (delivery,) = desk.deliver(desk.claim())
    assert seen == [(True,)]
    assert delivery.outcome.kind is Kind.ACCEPTED


def test_taken_over_before_it_leaves(hall: Hall) -> None:
    """A notice that somebody else holds by now does not leave, and nothing is said of it."""
    hall.waiting("a", "b")
    desk = hall.desk()
    claimed = desk.claim()
    hall.crm.execute("UPDATE worker.notice SET holder = 'another' WHERE address = 'a'")
    assert kinds(desk.deliver(claimed)) == {"b": (Kind.ACCEPTED, False)}
    assert desk.post.sent == ["b"]


@pytest.mark.parametrize(
    ("error", "kind", "unknown"),
    [
        (RecipientRefused("550"), Kind.REFUSED, False),
        (RecipientOptedOut("131050"), Kind.OPTED_OUT, False),
        (Unconfirmed("no answer"), Kind.UNCONFIRMED, True),
        (RetryLater("busy", 7.0), Kind.DEFERRED, False),
        (RecipientDeferred("greylisted"), Kind.RECIPIENT_DEFERRED, False),
        (AccountRejected("535"), Kind.DEFERRED, False),
    ],
)
def test_what_errors_mean(hall: Hall, error: SendError, kind: Kind, unknown: bool) -> None:
    """Each message has its own outcome; of one without an answer nobody knows."""
    hall.waiting("a", "b")
    desk = hall.desk()
    desk.post.answers["a"] = error
    assert kinds(desk.deliver(desk.claim())) == {"a": (kind, unknown), "b": (Kind.ACCEPTED, False)}


@pytest.mark.parametrize(
    ("error", "kind"), [(TransportMissing("set SMTP_URL"), Kind.DEFERRED), (ValueError("no address"), Kind.REFUSED)]
)
def test_no_letter(hall: Hall, error: Exception, kind: Kind) -> None:
    """Where no message can be made nothing is marked, and the others go."""
    hall.waiting("a", "b")
    desk = hall.desk()

    def letter_of(notice: Notification) -> OutgoingMessage:
        if notice.address == "a":
            raise error
        return desk.letter(notice)

    found = [each for wave in desk.notices.deliver(desk.claim(), letter_of, lambda: True) for each in wave]
    assert kinds(found) == {"a": (kind, False), "b": (Kind.ACCEPTED, False)}
    assert hall.rows("address, handed_over") == [("a", False), ("b", True)]


def test_settled_once_and_only_by_its_holder(hall: Hall) -> None:
    """The outcome is written once: not a second time, and not by a process that lost the notice meanwhile."""
    mine, lost = hall.waiting("a", "b")
    desk = hall.desk()
    deliveries = desk.deliver(desk.claim())
    hall.crm.execute("UPDATE worker.notice SET holder = 'another' WHERE address = 'b'")
    assert desk.notices.settle(deliveries) == {mine}
    assert desk.notices.settle(deliveries) == set()
    desk.notices.put_back([(each, NOW, 1) for each in deliveries])
    assert hall.rows("id::text, holder") == [(lost, "another")]


def test_filed_with_its_settlement(hall: Hall) -> None:
    """An accepted e-mail has its row in EmailLog; one lost to another process has none, nor has a refused one."""
    hall.waiting("a", "b", "c")
    desk = hall.desk()
    user = hall.crm.user_id
    desk.more["outbox"] = {"sender": "a@shop.example", "subject": "Ä", "body": "text", "html": None, "tenant_id": "t",
                           "entity_type": "LeadReminder", "entity_id": "t", "user_id": user}  # fmt: skip
    desk.post.answers["b"] = RecipientRefused("550")
    deliveries = desk.deliver(desk.claim())
    hall.crm.execute("UPDATE worker.notice SET holder = 'another' WHERE address = 'c'")
    desk.notices.settle(deliveries)
    filed = """SELECT "to", "from", subject, body, "htmlBody", "entityType", "userId", "sentAt" FROM "EmailLog" """
    assert hall.crm.execute(filed) == [(["a"], "a@shop.example", "Ä", "text", None, "LeadReminder", user, NOW)]


def test_put_back(hall: Hall) -> None:
    """What did not leave goes out at its next time; what may have left is asked after."""
    hall.waiting("a", "b")
    desk = hall.desk()
    desk.post.answers = {"a": RetryLater("busy"), "b": Unconfirmed("no answer")}
    found = desk.deliver(desk.claim())
    desk.notices.put_back([(each, NOW + SECOND, 3) for each in found])
    later = NOW + SECOND
    assert hall.rows() == [("a", False, False, later, 3), ("b", False, True, later, 3)]
    desk.now = later
    desk.post.answers = {}
    assert kinds(desk.deliver(desk.claim())) == {"a": (Kind.ACCEPTED, False), "b": (Kind.UNCONFIRMED, True)}
    assert desk.post.sent == ["a"]


def gmail(answer: Accepted | SendError | None) -> tuple[Mailbox, GmailAccount]:
    mailbox = Mailbox(answer)
    return mailbox, GmailAccount(mailbox, None, "u", "t", "x")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answer", "kind", "unknown"),
    [
        (Accepted("<1@x>", "g-1"), Kind.ACCEPTED, False),
        (None, Kind.NOT_SENT, False),
        (RetryLater("503"), Kind.DEFERRED, True),
        (AccountRejected("403: may only send"), Kind.UNCONFIRMED, True),
    ],
)
def test_asked_after(hall: Hall, answer: Accepted | SendError | None, kind: Kind, unknown: bool) -> None:
    """Gmail tells what became of a message; where it never will, nobody knows; a busy one is asked again."""
    (notice_id,) = hall.waiting("a", handed_over=True)
    desk = hall.desk()
    mailbox, desk.more["gmail"] = gmail(answer)
    assert kinds(desk.deliver(desk.claim())) == {"a": (kind, unknown)}
    assert mailbox.asked == [f"<{notice_id}@shop.example>"]
    assert desk.post.sent == []


def test_no_more_may_leave(hall: Hall) -> None:
    """Who is not reached before the stop is untouched; one that was handed over earlier still may have arrived."""
    hall.waiting(*(f"a{number:02}" for number in range(30)))
    hall.waiting("b", handed_over=True)
    desk = hall.desk()
    for number in range(30):
        desk.post.answers[f"a{number:02}"] = lambda: time.sleep(0.02)
    found = kinds(desk.deliver(desk.claim(), lambda: len(desk.post.sent) < 3))
    assert len(found) == 31
    assert sum(kind is Kind.ACCEPTED for kind, _ in found.values()) == len(desk.post.sent) <= 3 + LANES
    assert {kind for kind, _ in found.values()} >= {Kind.ACCEPTED, Kind.NOT_SENT}
    assert all(unknown == (address == "b") for address, (_, unknown) in found.items())
    assert desk.deliver([], lambda: False) == []


def test_on_the_wire_after_the_grace_time(hall: Hall) -> None:
    """A message that hangs at the end of the grace time is not waited for, and stays held and marked."""
    hall.waiting("a", "b")
    desk = hall.desk()
    over = threading.Event()
    desk.post.answers = {"a": lambda: over.wait(20) and None}

    def stop() -> bool:
        desk.signals.stopping = "b" in desk.post.sent
        return not desk.signals.stopping

    began = time.monotonic()
    assert kinds(desk.deliver(desk.claim(), stop)) == {"b": (Kind.ACCEPTED, False)}
    assert time.monotonic() - began < 5
    assert desk.notices.close() is False
    over.set()
    assert ("a", True, True) in [row[:3] for row in hall.rows()]


def test_a_slow_one_holds_up_nobody(hall: Hall) -> None:
    """A sender whose provider hangs gets its share of the lanes, and more only when the others are through."""
    hall.waiting(*(f"slow{number:02}" for number in range(LANES)), tenant="slow")
    for number in range(40):
        hall.waiting(f"q{number:02}", tenant=f"t{number % 4}")
    desk = hall.desk()
    on_the_wire: list[int] = []
    over = threading.Event()

    def hang() -> None:
        on_the_wire.append(sum(each.startswith("q") for each in desk.post.sent))
        over.wait(20)

    for number in range(LANES):
        desk.post.answers[f"slow{number:02}"] = hang
    found: list[Delivery] = []
    for wave in desk.notices.deliver(desk.claim(), desk.letter, lambda: True):
        found += wave
        if sum(each.startswith("q") for each in desk.post.sent) == 40:
            over.set()
    assert len(found) == 48
    share = 2  # of 8 lanes for 5 senders
    assert all(quick >= 40 - LANES for quick in on_the_wire[share:])


def test_a_pace(hall: Hall, redis_url: str) -> None:
    """A sender whose pace is used up has nothing marked and no lane, and goes on with its next token."""
    hall.waiting("a", "b", tenant="paced")
    hall.waiting("c", tenant="free")
    desk = hall.desk()
    with redis.Redis.from_url(redis_url) as client:
        pace = Pace(client, "pace:test:1", 2.0)
        pace.take(1)
        letters = {"paced": pace, "free": None}

        def letter_of(notice: Notification) -> OutgoingMessage:
            return OutgoingMessage(desk.letter(notice).message, desk.post, pace=letters[str(notice.tenant_id)])

        waves = desk.notices.deliver(desk.claim(), letter_of, lambda: True)
        assert set(kinds(next(waves))) == {"c"}
        assert [row[:3] for row in hall.rows()] == [("a", True, False), ("b", True, False), ("c", True, True)]
        assert {address for wave in waves for address in kinds(wave)} == {"a", "b"}
        pace.hold(3600)
        hall.waiting("d", tenant="paced")
        (wave,) = desk.notices.deliver(desk.claim(), letter_of, lambda: True)
        assert kinds(wave) == {"d": (Kind.DEFERRED, False)}


def test_a_delay_of_the_account(hall: Hall, redis_url: str) -> None:
    """A provider's own delay holds all that leaves through the account; one recipient's delay holds nobody."""
    hall.waiting("a", "b")
    desk = hall.desk()
    with redis.Redis.from_url(redis_url) as client:
        desk.more["pace"] = pace = Pace(client, "pace:test:2", 1000.0)
        desk.post.answers = {"a": RecipientDeferred("131056", 600.0)}
        desk.deliver(desk.claim(1))
        assert pace.take(1)[0] == 1
        desk.post.answers = {"b": RetryLater("429", 600.0)}
        desk.deliver(desk.claim(1))
        assert pace.take(1)[1] > 500
