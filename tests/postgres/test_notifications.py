"""Notifications: claimed by one process, marked before they are sent, settled once and only by their holder."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
import redis
from notification_workers import (
    NOW,
    SECOND,
    AskableGmail,
    NotificationTable,
    NotificationWorker,
    opened_table,
    outcomes,
)
from suppressions import suppress

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
from worker.messages import Accepted, EmailCopy
from worker.notifications.claims import Deferral
from worker.notifications.delivery import Delivery
from worker.notifications.dispatcher import THREADS
from worker.notifications.notification import Notification, OutgoingMessage
from worker.providers.handover import check_handover
from worker.sending.accounts import GmailAccount
from worker.sending.outbox import OutboxEmail
from worker.sending.outcomes import OutcomeKind as Kind
from worker.sending.pacing import OpenPace, Pace


@pytest.fixture
def table(crm: Crm, database_url: str) -> Iterator[NotificationTable]:
    yield from opened_table(crm, database_url)


def test_claimed_once(table: NotificationTable) -> None:
    """A waiting notification is claimed by one process, the longest due first, and not before it is due."""
    table.add("late", due_at=NOW - SECOND)
    table.add("later", due_at=NOW - 2 * SECOND)
    table.add("early", due_at=NOW + SECOND)
    table.add("foreign", job="trial")
    one, other = table.worker(), table.worker()
    assert [each.address for each in one.claim(1)] == ["later"]
    assert [each.address for each in other.claim()] == ["late"]
    assert one.claim() == []
    assert one.claims.next_due() == NOW + SECOND


def test_claims_at_the_same_time(table: NotificationTable) -> None:
    """Many processes claim at once: none gets what another one has."""
    table.add(*(f"a{number:03}" for number in range(200)))
    workers = [table.worker() for _ in range(4)]
    together = threading.Barrier(len(workers))
    claimed: list[str] = []

    def claim(worker: NotificationWorker) -> None:
        together.wait(20)
        while found := worker.claim(7):
            claimed.extend(each.address for each in found)

    threads = [threading.Thread(target=claim, args=[each]) for each in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(claimed) == len(set(claimed)) == 200


def test_marked_before_it_is_sent(table: NotificationTable) -> None:
    """When a message reaches its provider, the database says already that it was handed over."""
    table.add("a")
    worker = table.worker()
    seen: list[tuple[Any, ...]] = []
    worker.provider.answers["a"] = lambda: seen.extend(table.rows("handed_over"))
    (delivery,) = worker.deliver(worker.claim())
    assert seen == [(True,)]
    assert delivery.outcome.kind is Kind.ACCEPTED


def test_suppressed_before_it_leaves(table: NotificationTable) -> None:
    """While its thread connects, say: it is not sent. Another tenant's list does not count, nor unsubscriptions."""
    table.add("stopped@x.example", "left@x.example")
    table.add("other@x.example", tenant="u")
    worker = table.worker()
    connecting, suppressed, stopped = threading.Semaphore(0), threading.Event(), threading.Event()

    def until(event: threading.Event) -> None:
        connecting.release()
        assert event.wait(20)
        check_handover()

    def until_it_is_stopped() -> None:
        until(suppressed)
        deadline = time.monotonic() + 20
        try:
            while time.monotonic() < deadline:
                check_handover()
                time.sleep(0.02)
        finally:
            stopped.set()

    def suppress_them() -> None:
        for _ in range(3):
            assert connecting.acquire(timeout=20)
        for address, source in (("left@x.example", "unsubscribe"), ("other@x.example", "bounce")):
            suppress(table.crm, "t", "email", address, source)
        suppress(table.crm, "t", "email", "STOPPED@x.example", "complaint", reason="spam")
        suppressed.set()

    worker.provider.answers = dict.fromkeys(("left@x.example", "other@x.example"), lambda: until(stopped))
    worker.provider.answers["stopped@x.example"] = until_it_is_stopped
    thread = threading.Thread(target=suppress_them)
    thread.start()
    found = worker.deliver(worker.claim())
    thread.join()
    assert outcomes(found) == {
        "stopped@x.example": (Kind.REFUSED, False),
        "left@x.example": (Kind.ACCEPTED, False),
        "other@x.example": (Kind.ACCEPTED, False),
    }
    assert [each.outcome.reason for each in found if each.outcome.kind is Kind.REFUSED] == ["opted out: spam"]
    assert len(worker.claims.settle(found)) == 3


