"""Digests through Gmail: from which account, what became of those without an answer, and revoked grants."""

from collections.abc import Iterator
from datetime import timedelta

import psycopg2.extras
import pytest
from reminder_office import BOSS, NOON, ReminderOffice, offices

from sandbox import accounts
from sandbox.crm import Crm
from sandbox.world import World
from worker.sending.outcomes import ASK_AFTER_SECONDS


@pytest.fixture
def office(crm: Crm, world: World, database_url: str, redis_url: str) -> Iterator[ReminderOffice]:
    yield from offices(crm, world, database_url, redis_url)


def gmail_office(office: ReminderOffice) -> str:
    """A tenant whose administrator connected Gmail."""
    mail = accounts.mail_settings(client_secret=accounts.GOOGLE_CLIENT_SECRET)
    tenant = office.tenant({"recipientEmails": [BOSS]}, leads=2, mail=mail)
    columns = accounts.gmail_columns("asha@gmail.example") | {"gmailTokenExpiry": NOON + timedelta(hours=5)}
    names = ", ".join(f'"{name}" = %s' for name in columns)
    values = [psycopg2.extras.Json(each) if isinstance(each, list) else each for each in columns.values()]
    office.crm.execute(f'UPDATE "User" SET {names} WHERE id = %s', [*values, office.admin(tenant)])
    return tenant


def test_gmail(office: ReminderOffice) -> None:
    """Through the Gmail of the oldest administrator, from its address; a refreshed token is kept."""
    tenant = gmail_office(office)
    office.crm.execute('UPDATE "User" SET "gmailTokenExpiry" = %s', (NOON,))
    older = office.crm.add_user(tenant, createdAt=NOON - timedelta(days=900))  # no administrator
    assert office.worker().ended() == (1, 0, 0)
    (sent,) = office.world.deliveries("gmail")
    assert sent.account == "Chaiwala Traders <asha@gmail.example>"
    row = """SELECT "gmailAccessToken" = %s, "gmailTokenExpiry" > %s FROM "User" WHERE id = %s"""
    assert office.crm.execute(row, (sent.credential, NOON, office.admin(tenant))) == [(True, True)]
    filed = office.crm.execute('SELECT "gmailMessageId", "userId" FROM "EmailLog"')
    assert filed == [(sent.external_id, office.admin(tenant))]
    assert older


@pytest.mark.parametrize("arrived", [True, False])
def test_gmail_is_asked(office: ReminderOffice, arrived: bool) -> None:
    """Half a minute after a send without an answer Gmail says whether it has it; only if not it is made anew."""
    gmail_office(office)
    office.world.script("gmail", BOSS, action="cut-after", times=1)
    worker = office.worker()
    result = worker.tick()
    assert result.counts["unconfirmed"] == 0
    assert result.next_at == NOON + timedelta(seconds=ASK_AFTER_SECONDS)
    assert result.unfinished is False
    assert worker.ended() == (0, 0, 0)
    if not arrived:
        office.world.reset()
    office.clock.forward(seconds=ASK_AFTER_SECONDS)
    assert worker.ended() == (1, 0, 0)
    (sent,) = office.world.deliveries("gmail")
    assert office.one('SELECT "gmailMessageId" FROM "EmailLog"') == sent.external_id
    assert (office.notifications(), office.remembered()) == (0, 2)


@pytest.mark.parametrize("change", ["another account", "disconnected", "switched off", "revoked"])
def test_gmail_cannot_be_asked_any_more(office: ReminderOffice, change: str) -> None:
    """The account it was sent through is gone: it is unconfirmed, is not sent again, and no longer waits."""
    tenant = gmail_office(office)
    office.world.script("gmail", BOSS, action="cut-after", times=1)
    worker = office.worker()
    worker.tick()
    if change == "another account":
        office.crm.execute("""UPDATE "User" SET "googleEmail" = 'ravi@gmail.example'""")
    elif change == "disconnected":
        office.crm.execute('UPDATE "User" SET "gmailAccessToken" = NULL, "gmailRefreshToken" = NULL')
    elif change == "switched off":
        office.save(tenant, enabled=False)
    else:
        office.world.revoke(accounts.GMAIL_ACCESS_TOKEN)
        office.world.revoke(accounts.GMAIL_REFRESH_TOKEN)
    office.clock.forward(seconds=ASK_AFTER_SECONDS)
    assert worker.ended() == (0, 0, 1)
    assert (office.notifications(), office.remembered()) == (0, 2)
    assert office.world.total("gmail") == 1
    connected = office.one('SELECT "googleEmail" IS NOT NULL AND "gmailRefreshToken" IS NOT NULL FROM "User"')
    assert connected == (change not in ("disconnected", "revoked"))
    assert office.counted("unconfirmed_total") == {("email",): 1}


def test_gmail_defers_the_question(office: ReminderOffice) -> None:
    """It is asked again, ever more rarely, and given up after hours; then the recipient gets digests again."""
    gmail_office(office)
    office.world.script("gmail", BOSS, action="cut-after", times=1)
    worker = office.worker(GMAIL_API_URL="http://127.0.0.1:1")
    result = office.worker().tick()
    asked = []
    while office.notifications():
        assert result.next_at
        office.clock.now = result.next_at
        result = worker.tick()
        asked.append(office.clock())
    assert len(asked) == 12
    assert timedelta(hours=4) < office.clock() - NOON < timedelta(hours=12)
    assert office.remembered() == 2


def test_a_revoked_grant(office: ReminderOffice) -> None:
    """The five columns are cleared; at the next tick the digest leaves through SMTP."""
    gmail_office(office)
    office.world.revoke(accounts.GMAIL_ACCESS_TOKEN)
    office.world.revoke(accounts.GMAIL_REFRESH_TOKEN)
    worker = office.worker()
    assert worker.ended() == (0, 1, 0)
    names = ("gmailAccessToken", "gmailRefreshToken", "gmailTokenExpiry", "gmailConnectedAt", "gmailScopes")
    columns = ", ".join(f'"{name}"' for name in names)
    assert office.crm.execute(f'SELECT {columns} FROM "User"') == [(None,) * 5]
    assert worker.ended() == (1, 0, 0)
    assert office.arrived() == {BOSS: 1}
