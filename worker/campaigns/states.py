"""The states of a recipient that the worker writes. docs/states.md draws all states and who moves what."""

from enum import StrEnum


class RecipientState(StrEnum):
    """``"CampaignRecipient".status``."""

    PENDING = "pending"
    SENDING = "sending"  # a batch holds it, or a provider will be asked about it
    SENT = "sent"
    FAILED = "failed"


CAMPAIGN_STATUSES = (
    "draft",
    "scheduled",
    "running",
    "paused",
    "completed",
    "failed",
)  # of "Campaign", by the CRM too
