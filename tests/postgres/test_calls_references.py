"""What a queued call refers to: rows that exist in its tenant are used, all others are as if they were not named."""

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg2
import pytest
from desk import ASK_SECONDS, Desk, Listener, account, another_tenant, form_of, number

from sandbox.crm import Crm

# column of "CallQueue" -> table that it refers to
REFERENCES = {
    "leadId": "Lead", "contactId": "Contact", "callScriptId": "CallScript", "automationRuleId": "AutomationRule",
}  # fmt: skip
TABLES = ("Tenant", "User", "Lead", "Contact", "CallScript", "AutomationRule", "CallSettings", "CallQueue", "CallLog")


def add_references(crm: Crm, tenant_id: str | None = None) -> dict[str, str]:
    """A row of a tenant for each column that refers to one."""
    adders: dict[str, Callable[..., str]] = {
        "leadId": crm.add_lead, "contactId": crm.add_contact, "callScriptId": crm.add_call_script,
        "automationRuleId": crm.add_automation_rule,
    }  # fmt: skip
    return {column: add(tenant_id) for column, add in adders.items()}


def logged(desk: Desk, queue_id: str) -> dict[str, Any]:
    """The references in the CallLog row of a call."""
    log = desk.log_of(queue_id)
    return {column: log[column] for column in REFERENCES}


def twiml_query(desk: Desk, place: int = 1) -> str:
    return form_of(desk.world, number(place))["Url"].partition("?")[2]


def settle_all(desk: Desk) -> None:
    """Long enough for Twilio to be asked about all that is left."""
    for _ in range(4):
        desk.tick(seconds=ASK_SECONDS)


@contextmanager
def ringing(desk: Desk, place: int = 1) -> Iterator[None]:
    """Twilio has the call and has not answered yet; at the end it does, and the call is booked."""
    desk.world.script("twilio", number(place), action="hang", seconds=0.6, times=1)
    ticking = threading.Thread(target=desk.tick)
    ticking.start()
    desk.world.wait_for("twilio", 1)
    yield
    ticking.join()


@pytest.mark.parametrize("column", REFERENCES)
def test_a_row_that_is_deleted_while_the_call_rings(column: str, desk: Desk) -> None:
    """The call is booked once, without that reference and with the others."""
    crm = desk.crm
    crm.add_call_settings()
    references = add_references(crm)
    queued = crm.add_call(phoneNumber=number(1), **references)
    with ringing(desk):
        crm.execute(f'DELETE FROM "{REFERENCES[column]}"')
    settle_all(desk)
    assert (desk.status(queued), desk.claims(), len(desk.placed()), len(desk.logs())) == ("completed", 0, 1, 1)
    assert logged(desk, queued) == references | {column: None}
    counts = {table: crm.execute(f'SELECT "{name}" FROM "{table}"')
              for table, name in (("Lead", "callCount"), ("CallScript", "usageCount"))}  # fmt: skip
    assert counts == {table: [] if REFERENCES[column] == table else [(1,)] for table in counts}


@pytest.mark.parametrize("column", REFERENCES)
@pytest.mark.parametrize("when", ["queued", "unconfirmed"])
def test_a_row_that_is_deleted_before_its_call_is_booked(when: str, column: str, desk: Desk) -> None:
    """Neither a call that still waits nor one about which Twilio is asked is stopped by it."""
    crm = desk.crm
    crm.add_call_settings()
    references = add_references(crm)
    queued = crm.add_call(phoneNumber=number(1), **references)
    if when == "unconfirmed":
        desk.world.script("twilio", action="cut-after", times=1)
        desk.tick()
    crm.execute(f'DELETE FROM "{REFERENCES[column]}"')
    settle_all(desk)
    assert (desk.status(queued), desk.claims(), len(desk.placed()), len(desk.logs())) == ("completed", 0, 1, 1)
    assert logged(desk, queued) == references | {column: None}


