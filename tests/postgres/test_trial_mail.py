"""The e-mails of bin/trial: each sent once, from whom and about what; no suspension depends on them."""

import logging
import secrets
import socket
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import psycopg2
import pytest
from trial_office import NOW, OWNER, TrialOffice, TrialWorker, opened

from sandbox.crm import Crm
from sandbox.world import World
from worker.notifications.claims import NotificationClaims
from worker.runtime.process_token import new_token

DEADLINE_SECONDS = 60.0


@pytest.fixture
def office(crm: Crm, world: World, database_url: str, redis_url: str) -> Iterator[TrialOffice]:
    with opened(crm, world, database_url, redis_url) as made:
        yield made


def warnings(caplog: pytest.LogCaptureFixture) -> list[tuple[str, Any]]:
    return [(each.getMessage(), each.args) for each in caplog.records if each.levelno >= logging.WARNING]


def outbox(office: TrialOffice) -> list[tuple[Any, ...]]:
    columns = '"to", "from", subject, status, "entityType", "entityId", "tenantId", "userId", "messageId"'
    return office.crm.execute(f'SELECT {columns} FROM "EmailLog" ORDER BY "tenantId"')


def body(office: TrialOffice, address: str, kind: str = "plain") -> str:
    part = office.world.email(address).get_body((kind,))
    assert part is not None
    return str(part.get_content())


def test_who_is_notified(office: TrialOffice) -> None:
    """The contact gets an e-mail from the operator, which is filed; the owner one about all, which is not."""
    tenant = office.tenant(name="Chaiwala & Sons", users=2)
    users = office.crm.execute('SELECT id FROM "User" WHERE "tenantId" = %s ORDER BY "createdAt", id', (tenant,))
    worker = office.worker()
    assert worker.tick().counts["told"] == 2
    contact = office.contact(tenant)
    assert office.mails() == {contact: 1, OWNER: 1}
    message = office.world.email(contact)
    assert message["From"] == f"Bharat CRM <{OWNER}>"
    assert "Chaiwala & Sons (chaiwala-sons-" in body(office, contact)
    assert "31 January 2026, 11:00 UTC" in body(office, contact)
    assert "Chaiwala &amp; Sons" in body(office, contact, "html")
    assert f"- Chaiwala & Sons (chaiwala-sons-0), {contact}, ended" in body(office, OWNER)
    subject = "Your Bharat CRM trial has ended"
    filed = ([contact], OWNER, subject, "sent", "Tenant", tenant, tenant, users[0][0], message["Message-ID"])
    assert outbox(office) == [filed]
    texts = office.crm.execute('SELECT body, "htmlBody", "sentAt" FROM "EmailLog"')[0]
    assert "Chaiwala & Sons" in texts[0]
    assert "Chaiwala &amp; Sons" in texts[1]
    assert office.waiting() == 0
    counted = office.counted(worker)
    assert counted["messages_total email sent"] == 2
    assert "messages_total email failed" not in counted


@pytest.mark.parametrize(
    ("users", "writer"),
    [
        ([("AGENT", 1), ("ADMIN", 3), ("ADMIN", 2), ("MANAGER", 0)], 2),
        ([("VIEWER", 2), ("AGENT", 1)], 1),
        ([], None),
    ],
)
def test_in_whose_outbox(office: TrialOffice, users: list[tuple[str, int]], writer: int | None) -> None:
    """The oldest administrator's, else the oldest user's, active or not; without any user there is no row."""
    tenant = office.tenant(users=0)
    ids = [
        office.crm.add_user(tenant, role=role, createdAt=NOW - timedelta(days=100 - age), isActive=bool(age % 2))
        for role, age in users
    ]
    assert office.worker().tick().counts["told"] == 2
    assert [row[7] for row in outbox(office)] == ([] if writer is None else [ids[writer]])


