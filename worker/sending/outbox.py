"""The CRM's outbox, the table "EmailLog": what is filed there of an e-mail that a provider accepted."""

from dataclasses import dataclass
from datetime import datetime

from worker.messages import Accepted, EmailCopy


@dataclass(frozen=True, slots=True)
class OutboxEmail:
    """An e-mail to be filed once it is accepted: what it says, what it is about, and in whose outbox it belongs."""

    copy: EmailCopy
    address: str
    entity_type: str
    entity_id: str
    tenant_id: str
    user_id: str

    def record(self, accepted: Accepted, at: datetime) -> dict[str, str | datetime | None]:
        """Its row, by the names that sql/email_log.sql reads; ``at`` is UTC without a zone."""
        return {
            "address": self.address,
            "sender": self.copy.sender,
            "subject": self.copy.subject,
            "body": self.copy.body,
            "html": self.copy.html,
            "message_id": accepted.message_id,
            "gmail_id": accepted.gmail_message_id,
            "gmail_thread_id": accepted.gmail_thread_id,
            "entity_type": self.entity_type,
            "entity_id": self.entity_id,
            "at": at,
            "tenant_id": self.tenant_id,
            "user_id": self.user_id,
        }