@pytest.mark.parametrize("script", ["nowhere", "", "x" * 100_000])
def test_a_script_that_never_was(script: str, desk: Desk) -> None:
    """The queue's column takes any text."""
    desk.crm.add_call_settings(enableRecording=False)
    queued = desk.crm.add_call(phoneNumber=number(1), callScriptId=script)
    settle_all(desk)
    assert (desk.status(queued), desk.claims(), len(desk.placed())) == ("completed", 0, 1)
    assert "Record" not in form_of(desk.world, number(1))
    assert desk.log_of(queued)["callScriptId"] is None


def snapshot(crm: Crm, tenant_id: str) -> dict[str, list[Any]]:
    """All rows of one tenant."""
    found = {}
    for table in TABLES:
        column = "id" if table == "Tenant" else "tenantId"
        statement = f'SELECT to_jsonb(t) FROM "{table}" t WHERE "{column}" = %s ORDER BY id'
        found[table] = crm.execute(statement, (tenant_id,))
    return found


@pytest.mark.parametrize("column", REFERENCES)
def test_a_row_of_another_tenant_is_not_used(column: str, desk: Desk) -> None:
    """Neither in Twilio's URL nor in the log nor for recording; none of the other tenant's rows changes."""
    crm = desk.crm
    crm.add_call_settings(enableRecording=False)
    other = another_tenant(crm, **account(1))
    theirs = add_references(crm, other)
    before = snapshot(crm, other)
    ours = add_references(crm)
    queued = crm.add_call(phoneNumber=number(1), **ours | {column: theirs[column]})
    crm.execute('UPDATE "CallScript" SET "enableRecording" = "tenantId" = %s', (other,))
    before["CallScript"] = snapshot(crm, other)["CallScript"]
    assert desk.work() == {"placed": 1}
    assert logged(desk, queued) == ours | {column: None}
    person = ours["contactId"] if column == "leadId" else ours["leadId"]
    assert twiml_query(desk) == f"leadId={person}&callType=ai"
    assert "Record" not in form_of(desk.world, number(1))
    assert snapshot(crm, other) == before


def test_two_tenants_whose_rows_point_at_each_other(desk: Desk) -> None:
    """Each call is placed by its own tenant's account and says nothing of the other tenant; its events neither."""
    crm = desk.crm
    tenants = [another_tenant(crm, **account(place)) for place in range(2)]
    rows = [add_references(crm, each) for each in tenants]
    calls = []
    for place, tenant_id in enumerate(tenants):
        theirs = tenants[1 - place]
        crm.execute(
            'UPDATE "CallSettings" SET "defaultCallScriptId" = %s WHERE "tenantId" = %s',
            (rows[1 - place]["callScriptId"], tenant_id),
        )
        log = {"phoneNumber": number(9), "direction": "outbound", "twilioStatus": "completed", "triggerType": "x"}
        log |= {"tenantId": theirs, "twilioCallSid": f"CA{place:032x}", "createdById": crm.add_user(theirs)}
        calls.append(crm.add_call(tenant_id, phoneNumber=number(place), callLogId=crm.insert("CallLog", log),
                                  **rows[1 - place]))  # fmt: skip
    with closing(Listener(desk)) as listener:
        assert desk.work() == {"placed": 2}
        events = listener.heard()
    for place, (tenant_id, queued) in enumerate(zip(tenants, calls, strict=True)):
        (call,) = desk.world.deliveries("twilio", number(place))
        assert call.account == account(place)["twilioAccountSid"]
        assert twiml_query(desk, place) == "leadId=&callType=ai"
        log = desk.log_of(queued)
        assert (log["tenantId"], log["twilioCallSid"]) == (tenant_id, call.external_id)
        assert logged(desk, queued) == dict.fromkeys(REFERENCES)
        ((name, payload),) = [(name, payload) for room, name, payload in events if room == f"tenant:{tenant_id}"]
        assert name == "call:initiated"
        assert payload["callLog"]["tenantId"] == payload["queueItem"]["tenantId"] == tenant_id
    assert crm.value('SELECT sum("callCount") FROM "Lead"') == 0
    assert crm.value('SELECT sum("usageCount") FROM "CallScript"') == 0


