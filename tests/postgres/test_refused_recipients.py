"""What becomes of refused recipients: why they failed, who is suppressed and for how long, and the breaker."""

import json
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from one_run import OneRun

from sandbox.crm import Crm, utc_now
from sandbox.world import World
from worker.campaign import CampaignJob
from worker.campaign_commands.failure_commands import PAGE_SIZE, FailureCommands
from worker.errors import CommandRefused
from worker.runtime.db import Database, queries
from worker.runtime.settings import load
from worker.sending.outcomes import FailureKind
from worker.web.campaign_forecasts import CampaignForecasts
from worker.web.work_in_progress import CampaignRates, read_work_in_progress

LIMIT = 3  # of a breaker
PATTERN = "553 5.7.1 … not owned"


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    with closing(Database(database_url, "test")) as made:
        yield made


def suppressed(crm: Crm) -> dict[str, tuple[Any, ...]]:
    rows = crm.execute("SELECT address, source, code, until, campaign_id, tenant_id FROM worker.suppression")
    return {address: rest for address, *rest in rows}


def test_why_recipients_failed(crm: Crm, world: World, run_once: OneRun) -> None:
    """Each has a row with the kind, the code and the reply, which names no address but its own."""
    replies = {
        "gone@a.example": (550, "5.1.1 <gone@a.example> unknown, says postmaster@mx.example"),
        "off@a.example": (550, "5.2.1 disabled"),
        "full@a.example": (552, "5.2.2 <ravi@b.example> is full"),
    }
    for address, (status, text) in replies.items():
        world.script("smtp", address, stage="rcpt", status=status, text=text)
    world.script("smtp", "lost@a.example", action="cut-after")
    crm.execute(
        "INSERT INTO worker.suppression (tenant_id, channel, address, reason, created_at, source) "
        "VALUES (%s, 'email', 'left@a.example', 'no more', now(), 'unsubscribe')",
        (crm.tenant_id,),
    )
    people = [*replies, "lost@a.example", "left@a.example", "no address", "GONE@a.example", "asha@a.example"]
    campaign = crm.add_campaign("email", recipients=[{"recipientEmail": each} for each in people])
    before = utc_now()
    assert run_once("campaign", CampaignJob) == 0
    found = {
        (email, kind, code): reply
        for email, kind, code, reply in crm.execute(
            """SELECT p."recipientEmail", f.kind, f.code, f.reply
               FROM worker.failure f JOIN "CampaignRecipient" p ON p.id = f.recipient_id
               WHERE f.campaign_id = %s AND f.tenant_id = %s AND p.status = 'failed'""",
            (campaign, crm.tenant_id),
        )
    }
    assert {key[1:] for key in found if key[0].lower() == "gone@a.example"} == {
        ("address", "550 5.1.1"),
        ("address", ""),  # the same address twice
    }
    assert {key for key in found if key[0].lower() != "gone@a.example"} == {
        ("off@a.example", "address", "550 5.2.1"),
        ("full@a.example", "refused", "552 5.2.2"),
        ("lost@a.example", "unconfirmed", ""),
        ("left@a.example", "suppressed", ""),
        ("no address", "content", ""),
    }
    assert found["full@a.example", "refused", "552 5.2.2"] == "552 5.2.2 <…> is full"
    assert any("<gone@a.example> unknown, says …" in reply for reply in found.values())
    listed = suppressed(crm)
    assert set(listed) == {"left@a.example", "gone@a.example", "off@a.example"}
    assert listed["gone@a.example"] == ["bounce", "550 5.1.1", None, campaign, crm.tenant_id]
    until = listed["off@a.example"][2]
    assert before + timedelta(days=30) <= until <= utc_now() + timedelta(days=30)


