"""The recipients of one batch, and their messages, on their way to the threads."""

import threading
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from worker.campaigns.batch import BackoffCause, Batch, Recipient
from worker.campaigns.progress import BatchProgress, ProgressRecord
from worker.errors import SendError
from worker.messages import Email
from worker.runtime.clock import boot_seconds
from worker.sending.outcomes import FailureKind, Outcome, OutcomeKind, suppressed
from worker.sending.suppression import LOOK_VALID_SECONDS

ROW_BYTES = 262_144  # of messages that are made in a row: no more are made once they have so many
NO_MEMORY_SECONDS = 300.0  # how long a campaign waits whose messages need more memory than there is


class NextMessage(NamedTuple):
    """The message to one recipient; if none can be made, its ``outcome``."""

    recipient: Recipient
    made: Any = None
    outcome: Outcome | None = None


class BatchQueue:
    """A recipient first waits for a token of the account's pace, then is ready for a thread.

    Threads call ``next_message``, ``take``, ``is_looked_up``, ``obstacle``, ``begin`` and ``may_leave``; all else is
    for the one thread that owns the dispatcher.
    """

    def __init__(self, batch: Batch, clock: Callable[[], datetime], record: ProgressRecord | None = None) -> None:
        self.batch = batch
        self.progress = BatchProgress(batch, record)
        self._clock = clock
        self.threads = 0  # how many work on this batch
        self.token_at = 0.0  # time.monotonic() before which the pace has no token
        self.looked_at = boot_seconds()  # when the suppression list was last looked at: first by the claim
        self._made: deque[NextMessage] = deque()
        self._changing = threading.Lock()  # guards the next four
        self._begun: set[str] = set()  # recipients whose message may have left
        self._opted_out = {each.id: each.opted_out for each in batch.recipients if each.opted_out is not None}
        self._waiting: deque[Recipient] = deque()
        self._ready: deque[Recipient] = deque()
        for each in batch.recipients:
            (self._waiting if self.obstacle(each) is None else self._ready).append(each)  # those need no token

    @property
    def waiting(self) -> int:
        """How many wait for a token."""
        return len(self._waiting)

    @property
    def ready(self) -> int:
        """How many wait for a thread."""
        return len(self._ready) + len(self._made)

    @property
    def done(self) -> bool:
        """Whether no thread works on the batch, and none will."""
        return not self.threads and not (self.batch.sending and (self.waiting or self.ready))

    @property
    def is_looked_up(self) -> bool:
        """Whether the latest look is recent. Else no message leaves until the owner looks again."""
        return boot_seconds() - self.looked_at <= LOOK_VALID_SECONDS

    def let_through(self, number: int) -> None:
        """So many tokens were granted."""
        with self._changing:
            for _ in range(number):
                self._ready.append(self._waiting.popleft())

    def next_message(self, *, ahead: bool = False, in_a_row: int = 1) -> NextMessage | None:
        """The message to the next recipient; None when there is none now, or the batch has stopped.

        ``ahead``: see ``take``. ``in_a_row``: so many messages are made at once, for all threads, when none is there.
        """
        if not (self.batch.sending and self.is_looked_up):
            return None
        try:
            return self._made.popleft()
        except IndexError:
            message = more = self._make(ahead=ahead)
        size = 0
        for _ in range(in_a_row - 1):
            size += len(more.made.content) if more and isinstance(more.made, Email) else 0
            more = self._make(ahead=True) if more and size < ROW_BYTES else None
            if more is None:
                break
            self._made.append(more)
        return message

    def _make(self, *, ahead: bool) -> NextMessage | None:
        recipient = self.take(ahead=ahead)
        if recipient is None:
            return None
        batch, outcome = self.batch, self.obstacle(recipient)
        try:
            if outcome is None:
                return NextMessage(recipient, batch.transport.message(recipient, self._clock()))
        except SendError as error:
            outcome = batch.failed(error, self._clock())
        except MemoryError:
            batch.back_off(NO_MEMORY_SECONDS, "one of its messages could not be made", BackoffCause.NO_MEMORY)
            outcome = Outcome(OutcomeKind.NOT_SENT, self._clock())
        except ValueError as error:
            outcome = Outcome(OutcomeKind.REFUSED, self._clock(), str(error), fault=FailureKind.CONTENT)
        return NextMessage(recipient, outcome=outcome)

    def take(self, *, ahead: bool = False) -> Recipient | None:
        """The next recipient to write to; None when there is none now, or the batch has stopped.

        ``ahead``: while the calling thread has another one; only where that leaves enough for all threads.
        """
        needed, progress = self.threads if ahead else 0, self.progress
        while True:
            with self._changing:
                if not (self._ready and self.batch.sending and self.is_looked_up):
                    return None
                recipient = self._ready[0]
                room = progress.room(recipient.id)
                if room > needed or self.obstacle(recipient) is not None:
                    self._ready.popleft()
                    break
            if ahead or not progress.advance(recipient.id):
                return None
        if 3 * room <= progress.allowance:
            progress.advance_early()
        return recipient

    def begin(self, recipient: Recipient) -> bool:
        """To be called before a message leaves: whether it may."""
        with self._changing:
            # who could not be written to when it was taken may be written to by now, and too far ahead
            may_begin = self.batch.sending and self.progress.room(recipient.id) > 0
            if may_begin:
                self._begun.add(recipient.id)
            return may_begin

    def opt_out(self, reasons: Mapping[str, str]) -> None:
        """These recipients (by id) may not be written to, if their messages have not left. Why: for each."""
        with self._changing:
            self._opted_out |= reasons

    def obstacle(self, recipient: Recipient) -> Outcome | None:
        """Why this recipient may not be written to, or not now; to be asked until its message leaves."""
        if reason := self._opted_out.get(recipient.id):
            return suppressed(reason, self._clock())
        hours = self.batch.hours
        return hours.obstacle(recipient.id) if hours else None

    def may_leave(self, recipient: Recipient) -> bool:
        """To be asked at the moment at which the message leaves."""
        return self.is_looked_up and self.obstacle(recipient) is None

    def unanswered(self) -> list[Recipient]:
        """Of a batch that has stopped: the recipients whose message has begun and has no outcome yet."""
        with self._changing:
            missing = self._begun - self.batch.outcomes.keys()
        return [recipient for recipient in self.batch.recipients if recipient.id in missing]
