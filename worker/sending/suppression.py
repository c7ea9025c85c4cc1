"""Addresses that want no more messages or calls of a tenant."""

from datetime import datetime

from worker.runtime.db import Database, queries


def suppress(db: Database, *, tenant_id: str, channel: str, address: str, reason: str | None, now: datetime) -> None:
    """Remembers that somebody opted out.

    ``address``: an e-mail address, or a phone number with country code and plus sign. ``now``: UTC without a zone.
    """
    db.execute(
        queries("sending")["suppress"], tenant_id=tenant_id, channel=channel, address=address, reason=reason, now=now
    )
