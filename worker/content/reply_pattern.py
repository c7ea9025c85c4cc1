"""What is the same in the replies to many recipients: a reply without addresses, ids, numbers and host names."""

import re

LONGEST_PATTERN = 120  # characters
_ENHANCED = re.compile(r"\A\d{3}([ -]\d\.\d{1,3}\.\d{1,3})?\b")
_DIFFERS = re.compile(r"[\d@]|\w[.:]\w")  # in a word: a number, an id, an address, or the name of a host
_ADDRESS = re.compile(r"[^\s<>()\[\]\"',;:]+@[^\s<>()\[\]\"',;:]+")


def reply_pattern(reply: str, code: str) -> str:
    """``reply`` with an ellipsis for whatever differs, after the provider's ``code``: '550 5.7.1 … Relay denied'.

    Cut only then: what differs has another length in each reply.
    """
    words: list[str] = [code] if code else []
    for word in _ENHANCED.sub("", reply.lstrip()).split():
        shown = "…" if _DIFFERS.search(word) else word
        if shown != "…" or words[-1:] != ["…"]:
            words.append(shown)
    return " ".join(words)[:LONGEST_PATTERN]


def without_other_addresses(reply: str, own: str | None) -> str:
    """``reply`` without the e-mail addresses of anybody but its recipient."""
    kept = (own or "").lower()
    return _ADDRESS.sub(lambda found: found[0] if found[0].lower() == kept else "…", reply)
