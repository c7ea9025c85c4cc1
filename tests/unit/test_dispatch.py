"""Batches through the lanes: what becomes of each recipient when providers accept, refuse, wait or die."""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from worker.campaigns.batch import DEFERRALS_BEFORE_BACKOFF, Batch, Kind, Outcome, Recipient
from worker.campaigns.dispatcher import LONG_WAIT_SECONDS, Dispatcher
from worker.campaigns.journal import JournalDirectory
from worker.errors import (
    AccountRejected,
    CampaignRejected,
    RecipientDeferred,
    RecipientOptedOut,
    RecipientRefused,
    RetryLater,
    SendError,
    Unconfirmed,
)
from worker.messages import Accepted

DEADLINE_SECONDS = 30.0
NOW = datetime(2026, 1, 31, 12)  # noqa: DTZ001 - UTC without a zone, as the CRM writes it


class Content:
    """Messages that are their recipient's own id; an address that is none is refused."""

    def message(self, recipient: Recipient, at: datetime) -> str:
        if not recipient.email:
            raise ValueError("not an e-mail address: no @")
        return recipient.id


@dataclass
class Road:
    """A way out of the test's own: keeps what it was given, and answers as it is told to."""

    campaign: dict[str, Any] = field(default_factory=lambda: {"id": "c-1"})
    answer: Callable[[str], Accepted] = lambda recipient_id: Accepted(f"<{recipient_id}@x>")
    pace: Any = None
    provider: Any = None
    content: Content = field(default_factory=Content)
    given: list[str] = field(default_factory=list)

    def send(self, message: str) -> Accepted:
        self.given.append(message)
        return self.answer(message)


def refusing(error: Callable[[], SendError], *ids: str) -> Callable[[str], Accepted]:
    """Answers with an error for these recipients; for all when none is named."""

    def answer(recipient_id: str) -> Accepted:
        if not ids or recipient_id in ids:
            raise error()
        return Accepted(f"<{recipient_id}@x>")

    return answer


class Meter:
    """A pace that grants what it is told to, one grant a call, and remembers when it was asked."""

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
            raise Unconfirmed("nobody opened the gate")
        return Accepted(f"<{recipient_id}@x>")

    def wait_for(self, number: int) -> None:
        """Until so many messages are on the wire."""
        for _ in range(number):
            assert self.reached.acquire(timeout=DEADLINE_SECONDS)


def people(count: int, **columns: Any) -> list[Recipient]:
    usual = {"name": "Asha", "email": "asha@a.example", "phone": None, "attempts": 0}
    return [Recipient(f"r-{number}", **(usual | columns)) for number in range(count)]


class BatchClaims:
    """Makes batches with real journals, and sends them."""

    def __init__(self, folder: Path) -> None:
        self.places = JournalDirectory(folder)
        self.made: list[Batch] = []
        self.dispatchers: list[Dispatcher] = []

    def batch(self, road: Any, recipients: list[Recipient], lease_seconds: float = 300.0) -> Batch:
        batch_id = f"batch-{len(self.made)}"
        lease_until = time.clock_gettime(time.CLOCK_BOOTTIME) + lease_seconds
        journal = self.places.create(batch_id, len(recipients))
        self.made.append(Batch(batch_id, "host:1:x", road, recipients, journal, lease_until))
        return self.made[-1]

    def dispatcher(self, concurrency: int = 4) -> Dispatcher:
        self.dispatchers.append(Dispatcher(concurrency, lambda: NOW))
        return self.dispatchers[-1]

    def sent(self, batch: Batch, concurrency: int = 4) -> Batch:
        """The batch, when all its recipients have an outcome or were put back."""
        dispatcher = self.dispatcher(concurrency)
        dispatcher.add(batch)
        assert finished(dispatcher) == [batch]
        return batch

    def left(self, batch: Batch) -> dict[str, Any]:
        """What the journal would tell a successor."""
        return batch.journal.read()


def finished(dispatcher: Dispatcher) -> list[Batch]:
    """The batches, one after the other as they finish, until none is open."""
    done: list[Batch] = []
    deadline = time.monotonic() + DEADLINE_SECONDS
    while dispatcher.open:
        for batch in dispatcher.finished():
            done.append(batch)
            dispatcher.forget(batch)
        assert time.monotonic() < deadline, "a batch does not finish"
    return done


