"""Calls of one Twilio account from two machines: caps, rate and backoffs hold over both, nobody is called twice."""

import math
from collections import Counter
from datetime import UTC, datetime

import pytest
from call_queue import Queue
from machines import Machine, Machines
from workers import lock_deleted_all_the_time, wait_for

from sandbox import accounts
from sandbox.received_store import Received
from sandbox.world import World

LOCK = "lock:call-scheduler"
TENANTS, SLOTS, CALLS = 4, 2, 32
RATE = 4  # calls a second of the account; each machine alone could place more
CAPACITY = math.ceil(RATE / 10)  # what its pace lets go at once
DEFERRED, FULL, REFUSED, WELL = (f"AC{place:032x}" for place in range(1, 5))
WISH_SECONDS = 16  # Retry-After; more than the 15 seconds of a first backoff


@pytest.fixture
def environment(environment: dict[str, str], world: World) -> dict[str, str]:
    world.set_rates(twilio_rate=0)
    return environment | {"CALL_SCHEDULER_INTERVAL": "1s", "LOCK_TTL_MS": "2000", "LOG_LEVEL": "debug"}


class Line:
    """The calls that are live at Twilio, by tenant, as the test hangs up."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        numbers = queue.crm.execute('SELECT ltrim("phoneNumber", \'+\'), "tenantId" FROM "CallQueue"')
        self._tenant_of = dict(numbers)
        self._ended: Counter[str] = Counter()
        self.most = 0  # calls of one tenant at the same time

    def look(self) -> None:
        """Counts at Twilio; those that the test has hung up before are over."""
        placed = Counter(self._tenant_of[each.address] for each in self._queue.world.deliveries("twilio"))
        self.most = max(self.most, *(placed - self._ended).values(), 0)

    def hang_up(self) -> None:
        """Ends all calls that are booked."""
        statement = """UPDATE "CallLog" SET "twilioStatus" = 'completed' WHERE "twilioStatus" = 'queued'
                       RETURNING "tenantId" """
        self._ended.update(tenant for (tenant,) in self._queue.crm.execute(statement))


def placed_at(call: Received) -> datetime:
    return datetime.fromisoformat(call.at)


def test_two_machines_keep_to_the_caps_and_the_rate_of_one_account(
    queue: Queue, machines: Machines, redis_url: str
) -> None:
    """Both believe that they hold the lock and place calls of the same tenants at the same time."""
    world = queue.world
    world.script("twilio", action="hang", seconds=0.05)
    with lock_deleted_all_the_time(redis_url, LOCK):
        pair = [machines(name, "calls", TWILIO_RATE=str(RATE)) for name in ("m1", "m2")]
        wait_for(lambda: all(each.said("calls", "DEBUG tick") for each in pair), "both run")
        queue.add(CALLS, slots=SLOTS, account_sid=WELL)
        line = Line(queue)
        world.wait_for("twilio", TENANTS * SLOTS)
        ticks = [each.said("calls", "DEBUG tick") for each in pair]
        wait_for(
            lambda: all(
                each.said("calls", "DEBUG tick") > before + 1 for each, before in zip(pair, ticks, strict=True)
            ),
            "both have looked again",
        )
        line.look()
        assert (line.most, world.total("twilio")) == (SLOTS, TENANTS * SLOTS)
        resumed = datetime.now(UTC)

        def over() -> bool:
            line.hang_up()
            line.look()
            return queue.ended()

        wait_for(over, "all calls are booked")
    queue.balance(CALLS)
    assert line.most == SLOTS
    # a busy machine can only be late, so no call may be earlier than the pace of one bucket lets it be
    later = [(placed_at(each) - resumed).total_seconds() for each in world.deliveries("twilio")][TENANTS * SLOTS :]
    early = [(place, at) for place, at in enumerate(later) if at < (place + 1 - CAPACITY) / RATE - 0.001]
    assert early == []
    shares = [each.said("calls", "call placed") for each in pair]
    print(f"{len(later)} calls in {later[-1]:.1f} s at {RATE} a second, {shares} by machine")  # noqa: T201
    assert all(shares)
    assert sum(shares) == CALLS


def test_an_account_that_rests_on_one_machine_rests_on_the_other(queue: Queue, machines: Machines) -> None:
    """Deferred with Retry-After, or at its limit of calls: for that time. Refused: until its settings change."""
    crm, world = queue.crm, queue.world
    tenants = {sid: _tenant(queue, sid) for sid in (DEFERRED, FULL, REFUSED)}
    for place in range(3):
        world.script("twilio", _number(DEFERRED, place), status=429, code=20429, retry_after=str(WISH_SECONDS))
        world.script("twilio", _number(FULL, place), status=429, code=10004)
        world.script("twilio", _number(REFUSED, place), status=401, code=20003)
    first = machines("m1", "calls")
    wait_for(lambda: len(world.refusals("twilio")) == 3, "one call of each is refused")
    wait_for(lambda: first.said("calls", "call not placed") == 3, "the first machine knows")
    _leave_it_to_others(first)
    world.clear_script()
    _tenant(queue, WELL)
    second = machines("m2", "calls")
    wait_for(lambda: second.said("calls", "call placed"), "the second machine places calls")
    assert _placed(world, WELL)
    wait_for(lambda: _placed(world, DEFERRED) and _placed(world, FULL), "the others are placed, too")
    rested = {sid: _rested_seconds(world, sid) for sid in (DEFERRED, FULL)}
    print(f"rested {rested} s")  # noqa: T201
    assert rested[DEFERRED] > WISH_SECONDS - 0.1
    assert rested[FULL] > 14.9
    assert not _placed(world, REFUSED)
    crm.execute(
        """UPDATE "CallSettings" SET "twilioAuthToken" = 'sandbox-token-new' WHERE "tenantId" = %s""",
        (tenants[REFUSED],),
    )
    wait_for(lambda: _placed(world, REFUSED), "the corrected account is tried at once", 5)
    assert len(world.refusals("twilio")) == 3
    assert first.said("calls", "call placed") == 0
    assert world.duplicates("twilio") == {}


def _tenant(queue: Queue, sid: str) -> str:
    """One with this account, three due calls, and one call at a time."""
    tenant_id = queue.crm.add_tenant()
    queue.crm.add_call_settings(
        tenant_id, twilioAccountSid=sid, twilioAuthToken=accounts.TWILIO_AUTH_TOKEN, maxConcurrentCalls=1
    )
    for place in range(3):
        queue.crm.add_call(tenant_id, phoneNumber=_number(sid, place))
    return tenant_id


def _number(sid: str, place: int) -> str:
    return f"+9198{int(sid[-4:], 16):04d}{place:04d}"


def _placed(world: World, sid: str) -> list[Received]:
    return [each for each in world.deliveries("twilio") if each.account == sid]


def _rested_seconds(world: World, sid: str) -> float:
    [refused] = [each for each in world.refusals("twilio") if each.account == sid]
    return (placed_at(_placed(world, sid)[0]) - placed_at(refused)).total_seconds()


def _leave_it_to_others(machine: Machine) -> None:
    machine.stand_by()
    wait_for(lambda: machine.said("calls", "this machine stands by"), "it stands by")
