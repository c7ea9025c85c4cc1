"""What refusals do to a whole list: the breaker, the suppression list, and sending again."""

import csv
import io
import subprocess
from collections.abc import Mapping
from typing import Any

import pytest
from books import Books
from workers import PROJECT, THREADS, Start, wait_for

from sandbox.crm import Crm
from sandbox.world import World

BREAKER = 20  # REFUSAL_BREAKER's default
DENIED = {"stage": "rcpt", "status": 553, "text": "5.7.1 Sender address rejected: not owned by user"}
NUMBER_REGISTERED = 999_001  # no code that the worker knows


def failures(crm: Crm, campaign: str) -> dict[str, int]:
    return dict(
        crm.execute("SELECT kind, count(*) FROM worker.failure WHERE campaign_id = %s GROUP BY 1", (campaign,))
    )


def command(environment: Mapping[str, str], *arguments: str) -> tuple[int, str]:
    """bin/campaign with these arguments: its exit status, and what it wrote."""
    done = subprocess.run(
        [PROJECT / "bin" / "campaign", *arguments], env=dict(environment), capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def ended_by_the_breaker(crm: Crm, books: Books, campaign: str, recipients: int, *, unconfirmed: int = 0) -> None:
    assert books.status(campaign) == "failed"
    assert crm.counts(campaign).get("failed", 0) <= unconfirmed
    assert sum(crm.counts(campaign).values()) == recipients
    assert crm.counts(campaign)["pending"] >= recipients - unconfirmed
    assert failures(crm, campaign).get("refused", 0) == 0
    assert "in a row were refused with the same reply" in books.last_log(campaign)
    held = ("campaign_batch", "campaign_run", "campaign_retry")
    assert [crm.value(f"SELECT count(*) FROM worker.{table}") for table in held] == [0, 0, 0]
    statement = 'SELECT "failedCount" FROM "Campaign" WHERE id = %s'
    assert crm.value(statement, campaign) == crm.counts(campaign).get("failed", 0)


@pytest.mark.parametrize(
    ("channel", "rule"),
    [("smtp", DENIED), ("whatsapp", {"status": 400, "code": NUMBER_REGISTERED})],
)
def test_a_fault_of_the_sender_does_not_use_up_the_list(
    channel: str, rule: dict[str, Any], crm: Crm, world: World, books: Books, start: Start
) -> None:
    """10,000 recipients are refused alike: some 20 and those on the wire are tried, and nobody is left failed."""
    world.script(channel, **rule)
    campaign = crm.add_campaign("email" if channel == "smtp" else channel, recipients=10_000)
    worker = start()
    wait_for(lambda: books.ended(campaign), "the campaign ends")
    wait_for(lambda: worker.said("campaign failed"), "the reason is logged")
    assert BREAKER <= len(world.refusals(channel)) <= BREAKER + 2 * THREADS
    ended_by_the_breaker(crm, books, campaign, 10_000)
    assert "553 5.7.1" in books.last_log(campaign) or channel != "smtp"
    assert books.log(campaign) == ["started", "failed"], "never paused: the CRM's resume would send from its server"

    world.clear_script()
    crm.execute("""UPDATE "Campaign" SET status = 'scheduled' WHERE id = %s""", (campaign,))
    wait_for(lambda: books.ended(campaign), "it is sent once the fault is corrected")
    assert crm.counts(campaign) == {"sent": 10_000}
    books.nobody_twice(channel)


def test_kills_in_the_middle_of_refusals(crm: Crm, world: World, books: Books, start: Start) -> None:
    """A successor goes on counting: however often the worker is killed, the list is not used up."""
    world.script("smtp", **DENIED)
    campaign = crm.add_campaign("email", recipients=300)
    slow = {"CAMPAIGN_CONCURRENCY": "1", "CAMPAIGN_BATCH_SIZE": "2", "CAMPAIGN_BATCH_DELAY": "100ms"}
    kills = 4
    for _ in range(kills):
        before = len(world.refusals("smtp"))
        worker = start(**slow)
        wait_for(lambda before=before: len(world.refusals("smtp")) >= before + 3, "three more are refused")
        worker.kill()
    assert books.status(campaign) == "running"
    start(**slow)
    wait_for(lambda: books.ended(campaign), "the campaign ends")
    assert len(world.refusals("smtp")) <= BREAKER + kills + 2
    ended_by_the_breaker(crm, books, campaign, 300, unconfirmed=kills)


def test_a_kill_after_the_limit_of_one_persons_messages(crm: Crm, world: World, books: Books, start: Start) -> None:
    """WhatsApp's 131049 to +1 was answered and not settled: the successor gives up as well, and asks nobody again."""
    world.script("whatsapp", "+12025550123", code=131049)
    world.script("whatsapp", "+919800000002", action="hang", seconds=60)
    people = [{"recipientPhone": number} for number in ("+12025550123", "+919800000002")]
    campaign = crm.add_campaign("whatsapp", recipients=people)
    worker = start()
    world.wait_for("whatsapp", 1)
    wait_for(lambda: any(b"131049" in path.read_bytes() for path in books.journals()), "the answer is written down")
    worker.kill()
    world.clear_script()
    start()
    wait_for(lambda: books.ended(campaign), "the campaign ends")
    assert failures(crm, campaign) == {"deferred": 1, "unconfirmed": 1}
    statement = """SELECT reply FROM worker.failure WHERE kind = 'deferred'"""
    assert crm.value(statement).startswith("WhatsApp 131049")
    assert len(world.refusals("whatsapp")) == 1
    books.nobody_twice("whatsapp")


def test_dead_addresses_do_not_stop_a_campaign(crm: Crm, world: World, books: Books, start: Start) -> None:
    """However many addresses are dead, also after the content, the others get their message; the dead get no more."""
    dead = [f"gone{number}@dead.example" for number in range(40)]
    for address in dead:
        world.script("smtp", address, stage="data", status=550, text="5.1.1 user unknown")
    campaign = crm.add_campaign("email", recipients=[{"recipientEmail": each} for each in [*dead, "asha@a.example"]])
    start()
    wait_for(lambda: books.ended(campaign), "the campaign ends")
    assert books.status(campaign) == "completed"
    assert crm.counts(campaign) == {"failed": 40, "sent": 1}
    assert failures(crm, campaign) == {"address": 40}
    statement = "SELECT DISTINCT tenant_id, channel, source, campaign_id, code, until FROM worker.suppression"
    assert crm.execute(statement) == [(crm.tenant_id, "email", "bounce", campaign, "550 5.1.1", None)]
    assert crm.value("SELECT count(*) FROM worker.suppression") == 40

    tried = len(world.refusals("smtp"))
    again = crm.add_campaign("email", recipients=[{"recipientEmail": each} for each in (dead[0], "ravi@a.example")])
    wait_for(lambda: books.ended(again), "the next campaign ends")
    assert crm.counts(again) == {"failed": 1, "sent": 1}
    assert failures(crm, again) == {"suppressed": 1}
    assert len(world.refusals("smtp")) == tried


def test_failures_are_seen_and_tried_again(
    crm: Crm, world: World, books: Books, start: Start, environment: dict[str, str]
) -> None:
    """The commands show who failed and why, and send again to those of a kind: once, and not to the suppressed."""
    replies = {
        "full@a.example": "5.2.2 mailbox full",
        "off@a.example": "5.2.1 disabled",
        "gone@a.example": "5.1.1 no",
    }
    for address, text in replies.items():
        world.script("smtp", address, stage="rcpt", status=550, text=text)
    people = [*replies, "asha@a.example", "@", "=1+1@a.example"]
    campaign = crm.add_campaign("email", recipients=[{"recipientEmail": each} for each in people])
    worker = start()
    wait_for(lambda: books.ended(campaign), "the campaign ends")
    assert worker.stop() == 0
    assert failures(crm, campaign) == {"address": 2, "refused": 1, "content": 1}

    status, text = command(environment, "failures", campaign)
    assert status == 0
    assert "4 recipients failed" in text
    assert "550 5.2.2 mailbox full" in text
    status, text = command(environment, "failures", campaign, "--kind", "address", "--csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert {(each["address"], each["kind"], each["code"]) for each in rows} == {
        ("off@a.example", "address", "550 5.2.1"),
        ("gone@a.example", "address", "550 5.1.1"),
    }
    assert command(environment, "failures", "no-such-campaign")[0] == 1
    assert command(environment, "retry", campaign, "--kind", "suppressed")[0] == 2
    assert command(environment, "retry", campaign, "--kind", "deferred")[0] == 1

    before = crm.counts(campaign)
    status, text = command(environment, "retry", campaign, "--kind", "refused,address", "--dry-run")
    assert (status, crm.counts(campaign)) == (0, before)
    assert "1 recipient would be sent to again (1 refused)" in text
    assert "2 recipients left failed" in text
    world.clear_script()
    both = [
        subprocess.Popen(
            [PROJECT / "bin" / "campaign", "retry", campaign, "--kind", "refused"],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    said = [each.communicate()[0] for each in both]
    assert sorted(each.returncode for each in both) == [0, 1], said
    assert any("it is scheduled already" in each for each in said)
    assert books.log(campaign)[-1] == "scheduled"
    start()
    wait_for(lambda: books.ended(campaign), "it is sent again")
    assert crm.counts(campaign) == {"sent": 3, "failed": 3}
    assert failures(crm, campaign) == {"address": 2, "content": 1}
    books.nobody_twice("smtp")
    assert world.counts("smtp")["full@a.example"] == 1