@pytest.mark.parametrize("column", ["leadId", "contactId", "callScriptId", "automationRuleId"])
def test_a_row_that_moves_to_another_tenant_while_the_call_rings(column: str, desk: Desk) -> None:
    """It is not the tenant's any more when the call is booked."""
    crm = desk.crm
    crm.add_call_settings()
    other = another_tenant(crm, **account(1))
    references = add_references(crm)
    queued = crm.add_call(phoneNumber=number(1), **references)
    with ringing(desk):
        crm.execute(f'UPDATE "{REFERENCES[column]}" SET "tenantId" = %s', (other,))
    assert desk.status(queued) == "completed"
    assert logged(desk, queued) == references | {column: None}


def test_a_call_queued_by_a_user_of_another_tenant(desk: Desk) -> None:
    """It is not placed, and says why; the tenant's other calls are."""
    crm = desk.crm
    crm.add_call_settings(maxConcurrentCalls=1)
    other = another_tenant(crm, **account(1))
    queued = crm.add_call(phoneNumber=number(1), priority=9, user_id=crm.add_user(other))
    good = crm.add_call(phoneNumber=number(2))
    assert desk.work() == {"failed": 1, "placed": 1}
    row = desk.row(queued)
    assert (row["status"], row["attempts"]) == ("failed", 1)
    assert row["errorMessage"] == "the user who queued the call is not one of its tenant's"
    assert (desk.status(good), desk.placed()) == ("completed", [number(2)])


def test_a_user_who_leaves_the_tenant_while_the_call_rings(desk: Desk) -> None:
    """The log needs a user: the row fails with the reason, and nobody is called again."""
    crm = desk.crm
    crm.add_call_settings()
    other = another_tenant(crm, **account(1))
    user = crm.add_user()
    lead = crm.add_lead()
    queued = crm.add_call(phoneNumber=number(1), user_id=user, leadId=lead)
    with ringing(desk):
        crm.execute('UPDATE "User" SET "tenantId" = %s WHERE id = %s', (other, user))
    settle_all(desk)
    row = desk.row(queued)
    assert (row["status"], desk.claims(), len(desk.placed()), desk.logs()) == ("failed", 0, 1, [])
    assert "cannot be logged: the user who queued the call is not one of its tenant's" in row["errorMessage"]
    assert crm.value('SELECT "callCount" FROM "Lead"') == 0


@pytest.mark.parametrize("table", ["User", "Tenant"])
def test_an_owner_that_is_deleted_while_the_call_rings(table: str, desk: Desk) -> None:
    """Queue, log and settings go with it: nothing is left to ask Twilio about."""
    crm = desk.crm
    crm.add_call_settings()
    crm.add_call(phoneNumber=number(1), **add_references(crm))
    with ringing(desk):
        crm.execute(f'DELETE FROM "{table}"')
    settle_all(desk)
    assert (desk.statuses(), desk.logs(), desk.claims(), len(desk.placed())) == ({}, [], 0, 1)


@pytest.mark.parametrize("column", ["leadId", "callScriptId"])
def test_a_row_that_a_slow_transaction_deletes(column: str, desk: Desk) -> None:
    """The booking waits for it, and it does not have to wait for the booking: the CRM's user sees no error."""
    crm = desk.crm
    crm.add_call_settings()
    references = add_references(crm)
    queued = crm.add_call(phoneNumber=number(1), **references)
    with closing(psycopg2.connect(desk.database_url)) as other, other.cursor() as cursor, ringing(desk):
        cursor.execute(f'SELECT FROM "{REFERENCES[column]}" FOR UPDATE')
        wait_for_lock(crm)
        cursor.execute(f'DELETE FROM "{REFERENCES[column]}"')
        other.commit()
    settle_all(desk)
    assert (desk.status(queued), len(desk.placed())) == ("completed", 1)
    assert logged(desk, queued) == references | {column: None}


