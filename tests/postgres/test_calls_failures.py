"""Calls that are not placed: what Twilio refuses, what is tried again and when, and settings that cannot work."""

from contextlib import closing
from datetime import datetime, timedelta
from typing import Any

import pytest
import redis
from desk import Desk, Listener, OpenDesk, account, another_tenant, number

from sandbox import accounts
from sandbox.ports import free_port


def waits(row: dict[str, Any]) -> timedelta:
    """From the attempt that failed to the next one."""
    return datetime.fromisoformat(row["nextRetryAt"]) - datetime.fromisoformat(row["lastAttemptAt"])


@pytest.mark.parametrize(("status", "code"), [(500, 20500), (503, 20503), (429, 20429), (400, 21299), (409, None)])
def test_a_failed_call_is_tried_again_after_2_4_8_minutes(status: int, code: int | None, desk: Desk) -> None:
    """Each attempt is counted and its reason kept; after the last one the call is failed."""
    crm = desk.crm
    crm.add_call_settings()
    desk.world.script("twilio", status=status, code=code, text="no lines free")
    queued = crm.add_call(maxAttempts=4)
    for attempt, minutes in enumerate((2, 4, 8), start=1):
        assert desk.work() == {"retried": 1}
        row = desk.row(queued)
        assert (row["status"], row["attempts"], row["callLogId"]) == ("pending", attempt, None)
        assert "no lines free" in row["errorMessage"]
        assert waits(row) == timedelta(minutes=minutes)
        assert row["lastAttemptAt"] == row["updatedAt"]
        assert desk.tick(seconds=60 * minutes - 1).counts["retried"] == 0
        desk.advance(1)
    assert desk.work() == {"failed": 1}
    row = desk.row(queued)
    assert (row["status"], row["attempts"], row["nextRetryAt"]) == ("failed", 4, None)
    assert "no lines free" in row["errorMessage"]
    assert (desk.claims(), desk.logs()) == (0, [])


def test_a_call_that_succeeds_at_last_keeps_no_error(desk: Desk) -> None:
    """Its attempts stay counted; reason and next time are cleared."""
    desk.crm.add_call_settings()
    desk.world.script("twilio", status=500, times=1)
    queued = desk.crm.add_call()
    desk.work()
    assert desk.work(seconds=120) == {"placed": 1}
    row = desk.row(queued)
    assert (row["status"], row["attempts"], row["errorMessage"], row["nextRetryAt"]) == ("completed", 1, None, None)


def test_a_twilio_that_cannot_be_connected_to(open_desk: OpenDesk) -> None:
    """The call was certainly not placed: it is tried again in two minutes, without asking."""
    desk = open_desk(TWILIO_API_URL=f"http://127.0.0.1:{free_port()}")
    desk.crm.add_call_settings()
    queued = desk.crm.add_call()
    assert desk.work() == {"retried": 1}
    row = desk.row(queued)
    assert (row["status"], row["attempts"], desk.claims()) == ("pending", 1, 0)
    assert "not handed over" in row["errorMessage"]


def test_the_providers_own_delay_is_obeyed(desk: Desk) -> None:
    """A Retry-After that is longer than our pause counts, for the call and for its account."""
    desk.crm.add_call_settings()
    desk.world.script("twilio", status=429, code=20429, retry_after="600", times=1)
    queued = desk.crm.add_call()
    desk.work()
    assert waits(desk.row(queued)) == timedelta(seconds=600)


def test_an_account_that_is_deferred_is_in_backoff_and_the_others_go_on(desk: Desk) -> None:
    """Its other calls lose no attempt meanwhile."""
    crm = desk.crm
    tenants = [another_tenant(crm, **account(place), maxConcurrentCalls=1) for place in range(2)]
    for place in range(3):
        crm.add_call(tenants[0], phoneNumber=number(place))
        crm.add_call(tenants[1], phoneNumber=number(10 + place))
    for place in range(3):
        desk.world.script("twilio", number(place), status=429, code=20429)
    desk.work()
    for _ in range(3):
        desk.hang_up()
        desk.work(seconds=1)
    statement = 'SELECT sum(attempts) FROM "CallQueue" WHERE "tenantId" = %s'
    assert [crm.value(statement, each) for each in tenants] == [1, 0]
    assert set(desk.placed()) == {number(10), number(11), number(12)}


