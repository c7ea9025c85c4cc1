"""Processes that send through one SMTP server and share its connections, and the server, which counts them."""

import socketserver
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any

# Sends with some threads while its standard input says so: "send" and "rest" by turns.
SENDER = """
    import sys, threading, time
    from worker.errors import SendError
    from worker.messages import Email
    from worker.providers.smtp import SmtpProvider
    from worker.runtime.redis_client import connect
    from worker.sending.connection_places import ConnectionPlaces
    url, port, limit, threads, name = sys.argv[1:]
    client = connect(url)
    places = ConnectionPlaces(client, "smtp:test", int(limit))
    provider = SmtpProvider(f"smtp://127.0.0.1:{port}", places=places)
    may_send, ending = threading.Event(), threading.Event()

    def send():
        message = Email(f"{name}@shop.example", "asha@mail.example", "<a@x>", b"Subject: hi\\r\\n\\r\\nhello\\r\\n")
        while True:
            may_send.wait()
            try:
                provider.send(message)
            except SendError as error:
                if not ending.is_set():
                    print(error, flush=True)

    for _ in range(int(threads)):
        threading.Thread(target=send, daemon=True).start()
    print("ready", flush=True)
    for line in sys.stdin:
        may_send.set() if line == "send\\n" else may_send.clear()
    ending.set()
    provider.close()
"""


ESTABLISHED = "01"


def established(port: int) -> set[str]:
    """The clients' addresses of connections to a port that they have not closed, as this machine's kernel says."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text("ascii").splitlines()[1:]]
    return {line[2] for line in lines if line[3] == ESTABLISHED and line[1].endswith(f":{port:04X}")}


class SmtpServer(socketserver.ThreadingTCPServer):
    """Takes every message after ``seconds``; keeps who sent how many, and the most connections there were at once."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, seconds: float = 0.01) -> None:
        super().__init__(("127.0.0.1", 0), _Session)
        self.seconds = seconds
        self.guard = threading.Lock()
        self.open: Counter[str] = Counter()
        self.most = 0
        self.messages: Counter[str] = Counter()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    @property
    def connections(self) -> int:
        with self.guard:
            return self.open.total()

    def sent(self, *names: str) -> list[int]:
        with self.guard:
            return [self.messages[name] for name in names]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.shutdown()
        super().__exit__(kind, error, at)


class _Session(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        server: Any = self.server
        name = ""
        try:
            self.wfile.write(b"220 ready\r\n")
            while line := self.rfile.readline():
                verb = line[:4].upper()
                if verb == b"EHLO":
                    self._count(server, name, 1)
                elif verb == b"MAIL":
                    self._count(server, name, -1)
                    name = line.split(b"<")[1].split(b"@")[0].decode()
                    self._count(server, name, 1)
                elif verb == b"DATA":
                    self.wfile.write(b"354 go on\r\n")
                    while self.rfile.readline() not in (b".\r\n", b""):
                        continue
                    time.sleep(server.seconds)
                    with server.guard:
                        server.messages[name] += 1
                self.wfile.write(b"250 ok\r\n")
        except OSError:
            return  # the client is gone
        finally:
            self._count(server, name, -1)

    @staticmethod
    def _count(server: Any, name: str, number: int) -> None:
        with server.guard:
            server.open[name] += number
            # A reading takes a while: one that is closed and its successor may both be in it. What is in two readings
            # was open between them.
            open_together = established(server.port) & established(server.port)
            server.most = max(server.most, len(open_together))


class Sender(subprocess.Popen[str]):
    """A process that shares ``limit`` connections with the others."""

    def __init__(self, url: str, server: SmtpServer, limit: int, name: str, threads: int = 8) -> None:
        code = textwrap.dedent(SENDER)
        arguments = [url, str(server.port), str(limit), str(threads), name]
        super().__init__(
            [sys.executable, "-c", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.stdout
        assert self.stdout.readline() == "ready\n"

    def say(self, what: str) -> None:
        assert self.stdin
        self.stdin.write(f"{what}\n")
        self.stdin.flush()

    def end(self) -> str:
        """Closes its provider; returns what it had to say."""
        return self.communicate(timeout=30)[0]
