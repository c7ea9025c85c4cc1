"""What the database says is under way: running campaigns, queued calls, single messages.

One statement, once in two seconds at most, that counts nothing further than ``CAP``.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from worker.runtime.db import Database, queries

CAP = 10_000  # a longer backlog is shown as "more than 10,000"
MOST_RUNS = 50
PACE_SECONDS = 60.0  # a campaign's rate is what it did in the last minute
LEAST_PACE_SECONDS = 4.0  # batches come in bursts: a shorter look says little
STALE_PACE_SECONDS = 600.0


@dataclass(frozen=True)
class RunningCampaign:
    """A campaign that the worker sends. Counts are the campaign's own."""

    id: str
    name: str
    channel: str
    total: int
    sent: int
    failed: int
    running_seconds: float
    next_batch_seconds: float  # until it may send again; below 0: it may
    prepared: bool  # its recipients are known
    holds: int  # times in a row that its provider put it off
    adopted: bool  # somebody else had begun it
    per_second: float | None = None  # messages; None: not known yet

    @property
    def done(self) -> int:
        return self.sent + self.failed


@dataclass(frozen=True)
class WorkInProgress:
    """Counts above ``CAP`` are ``CAP`` + 1; seconds count from now."""

    runs: tuple[RunningCampaign, ...]  # the longest running first, at most MOST_RUNS
    runs_in_all: int
    others_running: int  # campaigns that the CRM's app servers send
    next_campaign_seconds: float | None
    calls_queued: int
    next_call_seconds: float | None
    calls_in_hand: int
    calls_in_doubt: int
    messages_in_doubt: int
    notices: int  # digests and mails about trials that wait or are on their way


class CampaignRates:
    """Remembers how far each campaign was, to tell how fast it is. ``clock`` counts seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seen: dict[str, list[tuple[float, int]]] = {}  # campaign -> (when, done), oldest first

    def per_second(self, runs: list[RunningCampaign]) -> list[float | None]:
        """The rate of each of the running campaigns; those not among them are forgotten."""
        now = self._clock()
        self._seen = {run.id: self._looks(run, now) for run in runs}
        return [self._rate(run, self._seen[run.id]) for run in runs]

    def _looks(self, run: RunningCampaign, now: float) -> list[tuple[float, int]]:
        """This look and earlier ones back to a minute ago, and one older than that."""
        looks = [each for each in self._seen.get(run.id, []) if now - each[0] < STALE_PACE_SECONDS]
        if looks and looks[-1][1] > run.done:
            looks = []  # it was started anew
        while len(looks) > 1 and now - looks[1][0] >= PACE_SECONDS:
            looks.pop(0)
        return [*looks, (now, run.done)]

    @staticmethod
    def _rate(run: RunningCampaign, looks: list[tuple[float, int]]) -> float | None:
        (first_at, first_done), (now, done) = looks[0], looks[-1]
        if now - first_at >= LEAST_PACE_SECONDS:
            return (done - first_done) / (now - first_at)
        if run.adopted or run.running_seconds < 1.0:
            return None
        return run.done / run.running_seconds


def read_work(database: Database, paces: CampaignRates) -> WorkInProgress:
    """Asks the database. Raises psycopg2.Error, also where bin/migrate has not run."""
    row = database.one(queries("web")["work"], cap=CAP, runs=MOST_RUNS) or {}
    runs = [RunningCampaign(**each) for each in row["runs"]]
    rates = paces.per_second(runs)
    shown = tuple(replace(run, per_second=rate) for run, rate in zip(runs, rates, strict=True))
    return WorkInProgress(**(row | {"runs": shown}))
