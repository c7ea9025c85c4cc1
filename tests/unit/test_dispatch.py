"""Batches in their threads: what becomes of each recipient when providers accept, refuse, wait or die."""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from worker.campaigns.batch import DEFERRALS_BEFORE_BACKOFF, Batch, BatchState, Recipient
from worker.campaigns.batch_queue import BatchQueue
from worker.campaigns.campaign import Campaign, CampaignTarget
from worker.campaigns.dispatcher import LONG_WAIT_SECONDS, Dispatcher, account_of
from worker.campaigns.journal import JournalDirectory
from worker.campaigns.sending_hours import BatchHours
from worker.content.campaign_texts import CampaignTexts
from worker.content.windows import Window
from worker.errors import (
    AccountRejected,
    CampaignRejected,
    RecipientDeferred,
    RecipientOptedOut,
    RecipientRefused,
    RetryLater,
    SendError,
    TooLate,
    Unconfirmed,
)
from worker.messages import Accepted
from worker.providers.handover import check_handover
from worker.runtime.clock import boot_seconds
from worker.sending.accounts import EmailUser
from worker.sending.outcomes import FailureKind, Outcome, OutcomeKind
from worker.sending.requests import RequestThreads
from worker.sending.suppression import LOOK_VALID_SECONDS

DEADLINE_SECONDS = 30.0
NOW = datetime(2026, 1, 31, 12)  # noqa: DTZ001 - UTC without a zone, as the CRM writes it
USER = EmailUser("u-1", "Asha", "asha@shop.example", "t-1", "Chaiwala", {})


def campaign(campaign_id: str = "c-1") -> Campaign:
    texts = CampaignTexts(tenant_id="t", id=campaign_id, name="Diwali", channel="email")
    return Campaign(texts, CampaignTarget("all", None), USER, "u-1", prepared=True, backoffs=0, started_at=NOW)


class Content:
    """Messages that are their recipient's own id; a recipient without an address is refused."""

    def message(self, recipient: Recipient, at: datetime) -> str:
        if not recipient.email:
            raise ValueError("not an e-mail address: no @")
        return recipient.id


@dataclass
class Account:
    """The test's transport: keeps what it was given to send, and answers as the test says."""

    answer: Callable[[str], Accepted] = lambda recipient_id: Accepted(f"<{recipient_id}@x>")
    pace: Any = None
    provider: Any = None
    can_be_asked: bool = False
    account_key: str = "email"
    content: Content = field(default_factory=Content)
    given: list[str] = field(default_factory=list)
    announces: bool = False
    most_connections: int | None = None
    wanted_connections: list[int] = field(default_factory=list)
    announced: list[tuple[str, str | None]] = field(default_factory=list)
    withdrawn: list[str | None] = field(default_factory=list)

    def message(self, recipient: Recipient, at: datetime) -> str:
        return self.content.message(recipient, at)

    def send(self, message: str, following: str | None) -> Accepted:
        self.given.append(message)
        self.announced.append((message, following))
        return self.answer(message)

    def want_connections(self, number: int) -> None:
        self.wanted_connections.append(number)

    def withdraw(self, message: str | None) -> None:
        self.withdrawn.append(message)


def refusing(error: Callable[[], SendError], *ids: str) -> Callable[[str], Accepted]:
    """Answers with an error for these recipients; for all when the test names none."""

    def answer(recipient_id: str) -> Accepted:
        if not ids or recipient_id in ids:
            raise error()
        return Accepted(f"<{recipient_id}@x>")

    return answer


class Meter:
    """A pace that grants what the test says, one grant a call, and remembers when it was asked."""

    def __init__(self, *grants: tuple[int, float]) -> None:
        self.grants = deque(grants)
        self.asked: list[tuple[float, int]] = []

    def take(self, want: int) -> tuple[int, float]:
        self.asked.append((time.monotonic(), want))
        granted, wait_seconds = self.grants.popleft() if self.grants else (want, 0.0)
        return min(want, granted), wait_seconds