def test_one_summary_a_tick(office: TrialOffice) -> None:
    """The owner gets one e-mail about all tenants of a tick, and none when there was nothing."""
    office.many(250, users=0)
    worker = office.worker(COMPANY_NAME="Chai ☕ CRM")
    assert worker.tick().counts["told"] == 251
    assert office.mails()[OWNER] == 1
    assert "and 50 more" in body(office, OWNER)
    assert office.world.email(OWNER)["Subject"] == "Chai ☕ CRM: 250 trials suspended"
    worker.tick()
    assert office.mails()[OWNER] == 1


def test_more_than_a_tick_can_send(office: TrialOffice, monkeypatch: pytest.MonkeyPatch) -> None:
    """When sending takes long the tick ends, so that others are suspended; the next tick goes on, nothing twice."""
    monkeypatch.setattr("worker.trial.SENDING_SECONDS", 0.05)
    office.many(300, users=0)
    worker = office.worker()
    result, ticks = worker.tick(), 1
    assert result.next_at == NOW + timedelta(seconds=1)
    while result.unfinished:
        assert ticks < 300
        result, ticks = worker.tick(), ticks + 1
    assert ticks > 1
    assert office.world.duplicates("smtp") == {}
    assert len(office.mails()) == 301


@pytest.mark.parametrize("missing", ["OWNER_EMAIL", "SMTP_URL"])
def test_nothing_can_be_sent(office: TrialOffice, missing: str, caplog: pytest.LogCaptureFixture) -> None:
    """Trials are suspended all the same; that is logged once, and the e-mails are sent when they can be."""
    tenant = office.tenant()
    worker = office.worker(**{missing: None})
    for _ in range(3):
        result = worker.tick()
        assert result.next_at is None
        office.clock.pass_by(hours=1)
    logged = [each for each in warnings(caplog) if "cannot be sent" in each[0]]
    assert [args for _, args in logged] == [{"set": missing}]
    assert office.status(tenant) == "SUSPENDED"
    assert office.mails() == {}
    assert office.worker().tick().counts["told"] == (2 if missing == "SMTP_URL" else 1)
    assert office.mails()[office.contact(tenant)] == 1


def test_old_news(office: TrialOffice, caplog: pytest.LogCaptureFixture) -> None:
    """What could not be sent for 7 days is dropped, which is logged; what is a little younger is still sent."""
    old = office.tenant()
    without = office.worker(SMTP_URL=None)
    without.tick()
    office.clock.pass_by(minutes=1)
    young = office.tenant()
    without.tick()
    office.clock.pass_by(days=6, hours=23, minutes=59, seconds=30)
    assert office.worker().tick().counts["told"] == 2
    assert set(office.mails()) == {office.contact(young), OWNER}
    assert office.contact(old) not in office.mails()
    assert ("notifications about trials dropped: they waited for 7 days", {"mails": 2}) in warnings(caplog)


def test_news_that_is_no_longer_true(office: TrialOffice) -> None:
    """A tenant that was reactivated before it could be notified gets no e-mail."""
    tenant = office.tenant()
    office.worker(SMTP_URL=None).tick()
    office.crm.execute("""UPDATE "Tenant" SET status = 'ACTIVE', "subscriptionEnd" = NULL""")
    assert office.worker().tick().counts["told"] == 1
    assert office.mails() == {OWNER: 1}
    assert office.status(tenant) == "ACTIVE"


@pytest.mark.parametrize("held", [False, True])
def test_suspended_again_while_the_mail_waits(office: TrialOffice, held: bool) -> None:
    """The contact gets one e-mail, about the newer end; one that is just being sent stays as it is. Nothing fails."""
    tenant = office.tenant()
    without = office.worker(SMTP_URL=None)
    without.tick()
    if held:
        office.crm.execute("UPDATE worker.notice SET holder = 'elsewhere:1:x', handed_over = true")
    statement = """UPDATE "Tenant" SET status = 'ACTIVE', "subscriptionEnd" = %s"""
    office.crm.execute(statement, (NOW + timedelta(hours=5),))
    office.clock.pass_by(hours=6)
    assert without.tick().counts["suspended"] == 1
    assert office.status(tenant) == "SUSPENDED"
    mine = "SELECT content ->> 'ended_at' FROM worker.notice WHERE tenant_id = %s"
    ends = [end for (end,) in office.crm.execute(mine, (tenant,))]
    assert ends == ["2026-01-31T11:00:07" if held else "2026-01-31T17:00:07"]