@pytest.fixture
def batches(tmp_path: Path) -> Iterator[BatchClaims]:
    made = BatchClaims(tmp_path)
    yield made
    for dispatcher in made.dispatchers:
        dispatcher.close()
    for batch in made.made:
        batch.journal.close()


def kinds(batch: Batch) -> dict[str, Kind]:
    return {recipient_id: outcome.kind for recipient_id, outcome in batch.outcomes.items()}


def test_hanging_messages_after_quick_ones(batches: BatchClaims) -> None:
    """Messages that hang hold up nobody, also when quick ones before them left few lanes open."""
    dispatcher = batches.dispatcher(8)
    for _ in range(30):
        dispatcher.add(batches.batch(Road(), people(50)))
        finished(dispatcher)
    gate = Gate()

    def answer(recipient_id: str) -> Accepted:
        if recipient_id in ("r-0", "r-1", "r-2"):
            return gate(recipient_id)
        return Accepted(f"<{recipient_id}@x>")

    batch = batches.batch(Road(answer=answer), people(50))
    dispatcher.add(batch)
    deadline = time.monotonic() + DEADLINE_SECONDS
    while len(batch.outcomes) < 47:
        assert dispatcher.finished() == []
        assert time.monotonic() < deadline, "the others wait for the messages that hang"
    gate.opened.set()
    assert finished(dispatcher) == [batch]


def test_a_provider_that_never_answers(batches: BatchClaims) -> None:
    """A provider that takes messages and never says so gets a handful, not the whole campaign."""

    def answer(recipient_id: str) -> Accepted:
        raise Unconfirmed("no answer")

    batch = batches.sent(batches.batch(Road(answer=answer), people(50)), concurrency=2)
    assert batch.held
    assert DEFERRALS_BEFORE_BACKOFF <= len(batch.outcomes) <= DEFERRALS_BEFORE_BACKOFF + 2


def test_two_slow_campaigns(batches: BatchClaims) -> None:
    """A campaign whose provider is slow leaves lanes to those that come after it."""
    dispatcher = batches.dispatcher(4)
    gate = Gate()
    slow = batches.batch(Road({"id": "slow"}, gate), people(40))
    dispatcher.add(slow)
    gate.wait_for(4)
    quick = batches.batch(Road({"id": "quick"}), people(5))
    dispatcher.add(quick)
    gate.opened.set()
    done = finished(dispatcher)
    assert done[0] is quick


def test_all_accepted(batches: BatchClaims) -> None:
    """Everybody gets one message, the journal knows each answer, and the dispatcher is free again."""
    road = Road()
    batch = batches.sent(batches.batch(road, people(50)))
    assert sorted(road.given) == sorted(each.id for each in batch.recipients)
    assert set(kinds(batch).values()) == {Kind.ACCEPTED}
    assert batch.outcomes["r-7"].accepted == Accepted("<r-7@x>")
    now = datetime(2030, 1, 1)  # noqa: DTZ001
    again = {key: Outcome.from_entry(entry, now) for key, entry in batches.left(batch).items()}
    assert again == batch.outcomes
    assert batches.dispatchers[0].open == []


def test_side_by_side(batches: BatchClaims) -> None:
    """As many messages are on the wire at once as there are connections, and no more."""
    gate = Gate()
    dispatcher = batches.dispatcher(3)
    batch = batches.batch(Road(answer=gate), people(10))
    dispatcher.add(batch)
    gate.wait_for(3)
    assert dispatcher.finished() == []
    assert len(batch.transport.given) == 3
    gate.opened.set()
    assert finished(dispatcher) == [batch]
    assert len(batch.outcomes) == 10


def test_begun_before_it_leaves(batches: BatchClaims) -> None:
    """Before a message may leave, the journal says so: a kill at this instant makes it unconfirmed, not untouched."""
    gate = Gate()
    dispatcher = batches.dispatcher(2)
    batch = batches.batch(Road(answer=gate), people(5))
    dispatcher.add(batch)
    gate.wait_for(2)
    entries = batches.left(batch)
    gate.opened.set()
    finished(dispatcher)
    assert entries == dict.fromkeys(["r-0", "r-1"])


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RecipientRefused("no such user"), Kind.REFUSED),
        (RecipientOptedOut("opted out"), Kind.OPTED_OUT),
        (RetryLater("mailbox busy"), Kind.DEFERRED),
        (Unconfirmed("no answer"), Kind.UNCONFIRMED),
    ],
)
def test_one_recipients_trouble(batches: BatchClaims, error: SendError, kind: Kind) -> None:
    """What goes wrong with one recipient is that one's own: all others get their message."""
    batch = batches.sent(batches.batch(Road(answer=refusing(lambda: error, "r-3")), people(20)))
    assert kinds(batch) == {each.id: kind if each.id == "r-3" else Kind.ACCEPTED for each in batch.recipients}
    assert batch.outcomes["r-3"].reason == str(error)
    assert batches.left(batch)["r-3"][0] == kind
    assert not batch.held
    assert not batch.halted


