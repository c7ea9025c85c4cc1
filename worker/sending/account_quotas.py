"""How many messages the accounts of each kind may send in any 24 hours, and which part of it campaigns may use."""

from worker.runtime.quota_settings import QuotaSettings
from worker.sending.quota import Quota

PRIVATE_GMAIL = ("gmail.com", "googlemail.com")  # domains of accounts without Google Workspace
PRIVATE_GMAIL_LIMIT = 500  # messages in 24 hours: https://support.google.com/mail/answer/22839
FOR_CAMPAIGNS = 0.9  # of a WhatsApp limit; the rest is left to reminders, and to what the CRM sends itself


def smtp_quota(settings: QuotaSettings, host: str, tenant_id: str) -> Quota | None:
    """Of the operator's mail server; None: no limit is set."""
    limit = settings.smtp_daily_limit
    if not limit:
        return None
    return Quota("smtp", host, tenant_id, limit, max(1, limit * settings.smtp_tenant_share // 100))


def gmail_quota(settings: QuotaSettings, tenant_id: str, address: str) -> Quota:
    """Each tenant's for itself: what another tenant says about the same address must not use it up."""
    address, limit = address.lower(), settings.gmail_daily_limit
    if address.rpartition("@")[2] in PRIVATE_GMAIL:
        limit = min(limit, PRIVATE_GMAIL_LIMIT)
    return Quota("gmail", f"{tenant_id} {address}", tenant_id, limit)


def whatsapp_quota(tenant_id: str, people: int) -> Quota:
    """Of a tenant whose numbers may write to so many people. One account: the business portfolio."""
    kept_back = people - int(people * FOR_CAMPAIGNS)
    return Quota("whatsapp", tenant_id, tenant_id, people, kept_back=kept_back)
