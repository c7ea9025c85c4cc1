"""bin/watchdog under a real supervisord: programs that hang, fall, exit, and servers that go away."""

import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from configparser import RawConfigParser
from xmlrpc.server import SimpleXMLRPCServer

import pytest
import redis
from supervised import Supervised, Told
from supervisor.states import ProcessStates
from workers import PROJECT, wait_for

from sandbox.postgres import Postgres
from sandbox.redis import Redis
from worker.watchdog import REDIS_SECONDS

# as the watchdog sees a job: heartbeats under the program's name
JOB = """
import os, time
from worker.runtime.counters import Counters
from worker.runtime.clock import utc_now
from worker.runtime.redis_client import connect
counters = Counters(connect(os.environ["REDIS_URL"]), os.environ["SUPERVISOR_PROCESS_NAME"])
while True:
    counters.job_started(utc_now(), 0.5)
    time.sleep(0.2)
"""
SLEEPER = "import time\nwhile True: time.sleep(60)\n"
BAD_SETTINGS = """
import sys, time
from pathlib import Path
if Path(__file__).with_name("good").exists():
    time.sleep(3600)
time.sleep(1.5)
sys.exit(2)
"""
FLOOD = """/bin/sh -c 'cd %(here)s; [ -e calm ] || exit 0; echo "$SUPERVISOR_PROCESS_NAME" >> calm; exec sleep 600'"""
NEEDS_POSTGRES = """
import os, time
from worker.runtime.db import Database
Database(os.environ["DATABASE_URL"], "test").connect()
time.sleep(3600)
"""

Supervise = Callable[..., Supervised]


@pytest.fixture
def supervise(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervise]:
    """Starts a supervisord with these programs; it ends with the test."""
    started: list[Supervised] = []

    def start(programs: dict[str, str], **options: object) -> Supervised:
        settings = {name: str(value) for name, value in options.items() if name.isupper()}
        others = {name: value for name, value in options.items() if not name.isupper()}
        # a Unix socket's path may have no more than 107 characters
        folder = tmp_path_factory.mktemp("sv")
        started.append(Supervised(folder, environment | settings, programs, **others))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for each in started:
        each.stop()


@pytest.fixture
def told(redis_client: redis.Redis) -> Told:
    return Told(redis_client)


def test_its_section_is_what_the_jobs_have() -> None:
    """It is started after the jobs and before web, restarted as they are, and has room for a flood of events."""
    conf = RawConfigParser(inline_comment_prefixes=(";",))
    conf.read(PROJECT / "conf" / "supervisord.worker.conf")
    own, job = conf["eventlistener:watchdog"], conf["program:campaign"]
    assert own["command"] == '"%(here)s/../bin/watchdog"'
    assert os.access(PROJECT / "bin" / "watchdog", os.X_OK)
    assert set(own["events"].split(",")) == {"PROCESS_STATE", "TICK_60"}
    assert job.getint("priority") < own.getint("priority") == 250 < conf.getint("program:web", "priority")
    assert own.getint("buffer_size") >= 1000
    same = {key for key in job if "logfile" not in key} - {"command", "priority"}
    assert {key: own[key] for key in same} == {key: job[key] for key in same}
    assert own["stderr_logfile"] == "/var/log/supervisor/watchdog-error.log"


def test_exits_and_states_are_told(supervise: Supervise, told: Told) -> None:
    """The production watchdog, at once: an exit counts, an operator's stop does not; stdout is the protocol alone."""
    supervisord = supervise({"campaign": SLEEPER, "reminders": SLEEPER}, quick=False, LOG_LEVEL="debug")
    wait_for(lambda: told.state("campaign") == told.state("watchdog") == ProcessStates.RUNNING, "both are running")
    assert told.exits("campaign") == 0
    for number in (1, 2):
        supervisord.wait_for_state("campaign", "RUNNING")
        supervisord.kill("campaign")
        wait_for(lambda number=number: told.exits("campaign") == number, "the exit is counted")  # type: ignore[misc]
    supervisord.control("stop", "reminders")
    wait_for(lambda: told.state("reminders") == ProcessStates.STOPPED, "the stop is told")
    assert told.exits("reminders") == 0
    assert told.bad_settings("campaign") == 0
    assert supervisord.said("INFO started") == 1
    assert re.fullmatch(r"(READY\n|RESULT 2\nOK)+", supervisord.log("protocol"))


