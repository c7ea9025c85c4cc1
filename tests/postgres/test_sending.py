"""What all senders write: Google's word on a user's grant, opt-outs, and the CRM's outbox."""

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis

from sandbox import accounts
from sandbox.crm import Crm
from worker.messages import Accepted, EmailCopy
from worker.providers.google_token import RefreshedToken
from worker.runtime.counters import Counters
from worker.runtime.db import Database
from worker.sending.accounts import GmailAccount
from worker.sending.gmail_grants import update_grant
from worker.sending.outbox import OutboxEmail
from worker.sending.outcomes import Suppression
from worker.sending.suppression import SuppressionList, suppress

NOW = datetime(2026, 3, 10, 12)  # noqa: DTZ001 - UTC without a zone, like all times of the CRM
COLUMNS = ("gmailAccessToken", "gmailRefreshToken", "gmailTokenExpiry", "gmailScopes", "updatedAt")


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    with closing(Database(database_url, "test")) as made:
        yield made


class Token:
    """A token that was refreshed once, or not at all."""

    def __init__(self, changed: RefreshedToken | None) -> None:
        self._changed = changed

    def take_changed(self) -> RefreshedToken | None:
        changed, self._changed = self._changed, None
        return changed


def gmail_user(crm: Crm) -> tuple[str, str]:
    """A tenant, and a user of it who connected Gmail."""
    tenant = crm.add_tenant()
    user = crm.add_user(tenant, **accounts.gmail_columns("asha@gmail.example"))
    return tenant, user


def account(tenant: str, user: str, changed: RefreshedToken | None = None, **more: str) -> GmailAccount:
    refresh_token = more.get("refresh_token", accounts.GMAIL_REFRESH_TOKEN)
    return GmailAccount(None, Token(changed), user, tenant, refresh_token)  # type: ignore[arg-type]


def columns(crm: Crm, user: str) -> dict[str, Any]:
    names = ", ".join(f'"{name}"' for name in COLUMNS)
    return dict(zip(COLUMNS, crm.execute(f'SELECT {names} FROM "User" WHERE id = %s', (user,))[0], strict=True))


def test_a_refreshed_token_is_saved_once(crm: Crm, db: Database) -> None:
    """The new token and its expiry, in UTC; nothing is written when nothing is new."""
    tenant, user = gmail_user(crm)
    before = columns(crm, user)
    update_grant(db, account(tenant, user), NOW, revoked=False)
    assert columns(crm, user) == before
    refreshed = account(tenant, user, RefreshedToken("sandbox-new", NOW.replace(tzinfo=UTC) + timedelta(hours=1)))
    update_grant(db, refreshed, NOW, revoked=False)
    saved = {"gmailAccessToken": "sandbox-new", "gmailTokenExpiry": NOW + timedelta(hours=1), "updatedAt": NOW}
    assert columns(crm, user) == before | saved
    update_grant(db, refreshed, NOW + timedelta(days=1), revoked=False)
    assert columns(crm, user)["updatedAt"] == NOW


def test_a_revoked_grant_is_cleared(crm: Crm, db: Database) -> None:
    """Its tokens and scopes are removed, even where a refreshed token waits to be saved."""
    tenant, user = gmail_user(crm)
    changed = RefreshedToken("sandbox-new", NOW.replace(tzinfo=UTC))
    update_grant(db, account(tenant, user, changed), NOW, revoked=True)
    assert columns(crm, user) == dict.fromkeys(COLUMNS) | {"updatedAt": NOW}


@pytest.mark.parametrize("revoked", [False, True])
@pytest.mark.parametrize("other", ["tenant", "connection"])
def test_another_connection_is_left_alone(crm: Crm, db: Database, revoked: bool, other: str) -> None:
    """A connection that the user made again, or another tenant's user, is not changed."""
    tenant, user = gmail_user(crm)
    before = columns(crm, user)
    changed = RefreshedToken("sandbox-new", NOW.replace(tzinfo=UTC))
    if other == "tenant":
        stale = account(crm.add_tenant(), user, changed)
    else:
        stale = account(tenant, user, changed, refresh_token="sandbox-older")
    update_grant(db, stale, NOW, revoked=revoked)
    assert columns(crm, user) == before


@pytest.mark.parametrize(
    ("channel", "address", "stored"),
    [
        ("email", " Asha@Shop.example", "asha@shop.example"),
        ("whatsapp", "+919812345678", "919812345678"),
        ("call", "+442079460018", "442079460018"),
    ],
)
def test_suppressed_once(crm: Crm, db: Database, channel: str, address: str, stored: str) -> None:
    """An opt-out is stored in the one spelling that statements look for, and the first reason stays."""
    counters, among = Counters(redis.Redis(), "test"), SuppressionList("t", channel)
    for reason in ("STOP", "stop again"):
        suppress(db, counters, among, address, Suppression("provider"), reason=reason, code="21610")
    rows = crm.execute("SELECT tenant_id, channel, address, source, reason, code, until FROM worker.suppression")
    assert rows == [("t", channel, stored, "provider", "STOP", "21610", None)]
    assert crm.value("SELECT worker.address(%s, %s, %s)", channel, address, address) == stored


def test_suppressed_for_a_time(crm: Crm, db: Database) -> None:
    """A later end wins, and what is no address is left out."""
    counters, among = Counters(redis.Redis(), "test"), SuppressionList("t", "email")
    for days in (30, 10, 60):
        until = Suppression("bounce", NOW + timedelta(days=days))
        suppress(db, counters, among, "a@x.example", until, reason="550 5.2.1")
        suppress(db, counters, among, "nobody", until, reason="550 5.2.1")
    rows = crm.execute("SELECT address, source, until, code FROM worker.suppression")
    assert rows == [("a@x.example", "bounce", NOW + timedelta(days=60), None)]


def test_a_row_of_the_outbox() -> None:
    """It says who sent what to whom, about what, in whose outbox, and by which ids the provider knows it."""
    email = OutboxEmail(EmailCopy("a@x.example", "S", "text", "<p>"), "b@y.example", "Tenant", "e-1", "t-1", "u-1")
    assert email.record(Accepted("<1@x>", "g-1", "th-1"), NOW) == {
        "address": "b@y.example", "sender": "a@x.example", "subject": "S", "body": "text", "html": "<p>",
        "message_id": "<1@x>", "gmail_id": "g-1", "gmail_thread_id": "th-1", "entity_type": "Tenant",
        "entity_id": "e-1", "at": NOW, "tenant_id": "t-1", "user_id": "u-1",
    }  # fmt: skip
