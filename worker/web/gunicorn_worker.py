"""gunicorn's worker class for bin/web: gunicorn starts it, restarts it when it ends or hangs, and stops it.

gunicorn's own worker with threads has no time-out for a request: each half-sent one keeps a thread for as long as the
client likes.
"""

import asyncio
import os
import signal
import socket
import sys
from contextlib import suppress
from typing import Any

from gunicorn.workers.base import Worker

from worker.web.http_server import HttpServer

SWITCH_SECONDS = 0.0005  # Python's 0.005 would add up: the event loop waits that long after each call of the system
BEAT_SECONDS = 1.0  # gunicorn kills a worker that is silent for longer than its ``timeout``


class EventLoopWorker(Worker):
    """Serves until SIGTERM, then for at most ``graceful_timeout`` what it has begun to answer."""

    def run(self) -> None:
        sys.setswitchinterval(SWITCH_SECONDS)  # while threads render pages
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        stopping = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
        gunicorn_sockets: list[Any] = list(self.sockets)
        listeners: list[socket.socket] = [each.sock for each in gunicorn_sockets]
        servers = self._servers(listeners)
        while self.alive and not stopping.is_set() and self.ppid == os.getppid():
            self.notify()
            with suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), BEAT_SECONDS)
        await asyncio.gather(*(server.stop(self.cfg.graceful_timeout) for server in servers))

    def _servers(self, listeners: list[socket.socket]) -> list[HttpServer]:
        """For each address of conf/gunicorn.conf.py: the status page's, and the public one where it is on."""
        status, *public = listeners
        servers = [HttpServer([status], self.wsgi, self.cfg, servers=len(listeners))]
        if public:
            from worker.web import public_site  # not in gunicorn's main process, which serves nothing

            site = public_site.create()
            servers.append(
                HttpServer(public, site, self.cfg, body_bytes=public_site.BODY_BYTES, servers=len(listeners))
            )
        return servers
