"""The real bin/calls, killed, frozen, stopped and without its servers: each number is called and booked once."""

import json
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import timedelta

import psycopg2
import psycopg2.extensions
import pytest
import redis
from call_queue import Queue
from workers import PROJECT, Start, Worker, wait_for

from sandbox import accounts
from sandbox.crm import Crm, apply_schema, utc_now
from sandbox.postgres import Postgres
from sandbox.redis import Redis
from sandbox.world import World
from worker.runtime.migrations import migrate

LOCK = "lock:call-scheduler"
REQUEST_THREADS = 8
UNAVAILABLE = "a server is unavailable, the job waits for it"
BACK = "the server is available again, the job continues"
# as bin/calls, but a call that waited a second for a thread is not placed any more
IMPATIENT = """\
import sys
from worker import calls
from worker.calling import placement
placement.PLACE_SECONDS = 1.0
sys.exit(calls.main([]))
"""


@pytest.fixture
def environment(environment: dict[str, str], world: World) -> dict[str, str]:
    world.set_rates(twilio_rate=0)
    return environment | {"CALL_SCHEDULER_INTERVAL": "1s", "TWILIO_RATE": "1000", "SHUTDOWN_GRACE_SECONDS": "1"}


@pytest.fixture
def start_calls(start: Start) -> Start:
    def start_one(*arguments: str, **settings: str) -> Worker:
        return start(*arguments, program="calls", **settings)

    return start_one


@contextmanager
def unreachable() -> Iterator[str]:
    """The URL of a server that no connection reaches: it accepts none, and its backlog is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener, ExitStack() as stack:
        for _ in range(2):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def silent() -> Iterator[str]:
    """The URL of a server that takes requests and never acts on one."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def booking_waits(crm: Crm) -> bool:
    statement = (
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    return bool(crm.value(statement))


@pytest.mark.parametrize("twilio", [unreachable, silent], ids=["claimed", "on the wire"])
def test_a_kill_before_twilio_has_the_calls(
    twilio: Callable[[], "ExitStack"], queue: Queue, start_calls: Start
) -> None:
    """Claimed, or sent and never read: Twilio knows none of them, so they are placed, and no attempt is counted."""
    queue.add(12)
    with twilio() as url:
        worker = start_calls(TWILIO_API_URL=url)
        wait_for(lambda: queue.claims() >= REQUEST_THREADS, "calls are claimed")
        worker.kill()
    start_calls()
    wait_for(queue.ended_early, "all calls are placed")
    queue.balance(12)
    assert queue.crm.value('SELECT max(attempts) FROM "CallQueue"') == 0


def test_a_kill_while_twilio_has_the_calls_and_does_not_answer(queue: Queue, start_calls: Start) -> None:
    """Those that Twilio knows are booked as they are, the others are placed."""
    queue.world.script("twilio", action="hang", seconds=60)
    queue.add(20)
    worker = start_calls()
    queue.world.wait_for("twilio", REQUEST_THREADS)
    worker.kill()
    queue.world.clear_script()
    start_calls()
    wait_for(lambda: queue.unconfirmed() >= REQUEST_THREADS, "the successor has found the unconfirmed calls")
    assert queue.world.total("twilio") == REQUEST_THREADS
    wait_for(queue.ended_early, "all calls are booked")
    queue.balance(20)


@pytest.mark.parametrize("committed", [False, True], ids=["answered", "booked"])
def test_a_kill_between_the_answer_and_the_booking(
    committed: bool, queue: Queue, start_calls: Start, second_connection: psycopg2.extensions.connection
) -> None:
    """The worker waits for a lock on its claim when it is killed: the booking is undone, or commits all the same."""
    queue.world.script("twilio", action="hang", seconds=0.5)
    queue.add(6)
    worker = start_calls()
    queue.world.wait_for("twilio", 6)
    with second_connection.cursor() as cursor:
        cursor.execute("SELECT FROM worker.call_claim FOR UPDATE")
    wait_for(lambda: booking_waits(queue.crm), "a booking waits")
    worker.kill()
    if not committed:
        queue.crm.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
            "AND datname = current_database()"
        )
    second_connection.rollback()
    wait_for(lambda: not booking_waits(queue.crm), "the booking waits no more")
    # of those that were answered together, all or none
    wait_for(lambda: ("completed" in queue.statuses()) == committed, "the booking is committed or undone")
    queue.world.clear_script()
    start_calls()
    wait_for(queue.ended_early, "all calls are booked")
    queue.balance(6)


