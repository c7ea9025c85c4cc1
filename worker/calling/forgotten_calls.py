"""Calls that were placed and that PostgreSQL has forgotten, because a standby took over that lacked the last commits.

Twilio has them. So for a while after such a change it is asked about each number before that is called.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from worker.calling.claims import CallClaims
from worker.calling.queued_call import ClaimedCall
from worker.providers.twilio import PlacedCall
from worker.runtime.timeline import DOUBT_SECONDS, Timeline


class ForgottenCalls:
    """Which of the calls that Twilio has are the forgotten ones."""

    def __init__(self, claims: CallClaims, timeline: Timeline) -> None:
        self._claims = claims
        self._timeline = timeline

    def since(self) -> datetime | None:
        """From when on (aware) Twilio is asked for calls before one is placed; None: it is not asked."""
        changed_at = self._timeline.changed_at
        if changed_at is None or not self._timeline.changed_within(DOUBT_SECONDS):
            return None
        return (changed_at - timedelta(seconds=DOUBT_SECONDS)).replace(tzinfo=UTC)

    def find(self, claim: ClaimedCall, listed: Sequence[PlacedCall]) -> PlacedCall | None:
        """The one of Twilio's calls that belongs to this claim: no row of the queue has it, and no other tenant."""
        possible = self._claims.possible_calls(claim, listed)
        return possible.own[-1] if possible.own else None