def test_claimed_by_another_before_it_is_sent(table: NotificationTable) -> None:
    """A notification that another process holds by now is not sent, and has no outcome here."""
    table.add("a", "b")
    worker = table.worker()
    claimed = worker.claim()
    table.crm.execute("UPDATE worker.notice SET holder = 'another' WHERE address = 'a'")
    assert outcomes(worker.deliver(claimed)) == {"b": (Kind.ACCEPTED, False)}
    assert worker.provider.sent == ["b"]


@pytest.mark.parametrize(
    ("error", "kind", "may_have_arrived"),
    [
        (RecipientRefused("550"), Kind.REFUSED, False),
        (RecipientOptedOut("131050"), Kind.OPTED_OUT, False),
        (Unconfirmed("no answer"), Kind.UNCONFIRMED, True),
        (RetryLater("busy", 7.0), Kind.DEFERRED, False),
        (RecipientDeferred("greylisted"), Kind.RECIPIENT_DEFERRED, False),
        (AccountRejected("535"), Kind.REJECTED, False),
    ],
)
def test_what_errors_mean(table: NotificationTable, error: SendError, kind: Kind, may_have_arrived: bool) -> None:
    """Each message has its own outcome; one without an answer may have arrived."""
    table.add("a", "b")
    worker = table.worker()
    worker.provider.answers["a"] = error
    assert outcomes(worker.deliver(worker.claim())) == {"a": (kind, may_have_arrived), "b": (Kind.ACCEPTED, False)}


@pytest.mark.parametrize(
    ("error", "kind"), [(TransportMissing("set SMTP_URL"), Kind.REJECTED), (ValueError("no address"), Kind.REFUSED)]
)
def test_no_message_can_be_made(table: NotificationTable, error: Exception, kind: Kind) -> None:
    """A notification without a message is not marked, and the others are sent."""
    table.add("a", "b")
    worker = table.worker()

    def prepare(notification: Notification) -> OutgoingMessage:
        if notification.address == "a":
            raise error
        return worker.prepare(notification)

    found = [each for wave in worker.dispatcher.deliver(worker.claim(), prepare, lambda: True) for each in wave]
    assert outcomes(found) == {"a": (kind, False), "b": (Kind.ACCEPTED, False)}
    assert table.rows("address, handed_over") == [("a", False), ("b", True)]


def test_settled_once_and_only_by_its_holder(table: NotificationTable) -> None:
    """The outcome is written once: not a second time, and not by a process that lost its claim in the meantime."""
    mine, lost = table.add("a", "b")
    worker = table.worker()
    deliveries = worker.deliver(worker.claim())
    table.crm.execute("UPDATE worker.notice SET holder = 'another' WHERE address = 'b'")
    assert worker.claims.settle(deliveries) == {mine}
    assert worker.claims.settle(deliveries) == set()
    worker.claims.defer([deferral(each, NOW, 1) for each in deliveries])
    assert table.rows("id::text, holder") == [(lost, "another")]


def test_filed_with_its_settlement(table: NotificationTable) -> None:
    """An accepted e-mail has its row in EmailLog; one lost to another process has none, nor has a refused one."""
    table.add("a", "b", "c")
    worker = table.worker()
    user = table.crm.user_id
    worker.more["outbox"] = OutboxEmail(
        EmailCopy("a@shop.example", "Ä", "text", None),
        address="a",
        entity_type="LeadReminder",
        entity_id="t",
        tenant_id=table.crm.tenant_id,
        user_id=user,
    )
    worker.provider.answers["b"] = RecipientRefused("550")
    deliveries = worker.deliver(worker.claim())
    table.crm.execute("UPDATE worker.notice SET holder = 'another' WHERE address = 'c'")
    worker.claims.settle(deliveries)
    filed = """SELECT "to", "from", subject, body, "htmlBody", "entityType", "userId", "sentAt" FROM "EmailLog" """
    assert table.crm.execute(filed) == [(["a"], "a@shop.example", "Ä", "text", None, "LeadReminder", user, NOW)]


def deferral(delivery: Delivery, due_at: datetime, attempts: int) -> Deferral:
    return Deferral(delivery.notification.id, due_at, attempts, delivery.may_have_arrived)


