"""Which account an e-mail or a WhatsApp message leaves through, from what the CRM has stored."""

import math
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
import redis

from sandbox import accounts
from worker.content.campaign import Sender
from worker.errors import SettingsError, TransportMissing
from worker.runtime.settings import load
from worker.sending.accounts import (
    MOST_KEPT,
    EmailUser,
    SendingAccounts,
    evict_oldest,
    settings_object,
    settings_text,
)

NOW = datetime(2026, 1, 31, 12)  # noqa: DTZ001 - UTC without a zone, as the CRM writes it
ENVIRONMENT = {
    "DATABASE_URL": "postgresql://crm@127.0.0.1/crm",
    "REDIS_URL": "redis://127.0.0.1:6379",
    "SMTP_URL": "smtp://127.0.0.1:2525",
    "ENCRYPTION_KEY": accounts.ENCRYPTION_KEY,
}
OAUTH = accounts.mail_settings(client_secret=accounts.GOOGLE_CLIENT_SECRET)

USER = EmailUser(
    user_id="u-1",
    user_name="Asha Rao",
    user_email="asha@tenant.example",
    tenant_id="t-1",
    tenant_name="Chaiwala Traders",
    tenant_settings={},
)
CONNECTED = replace(
    USER,
    tenant_settings={"mail": OAUTH},
    google_email="asha@gmail.example",
    gmail_access_token="sandbox-access",
    gmail_refresh_token="sandbox-refresh",
    gmail_token_expiry=NOW,
)


def made(**environ: str | None) -> SendingAccounts:
    merged = {name: value for name, value in (ENVIRONMENT | environ).items() if value is not None}
    return SendingAccounts(load(merged, "reminders"), redis.Redis(port=1), lambda: NOW, 2)


@pytest.fixture
def sending() -> Iterator[SendingAccounts]:
    with closing(made()) as opened:
        yield opened


def smtp_settings(**smtp: Any) -> dict[str, Any]:
    return {"mail": {"smtp": smtp}}


@pytest.mark.parametrize(
    ("settings", "sender"),
    [
        ({}, Sender("Asha Rao", "asha@tenant.example", None)),
        (
            smtp_settings(fromName=" Chai ", fromEmail="hi@chai.example", replyTo="re@chai.example"),
            Sender("Chai", "hi@chai.example", "re@chai.example"),
        ),
        (smtp_settings(fromName=7, fromEmail="", replyTo=None), Sender("Asha Rao", "asha@tenant.example", None)),
        ("not an object", Sender("Asha Rao", "asha@tenant.example", None)),
        ({"mail": ["smtp"]}, Sender("Asha Rao", "asha@tenant.example", None)),
    ],
)
def test_smtp(sending: SendingAccounts, settings: Any, sender: Sender) -> None:
    """Through SMTP_URL, from the tenant's name and address, else the user's; broken settings count as missing."""
    account = sending.email(replace(USER, tenant_settings=settings))
    assert account.sender == sender
    assert account.provider is sending.smtp(None).provider
    assert (account.gmail, account.pace.rate_per_second) == (None, math.inf)
    assert account.pace.key == "pace:smtp:127.0.0.1"


def test_a_nameless_user(sending: SendingAccounts) -> None:
    """Without a user it is from the tenant's name and address; without that address there is no way to send."""
    nobody = replace(USER, user_id=None, user_name=None, user_email=None)
    account = sending.email(replace(nobody, tenant_settings=smtp_settings(fromEmail="hi@chai.example")))
    assert account.sender == Sender("Chaiwala Traders", "hi@chai.example", None)
    with pytest.raises(TransportMissing, match=r"no active user, and no mail\.smtp\.fromEmail"):
        sending.email(nobody)


FREE = replace(USER, user_email="asha@gmail.com")


@pytest.mark.parametrize(
    ("user", "settings", "sender"),
    [
        (FREE, {}, Sender("Asha Rao", "crm@mail.example", "asha@gmail.com")),
        (FREE, smtp_settings(replyTo="re@chai.example"), Sender("Asha Rao", "crm@mail.example", "re@chai.example")),
        (FREE, smtp_settings(fromEmail="hi@chai.example"), Sender("Asha Rao", "hi@chai.example", None)),
        (USER, {}, Sender("Asha Rao", "asha@tenant.example", None)),
        (
            USER,
            smtp_settings(fromName="Chai", fromEmail="chai@Yahoo.co.in"),
            Sender("Chai", "crm@mail.example", "chai@Yahoo.co.in"),
        ),
        (
            replace(USER, user_id=None, user_name=None, user_email=None),
            {},
            Sender("Chaiwala Traders", "crm@mail.example", None),
        ),
    ],
)
def test_smtp_from(user: EmailUser, settings: Any, sender: Sender) -> None:
    """With SMTP_FROM, e-mails of free mailboxes are from there, with replies to their user; others stay the same."""
    with closing(made(SMTP_FROM="crm@mail.example")) as sending:
        assert sending.email(replace(user, tenant_settings=settings)).sender == sender


def test_without_smtp_from(sending: SendingAccounts) -> None:
    """Without it, and through the provider's own server, an e-mail is from the user's address, whichever it is."""
    assert sending.email(FREE).sender == Sender("Asha Rao", "asha@gmail.com", None)
    own = made(SMTP_FROM="crm@mail.example", SMTP_URL="smtp://u:p@smtp.gmail.com")
    with closing(own):
        assert own.email(FREE).sender == Sender("Asha Rao", "asha@gmail.com", None)


