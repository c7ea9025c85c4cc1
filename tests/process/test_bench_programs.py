"""bin/bench memory, idle and reaction: all programs as production runs them, and nothing left of them."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from workers import wait_for

from benchmarks.program_set import OFF
from worker.registry import SUPERVISED

PROJECT = Path(__file__).resolve().parents[2]

MEASURED = {"supervisord", *SUPERVISED} - {"qdrant", *OFF}
MOST_BYTES = 250_000_000  # of all; the target is lower, and for where the libraries are compiled
RESTING = {"reminders", "trial", "call-cleanup", "knowledge"}


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its name is short: the path of supervisord's socket may have at most 107 characters."""
    return tmp_path_factory.mktemp("b")


def begin(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    argv = [sys.executable, "-m", "benchmarks", *arguments, "--json"]
    environment = os.environ | {"TMPDIR": str(folder)}
    return subprocess.Popen(
        argv, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def bench(folder: Path, *arguments: str) -> dict[str, Any]:
    process = begin(folder, *arguments)
    out, progress = process.communicate(timeout=280)
    assert process.returncode == 0, progress
    assert list(folder.iterdir()) == []
    report: dict[str, Any] = json.loads(out)
    return report


def met(report: Mapping[str, Any]) -> dict[str, bool]:
    return {each["what"]: each["met"] for each in report["targets"]}


def test_memory(folder: Path) -> None:
    """Each program's memory and its imports; the jobs that rest are small."""
    report = bench(folder, "memory")
    found = {each["program"]: each for each in report["results"]}
    assert found.keys() == MEASURED
    assert {name for name, each in found.items() if each["rests"]} == RESTING
    assert all(found[name]["pss"] < 8_000_000 for name in RESTING)
    assert all(each["pss"] >= each["own"] > 0 for each in found.values())
    assert (found["web"]["processes"], found["campaign"]["processes"]) == (2, 1)
    assert "qdrant_client" not in found["knowledge"]["imports"], "it is imported when there is something to write"
    assert found["campaign"]["imports"]["redis"] > 1_000_000
    assert sum(each["pss"] for each in report["results"]) < MOST_BYTES
    assert met(report).keys() == {"sum of PSS"}


def test_idle(folder: Path) -> None:
    """CPU time by program, and what the servers counted."""
    report = bench(folder, "idle", "--seconds", "5")
    found = {each["program"]: each for each in report["results"]}
    assert found.keys() == MEASURED
    assert all(5 <= each["seconds"] < 60 and each["cpu_seconds"] >= 0 for each in found.values())
    assert found["knowledge"]["statements"] == found["supervisord"]["statements"] == 0
    assert set(met(report)) == {"CPU", "statements a minute", "Redis commands a minute"}


def test_reaction(folder: Path) -> None:
    """Boots, first messages and answers were counted, and nothing came before its time."""
    report = bench(folder, "reaction", "--seconds", "1")
    boots, late, answers = report["results"]
    assert (boots["number"], late["number"]) == (3, 20)
    assert answers["number"] == round(answers["per_second"]) > 0
    assert all(0 < each["median_ms"] <= each["p99_ms"] <= each["most_ms"] for each in report["results"])
    assert boots["median_ms"] > 1000, "supervisord calls a program running after a second"
    assert len(met(report)) == 4


def test_ctrl_c(folder: Path) -> None:
    """No process and no file is left."""
    process = begin(folder, "idle", "--seconds", "600")
    assert process.stderr
    while "measuring" not in (line := process.stderr.readline()):
        assert line, "it ended"
    children = {int(each) for each in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()}
    assert len(children) >= 4, "PostgreSQL, Redis, the outside world, supervisord"
    process.send_signal(signal.SIGINT)
    _, progress = process.communicate(timeout=120)
    assert (process.returncode, progress.strip().splitlines()[-1]) == (1, "stopped")
    assert list(folder.iterdir()) == []
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), "nothing runs any more")