def test_kills_at_random_instants(queue: Queue, start_calls: Start) -> None:
    """However often the worker is killed: of 150 numbers each is called once, and each call is booked."""
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")  # noqa: T201 - pytest shows it when the test fails
    chance = random.Random(seed)  # noqa: S311 - instants, no secrets
    queue.world.script("twilio", action="hang", seconds=0.03)
    queue.add(150)
    for _ in range(9):
        worker = start_calls()
        goal = queue.world.total("twilio") + chance.randrange(1, 20)
        wait_for(lambda goal=goal: queue.world.total("twilio") >= goal or queue.ended_early(), "progress")
        time.sleep(chance.uniform(0, 0.05))
        worker.kill()
    start_calls()
    wait_for(queue.ended_early, "all calls are booked", 60)
    queue.balance(150)


def test_the_other_one_goes_on_when_one_of_two_is_killed(
    queue: Queue, start_calls: Start, redis_client: redis.Redis
) -> None:
    """The second one waits until the lock expires, and settles what the first one left."""
    queue.world.script("twilio", action="hang", seconds=60, times=REQUEST_THREADS)
    queue.add(30)
    first = start_calls(LOCK_TTL_MS="1000")
    queue.world.wait_for("twilio", REQUEST_THREADS)
    second = start_calls(LOCK_TTL_MS="1000")
    wait_for(lambda: second.said("another worker holds the lock"), "the second one waits")
    first.kill()
    wait_for(queue.ended_early, "all calls are booked")
    queue.balance(30)
    wait_for(lambda: second.said("calls left by a dead process"), "the second one says what it found")


def test_a_worker_that_was_frozen_for_longer_than_its_lease_places_nothing(
    queue: Queue, start: Start, start_calls: Start, redis_client: redis.Redis
) -> None:
    """Others settled its calls meanwhile: thawed, it books nothing, and places none that waited for a thread."""
    queue.world.script("twilio", action="hang", seconds=10)  # also those that get a thread on a busy machine
    queue.add(20)
    frozen = start("-c", IMPATIENT, program="python", LOCK_TTL_MS="1000")
    queue.world.wait_for("twilio", REQUEST_THREADS)
    frozen.freeze()
    frozen_at = time.monotonic()
    assert queue.claims() > REQUEST_THREADS, "some wait for a thread"
    queue.crm.execute("UPDATE worker.call_claim SET claimed_at = claimed_at - interval '301 s'")
    queue.world.clear_script()
    other = start_calls(LOCK_TTL_MS="1000")
    wait_for(queue.ended_early, "the other one has settled all")
    wait_for(lambda: time.monotonic() > frozen_at + 1.0, "the frozen one's calls are too old")
    frozen.thaw()
    wait_for(
        lambda: frozen.said("settled by another worker") >= REQUEST_THREADS, "it sees that its calls are settled"
    )
    assert [frozen.stop(), other.stop()] == [0, 0]
    queue.balance(20)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_while_calls_hang(
    number: signal.Signals, queue: Queue, start_calls: Start, redis_client: redis.Redis
) -> None:
    """Status 0 within the grace time, the lock is free; calls without a thread are pending, the rest unconfirmed."""
    queue.world.script("twilio", action="hang", seconds=60)
    queue.add(20)
    worker = start_calls(SHUTDOWN_GRACE_SECONDS="4")
    queue.world.wait_for("twilio", REQUEST_THREADS)
    began = time.monotonic()
    assert worker.stop(number) == 0
    assert 3.9 < time.monotonic() - began < 8, "it waits for the grace time once"
    assert queue.statuses() == {"processing": REQUEST_THREADS, "pending": 20 - REQUEST_THREADS}
    assert not redis_client.exists(LOCK)
    queue.world.clear_script()
    start_calls()
    wait_for(queue.ended_early, "all calls are booked")
    queue.balance(20)


