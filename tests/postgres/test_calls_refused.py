"""Calls whose rows the database refuses to write: each has an end, nobody is called twice, and the others go on."""

import json
import random
import string
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg2
import psycopg2.errors
import pytest
from desk import ASK_SECONDS, Desk, Listener, account, another_tenant, form_of, number

from sandbox.crm import Crm

DAY = 24 * 3600.0
RANDOM = random.Random(1)  # noqa: S311 - not for secrets
NOISE = "".join(RANDOM.choices(string.ascii_letters + string.digits, k=6000))  # too large for an index

REFUSE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'somebody''s trigger' USING ERRCODE = '{code}'; END $$;
CREATE TRIGGER refuse BEFORE {event} ON "{table}" FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION refuse();
"""


@contextmanager
def refusing(crm: Crm, table: str, event: str, condition: str = "true", code: str = "P0001") -> Iterator[None]:
    """A trigger of somebody's that refuses some rows."""
    crm.execute(REFUSE.format(table=table, event=event, condition=condition, code=code))
    try:
        yield
    finally:
        crm.execute("DROP FUNCTION refuse CASCADE")


def settled(desk: Desk, queue_id: str) -> tuple[str, int, int]:
    """After hours of asking: the status of the queue's row, open claims, and calls that were placed."""
    for _ in range(4):
        desk.tick(seconds=ASK_SECONDS)
    for _ in range(4):
        desk.tick(seconds=301)
    return desk.status(queue_id), desk.claims(), len(desk.placed())


def asked(desk: Desk, seconds: float) -> int:
    """How often Twilio is asked while so much time goes by."""
    return sum(desk.tick(seconds=301).counts["asked"] for _ in range(int(seconds / 301)))


def add_log(crm: Crm, sid: str, tenant_id: str | None = None, **columns: Any) -> str:
    tenant_id = tenant_id or crm.tenant_id
    row = {"phoneNumber": number(1), "direction": "outbound", "twilioStatus": "completed", "triggerType": "manual"}
    row |= {"tenantId": tenant_id, "twilioCallSid": sid, "createdById": crm.add_user(tenant_id)}
    return crm.insert("CallLog", row | columns)


@contextmanager
def ringing(desk: Desk) -> Iterator[str]:
    """The sid of a call of which Twilio's answer has not come yet; at the end it does."""
    desk.world.script("twilio", action="hang", seconds=0.6, times=1)
    ticking = threading.Thread(target=desk.tick)
    ticking.start()
    desk.world.wait_for("twilio", 1)
    (call,) = desk.world.deliveries("twilio")
    yield call.external_id
    ticking.join()


@contextmanager
def unconfirmed(desk: Desk) -> Iterator[str]:
    """The sid of a call of which Twilio's answer never comes."""
    desk.world.script("twilio", action="cut-after", times=1)
    desk.tick()
    (call,) = desk.world.deliveries("twilio")
    yield call.external_id


LOGGED = {
    "of another row of the queue": (False, "same tenant"),
    "of another tenant": (True, None),
    "of another tenant's row of the queue": (True, "same tenant"),
    "linked by a row of another tenant": (False, "other tenant"),
}


@pytest.mark.parametrize(("is_theirs", "linked"), LOGGED.values(), ids=LOGGED)
def test_a_call_that_is_in_the_log_already(is_theirs: bool, linked: str | None, desk: Desk) -> None:
    """Twilio's answer names a call that is somebody else's: the row fails with the reason, the log stays as it is."""
    crm = desk.crm
    crm.add_call_settings()
    other = another_tenant(crm, **account(1))
    queued = crm.add_call(phoneNumber=number(1), leadId=crm.add_lead())
    owner = other if is_theirs else crm.tenant_id
    with ringing(desk) as sid:
        log = add_log(crm, sid, owner)
        if linked:
            of = owner if linked == "same tenant" else other
            crm.add_call(of, status="completed", callLogId=log)
        before = crm.execute('SELECT to_jsonb(l) FROM "CallLog" l')
    assert settled(desk, queued) == ("failed", 0, 1)
    row = desk.row(queued)
    assert row["errorMessage"].startswith(
        f"placed as {sid}, but it cannot be logged: that call is in the log already"
    )
    assert (row["callLogId"], row["attempts"]) == (None, 1)
    assert crm.execute('SELECT to_jsonb(l) FROM "CallLog" l') == before
    assert crm.value('SELECT "callCount" FROM "Lead"') == 0


