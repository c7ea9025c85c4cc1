"""A claimed batch: who is in it, what became of each message, and whether it may go on."""

import threading
import time
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import NamedTuple

from worker.campaigns.campaign import Campaign
from worker.campaigns.journal import Journal
from worker.campaigns.refusal_breaker import RefusalStreak
from worker.campaigns.sending_hours import BatchHours
from worker.campaigns.transport import Transport
from worker.errors import AccountRejected, CampaignRejected, SendError
from worker.sending.outcomes import FailureKind, Outcome, OutcomeKind, failed
from worker.sending.quota import Reservation

DEFERRALS_BEFORE_BACKOFF = 5  # messages deferred in a row before the whole campaign backs off


class Recipient(NamedTuple):
    """One claimed row of "CampaignRecipient"; ``attempts`` counts the sends before this claim."""

    id: str
    name: str
    email: str | None
    phone: str | None
    attempts: int
    address: str | None = None  # as the list of suppressed addresses has it
    opted_out: str | None = None  # why the address may not be written to
    deferred: bool = False  # before this claim, whether that was counted as an attempt or not


class BatchState(IntEnum):
    """Only SENDING lets a message leave. A batch moves down this list, never up."""

    SENDING = 0
    STOPPED = 1  # by a signal, an error, or because the campaign's other batch was stopped by the provider
    LEASE_LOST = 2  # this process was frozen for so long that another one may have taken the batch over
    BACKING_OFF = 3  # the provider defers everything, or the account's pace is used up for long
    REFUSED_IN_A_ROW = 4  # so many recipients with the same reply that it is no fault of theirs
    REJECTED = 5  # the provider refuses the campaign or the account


_SAY_NOTHING = (OutcomeKind.RECIPIENT_DEFERRED, OutcomeKind.NOT_SENT)  # about the provider


class BackoffCause(StrEnum):
    """Why a campaign waits: the line of the log."""

    DEFERRED = "campaign waits: the provider defers its messages"
    NO_ANSWER = "campaign waits: the provider does not answer"
    PACE = "campaign waits: its account may not send more for now"
    NO_MEMORY = "campaign waits: there is not enough memory for its messages"


