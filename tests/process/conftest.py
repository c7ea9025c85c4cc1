"""The real program, started, signalled and killed by tests that count what arrived and what the database says."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psycopg2.extensions
import pytest
import redis

from sandbox.accounts import ENCRYPTION_KEY
from sandbox.crm import Crm
from sandbox.servers import Child
from sandbox.world import World

PROJECT = Path(__file__).resolve().parents[2]
LOCK = "lock:campaign-scheduler"
WAIT_SECONDS = 30.0
CHANNELS = {"smtp": "email", "gmail": "email", "whatsapp": "whatsapp"}  # the world's -> the campaign's
# What a program needs to run at all; the rest of our own environment is kept from it.
_INHERITED = ("PATH", "HOME", "LANG", "TMPDIR", "COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG")


def wait_for(condition: Callable[[], object], what: str, seconds: float = WAIT_SECONDS) -> None:
    """Looks again and again until ``condition`` is true; fails the test when it is not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds:g} s: {what}")
        time.sleep(0.01)


class Worker(Child):
    """One bin/campaign, as a child process with a log file of its own."""

    def __init__(self, environment: Mapping[str, str], log: Path, *arguments: str) -> None:
        self.log_path = log
        super().__init__([PROJECT / "bin" / "campaign", *arguments], log, environment=environment, directory=PROJECT)

    @property
    def log(self) -> str:
        return self.log_path.read_text("utf-8")

    def said(self, text: str) -> int:
        """How many lines of the log hold ``text``."""
        return sum(text in line for line in self.log.splitlines())

    def wait(self, seconds: float = WAIT_SECONDS) -> int:
        """Waits for the end and returns the exit status."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {seconds:g} s{self.tail()}")

    def stop(self, number: signal.Signals = signal.SIGTERM, seconds: float = 15.0) -> int:
        self.send(number)
        return self.wait(seconds)

    def kill(self) -> None:
        """kill -9."""
        self.send(signal.SIGKILL)
        self._process.wait()

    def freeze(self) -> None:
        self.send(signal.SIGSTOP)
        wait_for(lambda: self._state() == "T", "the worker is stopped")

    def thaw(self) -> None:
        self.send(signal.SIGCONT)

    def _state(self) -> str:
        return Path(f"/proc/{self.pid}/stat").read_text("ascii").rpartition(")")[2].split()[0]


Start = Callable[..., Worker]


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def environment(database_url: str, redis_url: str, world: World, state_dir: Path) -> dict[str, str]:
    """Settings that lead to the test's servers and waste no time."""
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return inherited | {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "STATE_DIR": str(state_dir),
        **world.environment,
        "ENCRYPTION_KEY": ENCRYPTION_KEY,
        "APP_URL": "https://app.crm.example.in",
        "CAMPAIGN_INTERVAL": "1",
        "CAMPAIGN_BATCH_DELAY": "0",
        "WHATSAPP_RATE": "1000",
        "GMAIL_RATE": "1000",
        "PYTHONUNBUFFERED": "1",
    }


@pytest.fixture
def start(environment: dict[str, str], tmp_path: Path) -> Iterator[Start]:
    """Starts a worker: ``start(CAMPAIGN_CONCURRENCY="2")``, ``start("--once")``; none outlives the test."""
    workers: list[Worker] = []

    def start_one(*arguments: str, **settings: str) -> Worker:
        worker = Worker(environment | settings, tmp_path / f"worker-{len(workers)}.log", *arguments)
        workers.append(worker)
        return worker

    yield start_one
    for worker in workers:
        worker.thaw()
        worker.kill()


@pytest.fixture
def redis_client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


