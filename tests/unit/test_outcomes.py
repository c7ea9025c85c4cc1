"""What has to happen next with a message: one table over all outcomes, for campaigns, reminders and trials."""

import itertools
from datetime import datetime

import pytest

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
from worker.providers.google_token import InvalidGrant
from worker.sending.outcomes import (
    ASK_AFTER_SECONDS,
    FailureKind,
    NextStep,
    Outcome,
    OutcomeKind,
    RetryPolicy,
    failed,
    failure_kind,
)

AT = datetime(2026, 1, 31, 12)  # noqa: DTZ001 - UTC without a zone, as the CRM writes it
MAX_ATTEMPTS, MAX_QUESTIONS = 3, 5
FIRST, LAST, TOO_MANY = 0, MAX_ATTEMPTS - 1, MAX_QUESTIONS  # attempts before the one with the outcome

Kind, Step = OutcomeKind, NextStep


def policy(
    after_rejection: NextStep = Step.RELEASE,
    *,
    resend: bool = False,
    max_attempts: int | None = MAX_ATTEMPTS,
) -> RetryPolicy:
    return RetryPolicy(
        max_attempts=max_attempts,
        first_delay_seconds=60.0,
        longest_delay_seconds=900.0,
        resend_unconfirmed=resend,
        after_rejection=after_rejection,
        max_questions=MAX_QUESTIONS,
    )


# The step after a first send, by outcome: while attempts are left, and after the last one.
AFTER_A_SEND = {
    Kind.ACCEPTED: (Step.SENT, Step.SENT),
    Kind.OPTED_OUT: (Step.FAIL, Step.FAIL),
    Kind.REFUSED: (Step.FAIL, Step.FAIL),
    Kind.NOT_SENT: (Step.RELEASE, Step.RELEASE),
    Kind.DEFERRED: (Step.RETRY, Step.FAIL),
    Kind.RECIPIENT_DEFERRED: (Step.RETRY, Step.FAIL),
}
# The step after a question about an earlier send, by outcome: while questions are left, and after the last one.
# UNKNOWN stands for the operator's choice.
UNKNOWN = None
AFTER_A_QUESTION = {
    Kind.ACCEPTED: (Step.SENT, Step.SENT),
    Kind.OPTED_OUT: (Step.FAIL, Step.FAIL),
    Kind.NOT_SENT: (Step.ASK, Step.ASK),
    Kind.DEFERRED: (Step.ASK, UNKNOWN),
    Kind.RECIPIENT_DEFERRED: (Step.ASK, UNKNOWN),
    Kind.REFUSED: (UNKNOWN, UNKNOWN),
    Kind.REJECTED: (UNKNOWN, UNKNOWN),
    Kind.UNCONFIRMED: (UNKNOWN, UNKNOWN),
}


def unknown(*, resend: bool, attempts: int) -> NextStep:
    """Nobody can tell any more whether it arrived: sent again where the operator wants it and attempts are left."""
    return Step.RETRY if resend and attempts < LAST else Step.FAIL_UNCONFIRMED


def expected(
    kind: OutcomeKind, after_rejection: NextStep, attempts: int, *, can_ask: bool, asked: bool, resend: bool
) -> NextStep:
    if asked:
        step = AFTER_A_QUESTION[kind][attempts >= MAX_QUESTIONS]
        return step or unknown(resend=resend, attempts=attempts)
    if kind is Kind.UNCONFIRMED:
        return Step.ASK if can_ask else unknown(resend=resend, attempts=attempts)
    if kind is Kind.REJECTED:
        return Step.RELEASE if after_rejection is Step.RELEASE else (Step.RETRY, Step.FAIL)[attempts >= LAST]
    return AFTER_A_SEND[kind][attempts >= LAST]


FLAGS = (False, True)
ATTEMPTS = (FIRST, LAST - 1, LAST, TOO_MANY - 1, TOO_MANY)
CASES = list(itertools.product(OutcomeKind, (Step.RELEASE, Step.RETRY), ATTEMPTS, FLAGS, FLAGS, FLAGS))


@pytest.mark.parametrize(("kind", "after_rejection", "attempts", "can_ask", "asked", "resend"), CASES)
def test_next_step(
    kind: OutcomeKind, after_rejection: NextStep, attempts: int, can_ask: bool, asked: bool, resend: bool
) -> None:
    """Every outcome leads to one step, whatever came before it."""
    step = policy(after_rejection, resend=resend).next_step(
        Outcome(kind, AT), attempts, can_ask=can_ask, may_have_arrived=asked
    )
    assert step is expected(kind, after_rejection, attempts, can_ask=can_ask, asked=asked, resend=resend)


@pytest.mark.parametrize("kind", [Kind.DEFERRED, Kind.RECIPIENT_DEFERRED, Kind.REJECTED, Kind.UNCONFIRMED])
def test_without_a_limit(kind: OutcomeKind) -> None:
    """Without a highest number of attempts a message is tried again however often it failed."""
    endless = policy(Step.RETRY, resend=True, max_attempts=None)
    assert endless.next_step(Outcome(kind, AT), 10_000, can_ask=False) is Step.RETRY


