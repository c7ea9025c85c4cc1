"""What follows from a report in the database: once, for the right tenant, and for nobody whom a forger names."""

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime, timedelta
from functools import partial

import psycopg2
import pytest
import redis

from sandbox import reports
from sandbox.accounts import ENCRYPTION_KEY
from sandbox.crm import Crm, utc_now
from worker.bouncing.effects import NO_EFFECT, POSTPONED, UNRECOGNISED, ReportEffects
from worker.content.return_path import ReturnPaths
from worker.runtime.counters import Counters
from worker.runtime.db import Database, queries

PATHS = ReturnPaths("bounces@mail.example", ENCRYPTION_KEY)
ADDRESS = "asha@gone.example"
Suppressions = list[tuple[str, str, str, str | None, datetime | None]]


@pytest.fixture
def effects(database_url: str, redis_url: str) -> Iterator[ReportEffects]:
    db = Database(database_url, "test")
    with redis.Redis.from_url(redis_url) as client:
        yield ReportEffects(db, PATHS, Counters(client, "bounces"))
    db.close()


class Sent:
    """A campaign of a tenant that was sent to some recipients with one address each."""

    def __init__(self, crm: Crm, *addresses: str, status: str = "sent", **columns: object) -> None:
        self.crm = crm
        self.campaign = crm.add_campaign("email", recipients=0, status="completed", **columns)
        self.tenant = crm.value('SELECT "tenantId" FROM "Campaign" WHERE id = %s', (self.campaign,))
        self.addresses = addresses
        self.recipients = [self._add(address, status) for address in addresses]
        crm.execute(
            """UPDATE "Campaign" SET "totalRecipients" = %s, "sentCount" = %s, "failedCount" = 0 WHERE id = %s""",
            (len(addresses), len(addresses), self.campaign),
        )

    def _add(self, address: str, status: str) -> str:
        row = {
            "id": str(uuid.uuid4()), "tenantId": self.tenant, "campaignId": self.campaign, "recipientType": "custom",
            "recipientId": "x", "recipientName": "Asha", "recipientEmail": address, "status": status,
            "sentAt": utc_now(),
        }  # fmt: skip
        return self.crm.insert("CampaignRecipient", row)

    def path(self, number: int = 0) -> str:
        return PATHS.of_recipient(self.tenant, self.recipients[number], self.addresses[number])

    def counts(self) -> tuple[int, int]:
        return self.crm.execute('SELECT "sentCount", "failedCount" FROM "Campaign" WHERE id = %s', (self.campaign,))[
            0
        ]

    def states(self) -> list[str]:
        rows = self.crm.execute(
            'SELECT id, status FROM "CampaignRecipient" WHERE "campaignId" = %s', (self.campaign,)
        )
        return [dict(rows)[each] for each in self.recipients]


def suppressions(crm: Crm) -> Suppressions:
    return crm.execute("SELECT tenant_id, channel, address, source, until FROM worker.suppression ORDER BY 1, 3, 4")


def failures(crm: Crm) -> list[tuple[str, str, str, str]]:
    return crm.execute("SELECT recipient_id, kind, code, reply FROM worker.failure ORDER BY failed_at")


@pytest.mark.parametrize("server", ["postfix", "exim", "exchange", "ses"])
def test_no_such_address(crm: Crm, effects: ReportEffects, server: str) -> None:
    """It is suppressed for ever and its recipient fails with the server's words; the other recipient stays."""
    sent = Sent(crm, ADDRESS, "ravi@here.example")
    raw = reports.FAILURES[server](sent.path(), ADDRESS)
    assert effects.apply(raw, utc_now()) == "hard"
    assert suppressions(crm) == [(sent.tenant, "email", ADDRESS, "bounce", None)]
    (failure,) = failures(crm)
    assert failure[:2] == (sent.recipients[0], "address")
    assert failure[2].startswith("5.1.1")
    assert sent.states() == ["failed", "sent"]
    assert sent.counts() == (1, 1)
    (reason,) = crm.execute('SELECT "errorMessage" FROM "CampaignRecipient" WHERE status = %s', ("failed",))
    assert reason[0] == f"Not delivered: {failure[3]}"


