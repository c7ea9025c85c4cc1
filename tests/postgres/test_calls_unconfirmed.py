"""Unconfirmed calls and lost webhooks: Twilio is asked, and each call is booked or placed again, exactly once."""

import threading
from collections.abc import Callable
from contextlib import closing
from datetime import datetime, timedelta
from typing import Any

import psycopg2
import pytest
from desk import APP_URL, ASK_SECONDS, Desk, Listener, OpenDesk, account, another_tenant, claim_due, number

from sandbox import accounts
from worker.calling.queued_call import Booking, ClaimedCall
from worker.calling.settlement import CallSettlement
from worker.errors import RecipientRefused
from worker.providers.http import HttpPool
from worker.providers.twilio import PlacedCall, TwilioProvider

DAY = 24 * 3600.0


def add_call(desk: Desk, place: int = 1, **columns: Any) -> str:
    return desk.crm.add_call(phoneNumber=number(place), **columns)


def sids(desk: Desk, place: int = 1) -> list[str]:
    return [call.external_id for call in desk.world.deliveries("twilio", number(place))]


def leave_behind(desk: Desk, placed: bool, place: int = 1) -> str:
    """A call whose worker died after the claim, before or after Twilio had it."""
    queued = add_call(desk, place)
    desk.world.script("twilio", number(place), action="cut-after" if placed else "cut-before", times=1)
    desk.tick()
    orphan(desk)
    return queued


def orphan(desk: Desk) -> None:
    """The holders of all claims are dead processes now."""
    desk.crm.execute(
        "UPDATE worker.call_claim SET ask_at = NULL, reason = NULL, "
        "holder = split_part(holder, ':', 1) || ':2147483646:' || split_part(holder, ':', 3)"
    )


@pytest.mark.parametrize(("action", "placed"), [("cut-before", False), ("cut-after", True)])
def test_a_cut_connection_is_settled_by_asking(action: str, placed: bool, desk: Desk) -> None:
    """Half a minute later a call that Twilio knows is booked, and one that it does not know is tried again."""
    desk.crm.add_call_settings()
    queued = add_call(desk)
    desk.world.script("twilio", action=action, times=1)
    result = desk.tick()
    assert (desk.status(queued), desk.claims()) == ("processing", 1)
    assert result.next_at == desk.now + timedelta(seconds=30)
    assert not result.unfinished
    assert desk.tick(seconds=29).counts["asked"] == 0
    counts = desk.work(seconds=1.5)
    row = desk.row(queued)
    if placed:
        assert counts == {"asked": 1, "placed": 1}
    else:
        assert counts == {"asked": 1, "retried": 1}
        assert (row["status"], row["attempts"]) == ("pending", 1)
        assert "Twilio knows of no call" in row["errorMessage"]
        assert desk.work(seconds=120) == {"placed": 1}
    row = desk.row(queued)
    assert (row["status"], row["errorMessage"]) == ("completed", None)
    assert sids(desk) == [desk.log_of(queued)["twilioCallSid"]]
    assert (desk.claims(), len(desk.logs())) == (0, 1)


@pytest.mark.parametrize("body", ["not json", "[]", '{"sid": "CA1"}', '{"status": "queued"}'])
def test_an_answer_without_a_sid_is_settled_by_asking(body: str, desk: Desk) -> None:
    """Twilio took a call, but did not say which: the one that it lists is booked."""
    desk.crm.add_call_settings()
    queued = add_call(desk)
    desk.world.script("twilio", status=201, body=body, times=1)
    desk.work()
    assert desk.status(queued) == "processing"
    assert desk.work(seconds=ASK_SECONDS) == {"asked": 1, "placed": 1}
    assert sids(desk) == [desk.log_of(queued)["twilioCallSid"]]


def test_an_unconfirmed_call_is_booked_with_its_present_status(desk: Desk) -> None:
    """Its webhooks came before its CallLog row, which would keep its slot; the CRM does not know 'initiated'."""
    desk.crm.add_call_settings()
    for place, status in ((1, "completed"), (2, "initiated"), (3, "no-answer")):
        add_call(desk, place)
        desk.world.script("twilio", number(place), action="cut-after", times=1)
        desk.work()
        desk.world.set_call(sids(desk, place)[0], status)
    desk.work(seconds=ASK_SECONDS)
    assert {log["phoneNumber"]: log["twilioStatus"] for log in desk.logs()} == {
        number(1): "completed", number(2): "queued", number(3): "no-answer",
    }  # fmt: skip