def test_a_first_attempt_is_never_a_question() -> None:
    """Only a message that was handed over before counts as one that may have arrived."""
    outcome = Outcome(Kind.NOT_SENT, AT)
    assert policy().next_step(outcome, FIRST, can_ask=True) is Step.RELEASE


@pytest.mark.parametrize(
    ("wish", "attempts", "seconds"),
    [(None, 1, 60.0), (None, 3, 240.0), (None, 30, 900.0), (7.0, 3, 7.0), (0.0, 3, 0.0), (5000.0, 3, 5000.0)],
)
def test_delay(wish: float | None, attempts: int, seconds: float) -> None:
    """The backoff doubles up to its limit; a provider's own delay counts instead."""
    assert policy().delay_seconds(Outcome(Kind.DEFERRED, AT, "busy", wish), attempts) == seconds


@pytest.mark.parametrize(
    ("wish", "attempts", "seconds"),
    [
        (None, 1, ASK_AFTER_SECONDS),
        (None, 2, 60.0),
        (None, 12, 3600.0),
        (7.0, 1, 30.0),
        (99.0, 1, 99.0),
        (9e9, 1, 3600.0),
    ],
)
def test_question_delay(wish: float | None, attempts: int, seconds: float) -> None:
    """A provider is asked after half a minute, then ever more rarely, at least once an hour."""
    assert policy().question_delay_seconds(Outcome(Kind.DEFERRED, AT, "busy", wish), attempts) == seconds


@pytest.mark.parametrize(
    ("error", "kind", "delay_seconds"),
    [
        (RecipientDeferred("greylisted", 300.0), Kind.RECIPIENT_DEFERRED, 300.0),
        (RetryLater("busy", 7.0), Kind.DEFERRED, 7.0),
        (RetryLater("busy"), Kind.DEFERRED, None),
        (RecipientOptedOut("131050"), Kind.OPTED_OUT, None),
        (RecipientRefused("550"), Kind.REFUSED, None),
        (CampaignRejected("template"), Kind.REJECTED, None),
        (AccountRejected("535"), Kind.REJECTED, None),
        (InvalidGrant("revoked"), Kind.REJECTED, None),
        (TransportMissing("set SMTP_URL"), Kind.REJECTED, None),
        (Unconfirmed("no answer"), Kind.UNCONFIRMED, None),
    ],
)
def test_what_errors_mean(
    error: SendError | TransportMissing, kind: OutcomeKind, delay_seconds: float | None
) -> None:
    """Each error that ends an attempt has one outcome, with its reason and the provider's own delay."""
    assert failed(error, AT) == Outcome(kind, AT, str(error), delay_seconds)


@pytest.mark.parametrize(
    ("limit", "of_all", "steps"),
    [
        (1, 3, [Step.FAIL]),
        (3, 12, [Step.RETRY, Step.RETRY, Step.FAIL, Step.FAIL]),
        (3, 2, [Step.RETRY, Step.FAIL, Step.FAIL]),
        (2, None, [Step.RETRY, Step.FAIL]),
        (None, 2, [Step.RETRY, Step.FAIL]),
    ],
)
def test_a_limit_of_attempts(limit: int | None, of_all: int | None, steps: list[NextStep]) -> None:
    """A deferral may allow fewer attempts than the policy, never more; attempts of all kinds count."""
    outcome = failed(RecipientDeferred("not before tomorrow", 86_400.0, max_attempts=limit), AT)
    found = [
        policy(max_attempts=of_all).next_step(outcome, attempts, can_ask=False) for attempts in range(len(steps))
    ]
    assert found == steps


@pytest.mark.parametrize(
    ("wish", "attempts", "seconds"),
    [(6.0, 1, 6.0), (6.0, 2, 16.0), (6.0, 3, 64.0), (None, 1, 4.0), (6.0, 99, 900.0), (5000.0, 2, 5000.0)],
)
def test_a_delay_that_grows(wish: float | None, attempts: int, seconds: float) -> None:
    """A power of the attempts so far, up to the policy's limit; the provider's own delay is the least."""
    outcome = failed(RecipientDeferred("too many", wish, delay_base=4.0), AT)
    assert policy().delay_seconds(outcome, attempts) == seconds


def test_excluded() -> None:
    """Whom the provider excludes fails at once, as suppressed: no retry by an operator, and no sign of a fault."""
    outcome = failed(RecipientExcluded("130472"), AT)
    assert policy().next_step(outcome, FIRST, can_ask=False) is Step.FAIL
    assert failure_kind(outcome) is FailureKind.SUPPRESSED
    assert not outcome.may_be_senders_fault
    assert outcome.suppression is None


def test_deferred() -> None:
    """An outcome says of itself whether the provider deferred the message."""
    assert {kind for kind in OutcomeKind if Outcome(kind, AT).deferred} == {Kind.DEFERRED, Kind.RECIPIENT_DEFERRED}