def test_gmail(sending: SendingAccounts) -> None:
    """Through the user's Gmail where it is connected; the account is kept until it is connected again."""
    account = sending.email(CONNECTED)
    assert account.sender == Sender("Chaiwala Traders", "asha@gmail.example", "hello@chaiwala.example")
    assert account.gmail
    assert (account.gmail.user_id, account.gmail.tenant_id) == ("u-1", "t-1")
    assert account.pace
    assert account.pace.key == "pace:gmail:u-1"
    assert sending.email(replace(CONNECTED, gmail_access_token="sandbox-newer")).gmail is account.gmail
    again = sending.email(replace(CONNECTED, gmail_refresh_token="sandbox-other"))
    assert again.gmail is not account.gmail


@pytest.mark.parametrize(
    "missing",
    [
        {"gmail_access_token": None},
        {"gmail_refresh_token": ""},
        {"tenant_settings": {"mail": {"oauth": {}}}},
        {"tenant_settings": {"mail": {"oauth": "yes"}}},
        {"user_id": None},
    ],
    ids=str,
)
def test_not_connected(sending: SendingAccounts, missing: dict[str, Any]) -> None:
    """Where a part of the connection is missing the e-mail leaves through SMTP_URL."""
    user = replace(CONNECTED, **missing)
    assert user.gmail_connection() is None
    assert sending.email(user).gmail is None


def test_a_connection() -> None:
    """It is complete, falls back to the user's own address, and does not show its secrets."""
    connection = replace(CONNECTED, google_email=None).gmail_connection()
    assert connection
    assert connection.address == "asha@tenant.example"
    assert connection.client_id == accounts.GOOGLE_CLIENT_ID
    for shown in (repr(connection), repr(CONNECTED)):
        for secret in ("sandbox-access", "sandbox-refresh", OAUTH["oauth"]["clientSecret"]):
            assert secret not in shown


@pytest.mark.parametrize(
    ("environ", "secret", "reason"),
    [({"ENCRYPTION_KEY": None}, None, "set ENCRYPTION_KEY"), ({}, "not encrypted", r"mail\.oauth\.clientSecret")],
)
def test_gmail_cannot_be_used(environ: dict[str, str | None], secret: str | None, reason: str) -> None:
    """A client secret that cannot be decrypted is an error that says what to do."""
    oauth = OAUTH["oauth"] | ({"clientSecret": secret} if secret else {})
    user = replace(CONNECTED, tenant_settings={"mail": {"oauth": oauth}})
    with closing(made(**environ)) as sending, pytest.raises(TransportMissing, match=reason):
        sending.email(user)


def test_without_smtp() -> None:
    """Without SMTP_URL only Gmail is left; an SMTP_URL that cannot be used is an error at the start."""
    with closing(made(SMTP_URL=None)) as sending:
        assert sending.email(CONNECTED).gmail
        with pytest.raises(TransportMissing, match="let the operator set SMTP_URL"):
            sending.email(USER)
    with pytest.raises(SettingsError, match="SMTP_URL"):
        made(SMTP_URL="smtp://user:s3cret@127.0.0.1:99999")


def test_whatsapp(sending: SendingAccounts) -> None:
    """Through the tenant's phone id, each with a pace of its own."""
    account = sending.whatsapp({"whatsapp": {"token": "sandbox-x", "phoneId": 10555}})
    assert account.pace.key == "pace:whatsapp:10555"
    for broken in (
        None,
        {},
        {"whatsapp": "yes"},
        {"whatsapp": {"token": "x"}},
        {"whatsapp": {"token": 5, "phoneId": 1}},
    ):
        with pytest.raises(TransportMissing, match="WhatsApp is not configured"):
            sending.whatsapp(broken)


def test_settings_that_may_hold_anything() -> None:
    """Whatever JSON holds, an object or a string is found or missing."""
    assert settings_object({"mail": {"smtp": {}}}, "mail") == {"smtp": {}}
    for broken in (None, 5, "mail", ["mail"], {}, {"mail": None}, {"mail": [1]}):
        assert settings_object(broken, "mail") == {}
    assert settings_text({"fromName": " Chai "}, "fromName") == "Chai"
    for missing in ({}, {"fromName": " "}, {"fromName": 5}, {"fromName": None}):
        assert settings_text(missing, "fromName") is None


def test_evict_oldest() -> None:
    """What was used last stays longest."""
    kept = OrderedDict.fromkeys("abc", 1)
    evict_oldest(kept, "a", 3)
    assert list(kept) == ["b", "c", "a"]
    kept["d"] = 1
    evict_oldest(kept, "d", 2)
    assert list(kept) == ["a", "d"]


def test_accounts_are_not_kept_without_end(sending: SendingAccounts) -> None:
    """With more accounts than are kept, the one that was used least recently is made again."""
    first, second = sending.email(CONNECTED).gmail, sending.email(replace(CONNECTED, user_id="u-2")).gmail
    for number in range(MOST_KEPT - 1):
        sending.email(replace(CONNECTED, user_id=f"more-{number}"))
        assert sending.email(CONNECTED).gmail is first
    assert sending.email(replace(CONNECTED, user_id="u-2")).gmail is not second
