"""What the calls jobs of all workers share: a tenant's slots, turns between tenants, an account's pace."""

import secrets
import threading
import time
from collections import Counter
from datetime import datetime

import psycopg2
import pytest
from desk import Desk, OpenDesk, account, another_tenant, number

from sandbox.crm import Crm
from worker.runtime.db import Database, queries

SHARED = account(7)


def add_calls(crm: Crm, count: int, tenant_id: str | None = None, first: int = 0) -> None:
    for place in range(first, first + count):
        crm.add_call(tenant_id, phoneNumber=number(place))


def add_many(crm: Crm, tenant_id: str, count: int, phone: str = "'+9170' || (10000000 + n)") -> None:
    """Adds many queued calls in one statement."""
    crm.add_call(tenant_id, status="cancelled")  # makes the tenant's user
    crm.execute(
        f"""INSERT INTO "CallQueue" (id, "tenantId", "phoneNumber", "triggerType", "createdById", "updatedAt")
            SELECT gen_random_uuid()::text, q."tenantId", {phone}, 'manual', q."createdById", q."updatedAt"
            FROM "CallQueue" q, generate_series(1, %s) n WHERE q."tenantId" = %s AND q.status = 'cancelled'""",
        (count, tenant_id),
    )


def add_log(crm: Crm, status: str, **columns: object) -> str:
    row = {"phoneNumber": number(999), "direction": "outbound", "twilioStatus": status, "triggerType": "manual"}
    row |= {"tenantId": crm.tenant_id, "twilioCallSid": f"CA{secrets.token_hex(16)}", "createdById": crm.user_id}
    return crm.insert("CallLog", row | columns)


def test_calls_on_their_way_use_slots(desk: Desk) -> None:
    """Queued, ringing and in-progress calls count, also those that the worker did not place; ended ones do not."""
    crm = desk.crm
    crm.add_call_settings(maxConcurrentCalls=5)
    for status in ("queued", "ringing", "in-progress", "completed", "busy", "failed", "no-answer", "canceled"):
        add_log(crm, status)
    add_calls(crm, 10)
    assert desk.work() == {"placed": 2}
    desk.hang_up()
    assert desk.work() == {"placed": 5}


@pytest.mark.parametrize(("limit", "placed"), [(0, 0), (-3, 0), (2_147_483_647, 30), (-2_147_483_648, 0)])
def test_any_limit_that_a_column_can_hold(limit: int, placed: int, desk: Desk) -> None:
    """Zero, below zero, or more than anybody needs: the other tenants are served all the same."""
    crm = desk.crm
    crm.add_call_settings(maxConcurrentCalls=limit)
    add_calls(crm, 30)
    other = another_tenant(crm, **account(1), maxConcurrentCalls=1)
    add_calls(crm, 2, other, first=100)
    assert desk.work() == {"placed": placed + 1}


def test_an_unconfirmed_call_uses_a_slot(desk: Desk) -> None:
    """It may be ringing."""
    crm = desk.crm
    crm.add_call_settings(maxConcurrentCalls=2)
    add_calls(crm, 4)
    desk.world.script("twilio", number(0), action="cut-after")
    assert desk.work() == {"placed": 1}
    assert (desk.claims(), desk.statuses()) == (1, {"processing": 1, "completed": 1, "pending": 2})


def meet_before_claiming(desk: Desk, barrier: threading.Barrier) -> None:
    """The worker chooses its calls, and claims them only when the other one has chosen, too."""
    desk.database.before["lock_claiming"] = barrier.wait


def choose_from_the_other_end(desk: Desk) -> None:
    """The two workers want different rows, so no row lock keeps them apart."""
    order = 'ORDER BY q.priority DESC, q."createdAt", q.id'
    candidates = queries("calls")["candidates"]
    assert order in candidates
    desk.database.texts["candidates"] = candidates.replace(
        order, 'ORDER BY q.priority, q."createdAt" DESC, q.id DESC'
    )


