"""The states of a batch: when it stops, why, and which reason counts when several come together."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from worker.campaigns.batch import DEFERRALS_BEFORE_BACKOFF, BackoffCause, Batch, BatchState, Recipient
from worker.campaigns.batch_queue import ROW_BYTES, BatchQueue
from worker.campaigns.journal import JournalDirectory
from worker.errors import AccountRejected, CampaignRejected
from worker.messages import Email
from worker.runtime.clock import utc_now
from worker.sending.outcomes import Outcome, OutcomeKind

DEADLINE_SECONDS = 30.0
PEOPLE = [Recipient(f"r-{number}", "Asha", "asha@a.example", None, 0) for number in range(20)]


@pytest.fixture
def batch(tmp_path: Path) -> Any:
    journal = JournalDirectory(tmp_path).create("batch", len(PEOPLE))
    transport: Any = SimpleNamespace(can_be_asked=True)
    made = Batch("batch", "host:1:x", SimpleNamespace(id="c-1"), transport, PEOPLE, journal)  # type: ignore[arg-type]
    yield made
    journal.close()


def defer(batch: Batch, number: int = DEFERRALS_BEFORE_BACKOFF, kind: OutcomeKind = OutcomeKind.DEFERRED) -> None:
    for recipient in PEOPLE[:number]:
        batch.record(recipient, Outcome(kind, utc_now(), "421 busy"))


def test_a_new_batch(batch: Batch) -> None:
    """It sends until something stops it."""
    defer(batch, DEFERRALS_BEFORE_BACKOFF - 1)
    assert (batch.state, batch.sending, batch.reason) == (BatchState.SENDING, True, "")


@pytest.mark.parametrize("stopped", [Batch.stop, Batch.lose_lease])
def test_deferrals_after_a_stop(batch: Batch, stopped: Any) -> None:
    """Messages on the wire that end deferred count as a backoff, also when the batch had stopped before."""
    stopped(batch)
    assert not batch.sending
    defer(batch)
    assert (batch.state, batch.reason) == (BatchState.BACKING_OFF, "421 busy")
    stopped(batch)
    batch.record(PEOPLE[-1], Outcome(OutcomeKind.DEFERRED, utc_now(), "another reason"))
    assert (batch.state, batch.reason) == (BatchState.BACKING_OFF, "421 busy")


@pytest.mark.parametrize("error", [CampaignRejected("132001"), AccountRejected("190")])
def test_a_rejection_counts_most(batch: Batch, error: CampaignRejected | AccountRejected) -> None:
    """The campaign ends with the provider's words, whatever else came before or comes after."""
    defer(batch)
    batch.reject(error)
    defer(batch)
    batch.back_off(60.0, "the account's pace")
    batch.stop()
    assert (batch.state, batch.reason, batch.rejection) == (BatchState.REJECTED, str(error), error)


def test_earlier_messages_say_nothing_of_the_provider_now(batch: Batch) -> None:
    """Outcomes from a journal, or from questions, cause no backoff; an answer that came meanwhile is kept."""
    for recipient in PEOPLE:
        batch.set_outcome(recipient.id, Outcome(OutcomeKind.UNCONFIRMED, utc_now()))
    assert batch.sending
    batch.set_missing_outcome("r-0", Outcome(OutcomeKind.NOT_SENT, utc_now()))
    batch.set_missing_outcome("other", Outcome(OutcomeKind.NOT_SENT, utc_now()))
    assert batch.outcomes["r-0"].kind is OutcomeKind.UNCONFIRMED
    assert batch.outcomes["other"].kind is OutcomeKind.NOT_SENT


def test_outcomes_are_a_copy(batch: Batch) -> None:
    """What is settled does not change while a late thread still writes."""
    before = batch.outcomes
    defer(batch, 1)
    assert before == {}
    assert set(batch.outcomes) == {"r-0"}


def test_questions_that_the_provider_does_not_answer(batch: Batch) -> None:
    """After the first such answer no message of the batch can be asked about."""
    assert batch.can_ask
    batch.stop_asking()
    assert not batch.can_ask


