"""bin/watchdog under a real supervisord: programs that hang, fail and exit, and servers that become unavailable."""

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
from supervised import ReportedStates, Supervised
from supervisor.states import ProcessStates
from workers import PROJECT, wait_for

from sandbox.postgres import Postgres
from sandbox.redis import Redis
from worker.watchdog import REDIS_TIMEOUT_SECONDS

# a job as the watchdog knows it: heartbeats under the program's name
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

UNAVAILABLE = "programs cannot be checked: a server is unavailable"

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
def reported(redis_client: redis.Redis) -> ReportedStates:
    return ReportedStates(redis_client)


def test_its_supervisord_section_matches_the_jobs() -> None:
    """It starts after the jobs and before web, is restarted as they are, and has a buffer for many events."""
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


def test_exits_and_states_are_reported(supervise: Supervise, reported: ReportedStates) -> None:
    """The production watchdog: an exit counts, a stop by an operator does not; stdout holds only the protocol."""
    supervisord = supervise({"campaign": SLEEPER, "reminders": SLEEPER}, quick=False, LOG_LEVEL="debug")
    wait_for(
        lambda: reported.state("campaign") == reported.state("watchdog") == ProcessStates.RUNNING, "both are running"
    )
    assert reported.exits("campaign") == 0
    for number in (1, 2):
        supervisord.wait_for_state("campaign", "RUNNING")
        supervisord.kill("campaign")
        wait_for(lambda number=number: reported.exits("campaign") == number, "the exit is counted")  # type: ignore[misc]
    supervisord.control("stop", "reminders")
    wait_for(lambda: reported.state("reminders") == ProcessStates.STOPPED, "the stop is reported")
    assert reported.exits("reminders") == 0
    assert reported.bad_settings("campaign") == 0
    assert supervisord.logged("INFO started") == 1
    assert re.fullmatch(r"(READY\n|RESULT 2\nOK)+", supervisord.log("protocol"))


def test_a_hung_job_is_restarted(supervise: Supervise, reported: ReportedStates) -> None:
    """A frozen job is killed after its stopwaitsecs and started again; a healthy job is left alone."""
    supervisord = supervise({"campaign": JOB, "calls": JOB}, options={"stopwaitsecs": "2"})
    supervisord.wait_for_state("campaign", "RUNNING")
    supervisord.wait_for_state("calls", "RUNNING")
    reported.wait_for_heartbeat("campaign")  # a job without any heartbeat is not checked
    calls = supervisord.pid("calls")
    frozen = supervisord.signal("campaign", signal.SIGSTOP)
    wait_for(lambda: supervisord.logged("program hangs, it is restarted program=campaign"), "the hang is detected")
    wait_for(lambda: supervisord.pid("campaign") not in (0, frozen), "a new process runs")
    supervisord.wait_for_state("campaign", "RUNNING")
    reported.wait_for_ticks(1)
    assert supervisord.logged("program hangs") == 1
    assert f"pid={frozen}" in supervisord.log("watchdog-error.log")
    assert supervisord.logged("killing 'campaign'", "supervisord.log") == 1
    assert supervisord.pid("calls") == calls


def test_a_restart_is_finished_by_a_successor(
    supervise: Supervise, reported: ReportedStates, redis_client: redis.Redis
) -> None:
    """The watchdog is killed between the stop of a hung job and its start."""
    supervisord = supervise({"campaign": JOB}, options={"stopwaitsecs": "4"})
    supervisord.wait_for_state("campaign", "RUNNING")
    reported.wait_for_heartbeat("campaign")
    supervisord.signal("campaign", signal.SIGSTOP)
    wait_for(lambda: supervisord.state("campaign") == "STOPPING", "it is being stopped")
    supervisord.signal("watchdog", signal.SIGKILL)
    supervisord.wait_for_state("campaign", "RUNNING")
    wait_for(lambda: supervisord.logged("program started program=campaign"), "the new watchdog starts it")
    wait_for(lambda: not redis_client.exists("worker:restarting"), "no restart is pending")


