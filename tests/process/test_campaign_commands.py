"""bin/campaign check, test, list and show, as an operator types them: what they say is what the job then does."""

import html
import json
import re
import subprocess
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import psycopg2
import pytest
import redis
from books import Books
from web_process import OpenWeb
from workers import PROJECT, Start, wait_for

from sandbox.crm import Crm, utc_now
from sandbox.world import World
from worker.content.unsubscribe_token import UnsubscribeTokens

TESTER = "tester@office.example"
PUBLIC = {"PUBLIC_URL": "https://crm.example.in"}

Command = Callable[..., "Answer"]


class Answer:
    """What a command wrote, and its exit status."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        self.status, self.out, self.errors = done.returncode, done.stdout, done.stderr

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found


@pytest.fixture
def command(environment: Mapping[str, str]) -> Command:
    """Runs bin/campaign: ``command("check", campaign, SMTP_FROM="crm@mail.example")``."""

    def run(*arguments: str, **settings: str) -> Answer:
        done = subprocess.run(
            [PROJECT / "bin" / "campaign", *arguments],
            env={**environment, **PUBLIC, **settings},
            capture_output=True,
            text=True,
            check=False,
        )
        return Answer(done)

    return run


def everything(crm: Crm) -> list[tuple[Any, ...]]:
    """All rows of the CRM and the worker that a campaign has to do with."""
    tables = (
        '"Campaign"', '"CampaignRecipient"', '"CampaignLog"', "campaign_links", '"EmailLog"', "worker.campaign_run",
        "worker.campaign_batch", "worker.campaign_retry", "worker.failure", "worker.suppression", "worker.notice",
    )  # fmt: skip
    return [row for table in tables for row in crm.execute(f"SELECT x::text FROM {table} x ORDER BY 1")]


def read_only(database_url: str) -> str:
    """The same database, for sessions that cannot write."""
    return f"{database_url}?options={quote('-c default_transaction_read_only=on')}"


def messy(crm: Crm, channel: str = "email", **columns: Any) -> str:
    """A campaign of which ten recipients can be written to: four are duplicates, suppressed or no addresses."""
    crm.execute(
        "SELECT worker.suppress(%s, 'email', 'left@a.example', 'unsubscribed', 'unsubscribe'), "
        "worker.suppress(%s, 'whatsapp', '+919811111111', 'STOP', 'unsubscribe')",
        (crm.tenant_id, crm.tenant_id),
    )
    people: list[dict[str, Any]] = [
        {"recipientEmail": f"p{number}@a.example", "recipientPhone": f"+9198765432{number:02}"}
        for number in range(10)
    ]
    people += [
        {"recipientEmail": " P1@A.example", "recipientPhone": "98765 43201"},
        {"recipientEmail": "Left@a.example", "recipientPhone": "098111 11111"},
        {"recipientEmail": "@", "recipientPhone": "12"},
        {"recipientEmail": "no address", "recipientPhone": "none"},
    ]
    return crm.add_campaign(channel, recipients=people, **columns)


@pytest.mark.parametrize("channel", ["email", "whatsapp"])
def test_what_is_said_is_what_is_done(
    channel: str, crm: Crm, books: Books, start: Start, command: Command, database_url: str
) -> None:
    """A check cannot write, and its counts are those with which the campaign ends."""
    campaign = messy(crm, channel, scheduled_at=utc_now() + timedelta(days=1))
    before = everything(crm)
    answer = command("check", campaign, "--json", DATABASE_URL=read_only(database_url))
    assert answer.status == 1, answer.errors
    assert everything(crm) == before
    found = answer.json["recipients"]
    assert {name: found[name] for name in ("to_send", "duplicates", "suppressed", "unfit")} == {
        "to_send": 10, "duplicates": 1, "suppressed": 1, "unfit": 2,
    }  # fmt: skip
    assert found["countries"] == ({"IN": 10} if channel == "whatsapp" else {})
    assert "unfit-recipients" in {each["code"] for each in answer.json["problems"]}
    assert answer.json["forecast"]["words"].startswith("10 tomorrow") or "today" in answer.json["forecast"]["words"]

    crm.execute('UPDATE "Campaign" SET "scheduledAt" = %s', (utc_now(),))
    assert start("--once").wait() == 0
    assert crm.counts(campaign) == {"sent": 10, "failed": 4}
    kinds = dict(crm.execute("SELECT kind, count(*) FROM worker.failure GROUP BY 1"))
    assert kinds == {"address": 1, "suppressed": 1, "content": 2}
    answer = command("check", campaign)
    assert (answer.status, "It has ended" in answer.out) == (0 if channel == "email" else 1, True)
    assert "10 sent" in command("show", campaign).out
    assert f"2 content, 1 address, 1 suppressed: bin/campaign failures {campaign}" in command("show", campaign).out


@pytest.mark.parametrize("channel", ["email", "whatsapp"])
def test_a_target_is_looked_at_before_it_becomes_recipients(
    channel: str, crm: Crm, start: Start, command: Command, database_url: str
) -> None:
    """The people of the target are counted as the job then builds them; those of others are not among them."""
    for number in range(3):
        crm.add_lead(email=f"l{number}@a.example", phoneNormalized=f"+9198123456{number:02}")
    crm.add_lead(email=" L1@a.example", phoneNormalized="+919812345601")
    crm.add_lead(email="none", phone="n/a", phoneNormalized=None, whatsapp=None, whatsappNormalized=None)
    crm.add_lead(user_id=crm.add_user())
    crm.add_lead(tenant_id=crm.add_tenant("Other Traders"))
    campaign = crm.add_campaign(channel, targetType="leads")
    answer = command("check", campaign, "--json", DATABASE_URL=read_only(database_url))
    found = answer.json["recipients"]
    assert (found["from_target"], found["to_send"], found["duplicates"], found["without_address"]) == (True, 3, 1, 1)
    assert start("--once").wait() == 0
    assert crm.counts(campaign) == {"sent": 3}


def test_exit_statuses_and_words(crm: Crm, command: Command) -> None:
    """0: nothing is wrong, 1: warnings, 2: errors; the worst comes first, and each says what to do."""
    good = crm.add_campaign("email", recipients=3, status="draft")
    crm.execute("""UPDATE "Tenant" SET settings = '{}'""")
    answer = command("check", good)
    assert (answer.status, answer.errors) == (0, "")
    assert "Nothing is wrong with it." in answer.out
    assert "3 to send" in answer.out
    assert "ends today about" in answer.out

    crm.execute("""UPDATE "User" SET email = 'owner@gmail.com' WHERE id = %s""", (crm.user_id,))
    other = {"tenantId": crm.add_tenant("Other Traders")}
    bad = crm.add_campaign(
        "email", recipients=[{}, {"recipientName": ""}, other], subject="For {{name}} of {{company}}"
    )
    answer = command("check", bad)
    assert answer.status == 2
    problems = [line for line in answer.out.splitlines() if line.startswith(("ERROR", "WARNING"))]
    assert problems[0].startswith("ERROR    It is from owner@gmail.com, a free mailbox")
    assert "Set SMTP_FROM" in problems[0]
    assert [line.split()[0] for line in problems] == ["ERROR", "WARNING", "WARNING", "WARNING"]
    assert any("1 recipient of another tenant" in line for line in problems)
    assert any("1 recipient without a value for {{name}}" in line for line in problems)
    assert any("{{company}} is no placeholder" in line for line in problems)
    answer = command("check", bad, SMTP_FROM="crm@mail.example")
    assert answer.status == 1
    assert "<crm@mail.example>" in answer.out
    assert "Reply-To      owner@gmail.com" in answer.out

    target = crm.add_campaign("email", targetType="leads", targetFilters={"status": 7})
    answer = command("check", target)
    assert (answer.status, "targetFilters.status is not a list" in answer.out) == (2, True)
    answer = command("check", "no-such-campaign")
    assert (answer.status, answer.out) == (2, "")
    assert "There is no campaign with the id no-such-campaign" in answer.errors
    answer = command("check", "\udcff")  # a byte that is no UTF-8
    assert (answer.status, answer.out) == (2, "")
    assert answer.errors.startswith("An argument is not text in UTF-8")


def test_quotas_are_in_the_forecast(crm: Crm, command: Command) -> None:
    """What the account may still send in 24 hours bounds what is expected today."""
    campaign = crm.add_campaign("email", recipients=300)
    answer = command("check", campaign, "--json", SMTP_DAILY_LIMIT="100", SMTP_TENANT_SHARE="100", SMTP_RATE="50")
    assert answer.json["forecast"]["today"] == 100
    assert answer.json["forecast"]["words"].startswith("100 of 300 today, the rest from tomorrow")
    limits = {each["name"]: each["value"] for each in answer.json["limits"]}
    assert (limits["SMTP_DAILY_LIMIT"], limits["SMTP_RATE"]) == ("100 in 24 hours", "50 a second")


def test_a_test_message(crm: Crm, world: World, command: Command, environment: dict[str, str]) -> None:
    """It is marked, nobody's values are in it, nothing is written, and its links harm nobody but who gets it."""
    campaign = messy(
        crm, status="draft", useShortLinks=True, htmlContent=f'<a href="{{{{unsubscribe_url}}}}">{TESTER}</a>'
    )
    before = everything(crm)
    answer = command("test", campaign, "--to", TESTER, BOUNCE_ADDRESS="bounces@mail.example")
    assert (answer.status, answer.out) == (0, f"Sent to {TESTER}: the subject begins with [Test].\n")
    assert everything(crm) == before
    assert world.counts("smtp") == {TESTER: 1}
    message = world.email(TESTER)
    assert message["Subject"] == "[Test] Test Recipient, Diwali offers for you ☕"
    html = message.get_body(("html",)).get_content()  # type: ignore[union-attr]
    token = html.partition("https://crm.example.in/u/")[2].partition('"')[0]
    subscription = UnsubscribeTokens([environment["ENCRYPTION_KEY"]]).read(token)
    assert (subscription.tenant_id, subscription.address) == (crm.tenant_id, TESTER)
    assert message["List-Unsubscribe"] == f"<https://crm.example.in/u/{token}>"
    envelope = world.deliveries("smtp")[0].account
    assert envelope.startswith("bounces+n"), "a bounce is about the address, not about a recipient"