@pytest.mark.parametrize(("earlier_days", "kept"), [(None, True), (90, True), (10, False), (-1, False)])
def test_what_ends_later_stays(crm: Crm, db: Database, earlier_days: int | None, kept: bool) -> None:
    """A second bounce makes a suppression no shorter; one that has ended begins anew."""
    now = utc_now()
    until = None if earlier_days is None else now + timedelta(days=earlier_days)
    crm.execute(
        "INSERT INTO worker.suppression (tenant_id, channel, address, reason, created_at, source, until) "
        "VALUES (%s, 'email', 'off@a.example', 'earlier', now(), 'bounce', %s)",
        (crm.tenant_id, until),
    )
    people = [{"recipientEmail": each, "status": "sending"} for each in ("off@a.example", "OFF@a.example")]
    campaign = crm.add_campaign("email", status="running", recipients=people)
    settle_as(crm, db, campaign, source="bounce", until=now + timedelta(days=30))
    assert crm.counts(campaign) == {"failed": 2}
    [(reason, ends)] = crm.execute("SELECT reason, until FROM worker.suppression")
    assert (reason, ends) == ("earlier", until) if kept else ("550 5.2.1 off", now + timedelta(days=30))


def settle_as(
    crm: Crm,
    db: Database,
    campaign: str,
    kind: str = "address",
    source: str | None = None,
    until: datetime | None = None,
) -> None:
    """Settles a batch of all recipients: they are refused as out of use."""
    now, batch = utc_now(), str(uuid4())
    ids = [each for (each,) in crm.execute('SELECT id FROM "CampaignRecipient" WHERE "campaignId" = %s', (campaign,))]
    crm.execute(
        "INSERT INTO worker.campaign_batch (id, campaign_id, holder, machine, sender, recipient_ids, renewed_at) "
        "VALUES (%s, %s, 'h', 'm', 'email', %s, %s)",
        (batch, campaign, ids, now),
    )
    outcome = {"status": "failed", "message_id": None, "reason": "550", "attempts": 1, "at": now}
    failure = {
        "kind": kind, "code": "550 5.2.1", "reply": "550 5.2.1 off", "pattern": "550 5.2.1 off", "at": now,
        "source": source, "until": until,
    }  # fmt: skip
    db.execute(
        queries("campaign")["settle"],
        batch_id=batch, holder="h", tenant_id=crm.tenant_id, user_id=crm.user_id, sender_address="s@x.example",
        now=now, outcomes=json.dumps([{"id": each} | outcome for each in ids], default=str),
        failures=json.dumps([{"id": each} | failure for each in ids], default=str), accepted_at=None,
        channel="email", sender="email", next_batch_at=now, backoffs=0, outbox="[]",
    )  # fmt: skip


def refused_campaign(crm: Crm, number: int, **columns: Any) -> str:
    """A running campaign of which so many recipients were refused just now."""
    campaign = crm.add_campaign("email", status="running", recipients=number, **columns)
    now = utc_now()
    tenant = crm.value('SELECT "tenantId" FROM "Campaign" WHERE id = %s', campaign)
    crm.execute(
        "INSERT INTO worker.campaign_run (campaign_id, tenant_id, started_at, prepared, next_batch_at, log_rows) "
        "VALUES (%s, %s, %s, true, %s, 0)",
        (campaign, tenant, now - timedelta(minutes=1), now),
    )
    crm.execute(
        """UPDATE "CampaignRecipient" SET status = 'failed', "failedAt" = now(), "errorMessage" = '553'
           WHERE "campaignId" = %s""",
        (campaign,),
    )
    crm.execute(
        """INSERT INTO worker.failure SELECT id, "campaignId", "tenantId", 'refused', '553 5.7.1', '553', %s, %s
           FROM "CampaignRecipient" WHERE "campaignId" = %s""",
        (PATTERN, now, campaign),
    )
    crm.execute('UPDATE "Campaign" SET "failedCount" = %s WHERE id = %s', (number, campaign))
    return campaign


def break_off(db: Database, campaign: str) -> bool:
    found = db.execute(queries("campaign")["break_off"], campaign_id=campaign, limit=LIMIT, now=utc_now())
    return bool(found)