def test_no_address(batches: BatchClaims) -> None:
    """A recipient whose address is none is refused with the reason, and nothing of it is on the wire."""
    batch = batches.batch(Road(), [*people(3), Recipient("bad", "x", None, None, 0)])
    batches.sent(batch)
    assert batch.outcomes["bad"] == Outcome(Kind.REFUSED, NOW, "not an e-mail address: no @")
    assert "bad" not in batches.left(batch)
    assert "bad" not in batch.transport.given


def test_opted_out_before(batches: BatchClaims) -> None:
    """Who opted out in an earlier campaign is refused with that reason, without a send."""
    batch = batches.sent(batches.batch(Road(), people(1, opted_out="user said stop")))
    assert batch.outcomes["r-0"] == Outcome(Kind.REFUSED, NOW, "opted out: user said stop")
    assert batch.transport.given == []


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_provider_that_puts_off_everybody(batches: BatchClaims, concurrency: int) -> None:
    """After a handful of messages put off in a row the campaign is held: all others are not even tried."""
    road = Road(answer=refusing(lambda: RetryLater("421 too busy")))
    batch = batches.sent(batches.batch(road, people(100)), concurrency)
    assert batch.held
    assert batch.hold_seconds is None
    assert DEFERRALS_BEFORE_BACKOFF <= len(road.given) < DEFERRALS_BEFORE_BACKOFF + concurrency
    assert set(kinds(batch).values()) == {Kind.DEFERRED}


def test_the_providers_own_delay(batches: BatchClaims) -> None:
    """A held campaign waits as long as the longest delay that the provider named."""
    delays = iter([10.0, 90.0, None, 30.0, 20.0])

    def answer(_: str) -> Accepted:
        raise RetryLater("429", next(delays))

    batch = batches.sent(batches.batch(Road(answer=answer), people(9)), 1)
    assert (batch.held, batch.hold_seconds) == (True, 90.0)


def test_a_few_put_off_hold_nothing(batches: BatchClaims) -> None:
    """Messages put off now and then, between accepted ones, do not hold the campaign."""
    some = {f"r-{number}" for number in range(100) if number % DEFERRALS_BEFORE_BACKOFF}
    batch = batches.sent(batches.batch(Road(answer=refusing(lambda: RetryLater("busy"), *some)), people(100)), 1)
    assert not batch.held
    assert len(batch.outcomes) == 100


@pytest.mark.parametrize("error", [CampaignRejected("template 132001"), AccountRejected("token expired")])
def test_a_rejected_campaign(batches: BatchClaims, error: SendError) -> None:
    """A dead template or credential stops the batch within as many tries as there are connections; nobody fails."""
    road = Road(answer=refusing(lambda: error))
    batch = batches.sent(batches.batch(road, people(100)), 4)
    assert batch.rejected is error
    assert 1 <= len(road.given) <= 4
    assert set(kinds(batch).values()) == {Kind.NOT_SENT}


def test_one_by_one_put_off(batches: BatchClaims) -> None:
    """Recipients who are put off each for a reason of their own, however many in a row, hold nobody else."""
    some = {f"r-{number}" for number in range(1, 3 * DEFERRALS_BEFORE_BACKOFF)}
    road = Road(answer=refusing(lambda: RecipientDeferred("450 greylisted"), *some))
    batch = batches.sent(batches.batch(road, people(40)), 1)
    assert not batch.held
    assert Counter(kinds(batch).values()) == {Kind.RECIPIENT_DEFERRED: len(some), Kind.ACCEPTED: 40 - len(some)}