@pytest.mark.parametrize("linked", [None, "other tenant"])
@pytest.mark.parametrize("is_theirs", [True, False])
def test_an_unconfirmed_call_that_is_in_the_log_already(is_theirs: bool, linked: str | None, desk: Desk) -> None:
    """Twilio lists a call that no row of the queue has: it may be this one, so the number is not called again."""
    crm = desk.crm
    crm.add_call_settings()
    other = another_tenant(crm, **account(1))
    queued = crm.add_call(phoneNumber=number(1))
    with unconfirmed(desk) as sid:
        log = add_log(crm, sid, other if is_theirs else None)
        if linked:
            crm.add_call(crm.tenant_id if is_theirs else other, status="completed", callLogId=log)
    is_free = not (is_theirs or linked)
    assert settled(desk, queued) == ("completed" if is_free else "failed", 0, 1)
    row = desk.row(queued)
    if is_free:
        assert row["callLogId"] == log
    else:
        assert sid in row["errorMessage"]


def test_a_link_that_is_made_while_the_call_is_booked(desk: Desk) -> None:
    """The unique column refuses the booking, also without references: the row fails with the reason."""
    crm = desk.crm
    crm.add_call_settings()
    queued = crm.add_call(phoneNumber=number(1))
    with closing(psycopg2.connect(desk.database_url)) as other, other.cursor() as cursor, ringing(desk) as sid:
        log = add_log(crm, sid)
        thief = crm.add_call(status="completed")
        cursor.execute('UPDATE "CallQueue" SET "callLogId" = %s WHERE id = %s', (log, thief))
        while not crm.value("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"):
            pass
        other.commit()
    assert settled(desk, queued) == ("failed", 0, 1)
    assert "that call is in the log already" in desk.row(queued)["errorMessage"]


@pytest.mark.parametrize("call_type", [NOISE, "", "ai&leadId=x", "गु" * 3000], ids=lambda each: each[:10])
def test_a_type_of_call_that_is_longer_than_an_index_takes(call_type: str, desk: Desk) -> None:
    """It is cut in the log and in Twilio's URL; the references stay."""
    crm = desk.crm
    crm.add_call_settings()
    lead = crm.add_lead()
    queued = crm.add_call(phoneNumber=number(1), callType=call_type, leadId=lead)
    assert settled(desk, queued) == ("completed", 0, 1)
    log = desk.log_of(queued)
    assert (log["callType"], log["leadId"]) == (call_type[:100], lead)
    assert len(form_of(desk.world, number(1))["Url"]) < 1500


@pytest.mark.parametrize("when", ["answered", "unconfirmed"])
def test_an_index_that_a_value_is_too_large_for(when: str, desk: Desk) -> None:
    """SQLSTATE 54000 is not a server that is unavailable: the call is logged without its references."""
    crm = desk.crm
    crm.add_call_settings()
    lead = crm.add_lead()
    queued = crm.add_call(phoneNumber=number(1), triggerType=NOISE, leadId=lead, metadata={"k": 1})
    if when == "unconfirmed":
        desk.world.script("twilio", action="cut-after", times=1)
    crm.execute('CREATE INDEX somebodys ON "CallLog" ("triggerType")')
    try:
        assert settled(desk, queued) == ("completed", 0, 1)
    finally:
        crm.execute("DROP INDEX somebodys")
    log = desk.log_of(queued)
    assert (log["triggerType"], log["leadId"], log["metadata"]) == (NOISE[:100], None, None)
    assert log["createdById"] == crm.user_id


CODES = ["P0001", "23514", "22021", "23505", "42501", "54000", "XX000", "40001"]


