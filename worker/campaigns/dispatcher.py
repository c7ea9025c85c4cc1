"""Sends claimed batches through a fixed number of threads, several campaigns side by side.

A batch is given tokens by the pace of its account; each token lets one recipient through to the threads, each of
which has a connection of its own. A thread writes the journal, hands the message to the provider, and writes the
journal again. Of the database only the progress is written here; the job's main thread claims before, settles after.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from datetime import datetime
from functools import partial
from typing import Any

from worker.campaigns.batch import BackoffCause, Batch
from worker.campaigns.batch_queue import BatchQueue, NextMessage
from worker.campaigns.progress import ProgressRecord
from worker.errors import SendError, TooLate
from worker.providers.handover import handed_over_while
from worker.runtime.clock import boot_seconds
from worker.sending.outcomes import Outcome, OutcomeKind
from worker.sending.requests import ProviderAccount, RequestThreads

LONG_WAIT_SECONDS = 5.0  # for a token; a batch that would have to wait longer is released
# How long a message keeps the interpreter busy. Threads that wait for their provider no longer than that only compete
# for the interpreter's lock: with a server on this machine two suffice, and a third takes 7 % more CPU time.
INTERPRETER_SECONDS = 0.00015
# Messages that are made one after the other, and not each between two exchanges, save a tenth of all CPU time: the
# processor still has the code at hand. For a slow server that does not matter, and messages are made as they leave.
MADE_IN_A_ROW = 16
POLL_SECONDS = 0.2  # how soon a signal or a lost lock is noticed while messages are on the wire


def account_of(queue: BatchQueue) -> ProviderAccount:
    """The account that a batch leaves through: as its provider sees it, and each tenant for itself."""
    transport, campaign = queue.batch.transport, queue.batch.campaign
    return ProviderAccount(type(transport.provider).__name__, f"{campaign.tenant_id} {transport.account_key}")


class Dispatcher:
    """The batches that one process sends. ``threads`` are shared by all of them.

    ``record``: where the progress of batches is written that have an allowance.
    """

    def __init__(
        self,
        threads: RequestThreads[BatchQueue, float | None],
        clock: Callable[[], datetime],
        record: ProgressRecord | None = None,
    ) -> None:
        self._threads = threads
        self._clock = clock
        self._record = record
        self._useful: dict[type, int] = {}  # how many threads a batch gets, for each kind of provider
        self._queues: list[BatchQueue] = []
        self._abandoned: list[BatchQueue] = []

    @property
    def stuck(self) -> int:
        """How many messages have had no answer for long, when nothing else is being sent; else 0."""
        return self._threads.stuck if self._threads.only_stuck else 0

    @property
    def open(self) -> list[Batch]:
        """The batches that are not settled."""
        return [queue.batch for queue in self._queues]

    def add(self, batch: Batch) -> None:
        queue = BatchQueue(batch, self._clock, self._record)
        self._queues.append(queue)
        self._let_through(queue)

    def number_open(self, campaign_id: str) -> int:
        """How many batches of a campaign are not settled."""
        return sum(batch.campaign.id == campaign_id for batch in self.open)

    def opt_out(self, batch: Batch, reasons: Mapping[str, str]) -> None:
        """These recipients of an open batch, by id, are not written to, unless their message has left; and why."""
        for queue in self._queues:
            if queue.batch is batch:
                queue.opt_out(reasons)

    def looked(self, at: float) -> None:
        """Every recipient that was suppressed before ``at`` (``boot_seconds``) has been opted out."""
        for queue in self._queues:
            queue.looked_at = max(queue.looked_at, at)

    def stop(self, campaign_id: str | None = None) -> None:
        """Stops the batches of one campaign, or of all: messages that are on the wire finish, no other leaves."""
        for batch in self.open:
            if campaign_id in (None, batch.campaign.id):
                batch.stop()

    def finished(self) -> list[Batch]:
        """Waits a moment and returns the batches that no thread works on any more.

        Raises the error of a thread that ended with one; the caller then abandons all batches, which are recovered
        from their journals.
        """
        pause = self._pause()
        if any(queue.threads for queue in self._queues):
            if not self._threads.wait(pause) and pause == POLL_SECONDS:
                self._useful.clear()  # a slow provider, or messages that hang: every thread is worth having
        elif self._queues and not any(queue.done for queue in self._queues):
            time.sleep(pause)
        for queue, request in self._collect():
            if queue in self._queues:
                self._adjust_threads(queue, request.result())
        for queue in self._queues:
            self._let_through(queue)
        return [queue.batch for queue in self._queues if queue.done]

    def forget(self, batch: Batch) -> None:
        """It is settled. Until then it stays open: if a settlement fails, all batches are abandoned."""
        self._queues = [queue for queue in self._queues if queue.batch is not batch]

    def drain(self, grace_seconds: float) -> list[Batch]:
        """All batches, after at most so long; messages that are still on the wire then count as unconfirmed."""
        self.stop()
        self._threads.wait(grace_seconds, for_all=True, owners=self._queues)
        self._collect()
        for queue in self._queues:
            for recipient in queue.unanswered():
                reason = "the worker was stopped before the provider answered"
                unconfirmed = Outcome(OutcomeKind.UNCONFIRMED, self._clock(), reason)
                queue.batch.set_missing_outcome(recipient.id, unconfirmed)
        return self.open

    def abandon(self) -> None:
        """After an error: no further message leaves, and what was sent is settled from the journals later."""
        self.stop()
        self._abandoned += self._queues
        self._queues = []
        self.reap()

    def reap(self) -> None:
        """Frees the journals of abandoned batches whose last message has its answer."""
        self._collect()
        for queue in self._abandoned:
            if not queue.threads:
                queue.batch.journal.close()
        self._abandoned = [queue for queue in self._abandoned if queue.threads]

    def close(self) -> bool:
        """Ends the threads; False when some of them still wait for a provider."""
        self.reap()
        return self._threads.close()

    def _collect(self) -> list[tuple[BatchQueue, Future[float | None]]]:
        ended = self._threads.collect()
        for queue, _ in ended:
            queue.threads -= 1
        return ended

    def _pause(self) -> float:
        waiting = [queue.token_at for queue in self._queues if queue.waiting and queue.batch.sending]
        until_token = min(waiting, default=float("inf"))
        return min(POLL_SECONDS, max(0.0, until_token - time.monotonic()))

    def _let_through(self, queue: BatchQueue) -> None:
        """Lets through as many recipients as the account's pace allows, and gives them threads."""
        if not queue.batch.sending:
            return
        if queue.waiting and time.monotonic() >= queue.token_at:
            queue.let_through(self._granted(queue))
        useful = self._useful_threads(queue)
        # a thread that has just found nothing ready still counts: what became ready since gets one at the next look
        queue.batch.transport.want_connections(min(useful, queue.threads + queue.ready))
        wanted = min(useful, self._share(queue), queue.progress.allowance)
        for _ in range(min(wanted - queue.threads, queue.ready)):
            queue.threads += 1
            self._threads.submit(queue, partial(self._send_ready, queue))

    def _useful_threads(self, queue: BatchQueue) -> int:
        return self._useful.get(type(queue.batch.transport.provider), self._threads.size)

    def _share(self, queue: BatchQueue) -> int:
        """How many threads a batch may have beside the others, and connections for."""
        share = max(1, self._threads.size // max(1, len(self._queues)))
        connections = queue.batch.transport.most_connections
        if connections is None:
            return share
        sending = sum(bool(each.threads or each.ready) for each in self._queues)
        return max(1, min(share, -(-connections // max(1, sending))))

    def _granted(self, queue: BatchQueue) -> int:
        """How many recipients may be let through now. A batch whose account has no token for long backs off."""
        pace = queue.batch.transport.pace
        if pace is None:
            return queue.waiting
        granted, wait_seconds = pace.take(queue.waiting)
        queue.token_at = time.monotonic() + wait_seconds
        if not granted and wait_seconds > LONG_WAIT_SECONDS:
            reason = f"the pace of the account lets nothing through for {wait_seconds:.0f} s"
            queue.batch.back_off(wait_seconds, reason, BackoffCause.PACE)
        return granted

    def _adjust_threads(self, queue: BatchQueue, seconds: float | None) -> None:
        """One thread more or fewer next time, by the seconds that a message took this time.

        With n threads a message ends every seconds / n. One more thread is worth it while that is longer than n
        messages keep the interpreter busy.
        """
        if seconds is None:
            return
        useful = self._useful_threads(queue)
        if seconds > useful * useful * INTERPRETER_SECONDS:
            useful = min(useful + 1, self._threads.size)
        elif seconds < (useful - 1) * (useful - 1) * INTERPRETER_SECONDS:
            useful -= 1
        self._useful[type(queue.batch.transport.provider)] = useful

    def _send_ready(self, queue: BatchQueue) -> float | None:
        """In a thread: sends what is ready; returns the seconds that a message took, None when there was none."""
        count, seconds = 0, 0.0
        is_quick = self._useful_threads(queue) < self._threads.size
        next_message = partial(queue.next_message, in_a_row=MADE_IN_A_ROW if is_quick else 1)
        message, following = next_message(), None
        try:
            while message:
                shared = queue.threads > self._share(queue)  # other batches came meanwhile
                # while there is enough for all threads; the last ones are better sent side by side
                announces = not shared and queue.ready >= self._threads.size and queue.batch.transport.announces
                following = next_message(ahead=True) if announces else None
                began = time.monotonic()
                outcome = self._deliver(queue, message, following)
                if outcome is None:
                    break  # the batch has stopped
                if message.outcome is None:
                    count, seconds = count + 1, seconds + time.monotonic() - began
                queue.batch.record(message.recipient, outcome)
                self._threads.progressed()
                message, following = following or (None if shared else next_message()), None
        finally:
            if queue.batch.stopped_by_provider:
                self.stop(queue.batch.campaign.id)  # its other batch, too
            for each in (message, following):
                if each:
                    queue.batch.transport.withdraw(each.made)
        return seconds / count if count else None

    def _deliver(self, queue: BatchQueue, message: NextMessage, following: NextMessage | None) -> Outcome | None:
        """Sends one message; None when it may not leave. If this process dies in here, the journal says how far it
        got."""
        if message.outcome:
            return message.outcome
        batch, recipient = queue.batch, message.recipient
        if obstacle := queue.obstacle(recipient):
            batch.transport.withdraw(message.made)
            return obstacle
        if boot_seconds() > batch.lease_until:
            batch.lose_lease()
        if not queue.begin(recipient):
            return None
        batch.journal.started(recipient.id)
        outcome = self._send(queue, message, following and following.made)
        batch.journal.ended(recipient.id, outcome)
        return outcome

    def _send(self, queue: BatchQueue, message: NextMessage, following: Any) -> Outcome:
        batch, recipient = queue.batch, message.recipient
        try:
            with handed_over_while(lambda: boot_seconds() <= batch.lease_until and queue.may_leave(recipient)):
                accepted = batch.transport.send(message.made, following)
        except TooLate:
            if obstacle := queue.obstacle(recipient):
                return obstacle
            if queue.is_looked_up or boot_seconds() > batch.lease_until:
                batch.lose_lease()
            return Outcome(OutcomeKind.NOT_SENT, self._clock())
        except SendError as error:
            return batch.failed(error, self._clock())
        except MemoryError:
            return Outcome(OutcomeKind.UNCONFIRMED, self._clock(), "there was not enough memory to send it")
        return Outcome(OutcomeKind.ACCEPTED, self._clock(), accepted=accepted)
