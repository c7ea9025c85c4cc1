"""The programs under a real supervisord, with the production configuration and other folders."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest
from books import Books
from supervised import process_info
from workers import ANSWERED, PROJECT, THREADS, wait_for

from sandbox.crm import Crm
from sandbox.ports import free_port
from sandbox.servers import Child
from sandbox.world import World
from worker.registry import JOBS


class Supervisord:
    """The server, and bin/supervisorctl as its client."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.logs = folder / "log"
        self.logs.mkdir(parents=True)
        self._folder = folder
        conf = folder / "supervisord.conf"
        self._environment = {**environment, "PORT": str(free_port())}
        text = (PROJECT / "conf" / "supervisord.worker.conf").read_text("utf-8")
        # the path of a Unix socket may have at most 107 characters: this folder's name is short
        text = text.replace("/run/crm-worker", str(folder)).replace("/var/log/supervisor", str(self.logs))
        conf.write_text(text.replace("%(here)s/..", str(PROJECT)), "utf-8")
        argv = [sys.executable, "-m", "supervisor.supervisord", "-c", str(conf)]
        self._child = Child(argv, folder / "out.log", at_parents_death="TERM", environment=self._environment)
        self._child.wait_until(lambda: process_info(folder, "campaign") != {}, "supervisord")

    def control(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [PROJECT / "bin" / "supervisorctl", "-s", f"unix://{self._folder}/supervisor.sock", *arguments]
        return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, env=self._environment)

    def log(self, name: str) -> str:
        path = self.logs / name
        return path.read_text("utf-8") if path.exists() else ""

    def stop(self) -> None:
        self._child.end(signal.SIGTERM, 40)


@pytest.fixture
def supervisords(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Supervisord]]:
    """Those that a test started; they are stopped after it."""
    started: list[Supervisord] = []
    yield started
    for each in started:
        each.stop()


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sv")


def test_bad_settings_are_logged_once_and_not_retried(
    environment: dict[str, str], folder: Path, supervisords: list[Supervisord]
) -> None:
    """EXITED with status 2: no restarts, and the reason is in the error log."""
    supervisord = Supervisord(folder, environment | {"CAMPAIGN_BATCH_SIZE": "many"})
    supervisords.append(supervisord)
    wait_for(lambda: process_info(folder, "campaign")["statename"] == "EXITED", "the program has ended")
    assert supervisord.control("status", "campaign").stdout.split()[:2] == ["campaign", "EXITED"]
    main_log = supervisord.log("supervisord.log")
    assert "exited: campaign (exit status 2; expected)" in main_log
    assert main_log.count("spawned: 'campaign'") == 1
    assert supervisord.log("campaign-error.log").count("CAMPAIGN_BATCH_SIZE is 'many'") == 1
    assert supervisord.log("campaign.log") == ""


def test_a_job_that_is_off_is_not_started_again(
    environment: dict[str, str], folder: Path, supervisords: list[Supervisord]
) -> None:
    """Without a mailbox bounces ends with status 0, which is no failure."""
    supervisord = Supervisord(folder, environment)
    supervisords.append(supervisord)
    wait_for(lambda: process_info(folder, "bounces")["statename"] == "EXITED", "the program has ended")
    main_log = supervisord.log("supervisord.log")
    assert "exited: bounces (exit status 0; expected)" in main_log
    assert main_log.count("spawned: 'bounces'") == 1
    assert supervisord.log("bounces.log").count("BOUNCE_MAILBOX_URL is not set") == 1
    assert supervisord.log("bounces-error.log") == ""


def test_a_restart_during_a_campaign_repeats_no_message(
    environment: dict[str, str],
    folder: Path,
    supervisords: list[Supervisord],
    crm: Crm,
    world: World,
    books: Books,
) -> None:
    """supervisorctl restart campaign, twice: no message is unconfirmed, and the campaign continues."""
    campaign = crm.add_campaign("email", recipients=800)
    crm.add_recipient(campaign, recipientEmail="no address at all")
    supervisord = Supervisord(folder, environment | {"CAMPAIGN_BATCH_SIZE": "50"})
    supervisords.append(supervisord)
    for goal in (100, 300):
        world.wait_for("smtp", goal)
        assert "campaign: started" in supervisord.control("restart", "campaign").stdout
    wait_for(lambda: books.ended(campaign), "the campaign ends")
    assert crm.counts(campaign) == {"sent": 800, "failed": 1}
    assert books.unconfirmed(campaign) == 0
    books.nobody_twice("smtp")
    assert process_info(folder, "campaign")["statename"] == "RUNNING"
    wait_for(lambda: "campaign ended" in supervisord.log("campaign.log"), "the end is logged")
    assert supervisord.log("campaign.log").count("INFO started") == 3
    assert supervisord.log("campaign-error.log") == ""


def test_the_word_worker_means_all_jobs(
    environment: dict[str, str], folder: Path, supervisords: list[Supervisord]
) -> None:
    """bin/supervisorctl restarts, stops, starts and lists all jobs with it, and no other program."""
    mailbox = {"BOUNCE_MAILBOX_URL": "imap://user:password@127.0.0.1:9", "BOUNCE_ADDRESS": "bounces@mail.example"}
    supervisord = Supervisord(folder, environment | mailbox)
    supervisords.append(supervisord)

    def states(names: Iterable[str]) -> set[str]:
        return {process_info(folder, name)["statename"] for name in names}

    def pids(names: Iterable[str]) -> dict[str, int]:
        return {name: process_info(folder, name)["pid"] for name in names}

    others = ("watchdog", "web")
    wait_for(lambda: states([*JOBS, *others]) == {"RUNNING"}, "all programs run")
    before, before_others = pids(JOBS), pids(others)
    lines = supervisord.control("restart", "worker").stdout.splitlines()
    assert sorted(lines) == sorted(f"{name}: {done}" for name in JOBS for done in ("stopped", "started"))
    assert not set(pids(JOBS).values()) & set(before.values())
    assert pids(others) == before_others
    listed = supervisord.control("status", "worker").stdout.splitlines()
    assert [line.split()[0] for line in listed] == list(JOBS)
    supervisord.control("stop", "worker")
    assert states(JOBS) == {"STOPPED"}
    assert states(others) == {"RUNNING"}
    assert "campaign: started" in supervisord.control("start", "worker").stdout
    assert states(JOBS) == {"RUNNING"}
    unknown = supervisord.control("pid", "worker")
    assert "worker" in unknown.stdout, "after other commands it is an ordinary name"


def test_warnings_have_their_own_log_and_a_killed_program_is_restarted(
    environment: dict[str, str],
    folder: Path,
    supervisords: list[Supervisord],
    crm: Crm,
    world: World,
    books: Books,
) -> None:
    """After kill -9 supervisord starts it again; the orphaned batch is a warning in campaign-error.log."""
    world.script("smtp", action="hang", seconds=60, after=ANSWERED, times=THREADS)
    campaign = crm.add_campaign("email", recipients=100)
    supervisord = Supervisord(folder, environment)
    supervisords.append(supervisord)
    world.wait_for("smtp", ANSWERED + THREADS)
    os.kill(int(supervisord.control("pid", "campaign").stdout), signal.SIGKILL)
    wait_for(lambda: books.ended(campaign), "the campaign ends")
    assert books.balance(campaign) == THREADS
    wait_for(lambda: "orphaned batch settled" in supervisord.log("campaign-error.log"), "the warning is logged")
    assert "orphaned batch settled" not in supervisord.log("campaign.log")
    assert "campaign started" not in supervisord.log("campaign-error.log")
