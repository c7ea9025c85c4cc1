"""The breaker for refusals: how many messages of a run were refused with the same reply since the last accepted one.

Relays report faults of the sender (a relay that is not allowed, a domain that is on a list) as if each recipient were
at fault, which would use up a whole list. So that many refusals in a row end the campaign, and their recipients are
pending again. What earlier batches and dead processes have settled is counted from worker.failure.
"""

import threading
from collections import Counter
from collections.abc import Mapping
from datetime import datetime

from worker.campaigns.campaign import Campaign
from worker.content.reply_pattern import reply_pattern
from worker.runtime.db import Database, queries
from worker.sending.outcomes import Outcome

RUNS_KEPT = 1000  # a run that is forgotten is counted again


class RefusalStreak:
    """The refusals in a row of one run. Any thread may record an outcome."""

    def __init__(self, limit: int, refusals: Mapping[str, int] | None = None) -> None:
        """``refusals``: those that are settled, by pattern of their reply."""
        self._limit = limit
        self._changing = threading.Lock()
        self._refusals = Counter(refusals)
        self._is_full = any(number >= limit for number in self._refusals.values())

    @property
    def is_full(self) -> bool:
        """Whether the campaign has to end."""
        return self._is_full

    def record(self, outcome: Outcome) -> None:
        """A recipient's own fault, a deferral and a missing answer say nothing about the sender."""
        if outcome.accepted:
            if self._refusals:
                with self._changing:
                    self._refusals.clear()
        elif outcome.may_be_senders_fault:
            pattern = reply_pattern(outcome.reason or "", outcome.code)
            with self._changing:
                self._refusals[pattern] += 1
                self._is_full = self._is_full or self._refusals[pattern] >= self._limit


class RefusalBreaker:
    """The refusals in a row of all runs that this process sends. For the thread that has the database."""

    def __init__(self, db: Database, limit: int) -> None:
        self._db = db
        self._sql = queries("campaign")
        self._limit = limit
        self._streaks: dict[tuple[str, datetime | None], RefusalStreak] = {}

    def streak_of(self, campaign: Campaign) -> RefusalStreak:
        """The streak of the campaign's run, with what is settled of it."""
        key = (campaign.id, campaign.started_at)
        if key not in self._streaks:
            while len(self._streaks) >= RUNS_KEPT:
                del self._streaks[next(iter(self._streaks))]
            rows = self._db.all(self._sql["refusals"], campaign_id=campaign.id)
            self._streaks[key] = RefusalStreak(self._limit, {row["pattern"]: row["number"] for row in rows})
        return self._streaks[key]

    def forget(self, campaign: Campaign) -> None:
        """It is counted again: another process, or a later answer, has changed it."""
        self._streaks.pop((campaign.id, campaign.started_at), None)