def test_the_breaker_counts_from_the_database(crm: Crm, db: Database) -> None:
    """So many refusals end the run: they are pending again, the counts are right, and the log has the reply."""
    campaign = refused_campaign(crm, LIMIT)
    assert break_off(db, campaign)
    assert crm.counts(campaign) == {"pending": LIMIT}
    assert crm.execute('SELECT status, "failedCount" FROM "Campaign"') == [("failed", 0)]
    assert crm.execute("SELECT count(*) FROM worker.failure") == [(0,)]
    assert crm.value('SELECT message FROM "CampaignLog"').startswith(f"{LIMIT} recipients in a row were refused")
    assert not break_off(db, campaign)


@pytest.mark.parametrize(
    "what", ["too few", "accepted since", "a batch", "another reply", "another tenant", "paused", "full mailboxes"]
)
def test_what_does_not_trip_the_breaker(crm: Crm, db: Database, what: str) -> None:
    """Fewer refusals, a message that was accepted since, a batch that is not settled, other replies, foreign rows."""
    campaign = refused_campaign(crm, LIMIT)
    change = {
        "too few": "DELETE FROM worker.failure WHERE recipient_id = (SELECT min(recipient_id) FROM worker.failure)",
        "accepted since": "UPDATE worker.campaign_run SET accepted_at = now() AT TIME ZONE 'UTC' + interval '1 s'",
        "a batch": "INSERT INTO worker.campaign_batch (id, campaign_id, holder, machine, sender, recipient_ids, "
        "renewed_at) SELECT gen_random_uuid(), campaign_id, 'h', 'm', 'email', '{}', now() FROM worker.campaign_run",
        "another reply": "UPDATE worker.failure SET pattern = recipient_id",
        "another tenant": "UPDATE worker.failure SET tenant_id = 'foreign'",
        "paused": """UPDATE "Campaign" SET status = 'paused'""",
        "full mailboxes": "UPDATE worker.failure SET code = '552 5.2.2', pattern = '552 5.2.2 mailbox full'",
    }[what]
    crm.execute(change)
    assert not break_off(db, campaign)
    assert crm.counts(campaign) == {"failed": LIMIT}
    assert crm.value('SELECT "failedCount" FROM "Campaign"') == LIMIT


def fail(db: Database, *campaigns: str) -> None:
    db.execute(queries("campaign")["fail"], campaign_ids=list(campaigns), reason="535 no login", now=utc_now())


def test_a_rejection_takes_back_the_refusals_before_it(crm: Crm, db: Database) -> None:
    """Whoever was refused since a message was accepted is pending again, in each of the campaigns."""
    few, full = refused_campaign(crm, 1), refused_campaign(crm, LIMIT)
    fail(db, few, full)
    assert [crm.counts(each) for each in (few, full)] == [{"pending": 1}, {"pending": LIMIT}]
    assert crm.execute('SELECT DISTINCT status, "failedCount" FROM "Campaign"') == [("failed", 0)]
    assert crm.execute("SELECT count(*) FROM worker.failure") == [(0,)]
    assert crm.execute('SELECT DISTINCT message FROM "CampaignLog"') == [("535 no login",)]


@pytest.mark.parametrize("what", ["accepted long since", "an address", "reported", "another tenant", "set back"])
def test_what_a_rejection_leaves_as_it_is(crm: Crm, db: Database, what: str) -> None:
    """Refusals before an accepted message, dead addresses, messages that came back, foreign rows, the CRM's own."""
    campaign = refused_campaign(crm, LIMIT)
    change = {
        "accepted long since": """UPDATE worker.campaign_run
                                  SET accepted_at = now() AT TIME ZONE 'UTC' + interval '11 s'""",
        "an address": "UPDATE worker.failure SET kind = 'address'",
        "reported": """UPDATE "CampaignRecipient" SET "sentAt" = now()""",
        "another tenant": "UPDATE worker.failure SET tenant_id = 'foreign'",
        "set back": """UPDATE "CampaignRecipient" SET status = 'delivered'""",
    }[what]
    crm.execute(change)
    before = crm.counts(campaign)
    fail(db, campaign)
    assert crm.counts(campaign) == before
    assert crm.execute('SELECT status, "failedCount" FROM "Campaign"') == [("failed", LIMIT)]