def test_read_twice(crm: Crm, effects: ReportEffects) -> None:
    """A report that is read again, as after a kill between its commit and its move, changes nothing."""
    sent = Sent(crm, ADDRESS, ADDRESS)
    raw = reports.postfix(sent.path(), ADDRESS)
    assert effects.apply(raw, utc_now()) == "hard"
    crm.execute("DELETE FROM worker.suppression")  # an operator took it off the list
    crm.execute("""UPDATE "CampaignRecipient" SET status = 'sent'""")
    assert effects.apply(raw, utc_now()) == NO_EFFECT
    assert suppressions(crm) == []
    assert sent.states() == ["sent", "sent"]


def test_two_reports_about_one_message(crm: Crm, effects: ReportEffects) -> None:
    """The recipient is counted as failed once."""
    sent = Sent(crm, ADDRESS, "ravi@here.example")
    for server in (reports.postfix, reports.ses):
        assert effects.apply(server(sent.path(), ADDRESS), utc_now()) == "hard"
    assert sent.counts() == (1, 1)
    assert len(suppressions(crm)) == 1


def test_out_of_use(crm: Crm, effects: ReportEffects) -> None:
    """A mailbox that is out of use may come back after 30 days."""
    sent, now = Sent(crm, ADDRESS), utc_now()
    assert effects.apply(reports.postfix(sent.path(), ADDRESS, "5.2.1"), now) == "hard"
    assert suppressions(crm) == [(sent.tenant, "email", ADDRESS, "bounce", now + timedelta(days=30))]


@pytest.mark.parametrize("status", ["sent", "delivered", "opened"])
def test_a_complaint(crm: Crm, effects: ReportEffects, status: str) -> None:
    """The address is suppressed at once; the message was delivered, so its recipient does not fail."""
    sent = Sent(crm, ADDRESS, status=status)
    assert effects.apply(reports.complaint(sent.path(), ADDRESS), utc_now()) == "complaint"
    assert suppressions(crm) == [(sent.tenant, "email", ADDRESS, "complaint", None)]
    assert (sent.states(), failures(crm), sent.counts()) == ([status], [], (1, 0))


def test_the_third_soft_bounce(crm: Crm, effects: ReportEffects) -> None:
    """Within 30 days, and of three messages: two reports about one message count once."""
    campaigns = [Sent(crm, ADDRESS) for _ in range(4)]
    now = utc_now()
    effects.apply(reports.gmail(campaigns[0].path(), ADDRESS), now - timedelta(days=31))
    for status in ("4.4.7", "4.2.2"):
        assert effects.apply(reports.postfix(campaigns[1].path(), ADDRESS, status), now) == "soft"
    effects.apply(reports.postfix(campaigns[2].path(), ADDRESS, "4.4.7"), now)
    assert suppressions(crm) == []
    assert effects.apply(reports.postfix(campaigns[3].path(), ADDRESS.upper(), "5.2.2"), now) == "soft"
    assert suppressions(crm) == [(campaigns[3].tenant, "email", ADDRESS, "bounce", None)]
    assert [each[1] for each in failures(crm)] == ["refused", "deferred", "deferred", "refused"]


def test_soft_bounces_of_two_tenants_are_not_added_up(crm: Crm, effects: ReportEffects) -> None:
    other = crm.add_tenant("Other")
    user = crm.add_user(other)
    campaigns = [Sent(crm, ADDRESS), Sent(crm, ADDRESS), Sent(crm, ADDRESS, tenantId=other, userId=user)]
    for each in campaigns:
        assert effects.apply(reports.gmail(each.path(), ADDRESS), utc_now()) == "soft"
    assert suppressions(crm) == []


def test_a_refusal_says_nothing_about_the_address(crm: Crm, effects: ReportEffects) -> None:
    sent = Sent(crm, ADDRESS)
    assert effects.apply(reports.postfix(sent.path(), ADDRESS, "5.7.1"), utc_now()) == "refused"
    assert suppressions(crm) == []
    assert sent.states() == ["failed"]
    assert failures(crm)[0][1:3] == ("refused", "5.7.1")


@pytest.mark.parametrize("status", ["delivered", "opened", "failed", "pending"])
def test_what_the_crm_knows_better(crm: Crm, effects: ReportEffects, status: str) -> None:
    """Only a recipient that is 'sent' becomes 'failed', whatever a late report says; its address is suppressed."""
    sent = Sent(crm, ADDRESS, status=status)
    assert effects.apply(reports.postfix(sent.path(), ADDRESS), utc_now()) == "hard"
    assert (sent.states(), sent.counts(), failures(crm)) == ([status], (1, 0), [])
    assert len(suppressions(crm)) == 1


