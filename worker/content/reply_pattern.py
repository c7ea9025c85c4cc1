"""What is the same in the replies to many recipients: a reply without addresses, ids, numbers and host names."""

import re

LONGEST_PATTERN = 120  # characters
# so much of a reply is looked at: a journal keeps no more of it, and a successor must come to the same pattern
_LONGEST_REPLY = 250
_ENHANCED = re.compile(r"\A\d{3}([ -]\d\.\d{1,3}\.\d{1,3})?\b")
_DIFFERS = re.compile(r"(?:\S*[\d@]\S*|\S*\w[.:]\w\S*)(?:\s+(?:\S*[\d@]\S*|\S*\w[.:]\w\S*))*")
_ADDRESS = re.compile(r"[^\s<>()\[\]\"',;:]+@[^\s<>()\[\]\"',;:]+")


def reply_pattern(reply: str, code: str) -> str:
    """``reply`` with an ellipsis for whatever differs, after the provider's ``code``: '550 5.7.1 … Relay denied'."""
    text = _ENHANCED.sub("", " ".join(reply[:_LONGEST_REPLY].split()))
    return f"{code} {_DIFFERS.sub('…', text).strip()}".strip()[:LONGEST_PATTERN]


def without_other_addresses(reply: str, own: str | None) -> str:
    """``reply`` without the e-mail addresses of anybody but its recipient."""
    kept = (own or "").lower()
    return _ADDRESS.sub(lambda found: found[0] if found[0].lower() == kept else "…", reply)
