"""Sends claimed batches over a fixed number of connections, several campaigns side by side.

A batch is given tokens by its sender's pace; each token lets one recipient through to the lanes, as many
threads as there are connections. A lane writes the journal, hands the message to the provider, writes the
journal again. Nothing here touches the database: the job's main thread claims before and settles after.
"""

import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from datetime import datetime

from worker.campaigns.batch import KINDS, Batch, Kind, Outcome, Recipient
from worker.errors import AccountRejected, CampaignRejected, RetryLater, SendError

LONG_WAIT_SECONDS = 5.0  # for a token; rather than hold a claim that long, the batch is put back
# What a message takes of the interpreter. Threads that do not wait for their provider longer than
# that only fight over the interpreter's lock: with a server on this machine, 8 take a tenth more CPU time than the 3
# that suffice.
INTERPRETER_SECONDS = 0.0001
POLL_SECONDS = 0.2  # how soon a signal or a lost lock is noticed while messages are in flight


class Dispatcher:
    """The lanes of one job process."""

    def __init__(self, concurrency: int, clock: Callable[[], datetime]) -> None:
        self._executor = ThreadPoolExecutor(concurrency, thread_name_prefix="lane")
        self._concurrency = concurrency
        self._useful: dict[type, int] = {}  # how many lanes a batch opens, for each kind of provider
        self._clock = clock
        self.open: list[Batch] = []
        self._abandoned: list[Batch] = []
        self._drained_early = False

    def add(self, batch: Batch) -> None:
        self.open.append(batch)
        self._let_through(batch)

    def number_open(self, campaign_id: str) -> int:
        """How many batches of a campaign are on their way."""
        return sum(batch.campaign["id"] == campaign_id for batch in self.open)

    def halt(self, campaign_id: str | None = None) -> None:
        """Lets nobody else through, of one campaign or of all; who is not in a lane is put back."""
        for batch in self.open:
            if campaign_id in (None, batch.campaign["id"]):
                batch.halt()

    def finished(self) -> list[Batch]:
        """Waits a moment and returns the batches in which every recipient has an outcome or was put back.

        Raises what a lane died of; the caller then closes the journals, and the batches are recovered from them.
        """
        flying = [lane for batch in self.open for lane in batch.lanes]
        if flying:
            pause = self._pause()
            if not wait(flying, timeout=pause, return_when=FIRST_COMPLETED).done and pause == POLL_SECONDS:
                self._useful.clear()  # a slow provider, or messages that hang: each lane is worth having
        elif self.open and not any(batch.done for batch in self.open):
            time.sleep(self._pause())
        for batch in self.open:
            for lane in [lane for lane in batch.lanes if lane.done()]:
                batch.lanes.discard(lane)
                self._fit(batch, lane.result())
            self._let_through(batch)
        return [batch for batch in self.open if batch.done]

    def forget(self, batch: Batch) -> None:
        """It is settled. Until then it stays open: if a settlement fails, all of them are abandoned."""
        self.open.remove(batch)

    def drain(self, grace_seconds: float) -> list[Batch]:
        """All batches, after at most so long; messages still on the wire then count as unconfirmed."""
        self.halt()
        wait([lane for batch in self.open for lane in batch.lanes], timeout=grace_seconds)
        self._drained_early = any(not lane.done() for batch in self.open for lane in batch.lanes)
        for batch in self.open:
            batch.take_back()
            for recipient in batch.in_lanes():
                reason = "the worker was stopped before the provider answered"
                # a lane that has its answer just now wins
                batch.outcomes.setdefault(recipient.id, Outcome(Kind.UNCONFIRMED, self._clock(), reason))
        return list(self.open)

    def abandon(self) -> None:
        """After an error: nobody else is let through, and what was sent is settled from the journals later."""
        self.halt()
        self._abandoned += self.open
        self.open = []
        self.reap()

    def reap(self) -> None:
        """Frees the journals of abandoned batches whose last message has its answer."""
        for batch in self._abandoned:
            if all(lane.done() for lane in batch.lanes):
                batch.journal.close()
        self._abandoned = [batch for batch in self._abandoned if not all(lane.done() for lane in batch.lanes)]

    def close(self) -> bool:
        """Ends the lanes; False when some of them still wait for a provider."""
        self.reap()
        ended = not self._abandoned and not self._drained_early
        self._executor.shutdown(wait=ended, cancel_futures=True)
        return ended

    def _pause(self) -> float:
        waiting = [batch.token_at for batch in self.open if batch.waiting and not batch.halted]
        until_token = min(waiting, default=float("inf"))
        return min(POLL_SECONDS, max(0.0, until_token - time.monotonic()))

    def _let_through(self, batch: Batch) -> None:
        """Moves recipients from waiting to ready, as many as the sender's pace allows, and opens lanes for them."""
        if batch.halted:
            return
        if batch.waiting and time.monotonic() >= batch.token_at:
            for _ in range(self._granted(batch)):
                batch.ready.append(batch.waiting.popleft())
        useful = self._useful.get(type(batch.transport.provider), self._concurrency)
        # a lane that has just found nobody still counts: whoever became ready since gets one at the next look
        for _ in range(min(useful - len(batch.lanes), self._share() - len(batch.lanes), len(batch.ready))):
            batch.lanes.add(self._executor.submit(self._lane, batch))

    def _share(self) -> int:
        """How many lanes a batch may have beside the others."""
        return max(1, self._concurrency // max(1, len(self.open)))

    def _granted(self, batch: Batch) -> int:
        """How many may be let through now; a sender that has to be silent for long holds the campaign."""
        pace = batch.transport.pace
        if pace is None:
            return len(batch.waiting)
        granted, wait_seconds = pace.take(len(batch.waiting))
        batch.token_at = time.monotonic() + wait_seconds
        if not granted and wait_seconds > LONG_WAIT_SECONDS:
            batch.held, batch.hold_seconds = True, wait_seconds
            batch.halt()
        return granted

    def _fit(self, batch: Batch, seconds: float | None) -> None:
        """One lane more or fewer next time, by the seconds that a message took this one.

        With n lanes a message is through every seconds / n; one more lane is worth it while that is longer
        than n times what a message takes of the interpreter.
        """
        if seconds is None:
            return
        kind = type(batch.transport.provider)
        lanes = self._useful.get(kind, self._concurrency)
        if seconds > lanes * lanes * INTERPRETER_SECONDS:
            lanes = min(lanes + 1, self._concurrency)
        elif seconds < (lanes - 1) * (lanes - 1) * INTERPRETER_SECONDS:
            lanes -= 1
        self._useful[kind] = lanes

    def _lane(self, batch: Batch) -> float | None:
        """Sends what is ready; returns the seconds a message took, None when there was none."""
        began, count = time.monotonic(), 0
        while not batch.halted:
            try:
                recipient = batch.ready.popleft()
            except IndexError:
                break
            batch.record(recipient, self._deliver(batch, recipient))
            count += 1
            if len(batch.lanes) > self._share():
                break  # others came meanwhile
        return (time.monotonic() - began) / count if count else None

    def _deliver(self, batch: Batch, recipient: Recipient) -> Outcome:
        """Sends one message. Whatever happens to this process in here, the journal tells how far it came."""
        if recipient.opted_out:
            return Outcome(Kind.REFUSED, self._clock(), reason=f"opted out: {recipient.opted_out}")
        try:
            message = batch.transport.content.message(recipient, self._clock())
        except SendError as error:
            return self._failed(batch, error)
        except ValueError as error:
            return Outcome(Kind.REFUSED, self._clock(), reason=str(error))
        if time.clock_gettime(time.CLOCK_BOOTTIME) > batch.lease_until:
            batch.halt()  # frozen too long: the batch may be somebody else's by now
            return Outcome(Kind.NOT_SENT, self._clock())
        batch.journal.started(recipient.id)
        try:
            accepted = batch.transport.send(message)
            outcome = Outcome(Kind.ACCEPTED, self._clock(), accepted=accepted)
        except SendError as error:
            outcome = self._failed(batch, error)
        batch.journal.ended(recipient.id, outcome.as_entry())
        return outcome

    def _failed(self, batch: Batch, error: SendError) -> Outcome:
        kind = next(kind for error_class, kind in KINDS if isinstance(error, error_class))
        if isinstance(error, CampaignRejected | AccountRejected):
            batch.rejected = error
            for each in list(self.open):  # its other half, too
                if each.campaign["id"] == batch.campaign["id"]:
                    each.halt()
        delay_seconds = error.delay_seconds if isinstance(error, RetryLater) else None
        return Outcome(kind, self._clock(), str(error), delay_seconds)
