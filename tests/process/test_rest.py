"""A job whose next tick is far away rests: the same process, small, that loses nothing and says nothing."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from workers import Start, Worker, wait_for

from sandbox import accounts
from sandbox.crm import Crm
from sandbox.pgbouncer import PgBouncer

RESTING = b"resting_process.py"
MOST_BYTES = 8_000_000  # of its own; a Python that does nothing has 3.5 to 5 million
DELAYS = 12
JOBS_THAT_REST = ("reminders", "trial", "call-cleanup")  # knowledge does, too, when Qdrant is there
# no tick within the minutes that a test takes: the next one is on a midnight at the end of a month
RARELY = {
    "LEAD_REMINDER_INTERVAL": "744h",
    "TRIAL_CHECK_INTERVAL": "744h",
    "CALL_CLEANUP_INTERVAL": "744h",
    "OWNER_EMAIL": "owner@crm.example.in",
}


def rests(worker: Worker) -> bool:
    return RESTING in Path(f"/proc/{worker.pid}/cmdline").read_bytes()


def own_bytes(worker: Worker) -> int:
    lines = Path(f"/proc/{worker.pid}/smaps_rollup").read_text("ascii").splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


@pytest.mark.parametrize("job", JOBS_THAT_REST)
def test_between_two_ticks(job: str, start: Start) -> None:
    """It is small after its tick, and SIGUSR1 makes it tick again: as the same process, which started once."""
    worker = start(program=job, LOG_LEVEL="debug", **RARELY)
    for ticks in (1, 2):
        wait_for(lambda: rests(worker), "it rests")
        assert worker.said("DEBUG tick") == ticks
        assert own_bytes(worker) < MOST_BYTES
        worker.send(signal.SIGUSR1)
        wait_for(lambda: not rests(worker), "it goes on")
    wait_for(lambda: rests(worker), "it rests again")
    assert worker.stop() == 0
    for line in ("INFO started", "INFO signal received, stopping", f"INFO ended job={job} status=0"):
        assert worker.said(line) == 1, line
    assert worker.said("WARNING") == worker.said("ERROR") == 0


def test_through_a_connection_pooler(start: Start, new_bouncer: Callable[..., PgBouncer], database_url: str) -> None:
    """The process says once that there is one, not each time that it connects after a rest."""
    url = new_bouncer().url_of(urlsplit(database_url).path[1:])
    worker = start(program="trial", LOG_LEVEL="debug", DATABASE_URL=url, **RARELY)
    for ticks in (1, 2, 3):
        wait_for(lambda ticks=ticks: worker.said("DEBUG tick") == ticks and rests(worker), "it rests after a tick")
        worker.send(signal.SIGUSR1)
        wait_for(lambda: not rests(worker), "it goes on")
    assert worker.said("DATABASE_URL leads through a connection pooler") == 1
    assert worker.stop() == 0


def test_a_stop_at_any_moment(start: Start) -> None:
    """SIGTERM is never lost, also not while the program becomes the small process, or the other way round."""
    moments = random.Random(7)  # noqa: S311 - no secret
    for number in range(DELAYS):
        worker = start(program="call-cleanup", **RARELY)
        wait_for(lambda worker=worker: worker.said("old rows of the call queue deleted"), "the first tick")
        if number % 2:
            wait_for(lambda worker=worker: rests(worker), "it rests")
            worker.send(signal.SIGUSR1)
        until = time.monotonic() + moments.uniform(0.0, 0.3)
        wait_for(lambda until=until: time.monotonic() > until, "another moment")
        assert worker.stop() == 0
        assert worker.said("INFO ended job=call-cleanup status=0") == 1


def test_what_was_complained_about(crm: Crm, start: Start) -> None:
    """reminders does not rest while a tenant's settings have errors: it would log them again at each tick."""
    settings = {"mail": accounts.mail_settings(), "leadReminders": {"enabled": True, "checkIntervalHours": "often"}}
    crm.add_user(crm.add_tenant(settings=settings), role="ADMIN")
    worker = start(program="reminders", LOG_LEVEL="debug", **RARELY)
    for ticks in (1, 2):
        wait_for(lambda ticks=ticks: worker.said("DEBUG tick") == ticks, "a tick")
        worker.send(signal.SIGUSR1)
    assert worker.said("a tenant's reminder settings have errors") == 1
    assert not rests(worker)
