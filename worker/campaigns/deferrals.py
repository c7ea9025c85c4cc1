"""Deferrals: what they mean for recipients, and how a campaign pauses and ends whose provider defers everything.

A deferral may be the account's or its recipient's own. While a campaign backs off no attempt is counted, so that an
outage costs no recipient; what is never accepted has an end all the same.
"""

from collections.abc import Mapping
from datetime import datetime

from worker.campaigns.batch import BackoffCause, Batch, BatchState
from worker.runtime.backoff import backoff_seconds
from worker.sending.outcomes import Outcome, OutcomeKind

BACKOFF_SECONDS = 15.0  # first pause of a campaign whose provider defers everything; doubles up to
LONGEST_BACKOFF_SECONDS = 300.0
BACKOFFS_BEFORE_OWN = 12  # in a row, three quarters of an hour: see are_own_deferrals
BACKOFFS_BEFORE_END = 300  # in a row, about a day: then a campaign of which nothing is accepted fails


def are_own_deferrals(batch: Batch, outcomes: Mapping[str, Outcome]) -> bool:
    """Whether recipients that were deferred before, and again in a batch that backs off, are so for their own sake.

    They come last in a batch, so messages that it had accepted say so. Where only such recipients are left, nobody
    else can tell their own deferrals from the account's: they are taken for the account's for so many backoffs, and
    then for their own, if other messages of the run were accepted. Else the campaign would never end.
    """
    if batch.state is not BatchState.BACKING_OFF:
        return False
    if any(each.accepted for each in outcomes.values()):
        return True
    campaign = batch.campaign
    return (
        campaign.has_accepted
        and campaign.backoffs >= BACKOFFS_BEFORE_OWN
        and all(
            each.deferred
            for each in batch.recipients
            if each.id in outcomes and outcomes[each.id].kind is OutcomeKind.DEFERRED
        )
    )


def backoffs_in_a_row(batch: Batch, *, some_pass: bool) -> int:
    """How often in a row the campaign has backed off, with this batch. The pace of an account is no failure."""
    if batch.asking:
        return batch.campaign.backoffs
    if batch.state is not BatchState.BACKING_OFF:
        return 0
    if some_pass:
        return 1  # slower is enough
    before = batch.campaign.backoffs
    return max(before, 1) if batch.backoff_cause is BackoffCause.PACE else before + 1


def accepted_at(batch: Batch, outcomes: Mapping[str, Outcome]) -> datetime | None:
    """When the provider last accepted a message. What it says about earlier ones says nothing about now."""
    if batch.asking:
        return None
    return max((each.at for each in outcomes.values() if each.accepted), default=None)


def pause_seconds(backoffs: int) -> float:
    """The pause after so many backoffs in a row."""
    return backoff_seconds(backoffs, BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS)


def why_ended(batch: Batch, backoffs: int, reason: str) -> str | None:
    """Why the campaign fails after so many backoffs in a row; None: it goes on."""
    if backoffs < BACKOFFS_BEFORE_END or batch.backoff_cause is BackoffCause.PACE:
        return None
    return (
        f"Nothing was accepted in {backoffs} tries in a row: {reason}. Its recipients are pending: correct what it "
        "says, then schedule the campaign again"
    )