def test_a_stop_while_calls_are_answered_books_them(queue: Queue, start_calls: Start) -> None:
    """It waits for the answers of what is on the wire and books them; nothing is left unconfirmed."""
    queue.world.script("twilio", action="hang", seconds=0.4)
    queue.add(20)
    worker = start_calls()
    queue.world.wait_for("twilio", 1)
    assert worker.stop() == 0
    placed = queue.world.total("twilio")
    assert queue.statuses() == {"completed": placed, "pending": 20 - placed}
    assert queue.claims() == 0
    assert worker.log.splitlines()[-1].split(" ", 2)[2] == "ended job=calls status=0"


@pytest.mark.parametrize("outage", ["stop", "kill"])
def test_postgresql_unavailable_while_calls_are_placed(
    outage: str, world: World, start_calls: Start, new_postgres: Callable[[], Postgres]
) -> None:
    """What Twilio answered meanwhile is booked when the database is back, without asking Twilio."""
    server = new_postgres()
    with closing(psycopg2.connect(server.url)) as connection:
        apply_schema(connection)
        migrate(connection)
        Queue(Crm(connection), world).add(40)
        Crm(connection).execute("CHECKPOINT")
    world.script("twilio", action="hang", seconds=0.3)
    worker = start_calls(DATABASE_URL=server.url)
    world.wait_for("twilio", REQUEST_THREADS + 1)
    getattr(server, outage)()
    wait_for(lambda: worker.said(UNAVAILABLE), "the worker says that a server is unavailable")
    placed = world.total("twilio")
    server.start()
    with closing(psycopg2.connect(server.url)) as connection:
        queue = Queue(Crm(connection), world)
        wait_for(lambda: len(queue.statuses()) == 1 or queue.unconfirmed(), "the worker goes on")
        assert placed < 40
        wait_for(queue.ended_early, "all calls are booked")
        queue.balance(40)
    wait_for(lambda: worker.said(BACK), "the worker says that the server is back")
    assert [worker.said(UNAVAILABLE), worker.said(BACK), worker.said("Traceback")] == [1, 1, 0]
    assert worker.said("Twilio knows of no call") == 0
    assert worker.stop() == 0


def test_a_booking_that_postgresql_cuts_off_is_made_up_for_without_asking(
    world: World, start_calls: Start, new_postgres: Callable[[], Postgres]
) -> None:
    """The server dies while the booking waits for its row: the answer is kept, and booked when the server is back."""
    server = new_postgres()
    with closing(psycopg2.connect(server.url)) as connection:
        apply_schema(connection)
        migrate(connection)
        queue = Queue(Crm(connection), world)
        queue.add(4)
        world.script("twilio", action="hang", seconds=0.5)
        world.script("twilio", stage="list", status=500)
        worker = start_calls(DATABASE_URL=server.url)
        world.wait_for("twilio", 4)
        with closing(psycopg2.connect(server.url)) as other, other.cursor() as cursor:
            cursor.execute("SELECT FROM worker.call_claim FOR UPDATE")
            wait_for(lambda: booking_waits(queue.crm), "a booking waits")
            server.kill()
    wait_for(lambda: worker.said(UNAVAILABLE), "the worker says that a server is unavailable")
    server.start()
    with closing(psycopg2.connect(server.url)) as connection:
        queue = Queue(Crm(connection), world)
        wait_for(queue.ended, "all calls are booked")
        queue.balance(4)


def test_redis_unavailable_while_calls_are_placed(
    queue: Queue, start_calls: Start, new_redis: Callable[..., Redis]
) -> None:
    """Nothing new is placed without the lock and the pace; what was placed is booked, and then it goes on."""
    server = new_redis()
    queue.world.script("twilio", action="hang", seconds=0.2)
    queue.add(60)
    worker = start_calls(REDIS_URL=server.url, LOCK_TTL_MS="1000")
    queue.world.wait_for("twilio", 10)
    server.kill()
    wait_for(lambda: worker.said(UNAVAILABLE), "the worker says that Redis is unavailable")
    server.start()
    wait_for(queue.ended, "all calls are booked")
    queue.balance(60)
    wait_for(lambda: worker.said(BACK), "the worker says that the server is back")
    assert [worker.said(UNAVAILABLE), worker.said(BACK)] == [1, 1]


