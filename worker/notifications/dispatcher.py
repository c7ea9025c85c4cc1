"""Sends claimed notifications through a fixed number of threads, and yields what became of them.

Tenants that have something to send share the threads evenly, and a tenant whose pace is used up gets none: a slow or
paced account delays no other.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from functools import partial

from worker.errors import SendError, TransportMissing
from worker.notifications.claims import NotificationClaims
from worker.notifications.delivery import Delivery, ask, send
from worker.notifications.fair_queue import FairQueue, TenantChannel
from worker.notifications.notification import Notification, OutgoingMessage
from worker.runtime.campaign_settings import DEFAULT_MESSAGE_MAX_BYTES
from worker.runtime.clock import boot_seconds
from worker.runtime.signals import Signals
from worker.sending.limits import too_large, wire_bytes
from worker.sending.outcomes import Outcome, OutcomeKind, failed, suppressed
from worker.sending.quota import Quota, Reservation
from worker.sending.requests import ProviderAccount, RequestThreads
from worker.sending.suppression import LOOK_SECONDS

log = logging.getLogger(__name__)

THREADS = 8  # messages that are sent at the same time, so at most so many are unconfirmed after a kill
SEND_LIMIT_SECONDS = 60.0  # between the mark and the send; after it another process may have claimed the message
USED_UP_SECONDS = 30.0  # for so long no other message asks for a quota that was used up
LOOK_AGAIN_SECONDS = 300.0  # until a message is due again for whose account nothing was left
POLL_SECONDS = 0.1  # how soon a signal is noticed

Prepare = Callable[[Notification], OutgoingMessage]


def _account_of(notification: Notification) -> ProviderAccount:
    return ProviderAccount(notification.channel, notification.tenant_id or "")


class NotificationDispatcher:
    """The threads of one process. All methods are for the thread that has the database connection."""

    def __init__(
        self,
        claims: NotificationClaims,
        signals: Signals,
        grace_seconds: float,
        clock: Callable[[], datetime],
        message_max_bytes: int = DEFAULT_MESSAGE_MAX_BYTES,
    ) -> None:
        self._claims = claims
        self._signals = signals
        self._grace_seconds = grace_seconds
        self._clock = clock
        self._message_max_bytes = message_max_bytes
        self._requests: RequestThreads[Notification, Delivery] = RequestThreads(THREADS, _account_of)
        self._token_at: dict[TenantChannel, float] = {}  # time.monotonic() before which no token is granted
        self._opted_out: dict[str, str] = {}  # messages that are being sent, and why they may not leave any more
        self._look_at = 0.0  # time.monotonic()
        self._token_taken: set[str] = set()  # ids of notifications that have a token, which is not available yet
        self._used_up: dict[str, datetime] = {}  # quota -> until when nothing is left, as far as is known
        self._reserved: dict[str, Reservation] = {}  # by the id of the notification that it was made for
        self._leaving: dict[str, Reservation] = {}  # the same, of those that are being sent
        self._unsettled: list[Delivery] = []
        self._grace_ends: float | None = None

    @property
    def in_hand(self) -> set[str]:
        """The ids of the notifications that are being sent, or have an outcome that is not settled yet."""
        return {each.id for each in self._requests.owners} | {each.notification.id for each in self._unsettled}

    @property
    def stuck(self) -> int:
        """How many messages have had no answer for long, when nothing else is being sent; else 0."""
        return self._requests.stuck if self._requests.only_stuck else 0

    def deliver(
        self, notifications: Sequence[Notification], prepare: Prepare, may_continue: Callable[[], bool]
    ) -> Iterator[list[Delivery]]:
        """Sends the notifications, a few at once, and yields their outcomes, a few at a time, to be settled.

        ``prepare`` raises TransportMissing or SendError, or ValueError for an address that cannot be written to.
        For a notification that was handed over before, the provider is asked instead. Those not reached before
        ``may_continue`` returns False are NOT_SENT; those still being sent after the grace time are not yielded, and
        stay claimed. Outcomes that could not be settled (the database was unavailable) are yielded again, before all
        others, by the next call, which also waits for the messages that were being sent then. While all messages
        that are being sent have had no answer for long, empty lists are yielded.
        Raises redis.RedisError when a pace cannot be read.
        """
        if self._unsettled:
            yield self._unsettled
            self._unsettled = []
        queue = FairQueue(notifications)
        while (queue or len(self._requests)) and not self._grace_is_over():
            done = self._start(queue, prepare) if may_continue() else self._skip(queue)
            self._look_for_opt_outs()
            answered, bug = self._collect()
            self._unsettled = done + answered
            if bug:
                raise bug  # the others' outcomes are yielded by the next call
            if self._unsettled or self.stuck:  # also without outcomes: the job says that it waits
                yield self._unsettled
                self._unsettled = []

    def close(self) -> bool:
        """False: threads still wait for a provider."""
        return self._requests.close()

    def _start(self, queue: FairQueue, prepare: Prepare) -> list[Delivery]:
        """Marks and sends as many as there are threads free; returns the outcomes of those without a message."""
        self._claims.renew()
        ready, done = self._choose(queue, prepare)
        marked = self._claims.hand_over([each.id for each, _ in ready if not each.handed_over])
        reserved, self._reserved = self._reserved, {}
        for notification, outgoing in ready:
            if notification.handed_over:
                self._requests.submit(notification, partial(ask, notification, outgoing, self._clock))
            elif reason := marked.get(notification.id):
                done.append(Delivery(notification, suppressed(reason, self._clock())))
            elif notification.id in marked:  # else another process holds it by now
                send_until = boot_seconds() + SEND_LIMIT_SECONDS
                opted_out = partial(self._opted_out.get, notification.id)
                self._requests.submit(
                    notification, partial(send, notification, outgoing, send_until, opted_out, self._clock)
                )
                if reservation := reserved.pop(notification.id, None):
                    self._leaving[notification.id] = reservation
        for reservation in reserved.values():  # of those that do not leave
            self._claims.quotas.give_back(reservation, 1)
        return done

    def _look_for_opt_outs(self) -> None:
        """Now and then: what was suppressed after its mark does not leave, if it has not yet."""
        ids = [each.id for each in self._requests.owners if not each.handed_over]
        if ids and time.monotonic() >= self._look_at:
            self._opted_out |= self._claims.opted_out(ids)
            self._look_at = time.monotonic() + LOOK_SECONDS

    def _choose(
        self, queue: FairQueue, prepare: Prepare
    ) -> tuple[list[tuple[Notification, OutgoingMessage]], list[Delivery]]:
        """Takes from the queue those that can be sent now, and the outcomes of those that cannot be sent at all."""
        ready: list[tuple[Notification, OutgoingMessage]] = []
        done: list[Delivery] = []
        busy = Counter(TenantChannel.of(each) for each in self._requests.owners)
        chosen: Counter[TenantChannel] = Counter()
        for notification in queue.heads(busy, THREADS):
            if len(ready) >= self._requests.free:
                break
            key = TenantChannel.of(notification)
            if self._token_at.get(key, 0.0) > time.monotonic():
                continue
            if busy[key] >= THREADS or not self._requests.has_room(_account_of(notification), chosen[key]):
                continue
            found: OutgoingMessage | Delivery | None = self._prepared(notification, prepare)
            if isinstance(found, OutgoingMessage):
                found = self._allowed(notification, found)
            if found is None:
                continue
            queue.take(notification)
            if isinstance(found, Delivery):
                done.append(found)
            else:
                ready.append((notification, found))
                busy[key] += 1
                chosen[key] += 1
        return ready, done

    def _prepared(self, notification: Notification, prepare: Prepare) -> OutgoingMessage | Delivery:
        """Its message and account, or its outcome if it cannot be sent; larger than MESSAGE_MAX_BYTES it is not."""
        try:
            outgoing = prepare(notification)
            size_bytes = wire_bytes(outgoing.message)
            if size_bytes <= self._message_max_bytes or notification.handed_over:
                return outgoing
            reason = too_large("the message", size_bytes, self._message_max_bytes)
            outcome = Outcome(OutcomeKind.REFUSED, self._clock(), reason)
        except ValueError as error:
            outcome = Outcome(OutcomeKind.REFUSED, self._clock(), reason=str(error))
        except (TransportMissing, SendError) as error:
            outcome = failed(error, self._clock())
        return Delivery(notification, outcome, may_have_arrived=notification.handed_over)

    def _allowed(self, notification: Notification, outgoing: OutgoingMessage) -> OutgoingMessage | Delivery | None:
        """The message, if its account may send it now; None: in a moment; else the outcome with which it waits."""
        if notification.handed_over:
            return outgoing
        if outgoing.quota and self._is_used_up(outgoing.quota):  # before it takes a token in vain
            return self._waiting(notification, outgoing, outgoing.quota)
        if not self._has_token(notification, outgoing):
            if TenantChannel.of(notification) in self._token_at:
                return None
            reason = "its account may not send within the next minute"
            return Delivery(notification, Outcome(OutcomeKind.DEFERRED, self._clock(), reason), outgoing)
        if outgoing.quota and not self._reserve(notification, outgoing.quota):
            return self._waiting(notification, outgoing, outgoing.quota)
        return outgoing

    def _waiting(self, notification: Notification, outgoing: OutgoingMessage, quota: Quota) -> Delivery:
        """Nothing is left of the quota of its account."""
        reason = "its account may not send more within 24 hours"
        outcome = Outcome(OutcomeKind.NOT_SENT, self._clock(), reason, LOOK_AGAIN_SECONDS)
        return Delivery(notification, outcome, outgoing, waits_for=quota.key)

    def _has_token(self, notification: Notification, outgoing: OutgoingMessage) -> bool:
        """Whether the account's pace lets the message through now; remembers when it will, unless that takes long.

        The next token is taken before it is available: a campaign that waits for it, too, comes later.
        """
        key = TenantChannel.of(notification)
        self._token_at.pop(key, None)
        if outgoing.pace is None:
            return True
        if notification.id in self._token_taken:
            self._token_taken.discard(notification.id)
            return True
        soon = outgoing.pace.rate_per_second * SEND_LIMIT_SECONDS >= 1
        granted, wait_seconds = outgoing.pace.take_ahead() if soon else outgoing.pace.take(1)
        if granted and (not soon or not wait_seconds):
            return True
        if granted:
            self._token_taken.add(notification.id)
        if wait_seconds <= SEND_LIMIT_SECONDS:
            self._token_at[key] = time.monotonic() + wait_seconds
        return False

    def _is_used_up(self, quota: Quota) -> bool:
        """Whether nothing was left of it a moment ago."""
        until = self._used_up.get(quota.key)
        return until is not None and self._clock() < until

    def _reserve(self, notification: Notification, quota: Quota) -> bool:
        """Whether the account's quota has a message left for this notification, which is then reserved."""
        now = self._clock()
        reservation = self._claims.quotas.reserve_notification(quota, now)
        if reservation is None:
            if quota.key not in self._used_up:
                which = {"account_kind": quota.account_kind, "tenant": quota.tenant_id}
                log.warning("messages wait: the quota of their account is used up", which)
            self._used_up[quota.key] = now + timedelta(seconds=USED_UP_SECONDS)
            return False
        self._used_up.pop(quota.key, None)
        self._reserved[notification.id] = reservation
        return True

    def _collect(self) -> tuple[list[Delivery], BaseException | None]:
        """The outcomes that are known within a moment, and the first error that is none of a provider's: a bug."""
        if not len(self._requests):
            until_token = min(self._token_at.values(), default=0.0) - time.monotonic()
            time.sleep(min(max(until_token, 0.0), POLL_SECONDS))
            return [], None
        self._requests.wait(POLL_SECONDS, for_all=not self._requests.stuck)  # they are settled together
        collected = self._requests.collect()
        for notification, request in collected:
            self._opted_out.pop(notification.id, None)
            reservation = self._leaving.pop(notification.id, None)
            if reservation and not request.exception() and not request.result().outcome.uses_quota:
                self._claims.quotas.give_back(reservation, 1)
        ended = [request for _, request in collected]
        bugs = [bug for request in ended if (bug := request.exception())]
        return [request.result() for request in ended if not request.exception()], next(iter(bugs), None)

    def _skip(self, queue: FairQueue) -> list[Delivery]:
        """Nothing more may be sent: the outcomes of all that are left."""
        self._token_taken.clear()
        outcome = Outcome(OutcomeKind.NOT_SENT, self._clock())
        return [Delivery(each, outcome, may_have_arrived=each.handed_over) for each in queue.take_all()]

    def _grace_is_over(self) -> bool:
        """Whether a signal came so long ago that providers are not waited for any more."""
        if self._signals.stopping and self._grace_ends is None:
            self._grace_ends = time.monotonic() + self._grace_seconds
        return self._grace_ends is not None and time.monotonic() > self._grace_ends
