"""The states of campaigns, recipients and calls, and every move the worker makes (drawn in docs/states.md)."""

from enum import StrEnum


class CampaignState(StrEnum):
    """``"Campaign".status``."""

    DRAFT = "draft"
    SCHEDULED = "scheduled"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"


class RecipientState(StrEnum):
    """``"CampaignRecipient".status``; 'sending' is the worker's own, for as long as it holds a row."""

    PENDING = "pending"
    SENDING = "sending"
    SENT = "sent"
    FAILED = "failed"
    DELIVERED = "delivered"
    OPENED = "opened"


class CallState(StrEnum):
    """``"CallQueue".status``."""

    PENDING = "pending"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


# What the worker itself does; 'draft', 'paused', 'delivered' and 'opened' are set by the CRM alone.
CAMPAIGN_MOVES = {
    (CampaignState.SCHEDULED, CampaignState.RUNNING),  # due
    (CampaignState.RUNNING, CampaignState.COMPLETED),  # nobody is left
    (CampaignState.RUNNING, CampaignState.FAILED),  # nothing configured, rejected, or every send failed
}
RECIPIENT_MOVES = {
    (RecipientState.PENDING, RecipientState.SENDING),  # claimed
    (RecipientState.PENDING, RecipientState.FAILED),  # the same address twice, or opted out
    (RecipientState.SENDING, RecipientState.SENT),  # accepted
    (RecipientState.SENDING, RecipientState.FAILED),  # refused, given up, or unconfirmed
    (RecipientState.SENDING, RecipientState.PENDING),  # put back or put off
}
CALL_MOVES = {
    (CallState.PENDING, CallState.PROCESSING),  # claimed
    (CallState.PENDING, CallState.FAILED),  # cannot be dialled, or given up
    (CallState.PROCESSING, CallState.COMPLETED),  # placed: Twilio has the call
    (CallState.PROCESSING, CallState.PENDING),  # not placed: again later
    (CallState.PROCESSING, CallState.FAILED),  # not placed and given up, or unconfirmed
}