def test_deferred(table: NotificationTable) -> None:
    """What was not sent is sent when it is due; for what may have arrived, the provider is asked."""
    table.add("a", "b")
    worker = table.worker()
    worker.provider.answers = {"a": RetryLater("busy"), "b": Unconfirmed("no answer")}
    found = worker.deliver(worker.claim())
    worker.claims.defer([deferral(each, NOW + SECOND, 3) for each in found])
    later = NOW + SECOND
    assert table.rows() == [("a", False, False, later, 3), ("b", False, True, later, 3)]
    worker.now = later
    worker.provider.answers = {}
    assert outcomes(worker.deliver(worker.claim())) == {"a": (Kind.ACCEPTED, False), "b": (Kind.UNCONFIRMED, True)}
    assert worker.provider.sent == ["a"]


def gmail(answer: Accepted | SendError | None) -> tuple[AskableGmail, GmailAccount]:
    mailbox = AskableGmail(answer)
    return mailbox, GmailAccount(mailbox, None, "u", "t", "x")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answer", "kind", "may_have_arrived"),
    [
        (Accepted("<1@x>", "g-1"), Kind.ACCEPTED, False),
        (None, Kind.NOT_SENT, False),
        (RetryLater("503"), Kind.DEFERRED, True),
        (AccountRejected("403: may only send"), Kind.UNCONFIRMED, True),
    ],
)
def test_gmail_is_asked(
    table: NotificationTable, answer: Accepted | SendError | None, kind: Kind, may_have_arrived: bool
) -> None:
    """Gmail says what became of a message; where it never will, the message is unconfirmed; a busy one defers."""
    (notification_id,) = table.add("a", handed_over=True)
    worker = table.worker()
    mailbox, worker.more["gmail"] = gmail(answer)
    assert outcomes(worker.deliver(worker.claim())) == {"a": (kind, may_have_arrived)}
    assert mailbox.asked == [f"<{notification_id}@shop.example>"]
    assert worker.provider.sent == []


def test_a_question_needs_no_token(table: NotificationTable, redis_url: str) -> None:
    """While an account may not send, Gmail is asked all the same about what was handed over before."""
    table.add("a", handed_over=True)
    worker = table.worker()
    _, worker.more["gmail"] = gmail(Accepted("<1@x>", "g-1"))
    with redis.Redis.from_url(redis_url) as client:
        worker.more["pace"] = pace = Pace(client, "pace:test:3", 1.0)
        pace.back_off(3600)
        assert outcomes(worker.deliver(worker.claim())) == {"a": (Kind.ACCEPTED, False)}


def test_stopped_while_sending(table: NotificationTable) -> None:
    """What is not reached before the stop is not sent; one that was handed over earlier still may have arrived."""
    table.add(*(f"a{number:02}" for number in range(30)))
    table.add("b", handed_over=True)
    worker = table.worker()
    for number in range(30):
        worker.provider.answers[f"a{number:02}"] = lambda: time.sleep(0.02)
    found = outcomes(worker.deliver(worker.claim(), lambda: len(worker.provider.sent) < 3))
    assert len(found) == 31
    assert sum(kind is Kind.ACCEPTED for kind, _ in found.values()) == len(worker.provider.sent) <= 3 + THREADS
    assert {kind for kind, _ in found.values()} >= {Kind.ACCEPTED, Kind.NOT_SENT}
    assert all(may_have_arrived == (address == "b") for address, (_, may_have_arrived) in found.items())
    assert worker.deliver([], lambda: False) == []


def test_still_sending_after_the_grace_time(table: NotificationTable) -> None:
    """A message that hangs at the end of the grace time is not waited for, and stays claimed and marked."""
    table.add("a", "b")
    worker = table.worker()
    over = threading.Event()
    worker.provider.answers = {"a": lambda: over.wait(20) and None}

    def stop() -> bool:
        worker.signals.stopping = "b" in worker.provider.sent
        return not worker.signals.stopping

    began = time.monotonic()
    assert outcomes(worker.deliver(worker.claim(), stop)) == {"b": (Kind.ACCEPTED, False)}
    assert time.monotonic() - began < 5
    assert worker.dispatcher.close() is False
    over.set()
    assert ("a", True, True) in [row[:3] for row in table.rows()]


