"""Free mailbox providers, whose domains nobody else may send mail from.

Only the provider's own servers can sign for gmail.com or yahoo.com, so DMARC (RFC 7489) fails for mail from there
that leaves through another server: receivers refuse it (Yahoo and AOL ask them to), or file it as spam.
"""

import re

from worker.content.campaign import Sender

_ANY_COUNTRY = r"(?:com|net|[a-z]{2}|com?\.[a-z]{2})"
# a provider's mailboxes, and the names of its own servers
_PROVIDERS = (
    (r"gmail\.com|googlemail\.com", r"(?:.+\.)?(?:gmail|googlemail|google)\.com"),
    (
        rf"yahoo\.{_ANY_COUNTRY}|ymail\.com|rocketmail\.com|myyahoo\.com|aol\.com",
        rf"(?:.+\.)?(?:yahoo\.{_ANY_COUNTRY}|aol\.com)",
    ),
    (
        rf"outlook\.{_ANY_COUNTRY}|hotmail\.{_ANY_COUNTRY}|live\.(?:com|in|co\.uk|fr|nl)|msn\.com",
        r"(?:.+\.)?(?:outlook|office365|hotmail|live)\.com",
    ),
    (r"rediffmail\.com", r"(?:.+\.)?rediffmail\.com"),
    (r"icloud\.com|me\.com|mac\.com", r"(?:.+\.)?(?:icloud|me)\.com"),
    (r"zohomail\.(?:com|in|eu)", r"(?:.+\.)?zoho(?:mail)?\.(?:com|in|eu)"),
    (r"proton\.me|protonmail\.com|pm\.me", r"(?:.+\.)?(?:proton\.me|protonmail\.ch)"),
    (r"gmx\.(?:com|net|de|at|ch)|web\.de|mail\.com", r"(?:.+\.)?(?:gmx\.(?:com|net)|web\.de|mail\.com)"),
    (r"yandex\.(?:com|ru)|mail\.ru", r"(?:.+\.)?(?:yandex\.(?:com|ru)|mail\.ru)"),
    (r"qq\.com|163\.com|126\.com", r"(?:.+\.)?(?:qq|163|126)\.com"),
)
_MAILBOXES = tuple((re.compile(domains), re.compile(servers)) for domains, servers in _PROVIDERS)


def is_foreign_freemail(address: str, smtp_host: str) -> bool:
    """Whether a bare address belongs to a free provider, and the server that its e-mail leaves through does not."""
    domain, host = address.rpartition("@")[2].strip().lower().rstrip("."), smtp_host.lower().rstrip(".")
    return any(
        mailboxes.fullmatch(domain) is not None and servers.fullmatch(host) is None
        for mailboxes, servers in _MAILBOXES
    )


def aligned(sender: Sender, smtp_from: str | None, smtp_host: str) -> Sender:
    """``sender``; or in its name from ``smtp_from``, with its own address for replies, where DMARC would fail."""
    if smtp_from is None or not is_foreign_freemail(sender.email, smtp_host):
        return sender
    return Sender(sender.name, smtp_from, sender.reply_to or sender.email)
