"""Providers that answer a byte at a time: they keep the threads of their own tenants, and nobody else's."""

import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis
from books import Books
from workers import Start, wait_for

from sandbox import accounts
from sandbox.crm import Crm
from worker.runtime.counter_readings import read_all

ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 40\r\n\r\n"
    b'{"messages": [{"id": "wamid.x"}]}        '
)
BYTE_SECONDS = 4.0
QUICK_SECONDS = 30.0  # far less than the deadline of an exchange: that would end what hangs
OTHER_TENANT = {"whatsapp": {"token": accounts.WHATSAPP_TOKEN, "phoneId": accounts.WHATSAPP_PHONE_ID}}


class DrippingProvider(socketserver.ThreadingTCPServer):
    """Takes a request and sends its answer a byte every 4 s."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        self.over = threading.Event()
        self.requests = threading.Semaphore(0)
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(socketserver.StreamRequestHandler):
    server: DrippingProvider

    def handle(self) -> None:
        with suppress(ConnectionError):
            while self.rfile.readline().strip():
                pass
            self.server.requests.release()
            for byte in ANSWER:
                if self.server.over.wait(BYTE_SECONDS):
                    return
                self.request.send(bytes([byte]), socket.MSG_NOSIGNAL)


@pytest.fixture
def dripping() -> Iterator[DrippingProvider]:
    with DrippingProvider() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("tenants", [1, 12])
def test_a_provider_that_drips(
    crm: Crm,
    books: Books,
    start: Start,
    dripping: DrippingProvider,
    redis_client: redis.Redis,
    tenants: int,
) -> None:
    """Another tenant's campaign by SMTP is sent meanwhile, and the heartbeat says what the job waits for."""
    for number in range(tenants):
        settings = {"whatsapp": {"token": f"token-{number}", "phoneId": f"10{number}"}}
        tenant = crm.add_tenant(f"tenant {number}", settings=settings)
        crm.add_user(tenant)
        crm.add_campaign("whatsapp", tenant_id=tenant, recipients=40)
    worker = start(WHATSAPP_API_URL=dripping.url)
    for _ in range(2 * tenants if tenants == 1 else 8):
        assert dripping.requests.acquire(timeout=60.0)
    quick = crm.add_campaign(recipients=200)
    wait_for(lambda: books.ended(quick), "the campaign of another tenant ends", QUICK_SECONDS)
    assert crm.counts(quick) == {"sent": 200}
    wait_for(lambda: read_all(redis_client).jobs["campaign"].stuck, "the heartbeat says what it waits for")
    assert worker.said("all messages that are being sent wait for their provider") == 1
    dripping.over.set()
    wait_for(lambda: not read_all(redis_client).jobs["campaign"].stuck, "the tick ends")


class EndlessGreeter(socketserver.ThreadingTCPServer):
    """An SMTP server whose greeting never ends: ``pause_seconds`` after each part of it."""

    daemon_threads = True

    def __init__(self, pause_seconds: float) -> None:
        self.over = threading.Event()
        self.pause_seconds = pause_seconds
        self.connected = threading.Semaphore(0)
        super().__init__(("127.0.0.1", 0), _Greeting)


class _Greeting(socketserver.BaseRequestHandler):
    server: EndlessGreeter

    def handle(self) -> None:
        self.server.connected.release()
        part = b"220-welcome\r\n" * (1 if self.server.pause_seconds else 10_000)
        with suppress(OSError):
            while not self.server.over.wait(self.server.pause_seconds):
                self.request.sendall(part)


@pytest.mark.parametrize("pause_seconds", [0.0, 1.0], ids=["a flood", "a line a second"])
def test_a_greeting_without_end(crm: Crm, books: Books, start: Start, pause_seconds: float) -> None:
    """It takes neither the memory nor the threads of those who send through other providers."""
    with EndlessGreeter(pause_seconds) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            mail = crm.add_campaign(recipients=40)
            worker = start(SMTP_URL=f"smtp://127.0.0.1:{server.server_address[1]}")
            assert server.connected.acquire(timeout=60.0)
            tenant = crm.add_tenant("other", settings=OTHER_TENANT)
            quick = crm.add_campaign("whatsapp", tenant_id=tenant, user_id=crm.add_user(tenant), recipients=100)
            wait_for(lambda: books.ended(quick), "the campaign of another tenant ends", QUICK_SECONDS)
            assert crm.counts(quick) == {"sent": 100}
            assert set(crm.counts(mail)) <= {"pending", "sending"}
            memory = Path(f"/proc/{worker.pid}/status").read_text("ascii").partition("VmHWM:")[2].split()[0]
            assert int(memory) < 300_000, "kB"
        finally:
            server.over.set()
            server.shutdown()
            thread.join()