class Gate:
    """A provider that does not answer until it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.reached = threading.Semaphore(0)

    def __call__(self, recipient_id: str) -> Accepted:
        self.reached.release()
        if not self.opened.wait(DEADLINE_SECONDS):
            raise Unconfirmed("the gate stayed shut")
        return Accepted(f"<{recipient_id}@x>")

    def wait_for(self, number: int) -> None:
        """Until so many messages are on the wire."""
        for _ in range(number):
            assert self.reached.acquire(timeout=DEADLINE_SECONDS)


def people(count: int, **columns: Any) -> list[Recipient]:
    usual = {"name": "Asha", "email": "asha@a.example", "phone": None, "attempts": 0}
    return [Recipient(f"r-{number}", **(usual | columns)) for number in range(count)]


class Workshop:
    """Makes batches with real journals, and sends them."""

    def __init__(self, folder: Path) -> None:
        self.journals = JournalDirectory(folder)
        self.made: list[Batch] = []
        self.dispatchers: list[Dispatcher] = []

    def batch(
        self,
        account: Any,
        recipients: list[Recipient],
        lease_seconds: float = 300.0,
        campaign_id: str = "c-1",
        allowance: int | None = None,
    ) -> Batch:
        batch_id = f"batch-{len(self.made)}"
        journal = self.journals.create(batch_id, len(recipients))
        lease_until = boot_seconds() + lease_seconds
        self.made.append(
            Batch(
                batch_id,
                "host:1:x",
                campaign(campaign_id),
                account,
                recipients,
                journal,
                lease_until=lease_until,
                allowance=allowance,
            )
        )
        return self.made[-1]

    def dispatcher(self, concurrency: int = 4) -> Dispatcher:
        return self.dispatcher_with(RequestThreads(concurrency, account_of, first_threads=concurrency))

    def dispatcher_with(self, threads: RequestThreads[BatchQueue, float | None], record: Any = None) -> Dispatcher:
        self.dispatchers.append(Dispatcher(threads, lambda: NOW, record))
        return self.dispatchers[-1]

    def sent(self, batch: Batch, concurrency: int = 4) -> Batch:
        """The batch, once no thread works on it any more."""
        dispatcher = self.dispatcher(concurrency)
        dispatcher.add(batch)
        assert finished(dispatcher) == [batch]
        return batch

    def written(self, batch: Batch) -> dict[str, Outcome | None]:
        """What the journal would tell a successor."""
        return batch.journal.read()


def finished(dispatcher: Dispatcher) -> list[Batch]:
    """The batches, one after the other as they finish, until none is open."""
    done: list[Batch] = []
    deadline = time.monotonic() + DEADLINE_SECONDS
    while dispatcher.open:
        dispatcher.looked(boot_seconds())
        for batch in dispatcher.finished():
            done.append(batch)
            dispatcher.forget(batch)
        assert time.monotonic() < deadline, "a batch does not finish"
    return done


@pytest.fixture
def workshop(tmp_path: Path) -> Iterator[Workshop]:
    made = Workshop(tmp_path)
    yield made
    for dispatcher in made.dispatchers:
        dispatcher.close()
    for batch in made.made:
        batch.journal.close()


def kinds(batch: Batch) -> dict[str, OutcomeKind]:
    return {recipient_id: outcome.kind for recipient_id, outcome in batch.outcomes.items()}


def test_hanging_messages_after_quick_ones(workshop: Workshop) -> None:
    """Messages that hang do not delay the others, even when quick ones before them had left few threads in use."""
    dispatcher = workshop.dispatcher(8)
    for _ in range(30):
        dispatcher.add(workshop.batch(Account(), people(50)))
        finished(dispatcher)
    gate = Gate()

    def answer(recipient_id: str) -> Accepted:
        if recipient_id in ("r-0", "r-1", "r-2"):
            return gate(recipient_id)
        return Accepted(f"<{recipient_id}@x>")

    batch = workshop.batch(Account(answer=answer), people(50))
    dispatcher.add(batch)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while len(batch.outcomes) < 47:
        assert dispatcher.finished() == []
        assert time.monotonic() < deadline, "the others wait for the messages that hang"
    gate.opened.set()
    assert finished(dispatcher) == [batch]


def test_a_provider_that_never_answers(workshop: Workshop) -> None:
    """A provider that takes messages and never answers gets a handful, not the whole campaign."""

    def answer(recipient_id: str) -> Accepted:
        raise Unconfirmed("no answer")

    batch = workshop.sent(workshop.batch(Account(answer=answer), people(50)), concurrency=2)
    assert batch.state is BatchState.BACKING_OFF
    assert DEFERRALS_BEFORE_BACKOFF <= len(batch.outcomes) <= DEFERRALS_BEFORE_BACKOFF + 2


def test_two_slow_campaigns(workshop: Workshop) -> None:
    """A campaign whose provider is slow leaves threads to those that come after it."""
    dispatcher = workshop.dispatcher(4)
    gate = Gate()
    slow = workshop.batch(Account(gate), people(40), campaign_id="slow")
    dispatcher.add(slow)
    gate.wait_for(4)
    quick = workshop.batch(Account(), people(5), campaign_id="quick")
    dispatcher.add(quick)
    gate.opened.set()
    done = finished(dispatcher)
    assert done[0] is quick


class Record:
    """What PostgreSQL would know of one batch, and whether it takes any more."""

    def __init__(self, allowance: int) -> None:
        self.may_leave = allowance
        self.outcomes: dict[str, Outcome] = {}
        self.takes = True
        self.most_unknown = allowance
        self.advances = 0

    def advance(self, batch: Batch, may_leave: int, outcomes: dict[str, Outcome]) -> bool:
        if not self.takes:
            return False
        assert may_leave > self.may_leave
        self.advances += 1
        self.outcomes |= outcomes
        unknown = [each for each in batch.recipients[:may_leave] if each.id not in self.outcomes]
        self.most_unknown = max(self.most_unknown, len(unknown))
        self.may_leave = may_leave
        return True


@pytest.mark.parametrize(("announces", "allowance"), [(False, 1), (False, 5), (True, 4), (True, 16)])
def test_nothing_leaves_before_its_progress_is_written(announces: bool, allowance: int, workshop: Workshop) -> None:
    """Each message is within what the record allows by then; the recipients without an outcome there are few."""
    record, early = Record(allowance), []

    def answer(recipient_id: str) -> Accepted:
        if int(recipient_id[2:]) >= record.may_leave:
            early.append(recipient_id)
        time.sleep(0.0005)
        return Accepted(f"<{recipient_id}@x>")

    account = Account(answer=answer, announces=announces)
    batch = workshop.batch(account, people(200), allowance=allowance)
    dispatcher = workshop.dispatcher_with(RequestThreads(4, account_of, first_threads=4), record)
    dispatcher.add(batch)
    assert finished(dispatcher) == [batch]
    assert early == []
    assert record.most_unknown == allowance
    assert len(account.given) == len(batch.outcomes) == 200
    assert record.advances <= 200 / max(1, allowance // 4)


def test_opted_out_recipients_need_no_progress(workshop: Workshop) -> None:
    """They come first, wherever they are in the batch, and count as known."""
    record = Record(5)
    some = people(50)
    some[40:] = [each._replace(opted_out="asked to be removed") for each in some[40:]]
    account = Account()
    batch = workshop.batch(account, some, allowance=5)
    dispatcher = workshop.dispatcher_with(RequestThreads(2, account_of), record)
    dispatcher.add(batch)
    assert finished(dispatcher) == [batch]
    assert (len(account.given), len(batch.outcomes), record.most_unknown) == (40, 50, 5)


def test_a_batch_that_was_taken_over_sends_no_further_message(workshop: Workshop) -> None:
    """Its progress cannot be written: what may have left is all that leaves."""
    record, account = Record(8), Account()
    record.takes = False
    batch = workshop.batch(account, people(50), allowance=8)
    dispatcher = workshop.dispatcher_with(RequestThreads(4, account_of), record)
    dispatcher.add(batch)
    assert finished(dispatcher) == [batch]
    assert batch.state is BatchState.LEASE_LOST
    assert len(account.given) <= 8


def test_progress_that_cannot_be_written_ends_the_tick(workshop: Workshop) -> None:
    """PostgreSQL is unavailable: the error is that of the tick, and what was sent is in the journal."""

    class Unavailable(Record):
        def advance(self, *_: Any) -> bool:
            raise OSError("no server")

    account = Account()
    batch = workshop.batch(account, people(50), allowance=8)
    dispatcher = workshop.dispatcher_with(RequestThreads(1, account_of), Unavailable(8))
    dispatcher.add(batch)
    with pytest.raises(OSError, match="no server"):
        finished(dispatcher)
    assert 0 < len(workshop.written(batch)) == len(account.given) <= 8
    dispatcher.abandon()


def test_all_accepted(workshop: Workshop) -> None:
    """Every recipient gets one message, the journal has each answer, and the dispatcher is free again."""
    account = Account()
    batch = workshop.sent(workshop.batch(account, people(50)))
    assert sorted(account.given) == sorted(each.id for each in batch.recipients)
    assert set(kinds(batch).values()) == {OutcomeKind.ACCEPTED}
    assert batch.outcomes["r-7"].accepted == Accepted("<r-7@x>")
    assert workshop.written(batch) == batch.outcomes
    assert workshop.dispatchers[0].open == []


def test_side_by_side(workshop: Workshop) -> None:
    """As many messages are on the wire at once as there are threads, and no more."""
    gate = Gate()
    dispatcher = workshop.dispatcher(3)
    batch = workshop.batch(Account(answer=gate), people(10))
    dispatcher.add(batch)
    gate.wait_for(3)
    assert dispatcher.finished() == []
    assert len(batch.transport.given) == 3
    gate.opened.set()
    assert finished(dispatcher) == [batch]
    assert len(batch.outcomes) == 10


def test_started_before_it_leaves(workshop: Workshop) -> None:
    """Before a message may leave, the journal says so: after a kill at this instant it is unconfirmed, not unsent."""
    gate = Gate()
    dispatcher = workshop.dispatcher(2)
    batch = workshop.batch(Account(answer=gate), people(5))
    dispatcher.add(batch)
    gate.wait_for(2)
    entries = workshop.written(batch)
    gate.opened.set()
    finished(dispatcher)
    assert entries == dict.fromkeys(["r-0", "r-1"])


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RecipientRefused("no such user"), OutcomeKind.REFUSED),
        (RecipientOptedOut("opted out"), OutcomeKind.OPTED_OUT),
        (RetryLater("mailbox busy"), OutcomeKind.DEFERRED),
        (Unconfirmed("no answer"), OutcomeKind.UNCONFIRMED),
    ],
)
def test_one_recipients_error(workshop: Workshop, error: SendError, kind: OutcomeKind) -> None:
    """What goes wrong with one recipient concerns no other: all others get their message."""
    batch = workshop.sent(workshop.batch(Account(answer=refusing(lambda: error, "r-3")), people(20)))
    assert kinds(batch) == {each.id: kind if each.id == "r-3" else OutcomeKind.ACCEPTED for each in batch.recipients}
    assert batch.outcomes["r-3"].reason == str(error)
    assert workshop.written(batch)["r-3"] == batch.outcomes["r-3"]
    assert batch.state is BatchState.SENDING


def test_no_address(workshop: Workshop) -> None:
    """A recipient without an address is refused with the reason, and no message leaves."""
    batch = workshop.batch(Account(), [*people(3), Recipient("bad", "x", None, None, 0)])
    workshop.sent(batch)
    assert batch.outcomes["bad"] == Outcome(
        OutcomeKind.REFUSED, NOW, "not an e-mail address: no @", fault=FailureKind.CONTENT
    )
    assert "bad" not in workshop.written(batch)
    assert "bad" not in batch.transport.given


def test_opted_out_before(workshop: Workshop) -> None:
    """A recipient who opted out in an earlier campaign fails with that reason, and no message leaves."""
    batch = workshop.sent(workshop.batch(Account(), people(1, opted_out="user said stop")))
    assert batch.outcomes["r-0"] == Outcome(
        OutcomeKind.REFUSED, NOW, "opted out: user said stop", fault=FailureKind.SUPPRESSED
    )
    assert batch.transport.given == []


def opted_out(reason: str) -> Outcome:
    return Outcome(OutcomeKind.REFUSED, NOW, f"opted out: {reason}", fault=FailureKind.SUPPRESSED)


def test_opted_out_while_it_waits(workshop: Workshop) -> None:
    """Who opts out while others are written to gets no message, and is not in the journal; all others go."""
    gate = Gate()
    dispatcher = workshop.dispatcher(1)
    batch = workshop.batch(Account(answer=gate), people(5))
    dispatcher.add(batch)
    gate.wait_for(1)
    dispatcher.opt_out(batch, {"r-0": "too late", "r-1": "STOP", "r-3": "STOP", "nobody": "STOP"})
    gate.opened.set()
    assert finished(dispatcher) == [batch]
    assert batch.transport.given == ["r-0", "r-2", "r-4"]
    assert {key for key, outcome in batch.outcomes.items() if outcome == opted_out("STOP")} == {"r-1", "r-3"}
    assert workshop.written(batch).keys() == {"r-0", "r-2", "r-4"}
    assert batch.state is BatchState.SENDING


def test_opted_out_while_it_is_handed_over(workshop: Workshop) -> None:
    """A message whose bytes have not left yet, as while its thread connects, does not leave; the batch goes on."""
    gate = Gate()

    def answer(recipient_id: str) -> Accepted:
        gate(recipient_id)
        check_handover()
        return Accepted(f"<{recipient_id}@x>")

    dispatcher = workshop.dispatcher(1)
    batch = workshop.batch(Account(answer=answer), people(3))
    dispatcher.add(batch)
    gate.wait_for(1)
    dispatcher.opt_out(batch, {"r-0": "STOP"})
    gate.opened.set()
    assert finished(dispatcher) == [batch]
    assert batch.outcomes["r-0"] == opted_out("STOP")
    assert workshop.written(batch)["r-0"] == batch.outcomes["r-0"]
    assert {batch.outcomes[each].kind for each in ("r-1", "r-2")} == {OutcomeKind.ACCEPTED}
    assert batch.state is BatchState.SENDING


def test_nothing_leaves_without_a_recent_look_at_the_list(workshop: Workshop) -> None:
    """Neither what waits for a thread, nor what waits for its connection, which is due again; then all goes on."""
    reached = threading.Semaphore(0)

    def answer(recipient_id: str) -> Accepted:
        reached.release()
        if recipient_id == "r-0":
            wait_until_a_look_is_old()
        check_handover()
        return Accepted(f"<{recipient_id}@x>")

    dispatcher = workshop.dispatcher(1)
    batch = workshop.batch(Account(answer=answer), people(3))
    dispatcher.add(batch)
    assert reached.acquire(timeout=DEADLINE_SECONDS)
    while not batch.outcomes:
        assert dispatcher.finished() == []
    assert kinds(batch) == {"r-0": OutcomeKind.NOT_SENT}
    assert dispatcher.finished() == []
    assert (batch.transport.given, batch.state) == (["r-0"], BatchState.SENDING)
    assert finished(dispatcher) == [batch]
    assert batch.transport.given == ["r-0", "r-1", "r-2"]
    assert {batch.outcomes[each].kind for each in ("r-1", "r-2")} == {OutcomeKind.ACCEPTED}


def wait_until_a_look_is_old() -> None:
    began = boot_seconds()
    while boot_seconds() <= began + LOOK_VALID_SECONDS:
        time.sleep(0.05)


def test_opted_out_after_it_was_announced(workshop: Workshop) -> None:
    """Its commands are on the wire already: it is withdrawn before another message is sent."""
    gate = Gate()
    account = Account(answer=gate, announces=True)
    dispatcher = workshop.dispatcher(1)
    batch = workshop.batch(account, people(4))
    dispatcher.add(batch)
    gate.wait_for(1)
    assert account.announced == [("r-0", "r-1")]
    dispatcher.opt_out(batch, {"r-1": "STOP"})
    gate.opened.set()
    assert finished(dispatcher) == [batch]
    assert account.given == ["r-0", "r-2", "r-3"]
    assert "r-1" in account.withdrawn
    assert batch.outcomes["r-1"] == opted_out("STOP")


class Day:
    """The hours of a batch, which end when the test says so."""

    def __init__(self, batch: Batch) -> None:
        self.now = NOW
        window, zones = Window.parse("09:00-21:00"), (ZoneInfo("UTC"),)
        batch.hours = BatchHours(
            window, dict.fromkeys((each.id for each in batch.recipients), zones), lambda: self.now, {}
        )

    def end(self) -> None:
        self.now = NOW.replace(hour=21)


def test_hours_that_end_while_a_batch_is_sent(workshop: Workshop) -> None:
    """The message on the wire finishes, no other one leaves; their recipients wait for tomorrow."""
    gate = Gate()
    account = Account(answer=gate, announces=True)
    dispatcher = workshop.dispatcher(1)
    batch = workshop.batch(account, people(20))
    day = Day(batch)
    dispatcher.add(batch)
    gate.wait_for(1)
    day.end()
    gate.opened.set()
    assert finished(dispatcher) == [batch]
    assert (account.given, account.withdrawn[0]) == (["r-0"], "r-1")
    assert batch.outcomes.keys() == {each.id for each in batch.recipients}
    waiting = {recipient_id: outcome for recipient_id, outcome in batch.outcomes.items() if recipient_id != "r-0"}
    assert {(each.kind, each.delay_seconds) for each in waiting.values()} == {(OutcomeKind.NOT_SENT, 12 * 3600.0)}
    assert workshop.written(batch).keys() == {"r-0"}
    assert batch.state is BatchState.SENDING


def test_hours_that_end_while_a_message_is_handed_over(workshop: Workshop) -> None:
    """As long as none of its bytes has left, as while its thread connects, it stays here."""
    gate = Gate()

    def answer(recipient_id: str) -> Accepted:
        gate(recipient_id)
        check_handover()
        return Accepted(f"<{recipient_id}@x>")

    dispatcher = workshop.dispatcher(1)
    batch = workshop.batch(Account(answer=answer), people(2))
    day = Day(batch)
    dispatcher.add(batch)
    gate.wait_for(1)
    day.end()
    gate.opened.set()
    assert finished(dispatcher) == [batch]
    assert set(kinds(batch).values()) == {OutcomeKind.NOT_SENT}
    assert batch.state is BatchState.SENDING


def test_who_is_outside_their_hours_needs_no_token(workshop: Workshop) -> None:
    """They wait for the morning at once, and leave the account's pace to others."""
    meter = Meter((0, 60.0))
    batch = workshop.batch(Account(pace=meter), people(50))
    Day(batch).end()
    workshop.sent(batch)
    assert set(kinds(batch).values()) == {OutcomeKind.NOT_SENT}
    assert meter.asked == []
    assert batch.transport.given == []


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_provider_that_defers_everybody(workshop: Workshop, concurrency: int) -> None:
    """After a handful of messages deferred in a row the batch backs off: no other message is tried."""
    account = Account(answer=refusing(lambda: RetryLater("421 too busy")))
    batch = workshop.sent(workshop.batch(account, people(100)), concurrency)
    assert batch.state is BatchState.BACKING_OFF
    assert batch.reason == "421 too busy"
    assert batch.delay_seconds is None
    assert DEFERRALS_BEFORE_BACKOFF <= len(account.given) < DEFERRALS_BEFORE_BACKOFF + concurrency
    assert set(kinds(batch).values()) == {OutcomeKind.DEFERRED}


