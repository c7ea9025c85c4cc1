"""How far a batch has come, in PostgreSQL: what a successor on another machine needs, where its journal is not.

Of a batch only the first recipients may be written to. When most of these have an outcome, one statement writes those
outcomes down and lets the next ones be written to; none of their messages leaves before it is committed. So whoever
takes the batch over knows what became of all recipients but for the ``allowance``, a few, whatever the batch's size.

The statement goes through a connection of its own: the job's may be busy for long with another batch's settlement.
"""

import math
import threading

from worker.campaigns.batch import Batch
from worker.campaigns.journal_entries import ended_line
from worker.runtime.db import Database, queries
from worker.sending.outcomes import Outcome


class ProgressRecord:
    """The progress of all batches of one process. Any thread may advance a batch."""

    def __init__(self, db: Database) -> None:
        """``db``: for this object alone."""
        self._db = db
        self._using = threading.Lock()
        self._sql = queries("campaign")

    def advance(self, batch: Batch, may_leave: int, outcomes: dict[str, Outcome]) -> bool:
        """Writes down what is known by now, and that so many recipients may be written to.

        False: another process has the batch by now, and nothing may leave.
        """
        lines = b"".join(ended_line(recipient_id, outcome) for recipient_id, outcome in outcomes.items())
        with self._using:
            rows = self._db.execute_prepared(
                "advance", self._sql["advance"], batch_id=batch.id, holder=batch.holder, may_leave=may_leave,
                outcomes=lines.decode(),
            )  # fmt: skip
        return bool(rows)

    def close(self) -> None:
        """Closes the connection until it is needed again. While a thread waits for PostgreSQL it stays open."""
        if self._using.acquire(blocking=False):
            try:
                self._db.close()
            finally:
                self._using.release()


class BatchProgress:
    """How far the messages of one batch may leave. Any thread may call it."""

    def __init__(self, batch: Batch, record: ProgressRecord | None) -> None:
        """``record`` None: for a batch without an allowance, all of which may leave."""
        self._batch = batch
        self._record = record
        self._size = len(batch.recipients)
        self._advancing = threading.Lock()  # guards the next two
        self._recorded: set[str] = set()
        self._allowance = self._size if batch.allowance is None else batch.allowance
        self._may_leave = min(self._allowance, self._size)
        self._places: dict[str, int] = {}  # none is needed where all may leave
        if self._may_leave < self._size:
            self._places = {each.id: place for place, each in enumerate(batch.recipients)}

    @property
    def allowance(self) -> int:
        """How many recipients may have been written to without an outcome that PostgreSQL knows."""
        return self._allowance

    def room(self, recipient_id: str) -> float:
        """How many recipients may be written to from this one on; none, or less: it may not be written to yet."""
        return self._may_leave - self._places[recipient_id] if self._places else math.inf

    def advance_early(self) -> None:
        """To be called while there is little room: so no thread has to wait for more."""
        known = self._batch.number_of_outcomes - len(self._recorded)
        is_worth_it = self._may_leave < self._size and known >= max(1, self._allowance // 2)
        if is_worth_it and self._advancing.acquire(blocking=False):
            try:
                self._advance()
            finally:
                self._advancing.release()

    def advance(self, recipient_id: str) -> bool:
        """Waits until this recipient may be written to; False when it may not, for now or for good."""
        with self._advancing:
            if self.room(recipient_id) <= 0:
                self._advance()
        return self.room(recipient_id) > 0

    def _advance(self) -> None:
        outcomes = self._batch.outcomes
        may_leave = self._next_limit(outcomes)
        if self._record is None or may_leave <= self._may_leave:
            return
        new = {each: outcome for each, outcome in outcomes.items() if each not in self._recorded}
        if self._record.advance(self._batch, may_leave, new):
            self._recorded |= new.keys()
            self._may_leave = may_leave
        else:
            self._batch.lose_lease()

    def _next_limit(self, outcomes: dict[str, Outcome]) -> int:
        """The place up to which there are as many recipients without an outcome as the allowance says."""
        without_outcome = 0
        for place, recipient in enumerate(self._batch.recipients):
            if recipient.id not in outcomes:
                if without_outcome == self._allowance:
                    return place
                without_outcome += 1
        return self._size