def test_an_outage_of_redis_is_not_a_hang(supervise: Supervise, new_redis: Callable[..., Redis]) -> None:
    """A heartbeat that became old during the outage is not a hang: the job gets time to write a new one."""
    server = new_redis(appendonly=True)
    with server.client() as client:
        reported = ReportedStates(client)
        supervisord = supervise({"campaign": JOB}, REDIS_URL=server.url)
        supervisord.wait_for_state("campaign", "RUNNING")
        reported.wait_for_ticks(1)
        reported.wait_for_heartbeat("campaign")  # so that the watchdog has not observed the last one yet
        supervisord.signal("campaign", signal.SIGSTOP)  # like a job that wants to write and cannot reach Redis
        reported.wait_for_ticks(1)
        server.kill()
        wait_for(lambda: supervisord.logged(f"{UNAVAILABLE} server=Redis"), "the watchdog notices the outage")
        server.start()
        reported.wait_for_ticks(1)
        supervisord.signal("campaign", signal.SIGCONT)
        reported.wait_for_ticks(1)
        assert supervisord.logged("program hangs") == 0
        assert supervisord.logged("server=Redis") == 1


def test_bad_settings_stay_down_and_are_reported(supervise: Supervise, reported: ReportedStates) -> None:
    """Status 2: only an operator starts it again, with better settings; until then it is reported."""
    supervisord = supervise({"reminders": BAD_SETTINGS, "calls": SLEEPER})
    wait_for(lambda: reported.bad_settings("reminders") == 1, "it is reported")
    assert reported.state("reminders") == ProcessStates.EXITED
    assert reported.bad_settings("calls") == 0
    reported.wait_for_ticks(1)
    assert supervisord.logged("spawned: 'reminders'", "supervisord.log") == 1
    assert (
        supervisord.logged("program stays down because of bad settings, its error log names them program=reminders")
        == 1
    )
    (supervisord.folder / "good").touch()
    supervisord.control("start", "reminders")
    wait_for(lambda: reported.bad_settings("reminders") == 0, "it runs")


def test_a_fatal_program_is_started_when_its_server_is_available_again(
    supervise: Supervise, reported: ReportedStates, new_postgres: Callable[[], Postgres]
) -> None:
    """It stays down while PostgreSQL is unavailable and is started afterwards."""
    server = new_postgres()
    server.stop()
    programs = {"trial": NEEDS_POSTGRES, "calls": SLEEPER}
    options = {
        "startretries": "0",
        "startsecs": "8",
    }  # a busy machine needs some of them to find PostgreSQL unavailable
    supervisord = supervise(programs, DATABASE_URL=server.url, options=options)
    wait_for(lambda: reported.state("trial") == ProcessStates.FATAL, "supervisord gives up on it")
    wait_for(lambda: supervisord.logged(f"{UNAVAILABLE} server=PostgreSQL"), "the watchdog waits")
    reported.wait_for_ticks(1)
    assert supervisord.logged("spawned: 'trial'", "supervisord.log") == 1
    server.start()
    wait_for(lambda: reported.state("trial") == ProcessStates.RUNNING, "it runs again")
    assert supervisord.logged('program started program=trial reason="supervisord gave up on it, attempt 1"') == 1
    assert supervisord.logged(UNAVAILABLE) == 1
    assert reported.exits("trial") == 1


def test_a_reload_of_supervisord_is_survived(supervise: Supervise, reported: ReportedStates) -> None:
    """SIGHUP: all programs start again, the watchdog too, and it continues to count."""
    supervisord = supervise({"campaign": SLEEPER, "calls": SLEEPER})
    wait_for(lambda: reported.state("campaign") == ProcessStates.RUNNING, "it runs")
    before = supervisord.pid("watchdog")
    supervisord.child.send(signal.SIGHUP)
    wait_for(lambda: supervisord.logged("INFO started") == 2, "the watchdog starts again")
    supervisord.wait_for_state("campaign", "RUNNING")
    assert supervisord.pid("watchdog") != before
    wait_for(lambda: reported.state("campaign") == ProcessStates.RUNNING, "its state is reported")
    supervisord.kill("campaign")
    wait_for(lambda: reported.exits("campaign") == 1, "exits are counted")
    assert "WARNING" not in supervisord.log("watchdog-error.log")
    assert "UNKNOWN" not in supervisord.log("supervisord.log")
    assert "Traceback" not in supervisord.log("watchdog-error.log")


