"""Calls that a database forgot: Twilio is asked about each number before it is called, for 15 minutes."""

import json
from typing import Any

import pytest
from desk import ASK_SECONDS, Desk, OpenDesk

NUMBER, OTHER_NUMBER = "+919820098200", "+919820098201"
QUARTER_SECONDS = 900.0


def fail_over(desk: Desk, *queue_ids: str) -> None:
    """The database forgets that these calls were placed; the timeline that the worker knows is another."""
    desk.crm.execute(
        """DELETE FROM "CallLog" WHERE id IN (SELECT "callLogId" FROM "CallQueue" WHERE id = ANY (%s))""",
        (list(queue_ids),),
    )
    desk.crm.execute(
        """UPDATE "CallQueue" SET status = 'pending', "callLogId" = NULL WHERE id = ANY (%s)""", (list(queue_ids),)
    )
    (desk.context.settings.state_dir / "timeline.calls").write_text(json.dumps(["1/00000009", None]))
    desk.database.close()


def call(desk: Desk, number: str = NUMBER, **more: Any) -> str:
    return desk.crm.add_call(phoneNumber=number, **more)


@pytest.fixture
def placed(desk: Desk) -> str:
    """A call that was placed and booked."""
    desk.crm.add_call_settings()
    queue_id = call(desk)
    desk.work()
    assert (desk.status(queue_id), desk.world.total("twilio")) == ("completed", 1)
    return queue_id


@pytest.mark.parametrize("restarted", [False, True])
def test_a_forgotten_call_is_booked(restarted: bool, desk: Desk, placed: str, open_desk: OpenDesk) -> None:
    """It is not placed again, but found at Twilio, after the 30 seconds that Twilio may take to list it."""
    [before] = desk.logs()
    fail_over(desk, placed)
    worker = open_desk() if restarted else desk
    worker.tick()
    worker.tick(seconds=ASK_SECONDS - 5)
    assert (worker.status(placed), worker.world.total("twilio")) == ("pending", 1)
    worker.work(seconds=10)
    assert (worker.status(placed), worker.world.total("twilio")) == ("completed", 1)
    [after] = worker.logs()
    assert after["twilioCallSid"] == before["twilioCallSid"]


def test_other_calls_are_placed(desk: Desk, placed: str) -> None:
    """Another number, and another call to one whose earlier call is in the log."""
    fail_over(desk)
    others = [call(desk), call(desk, OTHER_NUMBER)]
    desk.tick()
    desk.work(seconds=ASK_SECONDS)
    assert [desk.status(each) for each in others] == ["completed"] * 2
    assert desk.world.total("twilio") == 3
    assert len({each["twilioCallSid"] for each in desk.logs()}) == 3


def test_one_of_two_was_placed(desk: Desk, placed: str) -> None:
    """Two calls to one number are queued: the forgotten one is one of them, the other one is placed, once."""
    second = call(desk)
    fail_over(desk, placed)
    desk.tick()
    desk.work(seconds=ASK_SECONDS)
    desk.work(seconds=ASK_SECONDS)
    assert [desk.status(each) for each in (placed, second)] == ["completed"] * 2
    assert desk.world.total("twilio") == 2


def test_twilio_cannot_be_asked(desk: Desk, placed: str) -> None:
    """Then the call is not placed, and tried again later."""
    fail_over(desk, placed)
    desk.world.script("twilio", stage="list", status=503)
    desk.tick()
    desk.work(seconds=ASK_SECONDS)
    assert (desk.status(placed), desk.world.total("twilio")) == ("pending", 1)
    desk.world.clear_script()
    desk.work(seconds=300)
    assert (desk.status(placed), desk.world.total("twilio")) == ("completed", 1)


def test_it_ends(desk: Desk, placed: str) -> None:
    """A quarter of an hour after the change calls are placed without a question."""
    fail_over(desk)
    desk.tick()
    desk.world.script("twilio", stage="list", status=503)
    queue_id = call(desk)
    desk.work(seconds=QUARTER_SECONDS + 1)
    assert (desk.status(queue_id), desk.world.total("twilio")) == ("completed", 2)


def test_the_server_changes_behind_the_connection(desk: Desk, placed: str) -> None:
    """As behind a pooler: nothing is claimed from a server of another timeline until the job has looked."""
    queue_id = call(desk, OTHER_NUMBER)
    desk.database.timeline = "00000009"
    desk.work()
    assert (desk.status(queue_id), desk.world.total("twilio")) == ("pending", 1)
