"""A connection pooler in transaction mode, as PgBouncer is: each transaction may run in another session."""

import socket
import struct
import threading
from contextlib import suppress
from urllib.parse import urlsplit, urlunsplit

_ENCRYPTION_REQUESTS = (80877103, 80877104)  # SSLRequest and GSSENCRequest
_ANSWERED_BY_CLIENT = (3, 5, 10, 11)  # of the Authentication messages; 10 and 11 are SASL's


class TransactionPooler:
    """Listens on a port of its own; speaks the simple query protocol. Every client that logs in adds a session."""

    def __init__(self, database_url: str) -> None:
        parts = urlsplit(database_url)
        self._server = (parts.hostname or "127.0.0.1", parts.port or 5432)
        self._idle: list[socket.socket] = []
        self._changed = threading.Condition()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets = [self._listener]
        user = parts.netloc.rpartition("@")[0]
        address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.url = urlunsplit(parts._replace(netloc=f"{user}@{address}" if user else address))
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for each in self._sockets:
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                self._sockets.append(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError), client:
            self._log_in(client)
            while (message := _read(client))[:1] != b"X":
                self._run_transaction(client, message)

    def _log_in(self, client: socket.socket) -> None:
        start = _read_start(client)
        while struct.unpack("!I", start[4:8])[0] in _ENCRYPTION_REQUESTS:
            client.sendall(b"N")
            start = _read_start(client)
        server = socket.create_connection(self._server)
        self._sockets.append(server)
        server.sendall(start)
        while (message := _read(server))[:1] != b"Z":
            client.sendall(message)
            if message[:1] == b"R" and struct.unpack("!I", message[5:9])[0] in _ANSWERED_BY_CLIENT:
                server.sendall(_read(client))
        client.sendall(message)
        self._release(server)

    def _run_transaction(self, client: socket.socket, message: bytes) -> None:
        with self._changed:
            while not self._idle:
                self._changed.wait()
            server = self._idle.pop(0)  # the one that was idle for the longest time
        while True:
            server.sendall(message)
            while (answer := _read(server))[:1] != b"Z":
                client.sendall(answer)
            client.sendall(answer)
            if answer[5:6] == b"I":
                break
            message = _read(client)
        self._release(server)

    def _release(self, server: socket.socket) -> None:
        with self._changed:
            self._idle.append(server)
            self._changed.notify()


def _exactly(sock: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        part = sock.recv(size - len(found))
        if not part:
            raise ConnectionError
        found += part
    return found


def _read(sock: socket.socket) -> bytes:
    """One message: a letter, its length, and its content."""
    head = _exactly(sock, 5)
    return head + _exactly(sock, struct.unpack("!I", head[1:])[0] - 4)


def _read_start(sock: socket.socket) -> bytes:
    """The first message of a client, which has no letter."""
    head = _exactly(sock, 4)
    return head + _exactly(sock, struct.unpack("!I", head)[0] - 4)
