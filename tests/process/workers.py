"""A program of bin/ as a child process, and waiting for what it does."""

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from sandbox.servers import Child

PROJECT = Path(__file__).resolve().parents[2]
LOCK = "lock:campaign-scheduler"
WAIT_SECONDS = 60.0
ANSWERED = 10  # messages after which an account has all threads of a job
THREADS = 8  # of a job: CAMPAIGN_CONCURRENCY's default, and those of reminders
ENGINE = {
    "CAMPAIGN_ENGINE": "procrastinate",
    "CAMPAIGN_SENDER_TIMEOUT": "2s",
    "LOCK_TTL_MS": "2000",
    "CAMPAIGN_BATCH_SIZE": "20",
    "CAMPAIGN_ADOPT_AFTER": "1s",
}
ATTEMPTS = 3  # at being quick: a busy machine is late now and then, a slow program each time


def wait_for(condition: Callable[[], object], what: str, seconds: float = WAIT_SECONDS) -> None:
    """Looks again and again until ``condition`` is true; fails the test when it is not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds:g} s: {what}")
        time.sleep(0.01)


@contextmanager
def lock_deleted_all_the_time(url: str, lock: str = LOCK) -> Iterator[None]:
    """An operator who types redis-cli DEL again and again."""
    over = threading.Event()

    def delete() -> None:
        with redis.Redis.from_url(url) as client:
            while not over.wait(0.002):
                client.delete(lock)

    operator = threading.Thread(target=delete)
    operator.start()
    try:
        yield
    finally:
        over.set()
        operator.join()


class Worker(Child):
    """One bin/campaign, or another job's program, as a child process with a log file of its own."""

    def __init__(self, environment: Mapping[str, str], log: Path, *arguments: str, program: str = "campaign") -> None:
        self.log_path = log
        super().__init__([PROJECT / "bin" / program, *arguments], log, environment=environment, directory=PROJECT)

    @property
    def log(self) -> str:
        return self.log_path.read_text("utf-8")

    def said(self, text: str) -> int:
        """How many lines of the log hold ``text``."""
        return sum(text in line for line in self.log.splitlines())

    def wait(self, seconds: float = WAIT_SECONDS) -> int:
        """Waits for the end and returns the exit status."""
        try:
            return super().wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {seconds:g} s{self.tail()}")

    def stop(self, number: signal.Signals = signal.SIGTERM, seconds: float = WAIT_SECONDS) -> int:
        self.send(number)
        return self.wait(seconds)

    def kill(self) -> None:
        """kill -9."""
        self.send(signal.SIGKILL)
        self.wait()

    def freeze(self) -> None:
        self.send(signal.SIGSTOP)
        wait_for(lambda: self._state() == "T", "the worker is stopped")

    def thaw(self) -> None:
        self.send(signal.SIGCONT)

    def _state(self) -> str:
        return Path(f"/proc/{self.pid}/stat").read_text("ascii").rpartition(")")[2].split()[0]


Start = Callable[..., Worker]
Senders = Callable[..., list[Worker]]