def test_two_workers_that_claim_at_the_same_instant_keep_to_the_limit(open_desk: OpenDesk) -> None:
    """Both choose calls, then both claim at once, again and again: never more than the slots, none twice."""
    pair = [open_desk(), open_desk()]
    crm, rounds = pair[0].crm, 20
    tenants = [another_tenant(crm, **account(place), maxConcurrentCalls=3) for place in range(3)]
    for place, tenant_id in enumerate(tenants):
        add_calls(crm, 3 * rounds, tenant_id, first=100 * place)
    barrier = threading.Barrier(2, timeout=20)
    for desk in pair:
        meet_before_claiming(desk, barrier)
    choose_from_the_other_end(pair[1])
    live = """SELECT "tenantId", count(*) FROM "CallLog" WHERE "twilioStatus" = 'queued' GROUP BY 1"""
    for _ in range(rounds):
        threads = [threading.Thread(target=desk.tick) for desk in pair]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert pair[0].claims() == 0
        assert all(calls <= 3 for _, calls in crm.execute(live))
        pair[0].hang_up()
    assert not barrier.broken
    assert pair[0].world.duplicates("twilio") == {}
    assert len(pair[0].placed()) == len(pair[0].logs()) >= 3 * rounds, "one of them could claim each time"


def test_a_worker_that_freezes_while_it_claims_does_not_keep_the_lock(open_desk: OpenDesk) -> None:
    """The server ends its session, the others claim, and it has claimed nothing when it wakes up."""
    frozen, other = open_desk(), open_desk()
    other.crm.add_call_settings()
    add_calls(other.crm, 1)
    with pytest.raises(psycopg2.OperationalError, match=r"idle-in-transaction|closed the connection"):
        freeze_while_claiming(frozen.database, other)
    assert frozen.work() == {}


def freeze_while_claiming(db: Database, other: Desk) -> None:
    with db.transaction():
        assert db.execute(queries("calls")["lock_claiming"], claim_seconds=1, timeline="")
        assert other.tick().counts["placed"] == 0, "the frozen one has the lock"
        assert other.work() == {"placed": 1}
        db.all("SELECT 1")


