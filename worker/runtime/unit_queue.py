"""The queue of units of work, in PostgreSQL's schema ``engine``: Procrastinate (https://procrastinate.readthedocs.io).

A unit is "send this campaign for some seconds". Its slot (``campaign/number``) is Procrastinate's queueing lock and
lock: a slot has at most one unit that waits and one that runs. A unit carries no data, and claims exclude each other
whoever runs it: a unit that runs twice, or never, loses and repeats nothing.

All of it runs in a thread of its own, with an event loop and its own connections, which need sessions of their own.
"""

import asyncio
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as NotInTime
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from typing import Any, TypeVar

import procrastinate
import psycopg
from procrastinate.exceptions import AlreadyEnqueued, ConnectorException
from procrastinate.jobs import Status
from procrastinate.schema import SchemaManager
from procrastinate.worker import Worker

from worker.errors import ServerUnavailable
from worker.runtime.database_url import parse_database_url
from worker.runtime.diagnosis import POSTGRESQL
from worker.runtime.sessions import CONNECTING

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

SCHEMA = "engine"
TASK = "send"
ADD_SENDER = "INSERT INTO sender (worker_id, host, pid) VALUES (%(worker_id)s, %(host)s, %(pid)s)"
NEVER_SECONDS = 31_536_000.0
LOOK_SECONDS = 0.02  # how often is looked whether a sender has been registered, or has ended
ANSWER_SECONDS = 30.0  # for one question to PostgreSQL
UNIT_LIMIT_SECONDS = 60.0  # a process that cannot work (without Redis, say) keeps a unit no longer than this
POLL_SECONDS = 15.0  # how often a sender looks for units of which no notification came
HEARTBEATS = 4  # in the time after which a sender without one is lost
# What it says is said by this module's errors, in the words of the house.
LOGGERS = ("procrastinate", "psycopg", "psycopg.pool")


def schema_scripts() -> tuple[str, dict[str, str]]:
    """Procrastinate's tables as one script, and the scripts by name, in order, that bring older ones up to date."""
    folder = resources.files("procrastinate.sql").joinpath("migrations")
    names = sorted(each.name for each in folder.iterdir() if each.name.endswith(".sql"))
    return SchemaManager.get_schema(), {name: folder.joinpath(name).read_text("utf-8") for name in names}


@dataclass(eq=False, slots=True)
class UnitInHand:
    """A unit that this process runs, until ``end`` is called."""

    campaign_id: str
    began: float  # time.monotonic()
    ended: Future[None]

    def end(self) -> None:
        with suppress(InvalidStateError):  # it has ended
            self.ended.set_result(None)