def test_halting_one_campaign(batches: BatchClaims) -> None:
    """Halting a campaign stops its other batches on their way, and no other campaign's."""
    gate = Gate()
    dispatcher = batches.dispatcher(2)
    stopped, other = (batches.batch(Road({"id": name}, gate), people(20)) for name in ("stopped", "other"))
    dispatcher.add(stopped)
    dispatcher.add(other)
    gate.wait_for(2)
    dispatcher.halt("stopped")
    gate.opened.set()
    finished(dispatcher)
    assert len(stopped.outcomes) == 2
    assert len(other.outcomes) == 20


def test_side_by_side_campaigns(batches: BatchClaims) -> None:
    """A campaign that is rejected, and one that is put off, do not touch a third one that goes out beside them."""
    roads = [
        Road({"id": "dead"}, refusing(lambda: CampaignRejected("no template"))),
        Road({"id": "slow"}, refusing(lambda: RetryLater("busy"))),
        Road({"id": "good"}),
    ]
    dispatcher = batches.dispatcher(2)
    for road in roads:
        dispatcher.add(batches.batch(road, people(30)))
    assert [dispatcher.number_open(name) for name in ("dead", "good", "none")] == [1, 1, 0]
    done = {batch.campaign["id"]: batch for batch in finished(dispatcher)}
    assert done["dead"].rejected
    assert done["slow"].held
    assert set(kinds(done["good"]).values()) == {Kind.ACCEPTED}
    assert len(roads[2].given) == 30


def test_drain(batches: BatchClaims) -> None:
    """On a stop what is on the wire is waited for, and all others are put back untouched."""
    gate = Gate()
    dispatcher = batches.dispatcher(2)
    batch = batches.batch(Road(answer=gate), people(10))
    dispatcher.add(batch)
    gate.wait_for(2)
    opener = threading.Timer(0.05, gate.opened.set)
    opener.start()
    assert dispatcher.drain(DEADLINE_SECONDS) == [batch]
    opener.join()
    assert kinds(batch) == {"r-0": Kind.ACCEPTED, "r-1": Kind.ACCEPTED}
    dispatcher.forget(batch)
    assert dispatcher.open == []
    assert dispatcher.close()


def test_drain_beyond_the_grace(batches: BatchClaims) -> None:
    """What is on the wire still when the grace time is over is unconfirmed, and only that."""
    gate = Gate()
    dispatcher = batches.dispatcher(2)
    batch = batches.batch(Road(answer=gate), people(10))
    dispatcher.add(batch)
    gate.wait_for(2)
    began = time.monotonic()
    assert dispatcher.drain(0.05) == [batch]
    assert time.monotonic() - began < DEADLINE_SECONDS / 2
    assert kinds(batch) == {"r-0": Kind.UNCONFIRMED, "r-1": Kind.UNCONFIRMED}
    assert batch.outcomes["r-0"].reason == "the worker was stopped before the provider answered"
    assert not dispatcher.close()  # the program ends without waiting for these lanes
    gate.opened.set()


def test_a_pace(batches: BatchClaims) -> None:
    """No more recipients reach the provider than their sender's pace has granted, whenever that is."""
    meter = Meter((2, 0.01), (0, 0.02), (3, 0.01), (1, 0.01))
    road = Road(pace=meter)
    allowed: list[int] = []
    granted = 0
    taken = meter.take

    def take(want: int) -> tuple[int, float]:
        nonlocal granted
        allowed.append(len(road.given) - granted)  # messages beyond the grants: never any
        given, wait_seconds = taken(want)
        granted += given
        return given, wait_seconds

    meter.take = take  # type: ignore[method-assign]
    batch = batches.sent(batches.batch(road, people(20)))
    assert len(batch.outcomes) == 20
    assert max(allowed) <= 0
    wants = [want for _, want in meter.asked]
    assert wants == [20, 18, 18, 15, 14]


def test_a_pace_is_not_asked_in_vain(batches: BatchClaims) -> None:
    """When the pace says that the next token comes in a while, it is not asked before."""
    meter = Meter((1, 0.2), (1, 0.2))
    batches.sent(batches.batch(Road(pace=meter), people(3)))
    times = [at for at, _ in meter.asked]
    assert all(late - early >= 0.2 for early, late in pairwise(times))


