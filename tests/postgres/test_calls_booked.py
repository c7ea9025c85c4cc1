"""The calls job: what is placed, when, in which order, and what is booked, published and counted."""

import json
import re
import threading
from contextlib import closing
from datetime import datetime, timedelta
from typing import Any

import pytest
from desk import APP_URL, Desk, Listener, OpenDesk, account, another_tenant, form_of, number

from sandbox import accounts
from sandbox.crm import Crm

MONDAY_NOON = datetime(2026, 11, 23, 6, 30)  # 12:00 in India  # noqa: DTZ001
HOURS = {"enableBusinessHours": True, "businessHoursStart": "09:00", "businessHoursEnd": "18:00"}


def add_script(crm: Crm, tenant_id: str | None = None, **columns: Any) -> str:
    row = {"name": "Hello", "tenantId": tenant_id or crm.tenant_id, "userId": crm.user_id}
    return crm.insert("CallScript", row | columns)


def test_a_call_is_placed_and_booked(desk: Desk) -> None:
    """A due call of a lead: Twilio gets what the contract says, and the CRM's tables all about the call."""
    crm = desk.crm
    crm.add_call_settings(callTimeout=45)
    lead = crm.add_lead()
    script = add_script(crm)
    queued = crm.add_call(
        leadId=lead, callScriptId=script, phoneNumber="098765 43210", metadata={"k": 1}, automationRuleId="rule-1"
    )
    assert desk.work() == {"placed": 1}
    (call,) = desk.world.deliveries("twilio")
    form = [(name, value) for name, value in json.loads(call.content)]
    webhook = f"{APP_URL}/api/calls/webhook"
    assert form == [
        ("To", "+919876543210"),
        ("From", accounts.TWILIO_NUMBER),
        ("Url", f"{webhook}/twiml?leadId={lead}&callType=ai"),
        ("StatusCallback", f"{webhook}/status"),
        *(("StatusCallbackEvent", event) for event in ("initiated", "ringing", "answered", "completed")),
        ("Timeout", "45"),
        ("MachineDetection", "Enable"),
        ("AsyncAmd", "true"),
        ("Record", "true"),
        ("RecordingStatusCallback", f"{webhook}/recording"),
    ]
    assert (call.account, call.credential) == (accounts.TWILIO_ACCOUNT_SID, accounts.TWILIO_AUTH_TOKEN)
    (log,) = desk.logs()
    row = desk.row(queued)
    wanted = {
        "tenantId": crm.tenant_id, "leadId": lead, "contactId": None, "phoneNumber": "+919876543210",
        "phoneCountryCode": "+91", "direction": "outbound", "callType": "ai", "twilioCallSid": call.external_id,
        "twilioStatus": "queued", "callScriptId": script, "triggerType": "manual", "automationRuleId": "rule-1",
        "callOutcome": "initiated", "metadata": {"k": 1}, "createdById": crm.user_id, "duration": None,
    }  # fmt: skip
    assert {name: log[name] for name in wanted} == wanted
    assert log["createdAt"] == log["updatedAt"] == row["updatedAt"]
    assert (row["status"], row["callLogId"], row["attempts"]) == ("completed", log["id"], 0)
    assert (row["errorMessage"], row["nextRetryAt"]) == (None, None)
    counted = [(1, datetime.fromisoformat(log["createdAt"]), datetime.fromisoformat(log["createdAt"]))]
    assert crm.execute('SELECT "callCount", "lastCalledAt", "updatedAt" FROM "Lead"') == counted
    assert crm.execute('SELECT "usageCount", "lastUsedAt", "updatedAt" FROM "CallScript"') == counted
    assert desk.claims() == 0
    assert desk.counter("calls_total", outcome="placed") == 1
    assert desk.tick().counts["placed"] == 0


def test_a_call_of_a_contact_changes_no_lead(desk: Desk) -> None:
    """The webhook and the CallLog row get the contact's id, and no lead's callCount changes."""
    crm = desk.crm
    crm.add_call_settings()
    crm.add_lead()
    contact = crm.add_contact()
    queued = crm.add_call(contactId=contact, callType="manual", phoneNumber=number(1))
    assert desk.work() == {"placed": 1}
    assert form_of(desk.world, number(1))["Url"].endswith(f"/twiml?leadId={contact}&callType=manual")
    log = desk.log_of(queued)
    assert (log["leadId"], log["contactId"], log["callType"]) == (None, contact, "manual")
    assert crm.execute('SELECT "callCount", "lastCalledAt" FROM "Lead"') == [(0, None)]