class UnitQueue:
    """One process's connection to the queue. Any error of it is a ServerUnavailable for PostgreSQL."""

    def __init__(self, database_url: str, timeout_seconds: float, on_unit: Callable[[], None] | None = None) -> None:
        """``timeout_seconds``: without a sign of life for so long a sender is lost. ``on_unit``: a unit came."""
        for name in LOGGERS:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._timeout_seconds = timeout_seconds
        self._on_unit = on_unit or (lambda: None)
        self._units: dict[UnitInHand, None] = {}
        self._changing = threading.Lock()  # guards _units
        self._app = procrastinate.App(
            connector=procrastinate.PsycopgConnector(
                conninfo=parse_database_url(database_url).libpq,
                kwargs={"application_name": "crm-worker engine", "prepare_threshold": None, **CONNECTING},
                configure=_set_up,
                min_size=1,
                max_size=2,
                timeout=CONNECTING["connect_timeout"],
                reconnect_timeout=CONNECTING["connect_timeout"],
            )
        )
        self._task = self._app.task(name=TASK, queue=TASK)(self._run_unit)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._taking: Future[None] | None = None
        self._taker: asyncio.Task[Any] | None = None

    def add(self, campaign_id: str, slot: int) -> bool:
        """Queues a unit; False: the slot has one that waits."""
        lock = f"{campaign_id}/{slot}"
        task = self._task.configure(lock=lock, queueing_lock=lock)
        try:
            self._ask(task.defer_async(campaign_id=campaign_id))
        except AlreadyEnqueued:
            return False
        return True

    def take_back(self) -> list[str]:
        """Removes the units of lost senders, so that they can be queued again; returns their campaigns' ids."""
        return self._ask(self._take_back())

    def take_units(self) -> None:
        """Takes units from now on, one at a time. To be called again and again: raises what ended it, once."""
        if self._taking is not None and self._taking.done():
            ended, self._taking = self._taking, None
            self.end_all()
            self._outcome(ended)
        if self._taking is None:
            self._taking = asyncio.run_coroutine_threadsafe(self._take_units(), self._opened())

    @property
    def in_hand(self) -> list[UnitInHand]:
        """The units that this process runs."""
        with self._changing:
            return list(self._units)

    def end_all(self) -> None:
        for unit in self.in_hand:
            unit.end()

    def close(self) -> None:
        """Gives back what is in hand, and disconnects."""
        self.end_all()
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        with suppress(NotInTime, ConnectorException, psycopg.Error):
            asyncio.run_coroutine_threadsafe(self._close(), loop).result(ANSWER_SECONDS)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(ANSWER_SECONDS)
        if not thread.is_alive():
            loop.close()
        self._loop = self._thread = None

    def _opened(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._loop.set_exception_handler(_say)
            self._thread = threading.Thread(target=self._loop.run_forever, name="engine", daemon=True)
            self._thread.start()
        return self._loop

    def _ask(self, question: Coroutine[Any, Any, Answer]) -> Answer:
        async def answer() -> Answer:
            await self._app.open_async()
            return await question

        return self._outcome(asyncio.run_coroutine_threadsafe(answer(), self._opened()))

    def _outcome(self, future: Future[Answer]) -> Answer:
        try:
            return future.result(ANSWER_SECONDS)
        except AlreadyEnqueued:
            raise
        except (ConnectorException, psycopg.Error, NotInTime) as error:
            future.cancel()
            cause = error.__cause__ or error
            raise ServerUnavailable(POSTGRESQL, " ".join(str(cause).split()) or type(cause).__name__) from error

    async def _take_back(self) -> list[str]:
        manager = self._app.job_manager
        stalled = await manager.get_stalled_jobs(task_name=TASK, seconds_since_heartbeat=self._timeout_seconds)
        for unit in stalled:
            await manager.finish_job(unit, Status.FAILED, delete_job=True)
        return [str(unit.task_kwargs["campaign_id"]) for unit in stalled]

    async def _close(self) -> None:
        if self._taker is not None:
            self._taker.cancel()
            await self._end_of(self._taker)
        await self._app.close_async()

    async def _end_of(self, task: asyncio.Task[Any]) -> None:
        """Gives back what is in hand until the task has ended, also a unit that has just come."""
        while not task.done():
            self.end_all()
            await asyncio.wait([task], timeout=LOOK_SECONDS)

    async def _take_units(self) -> None:
        self._taker = asyncio.current_task()
        await self._app.open_async()
        worker = Worker(
            self._app,
            queues=[TASK],
            concurrency=1,
            install_signal_handlers=False,
            delete_jobs="always",
            update_heartbeat_interval=NEVER_SECONDS,
            stalled_worker_timeout=self._timeout_seconds,
            fetch_job_polling_interval=POLL_SECONDS,
        )
        running = asyncio.create_task(worker.run())  # type: ignore[no-untyped-call]
        try:
            while worker.worker_id is None and not running.done():
                await asyncio.sleep(LOOK_SECONDS)
            if worker.worker_id is not None:
                await self._app.connector.execute_query_async(
                    ADD_SENDER, worker_id=worker.worker_id, host=socket.gethostname(), pid=os.getpid()
                )
            # Not the library's own heartbeat: when that fails once (an outage), it is over, and the worker goes on.
            while not (await asyncio.wait([running], timeout=self._timeout_seconds / HEARTBEATS))[0]:
                if worker.worker_id is not None:
                    await self._app.job_manager.update_heartbeat(worker.worker_id)
            await running
        finally:
            running.cancel()
            await self._end_of(running)

    async def _run_unit(self, campaign_id: str) -> None:
        unit = UnitInHand(campaign_id, time.monotonic(), Future())
        with self._changing:
            self._units[unit] = None
        self._on_unit()
        try:
            await asyncio.wait_for(asyncio.wrap_future(unit.ended), UNIT_LIMIT_SECONDS)
        except TimeoutError:
            log.warning("unit given back: this process does not come to it", {"campaign": campaign_id})
        finally:
            with self._changing:
                del self._units[unit]


def _say(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Of a task that nobody waits for: the end of a unit could not be written. It is taken back later."""
    error = context.get("exception")
    cause = error and (error.__cause__ or error)
    reason = " ".join(str(cause or context.get("message")).split())
    log.warning("unit was ended, but the queue could not be told", {"reason": reason})


async def _set_up(connection: psycopg.AsyncConnection[Any]) -> None:
    await connection.set_autocommit(True)
    await connection.execute(f"SET search_path TO {SCHEMA}; SET statement_timeout = '{ANSWER_SECONDS:.0f}s'")