def test_a_test_message_that_may_not_be_sent(crm: Crm, world: World, command: Command) -> None:
    """The suppressed get none, whatever the spelling; nor does what is no address, or what the server refuses."""
    campaign = messy(crm)
    answer = command("test", campaign, "--to", "LEFT@a.example")
    assert answer.status == 1
    assert "LEFT@a.example is on the tenant's suppression list (unsubscribed)" in answer.errors
    assert "--to: not an e-mail address" in command("test", campaign, "--to", "+919876543210").errors
    assert "There is no campaign" in command("test", "none", "--to", TESTER).errors
    world.script("smtp", TESTER, stage="rcpt", status=550, text="5.1.1 no such user")
    answer = command("test", campaign, "--to", TESTER, SMTP_DAILY_LIMIT="1")
    assert (answer.status, "It was not sent: 550 5.1.1" in answer.errors) == (1, True)
    assert world.total("smtp") == 0
    assert crm.execute("SELECT count(*) FROM worker.suppression") == [(2,)]
    world.clear_script()
    assert command("test", campaign, "--to", TESTER, SMTP_DAILY_LIMIT="1").status == 0
    answer = command("test", campaign, "--to", TESTER, SMTP_DAILY_LIMIT="1")
    assert (answer.status, "the limit of the mail server, 1 in 24 hours, is used up." in answer.errors) == (1, True)