def test_counts_survive_an_outage_of_redis(supervise: Supervise, new_redis: Callable[..., Redis]) -> None:
    """Exits during the outage are answered at once and written to Redis afterwards."""
    server = new_redis(appendonly=True)
    with server.client() as client:
        reported = ReportedStates(client)
        supervisord = supervise({"campaign": SLEEPER}, REDIS_URL=server.url)
        wait_for(lambda: reported.exits("campaign") == 0, "the program is reported")
        server.kill()
        for _ in range(3):
            supervisord.wait_for_state("campaign", "RUNNING")
            supervisord.kill("campaign")
        supervisord.wait_for_state("campaign", "RUNNING")
        server.start()
        wait_for(lambda: reported.exits("campaign") == 3, "the exits are counted")
        assert reported.state("campaign") == ProcessStates.RUNNING
        assert supervisord.logged("counters cannot be written") == 1


def test_a_frozen_redis_delays_no_event(supervise: Supervise, new_redis: Callable[..., Redis]) -> None:
    """A server that accepts connections and never answers: supervisord still gets its answers."""
    server = new_redis()
    with server.client() as client:
        supervisord = supervise({"campaign": SLEEPER}, REDIS_URL=server.url)
        wait_for(lambda: ReportedStates(client).exits("campaign") == 0, "the program is reported")
        server_pid = client.info("server")["process_id"]
        os.kill(server_pid, signal.SIGSTOP)
        before = supervisord.log("protocol").count("OK")
        for _ in range(2):
            supervisord.wait_for_state("campaign", "RUNNING")
            supervisord.kill("campaign")
        # EXITED, STARTING and RUNNING each time; if each waited for Redis, it would take longer
        answered = 4 * REDIS_TIMEOUT_SECONDS
        wait_for(lambda: supervisord.log("protocol").count("OK") >= before + 6, "all are answered", answered)
        os.kill(server_pid, signal.SIGCONT)
        wait_for(lambda: ReportedStates(client).exits("campaign") == 2, "the exits are counted")


def test_many_events(supervise: Supervise, reported: ReportedStates) -> None:
    """Programs that end as fast as they are started: each exit is counted, and supervisord stays responsive."""
    flood = [f"flood-{number}" for number in range(5)]
    options = {"startsecs": "0", "autorestart": "true"}
    supervisord = supervise(dict.fromkeys(flood, FLOOD), options=options)
    wait_for(lambda: supervisord.logged("exited: flood", "supervisord.log") >= 170, "500 changes of state")
    (supervisord.folder / "calm").touch()
    for name in flood:
        wait_for(lambda: supervisord.logged(name, "calm"), f"{name} is calm")  # noqa: B023
        exits = supervisord.logged(f"exited: {name}", "supervisord.log")
        wait_for(lambda: reported.exits(name) == exits, f"all {exits} exits of {name} are counted")  # noqa: B023
    assert "overflowed" not in supervisord.log("supervisord.log")
    assert supervisord.state("watchdog") == "RUNNING"


def test_its_own_bad_settings(supervise: Supervise) -> None:
    """One line, status 2, and no restart loop."""
    supervisord = supervise({"campaign": SLEEPER}, quick=False, LOG_LEVEL="loud")
    supervisord.wait_for_state("watchdog", "EXITED")
    assert supervisord.logged("LOG_LEVEL is 'loud'") == 1
    assert supervisord.logged("exited: watchdog (exit status 2; expected)", "supervisord.log") == 1
    assert supervisord.log("protocol") == ""