class Batch:
    """Only the methods of this class change its state and its outcomes; any thread may call them.

    ``streak``: the refusals in a row of its run, which its batches share; None for one that is not sent any more.
    ``lease_until``: by ``boot_seconds``; after it another machine may have taken the batch over.
    ``hours``: when its recipients may be written to; None: at any time. It is set before any message leaves.
    ``reservation``: of its messages, where its account has a quota; a batch of a dead process has none.
    ``same_account``: whether its messages leave, or left, through the account of ``transport``.
    ``asking``: nothing of it is sent, the provider is asked about earlier messages.
    ``allowance``: how many recipients may be written to without an outcome that PostgreSQL knows; None: all.
    """

    def __init__(
        self,
        batch_id: str,
        holder: str,
        campaign: Campaign,
        transport: Transport,
        recipients: list[Recipient],
        journal: Journal,
        *,
        lease_until: float = 0.0,
        same_account: bool = True,
        asking: bool = False,
        streak: RefusalStreak | None = None,
        reservation: Reservation | None = None,
        allowance: int | None = None,
    ) -> None:
        self.id = batch_id
        self.holder = holder
        self.campaign = campaign
        self.transport = transport
        self.recipients = recipients
        self.journal = journal
        self.lease_until = lease_until
        self.asking = asking
        self.reservation = reservation
        self.hours: BatchHours | None = None
        self.allowance = allowance
        self.claimed_at = time.monotonic()
        self._changing = threading.Lock()  # guards all that follows
        self._streak = streak
        self._can_ask = same_account and transport.can_be_asked
        self._outcomes: dict[str, Outcome] = {}
        self._state = BatchState.SENDING
        self._sending = True  # asked before every message
        self._reason = ""
        self._backoff_cause = BackoffCause.DEFERRED
        self._rejection: CampaignRejected | AccountRejected | None = None
        self._deferrals_in_a_row = 0
        self._longest_delay_seconds: float | None = None

    @property
    def state(self) -> BatchState:
        return self._state

    @property
    def sending(self) -> bool:
        """Whether further messages may leave."""
        return self._sending

    @property
    def stopped_by_provider(self) -> bool:
        """Whether the campaign's other batches have to stop, too."""
        return self._state >= BatchState.BACKING_OFF

    @property
    def refused_in_a_row(self) -> bool:
        """Whether so many recipients of the run were refused with the same reply that it has to end."""
        return self._streak is not None and self._streak.is_full

    @property
    def reason(self) -> str:
        """Why it does not go on, in the provider's words where it has any."""
        return self._reason

    @property
    def backoff_cause(self) -> BackoffCause:
        """Why the campaign waits, if the batch is BACKING_OFF."""
        return self._backoff_cause

    @property
    def rejection(self) -> CampaignRejected | AccountRejected | None:
        """What the provider refused, if the batch is REJECTED."""
        return self._rejection

    @property
    def delay_seconds(self) -> float | None:
        """The longest pause that the provider or the account's pace asked for."""
        return self._longest_delay_seconds

    @property
    def can_ask(self) -> bool:
        """Whether the provider can be asked if it has a message of this batch."""
        return self._can_ask

    @property
    def outcomes(self) -> dict[str, Outcome]:
        """The outcomes so far by recipient id: a copy."""
        with self._changing:
            return self._outcomes.copy()

    @property
    def number_of_outcomes(self) -> int:
        return len(self._outcomes)

    def record(self, recipient: Recipient, outcome: Outcome) -> None:
        """What became of a message that was just sent. After a handful of deferrals in a row the batch backs off.

        A message without an answer counts as deferred; a deferral that concerns only its recipient does not. Neither
        that nor a suppressed address, nor a recipient that was not tried, says anything about the provider.
        """
        with self._changing:
            self._outcomes[recipient.id] = outcome
            if outcome.accepted:
                self._deferrals_in_a_row = 0
            elif outcome.kind in (OutcomeKind.DEFERRED, OutcomeKind.UNCONFIRMED):
                self._count_deferral(outcome)
            elif outcome.kind not in _SAY_NOTHING and outcome.fault is not FailureKind.SUPPRESSED:
                self._deferrals_in_a_row = 0
            if self._streak:
                self._streak.record(outcome)
                if self.refused_in_a_row:
                    self._enter(BatchState.REFUSED_IN_A_ROW, outcome.reason or "")

    def set_outcome(self, recipient_id: str, outcome: Outcome) -> None:
        """What became of an earlier message: it says nothing about the provider now."""
        with self._changing:
            self._outcomes[recipient_id] = outcome

    def set_missing_outcome(self, recipient_id: str, outcome: Outcome) -> None:
        """As ``set_outcome``, unless the answer came meanwhile."""
        with self._changing:
            self._outcomes.setdefault(recipient_id, outcome)

    def stop(self) -> None:
        with self._changing:
            self._enter(BatchState.STOPPED, "")

    def renew_lease(self, lease_until: float) -> None:
        with self._changing:
            self.lease_until = lease_until

    def lose_lease(self) -> None:
        with self._changing:
            self._enter(BatchState.LEASE_LOST, "the worker was frozen")

    def back_off(self, delay_seconds: float, reason: str, cause: BackoffCause = BackoffCause.PACE) -> None:
        with self._changing:
            self._longest_delay_seconds = delay_seconds
            if self._state < BatchState.BACKING_OFF:
                self._backoff_cause = cause
            self._enter(BatchState.BACKING_OFF, reason)

    def reject(self, rejection: CampaignRejected | AccountRejected) -> None:
        with self._changing:
            advice = rejection.advice if isinstance(rejection, CampaignRejected) else ""
            self._rejection, self._reason = rejection, f"{rejection}; {advice}" if advice else str(rejection)
            self._enter(BatchState.REJECTED, self._reason)

    def failed(self, error: SendError, at: datetime) -> Outcome:
        """What became of a message that ended with ``error``. The batch stops when it says that it has to."""
        if isinstance(error, CampaignRejected | AccountRejected):
            self.reject(error)
        return failed(error, at)

    def stop_asking(self) -> None:
        """The provider does not answer questions about messages of this batch."""
        with self._changing:
            self._can_ask = False

    def _count_deferral(self, outcome: Outcome) -> None:
        self._deferrals_in_a_row += 1
        wishes = [self._longest_delay_seconds, outcome.delay_seconds, outcome.account_seconds]
        self._longest_delay_seconds = max((each for each in wishes if each is not None), default=None)
        if self._deferrals_in_a_row >= DEFERRALS_BEFORE_BACKOFF:
            if self._state < BatchState.BACKING_OFF and outcome.kind is OutcomeKind.UNCONFIRMED:
                self._backoff_cause = BackoffCause.NO_ANSWER
            self._enter(BatchState.BACKING_OFF, outcome.reason or "")

    def _enter(self, state: BatchState, reason: str) -> None:
        self._sending = False
        if state > self._state:
            self._state, self._reason = state, reason
