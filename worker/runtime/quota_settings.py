"""The settings of quotas and paces: how many messages accounts may send."""

from dataclasses import dataclass

from worker.runtime.environment_variable import variable
from worker.runtime.setting_parsers import rate, whole_number

SENDERS = "campaign reminders trial web"  # web forecasts
MOST = 100_000_000  # messages a day


@dataclass(frozen=True, kw_only=True)
class QuotaSettings:
    """Fields of ``Settings``. All limits are for any 24 hours."""

    smtp_rate: float | None = variable(
        "SMTP_RATE",
        rate,
        None,
        "messages a second through SMTP_URL, over all processes and tenants; without it there is no pace",
        programs=SENDERS,
    )
    smtp_connections: int | None = variable(
        "SMTP_CONNECTIONS",
        whole_number(1, 10_000),
        None,
        "connections to SMTP_URL at the same time, over all processes and machines; without it there is no limit",
        programs="campaign reminders trial",
    )
    smtp_daily_limit: int | None = variable(
        "SMTP_DAILY_LIMIT",
        whole_number(1, MOST),
        None,
        "messages through SMTP_URL in any 24 hours, over all tenants; without it there is no limit",
        programs=SENDERS,
    )
    smtp_tenant_share: int = variable(
        "SMTP_TENANT_SHARE",
        whole_number(1, 100),
        "50",
        "per cent of SMTP_DAILY_LIMIT that one tenant's campaigns may use while the CRM has other tenants; 100: all",
        programs="campaign web",
    )
    gmail_daily_limit: int = variable(
        "GMAIL_DAILY_LIMIT",
        whole_number(1, MOST),
        "2000",
        "messages of one Gmail account in any 24 hours; at most 500 for addresses of gmail.com, as Google allows",
        programs="campaign reminders web",
    )
