"""What a campaign makes of one recipient: its message, and its row in the CRM's outbox."""

from dataclasses import dataclass
from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.message import EmailMessage

import pytest

from worker.content.campaign import EmailContent, Sender
from worker.content.campaign_texts import CampaignTexts
from worker.messages import Accepted

AT = datetime(2026, 3, 1, 12, 0, tzinfo=UTC).replace(tzinfo=None)


@dataclass(frozen=True)
class Recipient:
    id: str = "r1"
    name: str = "Asha"
    email: str | None = None
    phone: str | None = None


@pytest.mark.parametrize(
    ("written", "shown", "sent_to"),
    [
        ("\u00a0asha@x.example\t\r", "asha@x.example", "asha@x.example"),
        ("\ufeffinfo@bücher.example\u200b", "info@bücher.example", "info@xn--bcher-kva.example"),
    ],
)
def test_what_is_invisible_around_an_address_is_nowhere(written: str, shown: str, sent_to: str) -> None:
    """Neither in the message, nor in the outbox, which shows the address as its user knows it."""
    texts = CampaignTexts(tenant_id="t", id="c1", name="Diwali", channel="email", text="{{email}}, {{phone}}.")
    content = EmailContent(texts, Sender("Crm", "crm@crm.example"), None, None)
    recipient = Recipient(email=written, phone="\u202a98765\u2009")
    message = content.message(recipient, AT)
    row = content.outbox_row(recipient, Accepted("m1"), AT)
    assert message.to == sent_to
    parsed = message_from_bytes(message.content, _class=EmailMessage, policy=policy.default)
    assert parsed.get_content().strip() == f"{shown}, 98765."
    assert row is not None
    assert (row.address, row.body) == (shown, f"{shown}, 98765.")