@pytest.mark.parametrize("column", ["contactId", "automationRuleId"])
def test_a_row_that_vanishes_between_the_look_and_the_booking(column: str, desk: Desk) -> None:
    """The foreign key refuses the first booking; the second one leaves out that reference only."""
    crm = desk.crm
    crm.add_call_settings()
    references = add_references(crm)
    queued = crm.add_call(phoneNumber=number(1), **references)
    bookings: list[str] = []
    desk.database.before["book"] = lambda: bookings.append("with references")
    with closing(psycopg2.connect(desk.database_url)) as other, other.cursor() as cursor, ringing(desk):
        # else the deletion would wait for the queue's row, and so for the booking
        crm.execute(f'UPDATE "CallQueue" SET "{column}" = NULL')
        cursor.execute(f'DELETE FROM "{REFERENCES[column]}"')
        wait_for_lock(crm)
        other.commit()
    assert len(bookings) == 2
    assert (desk.status(queued), desk.claims(), len(desk.placed())) == ("completed", 0, 1)
    assert logged(desk, queued) == references | {column: None}
    assert crm.value('SELECT "callCount" FROM "Lead"') == 1


def wait_for_lock(crm: Crm) -> None:
    """Until a session waits for another one's lock."""
    while not crm.value("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"):
        pass


@pytest.mark.parametrize("own", [None, True, False])
@pytest.mark.parametrize("default", [None, True, False])
@pytest.mark.parametrize("tenant", [True, False])
def test_recording(tenant: bool, default: bool | None, own: bool | None, desk: Desk) -> None:
    """The script of the call decides, else the default script of its tenant, else the tenant's setting.

    The script that decides is the one that the call has: it is logged and counted.
    """
    crm = desk.crm
    scripts = [None if each is None else crm.add_call_script(enableRecording=each) for each in (own, default)]
    crm.add_call_settings(enableRecording=tenant, defaultCallScriptId=scripts[1])
    queued = crm.add_call(phoneNumber=number(1), callScriptId=scripts[0])
    assert desk.work() == {"placed": 1}
    decides = next((each for each in (own, default) if each is not None), tenant)
    assert ("Record" in form_of(desk.world, number(1))) == decides
    used = scripts[0] or scripts[1]
    assert desk.log_of(queued)["callScriptId"] == used
    counts = dict(crm.execute('SELECT id, "usageCount" FROM "CallScript"'))
    assert counts == {each: int(each == used) for each in scripts if each}


@pytest.mark.parametrize("own", ["none", "never was", "of another tenant"])
@pytest.mark.parametrize("default", ["own", "never was", "of another tenant"])
def test_a_default_script_counts_where_the_call_names_none_of_its_tenant(own: str, default: str, desk: Desk) -> None:
    """A default script that is not the tenant's is as none: then the tenant's setting decides."""
    crm = desk.crm
    theirs = crm.add_call_script(another_tenant(crm, **account(1)), enableRecording=True)
    ours = crm.add_call_script(enableRecording=False)
    ids = {"none": None, "never was": "nowhere", "of another tenant": theirs, "own": ours}
    crm.add_call_settings(enableRecording=default == "own", defaultCallScriptId=ids[default])
    queued = crm.add_call(phoneNumber=number(1), callScriptId=ids[own])
    assert desk.work() == {"placed": 1}
    assert "Record" not in form_of(desk.world, number(1))
    assert desk.log_of(queued)["callScriptId"] == (ours if default == "own" else None)
    assert dict(crm.execute('SELECT id, "usageCount" FROM "CallScript"')) == {theirs: 0, ours: int(default == "own")}


