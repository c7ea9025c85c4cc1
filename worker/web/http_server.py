"""The HTTP server of bin/web: no client can keep others waiting.

An event loop receives requests and sends answers, so that a connection that stalls, whatever the reason, costs a
little memory and no thread. The application runs in a few threads, which may wait for a server, never for a client.
/livez is answered in the event loop itself.
"""

import asyncio
import logging
import resource
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from worker.web.http_connection import HttpConnection, Phase, ReceivedRequest
from worker.web.wsgi_answers import HttpAnswer, WsgiAnswers, WsgiApplication

if TYPE_CHECKING:
    from gunicorn.config import Config

log = logging.getLogger(__name__)

LIVENESS_PATH = "/livez"  # it asks no server, so the event loop may answer it
FULL_PAUSE_SECONDS = 0.05  # when a connection could not be accepted
FULL_LOG_SECONDS = 60.0  # from one line about too many connections to the next


class HttpServer:
    """Accepts connections from its construction until ``stop``. To be made in a running event loop."""

    def __init__(
        self,
        listeners: list[socket.socket],
        application: WsgiApplication,
        settings: "Config",
        *,
        body_bytes: int = 0,
        servers: int = 1,
    ) -> None:
        """``settings`` of gunicorn: threads, worker_connections, and those of its parser.

        ``body_bytes``: the longest body that is read; 0: none is. ``servers``: how many this process has in all; each
        has its own threads and connections, so that the clients of one do not keep those of another waiting.
        """
        self._application = application
        self._settings = settings
        self._body_bytes = body_bytes
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(settings.threads, thread_name_prefix="answer")
        self._open: dict[HttpConnection, asyncio.Task[None]] = {}
        # half of the files that may be open are left to the connections to other servers
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2
        self._most_open = min(settings.worker_connections, files // servers)
        self._full_logged_at = -FULL_LOG_SECONDS
        self._stopping = False
        self._accepting = [self._loop.create_task(self._accept(each)) for each in listeners]

    async def stop(self, grace_seconds: float) -> None:
        """Lets what is being answered end within that time, and closes all other connections."""
        self._stopping = True
        for task in self._accepting:
            task.cancel()
        for connection, task in self._open.items():
            if connection.phase in (Phase.RECEIVING, Phase.CLOSING):
                task.cancel()
        if self._open:
            await asyncio.wait(self._open.values(), timeout=grace_seconds)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _accept(self, listener: socket.socket) -> None:
        listener.setblocking(False)
        answers = WsgiAnswers(self._application, self._settings, listener.getsockname())
        while True:
            try:
                client, address = await self._loop.sock_accept(listener)
            except OSError as error:
                self._make_room(str(error))
                await asyncio.sleep(FULL_PAUSE_SECONDS)
                continue
            if len(self._open) >= self._most_open:
                self._make_room(f"{len(self._open)} are open")
            self._begin(client, address, answers)
            await asyncio.sleep(0)  # while others wait to be accepted, sock_accept itself does not give way

    def _begin(self, client: socket.socket, address: tuple[str, int], answers: WsgiAnswers) -> None:
        connection = HttpConnection(
            client,
            lambda head: answers.parse(head, address),
            lambda received: self._respond(received, answers),
            self._body_bytes,
        )
        task = self._loop.create_task(connection.serve())
        self._open[connection] = task
        task.add_done_callback(self._ended(connection))

    def _ended(self, connection: HttpConnection) -> Callable[[asyncio.Task[None]], None]:
        def ended(task: asyncio.Task[None]) -> None:
            self._open.pop(connection, None)
            if not task.cancelled() and (error := task.exception()):
                log.error("a connection failed: a bug, please report it", exc_info=error)

        return ended

    def _make_room(self, reason: str) -> None:
        """Closes the connection that has stalled longest; one that is being answered only if there are no others."""
        if self._loop.time() - self._full_logged_at >= FULL_LOG_SECONDS:
            self._full_logged_at = self._loop.time()
            log.warning("too many connections: those that stall longest are closed", {"reason": reason})
        if self._open:
            longest = min(self._open, key=lambda each: (each.phase is Phase.ANSWERING, each.since))
            self._open.pop(longest).cancel()

    async def _respond(self, received: ReceivedRequest, answers: WsgiAnswers) -> HttpAnswer:
        def answer() -> HttpAnswer:
            return answers.answer(received.request, received.body, last=self._stopping)

        if received.request.path == LIVENESS_PATH:
            return answer()
        return await self._loop.run_in_executor(self._threads, answer)
