"""What became of one message, and what has to happen next: one policy for all jobs that send messages."""

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from worker.errors import (
    AccountRejected,
    CampaignRejected,
    RecipientDeferred,
    RecipientExcluded,
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
    DEFERRED = "deferred"
    RECIPIENT_DEFERRED = "recipient deferred"  # for a reason that says nothing about other recipients
    UNCONFIRMED = "unconfirmed"
    REJECTED = "rejected"  # the account, the campaign or the configuration: no fault of the recipient
    NOT_SENT = "not sent"  # it was not tried


class FailureKind(StrEnum):
    """Why a recipient failed: the kinds of worker.failure."""

    ADDRESS = "address"  # there is no such address, or its mailbox takes no more
    SUPPRESSED = "suppressed"  # it must not be written to: it is on the list, or the provider excludes it
    REFUSED = "refused"  # by the provider; many in a row with the same reply are the sender's fault
    DEFERRED = "deferred"  # for too long
    UNCONFIRMED = "unconfirmed"
    CONTENT = "content"  # no message can be made for this recipient


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


class Suppression(NamedTuple):
    """What a refusal says about its address: nothing may be sent to it ``until`` then, UTC; None: ever."""

    source: str
    until: datetime | None = None


class Outcome(NamedTuple):
    """``at`` is UTC without a zone; ``delay_seconds`` is the provider's own wish, ``code`` its own code.

    ``fault``: what a refusal is known to be for; None: REFUSED, and perhaps the sender's fault. ``suppress_seconds``:
    as in RecipientRefused. ``max_attempts``, ``delay_base``: as in RecipientDeferred. ``account_seconds``: as in
    RetryLater.
    """

    kind: OutcomeKind
    at: datetime
    reason: str | None = None
    delay_seconds: float | None = None
    accepted: Accepted | None = None
    code: str = ""
    fault: FailureKind | None = None
    suppress_seconds: float = 0.0
    max_attempts: int | None = None
    delay_base: float | None = None
    account_seconds: float | None = None

    @property
    def may_be_senders_fault(self) -> bool:
        """Whether many outcomes like this one in a row say that the sender is refused, and not its recipients."""
        return self.kind is OutcomeKind.REFUSED and self.fault is None

    @property
    def suppression(self) -> Suppression | None:
        """What follows for later messages to the address."""
        if self.suppress_seconds:
            is_for_ever = math.isinf(self.suppress_seconds)
            return Suppression("bounce", None if is_for_ever else self.at + timedelta(seconds=self.suppress_seconds))
        return Suppression("provider") if self.kind is OutcomeKind.OPTED_OUT else None

    @property
    def was_tried(self) -> bool:
        """Whether a message was made and offered to the provider."""
        return self.kind is not OutcomeKind.NOT_SENT and self.fault not in (
            FailureKind.SUPPRESSED,
            FailureKind.CONTENT,
        )

    @property
    def uses_quota(self) -> bool:
        """Whether its provider may count it among the messages of its account."""
        return self.was_tried and not self.deferred and self.kind is not OutcomeKind.REJECTED

    @property
    def deferred(self) -> bool:
        return self.kind in (OutcomeKind.DEFERRED, OutcomeKind.RECIPIENT_DEFERRED)


def failed(error: SendError | TransportMissing, at: datetime) -> Outcome:
    """The outcome of a message that ended with ``error``."""
    kind = next(kind for error_class, kind in _KINDS if isinstance(error, error_class))
    delay_seconds = error.delay_seconds if isinstance(error, RetryLater) else None
    code = error.code if isinstance(error, SendError) else ""
    account_seconds = error.account_seconds if isinstance(error, RetryLater) else None
    outcome = Outcome(kind, at, str(error), delay_seconds, code=code, account_seconds=account_seconds)
    if isinstance(error, RecipientDeferred):
        return outcome._replace(max_attempts=error.max_attempts, delay_base=error.delay_base)
    if isinstance(error, RecipientRefused):
        return outcome._replace(fault=_fault_of(error), suppress_seconds=error.suppress_seconds)
    return outcome


def _fault_of(error: RecipientRefused) -> FailureKind | None:
    if isinstance(error, RecipientExcluded):
        return FailureKind.SUPPRESSED
    if error.address_fault:
        return FailureKind.ADDRESS
    return FailureKind.REFUSED if error.mailbox_full else None


def suppressed(reason: str, at: datetime) -> Outcome:
    """The outcome of a message that is not sent because its address is suppressed; ``reason``: why that is so."""
    return Outcome(OutcomeKind.REFUSED, at, f"opted out: {reason}", fault=FailureKind.SUPPRESSED)


def failure_kind(outcome: Outcome) -> FailureKind:
    """What a recipient has failed for whose last outcome this was."""
    if outcome.kind is OutcomeKind.OPTED_OUT:
        return FailureKind.SUPPRESSED
    if outcome.kind is OutcomeKind.UNCONFIRMED:
        return FailureKind.UNCONFIRMED
    return FailureKind.DEFERRED if outcome.deferred else outcome.fault or FailureKind.REFUSED


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
        if outcome.kind is OutcomeKind.OPTED_OUT:
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
        return NextStep.FAIL if self._is_last(attempts, outcome.max_attempts) else NextStep.RETRY

    def delay_seconds(self, outcome: Outcome, attempts: int) -> float:
        """The pause before the next attempt: the provider's wish, else it grows with ``attempts`` so far."""
        if outcome.delay_base is not None:
            grown = min(outcome.delay_base**attempts, self.longest_delay_seconds)
            return max(grown, outcome.delay_seconds or 0.0)
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

    def _is_last(self, attempts: int, most: int | None = None) -> bool:
        return any(limit is not None and attempts + 1 >= limit for limit in (self.max_attempts, most))
