"""Gives up the connection to a PostgreSQL that answers nothing any more, though its machine is still there.

The kernel of a frozen server (SIGSTOP, a disk that hangs) goes on acknowledging what arrives, so that neither
keepalives nor tcp_user_timeout end the wait for an answer. How long a statement has taken says nothing either:
building the recipients of a million takes 20 s, an index of bin/migrate many minutes. So when an answer is late, the
same address is asked whether a server is there. PostgreSQL answers that before it knows user or password, also when
it has no connection left. Only silence counts, and then the statement fails like one whose server was killed.
"""

import logging
import math
import os
import signal
import socket
import struct
import threading
import time
import weakref
from typing import Any

import psycopg2.extensions

log = logging.getLogger(__name__)

LATE_SECONDS = 5.0  # the server is asked when a statement has taken so long, and again after as long
PROBE_SECONDS = 4.0  # for its answer; a busy machine may need a moment to start a process
PROBES = 2  # without an answer, one after the other, until the connection is given up
POLL_SECONDS = 1.0

# https://www.postgresql.org/docs/current/protocol-message-formats.html: SSLRequest, which a pooler answers, too
_SSL_REQUEST = struct.pack("!II", 8, 80877103)


class WatchedConnection(psycopg2.extensions.connection):
    """A connection that says since when a statement is running. ``statement_began``: monotonic(); inf: none is."""

    statement_began = math.inf


class WatchedCursor(psycopg2.extensions.cursor):
    """The cursors of a WatchedConnection. COPY is not watched."""

    connection: WatchedConnection

    def execute(self, query: Any, vars: Any = None) -> None:
        self.connection.statement_began = time.monotonic()
        try:
            super().execute(query, vars)
        finally:
            self.connection.statement_began = math.inf


def watch(connection: WatchedConnection) -> None:
    """Watches it until it is closed, in a thread that nobody has to wait for.

    Raises RuntimeError when the machine has no thread, and OSError when it has no file.
    """
    # of its own, so that it is still this connection's when libpq has closed the other one
    server = socket.socket(fileno=os.dup(connection.fileno()))
    watching = threading.Thread(
        target=_watch, args=(weakref.ref(connection), server), name="postgresql answers", daemon=True
    )
    try:
        watching.start()
    except RuntimeError:
        server.close()
        raise


def _watch(connection: "weakref.ref[WatchedConnection]", server: socket.socket) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are for the main thread
    heard_at = -math.inf
    with server:
        while (began := _statement_began(connection)) is not None:
            if time.monotonic() - max(began, heard_at) < LATE_SECONDS:
                time.sleep(POLL_SECONDS)
            elif any(_answers(server) for _ in range(PROBES)):
                heard_at = time.monotonic()
            elif _statement_began(connection) == began:
                _give_up(server, time.monotonic() - began)
                return


def _statement_began(connection: "weakref.ref[WatchedConnection]") -> float | None:
    """None: the connection is closed."""
    found = connection()
    return None if found is None or found.closed else found.statement_began


def _answers(server: socket.socket) -> bool:
    """False for silence only. A connection that is refused, for example, has an end that its kernel knows of."""
    try:
        with socket.socket(server.family) as probe:
            probe.settimeout(PROBE_SECONDS)
            probe.connect(server.getpeername())
            probe.sendall(_SSL_REQUEST)
            probe.recv(1)
    except TimeoutError:
        return False
    except OSError:
        return True
    return True


def _give_up(server: socket.socket, seconds: float) -> None:
    try:
        address = server.getpeername()
        server.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it has ended in this moment
    log.warning(
        "PostgreSQL answers nothing any more, its connection is given up",
        {"server": address if isinstance(address, str) else f"{address[0]}:{address[1]}", "seconds": round(seconds)},
    )
