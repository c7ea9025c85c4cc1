"""An address that leads to a server, and may lead to another one later, as a managed server's does.

Connections that exist stay with the server that they were made to. With a TLS context, a connection may begin with
TLS, which ends here, or do without: Redis's own servers do not use it with each other.
"""

import contextlib
import selectors
import socket
import ssl
import threading

IDLE_SECONDS = 300.0  # after which a connection that nobody uses is closed
_TLS_HANDSHAKE = b"\x16"  # a TLS record of this type comes first


class Forwarder:
    """Forwards the connections to ``port`` on loopback to the port ``target``. It listens at once."""

    def __init__(self, target: int, tls: ssl.SSLContext | None = None) -> None:
        self.target = target
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, name="forwarder", daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()
        for each in self._connections:
            with contextlib.suppress(OSError):  # closed by its client
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # close() ends it
            while True:
                connection, _ = self._listener.accept()
                self._connections.append(connection)
                self._threads.append(threading.Thread(target=self._serve, args=[connection], daemon=True))
                self._threads[-1].start()

    def _serve(self, raw: socket.socket) -> None:
        with raw, contextlib.suppress(OSError):  # a client that does not trust us, or that is gone
            raw.settimeout(IDLE_SECONDS)
            encrypted = self._tls and raw.recv(1, socket.MSG_PEEK) == _TLS_HANDSHAKE
            with (
                self._tls.wrap_socket(raw, server_side=True) if self._tls and encrypted else raw as outside,
                socket.create_connection(("127.0.0.1", self.target)) as inside,
                selectors.DefaultSelector() as selector,
            ):
                if encrypted:
                    self._connections.append(outside)
                selector.register(outside, selectors.EVENT_READ, inside)
                selector.register(inside, selectors.EVENT_READ, outside)
                while _pass_on(selector):
                    pass


def _pass_on(selector: selectors.BaseSelector) -> bool:
    """Passes on what has arrived; False when one side has closed the connection."""
    ready = selector.select(IDLE_SECONDS)
    for key, _ in ready:
        if not isinstance(key.fileobj, socket.socket):
            return False
        data = key.fileobj.recv(65536)
        while isinstance(key.fileobj, ssl.SSLSocket) and key.fileobj.pending():
            data += key.fileobj.recv(65536)
        if not data:
            return False
        key.data.sendall(data)
    return bool(ready)