def listener(environment: dict[str, str], **settings: str) -> "subprocess.Popen[str]":
    """bin/watchdog without supervisord: the test writes events and reads answers."""
    pipe = subprocess.PIPE
    env = environment | settings
    return subprocess.Popen([PROJECT / "bin" / "watchdog"], stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=env)


TICK = "ver:3.0 server:supervisor serial:1 pool:watchdog poolserial:1 eventname:TICK_60 len:15\nwhen:1769850000"
EXITED = (
    "ver:3.0 server:supervisor serial:1 pool:watchdog poolserial:1 eventname:PROCESS_STATE_EXITED len:72\n"
    "processname:trial groupname:trial from_state:RUNNING expected:0 pid:2766"
)
NOWHERE = "unix:///nowhere/supervisor.sock"


def test_it_ends_when_supervisord_closes_the_connection(environment: dict[str, str]) -> None:
    """Status 0; a supervisord that does not answer is a warning and no reason to end."""
    with listener(environment, SUPERVISOR_SERVER_URL=NOWHERE) as process:
        out, err = process.communicate(TICK, timeout=30)
    assert process.returncode == 0
    assert out == "READY\nRESULT 2\nOKREADY\n"
    assert err.count(f"{UNAVAILABLE} server=supervisord") == 1
    assert "Traceback" not in err


def test_many_events_cause_few_requests(environment: dict[str, str], reported: ReportedStates) -> None:
    """Each of a thousand events that come together is counted, with a few requests to supervisord."""
    requests: list[str] = []
    with SimpleXMLRPCServer(("127.0.0.1", 0), logRequests=False) as server:
        server.register_function(lambda: requests.append("once") or [], "supervisor.getAllProcessInfo")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        with listener(environment, SUPERVISOR_SERVER_URL=url) as process:
            out, _ = process.communicate(EXITED * 1000, timeout=30)
        server.shutdown()
        thread.join()
    assert out.count("RESULT 2\nOK") == 1000
    assert reported.exits("trial") == 1000
    assert 1 <= len(requests) <= 10


def test_it_ends_on_a_signal(environment: dict[str, str]) -> None:
    """SIGTERM while it waits for an event: status 0 and no error in the log."""
    with listener(environment, SUPERVISOR_SERVER_URL=NOWHERE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "READY\n"
        while "server=supervisord" not in process.stderr.readline():
            pass  # until it has started
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
        assert re.fullmatch(r"\S+ INFO ended job=watchdog\n", process.stderr.read())


def test_is_worker_false(environment: dict[str, str], redis_client: redis.Redis) -> None:
    """It answers, needs no settings, and reports nothing about programs that are down on purpose."""
    settings = {name: value for name, value in environment.items() if name != "DATABASE_URL"}
    with listener(settings, IS_WORKER="false") as process:
        out, err = process.communicate(TICK + TICK, timeout=30)
    assert process.returncode == 0
    assert out == "READY\nRESULT 2\nOK" * 2 + "READY\n"
    assert "IS_WORKER is false" in err
    assert not redis_client.exists("worker:gauges")


def test_input_that_is_not_the_protocol(environment: dict[str, str]) -> None:
    """It ends with status 1, so that supervisord starts a new process, which reads from the beginning."""
    with listener(environment, SUPERVISOR_SERVER_URL=NOWHERE) as process:
        out, err = process.communicate("who:are you?\n", timeout=30)
    assert process.returncode == 1
    assert out == "READY\nRESULT 2\nOK"
    assert err.count("cannot follow supervisord") == 1


def test_it_cannot_be_started_by_hand(environment: dict[str, str]) -> None:
    """Without supervisord's address: status 2 and one line; nothing on stdout."""
    done = subprocess.run(
        [PROJECT / "bin" / "watchdog"], env=environment, capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("SUPERVISOR_SERVER_URL is not set") == 1
    assert "Traceback" not in done.stderr


def test_other_output_on_stdout_goes_to_the_log() -> None:
    """A library that prints, a child process: neither disturbs the protocol between supervisord and the listener."""
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