def test_many_full_mailboxes(crm: Crm, db: Database, world: World, run_once: OneRun) -> None:
    """Each is its owner's: they do not end a campaign, neither at first nor when it is tried again."""
    world.script("smtp", stage="rcpt", status=552, text="5.2.2 mailbox full")
    campaign = crm.add_campaign("email", recipients=30)
    for _ in range(2):
        assert run_once("campaign", CampaignJob, REFUSAL_BREAKER=str(LIMIT)) == 0
        assert crm.counts(campaign) == {"failed": 30}
        assert crm.value('SELECT message FROM "CampaignLog" ORDER BY "createdAt" DESC').startswith(
            "Every send failed"
        )
        assert FailureCommands(db, utc_now).retry(campaign, [FailureKind.REFUSED], dry_run=False) == 0


@pytest.mark.parametrize("batch_size", ["100", "2"])
def test_refused_and_then_rejected(crm: Crm, world: World, run_once: OneRun, batch_size: str) -> None:
    """A server that refuses some recipients, and then the account, leaves nobody failed for it, in no batch."""
    people = [f"person{number}@a.example" for number in range(8)]
    for address in people[:5]:
        world.script("smtp", address, stage="rcpt", status=553, text="5.7.1 not owned")
    for address in people[5:]:
        world.script("smtp", address, stage="rcpt", status=530, text="5.7.0 Authentication required")
    campaign = crm.add_campaign("email", recipients=[{"recipientEmail": each} for each in people])
    run_once("campaign", CampaignJob, CAMPAIGN_CONCURRENCY="8", CAMPAIGN_BATCH_SIZE=batch_size)
    assert crm.value('SELECT status FROM "Campaign"') == "failed"
    assert crm.counts(campaign) == {"pending": 8}
    assert crm.value('SELECT "failedCount" FROM "Campaign"') == 0
    assert crm.execute("SELECT count(*) FROM worker.failure") == [(0,)]


def test_who_was_set_back_by_the_crm_is_counted(crm: Crm, db: Database) -> None:
    """A recipient that was sent a message once, and is refused now, is refused like the others."""
    campaign = crm.add_campaign("email", status="running", recipients=LIMIT)
    crm.execute("""UPDATE "CampaignRecipient" SET "sentAt" = now() - interval '9 days', status = 'sending'""")
    now = utc_now()
    crm.execute(
        "INSERT INTO worker.campaign_run (campaign_id, tenant_id, started_at, prepared, next_batch_at, log_rows) "
        "VALUES (%s, %s, %s, true, %s, 0)",
        (campaign, crm.tenant_id, now - timedelta(minutes=1), now),
    )
    settle_as(crm, db, campaign, kind="refused")
    assert db.all(queries("campaign")["refusals"], campaign_id=campaign) != []
    assert break_off(db, campaign)
    assert crm.counts(campaign) == {"pending": LIMIT}


def test_reports_do_not_trip_the_breaker(crm: Crm, db: Database) -> None:
    """Messages that were accepted and came back are no refusals in a row, and are not sent again."""
    campaign = refused_campaign(crm, LIMIT)
    crm.execute("""UPDATE "CampaignRecipient" SET "sentAt" = "updatedAt", status = 'sent'""")
    for (recipient,) in crm.execute('SELECT id FROM "CampaignRecipient"'):
        db.execute(
            queries("bounces")["fail_recipient"],
            id=recipient, tenant_id=crm.tenant_id, reason="Not delivered: 550 5.7.1 policy",
            failure="refused", pattern="550 5.7.1 policy",
            code="5.7.1", words="550 5.7.1 policy", now=utc_now(),
        )  # fmt: skip
    assert crm.counts(campaign) == {"failed": LIMIT}
    assert db.all(queries("campaign")["refusals"], campaign_id=campaign) == []
    assert not break_off(db, campaign)
    assert crm.counts(campaign) == {"failed": LIMIT}


