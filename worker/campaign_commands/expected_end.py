"""What bounds a campaign, how fast it is sent, and when it is expected to end, as commands of bin/campaign say it."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from worker.campaign_commands.campaign_state import CampaignState
from worker.campaigns.forecast import NO_ZONE, Forecast, Rate, RemainingSends, forecast, planned_rate
from worker.campaigns.transport import Transport
from worker.providers.smtp import SmtpProvider
from worker.runtime.db import Database
from worker.runtime.settings import Settings
from worker.sending.quota import Quota, QuotaLedger, QuotaState
from worker.sending.whatsapp_limits import known_quotas


@dataclass(frozen=True, slots=True)
class AppliedLimit:
    """A setting that bounds the campaign, its value, and what it does."""

    name: str
    value: str
    effect: str


@dataclass(frozen=True, slots=True)
class ExpectedEnd:
    """``limits``: those of the account first."""

    limits: tuple[AppliedLimit, ...]
    rate: Rate
    forecast: Forecast


def expected_end(
    db: Database, settings: Settings, transport: Transport, state: CampaignState, recipients: int, recently_sent: int
) -> ExpectedEnd:
    """``recipients``: so many are left to send to; ``recently_sent``: so many were sent since ``measured_from``.

    A window is taken by the tenant's clock, also for WhatsApp, where the job goes by that of each recipient.
    """
    quota, window = quota_of(db, transport, state.tenant_id, state.now), settings.campaign_window
    quotas = QuotaLedger(db).states(quota, state.now) if quota else ()
    pause = settings.campaign_batch_delay_seconds / settings.campaign_batch_size
    rate = _measured(state, recently_sent) or planned_rate(transport.rate, pause, settings.campaign_concurrency)
    work = RemainingSends(
        recipients=recipients,
        rate=rate,
        starts_at=max(filter(None, [state.now, state.due_at])),
        retries=state.retries,
        quotas=quotas,
        window=window,
        zones=(state.zone,),
        zone=state.zone,
        obstacle=NO_ZONE if window and state.channel == "email" and not state.has_zone else "",
    )
    limits = (*_of_account(transport, quotas, state), *_of_campaign(settings))
    return ExpectedEnd(limits, rate, forecast(work, state.now))


def quota_of(db: Database, transport: Transport, tenant_id: str, now: datetime) -> Quota | None:
    """The quota of a campaign's account; that of a WhatsApp number as the job has read it in the last day."""
    if transport.number is None:
        return transport.quota
    return known_quotas(db, now).get(tenant_id)


def _measured(state: CampaignState, recently_sent: int) -> Rate | None:
    """None: nothing left lately, or it waits, so that what left says nothing about the rate."""
    if not (state.is_run and state.started_at and recently_sent) or state.is_waiting:
        return None
    return Rate(recently_sent / max((state.now - state.measured_from).total_seconds(), 1.0))


class _AccountWords(NamedTuple):
    """What a campaign leaves through, and the settings that bound it."""

    what: str
    rate_setting: str
    quota_setting: str
    counted: str = ""  # what its quota counts, and for whom, where that is not messages of all that leaves through it


def _words_of(transport: Transport) -> _AccountWords:
    if transport.gmail:
        return _AccountWords("one Gmail user", "GMAIL_RATE", "GMAIL_DAILY_LIMIT")
    if isinstance(transport.provider, SmtpProvider):
        return _AccountWords("all mail through SMTP_URL", "SMTP_RATE", "SMTP_DAILY_LIMIT")
    people = "people written to by campaigns from all numbers of the tenant"
    return _AccountWords("one phone id", "WHATSAPP_RATE", "WhatsApp's messaging limit", people)


def _of_account(transport: Transport, quotas: tuple[QuotaState, ...], state: CampaignState) -> Iterator[AppliedLimit]:
    account = _words_of(transport)
    if transport.rate:
        yield AppliedLimit(account.rate_setting, f"{transport.rate:g} a second", f"for {account.what}")
    for number, quota in enumerate(quotas):
        whose = account.counted or f"for {account.what}" if number == 0 else "for this tenant's campaigns, its share"
        left = f"{quota.left(state.now):,} left now"
        yield AppliedLimit(account.quota_setting, f"{quota.limit:,} in 24 hours", f"{whose}; {left}")


def _of_campaign(settings: Settings) -> Iterator[AppliedLimit]:
    if settings.campaign_batch_delay_seconds:
        per_second = settings.campaign_batch_size / settings.campaign_batch_delay_seconds
        yield AppliedLimit(
            "CAMPAIGN_BATCH_SIZE, CAMPAIGN_BATCH_DELAY",
            f"{settings.campaign_batch_size} and {settings.campaign_batch_delay_seconds:g} s",
            f"at most {per_second:g} a second for one campaign",
        )
    if settings.campaign_window:
        effect = "by the tenant's clock for e-mail, by the recipient's for WhatsApp"
        yield AppliedLimit("CAMPAIGN_WINDOW", str(settings.campaign_window), effect)
    yield AppliedLimit("MESSAGE_MAX_BYTES", f"{settings.message_max_bytes:,} bytes", "a larger message is not sent")
    effect = "so many refusals in a row with the same reply end the campaign"
    yield AppliedLimit("REFUSAL_BREAKER", str(settings.refusal_breaker), effect)
