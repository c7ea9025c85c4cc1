"""A server on loopback whose every octet a test decides: it plays one script for each connection."""

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
        """Everything up to and with ``end``; ConnectionError when the client leaves first."""
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
        """Read and say nothing until the client has left."""
        while self.sock.recv(65536):
            pass

    def hang_unread(self, release: threading.Event) -> None:
        """Do not even read."""
        release.wait(20)

    def reset(self) -> None:
        """End the connection with RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def start_tls(self, context: ssl.SSLContext) -> None:
        self.sock = context.wrap_socket(self.sock, server_side=True)

    def stop_reading(self) -> None:
        """For a script that waits for a client who will not leave: its reads come to an end."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.sock, socket.SHUT_RD)

    def _more(self) -> None:
        octets = self.sock.recv(65536)
        if not octets:
            raise ConnectionError("the client has left")
        self.received += octets


Script = Callable[[Connection], None]


class RawServer:
    """Plays ``scripts`` one after the other, one a connection; the last one for all that follow."""

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
            pass  # the client left, which every test does in the end
        except Exception as error:  # noqa: BLE001 - told by __exit__: a script's mistake fails its test
            self.errors.append(error)
        finally:
            connection.sock.close()
            self.closed.release()
