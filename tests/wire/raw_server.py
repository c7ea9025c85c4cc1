"""A server on loopback that sends exactly what a test says: it plays one script for each connection."""

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from typing import Self


class Connection:
    """The server's side of one connection, as a script sees it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.received = b""

    def say(self, octets: bytes) -> None:
        self.sock.sendall(octets)

    def line(self) -> bytes:
        return self.until(b"\r\n")

    def until(self, end: bytes) -> bytes:
        """Everything up to and including ``end``; ConnectionError if the client closes the connection first."""
        while end not in self.received:
            self._more()
        taken, found, self.received = self.received.partition(end)
        return taken + found

    def exactly(self, count: int) -> bytes:
        while len(self.received) < count:
            self._more()
        taken, self.received = self.received[:count], self.received[count:]
        return taken

    def hang(self) -> None:
        """Reads and sends nothing until the client closes the connection."""
        while self.sock.recv(65536):
            pass

    def hang_unread(self, release: threading.Event) -> None:
        """Does not even read."""
        release.wait(20)

    def reset(self) -> None:
        """Ends the connection with RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def start_tls(self, context: ssl.SSLContext) -> None:
        self.sock = context.wrap_socket(self.sock, server_side=True)

    def stop_reading(self) -> None:
        """Ends the reads of a script whose client keeps the connection open."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.sock, socket.SHUT_RD)

    def _more(self) -> None:
        octets = self.sock.recv(65536)
        if not octets:
            raise ConnectionError("the client closed the connection")
        self.received += octets


Script = Callable[[Connection], None]


class RawServer:
    """Plays one of ``scripts`` for each connection, in their order; the last one for all that follow."""

    def __init__(self, *scripts: Script) -> None:
        self.scripts = scripts
        self.connections = 0
        self.closed = threading.Semaphore(0)  # released when a script has ended and its socket is closed
        self.errors: list[Exception] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._playing: list[Connection] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join(20)
        for connection in self._playing:
            connection.stop_reading()
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()
        if self.errors:
            raise self.errors[0]

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            script = self.scripts[min(self.connections, len(self.scripts) - 1)]
            self.connections += 1
            sock.settimeout(20)
            connection = Connection(sock)
            self._playing.append(connection)
            thread = threading.Thread(target=self._play, args=(script, connection), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _play(self, script: Script, connection: Connection) -> None:
        try:
            script(connection)
        except OSError:
            pass  # the client closed the connection, as it does at the end of every test
        except Exception as error:  # noqa: BLE001 - raised by __exit__: an error in a script fails its test
            self.errors.append(error)
        finally:
            connection.sock.close()
            self.closed.release()