def test_before_its_settlement(crm: Crm, effects: ReportEffects) -> None:
    """A report that is quicker than the settlement of its batch waits for that."""
    sent = Sent(crm, ADDRESS, status="sending")
    raw = reports.postfix(sent.path(), ADDRESS)
    assert effects.apply(raw, utc_now()) == POSTPONED
    crm.execute("""UPDATE "CampaignRecipient" SET status = 'sent'""")
    assert effects.apply(raw, utc_now()) == "hard"
    assert sent.states() == ["failed"]


def test_reports_from_which_nothing_follows(crm: Crm, effects: ReportEffects) -> None:
    sent = Sent(crm, ADDRESS)
    for raw in (
        reports.postfix(sent.path(), ADDRESS, "4.4.1", action="delayed"),
        reports.complaint(sent.path(), ADDRESS, "not-spam"),
    ):
        assert effects.apply(raw, utc_now()) == NO_EFFECT
    assert (sent.states(), suppressions(crm)) == (["sent"], [])


def test_a_forged_report_changes_nothing(crm: Crm, effects: ReportEffects) -> None:
    """Whoever knows a recipient's id (its short links hold it), Message-ID and address has no proof for it."""
    sent = Sent(crm, ADDRESS, "ravi@here.example")
    stranger = ReturnPaths("bounces@mail.example", "00" * 32)
    message_id = f"<{sent.recipients[0]}@crm.example>"
    forged = [
        stranger.of_recipient(sent.tenant, sent.recipients[0], ADDRESS),
        PATHS.of_recipient(str(uuid.uuid4()), sent.recipients[0], ADDRESS),
        "bounces@mail.example",
    ]
    for path in forged:
        for make in (reports.postfix, reports.complaint):
            raw = make(path, ADDRESS).replace(b"<row-1@crm.example>", message_id.encode())
            assert effects.apply(raw, utc_now()) == UNRECOGNISED
    assert (sent.states(), suppressions(crm), failures(crm)) == (["sent", "sent"], [], [])


def test_a_row_that_was_given_to_another_tenant(crm: Crm, effects: ReportEffects) -> None:
    """The return path was made for the tenant that sent: nothing of the other one changes."""
    sent = Sent(crm, ADDRESS)
    path = sent.path()
    crm.execute('UPDATE "CampaignRecipient" SET "tenantId" = %s', (crm.add_tenant("Other"),))
    assert effects.apply(reports.postfix(path, ADDRESS), utc_now()) == UNRECOGNISED
    assert suppressions(crm) == []


def test_a_campaign_of_another_tenant(crm: Crm, effects: ReportEffects) -> None:
    """A recipient whose campaign was given away does not change that campaign's counts."""
    sent = Sent(crm, ADDRESS)
    path = sent.path()
    crm.execute('UPDATE "Campaign" SET "tenantId" = %s', (crm.add_tenant("Other"),))
    assert effects.apply(reports.postfix(path, ADDRESS), utc_now()) == "hard"
    assert sent.counts() == (1, 0)


def test_a_recipient_that_was_deleted(crm: Crm, effects: ReportEffects) -> None:
    sent = Sent(crm, ADDRESS)
    path = sent.path()
    crm.execute('DELETE FROM "Campaign"')
    assert effects.apply(reports.postfix(path, ADDRESS), utc_now()) == UNRECOGNISED


def test_a_recipient_whose_address_was_changed_to_none(crm: Crm, effects: ReportEffects) -> None:
    """It fails, and the address that was written to is suppressed."""
    sent = Sent(crm, ADDRESS)
    crm.execute("""UPDATE "CampaignRecipient" SET "recipientEmail" = 'nobody'""")
    assert effects.apply(reports.postfix(sent.path(), ADDRESS), utc_now()) == "hard"
    assert (sent.states(), suppressions(crm)) == (["failed"], [(sent.tenant, "email", ADDRESS, "bounce", None)])


