"""What a program that waits must not have imported: each library costs every process that does so megabytes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]

QDRANT = {"qdrant_client", "numpy", "pydantic", "grpc", "httpx"}  # 56 MB
WEB = {"falcon", "gunicorn", "jinja2", "prometheus_client"}
CIPHERS = {"cryptography.hazmat"}  # only a process that decrypts needs it
SUPERVISOR = {"supervisor"}
PHONES = {"phonenumbers"}
MESSAGES = {"urllib3", "msgpack"} | PHONES
DATABASE = {"psycopg2"}
COMMANDS = {"worker.campaign_commands.command_line", "worker.vectors.commands"}  # what a person types
ENGINE = {"procrastinate", "psycopg", "psycopg_pool"}  # only for CAMPAIGN_ENGINE=procrastinate

# The programs that wait in their own process; the other jobs rest (worker/runtime/rest.py).
FORBIDDEN = {
    "worker.campaign": QDRANT | WEB | CIPHERS | SUPERVISOR | ENGINE | COMMANDS,
    "worker.calls": QDRANT | WEB | CIPHERS | SUPERVISOR,
    "worker.watchdog": QDRANT | WEB | CIPHERS | MESSAGES,
    "worker.web.app": QDRANT | CIPHERS | SUPERVISOR | PHONES,
    "worker.web.gunicorn_worker": QDRANT | CIPHERS | SUPERVISOR | MESSAGES | DATABASE | {"redis", "falcon", "jinja2"},
    "worker.supervision.supervisord_extension": QDRANT | WEB | CIPHERS | MESSAGES | DATABASE | {"redis"},
    "worker.call_cleanup": QDRANT | WEB | CIPHERS | SUPERVISOR | MESSAGES,
    "worker.knowledge": QDRANT | WEB | CIPHERS | SUPERVISOR | PHONES | COMMANDS,
    "worker.reminders": QDRANT | WEB | SUPERVISOR,
    "worker.trial": QDRANT | WEB | SUPERVISOR,
}


def imported(*arguments: str) -> set[str]:
    """The modules that a fresh Python has after running what ``arguments`` say."""
    done = subprocess.run([sys.executable, *arguments], cwd=PROJECT, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("module", FORBIDDEN)
def test_a_waiting_program(module: str) -> None:
    """It imports what it needs at once; what it needs later, or never, it imports when it needs it."""
    found = imported("-c", f"import {module}, json, sys; print(json.dumps(list(sys.modules)))")
    assert module in found
    assert found & FORBIDDEN[module] == set()


def imports_of(*arguments: str) -> set[str]:
    """The modules that a Python imports until it ends, or becomes another program."""
    argv = [sys.executable, "-I", "-S", "-X", "importtime", *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}


def test_a_resting_job() -> None:
    """It is there to need no memory: it imports four modules of the standard library."""
    resting = imports_of(str(PROJECT / "worker" / "runtime" / "resting_process.py"), "0", "/bin/true")
    assert "signal" in resting
    assert resting <= imports_of("-c", "import os, signal, sys, time")