@pytest.mark.parametrize("code", CODES)
def test_a_trigger_that_refuses_references(code: str, desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever error it raises: the call is logged without them, and the log of the worker says so."""
    crm = desk.crm
    crm.add_call_settings()
    queued = crm.add_call(phoneNumber=number(1), leadId=crm.add_lead(), callScriptId=crm.add_call_script())
    with refusing(crm, "CallLog", "INSERT", 'NEW."leadId" IS NOT NULL', code):
        assert settled(desk, queued) == ("completed", 0, 1)
    log = desk.log_of(queued)
    assert (log["leadId"], log["callScriptId"], log["phoneNumber"]) == (None, None, number(1))
    assert crm.value('SELECT "callCount" FROM "Lead"') == 0, "it was rolled back"
    assert "call logged without its references, the database refused them" in caplog.messages


@pytest.mark.parametrize("code", [each for each in CODES if each != "40001"])
@pytest.mark.parametrize("when", ["answered", "unconfirmed"])
def test_a_trigger_that_refuses_the_log(when: str, code: str, desk: Desk) -> None:
    """The row of the queue fails with the reason, its slot is free, and nobody is called again."""
    crm = desk.crm
    crm.add_call_settings(maxConcurrentCalls=1)
    queued = crm.add_call(phoneNumber=number(1), priority=9)
    crm.add_call(phoneNumber=number(2))
    if when == "unconfirmed":
        desk.world.script("twilio", number(1), action="cut-after", times=1)
    with refusing(crm, "CallLog", "INSERT", f"NEW.\"phoneNumber\" = '{number(1)}'", code), \
            closing(Listener(desk)) as listener:  # fmt: skip
        assert settled(desk, queued) == ("failed", 0, 2)
        errors = [(room, payload) for room, name, payload in listener.heard() if name == "call:error"]
    row = desk.row(queued)
    assert row["errorMessage"].startswith("placed as CA")
    assert row["errorMessage"].endswith("cannot be logged: the database refused it: somebody's trigger")
    assert errors == [(f"tenant:{crm.tenant_id}", {"queueItemId": queued, "error": row["errorMessage"]})]
    assert desk.statuses() == {"failed": 1, "completed": 1}
    assert asked(desk, DAY) == 0


def test_a_conflict_without_end(desk: Desk) -> None:
    """Each booking is said to conflict with another transaction: Twilio is asked less and less, for a day at most."""
    crm = desk.crm
    crm.add_call_settings()
    queued = crm.add_call(phoneNumber=number(1))
    with refusing(crm, "CallLog", "INSERT", code="40001"):
        desk.tick()
        assert (desk.status(queued), desk.claims()) == ("processing", 1)
        assert 100 < asked(desk, DAY + 1200) < 200
        assert (desk.status(queued), desk.claims(), len(desk.placed())) == ("failed", 0, 1)
    assert "cannot be logged" in desk.row(queued)["errorMessage"]


@pytest.mark.parametrize("locked", ["Lead", "CallQueue"])
def test_a_row_that_somebody_locks_for_long(locked: str, desk: Desk) -> None:
    """A locked lead is left out; while the queue's own row is locked, the call waits, and is booked afterwards."""
    crm = desk.crm
    crm.add_call_settings()
    lead = crm.add_lead()
    queued = crm.add_call(phoneNumber=number(1), leadId=lead)
    desk.database.execute("SET lock_timeout = '100ms'")
    with closing(psycopg2.connect(desk.database_url)) as other, other.cursor() as cursor:
        with ringing(desk):
            cursor.execute(f'SELECT FROM "{locked}" FOR UPDATE')
        if locked == "CallQueue":
            assert (desk.status(queued), desk.claims()) == ("processing", 1)
            for _ in range(3):
                desk.tick(seconds=601)
            assert (desk.status(queued), desk.claims()) == ("processing", 1)
        else:
            assert (desk.status(queued), desk.claims()) == ("completed", 0)
    desk.work(seconds=601)
    assert (desk.status(queued), desk.claims(), len(desk.placed())) == ("completed", 0, 1)
    assert desk.log_of(queued)["leadId"] == (lead if locked == "CallQueue" else None)


def test_a_server_that_is_lost_before_the_second_booking(desk: Desk) -> None:
    """The answer is kept, and the next tick books the call from it, without asking."""
    crm = desk.crm
    crm.add_call_settings()
    queued = crm.add_call(phoneNumber=number(1), leadId=crm.add_lead())

    def lose() -> None:
        del desk.database.before["book_without_references"]
        raise psycopg2.OperationalError("server closed the connection unexpectedly")

    desk.database.before["book_without_references"] = lose
    with refusing(crm, "CallLog", "INSERT", 'NEW."leadId" IS NOT NULL'):
        with pytest.raises(psycopg2.OperationalError):
            desk.tick()
        assert desk.status(queued) == "processing"
        assert desk.work() == {"placed": 1}
    assert (desk.status(queued), len(desk.placed())) == ("completed", 1)


def test_rights_that_are_missing(desk: Desk) -> None:
    """After an upgrade without the new grant (here: without the table) calls are logged, without references."""
    crm = desk.crm
    crm.add_call_settings()
    queued = crm.add_call(phoneNumber=number(1), leadId=crm.add_lead())
    crm.execute('ALTER TABLE "AutomationRule" RENAME TO elsewhere')
    try:
        assert settled(desk, queued) == ("completed", 0, 1)
    finally:
        crm.execute('ALTER TABLE elsewhere RENAME TO "AutomationRule"')


@pytest.mark.parametrize("answer", ["placed", "refused", "not placed"])
def test_a_row_of_the_queue_that_cannot_be_changed_any_more(answer: str, desk: Desk) -> None:
    """It stays as it is, without a claim, and Twilio is not asked about it; the tenant's other calls go on."""
    crm = desk.crm
    crm.add_call_settings(maxConcurrentCalls=1)
    queued = crm.add_call(phoneNumber=number(1), priority=9)
    crm.add_call(phoneNumber=number(2))
    if answer != "placed":
        action = {"status": 400, "code": 21211} if answer == "refused" else {"action": "cut-before"}
        desk.world.script("twilio", number(1), times=1, **action)
    with refusing(crm, "CallQueue", "UPDATE", f"""OLD.status = 'processing' AND NEW.id = '{queued}'"""):
        assert settled(desk, queued) == ("processing", 0, 2 if answer == "placed" else 1)
        assert desk.statuses() == {"processing": 1, "completed": 1}
        assert asked(desk, DAY / 2) == 0


@pytest.mark.parametrize("event", ["claim", "failure"])
def test_a_row_of_the_queue_that_cannot_be_changed_at_all(event: str, desk: Desk) -> None:
    """It costs none of the calls that would be claimed or failed together with it; it is not tried with each tick."""
    crm = desk.crm
    tenants = [another_tenant(crm, **account(place)) for place in range(3)]
    numbers = [number(place) if event == "claim" else "12" for place in range(3)]
    calls = [crm.add_call(each, phoneNumber=phone) for each, phone in zip(tenants, numbers, strict=True)]
    with refusing(crm, "CallQueue", "UPDATE", f"NEW.id = '{calls[1]}'"):
        desk.work()
        for _ in range(3):
            assert not any(desk.tick(seconds=31).counts.values())
        wanted = "completed" if event == "claim" else "failed"
        assert [desk.status(each) for each in calls] == [wanted, "pending", wanted]
        assert desk.claims() == 0
    desk.work(seconds=601)
    assert desk.status(calls[1]) == wanted


def test_a_claim_that_is_refused(desk: Desk) -> None:
    """The row says why, and is tried again as other failures are; the calls claimed with it are placed."""
    crm = desk.crm
    tenants = [another_tenant(crm, **account(place)) for place in range(3)]
    calls = [crm.add_call(each, phoneNumber=number(place)) for place, each in enumerate(tenants)]
    with refusing(crm, "CallQueue", "UPDATE", f"NEW.status = 'processing' AND NEW.id = '{calls[1]}'"):
        assert desk.work() == {"placed": 2, "retried": 1}
    row = desk.row(calls[1])
    assert (row["status"], row["attempts"]) == ("pending", 1)
    assert row["errorMessage"] == "the database refused to claim the call: somebody's trigger"
    assert desk.work(seconds=121) == {"placed": 1}


def test_a_stuck_row_that_cannot_be_failed(desk: Desk) -> None:
    """A tenant without an account: its row stays as it is, and the other tenants are served."""
    crm = desk.crm
    stuck = crm.add_call(status="processing", updatedAt=desk.now.replace(year=2020))
    good = crm.add_call(another_tenant(crm, **account(1)))
    with refusing(crm, "CallQueue", "UPDATE", f"NEW.id = '{stuck}'"):
        assert desk.work() == {"placed": 1}
    assert (desk.status(stuck), desk.status(good)) == ("processing", "completed")


def test_a_lost_webhook_whose_row_cannot_be_changed(desk: Desk) -> None:
    """Twilio is not asked with each tick: the tenant is skipped for ten minutes."""
    crm = desk.crm
    crm.add_call_settings()
    add_log(crm, "made up", twilioStatus="ringing", updatedAt=desk.now.replace(year=2020))
    with refusing(crm, "CallLog", "UPDATE"):
        for _ in range(5):
            assert desk.work(seconds=31) == {}
    assert desk.work(seconds=601) == {"checked": 1}


def test_numbers_at_their_limit(desk: Desk) -> None:
    """A counter that cannot grow stays, and stops neither its call nor the others."""
    crm = desk.crm
    most = 2_147_483_647
    crm.add_call_settings(maxConcurrentCalls=1)
    lead, script = crm.add_lead(callCount=most), crm.add_call_script(usageCount=most)
    bad = [crm.add_call(phoneNumber="12", attempts=most, maxAttempts=most) for _ in range(2)]
    bad.append(crm.add_call(phoneNumber=number(2), attempts=most, maxAttempts=most, priority=9))
    again = crm.add_call(phoneNumber=number(3), attempts=-most - 1, maxAttempts=most, priority=9)
    good = crm.add_call(phoneNumber=number(1), leadId=lead, callScriptId=script)
    desk.world.script("twilio", number(2), status=500)
    desk.world.script("twilio", number(3), status=400, code=21299)
    desk.work()
    desk.work(seconds=601)
    assert [desk.status(each) for each in (*bad, again, good)] == ["failed"] * 3 + ["pending", "completed"]
    assert (desk.log_of(good)["leadId"], desk.log_of(good)["callScriptId"]) == (lead, script)
    assert crm.value('SELECT "callCount" FROM "Lead"') == crm.value('SELECT "usageCount" FROM "CallScript"') == most


@pytest.mark.parametrize("moment", ["-infinity", "0044-03-15 BC", "0001-01-01"])
def test_a_stuck_row_of_an_absurd_age(moment: str, desk: Desk) -> None:
    """It is adopted like any other."""
    desk.crm.add_call_settings()
    queued = desk.crm.add_call(phoneNumber=number(1), status="processing", updatedAt=moment)
    assert desk.work() == {"asked": 1, "put_back": 1, "placed": 1}
    assert desk.status(queued) == "completed"


def nested(levels: int, kind: str) -> str:
    return "[" * levels + "]" * levels if kind == "lists" else '{"a":' * levels + "1" + "}" * levels


METADATA = {
    "3,000 lists": nested(3000, "lists"),
    "3,000 objects": nested(3000, "objects"),
    "990 lists": nested(990, "lists"),  # the most that Python parses is about 990
    "600 lists": nested(600, "lists"),  # MessagePack takes no more than 511
    "a number of 5,000 digits": f'{{"n": {"9" * 5000}}}',
    "a number of 21 digits": f'{{"n": {"9" * 21}}}',
    "a number that is no float": '{"n": 1e400}',
    "a string of 2 MB": json.dumps({"text": "x" * 2_000_000}),
    "noise of 2 MB": json.dumps({"text": [RANDOM.random() for _ in range(100_000)]}),
    "null": "null",
}


@pytest.mark.parametrize("column", ["metadata", "triggerData"])
@pytest.mark.parametrize("value", METADATA.values(), ids=METADATA)
def test_json_of_any_depth_and_size(value: str, column: str, desk: Desk) -> None:
    """Metadata arrives in the log as it is; an event leaves out what no event can carry."""
    crm = desk.crm
    crm.add_call_settings()
    lead = crm.add_lead()
    queued = crm.add_call(phoneNumber=number(1), leadId=lead)
    crm.execute(f'UPDATE "CallQueue" SET "{column}" = %s::jsonb', (value,))
    with closing(Listener(desk)) as listener:
        assert desk.work() == {"placed": 1}
        ((_, name, payload),) = listener.heard()
    assert (name, payload["callLog"]["leadId"], payload["queueItem"]["id"]) == ("call:initiated", lead, queued)
    assert {"metadata"} <= payload["callLog"].keys()
    assert {"metadata", "triggerData"} <= payload["queueItem"].keys()
    assert len(json.dumps(payload)) < 200_000
    same = """SELECT (l.metadata = q.metadata) IS TRUE, q.status FROM "CallLog" l JOIN "CallQueue" q ON true"""
    assert crm.execute(same) == [(column == "metadata" and value != "null", "completed")]
    assert desk.claims() == 0


@pytest.mark.parametrize("value", METADATA.values(), ids=METADATA)
def test_business_days_of_any_depth_and_size(value: str, desk: Desk) -> None:
    """Hours that cannot be read: that tenant waits, the others are served."""
    crm = desk.crm
    crm.add_call_settings(enableBusinessHours=True, businessHoursStart="00:00", businessHoursEnd="24:00")
    crm.execute('UPDATE "CallSettings" SET "businessDays" = %s::jsonb', (value,))
    crm.add_call(phoneNumber=number(1))
    other = crm.add_call(another_tenant(crm, **account(1)), phoneNumber=number(2))
    desk.work()
    assert desk.status(other) == "completed"
    assert desk.placed() == ([number(2)] if value != "null" else desk.placed())