@pytest.mark.parametrize(
    "address",
    [
        "",
        "asha",
        "asha at chai.example",
        "a@b@c.in",
        secrets.token_hex(4_000) + "@chai.example",
        "a@c.in\r\nBcc: b@c.in",
    ],
)
def test_a_contact_that_is_no_address(office: TrialOffice, address: str, caplog: pytest.LogCaptureFixture) -> None:
    """The suspension stands, the e-mail is given up with a line that shows no address, and all others are sent."""
    caplog.set_level(logging.INFO)
    odd, plain = office.tenant(contactEmail=address), office.tenant()
    worker = office.worker()
    assert worker.tick().counts == {"suspended": 2, "users": 2, "told": 2, "failed": 1}
    assert [office.status(each) for each in (odd, plain)] == ["SUSPENDED"] * 2
    assert set(office.mails()) == {office.contact(plain), OWNER}
    (line,) = [args for message, args in warnings(caplog) if "given up" in message]
    assert (line["tenant"], line["outcome"]) == (odd, "refused")
    assert "@" not in str([record.args for record in caplog.records])
    assert office.counted(worker)["messages_total email failed"] == 1
    assert office.waiting() == 0


def test_refused(office: TrialOffice, caplog: pytest.LogCaptureFixture) -> None:
    """An address that the server does not know (550) is given up at once, and its reason is logged without it."""
    tenant = office.tenant()
    contact = office.contact(tenant)
    office.world.script("smtp", contact, status=550, text=f"<{contact}> no such user")
    assert office.worker().tick().counts == {"suspended": 1, "users": 1, "told": 1, "failed": 1}
    (line,) = [args for message, args in warnings(caplog) if "given up" in message]
    assert "no such user" in line["reason"]
    assert "@" not in str(line)
    assert office.waiting() == 0
    assert outbox(office) == []


def test_no_such_mailbox(office: TrialOffice) -> None:
    """A hard bounce puts the address on the tenant's list."""
    tenant = office.tenant()
    contact = office.contact(tenant)
    office.world.script("smtp", contact, status=550, text="5.1.1 no such user")
    assert office.worker().tick().counts["failed"] == 1
    listed = office.crm.execute("SELECT tenant_id, channel, address, source FROM worker.suppression")
    assert listed == [(tenant, "email", contact, "bounce")]


def test_deferred(office: TrialOffice) -> None:
    """A server that is busy is tried again after 1, 2, 4 ... minutes, at most 6 hours, and given up at the 12th."""
    tenant = office.tenant()
    office.world.script("smtp", office.contact(tenant), status=450)
    worker = office.worker()
    result = worker.tick()
    pauses = []
    while result.next_at:
        pauses.append(round((result.next_at - office.clock()) / timedelta(minutes=1), 3))
        office.clock.now = result.next_at
        result = worker.tick()
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 128, 256, 360, 360]
    assert result.counts["failed"] == 1
    assert len(office.world.refusals("smtp", office.contact(tenant))) == 12
    assert (office.waiting(), office.mails()) == (0, {OWNER: 1})


