"""Calls outside the hours of the called number wait, cost no attempt, and keep nobody else waiting."""

import json
import logging
from contextlib import closing
from datetime import datetime, timedelta
from typing import Any

import pytest
from desk import Desk, OpenDesk, account, another_tenant, number

from sandbox import accounts
from worker.runtime.db import Database
from worker.web.warning_checks import call_warnings

NIGHT = datetime(2026, 11, 23, 18, 30)  # midnight in India, half past one in the afternoon in New York  # noqa: DTZ001
MORNING = datetime(2026, 11, 24, 3, 30)  # nine o'clock in India  # noqa: DTZ001
NEW_YORK = "+12125550100"
NO_PLACE = "+80012345678"
LAWFUL = {"CALL_WINDOW": "", "CALL_WINDOWS": ""}  # the defaults
WAITS_IN_INDIA = "not called yet: calls to +91 are placed 09:00-21:00 by the clock of the called number"


@pytest.fixture
def desk(open_desk: OpenDesk) -> Desk:
    desk = open_desk(**LAWFUL)
    desk.now = NIGHT
    return desk


def add(desk: Desk, phone: str, tenant_id: str | None = None, **columns: Any) -> str:
    return desk.crm.add_call(tenant_id, phoneNumber=phone, **{"createdAt": desk.now} | columns)


def next_retry(desk: Desk, queued: str) -> datetime | None:
    at = desk.row(queued)["nextRetryAt"]
    return at and datetime.fromisoformat(at)


def said(caplog: pytest.LogCaptureFixture, message: str) -> list[dict[str, Any]]:
    return [dict(record.args) for record in caplog.records if record.msg == message]  # type: ignore[call-overload]