def test_a_call_whose_script_is_deleted_while_it_rings_is_not_logged_with_the_default_one(desk: Desk) -> None:
    """It did not have that script."""
    crm = desk.crm
    default, own = crm.add_call_script(), crm.add_call_script()
    crm.add_call_settings(defaultCallScriptId=default)
    queued = crm.add_call(phoneNumber=number(1), callScriptId=own)
    with ringing(desk):
        crm.execute('DELETE FROM "CallScript" WHERE id = %s', (own,))
    assert desk.log_of(queued)["callScriptId"] is None
    assert crm.execute('SELECT "usageCount" FROM "CallScript"') == [(0,)]


def test_an_adopted_call_has_its_references_too(desk: Desk) -> None:
    """A row left 'processing' by an old worker: only rows of its tenant are named in its log."""
    crm = desk.crm
    crm.add_call_settings(defaultCallScriptId=crm.add_call_script())
    theirs = add_references(crm, another_tenant(crm, **account(1)))
    ours = add_references(crm)
    both = [
        crm.add_call(phoneNumber=number(place), status="processing", updatedAt=desk.now.replace(year=2020), **columns)
        for place, columns in enumerate((ours, theirs))
    ]
    assert desk.work() == {"asked": 2, "put_back": 2, "placed": 2}
    assert logged(desk, both[0]) == ours
    default = crm.value('SELECT "defaultCallScriptId" FROM "CallSettings" WHERE "tenantId" = %s', crm.tenant_id)
    assert logged(desk, both[1]) == dict.fromkeys(REFERENCES) | {"callScriptId": default}


@pytest.mark.parametrize("answer", ["placed", "unconfirmed", "given up"])
def test_a_row_of_the_queue_that_is_given_to_another_tenant_while_the_call_rings(answer: str, desk: Desk) -> None:
    """Its call is in the log of the tenant that placed it; the other one's account does not place it once more."""
    crm = desk.crm
    crm.add_call_settings()
    other = another_tenant(crm, **account(1))
    queued = crm.add_call(phoneNumber=number(1))
    if answer == "placed":
        desk.world.script("twilio", number(1), action="hang", seconds=0.6, times=1)
        ticking = threading.Thread(target=desk.tick)
        ticking.start()
        desk.world.wait_for("twilio", 1)
    else:
        desk.world.script("twilio", action="cut-after", times=1)
        desk.tick()
    crm.execute('UPDATE "CallQueue" SET "tenantId" = %s, "createdById" = %s', (other, crm.add_user(other)))
    if answer == "placed":
        ticking.join()
    elif answer == "given up":
        crm.execute('DELETE FROM "CallSettings" WHERE "tenantId" = %s', (crm.tenant_id,))
        for _ in range(4):
            desk.tick(seconds=9 * 3600.0)
    settle_all(desk)
    settle_all(desk)
    row = desk.row(queued)
    assert (row["status"], row["errorMessage"]) == ("failed", "Given to another tenant while it was called")
    assert (row["callLogId"], desk.claims(), len(desk.placed())) == (None, 0, 1)
    assert [log["tenantId"] for log in desk.logs()] == ([] if answer == "given up" else [crm.tenant_id])


def test_a_call_that_was_not_placed_is_the_new_tenants_to_place(desk: Desk) -> None:
    """Twilio refused it for now, and the row was given to another tenant meanwhile."""
    crm = desk.crm
    crm.add_call_settings()
    other = another_tenant(crm, **account(1))
    queued = crm.add_call(phoneNumber=number(1))
    desk.world.script("twilio", action="answer", status=503, body={}, times=1)
    desk.database.before["fail"] = lambda: crm.execute(
        'UPDATE "CallQueue" SET "tenantId" = %s, "createdById" = %s', (other, crm.add_user(other))
    )
    desk.tick()
    desk.database.before.clear()
    for _ in range(4):
        desk.work(seconds=301.0)
    assert (desk.status(queued), desk.claims(), len(desk.placed())) == ("completed", 0, 1)
    assert desk.log_of(queued)["tenantId"] == other
