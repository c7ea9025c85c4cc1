"""The database behind the unsubscribe page: whose messages they are, and who is on the suppression list.

A caller never waits for a server that hangs: while it does, and for a second after it could not be used, all get
ListUnavailable at once.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import psycopg2

from worker.content.unsubscribe_token import Subscription
from worker.runtime.db import Database, Row, is_unavailable, queries
from worker.runtime.diagnosis import diagnose

log = logging.getLogger(__name__)

WAIT_SECONDS = 4.0  # for an answer; a statement ends after 3
PAUSE_SECONDS = 1.0  # until a server is asked again that could not be used


class ListUnavailable(Exception):
    """Nothing can be read or saved now. What was to be saved may be saved all the same: repeating it does no harm."""


class Unsubscriptions:
    """All methods are thread-safe and raise ListUnavailable."""

    def __init__(self, database_url: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Does not connect yet; ``clock`` counts seconds. Raises SettingsError."""
        self._db = Database(database_url, "crm-worker unsubscribe")
        self._sql = queries("unsubscribe")
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="unsubscribe")  # whose connection it is
        self._late: Future[Row | None] | None = None
        self._paused_until = 0.0
        self._works = True

    def sender(self, tenant_id: str) -> str | None:
        """The name that the tenant signs with; None when it is deleted."""
        row = self._ask("sender", tenant_id=tenant_id)
        return str(row["name"]) if row else None

    def unsubscribe(self, subscription: Subscription) -> bool:
        """Whether that is new."""
        row = self._ask(
            "unsubscribe",
            tenant_id=subscription.tenant_id,
            channel=subscription.channel,
            address=subscription.address,
            campaign_id=subscription.campaign_id,
        )
        return bool(row and row["changed"])

    def resubscribe(self, subscription: Subscription) -> bool:
        """Takes ``unsubscribe`` back, and whether there was something to take back."""
        row = self._ask(
            "resubscribe",
            tenant_id=subscription.tenant_id,
            channel=subscription.channel,
            address=subscription.address,
        )
        return bool(row and row["changed"])

    def close(self) -> None:
        self._thread.submit(self._db.close)
        self._thread.shutdown(wait=False)

    def _ask(self, name: str, **parameters: str) -> Row | None:
        if self._clock() < self._paused_until or (self._late and not self._late.done()):
            raise ListUnavailable
        asked = self._thread.submit(self._run, name, parameters)
        try:
            row = asked.result(WAIT_SECONDS)
        except TimeoutError:
            self._late = asked
            self._failed(f"no answer within {WAIT_SECONDS:g} s")
            raise ListUnavailable from None
        except psycopg2.Error as error:
            if is_unavailable(error):
                self._paused_until = self._clock() + PAUSE_SECONDS
            self._failed(str(error), error)
            raise ListUnavailable from error
        if not self._works:
            self._works = True
            log.info("unsubscribe links work again")
        return row

    def _run(self, name: str, parameters: dict[str, str]) -> Row | None:
        """Once more over a new connection: the kept one is lost when the server was restarted."""
        try:
            return self._once(name, parameters)
        except psycopg2.Error as error:
            if not is_unavailable(error):
                raise
            return self._once(name, parameters)

    def _once(self, name: str, parameters: dict[str, str]) -> Row | None:
        with self._db.transaction():
            self._db.execute(self._sql["limit"])
            return self._db.execute_one(self._sql[name], **parameters)

    def _failed(self, reason: str, error: psycopg2.Error | None = None) -> None:
        """Logged once, until it works again."""
        if self._works:
            self._works = False
            diagnosis = error and diagnose(error)
            log.error(
                "unsubscribe links do not work, callers are told to try again",
                {"server": "PostgreSQL", "reason": reason.strip().splitlines()[0], "do": diagnosis and diagnosis.do},
            )