def test_many_threads_take_each_recipient_once(batch: Batch) -> None:
    """A stop in the middle leaves every recipient either with an outcome or not taken."""
    queue = BatchQueue(batch, utc_now)
    queue.let_through(len(PEOPLE))
    taken: list[str] = []
    barrier = threading.Barrier(9)

    def work() -> None:
        barrier.wait(DEADLINE_SECONDS)
        while recipient := queue.take():
            taken.append(recipient.id)
            batch.record(recipient, Outcome(OutcomeKind.ACCEPTED, utc_now()))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    barrier.wait(DEADLINE_SECONDS)
    batch.stop()
    for thread in threads:
        thread.join(DEADLINE_SECONDS)
    assert len(taken) == len(set(taken))
    assert batch.outcomes.keys() == set(taken)
    assert queue.unanswered() == []
    assert queue.ready == len(PEOPLE) - len(taken)
    assert queue.take() is None


def queue_of(batch: Batch, content: bytes = b"hello") -> BatchQueue:
    batch.transport.message = lambda recipient, at: Email("a@shop.example", recipient.email, recipient.id, content)  # type: ignore[method-assign]
    queue = BatchQueue(batch, utc_now)
    queue.let_through(len(PEOPLE))
    return queue


def test_messages_that_are_made_in_a_row(batch: Batch) -> None:
    """Each comes once, in order, and counts as ready until a thread has it."""
    queue = queue_of(batch)
    ids = []
    while message := queue.next_message(in_a_row=8):
        ids.append(message.made.message_id)
        assert queue.ready == len(PEOPLE) - len(ids)
    assert ids == [each.id for each in PEOPLE]


@pytest.mark.parametrize("why", ["stopped", "not looked up"])
def test_messages_that_were_made_do_not_leave(batch: Batch, why: str) -> None:
    """After a stop, or while nobody has looked for a while who has unsubscribed."""
    queue = queue_of(batch)
    assert queue.next_message(in_a_row=8)
    if why == "stopped":
        batch.stop()
    else:
        queue.looked_at = float("-inf")
    assert queue.next_message(in_a_row=8) is None
    assert queue.next_message() is None


def test_large_messages_are_made_as_they_leave(batch: Batch) -> None:
    made = []
    queue = queue_of(batch, bytes(ROW_BYTES))
    original = batch.transport.message
    batch.transport.message = lambda *given: made.append(given) or original(*given)  # type: ignore[method-assign, func-returns-value]
    assert queue.next_message(in_a_row=8)
    assert len(made) == 1


def test_who_is_with_a_thread_at_a_stop(batch: Batch) -> None:
    """Those whose message has begun and has no outcome: not those who wait, are ready, or were taken ahead."""
    queue = BatchQueue(batch, utc_now)
    queue.let_through(5)
    first, second, third = queue.take(), queue.take(), queue.take()
    assert first
    assert second
    assert third
    assert queue.begin(first)
    assert queue.begin(second)
    batch.record(first, Outcome(OutcomeKind.ACCEPTED, utc_now()))
    batch.stop()
    assert queue.take() is None
    assert not queue.begin(third)
    assert queue.unanswered() == [second]
    assert (queue.waiting, queue.ready) == (len(PEOPLE) - 5, 2)


@pytest.mark.parametrize(
    ("kind", "cause"),
    [(OutcomeKind.DEFERRED, BackoffCause.DEFERRED), (OutcomeKind.UNCONFIRMED, BackoffCause.NO_ANSWER)],
)
def test_why_a_campaign_waits(batch: Batch, kind: OutcomeKind, cause: BackoffCause) -> None:
    """A provider that does not answer is not said to defer messages; the cause that was first stays."""
    for recipient in batch.recipients[:DEFERRALS_BEFORE_BACKOFF]:
        batch.record(recipient, Outcome(kind, utc_now(), "reason"))
    assert (batch.state, batch.backoff_cause) == (BatchState.BACKING_OFF, cause)
    batch.back_off(60.0, "the account's pace")
    assert batch.backoff_cause is cause


def test_the_pace_of_an_account(batch: Batch) -> None:
    """A campaign that waits for its account's pace says so."""
    batch.back_off(60.0, "the account's pace")
    assert batch.backoff_cause is BackoffCause.PACE