def test_the_providers_own_delay(workshop: Workshop) -> None:
    """A batch that backs off asks for the longest delay that the provider named."""
    delays = iter([10.0, 90.0, None, 30.0, 20.0])

    def answer(_: str) -> Accepted:
        raise RetryLater("429", next(delays))

    batch = workshop.sent(workshop.batch(Account(answer=answer), people(9)), 1)
    assert (batch.state, batch.delay_seconds) == (BatchState.BACKING_OFF, 90.0)


def test_a_few_deferred(workshop: Workshop) -> None:
    """Messages deferred now and then, between accepted ones, cause no backoff."""
    some = {f"r-{number}" for number in range(100) if number % DEFERRALS_BEFORE_BACKOFF}
    batch = workshop.sent(workshop.batch(Account(answer=refusing(lambda: RetryLater("busy"), *some)), people(100)), 1)
    assert batch.state is BatchState.SENDING
    assert len(batch.outcomes) == 100


@pytest.mark.parametrize("error", [CampaignRejected("template 132001"), AccountRejected("token expired")])
def test_a_rejected_campaign(workshop: Workshop, error: SendError) -> None:
    """A dead template or credential stops the batch within as many tries as there are threads; no recipient fails."""
    account = Account(answer=refusing(lambda: error))
    batch = workshop.sent(workshop.batch(account, people(100)), 4)
    assert batch.state is BatchState.REJECTED
    assert (batch.rejection, batch.reason) == (error, str(error))
    assert 1 <= len(account.given) <= 4
    assert set(kinds(batch).values()) == {OutcomeKind.REJECTED}


