"""Waits for a limited time until servers answer, and logs which of them do not."""

import logging
import threading
import time
from collections.abc import Callable, Sequence

import psycopg2
import redis

log = logging.getLogger(__name__)

QUIET_SECONDS = 1.0  # a server that answers within it is not mentioned in the log
RETRY_SECONDS = 1.0
LOG_EVERY_SECONDS = 10.0
_POLL_SECONDS = 0.05


class AwaitedService:
    """One server, which is asked again and again, in a thread of its own, until it answers."""

    def __init__(self, name: str, ask: Callable[[], object], check: str) -> None:
        """``ask`` raises psycopg2.Error or redis.RedisError; ``check``: what to check if the server never answers."""
        self.name = name
        self.check = check
        self.reason = "no answer yet"
        self._ask = ask
        self._answered = threading.Event()

    @property
    def answered(self) -> bool:
        return self._answered.is_set()

    def start(self) -> None:
        """The thread does not delay the end of the process: it may wait long for a name server."""
        threading.Thread(target=self._ask_until_answered, name=self.name, daemon=True).start()

    def _ask_until_answered(self) -> None:
        while not self.answered:
            try:
                self._ask()
            except (psycopg2.Error, redis.RedisError) as error:
                self.reason = " ".join(str(error).split()) or repr(error)
                time.sleep(RETRY_SECONDS)
            else:
                self._answered.set()


def wait_for_all(servers: Sequence[AwaitedService], seconds: float) -> list[AwaitedService]:
    """The servers that did not answer within ``seconds``. A signal handler may raise at any time."""
    for server in servers:
        server.start()
    began = time.monotonic()
    log_at = QUIET_SECONDS
    while True:
        waited = time.monotonic() - began
        silent = [server for server in servers if not server.answered]
        if not silent:
            if log_at > QUIET_SECONDS:
                log.info("all servers answer", {"after_seconds": round(waited)})
            return []
        if waited >= max(seconds, QUIET_SECONDS):
            return silent
        if waited >= log_at:
            log_at = waited + LOG_EVERY_SECONDS
            for server in silent:
                log.warning(
                    "waiting for a server",
                    {"server": server.name, "reason": server.reason, "seconds_left": round(seconds - waited)},
                )
        time.sleep(_POLL_SECONDS)
