"""Waiting until servers answer, for so long and no longer, and saying for which."""

import logging
import threading
import time
from collections.abc import Callable, Sequence

import psycopg2
import redis

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 1.0  # nothing is said of a server that answers within it
PAUSE_SECONDS = 1.0  # between two questions
SAID_EVERY_SECONDS = 10.0
_LOOK_SECONDS = 0.05


class AwaitedService:
    """One server that is asked again and again, in a thread of its own, until it answers."""

    def __init__(self, name: str, ask: Callable[[], object], check: str) -> None:
        """``ask`` raises psycopg2.Error or redis.RedisError; ``check``: what to look at when it never answers."""
        self.name = name
        self.check = check
        self.reason = "no answer yet"
        self._ask = ask
        self._answered = threading.Event()

    @property
    def answered(self) -> bool:
        return self._answered.is_set()

    def begin(self) -> None:
        """The thread ends with the process at the latest: a name server may keep it waiting for long."""
        threading.Thread(target=self._ask_until_answered, name=self.name, daemon=True).start()

    def _ask_until_answered(self) -> None:
        while not self.answered:
            try:
                self._ask()
            except (psycopg2.Error, redis.RedisError) as error:
                self.reason = " ".join(str(error).split()) or repr(error)
                time.sleep(PAUSE_SECONDS)
            else:
                self._answered.set()


def wait_for_all(servers: Sequence[AwaitedService], seconds: float) -> list[AwaitedService]:
    """Those that did not answer within ``seconds``. A signal's handler may raise through it at any time."""
    for server in servers:
        server.begin()
    began = time.monotonic()
    say_at = PATIENCE_SECONDS
    while True:
        waited = time.monotonic() - began
        silent = [server for server in servers if not server.answered]
        if not silent:
            if say_at > PATIENCE_SECONDS:
                log.info("all servers answer", {"after_seconds": round(waited)})
            return []
        if waited >= max(seconds, PATIENCE_SECONDS):
            return silent
        if waited >= say_at:
            say_at = waited + SAID_EVERY_SECONDS
            for server in silent:
                told = {"server": server.name, "reason": server.reason, "seconds_left": round(seconds - waited)}
                log.warning("waiting for a server", told)
        time.sleep(_LOOK_SECONDS)
