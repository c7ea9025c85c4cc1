"""supervisord with the extension of conf/supervisord.worker.conf: how it stops its programs, and when it ends."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from supervised import Supervised
from supervisor.states import ProcessStates
from workers import wait_for

from worker.supervision.supervisord_extension import nothing_will_run

# needs SECONDS to end, and writes down when it received SIGTERM and when it ended
DRAINS = """
import signal, sys, time
from pathlib import Path
times = Path(__file__).with_suffix(".times")
def note(what):
    with times.open("a") as file:
        file.write(f"{what} {time.monotonic()}\\n")
def drain(*_):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note("stopping")
    time.sleep(SECONDS)
    note("ended")
    sys.exit(0)
signal.signal(signal.SIGTERM, drain)
note("started")
while True:
    time.sleep(60)
"""
JOBS = ("campaign", "reminders", "calls", "call-cleanup", "trial", "knowledge")
GRACE = 4.0
SLEEPER = "import time\nwhile True: time.sleep(60)\n"
FAILS = "import sys\nsys.exit(1)\n"
BAD_SETTINGS = "import sys, time\ntime.sleep(1.5)\nsys.exit(2)\n"
NOTHING_TO_DO = "import sys, time\ntime.sleep(1.5)\nsys.exit(0)\n"

Supervise = Callable[..., Supervised]


@pytest.fixture
def supervise(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervise]:
    """Starts a supervisord with these programs; it ends with the test."""
    started: list[Supervised] = []

    def start(programs: dict[str, str], **options: object) -> Supervised:
        # a Unix socket's path may have no more than 107 characters
        folder = tmp_path_factory.mktemp("sv")
        started.append(Supervised(folder, environment, programs, quick=False, **options))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for each in started:
        each.stop()


def start_draining_programs(supervise: Supervise) -> Supervised:
    """Six jobs, web above them and two servers below them; each needs some time to end."""
    programs = dict.fromkeys((*JOBS, "web"), DRAINS.replace("SECONDS", str(GRACE)))
    programs |= {"qdrant": DRAINS.replace("SECONDS", "0.5"), "broker": DRAINS.replace("SECONDS", "0.1")}
    priorities = {"web": "300", "qdrant": "100", "broker": "50"}
    supervisord = supervise(programs, own_options={name: {"priority": each} for name, each in priorities.items()})
    for name in programs:
        wait_for(lambda: times_of(supervisord, name, "started"), f"{name} has started")  # noqa: B023
    return supervisord


def times_of(supervisord: Supervised, program: str, what: str) -> list[float]:
    """When the program wrote ``what`` down (monotonic seconds)."""
    lines = [line.split() for line in supervisord.log(f"{program}.times").splitlines()]
    return [float(at) for word, at in lines if word == what]


def assert_in_order(supervisord: Supervised) -> None:
    """Jobs and web were stopped before any of them had ended; the servers afterwards, one after the other."""
    together = (*JOBS, "web")
    stopping = [times_of(supervisord, name, "stopping")[0] for name in together]
    ended = [times_of(supervisord, name, "ended")[0] for name in together]
    assert max(stopping) < min(ended)
    assert max(ended) < times_of(supervisord, "qdrant", "stopping")[0]
    assert times_of(supervisord, "qdrant", "ended")[0] < times_of(supervisord, "broker", "stopping")[0]


def test_programs_stop_together_and_then_their_servers(supervise: Supervise) -> None:
    """One after the other they would need 28 seconds, and a container has 10."""
    supervisord = start_draining_programs(supervise)
    began = time.monotonic()
    supervisord.stop()
    assert time.monotonic() - began < 5 * GRACE
    assert_in_order(supervisord)
    assert "killing" not in supervisord.log("supervisord.log")


def test_a_reload_does_the_same_and_starts_them_again(supervise: Supervise) -> None:
    """The order is the same at the second end of supervisord."""
    supervisord = start_draining_programs(supervise)
    supervisord.control("reload")
    wait_for(lambda: len(times_of(supervisord, "campaign", "started")) == 2, "they are started again")
    assert_in_order(supervisord)
    for name in JOBS:
        wait_for(lambda: len(times_of(supervisord, name, "started")) == 2, f"{name} is started again")  # noqa: B023
    supervisord.stop()
    stopping = [times_of(supervisord, name, "stopping")[1] for name in JOBS]
    assert max(stopping) < min(times_of(supervisord, name, "ended")[1] for name in JOBS)


def test_it_ends_when_nothing_will_run_again(supervise: Supervise) -> None:
    """One program does not stay up, one has bad settings, one has nothing to do: status 1 and one log line."""
    programs = {"campaign": FAILS, "calls": BAD_SETTINGS, "qdrant": NOTHING_TO_DO}
    # startsecs: a busy supervisord that sees an end a second late would count it as that of a program that stayed up
    supervisord = supervise(programs, own_options={"campaign": {"startretries": "1", "startsecs": "30"}})
    assert supervisord.wait() == 1
    log = supervisord.log("supervisord.log")
    assert log.count("CRIT no program runs any more") == 1
    assert log.count("spawned: 'campaign'") == 2
    assert log.count("gave up: campaign") == 1
    assert supervisord.logged("INFO ended job=watchdog") == 1
    assert not (supervisord.folder / "supervisord.pid").exists()


def test_it_keeps_running_while_a_program_runs_or_was_stopped_by_an_operator(supervise: Supervise) -> None:
    """An operator who stops the last program finds supervisord still running."""
    supervisord = supervise({"campaign": BAD_SETTINGS, "calls": SLEEPER})
    supervisord.wait_for_state("campaign", "EXITED")
    assert supervisord.state("calls") == "RUNNING"
    supervisord.control("stop", "calls")
    assert supervisord.state("calls") == "STOPPED"
    supervisord.control("start", "campaign")
    wait_for(lambda: supervisord.logged("exited: campaign", "supervisord.log") == 2, "it has ended again")
    assert supervisord.control("pid").returncode == 0


@dataclass
class FakeProcess:
    """What ``nothing_will_run`` reads of a process inside supervisord."""

    state: int
    exitstatus: int = 0
    config: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(exitcodes=[0, 2]))

    def get_state(self) -> int:
        return self.state


FATAL = FakeProcess(ProcessStates.FATAL)
DONE = FakeProcess(ProcessStates.EXITED)
BAD = FakeProcess(ProcessStates.EXITED, 2)
FAILED = FakeProcess(ProcessStates.EXITED, 1)
STOPPED = FakeProcess(ProcessStates.STOPPED)


@pytest.mark.parametrize(
    ("processes", "expected"),
    [
        ([FATAL, FATAL], True),
        ([FATAL, DONE], True),
        ([BAD, DONE], True),
        ([DONE, DONE], False),  # none of them has anything to do on this machine
        ([FATAL, FAILED], False),  # the second one is about to be started again
        ([FATAL, STOPPED], False),
        *[([FATAL, FakeProcess(state)], False) for state in (ProcessStates.RUNNING, ProcessStates.STARTING)],
        *[([FATAL, FakeProcess(state)], False) for state in (ProcessStates.BACKOFF, ProcessStates.STOPPING)],
    ],
)
def test_nothing_will_run(processes: list[FakeProcess], expected: bool) -> None:
    assert nothing_will_run(processes) is expected