@pytest.mark.parametrize("make", [reports.postfix, reports.gmail, reports.complaint])
@pytest.mark.parametrize("status", ["sent", "sending", "pending"])
def test_an_address_that_was_corrected_meanwhile(
    crm: Crm, effects: ReportEffects, status: str, make: Callable[[str, str], bytes]
) -> None:
    """A late report is about the address that was written to: the recipient's new one is not concerned."""
    sent = Sent(crm, ADDRESS)
    crm.execute("""UPDATE "CampaignRecipient" SET "recipientEmail" = 'asha@here.example', status = %s""", (status,))
    assert effects.apply(make(sent.path(), ADDRESS), utc_now()) in ("hard", "soft", "complaint")
    assert {each[2] for each in suppressions(crm)} <= {ADDRESS}
    assert crm.execute("SELECT DISTINCT address FROM worker.bounce") == [(ADDRESS,)]
    assert (sent.states(), sent.counts(), failures(crm)) == ([status], (1, 0), [])


def test_a_report_that_does_not_say_which_address(crm: Crm, effects: ReportEffects) -> None:
    """As of a complaint that hides it: about the recipient's, if it is still the one that was written to."""
    sent = Sent(crm, ADDRESS)
    hidden = reports.complaint(sent.path(), "hidden@redacted.example")
    crm.execute("""UPDATE "CampaignRecipient" SET "recipientEmail" = 'asha@here.example'""")
    assert effects.apply(hidden, utc_now()) == UNRECOGNISED
    assert suppressions(crm) == []
    crm.execute("""UPDATE "CampaignRecipient" SET "recipientEmail" = %s""", (ADDRESS.upper(),))
    assert effects.apply(hidden, utc_now()) == "complaint"
    assert suppressions(crm) == [(sent.tenant, "email", ADDRESS, "complaint", None)]


def test_a_notification(crm: Crm, effects: ReportEffects) -> None:
    """A reminder or a mail about a trial has no recipient row: its address is suppressed for the tenant."""
    tenant = str(uuid.uuid4())
    path = PATHS.of_notification(tenant, ADDRESS)
    assert effects.apply(reports.postfix(path, "ravi@here.example"), utc_now()) == UNRECOGNISED
    assert effects.apply(reports.postfix(path, ADDRESS), utc_now()) == "hard"
    assert effects.apply(reports.postfix(path, ADDRESS), utc_now()) == NO_EFFECT
    assert suppressions(crm) == [(tenant, "email", ADDRESS, "bounce", None)]


def all_at_once(*calls: Callable[[], object]) -> list[object]:
    """The results of calls in threads of their own, which begin together."""
    results: list[object] = []
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], object]) -> None:
        barrier.wait()
        results.append(call())

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    return results


@pytest.fixture
def workers(database_url: str, redis_url: str) -> Iterator[list[ReportEffects]]:
    databases = [Database(database_url, f"test {number}") for number in range(3)]
    with redis.Redis.from_url(redis_url) as client:
        yield [ReportEffects(each, PATHS, Counters(client, "bounces")) for each in databases]
    for each in databases:
        each.close()


def test_three_workers_read_one_report(crm: Crm, workers: list[ReportEffects]) -> None:
    """It has its effect once."""
    for _ in range(10):
        sent = Sent(crm, ADDRESS)
        raw = reports.postfix(sent.path(), ADDRESS)
        results = all_at_once(*(partial(each.apply, raw, utc_now()) for each in workers))
        assert sorted(map(str, results)) == ["hard", NO_EFFECT, NO_EFFECT]
        assert sent.counts() == (0, 1)


def test_three_workers_read_three_soft_bounces(crm: Crm, workers: list[ReportEffects]) -> None:
    """The one that comes last sees the other two."""
    for number in range(10):
        address = f"asha{number}@gone.example"
        sent = [Sent(crm, address) for _ in workers]
        all_at_once(
            *(
                partial(each.apply, reports.gmail(one.path(), address), utc_now())
                for each, one in zip(workers, sent, strict=True)
            )
        )
        assert len(suppressions(crm)) == number + 1