def test_a_pace_that_takes_long(batches: BatchClaims) -> None:
    """A batch whose next token is far away is put back rather than kept claimed."""
    meter = Meter((2, 0.0), (0, LONG_WAIT_SECONDS + 55.0))
    batch = batches.sent(batches.batch(Road(pace=meter), people(10)))
    assert (batch.held, batch.hold_seconds) == (True, LONG_WAIT_SECONDS + 55.0)
    assert len(batch.outcomes) == 2


class LateEnd(deque[Recipient]):
    """A queue whose emptiness a lane notices late, as when its thread was not running just then."""

    def __init__(self) -> None:
        super().__init__()
        self.emptied = threading.Event()
        self.go_on = threading.Event()

    def popleft(self) -> Recipient:
        try:
            return super().popleft()
        except IndexError:
            self.emptied.set()
            self.go_on.wait(DEADLINE_SECONDS)
            raise


def test_a_token_that_comes_as_the_last_lane_ends(batches: BatchClaims) -> None:
    """A recipient let through in the moment in which the last lane ends is sent to all the same."""
    meter = Meter((1, 0.0), (1, 0.0))
    batch = batches.batch(Road(pace=meter), people(2))
    batch.ready = late = LateEnd()
    dispatcher = batches.dispatcher(1)
    dispatcher.add(batch)
    assert late.emptied.wait(DEADLINE_SECONDS)  # the lane is about to end
    dispatcher.finished()  # grants the second token
    late.go_on.set()
    assert finished(dispatcher) == [batch]
    assert len(batch.outcomes) == 2


def test_frozen_too_long(batches: BatchClaims) -> None:
    """A process that was frozen until its claim ran out sends nothing more of that batch: it may be another's."""
    road = Road()
    batch = batches.sent(batches.batch(road, people(10), lease_seconds=-1.0))
    assert road.given == []
    assert set(kinds(batch).values()) <= {Kind.NOT_SENT}
    assert batch.halted


def test_a_bug_in_a_provider(batches: BatchClaims) -> None:
    """A lane that dies of a bug says so, nobody else is let through, and the journal has what was begun."""

    def answer(recipient_id: str) -> Accepted:
        raise ZeroDivisionError(recipient_id)

    dispatcher = batches.dispatcher(1)
    batch = batches.batch(Road(answer=answer), people(5))
    dispatcher.add(batch)
    with pytest.raises(ZeroDivisionError):
        finished(dispatcher)
    entries = batches.left(batch)
    dispatcher.abandon()
    assert dispatcher.open == []
    assert len(batch.transport.given) == 1
    assert entries == {"r-0": None}
    found = batches.places.seize(batch.id)
    assert found, "the journal is free for whoever settles the batch"
    found.close()


def test_abandoned_in_flight(batches: BatchClaims) -> None:
    """After an error, a batch with a message still on the wire keeps its journal until the answer is in it."""
    gate = Gate()
    dispatcher = batches.dispatcher(1)
    batch = batches.batch(Road(answer=gate), people(5))
    dispatcher.add(batch)
    gate.wait_for(1)
    dispatcher.abandon()
    assert batches.places.seize(batch.id) is None
    gate.opened.set()
    deadline = time.monotonic() + DEADLINE_SECONDS
    while (found := batches.places.seize(batch.id)) is None:
        dispatcher.reap()
        assert time.monotonic() < deadline
    assert [Outcome.from_entry(entry, NOW).kind for entry in found.read().values()] == [Kind.ACCEPTED]
    found.close()


def test_a_full_journal_sends_nothing(batches: BatchClaims) -> None:
    """When the journal takes no more, the message does not leave."""
    batch = batches.batch(Road(), people(3))
    batch.journal.close()
    dispatcher = batches.dispatcher(1)
    dispatcher.add(batch)
    with pytest.raises(Exception, match="takes no more"):
        finished(dispatcher)
    dispatcher.abandon()
    assert batch.transport.given == []


def test_long_reasons(batches: BatchClaims) -> None:
    """However much a provider says, and in whatever script, its answer fits into the journal."""
    words = [char * 5000 for char in ("x", "आ", "\N{GRINNING FACE}", '"', "\\")]
    errors = iter(words * 10)
    batch = batches.sent(
        batches.batch(Road(answer=lambda _: (_ for _ in ()).throw(RecipientRefused(next(errors)))), people(50)), 1
    )
    assert len(batches.left(batch)) == 50
    assert all(len(entry[2]) <= 300 for entry in batches.left(batch).values())