def test_a_script_of_another_tenant_is_neither_used_nor_counted(desk: Desk) -> None:
    """Its recording setting is ignored, its usage stays; a lead of another tenant keeps its counts, too."""
    crm = desk.crm
    crm.add_call_settings(enableRecording=False)
    other = another_tenant(crm, **account(1))
    script = add_script(crm, other, enableRecording=True)
    lead = crm.add_lead(other)
    crm.add_call(callScriptId=script, leadId=lead, phoneNumber=number(1))
    assert desk.work() == {"placed": 1}
    assert "Record" not in form_of(desk.world, number(1))
    assert crm.execute('SELECT "usageCount", "lastUsedAt" FROM "CallScript"') == [(0, None)]
    assert crm.execute('SELECT "callCount", "lastCalledAt" FROM "Lead"') == [(0, None)]


@pytest.mark.parametrize(
    ("tenant", "script", "recorded"),
    [(True, None, True), (False, None, False), (True, False, False), (False, True, True)],
)
def test_the_scripts_recording_setting_wins(tenant: bool, script: bool | None, recorded: bool, desk: Desk) -> None:
    """Without a script the tenant's setting counts."""
    desk.crm.add_call_settings(enableRecording=tenant)
    script_id = None if script is None else add_script(desk.crm, enableRecording=script)
    desk.crm.add_call(phoneNumber=number(1), callScriptId=script_id)
    desk.work()
    assert ("Record" in form_of(desk.world, number(1))) == recorded


@pytest.mark.parametrize("meanwhile", ["cancelled", "deleted", "pending again"])
def test_what_the_crm_does_to_a_row_while_it_is_placed_stays(meanwhile: str, desk: Desk) -> None:
    """A call that was placed gets its CallLog row whatever the CRM did; a queue's row that still exists is linked."""
    crm = desk.crm
    crm.add_call_settings()
    queued = crm.add_call(phoneNumber=number(1))
    desk.world.script("twilio", action="hang", seconds=0.6, times=1)
    statement = {
        "cancelled": """UPDATE "CallQueue" SET status = 'cancelled' WHERE id = %s AND status = 'processing'""",
        "deleted": """DELETE FROM "CallQueue" WHERE id = %s AND status = 'processing'""",
        "pending again": """UPDATE "CallQueue" SET status = 'pending' WHERE id = %s AND status = 'processing'""",
    }[meanwhile]
    ticking = threading.Thread(target=desk.tick)
    ticking.start()
    desk.world.wait_for("twilio", 1)
    crm.execute(statement, (queued,))
    ticking.join()
    (log,) = desk.logs()
    assert log["phoneNumber"] == number(1)
    assert desk.claims() == 0
    if meanwhile == "deleted":
        assert desk.statuses() == {}
    else:
        row = desk.row(queued)
        assert (row["status"], row["callLogId"]) == (meanwhile.split()[0], log["id"])


def test_a_call_whose_user_and_row_were_deleted_does_not_keep_its_slot(desk: Desk) -> None:
    """It cannot be booked for anybody: its claim ends all the same."""
    crm = desk.crm
    crm.add_call_settings()
    user = crm.add_user()
    queued = crm.add_call(phoneNumber=number(1), user_id=user)
    desk.world.script("twilio", action="hang", seconds=0.6, times=1)
    ticking = threading.Thread(target=desk.tick)
    ticking.start()
    desk.world.wait_for("twilio", 1)
    crm.execute('DELETE FROM "CallQueue" WHERE id = %s', (queued,))
    crm.execute('DELETE FROM "User" WHERE id = %s', (user,))
    ticking.join()
    assert (desk.logs(), desk.claims()) == ([], 0)


def test_a_call_log_that_was_written_before_us_is_linked(desk: Desk) -> None:
    """A webhook was faster and wrote the CallLog row: the queue's row is linked to it, and nobody is called again."""
    crm = desk.crm
    crm.add_call_settings()
    queued = crm.add_call(phoneNumber=number(1))
    desk.world.script("twilio", action="hang", seconds=0.6, times=1)
    ticking = threading.Thread(target=desk.tick)
    ticking.start()
    desk.world.wait_for("twilio", 1)
    (call,) = desk.world.deliveries("twilio")
    row = {"phoneNumber": number(1), "direction": "outbound", "twilioStatus": "ringing", "triggerType": "manual"}
    row |= {"tenantId": crm.tenant_id, "twilioCallSid": call.external_id, "createdById": crm.user_id}
    log = crm.insert("CallLog", row)
    ticking.join()
    assert (desk.status(queued), desk.row(queued)["callLogId"]) == ("completed", log)
    assert [each["twilioStatus"] for each in desk.logs()] == ["ringing"]