def test_an_error_in_the_middle(crm: Crm, effects: ReportEffects, connection: psycopg2.extensions.connection) -> None:
    """Everything that follows from a report is committed together, or nothing is."""
    sent = Sent(crm, ADDRESS)
    crm.execute("ALTER TABLE worker.failure ADD CONSTRAINT none CHECK (false) NOT VALID")
    with pytest.raises(psycopg2.errors.CheckViolation):
        effects.apply(reports.postfix(sent.path(), ADDRESS), utc_now())
    assert (suppressions(crm), sent.states()) == ([], ["sent"])
    assert crm.value("SELECT count(*) FROM worker.bounce") == 0
    crm.execute("ALTER TABLE worker.failure DROP CONSTRAINT none")
    assert effects.apply(reports.postfix(sent.path(), ADDRESS), utc_now()) == "hard"


def wait_for_lock(crm: Crm) -> None:
    """Waits until a session waits for another one's lock."""
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    deadline = time.monotonic() + 60
    while not crm.value(waits):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_report_while_a_run_counts(crm: Crm, database_url: str) -> None:
    """The end of a run that waited for a report's transaction has old counts: it counts again later."""
    sent = Sent(crm, ADDRESS, "ravi@here.example")
    crm.execute("""UPDATE "Campaign" SET status = 'running', "updatedAt" = %s""", (utc_now() - timedelta(minutes=1),))
    crm.execute(
        """INSERT INTO worker.campaign_run (campaign_id, tenant_id, started_at, next_batch_at, prepared)
           VALUES (%s, %s, %s, %s, true)""",
        (sent.campaign, sent.tenant, utc_now(), utc_now()),
    )
    which = {"campaign_id": sent.campaign, "tenant_id": sent.tenant, "now": utc_now()}
    job = Database(database_url, "campaign")
    ended: list[object] = []
    with closing(psycopg2.connect(database_url, options="-c TimeZone=UTC")) as reader, reader.cursor() as cursor:
        cursor.execute("""UPDATE "CampaignRecipient" SET status = 'failed' WHERE id = %s""", (sent.recipients[0],))
        cursor.execute("""UPDATE "Campaign" SET "sentCount" = 1, "failedCount" = 1, "updatedAt" = %s""", (utc_now(),))
        thread = threading.Thread(target=lambda: ended.append(job.one(queries("campaign")["finish"], **which)))
        thread.start()
        wait_for_lock(crm)
        reader.commit()
    thread.join(60)
    assert ended == [None]
    assert job.one(queries("campaign")["finish"], **which) is not None
    assert sent.counts() == (1, 1)
    job.close()


def test_no_refusals_in_a_row(crm: Crm, effects: ReportEffects, database_url: str) -> None:
    """Reports that arrive while a campaign waits do not end it: its messages were accepted."""
    sent, now = Sent(crm, *(f"asha{n}@full.example" for n in range(3))), utc_now()
    crm.execute("""UPDATE "Campaign" SET status = 'running' WHERE id = %s""", (sent.campaign,))
    crm.execute(
        """INSERT INTO worker.campaign_run (campaign_id, tenant_id, started_at, prepared, next_batch_at, accepted_at)
           VALUES (%s, %s, %s, true, %s, %s)""",
        (sent.campaign, sent.tenant, now - timedelta(hours=1), now, now - timedelta(minutes=1)),
    )
    for number in range(3):
        raw = reports.gmail(sent.path(number), f"asha{number}@full.example", "5.7.1")
        assert effects.apply(raw, now) == "refused"
    assert sent.states() == ["failed"] * 3
    with closing(Database(database_url, "test")) as db:
        which = {"campaign_id": sent.campaign, "now": now}
        assert db.all(queries("campaign")["refusals"], **which) == []
        assert db.execute(queries("campaign")["break_off"], **which, limit=3) == []
    assert sent.states() == ["failed"] * 3


def test_how_it_is_told(crm: Crm, effects: ReportEffects) -> None:
    """Like a refusal: by a pattern of the reply, and without the address that somebody's mail is forwarded to."""
    sent = Sent(crm, ADDRESS)
    raw = reports.postfix(sent.path(), ADDRESS, "5.7.1", "550 5.7.1 <secret@elsewhere.example>: denied")
    assert effects.apply(raw, utc_now()) == "refused"
    assert crm.execute("SELECT reply, pattern FROM worker.failure") == [("550 5.7.1 <…>: denied", "5.7.1 … denied")]
    assert "secret" not in crm.value('SELECT "errorMessage" FROM "CampaignRecipient"')
