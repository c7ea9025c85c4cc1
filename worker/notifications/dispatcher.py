"""Notices on the wire: the lanes they are sent through, and whose turn it is.

A sender is a tenant on one channel. All that have something to send share the lanes evenly, and one that its pace
holds up gets none: whoever hangs or is paced holds up nobody else.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from datetime import datetime

import redis

from worker.errors import RecipientDeferred, RetryLater, SendError, TransportMissing
from worker.messages import Email
from worker.notifications.notification import Delivery, Notification, OutgoingMessage, failed
from worker.providers.google_token import InvalidGrant
from worker.sending.outcomes import Outcome
from worker.sending.outcomes import OutcomeKind as Kind

LANES = 8  # messages on the wire at once, so at most so many unconfirmed for each kill
SEND_LIMIT_SECONDS = 60.0  # from the mark to the wire; after it somebody else may have taken over
POLL_SECONDS = 0.1  # how soon a signal is noticed

Sender = tuple[str | None, str]  # tenant id and channel
LetterOf = Callable[[Notification], OutgoingMessage]


class Queue:
    """Notices in line, a line for each sender."""

    def __init__(self, notices: Iterable[Notification]) -> None:
        self._lines: dict[Sender, deque[Notification]] = {}  # the sender that waits longest first
        for notice in notices:
            self._lines.setdefault(sender_of(notice), deque()).append(notice)

    def __bool__(self) -> bool:
        return bool(self._lines)

    def heads(self, busy: Counter[Sender]) -> Iterator[Notification]:
        """The next notice of each sender, then a second one, and so on: who has fewer on the wire comes first."""
        for share in range(1, LANES + 1):
            for sender in [each for each in self._lines if busy[each] < share]:
                yield self._lines[sender][0]

    def take(self, head: Notification) -> None:
        """Takes a head out; its sender goes behind the others."""
        line = self._lines.pop(sender_of(head))
        line.popleft()
        if line:
            self._lines[sender_of(head)] = line

    def take_all(self) -> list[Notification]:
        lines, self._lines = self._lines, {}
        return [notice for line in lines.values() for notice in line]


class NotificationThreads:
    """As many threads as messages may be on the wire at once."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._threads = ThreadPoolExecutor(LANES, thread_name_prefix="lane")
        self._in_flight: dict[Future[Delivery], Notification] = {}
        self._token_at: dict[Sender, float] = {}  # time.monotonic() before which asking for a token is in vain

    def __bool__(self) -> bool:
        """Whether any message is on the wire."""
        return bool(self._in_flight)

    @property
    def ids(self) -> set[str]:
        """The notices on the wire."""
        return {notice.id for notice in self._in_flight.values()}

    def choose(
        self, queue: Queue, letter_of: LetterOf
    ) -> tuple[list[tuple[Notification, OutgoingMessage]], list[Delivery]]:
        """Takes from the queue who may be sent now, and what became of those of which no message can be made.

        Raises redis.RedisError when a pace cannot be asked.
        """
        ready: list[tuple[Notification, OutgoingMessage]] = []
        done: list[Delivery] = []
        busy = Counter(sender_of(notice) for notice in self._in_flight.values())
        for notice in queue.heads(busy):
            if len(self._in_flight) + len(ready) >= LANES:
                break
            if self._token_at.get(sender_of(notice), 0.0) > time.monotonic():
                continue
            found = self._letter(notice, letter_of)
            if isinstance(found, OutgoingMessage) and not self._granted(notice, found):
                if sender_of(notice) in self._token_at:
                    continue
                found = Delivery(notice, Outcome(Kind.DEFERRED, self._clock(), "its sender's pace"), found)
            queue.take(notice)
            if isinstance(found, Delivery):
                done.append(found)
            else:
                ready.append((notice, found))
                busy[sender_of(notice)] += 1
        return ready, done

    def send(self, notice: Notification, letter: OutgoingMessage) -> None:
        """Gives a lane the message, which is marked as handed over by now; an earlier one's fate is asked for."""
        if notice.handed_over:
            lane = self._threads.submit(self._ask, notice, letter)
        else:
            send_until = time.clock_gettime(time.CLOCK_BOOTTIME) + SEND_LIMIT_SECONDS
            lane = self._threads.submit(self._send, notice, letter, send_until)
        self._in_flight[lane] = notice

    def landed(self) -> tuple[list[Delivery], BaseException | None]:
        """What came back within a moment, and what a lane died of, a bug."""
        if not self._in_flight:
            until_token = min(self._token_at.values(), default=0.0) - time.monotonic()
            time.sleep(min(max(until_token, 0.0), POLL_SECONDS))
            return [], None
        ended = wait(self._in_flight, POLL_SECONDS).done
        for lane in ended:
            del self._in_flight[lane]
        deaths = [death for lane in ended if (death := lane.exception())]
        return [lane.result() for lane in ended if not lane.exception()], next(iter(deaths), None)

    def close(self) -> bool:
        """False: threads still wait for a provider."""
        all_ended = all(lane.done() for lane in self._in_flight)
        self._threads.shutdown(wait=all_ended, cancel_futures=True)
        return all_ended

    def _letter(self, notice: Notification, letter_of: LetterOf) -> OutgoingMessage | Delivery:
        try:
            return letter_of(notice)
        except ValueError as error:
            outcome = Outcome(Kind.REFUSED, self._clock(), reason=str(error))
        except (TransportMissing, SendError) as error:
            outcome = failed(error, self._clock())
        return Delivery(notice, outcome, None, notice.handed_over)

    def _granted(self, notice: Notification, letter: OutgoingMessage) -> bool:
        """Whether its pace lets the message through; when not within reason, its sender has no time to wait for."""
        self._token_at.pop(sender_of(notice), None)
        if letter.pace is None or notice.handed_over:
            return True
        granted, wait_seconds = letter.pace.take(1)
        if not granted and wait_seconds <= SEND_LIMIT_SECONDS:
            self._token_at[sender_of(notice)] = time.monotonic() + wait_seconds
        return bool(granted)

    def _send(self, notice: Notification, letter: OutgoingMessage, send_until: float) -> Delivery:
        if time.clock_gettime(time.CLOCK_BOOTTIME) > send_until:
            outcome = Outcome(Kind.DEFERRED, self._clock(), "the worker was frozen")  # it may be another's by now
            return Delivery(notice, outcome, letter)
        try:
            accepted = letter.provider.send(letter.message)
        except SendError as error:
            _keep_silence(letter, error)
            outcome = failed(error, self._clock())
            unknown = outcome.kind is Kind.UNCONFIRMED
            return Delivery(notice, outcome, letter, unknown, isinstance(error, InvalidGrant))
        return Delivery(notice, Outcome(Kind.ACCEPTED, self._clock(), accepted=accepted), letter)

    def _ask(self, notice: Notification, letter: OutgoingMessage) -> Delivery:
        """What became of a message that was handed over and never answered."""
        if letter.gmail is None or not isinstance(letter.message, Email):
            outcome = Outcome(Kind.UNCONFIRMED, self._clock(), "no answer came, and nobody can be asked")
            return Delivery(notice, outcome, letter, may_have_arrived=True)
        try:
            accepted = letter.gmail.provider.find(letter.message.message_id)
        except RetryLater as error:
            return Delivery(notice, failed(error, self._clock()), letter, may_have_arrived=True)
        except SendError as error:  # a grant that was withdrawn, or that only lets us send, will never tell
            outcome = Outcome(Kind.UNCONFIRMED, self._clock(), str(error))
            return Delivery(notice, outcome, letter, True, isinstance(error, InvalidGrant))
        if accepted is None:
            return Delivery(notice, Outcome(Kind.NOT_SENT, self._clock(), "Gmail does not know it"), letter)
        return Delivery(notice, Outcome(Kind.ACCEPTED, self._clock(), accepted=accepted), letter)


def sender_of(notice: Notification) -> Sender:
    return notice.tenant_id, notice.channel


def _keep_silence(letter: OutgoingMessage, error: SendError) -> None:
    """Where the provider named a delay for its whole account, nobody sends through it for so long."""
    if (
        letter.pace
        and isinstance(error, RetryLater)
        and not isinstance(error, RecipientDeferred)
        and error.delay_seconds
    ):
        with suppress(redis.RedisError):  # then the provider refuses once more
            letter.pace.hold(error.delay_seconds)