def test_a_rejection_stops_the_other_batch_too(workshop: Workshop) -> None:
    """Of the campaign's two batches that are sent side by side, the second stops as soon as the first is rejected."""
    first_gate, second_gate = Gate(), Gate()

    def refuse(recipient_id: str) -> Accepted:
        first_gate(recipient_id)
        raise CampaignRejected("template 132001")

    dispatcher = workshop.dispatcher(2)
    first = workshop.batch(Account(refuse), people(1))
    second = workshop.batch(Account(second_gate), people(20))
    for batch, gate in ((first, first_gate), (second, second_gate)):
        dispatcher.add(batch)
        gate.wait_for(1)
    first_gate.opened.set()
    deadline = time.monotonic() + DEADLINE_SECONDS
    while second.sending:
        assert time.monotonic() < deadline, "the second batch goes on"
        time.sleep(0.005)
    second_gate.opened.set()
    finished(dispatcher)
    assert (first.state, second.state) == (BatchState.REJECTED, BatchState.STOPPED)
    assert len(second.outcomes) == 1


def test_recipients_deferred_one_by_one(workshop: Workshop) -> None:
    """Recipients who are deferred each for a reason of their own, however many in a row, cause no backoff."""
    some = {f"r-{number}" for number in range(1, 3 * DEFERRALS_BEFORE_BACKOFF)}
    account = Account(answer=refusing(lambda: RecipientDeferred("450 greylisted"), *some))
    batch = workshop.sent(workshop.batch(account, people(40)), 1)
    assert batch.state is BatchState.SENDING
    deferred, accepted = OutcomeKind.RECIPIENT_DEFERRED, OutcomeKind.ACCEPTED
    assert Counter(kinds(batch).values()) == {deferred: len(some), accepted: 40 - len(some)}


