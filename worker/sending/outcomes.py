"""What became of one message, and what has to happen next: one policy for all jobs that send messages."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from worker.errors import (
    AccountRejected,
    CampaignRejected,
    RecipientDeferred,
    RecipientOptedOut,
    RecipientRefused,
    RetryLater,
    SendError,
    TransportMissing,
    Unconfirmed,
)
from worker.messages import Accepted
from worker.runtime.backoff import backoff_seconds

ASK_AFTER_SECONDS = 30.0  # by then a provider has filed what it was sending, or never will
ASK_LIMIT_SECONDS = 3600.0  # the longest pause between two questions about one message


class OutcomeKind(StrEnum):
    """What became of one message."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    OPTED_OUT = "opted out"
    SUPPRESSED = "suppressed"  # it was not tried: the address is on the list of those that may not be written to
    DEFERRED = "deferred"
    RECIPIENT_DEFERRED = "recipient deferred"  # for a reason that says nothing about other recipients
    UNCONFIRMED = "unconfirmed"
    REJECTED = "rejected"  # the account, the campaign or the configuration: no fault of the recipient
    NOT_SENT = "not sent"  # it was not tried


# what an error means for its message; the most special first
_KINDS: tuple[tuple[type[Exception], OutcomeKind], ...] = (
    (RecipientDeferred, OutcomeKind.RECIPIENT_DEFERRED),
    (RetryLater, OutcomeKind.DEFERRED),
    (RecipientOptedOut, OutcomeKind.OPTED_OUT),
    (RecipientRefused, OutcomeKind.REFUSED),
    (CampaignRejected, OutcomeKind.REJECTED),
    (AccountRejected, OutcomeKind.REJECTED),
    (TransportMissing, OutcomeKind.REJECTED),
    (Unconfirmed, OutcomeKind.UNCONFIRMED),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """``at`` is UTC without a zone; ``delay_seconds`` is the provider's own wish."""

    kind: OutcomeKind
    at: datetime
    reason: str | None = None
    delay_seconds: float | None = None
    accepted: Accepted | None = None
    code: str | None = None  # of the provider's refusal

    @property
    def deferred(self) -> bool:
        return self.kind in (OutcomeKind.DEFERRED, OutcomeKind.RECIPIENT_DEFERRED)


def failed(error: SendError | TransportMissing, at: datetime) -> Outcome:
    """The outcome of a message that ended with ``error``."""
    kind = next(kind for error_class, kind in _KINDS if isinstance(error, error_class))
    delay_seconds = error.delay_seconds if isinstance(error, RetryLater) else None
    code = error.code if isinstance(error, SendError) else None
    return Outcome(kind, at, str(error), delay_seconds, code=code)


def suppressed(reason: str, at: datetime) -> Outcome:
    """The outcome of a message that is not sent; ``reason``: why its address is suppressed."""
    return Outcome(OutcomeKind.SUPPRESSED, at, f"opted out: {reason}")


class NextStep(StrEnum):
    """What has to happen with a message."""

    SENT = "sent"
    FAIL = "fail"
    FAIL_UNCONFIRMED = "fail unconfirmed"  # nobody will ever know whether it arrived, and it is not sent again
    RETRY = "retry"
    ASK = "ask"  # the provider, whether it has the message
    RELEASE = "release"  # it was not tried: nothing is counted


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and after which pause a message is tried again, and the provider asked about it.

    ``max_attempts`` None: without end. ``after_rejection``: RELEASE where a rejection ends something larger (a
    campaign), RETRY where the message itself waits for a better configuration.
    """

    max_attempts: int | None
    first_delay_seconds: float
    longest_delay_seconds: float
    resend_unconfirmed: bool  # UNCONFIRMED_SENDS=resend
    after_rejection: NextStep
    max_questions: int = 12  # how often a provider is asked that defers the question: for about six hours

    def next_step(
        self, outcome: Outcome, attempts: int, *, can_ask: bool, may_have_arrived: bool = False
    ) -> NextStep:
        """What to do after an attempt.

        ``attempts``: how many there were before this one. ``can_ask``: the provider can be asked about the message.
        ``may_have_arrived``: an earlier attempt is unconfirmed, and this outcome is what came of asking.
        """
        if outcome.kind is OutcomeKind.ACCEPTED:
            return NextStep.SENT
        if outcome.kind in (OutcomeKind.OPTED_OUT, OutcomeKind.SUPPRESSED):
            return NextStep.FAIL
        if may_have_arrived:
            return self._after_question(outcome, attempts)
        match outcome.kind:
            case OutcomeKind.NOT_SENT:
                return NextStep.RELEASE
            case OutcomeKind.REFUSED:
                return NextStep.FAIL
            case OutcomeKind.UNCONFIRMED:
                return NextStep.ASK if can_ask else self._after_unconfirmed(attempts)
            case OutcomeKind.REJECTED if self.after_rejection is NextStep.RELEASE:
                return NextStep.RELEASE
        return NextStep.FAIL if self._is_last(attempts) else NextStep.RETRY

    def delay_seconds(self, outcome: Outcome, attempts: int) -> float:
        """The pause before the next attempt: the provider's wish, else it grows with ``attempts`` so far."""
        if outcome.delay_seconds is not None:
            return outcome.delay_seconds
        return backoff_seconds(attempts, self.first_delay_seconds, self.longest_delay_seconds)

    def question_delay_seconds(self, outcome: Outcome, attempts: int) -> float:
        """The pause before the provider is asked (again): it grows with ``attempts`` so far, up to an hour."""
        backoff = backoff_seconds(attempts, ASK_AFTER_SECONDS, ASK_LIMIT_SECONDS)
        return min(max(backoff, outcome.delay_seconds or 0.0), ASK_LIMIT_SECONDS)

    def _after_question(self, outcome: Outcome, attempts: int) -> NextStep:
        if outcome.kind is OutcomeKind.NOT_SENT or (outcome.deferred and attempts < self.max_questions):
            return NextStep.ASK
        return self._after_unconfirmed(attempts)

    def _after_unconfirmed(self, attempts: int) -> NextStep:
        resend = self.resend_unconfirmed and not self._is_last(attempts)
        return NextStep.RETRY if resend else NextStep.FAIL_UNCONFIRMED

    def _is_last(self, attempts: int) -> bool:
        return self.max_attempts is not None and attempts + 1 >= self.max_attempts
