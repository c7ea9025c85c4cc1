"""One run of a real job in the real loop, as --once, on a machine whose clock may be wrong."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from sandbox.accounts import ENCRYPTION_KEY
from sandbox.world import World
from worker.runtime.clock import utc_now
from worker.runtime.counters import Counters
from worker.runtime.db import Database
from worker.runtime.job import Job, JobContext
from worker.runtime.lock import Lock
from worker.runtime.loop import Loop
from worker.runtime.redis_client import connect
from worker.runtime.settings import load
from worker.runtime.signals import Signals


class OneRun:
    """Runs jobs against the test's servers."""

    def __init__(self, database_url: str, redis_url: str, world: World, state_dir: Path) -> None:
        self._redis_url = redis_url
        self._database_url = database_url
        self._environ = world.environment | {
            "DATABASE_URL": database_url,
            "REDIS_URL": redis_url,
            "STATE_DIR": str(state_dir),
            "ENCRYPTION_KEY": ENCRYPTION_KEY,
            "APP_URL": "https://app.crm.example.in",
            "CAMPAIGN_BATCH_DELAY": "0",
            "OWNER_EMAIL": "owner@crm.example.in",
        }

    def __call__(
        self,
        name: str,
        build: Callable[[JobContext], Job],
        off: timedelta = timedelta(0),
        *,
        database: Database | None = None,
        **environ: str,
    ) -> int:
        """``off``: how far the machine's clock is ahead. Returns the exit status."""
        client = connect(self._redis_url)
        signals = Signals()
        try:
            context = JobContext(
                name,
                load(self._environ | environ, name),
                client,
                Lock([client], name),
                Counters(client, name),
                signals,
                lambda: utc_now() + off,
                database or Database(self._database_url, f"crm-worker {name}"),
            )
            return Loop(build(context), context).run(once=True)
        finally:
            signals.close()
