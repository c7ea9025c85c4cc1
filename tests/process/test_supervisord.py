"""bin/campaign under a real supervisord, with the production configuration in other places."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from configparser import RawConfigParser
from pathlib import Path

import pytest
from books import Books
from supervised import process_info
from workers import PROJECT, wait_for

from sandbox.crm import Crm
from sandbox.ports import free_port
from sandbox.servers import Child
from sandbox.world import World


class Supervisord:
    """The server, and supervisorctl to talk to it."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.logs = folder / "log"
        self.logs.mkdir(parents=True)
        self._conf = folder / "supervisord.conf"
        self._environment = {**environment, "PORT": str(free_port())}
        text = (PROJECT / "conf" / "supervisord.worker.conf").read_text("utf-8")
        # a Unix socket's path may have no more than 107 characters: a short one, found from the folder
        text = text.replace("/run/crm-worker", str(folder)).replace("/var/log/supervisor", str(self.logs))
        self._conf.write_text(text.replace("%(here)s/..", str(PROJECT)), "utf-8")
        argv = [sys.executable, "-m", "supervisor.supervisord", "-c", str(self._conf)]
        self._child = Child(argv, folder / "out.log", at_parents_death="TERM", environment=self._environment)
        self._child.wait_until(lambda: process_info(folder, "campaign") != {}, "supervisord")

    def control(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "supervisor.supervisorctl", "-c", str(self._conf), *arguments]
        return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, env=self._environment)

    def log(self, name: str) -> str:
        path = self.logs / name
        return path.read_text("utf-8") if path.exists() else ""

    def stop(self) -> None:
        self._child.end(signal.SIGTERM, 40)


@pytest.fixture
def supervisords(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Supervisord]]:
    """Those that a test started: stopped after it."""
    started: list[Supervisord] = []
    yield started
    for each in started:
        each.stop()


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sv")


def test_the_configuration_is_what_the_programs_need() -> None:
    """Every job has its program: it waits longer than the grace time, ends whole groups, and rotates its logs."""
    conf = RawConfigParser(inline_comment_prefixes=(";",))
    conf.read(PROJECT / "conf" / "supervisord.worker.conf")
    jobs = {section.removeprefix("program:") for section in conf.sections() if section.startswith("program:")}
    assert jobs == {"qdrant", "campaign", "reminders", "calls", "call-cleanup", "trial", "knowledge", "web"}
    assert "group:" not in " ".join(conf.sections())
    for name in jobs:
        program = conf[f"program:{name}"]
        assert program["command"] == f'"%(here)s/../bin/{name}"'
        assert os.access(PROJECT / "bin" / name, os.X_OK)
        assert program.getint("stopwaitsecs") > 5
        assert program.getboolean("stopasgroup")
        assert program["stdout_logfile"] == f"/var/log/supervisor/{name}.log"
        assert program["stderr_logfile"] == f"/var/log/supervisor/{name}-error.log"
        assert program.getint("stdout_logfile_backups") > 0
        usual = {key: value for key, value in conf["program:campaign"].items() if "logfile" not in key}
        same = usual.keys() - {"command", "priority"}
        assert {key: program[key] for key in same} == {key: usual[key] for key in same}
    priorities = [conf.getint(f"program:{name}", "priority") for name in ("qdrant", "campaign", "web")]
    assert priorities == sorted(set(priorities))


def test_bad_settings_are_said_once_and_not_tried_again(
    environment: dict[str, str], folder: Path, supervisords: list[Supervisord]
) -> None:
    """EXITED with status 2: no restart loop, and the reason in the error log."""
    supervisord = Supervisord(folder, environment | {"CAMPAIGN_BATCH_SIZE": "many"})
    supervisords.append(supervisord)
    wait_for(lambda: process_info(folder, "campaign")["statename"] == "EXITED", "the program has ended")
    assert supervisord.control("status", "campaign").stdout.split()[:2] == ["campaign", "EXITED"]
    main_log = supervisord.log("supervisord.log")
    assert "exited: campaign (exit status 2; expected)" in main_log
    assert main_log.count("spawned: 'campaign'") == 1
    assert supervisord.log("campaign-error.log").count("CAMPAIGN_BATCH_SIZE is 'many'") == 1
    assert supervisord.log("campaign.log") == ""


def test_a_restart_in_mid_campaign_repeats_nobody(
    environment: dict[str, str],
    folder: Path,
    supervisords: list[Supervisord],
    crm: Crm,
    world: World,
    books: Books,
) -> None:
    """supervisorctl restart campaign, twice: each time with nobody unconfirmed, and the campaign goes on."""
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


def test_warnings_and_errors_have_a_log_of_their_own_and_a_killed_program_comes_back(
    environment: dict[str, str],
    folder: Path,
    supervisords: list[Supervisord],
    crm: Crm,
    world: World,
    books: Books,
) -> None:
    """After kill -9 supervisord starts it again, and what the dead one left is a warning in campaign-error.log."""
    world.script("smtp", action="hang", seconds=60, times=8)
    campaign = crm.add_campaign("email", recipients=100)
    supervisord = Supervisord(folder, environment)
    supervisords.append(supervisord)
    world.wait_for("smtp", 8)
    os.kill(int(supervisord.control("pid", "campaign").stdout), signal.SIGKILL)
    wait_for(lambda: books.ended(campaign), "the campaign ends")
    assert books.balance(campaign) == 8
    wait_for(lambda: "dead worker" in supervisord.log("campaign-error.log"), "the warning is logged")
    assert "dead worker" not in supervisord.log("campaign.log")
    assert "campaign started" not in supervisord.log("campaign-error.log")
