"""What Google said about a user's grant while a batch was sent, written to the user's row."""

from datetime import UTC, datetime

from worker.campaigns.batch import Batch
from worker.providers.google_token import InvalidGrant
from worker.runtime.db import Database, queries


def keep_grant(db: Database, batch: Batch, now: datetime) -> None:
    """Saves a refreshed Gmail token, or clears the tokens of a grant that was revoked."""
    account, sql = batch.transport.gmail, queries("campaign")
    if account is None:
        return
    which = {"user_id": account.user_id, "tenant_id": account.tenant_id, "refresh_token": account.refresh_token}
    if isinstance(batch.rejection, InvalidGrant):
        db.execute(sql["clear_gmail"], now=now, **which)
    elif changed := account.token.take_changed():
        expiry = changed.expires_at.astimezone(UTC).replace(tzinfo=None)
        db.execute(sql["save_token"], token=changed.access_token, expiry=expiry, now=now, **which)