@pytest.mark.parametrize("code", [21211, 21214, 21216, 21217])
def test_a_number_that_twilio_refuses_is_given_up(code: int, desk: Desk) -> None:
    """At the first attempt, with Twilio's words; Twilio is not asked again, and no other call waits."""
    desk.crm.add_call_settings(maxConcurrentCalls=1, twilioPhoneNumber="+12125550100")
    desk.world.script("twilio", number(1), status=400, code=code, text="cannot be reached")
    queued = desk.crm.add_call(phoneNumber=number(1), priority=9)
    other = desk.crm.add_call(phoneNumber=number(2))
    assert desk.work() == {"failed": 1, "placed": 1}
    row = desk.row(queued)
    assert (row["status"], row["attempts"], row["errorMessage"]) == ("failed", 1, f"Twilio {code}: cannot be reached")
    assert desk.status(other) == "completed"
    assert desk.crm.value("SELECT count(*) FROM worker.suppression") == 0


def test_a_number_that_opted_out_is_never_called_again(desk: Desk) -> None:
    """Not by a later call of that tenant, however the number is written there; another tenant may call it."""
    crm = desk.crm
    crm.add_call_settings()
    other = another_tenant(crm, **account(1))
    desk.world.script("twilio", number(1), status=400, code=21610, times=1)
    first = crm.add_call(phoneNumber=number(1))
    assert desk.work() == {"failed": 1}
    assert crm.execute("SELECT tenant_id, channel FROM worker.suppression") == [(crm.tenant_id, "call")]
    again = [crm.add_call(phoneNumber=each) for each in (number(1), "098000-00001", "00919800000001")]
    another = crm.add_call(other, phoneNumber=number(1))
    assert desk.work() == {"failed": 3, "placed": 1}
    assert desk.status(another) == "completed"
    for queue_id in [first, *again]:
        row = desk.row(queue_id)
        assert (row["status"], row["attempts"]) == ("failed", 1)
        assert "21610" in row["errorMessage"]


def test_an_account_that_is_refused_is_in_backoff_until_it_is_corrected(desk: Desk) -> None:
    """The call on its way loses an attempt; the others wait and lose none. A new token is tried at once."""
    crm = desk.crm
    tenants = [another_tenant(crm, **account(place), maxConcurrentCalls=1) for place in range(2)]
    for place, tenant_id in enumerate(tenants):
        for each in range(3):
            crm.add_call(tenant_id, phoneNumber=number(10 * place + each))
    desk.world.revoke("sandbox-token-0")
    assert desk.work() == {"retried": 1, "placed": 1}
    for _ in range(2):
        desk.hang_up()
        assert desk.work(seconds=30) == {"placed": 1}
    assert crm.value('SELECT max("errorMessage") FROM "CallQueue"') == "Twilio 20003: Authenticate"
    assert crm.value('SELECT sum(attempts) FROM "CallQueue"') == 1
    crm.execute("""UPDATE "CallSettings" SET "twilioAuthToken" = 'sandbox-token-new' WHERE "tenantId" = %s""",
                (tenants[0],))  # fmt: skip
    desk.hang_up()
    assert desk.work(seconds=30) == {"placed": 1}


def test_a_wrong_token_of_one_tenant_does_not_stop_another_with_the_same_account(desk: Desk) -> None:
    """Twilio refused the credentials, not the account."""
    crm = desk.crm
    wrong = another_tenant(crm, **account(1) | {"twilioAuthToken": "wrong"})
    right = another_tenant(crm, **account(1))
    for place, tenant_id in enumerate([wrong, wrong, right, right]):
        crm.add_call(tenant_id, phoneNumber=number(place))
    desk.work()
    crm.add_call(right, phoneNumber=number(5))
    desk.work()
    assert set(desk.placed()) == {number(2), number(3), number(5)}


UNCONFIGURED: list[dict[str, Any]] = [
    {"twilioAccountSid": None}, {"twilioAuthToken": None}, {"twilioPhoneNumber": None}, {"twilioAccountSid": " "},
    {"twilioAuthToken": ""}, {"twilioAccountSid": "AC/../../Accounts"}, {"twilioAccountSid": "x" * 100_000},
    {"twilioAuthToken": "pass\r\nword"}, {"twilioAuthToken": "पासवर्ड"}, {"twilioPhoneNumber": "client:asha"},
    {"twilioPhoneNumber": "+91"}, {"twilioPhoneNumber": "080 \u0000".rstrip("\u0000")},
]  # fmt: skip


@pytest.mark.parametrize("columns", UNCONFIGURED, ids=lambda each: str(each)[:40])
def test_settings_that_name_no_account(columns: dict[str, Any], desk: Desk) -> None:
    """The calls' rows say what to configure and are tried again as often as they allow; other tenants are served."""
    crm = desk.crm
    crm.add_call_settings(**columns)
    queued = crm.add_call(maxAttempts=2)
    other = crm.add_call(another_tenant(crm, **account(1)))
    with closing(Listener(desk)) as listener:
        assert desk.work() == {"retried": 1, "placed": 1}
        assert "call:error" in {name for _, name, _ in listener.heard()}
    row = desk.row(queued)
    assert (row["status"], row["attempts"], desk.status(other)) == ("pending", 1, "completed")
    assert row["errorMessage"].startswith("Twilio")
    assert accounts.TWILIO_AUTH_TOKEN not in row["errorMessage"]
    desk.work(seconds=120)
    assert (desk.status(queued), desk.row(queued)["attempts"]) == ("failed", 2)