def test_a_hung_job_is_restarted(supervise: Supervise, told: Told) -> None:
    """Frozen while its process is alive: killed after its stopwaitsecs and started; the healthy one is left alone."""
    supervisord = supervise({"campaign": JOB, "calls": JOB}, options={"stopwaitsecs": "2"})
    supervisord.wait_for_state("campaign", "RUNNING")
    supervisord.wait_for_state("calls", "RUNNING")
    told.wait_for_heartbeat("campaign")  # one that never said anything is not judged
    calls = supervisord.pid("calls")
    frozen = supervisord.signal("campaign", signal.SIGSTOP)
    wait_for(lambda: supervisord.said("program hangs, it is restarted program=campaign"), "the hang is seen")
    wait_for(lambda: supervisord.pid("campaign") not in (0, frozen), "another process is at work")
    supervisord.wait_for_state("campaign", "RUNNING")
    told.wait_for_ticks(1)
    assert supervisord.said("program hangs") == 1
    assert f"pid={frozen}" in supervisord.log("watchdog-error.log")
    assert supervisord.said("killing 'campaign'", "supervisord.log") == 1
    assert supervisord.pid("calls") == calls


def test_a_restart_is_finished_by_a_successor(supervise: Supervise, told: Told, redis_client: redis.Redis) -> None:
    """The watchdog is killed between the stop of a hung job and its start."""
    supervisord = supervise({"campaign": JOB}, options={"stopwaitsecs": "4"})
    supervisord.wait_for_state("campaign", "RUNNING")
    told.wait_for_heartbeat("campaign")
    supervisord.signal("campaign", signal.SIGSTOP)
    wait_for(lambda: supervisord.state("campaign") == "STOPPING", "it is being stopped")
    supervisord.signal("watchdog", signal.SIGKILL)
    supervisord.wait_for_state("campaign", "RUNNING")
    wait_for(lambda: supervisord.said("program started program=campaign"), "it was the watchdog")
    wait_for(lambda: not redis_client.exists("worker:restarting"), "nothing is left to be done")


def test_nobody_hangs_for_want_of_redis(supervise: Supervise, new_redis: Callable[..., Redis]) -> None:
    """A heartbeat that grew old in an outage is no hang: the job gets time to say that it is alive."""
    server = new_redis(appendonly=True)
    with server.client() as client:
        told = Told(client)
        supervisord = supervise({"campaign": JOB}, REDIS_URL=server.url)
        supervisord.wait_for_state("campaign", "RUNNING")
        told.wait_for_ticks(1)
        told.wait_for_heartbeat("campaign")  # so that the watchdog has not seen the last one yet
        supervisord.signal("campaign", signal.SIGSTOP)  # as one that is about to write, and finds no Redis
        told.wait_for_ticks(1)
        server.kill()
        wait_for(lambda: supervisord.said("want of a server server=Redis"), "the watchdog sees that Redis is away")
        server.start()
        told.wait_for_ticks(1)
        supervisord.signal("campaign", signal.SIGCONT)
        told.wait_for_ticks(1)
        assert supervisord.said("program hangs") == 0
        assert supervisord.said("server=Redis") == 1


def test_bad_settings_stay_down_and_show(supervise: Supervise, told: Told) -> None:
    """Status 2: nobody starts it again but an operator, who has mended it; until then it is visible."""
    supervisord = supervise({"reminders": BAD_SETTINGS, "calls": SLEEPER})
    wait_for(lambda: told.bad_settings("reminders") == 1, "it shows")
    assert told.state("reminders") == ProcessStates.EXITED
    assert told.bad_settings("calls") == 0
    told.wait_for_ticks(1)
    assert supervisord.said("spawned: 'reminders'", "supervisord.log") == 1
    assert supervisord.said("program stays down: bad settings, its error log says which program=reminders") == 1
    (supervisord.folder / "good").touch()
    supervisord.control("start", "reminders")
    wait_for(lambda: told.bad_settings("reminders") == 0, "it is well")


def test_a_program_that_was_given_up_comes_back_with_its_server(
    supervise: Supervise, told: Told, new_postgres: Callable[[], Postgres]
) -> None:
    """Left down while PostgreSQL is away, started when it is back."""
    server = new_postgres()
    server.stop()
    programs = {"trial": NEEDS_POSTGRES, "calls": SLEEPER}
    options = {"startretries": "0", "startsecs": "8"}  # a busy machine takes some of them to find PostgreSQL away
    supervisord = supervise(programs, DATABASE_URL=server.url, options=options)
    wait_for(lambda: told.state("trial") == ProcessStates.FATAL, "supervisord gives it up")
    wait_for(lambda: supervisord.said("want of a server server=PostgreSQL"), "the watchdog waits")
    told.wait_for_ticks(1)
    assert supervisord.said("spawned: 'trial'", "supervisord.log") == 1
    server.start()
    wait_for(lambda: told.state("trial") == ProcessStates.RUNNING, "it is back")
    assert supervisord.said('program started program=trial reason="supervisord gave it up, try 1"') == 1
    assert supervisord.said("a server is unavailable") == 1
    assert told.exits("trial") == 1


