"""The lock that keeps two workers from running the same tick, on one Redis server or on the majority of several.

The lock is an optimisation; the database decides which worker sends what. So ``held`` is False whenever that is not
certain: a holder whose renewals fail, or that was frozen for longer than the lock lives, stops claiming. On several
independent servers the lock follows the Redlock rule
(https://redis.io/docs/latest/develop/clients/patterns/distributed-locks/).

A server may still have a token that this lock has given up: its release was lost, or a replica became the master
before it had heard of it. Nobody but this lock takes that token over, at once.

A key that no worker can have written is put aside, and the log names it. One of another type is deleted. One that
would stay for ever, or for longer than a day, gets the usual time to live; if a worker does hold that lock, it goes
on renewing it.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import redis

from worker.runtime.clock import boot_seconds
from worker.runtime.lock_scripts import PUT_ASIDE, RELEASE, RENEW, TAKE_OVER
from worker.runtime.lock_servers import LockServers
from worker.runtime.process_token import is_from_dead_process, new_token

log = logging.getLogger(__name__)

DEFAULT_TTL_MS = 60_000
LONGEST_TTL_MS = 86_400_000  # of a key that a worker can have written


@dataclass(frozen=True, slots=True)
class _Hold:
    """A lock that was acquired: until when it is certainly held and when to renew it, by ``boot_seconds``."""

    token: str
    until: float
    renew_at: float


class Lock:
    """``lock:<name>`` on one Redis server, or on the majority of several independent ones.

    ``ttl_ms`` is how long it stays without being renewed; while it is held, a thread renews it every third of that.
    When a lock that was held is gone, ``on_lost`` is called once, in the thread that notices it. Only one thread at a
    time may acquire and release; any thread may read ``held``.
    """

    def __init__(
        self,
        clients: Sequence[redis.Redis],
        name: str,
        ttl_ms: int = DEFAULT_TTL_MS,
        *,
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        if not clients or ttl_ms < 100:
            raise ValueError("a lock needs at least one Redis server and a ttl_ms of at least 100")
        self.key = f"lock:{name}"
        self.ttl_ms = ttl_ms
        self._servers = LockServers(clients)
        self._quorum = self._servers.quorum
        self._on_lost = on_lost
        scripts = [clients[0].register_script(text) for text in (RENEW, RELEASE, TAKE_OVER, PUT_ASIDE)]
        self._renew_script, self._release_script, self._take_over_script, self._put_aside_script = scripts
        self._changed = threading.Condition()
        self._hold: _Hold | None = None
        self._own = f"{new_token()}."  # what all tokens of this lock begin with
        self._attempts = 0
        self.token = ""  # host:pid:random of the latest attempt to acquire the lock
        self._renewer: threading.Thread | None = None
        self._renewer_idle = False
        self._closed = False

    def require_no_cluster(self) -> None:
        """Raises SettingsError when one of several servers is a Redis Cluster."""
        self._servers.require_no_cluster()

    @property
    def held(self) -> bool:
        """Whether the lock is certainly ours now. Reads the clock, not Redis: cheap enough for every message."""
        hold = self._hold
        if hold is None:
            return False
        if boot_seconds() < hold.until:
            return True
        self._lose(hold, "it could not be renewed in time")
        return False

    def acquire(self) -> bool:
        """Acquires the lock if it is free. Whether it is ours now; does not wait for another holder.

        A lock left by a dead process of this host is taken over. Raises redis.RedisError when too few
        servers answer.
        """
        if self.held:
            return True
        began = boot_seconds()
        self._attempts += 1
        self.token = token = f"{self._own}{self._attempts}"
        claimed, failures = self._servers.ask(lambda client: self._claim(client, token))
        hold = self._hold_of(token, began)
        if claimed >= self._quorum and boot_seconds() < hold.until:
            try:
                self._keep(hold)
            except RuntimeError:  # the machine has no thread to renew it
                self.release()
                raise
            return True
        if claimed:
            self._delete(token)
        if error := self._servers.too_few(failures):
            raise error
        return False

    def release(self) -> None:
        """Releases the lock if it is still ours. If Redis is unavailable, the lock expires by itself."""
        with self._changed:
            hold, self._hold = self._hold, None
        if hold is None:
            return
        deleted, failures = self._delete(hold.token)
        if deleted >= self._quorum:
            return
        if deleted + len(failures) < self._quorum:
            self._report_loss("it was gone before it was released")
        else:
            log.warning("lock not released, it expires by itself", {"lock": self.key, "reason": failures[0]})

    def holder(self) -> str | None:
        """The token ``host:pid:random`` that most servers have, None when there is none.

        Raises redis.RedisError when too few servers answer.
        """
        tokens: list[str] = []

        def ask(client: redis.Redis) -> bool:
            tokens.append(self._read(client) or "")
            return False  # nothing is counted

        _, failures = self._servers.ask(ask)
        if error := self._servers.too_few(failures):
            raise error
        return max(filter(None, tokens), key=tokens.count, default=None)

    def disconnect(self) -> None:
        """Closes the connections that nobody uses just now; the next use connects again."""
        self._servers.disconnect()

    def close(self) -> None:
        """Releases the lock and ends its thread. The clients stay open."""
        self.release()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._renewer is not None and self._renewer is not threading.current_thread():
            self._renewer.join()
            self._renewer = None
        self._servers.close()

    def _claim(self, client: redis.Redis, token: str) -> bool:
        if client.set(self.key, token, nx=True, px=self.ttl_ms):
            return True
        found = self._read(client)
        given_up = found is not None and found.startswith(self._own)
        if found is None or not (given_up or is_from_dead_process(found)):
            wrong = self._put_aside_script([self.key], [self.ttl_ms, LONGEST_TTL_MS], client=client)
            if wrong:
                log.warning(
                    "lock put aside: no worker can have written it",
                    {"lock": self.key, "reason": wrong, "found": (found or "")[:80]},
                )
            return found is None and bool(client.set(self.key, token, nx=True, px=self.ttl_ms))
        taken = bool(self._take_over_script([self.key], [found, token, self.ttl_ms], client=client))
        if taken and not given_up:
            log.info("lock taken over from a dead process", {"lock": self.key, "holder": found})
        return taken

    def _read(self, client: redis.Redis) -> str | None:
        """The token, '' when there is none, None when the key is of another type."""
        try:
            return str(client.get(self.key) or "")
        except redis.ResponseError as error:
            if not str(error).startswith("WRONGTYPE"):
                raise
            return None

    def _hold_of(self, token: str, began: float) -> _Hold:
        ttl = self.ttl_ms / 1000
        drift = ttl * 0.01 + 0.002  # what Redlock allows for clocks of different speed
        return _Hold(token, began + ttl - drift, began + ttl / 3)

    def _keep(self, hold: _Hold) -> None:
        with self._changed:
            self._hold = hold
            if self._renewer is None:
                self._closed = False
                renewer = threading.Thread(target=self._renew_while_held, name=self.key, daemon=True)
                renewer.start()
                self._renewer = renewer
            elif self._renewer_idle:
                self._changed.notify_all()

    def _delete(self, token: str) -> tuple[int, list[redis.RedisError]]:
        return self._servers.ask(lambda client: bool(self._release_script([self.key], [token], client=client)))

    def _renew_while_held(self) -> None:
        """The renewal thread. Most ticks end long before their lock has to be renewed, so a tick does not wake it."""
        unused = False
        while not self._closed:
            with self._changed:
                hold = self._hold
                self._renewer_idle = hold is None and unused
                # A lock acquired during this pause has to be renewed a third of the ttl later, so not before its end.
                pause = self.ttl_ms / 3000 if hold is None else min(hold.renew_at, hold.until) - boot_seconds()
                if pause > 0 and not self._closed:
                    self._changed.wait(None if self._renewer_idle else pause)
                unused = hold is None and self._hold is None
                hold = self._hold
            if hold is not None and self.held and boot_seconds() >= hold.renew_at:
                self._renew(hold)

    def _renew(self, hold: _Hold) -> None:
        began = boot_seconds()
        renewed, failures = self._servers.ask(
            lambda client: bool(self._renew_script([self.key], [hold.token, self.ttl_ms], client=client))
        )
        if renewed >= self._quorum:
            self._replace(hold, self._hold_of(hold.token, began))
        elif renewed + len(failures) < self._quorum:
            self._lose(hold, "its key was deleted, taken or evicted")
        else:
            log.debug("lock not renewed, will be tried again soon", {"lock": self.key, "reason": failures[0]})
            self._replace(hold, replace(hold, renew_at=boot_seconds() + self.ttl_ms / 20_000))

    def _replace(self, old: _Hold, new: _Hold | None) -> bool:
        with self._changed:
            if self._hold is not old:  # released or lost in the meantime
                return False
            self._hold = new
            return True

    def _lose(self, hold: _Hold, reason: str) -> None:
        if self._replace(hold, None):
            self._report_loss(reason)

    def _report_loss(self, reason: str) -> None:
        log.warning("lock lost", {"lock": self.key, "reason": reason})
        if self._on_lost is not None:
            self._on_lost()