def test_a_call_cancelled_before_it_fails_stays_cancelled(desk: Desk) -> None:
    """The CRM cancels an undialable call after the worker has read it: its row stays as the CRM left it."""
    desk.crm.add_call_settings()
    queued = desk.crm.add_call(phoneNumber="nonsense")
    cancel = """UPDATE "CallQueue" SET status = 'cancelled'"""
    desk.database.before["fail_unclaimed"] = lambda: desk.crm.execute(cancel)
    assert desk.work() == {}
    row = desk.row(queued)
    assert (row["status"], row["attempts"], row["errorMessage"]) == ("cancelled", 0, None)


def test_a_tenant_without_settings(desk: Desk) -> None:
    """It is treated as one whose settings name no account."""
    queued = desk.crm.add_call()
    assert desk.work() == {"retried": 1}
    assert "not configured" in desk.row(queued)["errorMessage"]


MALFORMED: list[dict[str, Any]] = [
    {"businessHoursStart": "nine"}, {"businessHoursEnd": "25:00"}, {"businessDays": "mon"}, {"businessDays": [1, 2]},
    {"businessDays": {"value": {"a": []}}}, {"timezone": "Mars/Olympus"}, {"timezone": "../../etc/passwd"},
    {"timezone": "x" * 10_000}, {"businessHoursStart": "'; DROP TABLE"}, {"businessDays": {"value": "mon"}},
]  # fmt: skip


@pytest.mark.parametrize("columns", MALFORMED, ids=lambda each: str(each)[:40])
def test_hours_that_cannot_be_read(columns: dict[str, Any], desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """No phone rings on a guess: the calls wait, the log says why, once. The other tenants are served."""
    crm = desk.crm
    hours = {"enableBusinessHours": True, "businessHoursStart": "00:00", "businessHoursEnd": "24:00"}
    crm.add_call_settings(**hours | columns)
    queued = crm.add_call()
    other = crm.add_call(another_tenant(crm, **account(1)))
    for _ in range(3):
        desk.work()
    assert (desk.status(queued), desk.row(queued)["attempts"]) == ("pending", 0)
    assert desk.status(other) == "completed"
    assert sum(record.getMessage() == "a tenant's calls wait" for record in caplog.records) == 1


@pytest.mark.parametrize(
    "columns",
    [{"callTimeout": 2_147_483_647}, {"callTimeout": -2_147_483_648}, {"callTimeout": 0},
     {"twilioPhoneNumber": " 080 4711 2233 "}, {"twilioAuthToken": f" {accounts.TWILIO_AUTH_TOKEN}\n"}],
    ids=str,
)  # fmt: skip
def test_settings_that_can_be_understood(columns: dict[str, Any], desk: Desk) -> None:
    """Extremes are brought into Twilio's limits, and blanks around a number or a token are dropped."""
    desk.crm.add_call_settings(**columns)
    desk.crm.add_call()
    assert desk.work() == {"placed": 1}
    assert desk.work(seconds=30) == {}
    assert [log["twilioStatus"] for log in desk.logs()] == ["queued"]


def test_columns_that_may_be_null(desk: Desk) -> None:
    """In a CRM whose columns allow it, the defaults take the place of null."""
    crm = desk.crm
    for column in ("maxConcurrentCalls", "callTimeout", "enableRecording", "enableBusinessHours", "timezone"):
        crm.execute(f'ALTER TABLE "CallSettings" ALTER COLUMN "{column}" DROP NOT NULL')
    crm.add_call_settings(
        maxConcurrentCalls=None, callTimeout=None, enableRecording=None, enableBusinessHours=None, timezone=None
    )
    for place in range(7):
        crm.add_call(phoneNumber=number(place))
    assert desk.work() == {"placed": 5}


def test_an_unavailable_redis_costs_no_call(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tick fails before anything is claimed, since the pace cannot be read; the next one goes on."""
    desk.crm.add_call_settings()
    queued = desk.crm.add_call()
    with monkeypatch.context() as patched:
        patched.setattr("worker.sending.pacing.Pace.take", out_of_reach)
        with pytest.raises(redis.ConnectionError):
            desk.tick()
    assert (desk.status(queued), desk.claims()) == ("pending", 0)
    assert desk.work() == {"placed": 1}


def out_of_reach(*_: object) -> None:
    raise redis.ConnectionError("unavailable")