def test_a_call_cancelled_before_its_claim_is_not_placed(desk: Desk) -> None:
    """The same goes for one that failed or was completed by another program."""
    desk.crm.add_call_settings()
    for status in ("cancelled", "failed", "completed"):
        desk.crm.add_call(status=status)
    assert desk.work() == {}
    assert desk.placed() == []


def test_a_call_cancelled_between_the_look_and_the_claim_is_not_placed(desk: Desk) -> None:
    """The claim goes by the row's status at that moment, not by the one that was read before."""
    crm = desk.crm
    crm.add_call_settings()
    queued = crm.add_call()
    cancel = """UPDATE "CallQueue" SET status = 'cancelled' WHERE id = %s"""
    desk.database.before["lock_claiming"] = lambda: crm.execute(cancel, (queued,))
    desk.work()
    assert (desk.placed(), desk.status(queued), desk.claims()) == ([], "cancelled", 0)


@pytest.mark.parametrize(
    ("scheduled", "retry", "due"),
    [(None, None, True), (-60, None, True), (None, -60, True), (0, 0, True), (-60, 60, False), (60, -60, False),
     (60, None, False), (None, 60, False)],
)  # fmt: skip
def test_a_call_is_due_when_both_its_times_are_past(
    scheduled: int | None, retry: int | None, due: bool, desk: Desk
) -> None:
    """The times are seconds from now; None: never set."""
    at = [None if each is None else desk.now + timedelta(seconds=each) for each in (scheduled, retry)]
    desk.crm.add_call_settings()
    queued = desk.crm.add_call(scheduledFor=at[0], nextRetryAt=at[1])
    desk.work()
    assert desk.status(queued) == ("completed" if due else "pending")


def test_a_call_that_is_due_soon_is_placed_then(desk: Desk) -> None:
    """The tick says when the next call is due, so that the call does not wait for the next interval."""
    desk.crm.add_call_settings()
    due_at = desk.now + timedelta(seconds=5)
    queued = desk.crm.add_call(scheduledFor=due_at)
    desk.crm.add_call(scheduledFor=desk.now + timedelta(seconds=9))
    result = desk.tick()
    assert (result.next_at, result.unfinished) == (due_at, False)
    desk.tick(seconds=4.9)
    assert desk.placed() == []
    assert desk.tick(seconds=0.1).counts["placed"] == 1
    assert desk.status(queued) == "completed"


@pytest.mark.parametrize("far", ["20261-11-23", "infinity", "9999-12-31"])
def test_a_call_due_in_an_absurd_year_stops_no_others(far: str, desk: Desk) -> None:
    """A page's date field and PostgreSQL take a year of five digits: that call waits, the others are placed."""
    desk.crm.add_call_settings()
    desk.crm.add_call(scheduledFor=far)
    queued = desk.crm.add_call()
    assert desk.work() == {"placed": 1}
    assert desk.status(queued) == "completed"


def test_an_idle_tick_wants_nothing(desk: Desk) -> None:
    """Without calls the next tick is at the next interval."""
    result = desk.tick()
    assert (result.next_at, result.unfinished, any(result.counts.values())) == (None, False, False)


def test_priority_comes_first_then_age(desk: Desk) -> None:
    """Highest first; of the same priority the oldest."""
    desk.crm.add_call_settings(maxConcurrentCalls=1)
    wanted = [(1, 0), (5, 30), (5, 60), (10, 0), (9, 5), (10, 90)]
    for place, (priority, age) in enumerate(wanted):
        created_at = desk.now - timedelta(seconds=age)
        desk.crm.add_call(phoneNumber=number(place), priority=priority, createdAt=created_at)
    for _ in wanted:
        desk.work()
        desk.hang_up()
    order = sorted(range(len(wanted)), key=lambda place: (-wanted[place][0], -wanted[place][1]))
    assert desk.placed() == [number(place) for place in order]


@pytest.mark.parametrize(
    ("minutes", "open_"), [(-181, False), (-180, True), (0, True), (360, True), (360.99, True), (361, False)]
)
def test_calls_start_inside_business_hours_only(minutes: float, open_: bool, desk: Desk) -> None:
    """Both ends belong to them, in the tenant's time zone."""
    desk.now = MONDAY_NOON + timedelta(minutes=minutes)
    desk.crm.add_call_settings(**HOURS, businessDays={"value": ["mon"]})
    queued = desk.crm.add_call(createdAt=desk.now)
    result = desk.tick()
    assert desk.status(queued) == ("completed" if open_ else "pending")
    assert not result.unfinished