def test_a_hanging_twilio_does_not_delay_the_others(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """The tick ends all the same; the answer is booked when it comes, and the call is not orphaned meanwhile."""
    desk.crm.add_call_settings()
    other = another_tenant(desk.crm, **account(1))
    queued = add_call(desk)
    desk.world.script("twilio", number(1), action="hang", seconds=2, times=1)
    result = desk.tick()
    assert (desk.status(queued), result.unfinished) == ("processing", True)
    late = desk.crm.add_call(other, phoneNumber=number(2))
    assert desk.tick(seconds=ASK_SECONDS).counts["asked"] == 0
    assert desk.status(late) == "completed"
    desk.work()
    assert desk.status(queued) == "completed"
    assert len(desk.placed()) == 2
    assert caplog.messages == []


def test_a_twilio_that_cannot_be_asked_is_asked_later_and_later(desk: Desk) -> None:
    """After a day the call fails as unconfirmed, and is never placed again, because it may have been placed."""
    desk.crm.add_call_settings()
    queued = add_call(desk)
    desk.world.script("twilio", action="cut-after", times=1)
    desk.work()
    desk.world.script("twilio", stage="list", status=500)
    pauses = []
    for _ in range(8):
        result = desk.tick(seconds=ASK_SECONDS if not pauses else pauses[-1])
        assert result.counts["asked"] == 1
        assert result.next_at
        pauses.append((result.next_at - desk.now).total_seconds())
    assert pauses == [60, 120, 240, 480, 600, 600, 600, 600]
    assert (desk.status(queued), desk.claims()) == ("processing", 1)
    assert desk.tick(seconds=DAY).counts["failed"] == 1
    row = desk.row(queued)
    assert row["status"] == "failed"
    assert row["errorMessage"].startswith("Unconfirmed, it may have been placed: ")
    assert (desk.claims(), len(desk.placed())) == (0, 1)
    assert desk.counter("unconfirmed_total", channel="call") == 1
    desk.world.clear_script()
    assert desk.work(seconds=DAY) == {}


def test_one_failed_question_is_not_enough_after_a_long_downtime(desk: Desk) -> None:
    """The worker was down over the weekend and its first question fails: it asks again before it gives up."""
    desk.crm.add_call_settings()
    queued = leave_behind(desk, placed=True)
    desk.crm.execute("UPDATE worker.call_claim SET claimed_at = claimed_at - interval '3 days'")
    desk.world.script("twilio", stage="list", action="cut-before", times=2)
    desk.tick()
    for seconds in (ASK_SECONDS, 61):
        assert desk.tick(seconds=seconds).counts["failed"] == 0
    assert desk.work(seconds=121) == {"asked": 1, "placed": 1}
    assert desk.status(queued) == "completed"


@pytest.mark.parametrize("placed", [True, False])
def test_the_calls_of_a_dead_process_are_settled(placed: bool, desk: Desk) -> None:
    """Found at once, asked about in half a minute; one that was not placed loses no attempt and is placed then."""
    desk.crm.add_call_settings()
    queued = leave_behind(desk, placed)
    result = desk.tick()
    assert (desk.status(queued), result.next_at) == ("processing", desk.now + timedelta(seconds=30))
    counts = desk.work(seconds=ASK_SECONDS)
    assert counts == {"asked": 1, "placed": 1} | ({} if placed else {"put_back": 1})
    row = desk.row(queued)
    assert (row["status"], row["attempts"]) == ("completed", 0)
    assert sids(desk) == [desk.log_of(queued)["twilioCallSid"]]


def test_a_question_that_hangs_is_not_asked_twice(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker waits for its answer, even longer than after which another worker would ask."""
    monkeypatch.setattr("worker.calling.requests.ROUND_SECONDS", 0.1)
    desk.crm.add_call_settings()
    leave_behind(desk, placed=False)
    desk.tick()
    desk.world.script("twilio", stage="list", action="hang", seconds=1.5, times=1)
    assert desk.tick(seconds=ASK_SECONDS).counts["asked"] == 0
    assert desk.tick(seconds=301).counts["asked"] == 0
    assert desk.work() == {"asked": 1, "put_back": 1, "placed": 1}
    assert len(desk.placed()) == 1


def test_the_calls_of_a_living_worker_are_left_alone_until_its_lease_is_over(open_desk: OpenDesk) -> None:
    """Its process is on another machine, say, and cannot be seen here: five minutes by the database's clock."""
    mine, other = open_desk(), open_desk()
    mine.crm.add_call_settings()
    queued = add_call(mine)
    mine.world.script("twilio", action="cut-after", times=1)
    mine.tick()
    mine.crm.execute("UPDATE worker.call_claim SET ask_at = NULL, reason = NULL, holder = 'elsewhere:1:x.y'")
    assert other.work(seconds=ASK_SECONDS) == {}
    mine.crm.execute("UPDATE worker.call_claim SET claimed_at = claimed_at - interval '290 s'")
    assert other.work(seconds=ASK_SECONDS) == {}
    mine.crm.execute("UPDATE worker.call_claim SET claimed_at = claimed_at - interval '11 s'")
    other.tick()
    assert other.work(seconds=ASK_SECONDS) == {"asked": 1, "placed": 1}
    assert mine.status(queued) == "completed"
    assert len(mine.placed()) == 1


def test_two_workers_ask_about_a_call_once(open_desk: OpenDesk) -> None:
    """One of them takes it over and settles it; the other one sees nothing to do."""
    pair = [open_desk(), open_desk()]
    pair[0].crm.add_call_settings(maxConcurrentCalls=12)
    for place in range(12):
        leave_behind(pair[0], placed=True, place=place)
    pair[0].tick()
    pair[0].hang_up()
    totals = []
    threads = [
        threading.Thread(target=lambda desk=desk: totals.append(desk.work(seconds=ASK_SECONDS))) for desk in pair
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(total.get("asked", 0) for total in totals) == 12
    assert sum(total.get("placed", 0) for total in totals) == 12
    assert len(pair[0].logs()) == 12
    assert pair[0].world.duplicates("twilio") == {}


def test_an_answer_that_a_former_holder_gets_settles_nothing(open_desk: OpenDesk) -> None:
    """A frozen worker wakes up after another one took its call over: neither a second row nor a second call."""
    frozen, other = open_desk(), open_desk()
    frozen.crm.add_call_settings()
    queued = add_call(frozen)
    frozen.world.script("twilio", action="hang", seconds=1.5, times=1)
    frozen.tick()
    frozen.crm.execute("UPDATE worker.call_claim SET claimed_at = claimed_at - interval '301 s'")
    other.tick()
    assert other.work(seconds=ASK_SECONDS) == {"asked": 1, "placed": 1}
    frozen.work()
    assert frozen.status(queued) == "completed"
    assert (len(frozen.logs()), len(frozen.placed()), frozen.claims()) == (1, 1, 0)


SETTLEMENTS: dict[str, Callable[[CallSettlement, ClaimedCall], object]] = {
    "book": lambda settlement, claim: settlement.book(Booking(claim, PlacedCall(f"CA{0:032x}", "queued"))),
    "fail": lambda settlement, claim: settlement.fail(claim, RecipientRefused("no such number")),
    "release": lambda settlement, claim: settlement.release(claim),
    "unconfirmed": lambda settlement, claim: settlement.mark_unconfirmed(claim, "no answer"),
    "give up": lambda settlement, claim: settlement.give_up(claim, "no answer"),
}


@pytest.mark.parametrize("settle", SETTLEMENTS.values(), ids=SETTLEMENTS)
def test_a_former_holder_of_a_claim_settles_nothing(
    settle: Callable[[CallSettlement, ClaimedCall], object], desk: Desk
) -> None:
    """Another worker may be placing the call just now: neither row changes, and no event is published."""
    desk.crm.add_call_settings()
    queued = add_call(desk)
    settlement, (claim,) = claim_due(desk)
    desk.crm.execute("UPDATE worker.call_claim SET holder = 'elsewhere:1:x.y'")
    before = (desk.row(queued), desk.crm.execute("SELECT to_jsonb(c) FROM worker.call_claim c"))
    with closing(Listener(desk)) as listener:
        settle(settlement, claim)
        assert listener.heard() == []
    assert (desk.row(queued), desk.crm.execute("SELECT to_jsonb(c) FROM worker.call_claim c")) == before
    assert desk.logs() == []
    assert sum(desk.counter("calls_total", outcome=each) for each in ("placed", "retried", "failed")) == 0
    assert desk.counter("unconfirmed_total", channel="call") == 0


def test_a_call_that_waited_too_long_for_a_thread_is_not_placed(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its claim may be another worker's by now: it is released, and placed after the next claim."""
    monkeypatch.setattr("worker.calling.placement.PLACE_SECONDS", -1.0)
    desk.crm.add_call_settings()
    queued = add_call(desk)
    result = desk.tick()
    assert (desk.status(queued), desk.placed(), result.unfinished) == ("pending", [], True)
    monkeypatch.setattr("worker.calling.placement.PLACE_SECONDS", 20.0)
    assert desk.work() == {"placed": 1}


def test_a_process_that_is_frozen_while_it_connects_places_nothing(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looked at its time before, and looks again before the request leaves: the call is released."""
    clock = iter([1000.0, 1000.0])  # at the claim, at the thread's first look; then five minutes are over
    monkeypatch.setattr("worker.calling.placement.boot_seconds", lambda: next(clock, 1300.0))
    desk.crm.add_call_settings()
    queued = add_call(desk)
    desk.tick()
    assert (desk.status(queued), desk.placed(), desk.row(queued)["attempts"]) == ("pending", [], 0)
    monkeypatch.undo()
    assert desk.work() == {"placed": 1}


def test_a_call_that_another_worker_put_back_waits_for_this_ones_request(desk: Desk) -> None:
    """Otherwise the first request, when it ends, would settle the claim of the second one."""
    desk.crm.add_call_settings()
    queued = add_call(desk)
    desk.world.script("twilio", action="hang", seconds=2, times=1)
    desk.tick()
    desk.crm.execute("DELETE FROM worker.call_claim")
    desk.crm.execute("""UPDATE "CallQueue" SET status = 'pending'""")
    desk.tick()
    assert (desk.status(queued), len(desk.placed()), desk.claims()) == ("pending", 1, 0)


def test_an_account_that_was_changed_meanwhile(desk: Desk) -> None:
    """The new account does not know the call: it is not asked, and after a day the call fails."""
    crm = desk.crm
    crm.add_call_settings(**account(1))
    queued = leave_behind(desk, placed=True)
    crm.execute('UPDATE "CallSettings" SET "twilioAccountSid" = %s', (account(2)["twilioAccountSid"],))
    again = add_call(desk)
    other = add_call(desk, 2)
    desk.tick()
    assert desk.work(seconds=ASK_SECONDS) == {}
    assert [desk.status(each) for each in (queued, again, other)] == ["processing", "pending", "completed"]
    for seconds in (70, 130, DAY):
        desk.tick(seconds=seconds)
    row = desk.row(queued)
    assert (row["status"], row["errorMessage"][:11]) == ("failed", "Unconfirmed")
    desk.work(seconds=1)
    assert desk.status(again) == "completed"


def test_an_account_that_is_removed_and_comes_back(desk: Desk) -> None:
    """Twilio is not asked while there is none; later the call is booked."""
    crm = desk.crm
    crm.add_call_settings()
    queued = leave_behind(desk, placed=True)
    crm.execute('DELETE FROM "CallSettings"')
    desk.tick()
    desk.work(seconds=ASK_SECONDS)
    assert desk.status(queued) == "processing"
    crm.add_call_settings()
    assert desk.work(seconds=61) == {"asked": 1, "placed": 1}


def test_a_number_with_an_unconfirmed_call_waits_for_it(desk: Desk) -> None:
    """Twilio is asked by number, and a second call would be taken for the first. Other numbers are called."""
    desk.crm.add_call_settings()
    first = leave_behind(desk, placed=False)
    second, other = add_call(desk, 1), add_call(desk, 2)
    assert desk.work() == {"placed": 1}
    assert [desk.status(each) for each in (first, second, other)] == ["processing", "pending", "completed"]
    counts = desk.work(seconds=ASK_SECONDS)
    assert counts == {"asked": 1, "put_back": 1, "placed": 2}
    assert sorted(sids(desk)) == sorted(desk.log_of(each)["twilioCallSid"] for each in (first, second))


def test_a_call_booked_just_before_is_not_taken_for_the_unconfirmed_one(desk: Desk) -> None:
    """The same number was called a moment ago: that call has its row, and the unconfirmed one was never placed."""
    desk.crm.add_call_settings()
    earlier = add_call(desk)
    desk.work()
    later = leave_behind(desk, placed=False)
    desk.tick()
    assert desk.work(seconds=ASK_SECONDS) == {"asked": 1, "put_back": 1, "placed": 1}
    assert sids(desk) == [desk.log_of(each)["twilioCallSid"] for each in (earlier, later)]


def test_of_several_calls_the_oldest_one_is_booked(desk: Desk) -> None:
    """Somebody called the same number by hand a moment later, through the same account."""
    desk.crm.add_call_settings()
    queued = leave_behind(desk, placed=True)
    place_by_hand(desk)
    desk.tick()
    assert desk.work(seconds=ASK_SECONDS) == {"asked": 1, "placed": 1}
    assert desk.log_of(queued)["twilioCallSid"] == sids(desk)[0]


@pytest.mark.parametrize("from_number", [None, "+918047119999"], ids=["one number", "two numbers"])
def test_a_tenants_question_does_not_book_another_tenants_call(from_number: str | None, desk: Desk) -> None:
    """Two tenants call one number through one account, one call is unconfirmed: each gets its own call booked."""
    crm = desk.crm
    shared = account(1)
    mine = another_tenant(crm, **shared)
    theirs = another_tenant(crm, **shared | ({"twilioPhoneNumber": from_number} if from_number else {}))
    first = crm.add_call(mine, phoneNumber=number(1))
    desk.world.script("twilio", action="cut-before", times=1)
    desk.work()
    second = crm.add_call(theirs, phoneNumber=number(1))
    other = crm.add_call(theirs, phoneNumber=number(2))
    assert desk.work() == {"placed": 1}, "a second call to the number could be taken for the first"
    assert [desk.status(each) for each in (first, second, other)] == ["processing", "pending", "completed"]
    counts = desk.work(seconds=ASK_SECONDS)
    assert counts == {"asked": 1, "retried": 1, "placed": 1}
    assert desk.work(seconds=121) == {"placed": 1}
    for queue_id, tenant_id in ((first, mine), (second, theirs)):
        assert desk.log_of(queue_id)["tenantId"] == tenant_id
    assert sorted(sids(desk)) == sorted(desk.log_of(each)["twilioCallSid"] for each in (first, second))


def test_two_tenants_of_one_account_do_not_call_a_number_at_the_same_time(desk: Desk) -> None:
    """Both calls are due in the same tick: the second one is placed when the first one is settled."""
    crm = desk.crm
    tenants = [another_tenant(crm, **account(1)) for _ in range(2)]
    both = [crm.add_call(each, phoneNumber=number(1)) for each in tenants]
    desk.world.script("twilio", action="cut-after", times=1)
    desk.tick()
    assert (len(desk.placed()), desk.claims()) == (1, 1)
    assert desk.work(seconds=ASK_SECONDS) == {"asked": 1, "placed": 2}
    assert {desk.log_of(queue_id)["tenantId"] for queue_id in both} == set(tenants)
    assert sorted(sids(desk)) == sorted(desk.log_of(queue_id)["twilioCallSid"] for queue_id in both)


def test_another_tenants_unconfirmed_call_does_not_stop_the_queue(desk: Desk) -> None:
    """The first call of a tenant with one slot waits for another tenant's: its next one is placed meanwhile."""
    crm = desk.crm
    shared = account(1)
    mine = another_tenant(crm, **shared)
    theirs = another_tenant(crm, **shared, maxConcurrentCalls=1)
    crm.add_call(mine, phoneNumber=number(1))
    desk.world.script("twilio", action="cut-after", times=1)
    desk.work()
    crm.add_call(theirs, phoneNumber=number(1), priority=9)
    other = crm.add_call(theirs, phoneNumber=number(2))
    assert desk.work() == {"placed": 1}
    assert desk.status(other) == "completed"


def test_a_call_to_the_same_number_through_another_account_is_ignored(desk: Desk) -> None:
    """Two tenants with accounts of their own: neither sees the other's call or waits for it."""
    crm = desk.crm
    mine, theirs = another_tenant(crm, **account(1)), another_tenant(crm, **account(2))
    first = crm.add_call(mine, phoneNumber=number(1))
    desk.world.script("twilio", action="cut-before", times=1)
    desk.work()
    second = crm.add_call(theirs, phoneNumber=number(1))
    assert desk.work() == {"placed": 1}
    assert desk.work(seconds=ASK_SECONDS) == {"asked": 1, "retried": 1}
    desk.work(seconds=121)
    assert [log["tenantId"] for log in desk.logs()] == [theirs, mine]
    assert len({desk.row(each)["callLogId"] for each in (first, second)}) == 2


def stuck(desk: Desk, minutes: float = 6, place: int = 1, **columns: Any) -> str:
    """A row left by a worker of a version without claims."""
    return add_call(desk, place, status="processing", updatedAt=desk.now - timedelta(minutes=minutes), **columns)


def place_by_hand(desk: Desk, place: int = 1) -> str:
    """A call through the demo tenant's account, as by an old worker, that is written nowhere; returns its sid."""
    form = [("To", number(place)), ("From", accounts.TWILIO_NUMBER), ("Url", f"{APP_URL}/x")]
    credentials = accounts.TWILIO_ACCOUNT_SID, accounts.TWILIO_AUTH_TOKEN
    with closing(HttpPool(1)) as pool:
        provider = TwilioProvider(desk.context.settings.twilio_api_url, *credentials, pool)
        return provider.place(form).sid


@pytest.mark.parametrize("placed", [True, False])
def test_a_row_stuck_in_processing_without_a_claim(placed: bool, desk: Desk) -> None:
    """Twilio is asked for calls since the row was changed last, and then it is booked or placed."""
    desk.crm.add_call_settings()
    queued = stuck(desk)
    sid = place_by_hand(desk) if placed else None
    counts = desk.work()
    assert counts == {"asked": 1, "placed": 1} | ({} if placed else {"put_back": 1})
    assert desk.status(queued) == "completed"
    assert sids(desk) == [desk.log_of(queued)["twilioCallSid"]]
    assert placed == (sid in sids(desk))


def test_a_stuck_row_whose_call_has_a_log_row_is_not_placed_again(desk: Desk) -> None:
    """The old worker died after it wrote the CallLog row: the queue's row is linked to it."""
    desk.crm.add_call_settings()
    queued = stuck(desk)
    row = {"phoneNumber": number(1), "direction": "outbound", "twilioStatus": "queued", "triggerType": "manual"}
    row |= {"tenantId": desk.crm.tenant_id, "twilioCallSid": place_by_hand(desk), "createdById": desk.crm.user_id}
    log = desk.crm.insert("CallLog", row)
    desk.work()
    assert (desk.status(queued), desk.row(queued)["callLogId"]) == ("completed", log)
    assert (len(desk.placed()), len(desk.logs())) == (1, 1)


def test_a_row_that_an_old_worker_may_be_placing_is_left_alone(desk: Desk) -> None:
    """It counts as stuck after five minutes."""
    desk.crm.add_call_settings()
    queued = stuck(desk, minutes=4.9)
    assert desk.work() == {}
    assert desk.status(queued) == "processing"


@pytest.mark.parametrize("settings", [None, {"twilioAuthToken": None}, {}])
def test_a_stuck_row_about_which_twilio_cannot_be_asked(settings: dict[str, Any] | None, desk: Desk) -> None:
    """Without an account or a number it fails as unconfirmed, and is never placed."""
    if settings is not None:
        desk.crm.add_call_settings(**settings)
    queued = stuck(desk)
    if settings == {}:
        desk.crm.execute("""UPDATE "CallQueue" SET "phoneNumber" = 'nonsense'""")
    assert desk.work() == {"failed": 1}
    row = desk.row(queued)
    assert (row["status"], row["errorMessage"][:11]) == ("failed", "Unconfirmed")
    assert desk.counter("unconfirmed_total", channel="call") == 1


def add_log(desk: Desk, place: int = 1, minutes: float = 70, **columns: Any) -> str:
    """A call that Twilio knows and whose last webhook came ``minutes`` ago."""
    at = desk.now - timedelta(minutes=minutes)
    row = {"phoneNumber": number(place), "direction": "outbound", "triggerType": "manual", "updatedAt": at}
    row |= {"tenantId": desk.crm.tenant_id, "createdById": desk.crm.user_id, "twilioStatus": "ringing"}
    if "twilioCallSid" not in columns:
        columns["twilioCallSid"] = place_by_hand(desk, place)
    return desk.crm.insert("CallLog", row | columns)


def log_status(desk: Desk, log_id: str) -> str:
    return str(desk.crm.value('SELECT "twilioStatus" FROM "CallLog" WHERE id = %s', log_id))


@pytest.mark.parametrize("said", ["completed", "busy", "failed", "no-answer", "canceled"])
def test_a_call_whose_webhook_was_lost_does_not_keep_its_slot(said: str, desk: Desk) -> None:
    """callTimeout and an hour after the last webhook Twilio is asked, and its answer is written."""
    desk.crm.add_call_settings(maxConcurrentCalls=1, callTimeout=300)
    young = add_log(desk, 1, minutes=64.9)
    queued = add_call(desk, 2)
    assert desk.work() == {}
    desk.world.set_call(sids(desk, 1)[0], said)
    counts = desk.work(seconds=8)
    assert counts == {"checked": 1, "placed": 1}
    assert (log_status(desk, young), desk.status(queued)) == (said, "completed")


def test_a_call_that_is_still_on_its_way_is_asked_about_once_an_hour(desk: Desk) -> None:
    """Its row is written again, and is not stale for another hour and callTimeout."""
    desk.crm.add_call_settings(callTimeout=60)
    log = add_log(desk)
    desk.world.set_call(sids(desk)[0], "in-progress")
    assert desk.work() == {"checked": 1}
    assert log_status(desk, log) == "in-progress"
    for _ in range(3):
        assert desk.work(seconds=1200) == {}
    assert desk.work(seconds=61) == {"checked": 1}


def test_a_status_that_the_crm_does_not_know_changes_nothing(desk: Desk) -> None:
    """Twilio's 'initiated': the row keeps its status."""
    desk.crm.add_call_settings()
    log = add_log(desk)
    desk.world.set_call(sids(desk)[0], "initiated")
    assert desk.work() == {"checked": 1}
    assert log_status(desk, log) == "ringing"


def test_a_call_that_twilio_does_not_know_is_failed(desk: Desk) -> None:
    """Twilio answers 404, or the sid is not one of Twilio's."""
    desk.crm.add_call_settings()
    logs = [add_log(desk), add_log(desk, 2, twilioCallSid="made up")]
    desk.world.forget_call(sids(desk)[0])
    assert desk.work() == {"checked": 2}
    assert [log_status(desk, each) for each in logs] == ["failed", "failed"]


def test_a_webhook_that_comes_while_twilio_is_asked_wins(desk: Desk) -> None:
    """The answer is older: the row stays as the webhook left it."""
    desk.crm.add_call_settings()
    log = add_log(desk)
    desk.world.script("twilio", stage="fetch", action="hang", seconds=0.5)
    ticking = threading.Thread(target=desk.tick)
    ticking.start()
    desk.crm.execute("""UPDATE "CallLog" SET "twilioStatus" = 'completed'""")
    ticking.join()
    desk.work()
    assert log_status(desk, log) == "completed"


def test_a_twilio_that_cannot_be_asked_about_lost_webhooks(desk: Desk) -> None:
    """The tenant is skipped for ten minutes, not asked with each tick; the others' calls are checked."""
    desk.crm.add_call_settings()
    log = add_log(desk, 1)
    other = another_tenant(desk.crm, **account(1))
    lost = add_log(desk, 2, tenantId=other, twilioCallSid="made up")
    desk.world.script("twilio", number(1), stage="fetch", action="cut-before", times=1)
    assert desk.work() == {"checked": 1}
    assert [log_status(desk, each) for each in (log, lost)] == ["ringing", "failed"]
    assert desk.work(seconds=30) == {}
    assert desk.work(seconds=560) == {}
    assert desk.work(seconds=11) == {"checked": 1}


def test_lost_webhooks_of_a_tenant_without_an_account(desk: Desk) -> None:
    """Twilio cannot be asked: the row stays as it is, and the others' calls are checked."""
    log = add_log(desk, twilioCallSid="made up")
    other = another_tenant(desk.crm, **account(1))
    lost = add_log(desk, 2, minutes=65.1, tenantId=other, twilioCallSid="made up, too")
    assert desk.work() == {"checked": 1}
    assert [log_status(desk, each) for each in (log, lost)] == ["ringing", "failed"]


def test_many_lost_webhooks_are_checked_in_one_go(desk: Desk) -> None:
    """After an outage of the CRM's servers its tenants do not wait many ticks for their slots."""
    desk.crm.add_call_settings()
    for place in range(50):
        add_log(desk, twilioCallSid=f"made up {place}")
    assert desk.work() == {"checked": 50}


@pytest.mark.parametrize("timeout", [2_147_483_647, -2_147_483_648])
def test_a_nonsensical_timeout_of_one_tenant_stops_no_others(timeout: int, desk: Desk) -> None:
    """Its own lost webhooks may wait for ever; those of other tenants do not."""
    desk.crm.add_call_settings(callTimeout=timeout)
    add_log(desk, minutes=5, twilioCallSid="made up")
    other = another_tenant(desk.crm, **account(1))
    lost = add_log(desk, tenantId=other, twilioCallSid="made up, too")
    assert desk.work() == {"checked": 1}
    assert log_status(desk, lost) == "failed"


def test_a_booking_that_fails_with_the_session_is_repeated(desk: Desk) -> None:
    """Twilio took the call, then the session breaks: the next tick books it from that answer, without asking."""
    desk.crm.add_call_settings()
    queued = add_call(desk)
    desk.world.script("twilio", action="hang", seconds=0.5, times=1)
    faults: list[BaseException] = []

    def tick() -> None:
        try:
            desk.tick()
        except psycopg2.OperationalError as error:
            faults.append(error)

    ticking = threading.Thread(target=tick)
    ticking.start()
    desk.world.wait_for("twilio", 1)
    with psycopg2.connect(desk.database_url) as other, other.cursor() as cursor:
        cursor.execute("SELECT FROM worker.call_claim FOR UPDATE")
        desk.crm.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = %s",
                         ("crm-worker calls",))  # fmt: skip
        ticking.join()
    other.close()
    assert len(faults) == 1
    assert desk.status(queued) == "processing"
    assert desk.work() == {"placed": 1}
    assert sids(desk) == [desk.log_of(queued)["twilioCallSid"]]


def test_a_claim_whose_commit_was_not_answered_is_settled(desk: Desk) -> None:
    """The session breaks while the claim commits: not placed by this tick, and placed once in the end."""
    desk.crm.add_call_settings()
    queued = add_call(desk)

    def break_off() -> None:
        del desk.database.after["commit"]
        raise psycopg2.OperationalError("server closed the connection unexpectedly")

    desk.database.after["commit"] = break_off
    with pytest.raises(psycopg2.OperationalError):
        desk.tick()
    assert (desk.status(queued), desk.placed()) == ("processing", [])
    desk.tick()
    assert desk.work(seconds=ASK_SECONDS) == {"asked": 1, "put_back": 1, "placed": 1}
    assert len(desk.placed()) == 1


def test_a_signal_while_calls_hang_releases_what_was_not_on_the_wire(open_desk: OpenDesk) -> None:
    """Those without a thread are pending again within the grace time; the successor asks about those on the wire."""
    desk = open_desk()
    for place in range(20):
        desk.crm.add_call(another_tenant(desk.crm, **account(place)), phoneNumber=number(place))
    desk.world.script("twilio", action="hang", seconds=2)
    ticking = threading.Thread(target=desk.tick)
    ticking.start()
    desk.world.wait_for("twilio", 8)
    desk.signals.stopping = True
    began = datetime.now()  # noqa: DTZ005 - a stop watch
    ticking.join()
    desk.job.close()
    assert (datetime.now() - began).total_seconds() < 1.0  # noqa: DTZ005
    assert desk.statuses() == {"processing": 8, "pending": 12}
    assert desk.world.total("twilio") == 8
    desk.world.clear_script()
    orphan(desk)
    successor = open_desk()
    successor.work()
    assert successor.work(seconds=ASK_SECONDS) == {"asked": 8, "placed": 8}
    assert successor.statuses() == {"completed": 20}
    assert desk.world.duplicates("twilio") == {}
