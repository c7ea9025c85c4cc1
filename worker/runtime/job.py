"""What a job is: an object with a ``tick``, and the context that it gets from its program."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from functools import cached_property
from typing import Protocol

import redis

from worker.runtime.clock import DatabaseClock, utc_now
from worker.runtime.counters import Counters
from worker.runtime.db import Database
from worker.runtime.lock import Lock
from worker.runtime.rest import Rest
from worker.runtime.settings import Settings
from worker.runtime.signals import Signals


class JobContext:
    """What every job works with: settings, servers, its lock and counters, signals and the clock.

    ``clock`` returns UTC without a zone. With a ``database``, ``clock`` only counts until the loop has read the
    database's time (``read_time``). Without one, ``clock`` counts for good, and the context connects to the settings'
    DATABASE_URL when a job needs it.
    """

    def __init__(
        self,
        name: str,
        settings: Settings,
        redis_client: redis.Redis,
        lock: Lock,
        counters: Counters,
        signals: Signals,
        clock: Callable[[], datetime] = utc_now,
        database: Database | None = None,
        rest: Rest | None = None,
    ) -> None:
        """``rest``: the one that the program comes from, None at its start."""
        self.name = name
        self.settings = settings
        self.redis = redis_client
        self.lock = lock
        self.counters = counters
        self.signals = signals
        self._database_clock: DatabaseClock | None = None
        if database is not None:
            self.database = database
            self._database_clock = DatabaseClock(clock, reading=rest.reading if rest else None)
        self.clock = self._database_clock or clock

    @cached_property
    def database(self) -> Database:
        """The CRM's database, not connected yet. Raises SettingsError for a DATABASE_URL that cannot be used."""
        return Database(self.settings.database_url, f"crm-worker {self.name}")

    @property
    def may_continue(self) -> bool:
        """Whether the job may claim more work: it holds its lock, and no signal told it to stop."""
        return self.lock.held and not self.signals.stopping

    @property
    def stands_by(self) -> bool:
        """Whether an operator told this machine to stand by: there is a file ``standby`` in STATE_DIR."""
        return os.path.exists(self.settings.state_dir / "standby")

    def read_time(self) -> None:
        """Sets ``clock`` by the database's, if the program has a database: one statement, unless it did so just now.

        Raises psycopg2.Error, also when the database takes no writes.
        """
        if self._database_clock is not None and self._database_clock.needs_reading:
            self._database_clock.set(self.database.read_time())

    def rest_until(self, wake_at: datetime) -> Rest | None:
        """None: the job cannot rest, since it would forget that a wrong clock was reported."""
        clock = self._database_clock
        pooled = "database" in vars(self) and self.database.pooled
        if clock is None:
            return Rest(wake_at, pooled=pooled)
        return Rest(wake_at, clock.reading, pooled) if clock.agrees else None

    def disconnect(self) -> None:
        """Closes the connections to the servers; the next use of each connects again."""
        if "database" in vars(self):
            self.database.close()
        if self._database_clock is not None:
            self._database_clock.forget()
        self.redis.connection_pool.disconnect(inuse_connections=False)
        self.lock.disconnect()

    def close(self) -> None:
        """Closes the connections for good. The lock, the counters and the signals belong to the program."""
        if "database" in vars(self):
            self.database.close()
        self.redis.close()


@dataclass
class TickResult:
    """What a tick did and when it wants to run next."""

    counts: dict[str, int] = field(default_factory=dict)  # for the log line; zeros are left out
    next_at: datetime | None = None  # UTC without a zone; None: at the next interval
    unfinished: bool = False  # work is left that waits only for a rate limit: --once continues with it
    may_rest: bool = False  # nothing is in hand, and nothing to be remembered until the next tick (runtime/rest.py)


class Job(Protocol):
    """What the loop needs from a job."""

    interval_seconds: float

    @property
    def zone(self) -> tzinfo:
        """The time zone on whose clock the interval is counted."""

    def start(self) -> None:
        """Called before the first tick, and again after a pause while a server is unavailable."""

    def tick(self, now: datetime) -> TickResult:
        """Does what is due at ``now``."""

    def close(self) -> bool:
        """Closes what the job has made. False: threads still wait for a provider, the program ends without them."""
