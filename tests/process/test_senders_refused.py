"""Three senders whose server refuses the sender: nobody is left 'failed' for that, in whatever order they settle."""

import psycopg2.extensions
import pytest
from books import Books
from workers import ENGINE, THREADS, Senders, Start, wait_for

from sandbox.crm import Crm
from sandbox.world import World

BREAKER = 20  # REFUSAL_BREAKER's default
SENDERS = 3
DENIED = {"stage": "rcpt", "status": 553, "text": "5.7.1 Sender address rejected: not owned by user"}
NO_LOGIN = {"stage": "rcpt", "status": 530, "text": "5.7.0 Authentication required"}
AT_ONCE = {"CAMPAIGN_BATCH_SIZE": "100"}
ONE_BY_ONE = {"CAMPAIGN_CONCURRENCY": "1", "CAMPAIGN_BATCH_SIZE": "2", "CAMPAIGN_BATCH_DELAY": "20ms"}
# a statement that ends a run waits while the test has this lock
WAIT_BEFORE_THE_END = """
CREATE FUNCTION worker.wait_for_the_test() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM pg_advisory_xact_lock(1); RETURN OLD; END $$;
CREATE TRIGGER wait BEFORE DELETE ON worker.campaign_run FOR EACH ROW EXECUTE FUNCTION worker.wait_for_the_test()
"""
# of killed processes: what was sent to PostgreSQL, and is not committed, is undone
LOSE_STATEMENTS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE application_name = 'crm-worker campaign-sender' AND datname = current_database()
"""


def ended(crm: Crm, books: Books, campaign: str, words: str, *, sent: int = 0, unconfirmed: int = 0) -> None:
    """The campaign has failed with these words, and nobody has, but for so many that are unconfirmed."""
    assert books.status(campaign) == "failed"
    assert words in books.last_log(campaign)
    assert "correct what it says" in books.last_log(campaign) or "530" in words
    assert books.log(campaign) == ["started", "failed"]
    wait_for(lambda: not books.held(), "all batches are settled")
    failed = crm.counts(campaign).get("failed", 0)
    assert failed == books.unconfirmed(campaign) <= unconfirmed
    assert set(crm.counts(campaign)) <= {"pending", "failed", "sent"}
    assert books.sent(campaign) == books.world.total("smtp") == sent
    statement = 'SELECT "sentCount", "failedCount" FROM "Campaign" WHERE id = %s'
    assert crm.execute(statement, (campaign,)) == [(sent, failed)]
    assert crm.value("SELECT count(*) FROM worker.failure WHERE campaign_id = %s", campaign) == failed
    assert crm.value("SELECT count(*) FROM worker.campaign_run") == 0


@pytest.mark.parametrize("pace", [AT_ONCE, ONE_BY_ONE], ids=["as fast as it goes", "a few in each batch"])
def test_a_fault_of_the_sender(pace: dict[str, str], crm: Crm, world: World, books: Books, senders: Senders) -> None:
    """10,000 recipients are refused alike: each sender tries some 20 and those on the wire, and the campaign fails
    once; when the fault is corrected, each of them gets the message."""
    world.script("smtp", **DENIED)
    everyone = senders(SENDERS, **pace)
    campaign = crm.add_campaign("email", recipients=10_000 if pace is AT_ONCE else 500)
    wait_for(lambda: books.ended(campaign), "the campaign ends")
    ended(crm, books, campaign, "553 5.7.1 Sender address rejected")
    assert BREAKER <= len(world.refusals("smtp")) <= SENDERS * (BREAKER + 2 * THREADS)
    wait_for(lambda: sum(each.said("campaign failed") for each in everyone) == 1, "one says so, once")
    world.clear_script()
    if pace is AT_ONCE:
        crm.execute("""UPDATE "Campaign" SET status = 'scheduled' WHERE id = %s""", (campaign,))
        wait_for(lambda: books.ended(campaign), "it is sent once the fault is corrected", 180)
        assert crm.counts(campaign) == {"sent": 10_000}
        books.nobody_twice("smtp")


@pytest.mark.parametrize("number", [0, SENDERS], ids=["embedded", "senders"])
def test_a_server_that_begins_to_refuse(
    number: int, crm: Crm, world: World, books: Books, senders: Senders, start: Start
) -> None:
    """In the middle of a campaign, while messages that it has let pass are on the wire: who was refused meanwhile is
    pending again, too, and who was sent to stays so."""
    world.script("smtp", **DENIED, after=600)
    world.script("smtp", action="hang", seconds=0.06)
    if number:
        senders(number)
    else:
        start()
    campaign = crm.add_campaign("email", recipients=2000)
    wait_for(lambda: books.ended(campaign), "the campaign ends")
    ended(crm, books, campaign, "553 5.7.1", sent=600)


@pytest.mark.parametrize("rejected", [3, 30])
def test_rejected_while_others_are_refused(
    rejected: int, crm: Crm, world: World, books: Books, senders: Senders
) -> None:
    """The server refuses most recipients, and of some the account: whoever settles last, all are pending again."""
    people = [f"person{number}@a.example" for number in range(150)]
    world.script("smtp", **DENIED)
    for address in people[:: len(people) // rejected]:
        world.script("smtp", address, **NO_LOGIN)
    senders(SENDERS, REFUSAL_BREAKER="1000", CAMPAIGN_BATCH_SIZE="10")
    campaign = crm.add_campaign("email", recipients=[{"recipientEmail": each} for each in people])
    wait_for(lambda: books.ended(campaign), "the campaign ends")
    ended(crm, books, campaign, "530 5.7.0 Authentication required")


def test_kills_in_the_middle_of_refusals(
    crm: Crm, world: World, books: Books, senders: Senders, start: Start
) -> None:
    """Senders that are killed, and those that come after them, go on counting: the list is not used up."""
    world.script("smtp", **DENIED)
    _, *alive = senders(SENDERS, **ONE_BY_ONE)
    campaign = crm.add_campaign("email", recipients=500)
    kills = 3
    for killed in range(kills):
        wait_for(lambda least=3 * killed + 3: len(world.refusals("smtp")) >= least, "three more are refused")
        alive.pop(0).kill()
        alive.append(start(program="campaign-sender", **ENGINE | ONE_BY_ONE))
    wait_for(lambda: books.ended(campaign), "the campaign ends")
    ended(crm, books, campaign, "553 5.7.1", unconfirmed=kills)
    assert len(world.refusals("smtp")) <= (SENDERS + kills) * BREAKER


@pytest.mark.parametrize("rule", [DENIED, NO_LOGIN], ids=["refused", "rejected"])
def test_all_are_killed_before_the_campaign_has_ended(
    rule: dict[str, str],
    crm: Crm,
    world: World,
    books: Books,
    senders: Senders,
    start: Start,
    second_connection: psycopg2.extensions.connection,
) -> None:
    """The refusals are settled, and the statement that ends the campaign is lost: the next sender ends it."""
    world.script("smtp", **rule)
    _, *killed = senders(SENDERS)
    crm.execute(WAIT_BEFORE_THE_END)
    second_connection.cursor().execute("SELECT pg_advisory_lock(1)")
    campaign = crm.add_campaign("email", recipients=500)
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory'"
    wait_for(lambda: crm.value(waiting), "a sender ends the campaign")
    for sender in killed:
        sender.kill()
    crm.execute(LOSE_STATEMENTS)
    assert books.status(campaign) == "running"
    assert crm.value("SELECT count(*) FROM worker.campaign_run") == 1
    second_connection.cursor().execute("SELECT pg_advisory_unlock(1)")
    second_connection.commit()
    start(program="campaign-sender", **ENGINE)
    wait_for(lambda: books.ended(campaign), "the next sender ends the campaign")
    words = "553 5.7.1" if rule is DENIED else "530 5.7.0"
    ended(crm, books, campaign, words, unconfirmed=SENDERS * THREADS)