def test_a_long_tick_looks_at_the_hours_again(open_desk: OpenDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many tenants and a slow Twilio: a tenant that closed meanwhile places no more calls."""
    monkeypatch.setattr("worker.calls.ACCOUNTS_AT_ONCE", 1)
    monkeypatch.setattr("worker.calls.REQUEST_THREADS", 1)
    monkeypatch.setattr("worker.calls.TICK_SECONDS", 0.2)
    desk = open_desk()
    desk.now = MONDAY_NOON + timedelta(hours=6, seconds=59)  # the last second of the last minute
    desk.crm.add_call_settings(**HOURS)
    tenants = [another_tenant(desk.crm, **HOURS, **account(place)) for place in range(3)]
    for tenant_id in tenants:
        desk.crm.add_call(tenant_id, createdAt=desk.now)
    desk.world.script("twilio", action="hang", seconds=0.5)
    result = desk.tick()
    assert result.unfinished
    desk.work(seconds=2)
    assert desk.statuses() == {"completed": 1, "pending": 2}


def test_live_events(desk: Desk) -> None:
    """call:initiated with both rows and call:error with the reason, in the tenant's room; all times end in Z."""
    crm = desk.crm
    crm.add_call_settings()
    due_at = desk.now - timedelta(minutes=1)
    good = crm.add_call(phoneNumber=number(1), metadata={"lastSeenAt": "x"}, scheduledFor=due_at)
    bad = crm.add_call(phoneNumber="12")
    with closing(Listener(desk)) as listener:
        desk.work()
        events = {name: (room, payload) for room, name, payload in listener.heard()}
    assert events.keys() == {"call:initiated", "call:error"}
    assert {room for room, _ in events.values()} == {f"tenant:{crm.tenant_id}"}
    error = events["call:error"][1]
    assert error.keys() == {"queueItemId", "error"}
    assert (error["queueItemId"], error["error"]) == (bad, desk.row(bad)["errorMessage"])
    payload = events["call:initiated"][1]
    assert payload.keys() == {"callLog", "queueItem"}
    log, item = payload["callLog"], payload["queueItem"]
    assert (item["id"], item["status"], item["callLogId"]) == (good, "completed", log["id"])
    assert log.keys() == desk.log_of(good).keys()
    assert (log["twilioStatus"], log["metadata"]) == ("queued", {"lastSeenAt": "x"})
    times = [log["createdAt"], log["updatedAt"], item["createdAt"], item["updatedAt"], item["scheduledFor"]]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", each) for each in times), times
    assert item["scheduledFor"] == f"{due_at.isoformat(timespec='milliseconds')}Z"
    assert (item["nextRetryAt"], log["duration"]) == (None, None)


def test_counters_and_gauges(desk: Desk) -> None:
    """How many calls were placed, retried and failed, how many wait, and for how long; zero when none is left."""
    crm = desk.crm
    crm.add_call_settings(maxConcurrentCalls=2)
    desk.world.script("twilio", number(1), status=500, code=20500)
    crm.add_call(phoneNumber=number(1), priority=9)
    crm.add_call(phoneNumber="nonsense", priority=9)
    for place, age in ((2, 0), (3, 90), (4, 60)):
        crm.add_call(phoneNumber=number(place), createdAt=desk.now - timedelta(seconds=age))
    crm.add_call(scheduledFor=desk.now + timedelta(days=1))
    desk.tick()
    assert desk.counter("calls_total", outcome="placed") == 1
    assert desk.counter("calls_total", outcome="retried") == 1
    assert desk.counter("calls_total", outcome="failed") == 1
    assert desk.gauge("calls_due") == 2
    assert desk.gauge("calls_oldest_due_seconds") == pytest.approx(60, abs=2)
    crm.execute('DELETE FROM "CallQueue"')
    desk.hang_up()
    desk.tick()
    assert (desk.gauge("calls_due"), desk.gauge("calls_oldest_due_seconds")) == (0, 0)


def test_logs_hold_no_numbers(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """A refusal that quotes the number: the tenant sees all of it, the worker's log only its code."""
    desk.crm.add_call_settings()
    text = "The phone number you are calling, +91 98 00000 001, is not valid."
    desk.world.script("twilio", number(1), status=400, code=21211, text=text)
    refused = desk.crm.add_call(phoneNumber=number(1))
    undialable = desk.crm.add_call(phoneNumber="98765 43210 98765 43210")
    desk.work()
    said = [str(record.args) for record in caplog.records if record.getMessage().startswith("call not placed")]
    assert len(said) == 2
    assert "21211" in "".join(said)
    assert not re.search(r"\d[\d ]{6,}\d", "".join(said).replace(refused, "").replace(undialable, "")
                         .replace(desk.crm.tenant_id, ""))  # fmt: skip
    assert "+91 98 00000 001" in desk.row(refused)["errorMessage"]
