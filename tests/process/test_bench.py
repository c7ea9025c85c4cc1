"""bin/bench measures the real program, and what it reports was counted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
RECIPIENTS = 300


def bench(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    argv = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(
        argv, cwd=PROJECT, env=os.environ | environment, capture_output=True, text=True, timeout=240, check=False
    )


@pytest.mark.parametrize(("channel", "outbox_rows"), [("email", RECIPIENTS), ("whatsapp", 0), ("gmail", RECIPIENTS)])
def test_a_campaign(channel: str, outbox_rows: int, tmp_path: Path) -> None:
    """Every recipient is sent and counted once, the measured numbers are there, and nothing is left on the disk."""
    done = bench("--recipients", str(RECIPIENTS), "--channel", channel, "--json", TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    (result,) = report["results"]
    counts = ("channel", "recipients", "sent", "sink_count", "outbox_rows", "bare_messages")
    assert [result[name] for name in counts] == [channel, RECIPIENTS, RECIPIENTS, RECIPIENTS, outbox_rows, RECIPIENTS]
    measured = ("seconds", "per_second", "bare_per_second", "ratio", "job_cpu_seconds", "peak_bytes")
    assert all(result[name] > 0 for name in measured)
    assert 0 < result["statements_per_recipient"] < 1, "statements are for batches, not for recipients"
    assert (report["benchmark"], report["machine"]["cores"] > 0) == ("campaign", True)
    assert list(tmp_path.iterdir()) == []


def test_gmail_for_short() -> None:
    """bin/bench gmail: the messages are those of a user who connected Gmail."""
    done = bench("gmail", "--recipients", "50", "--json")
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)["results"]
    assert (result["channel"], result["sink_count"], result["outbox_rows"]) == ("gmail", 50, 50)


def test_targets() -> None:
    """The table names each target; memory is compared when there are campaigns of two sizes."""
    done = bench("--recipients", "100,200")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("campaign: 8 connections, batches of 100, ")
    for target in ("email 200: ratio to bare smtplib", "email 200: recipients a second", "peak memory at 200 over"):
        assert target in done.stdout


def test_the_sink_without_postfix(tmp_path: Path) -> None:
    """Where smtp-sink is missing, a server of our own counts the messages, and the report says so."""
    script = (
        "import sys, benchmarks.sinks as sinks; sinks._WHERE = sys.argv.pop(1); "
        "from benchmarks.__main__ import main; sys.exit(main())"
    )
    argv = [sys.executable, "-c", script, str(tmp_path), "--recipients", "200", "--json"]
    done = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)["results"]
    assert (result["sink"], result["sink_count"]) == ("asyncio", 200)


@pytest.mark.parametrize("arguments", [["--recipients", "0"], ["--channel", "fax"], ["nothing"]])
def test_bad_arguments(arguments: list[str]) -> None:
    done = bench(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: bin/bench" in done.stderr