def test_stopping_one_campaign(workshop: Workshop) -> None:
    """Stopping a campaign stops all its batches, and no other campaign's."""
    gate = Gate()
    dispatcher = workshop.dispatcher(2)
    stopped, other = (workshop.batch(Account(gate), people(20), campaign_id=name) for name in ("stopped", "other"))
    dispatcher.add(stopped)
    dispatcher.add(other)
    gate.wait_for(2)
    dispatcher.stop("stopped")
    gate.opened.set()
    finished(dispatcher)
    assert len(stopped.outcomes) == 2
    assert len(other.outcomes) == 20


def test_side_by_side_campaigns(workshop: Workshop) -> None:
    """A campaign that is rejected, and one that is deferred, do not affect a third one that is sent beside them."""
    accounts = {
        "dead": Account(refusing(lambda: CampaignRejected("no template"))),
        "slow": Account(refusing(lambda: RetryLater("busy"))),
        "good": Account(),
    }
    dispatcher = workshop.dispatcher(2)
    for name, account in accounts.items():
        dispatcher.add(workshop.batch(account, people(30), campaign_id=name))
    assert [dispatcher.number_open(name) for name in ("dead", "good", "none")] == [1, 1, 0]
    done = {batch.campaign.id: batch for batch in finished(dispatcher)}
    assert done["dead"].state is BatchState.REJECTED
    assert done["slow"].state is BatchState.BACKING_OFF
    assert set(kinds(done["good"]).values()) == {OutcomeKind.ACCEPTED}
    assert len(accounts["good"].given) == 30