@dataclass(frozen=True)
class Books:
    """What the database says about campaigns, held against what arrived."""

    crm: Crm
    world: World
    state_dir: Path

    def status(self, campaign_id: str) -> str:
        return str(self.crm.value('SELECT status FROM "Campaign" WHERE id = %s', campaign_id))

    def ended(self, *campaign_ids: str) -> bool:
        """Whether all of the campaigns came to an end."""
        return all(self.status(each) in ("completed", "failed") for each in campaign_ids)

    def sent(self, campaign_id: str) -> int:
        return self.crm.counts(campaign_id).get("sent", 0)

    def unconfirmed(self, campaign_id: str) -> int:
        return int(
            self.crm.value(
                """SELECT count(*) FROM "CampaignRecipient"
                   WHERE "campaignId" = %s AND status = 'failed' AND "errorMessage" LIKE 'Unconfirmed%%'""",
                campaign_id,
            )
        )

    def log(self, campaign_id: str) -> list[str]:
        """The actions of CampaignLog in their order."""
        statement = """SELECT action FROM "CampaignLog" WHERE "campaignId" = %s ORDER BY "createdAt", action DESC"""
        return [action for (action,) in self.crm.execute(statement, (campaign_id,))]

    def last_log(self, campaign_id: str) -> str:
        """The newest message of CampaignLog."""
        statement = """SELECT message FROM "CampaignLog" WHERE "campaignId" = %s ORDER BY "createdAt" DESC LIMIT 1"""
        return str(self.crm.value(statement, campaign_id))

    def held(self) -> int:
        """How many batches are claimed now."""
        return int(self.crm.value("SELECT count(*) FROM worker.campaign_batch"))

    def journals(self) -> list[str]:
        """The journals that hold something; a kill in the middle of a claim may leave an empty one for a while."""
        return [path.name for path in self.state_dir.rglob("*.journal") if path.read_bytes().strip(b"\0")]

    def nobody_twice(self, *channels: str) -> None:
        for channel in channels:
            assert self.world.duplicates(channel) == {}

    def balance(self, campaign_id: str, channel: str = "smtp") -> int:
        """Nobody twice, nobody left out, every table in order; returns how many were unconfirmed."""
        self.nobody_twice(channel)
        arrived = self.world.counts(channel)
        address = "lower(\"recipientEmail\")" if CHANNELS[channel] == "email" else "ltrim(\"recipientPhone\", '+')"
        rows = self.crm.execute(
            f'SELECT {address}, status, "errorMessage" FROM "CampaignRecipient" WHERE "campaignId" = %s',
            (campaign_id,),
        )
        sent = {each for each, status, _ in rows if status == "sent"}
        lost = {each for each, status, error in rows if status == "failed" and error.startswith("Unconfirmed")}
        assert sent | lost == {each for each, _, _ in rows}, self.crm.counts(campaign_id)
        assert sent - arrived.keys() == set(), "sent, but nothing arrived"
        self._counts(campaign_id, len(sent), len(lost))
        if CHANNELS[channel] == "email":
            statement = """SELECT "to"[1] FROM "EmailLog" WHERE "entityId" = %s ORDER BY 1"""
            assert [to.lower() for (to,) in self.crm.execute(statement, (campaign_id,))] == sorted(sent)
        self._nothing_left()
        return len(lost)

    def _counts(self, campaign_id: str, sent: int, lost: int) -> None:
        statement = """SELECT status, "sentCount", "failedCount", "completedAt" IS NOT NULL FROM "Campaign"
                       WHERE id = %s"""
        assert self.crm.execute(statement, (campaign_id,)) == [("completed", sent, lost, True)]
        assert self.log(campaign_id) == ["started", "completed"]
        assert self.last_log(campaign_id) == f"Completed: {sent} sent, {lost} failed"

    def _nothing_left(self) -> None:
        for table in ("campaign_batch", "campaign_run", "campaign_retry", "unconfirmed_send"):
            assert self.crm.value(f"SELECT count(*) FROM worker.{table}") == 0, table
        assert self.journals() == []


@pytest.fixture
def books(crm: Crm, world: World, state_dir: Path) -> Books:
    return Books(crm, world, state_dir)


@pytest.fixture
def second_connection(database_url: str) -> Iterator[psycopg2.extensions.connection]:
    """A connection for a transaction that the test keeps open."""
    made = psycopg2.connect(database_url, options="-c TimeZone=UTC")
    yield made
    made.close()
