"""Campaigns as the status page and bin/status show them: progress, rate, expected end, and failures."""

from dataclasses import dataclass, replace
from datetime import UTC

from worker.content.one_line import one_line
from worker.content.reply_pattern import without_other_addresses
from worker.web.campaign_failures import CampaignFailures, FrequentReply
from worker.web.formatting import TEXT_LIMIT
from worker.web.work_in_progress import RunningCampaign, ScheduledCampaign

WAITS_FOR = {"quota": "its account's quota", "window": "its hours"}


@dataclass(frozen=True)
class CampaignView:
    """A running campaign. Times are Unix seconds."""

    id: str
    name: str
    channel: str
    total: int
    sent: int
    failed: int
    running_seconds: float
    per_second: float | None  # None: not known yet
    ends_at: float | None  # expected at this rate, inside its quota and its hours
    resumes_at: float | None  # its provider deferred it until then
    prepared: bool  # its recipients are selected
    waits_for: str | None = None  # in words, what it waits for
    waits_until: float | None = None
    forecast: str = ""  # when it is expected to end, in words

    @property
    def done(self) -> int:
        return self.sent + self.failed


def campaign_view(campaign: RunningCampaign, now: float) -> CampaignView:
    """The campaign at ``now`` (Unix seconds), with its expected end."""
    waits = campaign.waits_for is not None and (campaign.waits_seconds or 0.0) > 0
    deferred = campaign.deferrals > 0 and campaign.next_batch_seconds > 0 and not waits
    ends_at = None
    if campaign.forecast and campaign.forecast.ends_at and not deferred:
        ends_at = campaign.forecast.ends_at.replace(tzinfo=UTC).timestamp()
    return CampaignView(
        id=campaign.id,
        name=one_line(campaign.name, TEXT_LIMIT) or "(no name)",
        channel=one_line(campaign.channel, TEXT_LIMIT),
        total=max(campaign.total, campaign.done),
        sent=campaign.sent,
        failed=campaign.failed,
        running_seconds=max(0.0, campaign.running_seconds),
        per_second=campaign.per_second,
        ends_at=ends_at,
        resumes_at=now + campaign.next_batch_seconds if deferred else None,
        prepared=campaign.prepared,
        waits_for=WAITS_FOR.get(campaign.waits_for or "") if waits else None,
        waits_until=now + (campaign.waits_seconds or 0.0) if waits else None,
        forecast=campaign.forecast.words if campaign.forecast and not deferred else "",
    )


@dataclass(frozen=True)
class ScheduledView:
    """A campaign that is due later. Times are Unix seconds."""

    id: str
    name: str
    channel: str
    total: int  # 0: its recipients are not selected yet
    due_at: float
    ends_at: float | None
    forecast: str


def scheduled_view(campaign: ScheduledCampaign, now: float) -> ScheduledView:
    """The campaign at ``now`` (Unix seconds)."""
    expected = campaign.forecast
    return ScheduledView(
        id=campaign.id,
        name=one_line(campaign.name, TEXT_LIMIT) or "(no name)",
        channel=one_line(campaign.channel, TEXT_LIMIT),
        total=campaign.total,
        due_at=now + campaign.due_seconds,
        ends_at=expected.ends_at.replace(tzinfo=UTC).timestamp() if expected and expected.ends_at else None,
        forecast=expected.words if expected else "",
    )


def failures_view(failures: CampaignFailures) -> CampaignFailures:
    """The failures of a campaign with texts that can be shown: they come from the CRM and from providers."""
    kinds = (
        replace(
            kind,
            replies=tuple(
                FrequentReply(one_line(each.text, TEXT_LIMIT) or "(none)", each.number) for each in kind.replies
            ),
        )
        for kind in failures.kinds
    )
    return replace(
        failures,
        name=one_line(failures.name, TEXT_LIMIT) or "(no name)",
        channel=one_line(failures.channel, TEXT_LIMIT),
        reason=one_line(without_other_addresses(failures.reason[: 2 * TEXT_LIMIT], None), TEXT_LIMIT),
        kinds=tuple(kinds),
    )
