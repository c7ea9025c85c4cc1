"""What Google says about users' grants, written to the CRM: refreshed tokens are saved, revoked grants cleared."""

from datetime import UTC, datetime

from worker.runtime.db import Database, queries
from worker.sending.accounts import GmailAccount


def update_grant(db: Database, account: GmailAccount, now: datetime, *, revoked: bool) -> None:
    """Writes what is new since the last call. ``now``: UTC without a zone.

    A connection that the user made again in the meantime is left alone.
    """
    sql = queries("sending")
    connection = {"user_id": account.user_id, "tenant_id": account.tenant_id, "refresh_token": account.refresh_token}
    if revoked:
        db.execute(sql["clear_gmail"], **connection, now=now)
    elif changed := account.token.take_changed():
        expiry = changed.expires_at.astimezone(UTC).replace(tzinfo=None)
        db.execute(sql["save_token"], **connection, token=changed.access_token, expiry=expiry, now=now)