def test_a_lock_lost_in_mid_tick_stops_the_claiming(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was claimed is placed and booked; the rest is left to the new holder of the lock."""
    monkeypatch.setattr("worker.calls.ACCOUNTS_AT_ONCE", 2)
    for place in range(6):
        add_calls(desk.crm, 1, another_tenant(desk.crm, **account(place)), first=place)
    desk.database.before["lock_claiming"] = lambda: setattr(desk.lock, "held", False)
    desk.tick()
    assert desk.statuses() == {"completed": 2, "pending": 4}
    assert desk.claims() == 0


def test_a_short_queue_is_not_kept_waiting_by_a_long_one(open_desk: OpenDesk) -> None:
    """One tenant has 5,000 calls waiting; another's single call, queued later, is placed in the next round."""
    desk = open_desk(TWILIO_RATE="1")
    crm = desk.crm
    crm.add_call_settings(maxConcurrentCalls=10_000)
    add_many(crm, crm.tenant_id, 5000)
    desk.tick()
    add_calls(crm, 1, another_tenant(crm, **account(1)))
    desk.tick()
    assert number(0) in desk.placed()
    assert len(desk.placed()) <= 3


def test_two_tenants_of_one_slow_account_take_turns(open_desk: OpenDesk) -> None:
    """One has 5,000 calls, the other two: neither gets two turns in a row while the other waits."""
    desk = open_desk(TWILIO_RATE="4")
    crm = desk.crm
    crm.add_call_settings(**SHARED, maxConcurrentCalls=10_000)
    add_many(crm, crm.tenant_id, 5000)
    desk.tick()
    other = another_tenant(crm, **SHARED)
    add_calls(crm, 2, other)
    before = len(desk.placed())
    deadline = time.monotonic() + 10
    while len(desk.placed()) < before + 4 and time.monotonic() < deadline:
        desk.sleep_until(desk.tick().next_at)
    assert {number(0), number(1)} <= set(desk.placed()[before : before + 4])


def test_many_calls_of_one_tenant_do_not_fill_a_round(open_desk: OpenDesk) -> None:
    """However fast its account is, a tenant places a few calls, and then it is the others' turn."""
    desk = open_desk(TWILIO_RATE="100000")
    crm = desk.crm
    crm.add_call_settings(maxConcurrentCalls=1000)
    add_many(crm, crm.tenant_id, 60)
    for place in range(40):
        add_calls(crm, 1, another_tenant(crm, **account(place)), first=place)
    desk.world.script("twilio", action="hang", seconds=0.02)
    desk.tick()
    by_account = Counter(call.account for call in desk.world.deliveries("twilio"))
    assert len(by_account) == 41, "each tenant had a turn"
    assert max(by_account.values()) == 5
    assert desk.work() == {"placed": 55}


def test_the_pace_of_an_account_holds_over_workers_and_tenants(open_desk: OpenDesk) -> None:
    """Two workers, two tenants, one account: Twilio refuses what comes too fast, and it refuses nothing."""
    rate, calls = 20, 50
    pair = [open_desk(TWILIO_RATE=str(rate)) for _ in range(2)]
    crm, world = pair[0].crm, pair[0].world
    world.set_rates(twilio_rate=rate)
    for place in range(2):
        add_calls(crm, 25, another_tenant(crm, **SHARED, maxConcurrentCalls=100), first=100 * place)
    began = time.monotonic()
    deadline = began + 20

    def work(desk: Desk) -> None:
        while world.total("twilio") < calls and time.monotonic() < deadline:
            desk.sleep_until(desk.tick().next_at or desk.now)

    threads = [threading.Thread(target=work, args=(desk,)) for desk in pair]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert world.refusals("twilio") == []
    assert world.total("twilio") == calls
    assert world.duplicates("twilio") == {}
    assert (calls - rate) / rate <= time.monotonic() - began


HOSTILE = ["", " ", "12", "abc", "+", "+91", "999999999999999999999", "\u202e98765\u202c", "'; DROP TABLE x; --",
           "+919876543210\r\nTo: +1", "9" * 10_000, "٩٨٧", "{{phone}}", "+0000000000"]  # fmt: skip


def test_a_number_that_cannot_be_dialled_fails_at_once_and_uses_no_slot(desk: Desk) -> None:
    """The row gets the reason, whatever the column holds."""
    crm = desk.crm
    crm.add_call_settings(maxConcurrentCalls=1)
    bad = [crm.add_call(phoneNumber=each, priority=9) for each in HOSTILE]
    bad.append(crm.add_call(phoneNumber="98765 43210", phoneCountryCode="India", priority=9))
    good = crm.add_call(phoneNumber=number(1))
    assert desk.work() == {"failed": len(bad), "placed": 1}
    assert desk.status(good) == "completed"
    for queue_id in bad:
        row = desk.row(queue_id)
        assert (row["status"], row["attempts"], row["nextRetryAt"]) == ("failed", 1, None)
        assert row["errorMessage"].startswith("not a ")
        assert len(row["errorMessage"]) <= 500
        assert datetime.fromisoformat(row["lastAttemptAt"]) == desk.now


def test_500_undialable_numbers_do_not_keep_the_next_one_waiting(desk: Desk) -> None:
    """All of them fail in one run, round after round, and the good one behind them is called."""
    crm = desk.crm
    crm.add_call_settings(maxConcurrentCalls=1)
    add_many(crm, crm.tenant_id, 500, phone="'12'")
    good = crm.add_call(phoneNumber=number(1), priority=1)
    assert desk.work() == {"failed": 500, "placed": 1}
    assert desk.status(good) == "completed"


def test_two_calls_to_one_number_go_out_one_after_the_other(desk: Desk) -> None:
    """Twilio is asked by number, so the second one is claimed after the first one is booked; --once does both."""
    desk.crm.add_call_settings()
    both = [desk.crm.add_call(phoneNumber=each) for each in (number(1), "098000 00001")]
    assert desk.work() == {"placed": 2}
    sids = {desk.log_of(each)["twilioCallSid"] for each in both}
    assert len(sids) == 2
