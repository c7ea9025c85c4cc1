"""Header fields that tell mail programs and providers what kind of message an e-mail is."""

import re

# RFC 3834 5: no answer by a machine, such as an out-of-office reply, is wanted
AUTO_GENERATED = (("Auto-Submitted", "auto-generated"),)

_LONGEST_LABEL = 63  # characters, as in a domain
_SENDER_ID = "worker"  # of Feedback-ID: who sends, the same in all messages


def list_fields(tenant_id: str, campaign_id: str, from_email: str) -> list[tuple[str, str]]:
    """The fields of a campaign's e-mails; ``from_email`` is a valid address.

    List-Id (RFC 2919): all campaigns of a tenant are one list. Feedback-ID: by its parts Google counts complaints
    (https://support.google.com/mail/answer/6254652).
    """
    tenant, campaign = _label(tenant_id), _label(campaign_id)
    domain = from_email.rpartition("@")[2].lower()
    return [
        ("List-Id", f"<{tenant}.campaigns.{domain}>"),
        ("Feedback-ID", f"{campaign}:{tenant}:email:{_SENDER_ID}"),
    ]


def _label(text: str) -> str:
    """An id with nothing in it that separates or ends a part."""
    return re.sub(r"[^A-Za-z0-9-]+", "-", text)[:_LONGEST_LABEL].strip("-") or "none"