def test_drain(workshop: Workshop) -> None:
    """On a stop the messages on the wire are waited for, and all other recipients are released."""
    gate = Gate()
    dispatcher = workshop.dispatcher(2)
    batch = workshop.batch(Account(answer=gate), people(10))
    dispatcher.add(batch)
    gate.wait_for(2)
    opener = threading.Timer(0.05, gate.opened.set)
    opener.start()
    assert dispatcher.drain(DEADLINE_SECONDS) == [batch]
    opener.join()
    assert kinds(batch) == {"r-0": OutcomeKind.ACCEPTED, "r-1": OutcomeKind.ACCEPTED}
    dispatcher.forget(batch)
    assert dispatcher.open == []
    assert dispatcher.close()


def test_drain_beyond_the_grace(workshop: Workshop) -> None:
    """Messages still on the wire when the grace time is over are unconfirmed, and only those."""
    gate = Gate()
    dispatcher = workshop.dispatcher(2)
    batch = workshop.batch(Account(answer=gate), people(10))
    dispatcher.add(batch)
    gate.wait_for(2)
    began = time.monotonic()
    assert dispatcher.drain(0.05) == [batch]
    assert time.monotonic() - began < DEADLINE_SECONDS / 2
    assert kinds(batch) == {"r-0": OutcomeKind.UNCONFIRMED, "r-1": OutcomeKind.UNCONFIRMED}
    assert batch.outcomes["r-0"].reason == "the worker was stopped before the provider answered"
    assert not dispatcher.close()  # the program ends without waiting for these threads
    gate.opened.set()


