"""One attempt to send a notification, or to ask what became of an earlier attempt. It runs in a thread."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

import redis

from worker.errors import RecipientDeferred, RetryLater, SendError, TooLate
from worker.messages import Email
from worker.notifications.notification import Notification, OutgoingMessage
from worker.providers.google_token import InvalidGrant
from worker.providers.handover import handed_over_while
from worker.runtime.clock import boot_seconds
from worker.sending.outcomes import NextStep, Outcome, OutcomeKind, RetryPolicy, failed, suppressed


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of one notification; ``outgoing`` is None when no message could be made."""

    notification: Notification
    outcome: Outcome
    outgoing: OutgoingMessage | None = None
    may_have_arrived: bool = False  # it was handed over, and no definite answer came
    grant_revoked: bool = False  # the user withdrew the grant of the Gmail account
    waits_for: str | None = None  # the account whose quota is used up: it was not tried, and has to wait

    def next_step(self, policy: RetryPolicy) -> NextStep:
        """What has to happen with the notification."""
        return policy.next_step(
            self.outcome,
            self.notification.attempts,
            can_ask=self.outgoing is not None and self.outgoing.gmail is not None,
            may_have_arrived=self.notification.handed_over and self.may_have_arrived,
        )


def send(
    notification: Notification,
    outgoing: OutgoingMessage,
    send_until: float,
    opted_out: Callable[[], str | None],
    clock: Callable[[], datetime],
) -> Delivery:
    """Sends the message, which is marked as handed over by now, unless ``send_until`` (``boot_seconds``) has passed.

    ``opted_out``: why its address may not be written to any more; asked until the message leaves. ``clock`` returns
    UTC without a zone.
    """
    if boot_seconds() > send_until:
        # another process may have claimed it by now
        return Delivery(notification, Outcome(OutcomeKind.DEFERRED, clock(), "the worker was frozen"), outgoing)
    try:
        with handed_over_while(lambda: boot_seconds() <= send_until and opted_out() is None):
            accepted = outgoing.provider.send(outgoing.message)
    except SendError as error:
        if isinstance(error, TooLate) and (reason := opted_out()):
            return Delivery(notification, suppressed(reason, clock()), outgoing)
        _back_off(outgoing, error)
        outcome = failed(error, clock())
        return Delivery(
            notification,
            outcome,
            outgoing,
            may_have_arrived=outcome.kind is OutcomeKind.UNCONFIRMED,
            grant_revoked=isinstance(error, InvalidGrant),
        )
    return Delivery(notification, Outcome(OutcomeKind.ACCEPTED, clock(), accepted=accepted), outgoing)


def ask(notification: Notification, outgoing: OutgoingMessage, clock: Callable[[], datetime]) -> Delivery:
    """Asks the provider what became of a message that was handed over and never answered."""
    if outgoing.gmail is None or not isinstance(outgoing.message, Email):
        outcome = Outcome(OutcomeKind.UNCONFIRMED, clock(), "no answer came, and its provider cannot be asked")
        return Delivery(notification, outcome, outgoing, may_have_arrived=True)
    try:
        accepted = outgoing.gmail.provider.find(outgoing.message.message_id)
    except RetryLater as error:
        return Delivery(notification, failed(error, clock()), outgoing, may_have_arrived=True)
    except SendError as error:  # the grant was revoked, or allows sending only: Gmail will never answer
        outcome = Outcome(OutcomeKind.UNCONFIRMED, clock(), str(error))
        revoked = isinstance(error, InvalidGrant)
        return Delivery(notification, outcome, outgoing, may_have_arrived=True, grant_revoked=revoked)
    if accepted is None:
        return Delivery(notification, Outcome(OutcomeKind.NOT_SENT, clock(), "Gmail does not know it"), outgoing)
    return Delivery(notification, Outcome(OutcomeKind.ACCEPTED, clock(), accepted=accepted), outgoing)


def _back_off(outgoing: OutgoingMessage, error: SendError) -> None:
    """Where the provider named a delay for its whole account, nothing is sent through the account for so long."""
    if isinstance(error, RecipientDeferred) or not isinstance(error, RetryLater):
        return
    seconds = max(error.delay_seconds or 0.0, error.account_seconds or 0.0)
    if outgoing.pace and seconds:
        with suppress(redis.RedisError):  # then the provider refuses once more
            outgoing.pace.back_off(seconds)