def test_a_reload_of_supervisord_is_survived(supervise: Supervise, told: Told) -> None:
    """SIGHUP: all begin anew, the watchdog with them, and it goes on counting."""
    supervisord = supervise({"campaign": SLEEPER, "calls": SLEEPER})
    wait_for(lambda: told.state("campaign") == ProcessStates.RUNNING, "it runs")
    before = supervisord.pid("watchdog")
    supervisord.child.send(signal.SIGHUP)
    wait_for(lambda: supervisord.said("INFO started") == 2, "the watchdog begins anew")
    supervisord.wait_for_state("campaign", "RUNNING")
    assert supervisord.pid("watchdog") != before
    wait_for(lambda: told.state("campaign") == ProcessStates.RUNNING, "its state is told")
    supervisord.kill("campaign")
    wait_for(lambda: told.exits("campaign") == 1, "exits are counted")
    assert "WARNING" not in supervisord.log("watchdog-error.log")
    assert "UNKNOWN" not in supervisord.log("supervisord.log")
    assert "Traceback" not in supervisord.log("watchdog-error.log")


def test_counts_outlast_an_outage_of_redis(supervise: Supervise, new_redis: Callable[..., Redis]) -> None:
    """Exits while Redis is away are answered at once and arrive when it is back."""
    server = new_redis(appendonly=True)
    with server.client() as client:
        told = Told(client)
        supervisord = supervise({"campaign": SLEEPER}, REDIS_URL=server.url)
        wait_for(lambda: told.exits("campaign") == 0, "it is known")
        server.kill()
        for _ in range(3):
            supervisord.wait_for_state("campaign", "RUNNING")
            supervisord.kill("campaign")
        supervisord.wait_for_state("campaign", "RUNNING")
        server.start()
        wait_for(lambda: told.exits("campaign") == 3, "they arrive")
        assert told.state("campaign") == ProcessStates.RUNNING
        assert supervisord.said("counters cannot be written") == 1


def test_a_frozen_redis_keeps_no_event_waiting(supervise: Supervise, new_redis: Callable[..., Redis]) -> None:
    """A server that takes connections and says nothing: supervisord gets its answers all the same."""
    server = new_redis()
    with server.client() as client:
        supervisord = supervise({"campaign": SLEEPER}, REDIS_URL=server.url)
        wait_for(lambda: Told(client).exits("campaign") == 0, "it is known")
        server_pid = client.info("server")["process_id"]
        os.kill(server_pid, signal.SIGSTOP)
        before = supervisord.log("protocol").count("OK")
        for _ in range(2):
            supervisord.wait_for_state("campaign", "RUNNING")
            supervisord.kill("campaign")
        # EXITED, STARTING and RUNNING each time; were each to wait for Redis, it would take longer
        answered = 4 * REDIS_SECONDS
        wait_for(lambda: supervisord.log("protocol").count("OK") >= before + 6, "all are answered", answered)
        os.kill(server_pid, signal.SIGCONT)
        wait_for(lambda: Told(client).exits("campaign") == 2, "they arrive")


def test_a_flood_of_events(supervise: Supervise, told: Told) -> None:
    """Programs that end as fast as they are started: each exit is counted, and supervisord has time for others."""
    flood = [f"flood-{number}" for number in range(5)]
    options = {"startsecs": "0", "autorestart": "true"}
    supervisord = supervise(dict.fromkeys(flood, FLOOD), options=options)
    wait_for(lambda: supervisord.said("exited: flood", "supervisord.log") >= 170, "500 changes of state")
    (supervisord.folder / "calm").touch()
    for name in flood:
        wait_for(lambda: supervisord.said(name, "calm"), f"{name} is calm")  # noqa: B023
        exits = supervisord.said(f"exited: {name}", "supervisord.log")
        wait_for(lambda: told.exits(name) == exits, f"all {exits} exits of {name} are counted")  # noqa: B023
    assert "overflowed" not in supervisord.log("supervisord.log")
    assert supervisord.state("watchdog") == "RUNNING"


def test_its_own_bad_settings_end_it(supervise: Supervise) -> None:
    """One line, status 2, and no restart loop."""
    supervisord = supervise({"campaign": SLEEPER}, quick=False, LOG_LEVEL="loud")
    supervisord.wait_for_state("watchdog", "EXITED")
    assert supervisord.said("LOG_LEVEL is 'loud'") == 1
    assert supervisord.said("exited: watchdog (exit status 2; expected)", "supervisord.log") == 1
    assert supervisord.log("protocol") == ""