def test_the_message_that_follows_is_announced(workshop: Workshop) -> None:
    """A thread tells the provider which message it sends next; one that cannot be made is not announced."""
    account = Account(announces=True)
    recipients = people(4)
    recipients[2] = recipients[2]._replace(email=None)
    batch = workshop.sent(workshop.batch(account, recipients), concurrency=1)
    assert account.announced == [("r-0", "r-1"), ("r-1", None), ("r-3", None)]
    accepted, refused = OutcomeKind.ACCEPTED, OutcomeKind.REFUSED
    assert kinds(batch) == {"r-0": accepted, "r-1": accepted, "r-2": refused, "r-3": accepted}


def test_no_thread_is_left_without_a_message(workshop: Workshop) -> None:
    """Where there are no more recipients than threads, each thread takes one."""
    gate = Gate()
    account = Account(announces=True, answer=gate)
    dispatcher = workshop.dispatcher(4)
    dispatcher.add(workshop.batch(account, people(4)))
    gate.wait_for(4)
    gate.opened.set()
    finished(dispatcher)
    assert [following for _, following in account.announced] == [None] * 4


@pytest.mark.parametrize("answers", [True, False])
def test_a_message_that_was_announced_and_not_sent(workshop: Workshop, answers: bool) -> None:
    """After a stop it is withdrawn; its recipient has nothing in the journal and no outcome, and stays pending."""
    gate = Gate()
    account = Account(announces=True, answer=gate)
    batch = workshop.batch(account, people(3))
    dispatcher = workshop.dispatcher(1)
    dispatcher.add(batch)
    gate.wait_for(1)
    if answers:
        dispatcher.stop()
        gate.opened.set()
        assert finished(dispatcher) == [batch]
    else:
        assert dispatcher.drain(0.05) == [batch]
    assert account.announced == [("r-0", "r-1")]
    assert kinds(batch) == {"r-0": OutcomeKind.ACCEPTED if answers else OutcomeKind.UNCONFIRMED}
    assert list(workshop.written(batch)) == ["r-0"]
    gate.opened.set()
    dispatcher.drain(DEADLINE_SECONDS)
    assert "r-1" in account.withdrawn
    assert account.given == ["r-0"]


def test_a_pace(workshop: Workshop) -> None:
    """At no time has the provider got more messages than the account's pace has granted."""
    meter = Meter((2, 0.01), (0, 0.02), (3, 0.01), (1, 0.01))
    account = Account(pace=meter)
    allowed: list[int] = []
    granted = 0
    taken = meter.take

    def take(want: int) -> tuple[int, float]:
        nonlocal granted
        allowed.append(len(account.given) - granted)  # messages beyond the grants: never any
        given, wait_seconds = taken(want)
        granted += given
        return given, wait_seconds

    meter.take = take  # type: ignore[method-assign]
    batch = workshop.sent(workshop.batch(account, people(20)))
    assert len(batch.outcomes) == 20
    assert max(allowed) <= 0
    wants = [want for _, want in meter.asked]
    assert wants == [20, 18, 18, 15, 14]


def test_a_pace_is_not_asked_too_early(workshop: Workshop) -> None:
    """When the pace says that the next token comes in a while, it is not asked before."""
    meter = Meter((1, 0.2), (1, 0.2))
    workshop.sent(workshop.batch(Account(pace=meter), people(3)))
    times = [at for at, _ in meter.asked]
    assert all(late - early >= 0.2 for early, late in pairwise(times))


def test_a_pace_that_takes_long(workshop: Workshop) -> None:
    """A batch whose next token is far away backs off rather than stays claimed."""
    meter = Meter((2, 0.0), (0, LONG_WAIT_SECONDS + 55.0))
    batch = workshop.sent(workshop.batch(Account(pace=meter), people(10)))
    assert (batch.state, batch.delay_seconds) == (BatchState.BACKING_OFF, LONG_WAIT_SECONDS + 55.0)
    assert len(batch.outcomes) == 2


def test_the_last_tokens_before_a_long_wait(workshop: Workshop) -> None:
    """Recipients whose tokens were granted get their messages, however long the next token takes."""
    meter = Meter((2, LONG_WAIT_SECONDS + 55.0))
    batch = workshop.sent(workshop.batch(Account(pace=meter), people(2)))
    assert batch.state is BatchState.SENDING
    assert len(batch.outcomes) == 2


