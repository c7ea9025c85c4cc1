"""When running and scheduled campaigns are expected to end, for the status page and bin/status.

A running campaign goes on at the rate that was measured, a scheduled one as its settings let it; both inside the
quota of their account, as far as it is known here, and inside CAMPAIGN_WINDOW by the tenant's clock.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from worker.campaigns.forecast import (
    NO_ZONE,
    Forecast,
    LaterRetries,
    Rate,
    RemainingSends,
    forecast,
    planned_rate,
)
from worker.content.hours import USUAL_ZONE, tenant_zone
from worker.runtime.settings import Settings
from worker.sending.account_quotas import gmail_quota, smtp_quota, whatsapp_quota
from worker.sending.quota import HourUse, Quota, QuotaState, campaign_states


@dataclass(frozen=True)
class AccountUse:
    """What a campaign leaves through, and what was used of it in each hour that counts."""

    tenant_id: str
    timezone: str | None  # of the tenant
    kind: str  # smtp, gmail or whatsapp
    address: str  # of the user
    people: int | None  # whom WhatsApp lets the tenant write to; None: it is unknown
    is_shared: bool  # the CRM has other tenants
    used: tuple[HourUse, ...]
    used_by_tenant: tuple[HourUse, ...]

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "AccountUse":
        hours = [(datetime.fromisoformat(each["hour"]), each) for each in row["hours"]]
        return cls(
            tenant_id=row["tenant_id"],
            timezone=row["timezone"],
            kind=row["kind"],
            address=row["address"],
            people=row["people"],
            is_shared=row["is_shared"],
            used=tuple(HourUse(at, each["used"]) for at, each in hours),
            used_by_tenant=tuple(HourUse(at, each["used_by_tenant"]) for at, each in hours),
        )

    @property
    def has_zone(self) -> bool:
        """Whether the tenant's zone can be read."""
        return self._zone() is not None

    @property
    def zone(self) -> ZoneInfo:
        """The tenant's; the usual one where it cannot be read."""
        return self._zone() or ZoneInfo(USUAL_ZONE)

    def _zone(self) -> ZoneInfo | None:
        try:
            return tenant_zone(self.timezone)
        except ValueError:
            return None


class CampaignForecasts:
    """Forecasts with the settings of the campaign job. ``now``: UTC without a zone."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def running(
        self,
        recipients: int,
        per_second: float,
        account: AccountUse,
        now: datetime,
        wait_seconds: float,
        retries: Sequence[LaterRetries],
    ) -> Forecast:
        """Of a campaign that sends so many ``per_second``, and waits until then."""
        return self._forecast(recipients, Rate(per_second), account, now, wait_seconds, retries)

    def scheduled(
        self,
        recipients: int,
        account: AccountUse,
        now: datetime,
        due_seconds: float,
        retries: Sequence[LaterRetries] = (),
    ) -> Forecast:
        """Of a campaign that begins then, or goes on then and was not measured."""
        settings = self._settings
        limits = {"smtp": settings.smtp_rate, "gmail": settings.gmail_rate, "whatsapp": settings.whatsapp_rate}
        pause = settings.campaign_batch_delay_seconds / settings.campaign_batch_size
        rate = planned_rate(limits[account.kind], pause, settings.campaign_concurrency)
        return self._forecast(recipients, rate, account, now, due_seconds, retries)

    def _forecast(
        self,
        recipients: int,
        rate: Rate,
        account: AccountUse,
        now: datetime,
        wait_seconds: float,
        retries: Sequence[LaterRetries],
    ) -> Forecast:
        window = self._settings.campaign_window
        work = RemainingSends(
            recipients=recipients,
            rate=rate,
            starts_at=now + timedelta(seconds=max(0.0, wait_seconds)),
            retries=retries,
            window=window,
            zones=(account.zone,),
            quotas=self._quotas(account),
            zone=account.zone,
            obstacle=NO_ZONE if window and account.kind != "whatsapp" and not account.has_zone else "",
        )
        return forecast(work, now)

    def _quotas(self, account: AccountUse) -> tuple[QuotaState, ...]:
        quota = self._quota(account)
        if quota is None:
            return ()
        return campaign_states(quota, account.used, account.used_by_tenant, is_shared=account.is_shared)

    def _quota(self, account: AccountUse) -> Quota | None:
        if account.kind == "gmail":
            return gmail_quota(self._settings, account.tenant_id, account.address)
        if account.kind == "whatsapp":
            return whatsapp_quota(account.tenant_id, account.people) if account.people else None
        return smtp_quota(self._settings, "", account.tenant_id)