def test_who_is_tried_again_does_not_give_way_to_a_duplicate(
    crm: Crm, db: Database, world: World, run_once: OneRun
) -> None:
    """Of two recipients with one address the second has failed for that reason: the first can be sent to again."""
    world.script("smtp", "asha@a.example", stage="rcpt", status=553, text="5.7.1 not owned")
    people = [{"recipientEmail": each} for each in ("asha@a.example", "ASHA@a.example", "ravi@a.example")]
    campaign = crm.add_campaign("email", recipients=people)
    assert run_once("campaign", CampaignJob) == 0
    assert crm.counts(campaign) == {"failed": 2, "sent": 1}
    world.clear_script("smtp")
    assert FailureCommands(db, utc_now).retry(campaign, [FailureKind.REFUSED], dry_run=False) == 0
    run_once("campaign", CampaignJob)
    assert crm.counts(campaign) == {"failed": 1, "sent": 2}


def test_all_failures_are_shown_once_in_pages_by_index(
    crm: Crm, db: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also those of one moment, however many there are; each page is read where the one before it ended."""
    number = 2 * PAGE_SIZE + 10
    campaign, _other = refused_campaign(crm, number), refused_campaign(crm, number)
    crm.execute("UPDATE worker.failure SET failed_at = failed_at + interval '1 s' WHERE recipient_id < %s", ("8",))
    assert FailureCommands(db, utc_now).show(campaign, tuple(FailureKind), as_csv=True) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) == len({line.split(",")[0] for line in lines}) == number
    times = [line.rsplit(",", 1)[1] for line in lines]
    assert times == sorted(times)
    crm.execute("UPDATE worker.failure SET failed_at = failed_at - random() * interval '1 hour'")
    crm.execute("ANALYZE")
    statement = "EXPLAIN (ANALYZE, FORMAT JSON) " + queries("failures")["page"]
    page = {"after_at": utc_now() - timedelta(hours=2), "after": "", "size": 10, "kinds": ["refused"]}
    which = {"campaign_id": campaign, "tenant_id": crm.tenant_id, "channel": "email"}
    ((explained,),) = crm.execute(statement, page | which)
    assert '"failure_campaign"' in json.dumps(explained)
    assert '"Seq Scan"' not in json.dumps(explained)


def test_who_is_set_back_is_not_counted_on_the_page(crm: Crm, db: Database) -> None:
    """By the CRM, which knows nothing of worker.failure: the page has those that are still failed."""
    campaign = refused_campaign(crm, LIMIT)
    statement = """UPDATE "CampaignRecipient" SET status = %s WHERE id = (SELECT min(id) FROM "CampaignRecipient")"""
    crm.execute(statement, ("sent",))
    forecasts = CampaignForecasts(load({"DATABASE_URL": "postgresql://h/crm", "REDIS_URL": "redis://h"}, "web"))
    (shown,) = read_work_in_progress(db, CampaignRates(lambda: 0.0), forecasts).failures
    assert (shown.id, shown.number) == (campaign, LIMIT - 1)


def test_second_recipients_with_one_address_are_counted_at_once(crm: Crm, world: World, run_once: OneRun) -> None:
    """The CRM's page has them from the beginning, not only when the campaign ends."""
    people = [{"recipientEmail": each} for each in ("asha@a.example", "ASHA@a.example", "ravi@a.example")]
    campaign = crm.add_campaign("email", recipients=people)
    world.script("smtp", stage="mail", status=530, text="5.7.0 Authentication required")
    run_once("campaign", CampaignJob)
    assert crm.counts(campaign) == {"failed": 1, "pending": 2}
    assert crm.value('SELECT "failedCount" FROM "Campaign"') == 1


def test_a_table_for_spreadsheets_has_no_formula(crm: Crm, db: Database, capsys: pytest.CaptureFixture[str]) -> None:
    """An address may begin like one; a phone number stays as it is."""
    for channel, column, address, shown in (
        ("email", "recipientEmail", "+HYPERLINK(A1)@x.example", "'+HYPERLINK(A1)@x.example"),
        ("whatsapp", "recipientPhone", "+919876543210", "+919876543210"),
    ):
        campaign = refused_campaign(crm, 1)
        crm.execute('UPDATE "Campaign" SET channel = %s WHERE id = %s', (channel, campaign))
        crm.execute(f'UPDATE "CampaignRecipient" SET "{column}" = %s WHERE "campaignId" = %s', (address, campaign))
        assert FailureCommands(db, utc_now).show(campaign, tuple(FailureKind), as_csv=True) == 0
        assert capsys.readouterr().out.splitlines()[1].split(",")[1] == shown


def test_a_retry_stays_in_its_tenant(crm: Crm, db: Database) -> None:
    """Failures that another tenant has of a campaign, and its recipients, are as if they were not there."""
    campaign = refused_campaign(crm, LIMIT)
    crm.execute("""UPDATE "Campaign" SET status = 'completed'; DELETE FROM worker.campaign_run""")
    other = crm.add_tenant("Elsewhere")
    crm.execute(
        """UPDATE "CampaignRecipient" SET "tenantId" = %s WHERE id = (SELECT min(id) FROM "CampaignRecipient")""",
        (other,),
    )
    crm.execute(
        """UPDATE worker.failure SET tenant_id = %s
           WHERE recipient_id = (SELECT max(recipient_id) FROM worker.failure)""",
        (other,),
    )
    commands = FailureCommands(db, utc_now)
    assert commands.retry(campaign, [FailureKind.REFUSED], dry_run=False) == 0
    assert crm.counts(campaign) == {"pending": 1, "failed": 2}
    message, metadata = crm.execute('SELECT message, metadata FROM "CampaignLog"')[0]
    assert message == "Retry: 1 recipient pending again (1 refused)"
    assert metadata == {"refused": 1}
    assert crm.execute('SELECT status, "failedCount", "completedAt" FROM "Campaign"') == [
        ("scheduled", LIMIT - 1, None)
    ]


@pytest.mark.parametrize("status", ["draft", "scheduled", "running", "paused"])
def test_a_campaign_that_has_not_ended_is_not_retried(crm: Crm, db: Database, status: str) -> None:
    """Its recipients stay as they are, and the message says what to do."""
    campaign = refused_campaign(crm, LIMIT)
    crm.execute('UPDATE "Campaign" SET status = %s', (status,))
    with pytest.raises(CommandRefused, match=f"Nothing was done with campaign {campaign}: it is"):
        FailureCommands(db, utc_now).retry(campaign, [FailureKind.REFUSED], dry_run=False)
    assert crm.counts(campaign) == {"failed": LIMIT}


@pytest.mark.parametrize("end", ["rejected", "too many in a row"])
def test_refused_while_the_last_accepted_message_was_on_the_wire(crm: Crm, db: Database, end: str) -> None:
    """A server takes its time for a message and refuses others already: they are taken back, but do not count."""
    campaign = refused_campaign(crm, LIMIT + 2)
    crm.execute(
        """UPDATE worker.failure SET failed_at = failed_at - interval '2 s'
           WHERE recipient_id IN (SELECT recipient_id FROM worker.failure LIMIT 2)"""
    )
    crm.execute("UPDATE worker.campaign_run SET accepted_at = now() AT TIME ZONE 'UTC' - interval '1 s'")
    if end == "rejected":
        fail(db, campaign)
    else:
        assert break_off(db, campaign)
        assert crm.value('SELECT message FROM "CampaignLog"').startswith(f"{LIMIT} recipients in a row were refused")
    assert crm.counts(campaign) == {"pending": LIMIT + 2}
    assert crm.execute('SELECT status, "failedCount" FROM "Campaign"') == [("failed", 0)]
    assert crm.execute("SELECT count(*) FROM worker.failure") == [(0,)]
