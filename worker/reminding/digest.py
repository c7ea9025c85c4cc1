"""The content of a digest, as a row of worker.notice keeps it: written by the claim, read to send and settle it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from worker.notifications.notification import Notification


@dataclass(frozen=True, slots=True)
class DigestContent:
    """What one digest is made of; the statement ``claim`` adds the leads."""

    recipient_name: str  # '' when only an address is known
    user_id: str | None  # None: the recipient is a bare address
    check_interval_hours: float
    gmail: str | None  # the Gmail address it leaves through, which alone knows what became of it; None: another way
    template_id: str | None
    leads_count: int = 0
    leads: Sequence[Sequence[str | None]] = ()  # (name, e-mail, phone) of those that are listed

    @classmethod
    def of(cls, notification: Notification) -> "DigestContent":
        saved = notification.content
        return cls(
            recipient_name=saved["recipientName"],
            user_id=saved["userId"],
            check_interval_hours=saved["checkIntervalHours"],
            gmail=saved["gmail"],
            template_id=saved["templateId"],
            leads_count=saved["leadsCount"],
            leads=saved["leads"],
        )

    def as_json(self) -> dict[str, Any]:
        """Without the leads."""
        return {
            "recipientName": self.recipient_name,
            "userId": self.user_id,
            "checkIntervalHours": self.check_interval_hours,
            "gmail": self.gmail,
            "templateId": self.template_id,
        }