def listener(environment: dict[str, str], **settings: str) -> "subprocess.Popen[str]":
    """bin/watchdog with our own hands on both ends."""
    pipe = subprocess.PIPE
    env = environment | settings
    return subprocess.Popen([PROJECT / "bin" / "watchdog"], stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=env)


TICK = "ver:3.0 server:supervisor serial:1 pool:watchdog poolserial:1 eventname:TICK_60 len:15\nwhen:1769850000"
EXITED = (
    "ver:3.0 server:supervisor serial:1 pool:watchdog poolserial:1 eventname:PROCESS_STATE_EXITED len:72\n"
    "processname:trial groupname:trial from_state:RUNNING expected:0 pid:2766"
)
NOWHERE = "unix:///nowhere/supervisor.sock"


def test_it_ends_when_supervisord_hangs_up(environment: dict[str, str]) -> None:
    """Status 0; a supervisord that cannot be asked is a warning and no reason to end."""
    with listener(environment, SUPERVISOR_SERVER_URL=NOWHERE) as process:
        out, err = process.communicate(TICK, timeout=30)
    assert process.returncode == 0
    assert out == "READY\nRESULT 2\nOKREADY\n"
    assert err.count("for want of a server server=supervisord") == 1
    assert "Traceback" not in err


def test_a_flood_is_no_flood_of_questions(environment: dict[str, str], told: Told) -> None:
    """Of a thousand events that come together each is counted, and supervisord is asked a few times."""
    asked: list[str] = []
    with SimpleXMLRPCServer(("127.0.0.1", 0), logRequests=False) as server:
        server.register_function(lambda: asked.append("once") or [], "supervisor.getAllProcessInfo")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        with listener(environment, SUPERVISOR_SERVER_URL=url) as process:
            out, _ = process.communicate(EXITED * 1000, timeout=30)
        server.shutdown()
        thread.join()
    assert out.count("RESULT 2\nOK") == 1000
    assert told.exits("trial") == 1000
    assert 1 <= len(asked) <= 10


def test_it_ends_on_a_signal(environment: dict[str, str]) -> None:
    """SIGTERM in the midst of waiting for an event: status 0 and nothing odd in the log."""
    with listener(environment, SUPERVISOR_SERVER_URL=NOWHERE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "READY\n"
        while "server=supervisord" not in process.stderr.readline():
            pass  # until it has begun
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
        assert re.fullmatch(r"\S+ INFO ended job=watchdog\n", process.stderr.read())


def test_a_server_that_does_no_work_is_left_alone(environment: dict[str, str], redis_client: redis.Redis) -> None:
    """IS_WORKER=false: it answers, needs no settings, and tells nothing of programs that are down on purpose."""
    settings = {name: value for name, value in environment.items() if name != "DATABASE_URL"}
    with listener(settings, IS_WORKER="false") as process:
        out, err = process.communicate(TICK + TICK, timeout=30)
    assert process.returncode == 0
    assert out == "READY\nRESULT 2\nOK" * 2 + "READY\n"
    assert "IS_WORKER is false" in err
    assert not redis_client.exists("worker:gauges")


def test_out_of_step(environment: dict[str, str]) -> None:
    """What is no event ends it with status 1, so that supervisord starts one that reads from the beginning."""
    with listener(environment, SUPERVISOR_SERVER_URL=NOWHERE) as process:
        out, err = process.communicate("who:are you?\n", timeout=30)
    assert process.returncode == 1
    assert out == "READY\nRESULT 2\nOK"
    assert err.count("cannot follow supervisord") == 1


def test_nobody_starts_it_by_hand(environment: dict[str, str]) -> None:
    """Without supervisord's address: status 2 and one line; stdout stays empty for what might read it."""
    done = subprocess.run(
        [PROJECT / "bin" / "watchdog"], env=environment, capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("SUPERVISOR_SERVER_URL is not set") == 1
    assert "Traceback" not in done.stderr


def test_whatever_else_writes_to_stdout_ends_in_the_log() -> None:
    """A library that prints, a child process: neither gets between supervisord and the listener."""
    text = """
import os, sys
from worker.supervision.event_listener import reserve_stdout
protocol = reserve_stdout()
print("printed", flush=True)
os.system("echo echoed")
protocol.write("READY\\n")
protocol.flush()
"""
    done = subprocess.run(
        [PROJECT / "bin" / "python", "-c", text], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout == "READY\n"
    assert sorted(done.stderr.split()) == ["echoed", "printed"]