def test_who_unsubscribes_while_a_test_message_waits(
    crm: Crm, world: World, command: Command, environment: dict[str, str], redis_client: redis.Redis
) -> None:
    """It may wait a minute for the pace of its account: the list is looked at again before it leaves."""
    campaign = crm.add_campaign("email", recipients=1)
    limits = {"SMTP_RATE": "0.05", "SMTP_DAILY_LIMIT": "5"}
    assert command("test", campaign, "--to", "other@office.example", **limits).status == 0
    (key,) = redis_client.keys("pace:smtp:*")
    before = redis_client.get(key)
    waiting = subprocess.Popen(
        [PROJECT / "bin" / "campaign", "test", campaign, "--to", TESTER],
        env={**environment, **PUBLIC, **limits}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(lambda: redis_client.get(key) not in (before, None), "it has a token for later")
    crm.execute("SELECT worker.suppress(%s, 'email', %s, 'STOP', 'unsubscribe')", (crm.tenant_id, TESTER))
    _, errors = waiting.communicate(timeout=60)
    assert waiting.returncode == 1
    assert f"Nothing was sent: {TESTER} is on the tenant's suppression list" in errors
    assert world.counts("smtp") == {"other@office.example": 1}
    assert crm.value("SELECT sum(used) FROM worker.quota") == 1, "what did not leave is given back"


def test_a_test_message_by_whatsapp(crm: Crm, world: World, command: Command) -> None:
    """A text is marked; a template cannot be, which is said."""
    text = crm.add_campaign("whatsapp", textContent="Namaste {{name}}")
    assert command("test", text, "--to", "98765 43210", "--name", "Asha").status == 0
    template = crm.add_campaign(
        "whatsapp", whatsappMessageType="template", whatsappTemplateName="diwali", whatsappTemplateParams=["{{name}}"]
    )
    answer = command("test", template, "--to", "+919876543211")
    assert (answer.status, "template diwali, which cannot be marked as a test" in answer.out) == (0, True)
    assert "--to: not a phone number" in command("test", text, "--to", TESTER).errors
    assert "suppression list (STOP)" in (messy(crm) and command("test", text, "--to", "+919811111111").errors)
    first, second = world.deliveries("whatsapp")
    assert (first.address, second.address) == ("919876543210", "919876543211")
    assert json.loads(first.content)["text"]["body"] == "[Test] Namaste Asha"
    assert crm.execute('SELECT count(*) FROM "CampaignRecipient" WHERE status <> %s', ("pending",)) == [(0,)]


def test_list_and_show(crm: Crm, world: World, books: Books, start: Start, command: Command) -> None:
    """What is running comes first; a campaign says what it waits for, and when it is expected to end."""
    assert "There is no such campaign." in command("list").errors
    draft = crm.add_campaign("email", recipients=5, status="draft", name="A \x1b[31m draft")
    later = crm.add_campaign("whatsapp", recipients=2, scheduled_at=utc_now() + timedelta(days=2), name="Holi")
    sooner = crm.add_campaign("email", recipients=2, scheduled_at=utc_now() + timedelta(days=1), name="Onam")
    other = crm.add_campaign(tenant_id=crm.add_tenant("Other Traders"), status="draft", name="Theirs")
    world.script("smtp", stage="mail", status=451, text="4.3.2 later")
    running = crm.add_campaign("email", recipients=100, name="Diwali")
    worker = start()
    wait_for(lambda: crm.value("SELECT holds FROM worker.campaign_run"), "the campaign backs off")
    ids = [line.split()[0] for line in command("list").out.splitlines()[1:]]
    assert ids[:3] == [running, sooner, later]
    assert set(ids[3:]) == {draft, other}
    assert "\x1b" not in command("list").out
    lines = command("list", "--status", "draft,scheduled", "--tenant", crm.tenant_id).out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [sooner, later, draft]
    assert "more than 1" in command("list", "--limit", "1").errors
    assert "There is no such campaign." in command("list", "--tenant", crm.add_tenant("New Traders")).errors
    answer = command("list", "--tenant", "none")
    assert (answer.status, answer.out, answer.errors) == (1, "", "There is no tenant with the id none.\n")
    assert command("list", "--status", "gone").status == 2

    shown = command("show", running).out
    assert "'Diwali' (running, email)" in shown
    assert "100 pending" in shown
    assert "its provider deferred it" in shown
    assert "Forecast" in shown
    shown = command("show", later).out
    assert (utc_now() + timedelta(days=2)).strftime("%Y-%m-%d") in shown
    assert "assumed" in shown or "the rate of its account" in shown
    assert command("show", "none").status == 1
    assert worker.stop() == 0


def test_a_campaign_that_waits_for_its_quota(
    crm: Crm, start: Start, command: Command, environment: Mapping[str, str], open_web: OpenWeb
) -> None:
    """What it waits for, and when the rest goes: in bin/campaign show, bin/status and on the page alike."""
    limits = {"SMTP_DAILY_LIMIT": "30", "SMTP_TENANT_SHARE": "100"}
    campaign = crm.add_campaign("email", recipients=50)
    later = crm.add_campaign("email", recipients=40, scheduled_at=utc_now() + timedelta(minutes=5), name="Onam")
    worker = start(**limits)
    wait_for(lambda: crm.value("SELECT waits_for FROM worker.campaign_run") == "quota", "the campaign waits")
    shown = command("show", campaign, **limits).out
    assert "for the quota of its account" in shown
    assert "30 sent" in shown
    assert "as measured" not in shown  # what it sent before says nothing about when it goes on
    forecast = shown.partition("Forecast    ")[2].partition("\n")[0]
    assert re.match(r"20 (tomorrow|on \d+ \w+) from \d\d:30 \(Asia/Kolkata\)", forecast), forecast

    web = open_web(**limits)
    page = html.unescape(web.get("/").text)
    settings = {**environment, **limits}
    status = subprocess.run(
        [PROJECT / "bin" / "status", "--json"], env=settings, capture_output=True, text=True, check=False
    )
    seen = json.loads(status.stdout)
    assert seen["campaigns"][0]["forecast"] == forecast
    assert forecast in page
    (onam,) = seen["scheduled"]
    assert (onam["id"], onam["total"]) == (later, 40)
    assert re.match(r"40 from (tomorrow|\d+ \w+) \d\d:30 until", onam["forecast"]), onam["forecast"]
    assert onam["forecast"] in page
    assert worker.stop() == 0


def test_without_its_servers(command: Command, crm: Crm) -> None:
    """Redis is not needed for a look; a database that does not answer, or is not migrated, is said to be."""
    campaign = crm.add_campaign("email", recipients=1)
    assert command("check", campaign, REDIS_URL="redis://127.0.0.1:9").status == 0
    answer = command("check", campaign, DATABASE_URL="postgresql://crm@127.0.0.1:9/crm")
    assert (answer.status, answer.errors.startswith("PostgreSQL: ")) == (2, True)
    crm.execute("DELETE FROM worker.migration WHERE version = (SELECT max(version) FROM worker.migration)")
    answer = command("check", campaign)
    assert (answer.status, "run bin/migrate" in answer.errors) == (2, True)


def test_a_campaign_that_changes_meanwhile(
    crm: Crm, command: Command, second_connection: psycopg2.extensions.connection
) -> None:
    """A check waits for nobody: another transaction that changes the campaign holds nothing up."""
    campaign = crm.add_campaign("email", recipients=3)
    with second_connection.cursor() as cursor:
        cursor.execute('UPDATE "Campaign" SET name = %s', ("changed",))
        cursor.execute("""UPDATE "CampaignRecipient" SET status = 'sent'""")
        answer = command("check", campaign, "--json")
    assert (answer.status, answer.json["recipients"]["to_send"]) == (0, 3)


def test_nothing_that_the_crm_has_reaches_the_terminal_as_it_is(crm: Crm, command: Command) -> None:
    """Neither a name nor a word that only programs write: each could change the terminal's title or colours."""
    evil = "a\x1b[2J\x1b]0;owned\x07\r\x9b31m\u202ez"
    person = {"recipientName": evil, "recipientEmail": "p@a.example", "status": evil}
    words = {
        "name": evil,
        "subject": evil,
        "textContent": evil,
        "htmlContent": f"<a href='https://x/{evil}'>{evil}</a>",
    }
    campaign = crm.add_campaign(recipients=[person, {**person, "status": "pending"}], **words)
    for column in ("name", "channel", "status"):
        crm.execute(f'UPDATE "Campaign" SET {column} = %s', (evil,))
        for arguments in (("check", campaign), ("check", campaign, "--json"), ("show", campaign), ("list",)):
            answer = command(*arguments)
            assert answer.out.replace("\n", "").isprintable(), (column, arguments)
            assert answer.errors.replace("\n", "").isprintable(), (column, arguments)
