"""Calls that were placed at the same time are booked in one statement: each as if it were alone."""

import json
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import pytest
from desk import Desk, Listener, account, another_tenant, claim_due, number

from worker.calling.queued_call import Booking
from worker.calling.settlement import CallSettlement
from worker.providers.twilio import PlacedCall


def sid(place: int) -> str:
    return f"CA{place:032x}"


def placed(desk: Desk) -> tuple[CallSettlement, list[Booking]]:
    """All calls that are due, claimed and placed, in the order of their numbers; nothing is booked yet."""
    settlement, claims = claim_due(desk)
    in_order = sorted(claims, key=lambda claim: claim.to_number)
    return settlement, [Booking(claim, PlacedCall(sid(place), "queued")) for place, claim in enumerate(in_order)]


def ids(bookings: Sequence[Booking]) -> list[str]:
    return [each.claim.id for each in bookings]


def test_each_has_its_own_rows_and_events(desk: Desk) -> None:
    """With its own contact and metadata; a lead and a script that several of them have are counted for each."""
    crm = desk.crm
    crm.add_call_settings()
    lead, other_lead, script = crm.add_lead(), crm.add_lead(), crm.add_call_script()
    columns: list[dict[str, Any]] = [
        {"leadId": lead, "callScriptId": script},
        {"leadId": lead, "callScriptId": script, "metadata": {"k": 1}},
        {"leadId": other_lead},
        {"contactId": crm.add_contact(), "callScriptId": script},
        {},
    ]
    queued = [crm.add_call(phoneNumber=number(place), **each) for place, each in enumerate(columns)]
    settlement, bookings = placed(desk)
    statements: list[str] = []
    desk.database.before["book"] = lambda: statements.append("book")
    with closing(Listener(desk)) as listener:
        assert settlement.book_together(bookings) == []
        events = listener.heard()
    assert statements == ["book"]
    for place, each in enumerate(columns):
        log = desk.log_of(queued[place])
        wanted = {"leadId": None, "contactId": None, "callScriptId": None, "metadata": None} | each
        assert {name: log[name] for name in wanted} == wanted
        assert (log["phoneNumber"], log["twilioCallSid"]) == (number(place), sid(place))
        assert (desk.status(queued[place]), desk.row(queued[place])["callLogId"]) == ("completed", log["id"])
    assert dict(crm.execute('SELECT id, "callCount" FROM "Lead"')) == {lead: 2, other_lead: 1}
    assert crm.value('SELECT "usageCount" FROM "CallScript"') == 3
    assert desk.claims() == 0
    assert [payload["queueItem"]["id"] for _, _, payload in events] == queued
    assert [payload["callLog"]["twilioCallSid"] for _, _, payload in events] == [sid(place) for place in range(5)]


def test_tenants_do_not_mix(desk: Desk) -> None:
    """Two tenants whose calls name each other's lead and script: neither is counted, linked or shown."""
    crm = desk.crm
    crm.add_call_settings()
    other = another_tenant(crm, **account(1))
    ours, theirs = (
        {"leadId": crm.add_lead(tenant_id), "callScriptId": crm.add_call_script(tenant_id)}
        for tenant_id in (crm.tenant_id, other)
    )
    queued = [
        crm.add_call(crm.tenant_id, phoneNumber=number(0), **ours),
        crm.add_call(other, phoneNumber=number(1), **ours),
        crm.add_call(crm.tenant_id, phoneNumber=number(2), **theirs),
    ]
    settlement, bookings = placed(desk)
    # as a claim of a version that did not look at the tenant
    crm.execute("UPDATE worker.call_claim SET item = item || %s::jsonb WHERE queue_id = %s", (_json(ours), queued[1]))
    crm.execute(
        "UPDATE worker.call_claim SET item = item || %s::jsonb WHERE queue_id = %s", (_json(theirs), queued[2])
    )
    assert settlement.book_together(bookings) == []
    logs = [desk.log_of(each) for each in queued]
    assert [(log["tenantId"], log["leadId"], log["callScriptId"]) for log in logs] == [
        (crm.tenant_id, ours["leadId"], ours["callScriptId"]),
        (other, None, None),
        (crm.tenant_id, None, None),
    ]
    assert dict(crm.execute('SELECT id, "callCount" FROM "Lead"')) == {ours["leadId"]: 1, theirs["leadId"]: 0}
    counts = {ours["callScriptId"]: 1, theirs["callScriptId"]: 0}
    assert dict(crm.execute('SELECT id, "usageCount" FROM "CallScript"')) == counts


def _json(columns: dict[str, str]) -> str:
    return json.dumps(columns)


def test_those_that_must_not_be_booked_are_left_for_themselves(desk: Desk) -> None:
    """Another worker's, one that is in the log for another row, one without its user: the others are booked."""
    crm = desk.crm
    crm.add_call_settings()
    queued = [crm.add_call(phoneNumber=number(place)) for place in range(5)]
    settlement, bookings = placed(desk)
    crm.execute("UPDATE worker.call_claim SET holder = 'elsewhere:1:x.y' WHERE queue_id = %s", (queued[1],))
    crm.execute(
        """UPDATE worker.call_claim SET item = jsonb_set(item, '{createdById}', '"nobody"') WHERE queue_id = %s""",
        (queued[3],),
    )
    log = {"phoneNumber": number(9), "direction": "outbound", "twilioStatus": "completed", "triggerType": "manual"}
    log |= {"tenantId": crm.tenant_id, "twilioCallSid": sid(4), "createdById": crm.user_id}
    crm.add_call(status="completed", callLogId=crm.insert("CallLog", log))
    left = settlement.book_together(bookings)
    assert ids(left) == [queued[1], queued[3], queued[4]]
    assert [desk.status(each) for each in queued] == ["completed", "processing", "completed", *["processing"] * 2]
    for booking in left:
        settlement.book(booking)
    assert [desk.status(each) for each in queued] == ["completed", "processing", "completed", "failed", "failed"]
    assert desk.claims() == 1


@pytest.mark.parametrize("refused", ["a value", "the same sid"])
def test_one_that_is_refused_leaves_all_as_they_were(refused: str, desk: Desk) -> None:
    """Nothing is written, so that each can be booked alone: the good ones as if nothing had happened."""
    crm = desk.crm
    crm.add_call_settings()
    lead = crm.add_lead()
    queued = [crm.add_call(phoneNumber=number(place), leadId=lead) for place in range(3)]
    settlement, bookings = placed(desk)
    if refused == "a value":
        long = json.dumps({"phoneCountryCode": "9" * 99})
        crm.execute("UPDATE worker.call_claim SET item = item || %s::jsonb WHERE queue_id = %s", (long, queued[1]))
        crm.execute("""ALTER TABLE "CallLog" ADD CONSTRAINT short CHECK (length("phoneCountryCode") < 9)""")
    else:
        bookings[1] = Booking(bookings[1].claim, bookings[0].placed)
    try:
        assert settlement.book_together(bookings) == bookings
        assert (desk.logs(), desk.claims(), crm.value('SELECT "callCount" FROM "Lead"')) == ([], 3, 0)
        for booking in bookings:
            settlement.book(booking)
    finally:
        crm.execute('ALTER TABLE "CallLog" DROP CONSTRAINT IF EXISTS short')
    second = "completed" if refused == "a value" else "failed"  # without its references, or not at all
    assert [desk.status(each) for each in queued] == ["completed", second, "completed"]
    assert (desk.claims(), crm.value('SELECT "callCount" FROM "Lead"')) == (0, 2)