class LateThreads(RequestThreads[BatchQueue, float | None]):
    """Threads that end some time after their work is done, as when the system lets others run."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.work_done = threading.Event()
        self.may_end = threading.Event()

    def submit(self, owner: BatchQueue, request: Callable[[], float | None]) -> None:
        def late_end() -> float | None:
            answer = request()
            self.work_done.set()
            self.may_end.wait(DEADLINE_SECONDS)
            return answer

        super().submit(owner, late_end)


def test_a_token_that_comes_as_the_last_thread_ends(workshop: Workshop) -> None:
    """A recipient let through in the moment in which the last thread ends is sent to all the same."""
    meter = Meter((1, 0.0), (1, 0.0))
    batch = workshop.batch(Account(pace=meter), people(2))
    threads = LateThreads(1)
    dispatcher = workshop.dispatcher_with(threads)
    dispatcher.add(batch)
    assert threads.work_done.wait(DEADLINE_SECONDS)  # the thread is about to end
    dispatcher.finished()  # grants the second token
    threads.may_end.set()
    assert finished(dispatcher) == [batch]
    assert len(batch.outcomes) == 2


def test_frozen_too_long(workshop: Workshop) -> None:
    """A process that was frozen until its lease expired sends no more of that batch: another may have it now."""
    account = Account()
    batch = workshop.sent(workshop.batch(account, people(10), lease_seconds=-1.0))
    assert account.given == []
    assert set(kinds(batch).values()) <= {OutcomeKind.NOT_SENT}
    assert batch.state is BatchState.LEASE_LOST


def test_frozen_between_the_look_and_the_hand_over(workshop: Workshop) -> None:
    """The provider's last look finds the lease expired: not sent, no attempt counted, and nobody else is next."""
    account = Account(answer=refusing(lambda: TooLate("frozen")))
    batch = workshop.sent(workshop.batch(account, people(3)))
    assert account.given == ["r-0"]
    assert set(kinds(batch).values()) <= {OutcomeKind.NOT_SENT}
    assert batch.state is BatchState.LEASE_LOST


def test_the_lease_is_looked_at_until_the_message_is_handed_over(workshop: Workshop) -> None:
    """A provider that took long to connect asks again, and is told that the lease expired meanwhile."""

    def answer(recipient_id: str) -> Accepted:
        check_handover()
        batch.renew_lease(boot_seconds() - 1.0)
        check_handover()
        return Accepted(recipient_id)

    batch = workshop.batch(Account(answer=answer), people(1))
    workshop.sent(batch)
    assert kinds(batch) == {"r-0": OutcomeKind.NOT_SENT}


def test_a_bug_in_a_provider(workshop: Workshop) -> None:
    """A bug in a thread is raised, no other message leaves, and the journal has the one that was started."""

    def answer(recipient_id: str) -> Accepted:
        raise ZeroDivisionError(recipient_id)

    dispatcher = workshop.dispatcher(1)
    batch = workshop.batch(Account(answer=answer), people(5))
    dispatcher.add(batch)
    with pytest.raises(ZeroDivisionError):
        finished(dispatcher)
    entries = workshop.written(batch)
    dispatcher.abandon()
    assert dispatcher.open == []
    assert len(batch.transport.given) == 1
    assert entries == {"r-0": None}
    found = workshop.journals.take_over(batch.id)
    assert found, "the journal is free for the process that settles the batch"
    found.close()


def test_abandoned_in_flight(workshop: Workshop) -> None:
    """After an error, a batch with a message still on the wire keeps its journal until the answer is in it."""
    gate = Gate()
    dispatcher = workshop.dispatcher(1)
    batch = workshop.batch(Account(answer=gate), people(5))
    dispatcher.add(batch)
    gate.wait_for(1)
    dispatcher.abandon()
    assert workshop.journals.take_over(batch.id) is None
    gate.opened.set()
    deadline = time.monotonic() + DEADLINE_SECONDS
    while (found := workshop.journals.take_over(batch.id)) is None:
        dispatcher.reap()
        assert time.monotonic() < deadline
    assert [outcome and outcome.kind for outcome in found.read().values()] == [OutcomeKind.ACCEPTED]
    found.close()


def test_a_full_journal_sends_nothing(workshop: Workshop) -> None:
    """When the journal takes no more, the message does not leave."""
    batch = workshop.batch(Account(), people(3))
    batch.journal.close()
    dispatcher = workshop.dispatcher(1)
    dispatcher.add(batch)
    with pytest.raises(Exception, match="cannot be written"):
        finished(dispatcher)
    dispatcher.abandon()
    assert batch.transport.given == []


def test_long_reasons(workshop: Workshop) -> None:
    """However long a provider's answer is, and in whatever script, it fits into the journal."""
    words = [char * 5000 for char in ("x", "आ", "\N{GRINNING FACE}", '"', "\\")]
    errors = iter(words * 10)
    batch = workshop.sent(
        workshop.batch(Account(answer=lambda _: (_ for _ in ()).throw(RecipientRefused(next(errors)))), people(50)), 1
    )
    assert len(workshop.written(batch)) == 50
    assert all(outcome and len(outcome.reason or "") == 300 for outcome in workshop.written(batch).values())


@pytest.mark.parametrize(("connections", "threads"), [(None, 4), (0, 1), (1, 1), (3, 3)])
def test_no_more_threads_than_connections(workshop: Workshop, connections: int | None, threads: int) -> None:
    """A thread without a connection would only wait; one tries. The account knows how many there could be."""
    gate = Gate()
    account = Account(gate, most_connections=connections)
    dispatcher = workshop.dispatcher()
    dispatcher.add(workshop.batch(account, people(20)))
    gate.wait_for(threads)
    dispatcher.looked(boot_seconds())
    assert dispatcher.finished() == []
    assert len(account.given) == threads
    assert max(account.wanted_connections) == 4
    gate.opened.set()
    assert len(finished(dispatcher)) == 1
