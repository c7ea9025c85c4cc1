"""The work in progress, as the database knows it: running campaigns, queued calls, unconfirmed sends.

It is read with one statement, at most once in two seconds, and nothing is counted further than ``CAP``.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

from worker.campaigns.forecast import Forecast, LaterRetries, later_retries
from worker.content.calls import WAITING_FOR_HOURS
from worker.runtime.db import Database, queries
from worker.web.campaign_failures import LATEST, REPLIES, CampaignFailures
from worker.web.campaign_forecasts import AccountUse, CampaignForecasts
from worker.web.senders import SendersAtWork

CAP = 10_000  # a longer backlog is shown as "more than 10,000"
SCHEDULED_LIMIT = 5  # campaigns that are due later
CAMPAIGN_LIMIT = 50  # so many running campaigns are read, the longest running first
RATE_SECONDS = 60.0  # a campaign's rate is what it did in the last minute
SHORTEST_RATE_SECONDS = 4.0  # batches come in bursts, so a shorter time says little about the rate
FORGOTTEN_SECONDS = 600.0  # an observation older than this is not used


@dataclass(frozen=True)
class RunningCampaign:
    """A campaign that the worker sends. ``total``, ``sent`` and ``failed`` are the campaign's own counts."""

    id: str
    name: str
    channel: str
    total: int
    sent: int
    failed: int
    running_seconds: float
    next_batch_seconds: float  # until the next batch may be sent; not above 0: now
    prepared: bool  # its recipients are selected
    deferrals: int  # how often in a row its provider deferred it
    adopted: bool  # an app server of the CRM began it, and the worker took over
    retries: tuple[LaterRetries, ...] = ()
    per_second: float | None = None  # messages; None: not known yet
    waits_for: str | None = None  # 'quota' or 'window'
    waits_seconds: float | None = None  # until then
    forecast: Forecast | None = None  # None: nothing is known of its rate

    @property
    def done(self) -> int:
        return self.sent + self.failed


@dataclass(frozen=True)
class ScheduledCampaign:
    """A campaign that is due later. ``total`` 0: its recipients are not selected yet."""

    id: str
    name: str
    channel: str
    total: int
    due_seconds: float
    forecast: Forecast | None = None


@dataclass(frozen=True)
class WorkInProgress:
    """Counts above ``CAP`` are ``CAP`` + 1. Seconds count from now."""

    campaigns: tuple[RunningCampaign, ...]  # the longest running first, at most CAMPAIGN_LIMIT
    campaigns_in_all: int
    campaigns_of_others: int  # running campaigns that the CRM's app servers send
    next_campaign_seconds: float | None
    calls_queued: int
    calls_waiting: int  # for the hours of their numbers
    calls_wait_seconds: float | None  # until the first of them may be placed
    next_call_seconds: float | None
    calls_being_placed: int
    calls_unconfirmed: int
    messages_unconfirmed: int
    notifications: int  # reminder digests and e-mails about trials that wait or are being sent
    scheduled: tuple[ScheduledCampaign, ...] = ()  # the next ones, at most SCHEDULED_LIMIT
    failures: tuple[CampaignFailures, ...] = ()  # of running campaigns, and of those that ended in the last hour
    senders: SendersAtWork | None = None  # None: bin/campaign sends by itself


class CampaignRates:
    """Remembers the progress of each campaign and computes its rate. ``clock`` counts seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._progress: dict[str, list[tuple[float, int]]] = {}  # campaign -> (when, done), oldest first

    def per_second(self, campaigns: list[RunningCampaign]) -> list[float | None]:
        """The rate of each running campaign; campaigns that are not given are forgotten."""
        now = self._clock()
        self._progress = {each.id: self._observed(each, now) for each in campaigns}
        return [self._rate(each, self._progress[each.id]) for each in campaigns]

    def _observed(self, campaign: RunningCampaign, now: float) -> list[tuple[float, int]]:
        """The progress now, and earlier: back to a minute ago, and one observation older than that."""
        earlier = [each for each in self._progress.get(campaign.id, []) if now - each[0] < FORGOTTEN_SECONDS]
        if earlier and earlier[-1][1] > campaign.done:
            earlier = []  # the campaign was restarted
        while len(earlier) > 1 and now - earlier[1][0] >= RATE_SECONDS:
            earlier.pop(0)
        return [*earlier, (now, campaign.done)]

    @staticmethod
    def _rate(campaign: RunningCampaign, progress: list[tuple[float, int]]) -> float | None:
        (first_at, first_done), (now, done) = progress[0], progress[-1]
        if now - first_at >= SHORTEST_RATE_SECONDS:
            return (done - first_done) / (now - first_at)
        if campaign.adopted or campaign.running_seconds < 1.0:
            return None
        return campaign.done / campaign.running_seconds


def read_work_in_progress(database: Database, rates: CampaignRates, forecasts: CampaignForecasts) -> WorkInProgress:
    """Reads it from the database. Raises psycopg2.Error, also where bin/migrate has not run."""
    statement = queries("web")["work_in_progress"]
    limits = {"cap": CAP, "campaigns": CAMPAIGN_LIMIT, "scheduled": SCHEDULED_LIMIT, "failures": LATEST}
    limits["replies"] = REPLIES
    row = database.one(statement, **limits, waiting=WAITING_FOR_HOURS) or {}
    campaigns = [RunningCampaign(**each | {"retries": later_retries(each["retries"])}) for each in row["campaigns"]]
    measured = zip(campaigns, rates.per_second(campaigns), strict=True)
    failures = tuple(CampaignFailures.from_row(each) for each in row["failures"])
    accounts, now = {each["id"]: AccountUse.from_row(each) for each in row.pop("accounts")}, row.pop("now")
    running = tuple(
        _with_forecast(replace(each, per_second=rate), accounts.get(each.id), forecasts, now)
        for each, rate in measured
    )
    scheduled = tuple(
        _scheduled(ScheduledCampaign(**each), accounts.get(each["id"]), forecasts, now) for each in row["scheduled"]
    )
    return WorkInProgress(**row | {"campaigns": running, "scheduled": scheduled, "failures": failures})


def _with_forecast(
    campaign: RunningCampaign, account: AccountUse | None, forecasts: CampaignForecasts, now: datetime
) -> RunningCampaign:
    """The latest rate of a campaign says nothing about it while it waits, or has only later retries left."""
    if account is None or not campaign.prepared:
        return campaign
    left = max(0, campaign.total - campaign.done)
    wait_seconds = (campaign.waits_seconds or 0.0) if campaign.waits_for else 0.0
    if wait_seconds > 0 or left <= sum(each.number for each in campaign.retries):
        expected = forecasts.scheduled(left, account, now, wait_seconds, campaign.retries)
        return replace(campaign, forecast=expected)
    if not campaign.per_second:
        return campaign
    wait_seconds = campaign.next_batch_seconds if campaign.deferrals else 0.0
    expected = forecasts.running(left, campaign.per_second, account, now, wait_seconds, campaign.retries)
    return replace(campaign, forecast=expected)


def _scheduled(
    campaign: ScheduledCampaign, account: AccountUse | None, forecasts: CampaignForecasts, now: datetime
) -> ScheduledCampaign:
    if account is None or not campaign.total:
        return campaign
    return replace(campaign, forecast=forecasts.scheduled(campaign.total, account, now, campaign.due_seconds))