def test_a_call_due_soon_does_not_wait_for_the_interval(queue: Queue, start_calls: Start) -> None:
    """With an hour between ticks a call is placed in the second in which it is due."""
    queue.crm.add_call_settings()
    queue.crm.add_call(phoneNumber="+919800000000", scheduledFor=utc_now() + timedelta(seconds=1.5))
    start_calls(CALL_SCHEDULER_INTERVAL="1h")
    wait_for(queue.ended, "the call is placed", 20)
    queue.balance(1)


def test_sigusr1_places_what_came_meanwhile(queue: Queue, start_calls: Start) -> None:
    """Calls that were queued after the tick are placed at the signal, not at the next interval."""
    worker = start_calls(CALL_SCHEDULER_INTERVAL="1h", LOG_LEVEL="debug")
    wait_for(lambda: worker.said("DEBUG tick"), "the first tick is over")
    queue.add(3)
    worker.send(signal.SIGUSR1)
    wait_for(queue.ended, "the calls are placed")
    queue.balance(3)


def test_once_places_all_that_is_due(queue: Queue, start_calls: Start) -> None:
    """However many rounds its pace needs; what is due tomorrow stays. Status 0."""
    queue.add(24)
    tomorrow = queue.crm.add_call(scheduledFor=utc_now() + timedelta(days=1), phoneNumber="+919811111111")
    assert start_calls("--once", TWILIO_RATE="10").wait() == 0
    assert queue.crm.value('DELETE FROM "CallQueue" WHERE id = %s RETURNING status', tomorrow) == "pending"
    queue.balance(24)


def test_no_secret_and_no_number_gets_into_the_log(queue: Queue, start_calls: Start) -> None:
    """Placed, refused, unanswered, undialable: the log names rows, tenants and reasons."""
    queue.add(8)
    queue.crm.add_call_settings()
    queue.crm.add_call(phoneNumber="+91 98765 432109 87654")
    queue.world.script("twilio", "+919800000001", status=400, code=21211, text="+919800000001 is not a phone number")
    queue.world.script("twilio", "+919800000002", action="cut-after", times=1)
    queue.world.script("twilio", "+919800000003", status=401, code=20003, text="Authenticate")
    worker = start_calls("--once", LOG_LEVEL="debug")
    assert worker.wait() == 0
    assert worker.said("call placed") >= 5
    assert worker.said("call not placed") == 3
    for secret in (accounts.TWILIO_AUTH_TOKEN, "98000000", "98765", "8047112233"):
        assert secret not in worker.log


def test_the_benchmark_measures_the_real_program() -> None:
    """bin/bench calls: what it reports was counted, and each plan uses an index."""
    argv = [sys.executable, "-m", "benchmarks", "calls", "--tenants", "20", "--queued", "2000", "--json"]
    done = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    (result,) = report["results"]
    assert [result[name] for name in ("tenants", "queued", "placed", "sink_count")] == [20, 2000, 100, 100]
    measured = ("seconds", "per_second", "bare_per_second", "ratio", "job_cpu_us_per_call", "idle_tick_seconds")
    assert all(result[name] > 0 for name in measured)
    names = ["survey", "backlog", "due_tenants", "candidates", "claim", "book", "stale_calls"]
    assert [plan["statement"] for plan in result["plans"]] == names
    assert all(plan["indexes"] for plan in result["plans"])


@pytest.mark.parametrize(
    ("settings", "named"), [({"APP_URL": ""}, "APP_URL"), ({"TWILIO_RATE": "fast"}, "TWILIO_RATE is 'fast'")]
)
def test_bad_settings_end_it_with_one_clear_line(settings: dict[str, str], named: str, start_calls: Start) -> None:
    """Status 2 and the variable's name."""
    worker = start_calls(**settings)
    assert worker.wait() == 2
    assert len(worker.log.splitlines()) == 1, worker.log
    assert named in worker.log


def test_help_tells_what_it_does_and_what_it_reads(start_calls: Start) -> None:
    """Needs no server and no settings."""
    worker = start_calls("--help", DATABASE_URL="", REDIS_URL="")
    assert worker.wait() == 0
    for word in ("business hours", "--once", "CALL_SCHEDULER_INTERVAL", "TWILIO_RATE", "APP_URL", "SIGUSR1"):
        assert word in worker.log