def test_nothing_is_sent_early(office: TrialOffice) -> None:
    """An e-mail that was deferred is not tried by a tick before it is due."""
    tenant = office.tenant()
    office.world.script("smtp", office.contact(tenant), status=450, times=1)
    worker = office.worker()
    worker.tick()
    office.clock.pass_by(seconds=59)
    result = worker.tick()
    assert (result.counts["told"], result.unfinished) == (0, False)
    office.clock.pass_by(seconds=1, milliseconds=1)
    assert worker.tick().counts["told"] == 1
    assert office.world.duplicates("smtp") == {}


def test_the_mail_server_is_down(office: TrialOffice) -> None:
    """Trials are suspended, and everybody gets one e-mail when it is back."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    tenants = [office.tenant() for _ in range(20)]
    down = office.worker(SMTP_URL=f"smtp://127.0.0.1:{port}")
    assert down.tick().counts == {"suspended": 20, "users": 20, "told": 0, "failed": 0}
    assert {office.status(each) for each in tenants} == {"SUSPENDED"}
    assert office.waiting() == 21
    later = office.tenant()
    office.clock.pass_by(minutes=1)
    assert down.tick().counts["suspended"] == 1
    office.clock.pass_by(minutes=10)
    assert office.worker().tick().counts["told"] == 23
    mails = office.mails()
    assert mails.pop(OWNER) == 2
    assert mails == {office.contact(each): 1 for each in [*tenants, later]}


@pytest.mark.parametrize(("sends", "mails", "counts"), [("fail", 1, (0, 1)), ("resend", 2, (1, 0))])
def test_without_an_answer(
    office: TrialOffice, sends: str, mails: int, counts: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    """An e-mail whose answer never came is given up with a warning; UNCONFIRMED_SENDS=resend sends it again later."""
    tenant = office.tenant()
    office.world.script("smtp", office.contact(tenant), "cut-after", times=1)
    worker = office.worker(UNCONFIRMED_SENDS=sends)
    first = worker.tick().counts
    office.clock.pass_by(minutes=1, seconds=1)
    second = worker.tick().counts
    assert (first["told"] + second["told"], first["failed"] + second["failed"]) == (1 + counts[0], counts[1])
    assert office.mails() == {office.contact(tenant): mails, OWNER: 1}
    assert office.waiting() == 0
    assert office.counted(worker).get("unconfirmed_total email", 0) == counts[1]
    outcomes = [args["outcome"] for message, args in warnings(caplog) if "given up" in message]
    assert outcomes == ["unconfirmed"] * counts[1]


def left_by_a_dead_worker(office: TrialOffice, handed_over: bool) -> str:
    """The tenant whose e-mail a process of this machine had claimed when it was killed."""
    tenant = office.tenant()
    office.worker(SMTP_URL=None).tick()
    host, _, random = new_token().split(":")
    holder = f"{host}:2147483647:{random}"
    office.crm.execute(
        "UPDATE worker.notice SET holder = %s, handed_over = %s WHERE tenant_id = %s", (holder, handed_over, tenant)
    )
    return tenant


def test_a_dead_workers_claim(office: TrialOffice) -> None:
    """What it had claimed and not handed over is sent at once."""
    tenant = left_by_a_dead_worker(office, handed_over=False)
    assert office.worker().tick().counts["told"] == 2
    assert office.mails() == {office.contact(tenant): 1, OWNER: 1}


@pytest.mark.parametrize(("sends", "told", "failed"), [("fail", 0, 1), ("resend", 1, 0)])
def test_a_dead_workers_unconfirmed_email(office: TrialOffice, sends: str, told: int, failed: int) -> None:
    """What it had handed over may have arrived: it is given up, or sent again with UNCONFIRMED_SENDS=resend."""
    tenant = left_by_a_dead_worker(office, handed_over=True)
    worker = office.worker(UNCONFIRMED_SENDS=sends)
    assert worker.tick().counts == {"suspended": 0, "users": 0, "told": 1, "failed": 0}
    counts = []
    for _ in range(2):
        office.clock.pass_by(minutes=2, seconds=1)
        counts.append(worker.tick().counts)
    assert sum(each["told"] for each in counts) == told
    assert sum(each["failed"] for each in counts) == failed
    assert office.mails().get(office.contact(tenant), 0) == told
    assert office.waiting() == 0


def test_a_mail_that_cannot_be_filed(office: TrialOffice, caplog: pytest.LogCaptureFixture) -> None:
    """The outbox refuses one row, because its user was deleted: all e-mails count as sent, the others are filed."""
    tenants = [office.tenant() for _ in range(5)]
    office.worker(SMTP_URL=None).tick()
    office.crm.execute('DELETE FROM "User" WHERE "tenantId" = %s', (tenants[2],))
    worker = office.worker()
    assert worker.tick().counts["told"] == 6
    assert {row[6] for row in outbox(office)} == set(tenants) - {tenants[2]}
    assert len([message for message, _ in warnings(caplog) if "not filed" in message]) == 1
    assert office.waiting() == 0
    office.clock.pass_by(minutes=1)
    worker.tick()
    assert office.world.duplicates("smtp") == {}


def test_the_database_goes_away_after_the_answer(office: TrialOffice, monkeypatch: pytest.MonkeyPatch) -> None:
    """A settlement that failed is repeated by the next tick, also when nothing else is due."""
    tenant = office.tenant()
    worker = office.worker()
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'crm-worker trial'"
    settle = NotificationClaims.settle

    def broken(claims: NotificationClaims, deliveries: Any) -> set[str]:
        office.crm.execute(end)
        return settle(claims, deliveries)

    with monkeypatch.context() as patched:
        patched.setattr(NotificationClaims, "settle", broken)
        with pytest.raises(psycopg2.OperationalError):
            worker.tick()
    assert office.status(tenant) == "SUSPENDED"
    office.clock.pass_by(minutes=1)
    assert worker.tick().counts["told"] == 2
    assert office.mails() == {office.contact(tenant): 1, OWNER: 1}
    assert len(outbox(office)) == 1
    assert office.waiting() == 0


def test_content_that_cannot_be_read(office: TrialOffice) -> None:
    """A row that another version wrote is given up; it delays no other."""
    tenants = [office.tenant() for _ in range(3)]
    office.worker(SMTP_URL=None).tick()
    office.crm.execute("UPDATE worker.notice SET content = '[]' WHERE tenant_id = %s", (tenants[0],))
    office.crm.execute("UPDATE worker.notice SET content = '{}' WHERE tenant_id = %s", (tenants[1],))
    assert office.worker().tick().counts == {"suspended": 0, "users": 0, "told": 2, "failed": 2}


def test_trials_without_a_calendar_date(office: TrialOffice) -> None:
    """An end that only PostgreSQL knows (-infinity) is an end like any other."""
    tenant = office.tenant(subscriptionEnd="-infinity")
    assert office.worker().tick().counts["told"] == 2
    assert "ended on -infinity" in body(office, office.contact(tenant))


def test_stopped_while_sending(office: TrialOffice) -> None:
    """After a signal nothing more is sent; what was not sent waits, and a later tick sends it once."""
    office.many(40, users=0)
    office.world.script("smtp", None, "hang", seconds=0.2)
    worker = office.worker()
    stop = threading.Thread(target=lambda: stop_at_first(office, worker))
    stop.start()
    told = worker.tick().counts["told"]
    stop.join(DEADLINE_SECONDS)
    assert 1 <= told < 41
    assert office.waiting() == 41 - told
    touched = "holder IS NOT NULL OR handed_over OR attempts > 0"
    assert office.crm.value(f"SELECT count(*) FROM worker.notice WHERE {touched}") == 0
    office.world.clear_script()
    assert office.worker().tick().counts["told"] == 41 - told
    assert office.world.duplicates("smtp") == {}


def stop_at_first(office: TrialOffice, worker: TrialWorker) -> None:
    office.world.wait_for("smtp", 1)
    worker.signals.stopping = True