def test_a_call_at_night_waits_for_the_morning(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """Also where business hours are off: no attempt is counted, the row says why, and the job sleeps until then."""
    caplog.set_level(logging.INFO)
    desk.crm.add_call_settings()
    queued = add(desk, number(1))
    result = desk.tick()
    row = desk.row(queued)
    assert (row["status"], row["attempts"], row["lastAttemptAt"]) == ("pending", 0, None)
    assert (next_retry(desk, queued), row["errorMessage"]) == (MORNING, WAITS_IN_INDIA)
    assert said(caplog, "calls wait") == [
        {"tenant": desk.crm.tenant_id, "calls": 1, "first_until": "2026-11-24T03:30Z", "reason": WAITS_IN_INDIA}
    ]
    assert result.counts["put_off"] == 1
    result = desk.tick(seconds=1)
    assert (result.unfinished, result.next_at, result.counts["put_off"]) == (False, MORNING, 0)
    assert desk.gauge("window_waiting") == 1
    assert desk.gauge("calls_due") == 0

    desk.advance((MORNING - desk.now).total_seconds() - 1)
    assert desk.work() == {}
    assert desk.work(seconds=1) == {"placed": 1}
    row = desk.row(queued)
    assert (row["status"], row["attempts"], row["errorMessage"], row["nextRetryAt"]) == ("completed", 0, None, None)
    desk.work(seconds=30)
    assert desk.gauge("window_waiting") == 0


def test_calls_that_another_window_put_off(desk: Desk, open_desk: OpenDesk, caplog: pytest.LogCaptureFixture) -> None:
    """At the start with other settings they are looked at again, without an attempt; all others keep their time."""
    desk.crm.add_call_settings(maxConcurrentCalls=9)
    india, britain = add(desk, number(1)), add(desk, "+442079460000", scheduledFor=NIGHT)
    desk.advance(4 * 3600)  # half past ten in the evening in Britain
    assert desk.work() == {"put_off": 2}
    retried = add(desk, number(2), nextRetryAt=desk.now + timedelta(days=1), errorMessage="Twilio 20429: too many")
    times = {queued: next_retry(desk, queued) for queued in (india, britain, retried)}

    caplog.set_level(logging.INFO)
    for settings, placed in ((LAWFUL, []), (LAWFUL | {"CALL_WINDOWS": "+91=00:00-23:59"}, [india])):
        later = open_desk(**settings)
        later.now = desk.now + timedelta(seconds=1)
        later.job.start()
        later.work()
        assert [queued for queued in times if later.status(queued) == "completed"] == placed
        for queued in times.keys() - placed:
            assert (next_retry(later, queued), later.row(queued)["attempts"]) == (times[queued], 0)
    assert said(caplog, "calls that waited for other hours are looked at again") == [{"calls": 1}]


def test_each_number_has_its_own_clock(desk: Desk) -> None:
    """New York is called while India sleeps, and the other way round."""
    desk.crm.add_call_settings()
    india, america = add(desk, number(1), priority=9), add(desk, NEW_YORK)
    assert desk.work() == {"put_off": 1, "placed": 1}
    assert (desk.status(india), desk.status(america)) == ("pending", "completed")
    desk.hang_up()
    desk.advance((MORNING - desk.now).total_seconds())
    late = add(desk, "+12125550101")
    assert desk.work() == {"put_off": 1, "placed": 1}
    assert next_retry(desk, late) == datetime(2026, 11, 24, 13)  # noqa: DTZ001


def test_business_hours_still_count(desk: Desk) -> None:
    """A call is placed when both the tenant and the called number are awake."""
    hours = {"enableBusinessHours": True, "businessHoursStart": "09:30", "businessHoursEnd": "18:00"}
    desk.crm.add_call_settings(**hours)
    queued = add(desk, number(1))
    assert desk.work() == {}
    assert next_retry(desk, queued) is None
    desk.advance((MORNING - desk.now).total_seconds())
    assert desk.work() == {}
    assert desk.work(seconds=1800) == {"placed": 1}


def test_business_hours_that_never_meet_those_of_the_number(desk: Desk) -> None:
    """A tenant in India that is open by day calls New York: the row and a warning on the page say what to change."""
    hours = {"enableBusinessHours": True, "businessHoursStart": "10:00", "businessHoursEnd": "18:00"}
    desk.crm.add_call_settings(**hours)
    desk.advance((MORNING - desk.now).total_seconds() + 3600)
    never, meets = add(desk, NEW_YORK), add(desk, "+442079460000")
    assert desk.work() == {"put_off": 2}
    assert "the tenant's business hours never meet those hours" in desk.row(never)["errorMessage"]
    assert "never" not in desk.row(meets)["errorMessage"]
    desk.crm.execute(
        """UPDATE "CallQueue" SET "nextRetryAt" = now() + interval '1 day'"""
    )  # the page has its own clock
    with closing(Database(desk.database_url, "test")) as database:
        (warning,) = call_warnings(database)
    assert "business hours never meet" in warning


def test_thousands_of_calls_outside_their_hours_keep_no_other_waiting(desk: Desk) -> None:
    """Neither another tenant's, nor those of the same tenant behind them, for more than a moment."""
    crm = desk.crm
    crm.add_call_settings(maxConcurrentCalls=100)
    other = another_tenant(crm, **account(1))
    crm.execute(
        """INSERT INTO "CallQueue" (id, "tenantId", "phoneNumber", priority, "triggerType", "createdById",
                                    "createdAt", "updatedAt")
           SELECT 'night' || n, %s, '+9198' || lpad(n::text, 8, '0'), 9, 'manual', %s, %s, %s
           FROM generate_series(1, 3000) n""",
        (crm.tenant_id, crm.user_id, desk.now, desk.now),
    )  # fmt: skip
    behind = [add(desk, f"+1212555{place:04}", priority=1) for place in range(100, 103)]
    others = add(desk, "+12125550199", other)
    first = desk.tick()
    assert desk.status(others) == "completed"
    assert first.unfinished
    counts = desk.work(ticks=10)
    assert {desk.status(each) for each in behind} == {"completed"}
    assert first.counts["put_off"] + counts.get("put_off", 0) == 3000
    assert crm.value('SELECT count(*) FROM "CallQueue" WHERE "nextRetryAt" = %s AND attempts = 0', MORNING) == 3000
    result = desk.tick(seconds=11)
    assert (result.unfinished, result.next_at) == (False, MORNING)
    assert desk.gauge("window_waiting") == 3000


def test_a_call_whose_hours_end_before_it_leaves_is_not_placed(
    open_desk: OpenDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was chosen in time, but waited for a thread: it is put back, and waits for the morning."""
    monkeypatch.setattr("worker.calls.REQUEST_THREADS", 1)
    desk = open_desk(**LAWFUL)
    closes = datetime(2026, 11, 23, 15, 30)  # 21:00 in India  # noqa: DTZ001
    desk.now = closes - timedelta(seconds=2)
    desk.crm.add_call_settings()
    calls = [add(desk, number(place), priority=9 - place) for place in range(2)]
    desk.world.script("twilio", number(0), action="hang", seconds=3, times=1)
    total: dict[str, int] = {}
    for _ in range(100):
        for key, count in desk.tick().counts.items():
            total[key] = total.get(key, 0) + count
        if total["put_back"]:
            break
    assert (total["placed"], total["put_back"]) == (1, 1)
    desk.now = closes
    assert desk.work() == {"put_off": 1}
    assert next_retry(desk, calls[1]) == MORNING
    assert desk.row(calls[1])["attempts"] == 0
    assert desk.placed() == [number(0)]


def test_a_number_of_no_place_goes_by_its_tenants_clock(desk: Desk) -> None:
    """And by CALL_WINDOW: 08:00 in Tokyo is half past four in India."""
    crm = desk.crm
    crm.add_call_settings(timezone="Asia/Tokyo")
    queued = add(desk, NO_PLACE)
    assert desk.work() == {"put_off": 1}
    assert next_retry(desk, queued) == datetime(2026, 11, 23, 23)  # noqa: DTZ001


def test_a_zone_that_cannot_be_read(desk: Desk) -> None:
    """It matters only to numbers of no place: they fail as calls of a tenant do whose settings cannot be used."""
    desk.crm.add_call_settings(timezone="Mars/Olympus")
    lost, fine = add(desk, NO_PLACE), add(desk, NEW_YORK)
    assert desk.work() == {"retried": 1, "placed": 1}
    row = desk.row(lost)
    assert (row["status"], row["attempts"], desk.status(fine)) == ("pending", 1, "completed")
    assert row["errorMessage"].startswith("CallSettings.\"timezone\" is 'Mars/Olympus'")


def test_hours_that_never_come(open_desk: OpenDesk) -> None:
    """A number whose zones share no such hour is given up, with what to set."""
    desk = open_desk(**LAWFUL | {"CALL_WINDOWS": "+7=10:00-12:00"})
    desk.crm.add_call_settings()
    queued = add(desk, "+79161234567")
    assert desk.work() == {"failed": 1}
    assert "set CALL_WINDOWS=+7=" in desk.row(queued)["errorMessage"]


def test_other_hours_for_a_country(open_desk: OpenDesk) -> None:
    desk = open_desk(**LAWFUL | {"CALL_WINDOWS": "+91=00:00-24:00"})
    desk.now = NIGHT
    desk.crm.add_call_settings()
    add(desk, number(1))
    assert desk.work() == {"placed": 1}


def test_a_call_that_the_crm_cancels_or_moves_meanwhile(desk: Desk) -> None:
    """What is not pending any more, or another tenant's by now, is left as it is."""
    crm = desk.crm
    crm.add_call_settings()
    other = crm.add_tenant()
    cancelled, moved = add(desk, number(1)), add(desk, number(2))

    def change() -> None:
        crm.execute("""UPDATE "CallQueue" SET status = 'cancelled' WHERE id = %s""", (cancelled,))
        crm.execute("""UPDATE "CallQueue" SET "tenantId" = %s WHERE id = %s""", (other, moved))

    desk.database.before["put_off"] = change
    assert desk.tick().counts["put_off"] == 0
    assert [desk.row(each)["nextRetryAt"] for each in (cancelled, moved)] == [None, None]


def test_a_row_that_the_database_refuses_to_change(desk: Desk) -> None:
    """It is left alone for a while, and the others wait as they should."""
    crm = desk.crm
    crm.add_call_settings()
    refused, fine = add(desk, number(1)), add(desk, number(2))
    crm.execute(
        f"""CREATE FUNCTION refuse_waiting() RETURNS trigger LANGUAGE plpgsql
            AS $$ BEGIN RAISE EXCEPTION 'no'; END $$;
            CREATE TRIGGER refuse_waiting BEFORE UPDATE ON "CallQueue" FOR EACH ROW WHEN (OLD.id = '{refused}')
            EXECUTE FUNCTION refuse_waiting()"""
    )
    try:
        assert desk.work() == {"put_off": 1}
        assert (next_retry(desk, refused), next_retry(desk, fine)) == (None, MORNING)
    finally:
        crm.execute('DROP TRIGGER refuse_waiting ON "CallQueue"; DROP FUNCTION refuse_waiting()')


def test_two_workers_put_off_the_same_calls(open_desk: OpenDesk) -> None:
    """Each call waits once, whoever was first."""
    one, two = open_desk(**LAWFUL), open_desk(**LAWFUL)
    one.now = two.now = NIGHT
    one.crm.add_call_settings()
    calls = [add(one, number(place)) for place in range(5)]
    one.database.before["put_off"] = two.tick
    one.work()
    assert {next_retry(one, each) for each in calls} == {MORNING}
    assert one.placed() == []


GEO = "Twilio 21215; what to do: permit calls to it in Twilio's console"


def test_a_country_that_the_account_may_not_call(open_desk: OpenDesk, caplog: pytest.LogCaptureFixture) -> None:
    """One call learns it and loses an attempt; the others to that country wait, those to other countries go on."""
    desk = open_desk()
    crm = desk.crm
    crm.add_call_settings(maxConcurrentCalls=1, twilioPhoneNumber="+12125550199")
    text = "Account not authorized to call +44"
    for place in range(3):
        desk.world.script("twilio", f"+44207946000{place}", status=400, code=21215, text=f"{text}207946000{place}")
    british = [add(desk, f"+44207946000{place}", priority=9) for place in range(3)]
    american = add(desk, NEW_YORK)
    assert desk.work() == {"retried": 1, "put_off": 2, "placed": 1}
    assert desk.status(american) == "completed"
    rows = [desk.row(each) for each in british]
    assert sorted(row["attempts"] for row in rows) == [0, 0, 1]
    assert {row["status"] for row in rows} == {"pending"}
    assert sorted(row["errorMessage"] for row in rows)[1].startswith(f"not called yet: {GEO}")
    until = desk.now + timedelta(seconds=600)
    assert max(filter(None, (next_retry(desk, each) for each in british))) <= until
    (told,) = said(caplog, "Twilio refuses calls of a tenant")
    assert told["tenant"] == crm.tenant_id
    assert "44207" not in told["reason"]
    desk.hang_up()
    desk.world.clear_script()
    crm.execute('UPDATE "CallSettings" SET "updatedAt" = now()')  # permitted in Twilio's console
    assert desk.work(seconds=601)["placed"] == 1
    assert len(said(caplog, "Twilio refuses calls of a tenant")) == 1


def test_a_country_is_not_all_of_its_calling_code(open_desk: OpenDesk) -> None:
    """An account that may not call Jamaica calls the USA, which have the same code."""
    desk = open_desk()
    desk.crm.add_call_settings(twilioPhoneNumber="+12125550199", maxConcurrentCalls=1)
    desk.world.script("twilio", "+18765550100", status=400, code=21215)
    jamaica = [add(desk, f"+1876555010{place}", priority=9) for place in range(2)]
    american = add(desk, NEW_YORK)
    assert desk.work() == {"retried": 1, "put_off": 1, "placed": 1}
    assert [desk.status(each) for each in (*jamaica, american)] == ["pending", "pending", "completed"]


def test_another_tenants_account_is_asked_itself(open_desk: OpenDesk) -> None:
    """Twilio refused one account a country, and not its country to all."""
    desk = open_desk()
    crm = desk.crm
    crm.add_call_settings(twilioPhoneNumber="+12125550199")
    other = another_tenant(crm, **account(1), twilioPhoneNumber="+12125550198")
    desk.world.script("twilio", "+442079460001", status=400, code=32205)
    add(desk, "+442079460001")
    assert desk.work() == {"retried": 1}
    add(desk, "+442079460002")
    good = add(desk, "+442079460003", other)
    assert desk.work() == {"put_off": 1, "placed": 1}
    assert desk.status(good) == "completed"


@pytest.mark.parametrize(("code", "status"), [(99999, 400), (21216, 400), (21215, 400)])
def test_an_indian_number_that_may_not_call_india(
    code: int, status: int, open_desk: OpenDesk, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is forbidden beforehand. When Twilio refuses, the log says so once, and the row says what to change."""
    desk = open_desk()
    desk.crm.add_call_settings(twilioPhoneNumber=accounts.TWILIO_NUMBER, maxConcurrentCalls=1)
    desk.world.script("twilio", status=status, code=code, text="Account not allowed to call +919800000001")
    first, second = add(desk, number(1), priority=9), add(desk, number(2))
    desk.work()
    reason = desk.row(first)["errorMessage"]
    assert reason.startswith(f"Twilio {code}: Account not allowed")
    assert "; what to do: Twilio carries no calls from Indian to Indian numbers: enter a phone number of" in reason
    assert "Twilio carries no calls" in desk.row(second)["errorMessage"]
    assert len(said(caplog, "Twilio refuses calls of a tenant")) == 1
    assert len(json.dumps(reason)) < 520
    crm = desk.crm
    crm.execute('UPDATE "Tenant" SET name = %s WHERE id = %s', ("Chai Point", crm.tenant_id))
    with closing(Database(desk.database_url, "test")) as database:
        (warning,) = call_warnings(database)
        assert warning.startswith(
            "Calls of the tenant Chai Point are not placed: Twilio carries no calls from Indian"
        )
        crm.execute('UPDATE "CallQueue" SET "errorMessage" = NULL')
        assert call_warnings(database) == []


def test_twilios_limit_of_calls_at_once_costs_one_attempt(open_desk: OpenDesk) -> None:
    """The account backs off, by Retry-After if there is one; its other calls wait and lose nothing."""
    desk = open_desk()
    desk.crm.add_call_settings(maxConcurrentCalls=1, twilioPhoneNumber="+12125550199")
    desk.world.script("twilio", status=429, code=10004, retry_after="90", times=1)
    queued, other = add(desk, number(1), priority=9), add(desk, number(2))
    assert desk.work() == {"retried": 1}
    assert desk.work(seconds=60) == {}
    assert desk.row(other)["attempts"] == 0
    assert desk.work(seconds=31) == {"placed": 1}
    assert desk.row(queued)["attempts"] == 1