def test_a_slow_tenant_delays_no_other(table: NotificationTable) -> None:
    """A tenant whose provider hangs gets its share of the threads, and more only when the others are done."""
    table.add(*(f"slow{number:02}" for number in range(THREADS)), tenant="slow")
    for number in range(40):
        table.add(f"q{number:02}", tenant=f"t{number % 4}")
    worker = table.worker()
    sent_before: list[int] = []
    over = threading.Event()

    def hang() -> None:
        sent_before.append(sum(each.startswith("q") for each in worker.provider.sent))
        over.wait(20)

    for number in range(THREADS):
        worker.provider.answers[f"slow{number:02}"] = hang
    found: list[Delivery] = []
    for wave in worker.dispatcher.deliver(worker.claim(), worker.prepare, lambda: True):
        found += wave
        if sum(each.startswith("q") for each in worker.provider.sent) == 40:
            over.set()
    assert len(found) == 48
    share = 2  # of 8 threads for 5 tenants
    assert all(quick >= 40 - THREADS for quick in sent_before[share:])


def test_a_pace(table: NotificationTable, redis_url: str) -> None:
    """A tenant whose pace is used up has nothing marked and no thread, and goes on with its next token."""
    table.add("a", "b", tenant="paced")
    table.add("c", tenant="free")
    worker = table.worker()
    with redis.Redis.from_url(redis_url) as client:
        pace = Pace(client, "pace:test:1", 2.0)
        pace.take(1)
        paces = {"paced": pace, "free": None}

        def prepare(notification: Notification) -> OutgoingMessage:
            return replace(worker.prepare(notification), pace=paces[str(notification.tenant_id)])

        waves = worker.dispatcher.deliver(worker.claim(), prepare, lambda: True)
        assert set(outcomes(next(waves))) == {"c"}
        assert [row[:3] for row in table.rows()] == [("a", True, False), ("b", True, False), ("c", True, True)]
        assert {address for wave in waves for address in outcomes(wave)} == {"a", "b"}
        pace.back_off(3600)
        table.add("d", tenant="paced")
        (wave,) = worker.dispatcher.deliver(worker.claim(), prepare, lambda: True)
        assert outcomes(wave) == {"d": (Kind.DEFERRED, False)}


def test_a_delay_of_the_account(table: NotificationTable, redis_url: str) -> None:
    """A provider's own delay applies to all that leaves through the account; one recipient's delay to nobody else."""
    table.add("a", "b")
    worker = table.worker()
    with redis.Redis.from_url(redis_url) as client:
        worker.more["pace"] = pace = Pace(client, "pace:test:2", 1000.0)
        worker.provider.answers = {"a": RecipientDeferred("131056", 600.0)}
        worker.deliver(worker.claim(1))
        assert pace.take(1)[0] == 1
        worker.provider.answers = {"b": RetryLater("429", 600.0)}
        worker.deliver(worker.claim(1))
        assert pace.take(1)[1] > 500


def test_a_pause_of_a_mail_server_without_a_rate(table: NotificationTable, redis_url: str) -> None:
    """What one process was told, all others know: their messages wait, without an attempt, and then leave."""
    table.add("a", "b")
    worker, other = table.worker(), table.worker()
    with redis.Redis.from_url(redis_url) as client:
        worker.more["pace"], other.more["pace"] = OpenPace(client, "pace:test:4"), OpenPace(client, "pace:test:4")
        worker.provider.answers = {"a": RetryLater("450 4.7.1 too much mail", account_seconds=2.0)}
        (told,) = worker.deliver(worker.claim(1))
        began = time.monotonic()
        assert told.outcome.kind is Kind.DEFERRED
        assert other.more["pace"].take(1)[0] == 0
        assert outcomes(other.deliver(other.claim(1))) == {"b": (Kind.ACCEPTED, False)}
        assert time.monotonic() - began > 1.5


def test_tenants_whose_accounts_hang(table: NotificationTable) -> None:
    """Accounts of many tenants that do not answer leave threads to the others, and say that they are waited for."""
    hanging = [f"{number:02}" for number in range(20)]
    for address in hanging:
        table.add(address, f"{address} too", tenant=f"hangs {address}", channel="whatsapp", due_at=NOW - SECOND)
    table.add("quick", tenant="quick")
    worker, over = table.worker(), threading.Event()
    for address in hanging:
        worker.provider.answers[address] = worker.provider.answers[f"{address} too"] = lambda: over.wait(20) and None
    waves = worker.dispatcher.deliver(worker.claim(), worker.prepare, lambda: True)
    first = next(wave for wave in waves if wave)
    assert [each.notification.address for each in first] == ["quick"]
    assert next(wave == [] for wave in waves)
    assert worker.dispatcher.stuck
    over.set()
    assert sum(map(len, waves)) == 2 * len(hanging)
    assert worker.dispatcher.stuck == 0
