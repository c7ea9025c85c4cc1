"""The deadline of an exchange ends one that goes over TLS, too: from the first octet of the handshake on."""

import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme
from raw_server import Connection, RawServer, Script

from sandbox.accounts import TWILIO_ACCOUNT_SID
from worker.errors import RetryLater, Unconfirmed
from worker.messages import Email
from worker.providers.http import HttpPool
from worker.providers.smtp import SmtpProvider
from worker.providers.twilio import TwilioProvider

MAIL = Email("from@shop.example", "to@customer.example", "<1@shop.example>", b"Subject: Hi\r\n\r\nHello\r\n")
EXCHANGE_SECONDS = 1.0
PATIENCE_SECONDS = 15.0  # the servers go on for 20


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> Path:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return tmp_path / "ca.pem"


@pytest.fixture(autouse=True)
def took_no_longer_than_it_may(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("worker.providers.smtp_session.SESSION_SECONDS", EXCHANGE_SECONDS)
    monkeypatch.setattr("worker.providers.smtp_wire.EXCHANGE_SECONDS", EXCHANGE_SECONDS)
    began = time.monotonic()
    yield
    assert time.monotonic() - began < PATIENCE_SECONDS


def drip(connection: Connection, part: bytes) -> None:
    until = time.monotonic() + 20.0
    while time.monotonic() < until:
        connection.say(part)
        time.sleep(0.1)


def handshake(connection: Connection) -> None:
    """A record of 16 kB that arrives octet by octet."""
    connection.sock.recv(65_536)
    connection.say(b"\x16\x03\x03\x3f\xff")
    drip(connection, b"\x02")


def asks_for_tls(connection: Connection) -> None:
    connection.say(b"220 test\r\n")
    connection.line()
    connection.say(b"250-test\r\n250 STARTTLS\r\n")
    connection.line()
    connection.say(b"220 go\r\n")


def greets(connection: Connection) -> None:
    drip(connection, b"220-welcome\r\n")


def answers_ehlo(connection: Connection) -> None:
    connection.line()
    drip(connection, b"250-more\r\n")


def answers_mail(connection: Connection) -> None:
    connection.say(b"220 test\r\n")
    connection.line()
    connection.say(b"250 test\r\n")
    connection.line()
    drip(connection, b"250-more\r\n")


@pytest.mark.parametrize(
    ("scheme", "first", "encrypted", "then"),
    [
        ("smtps", None, False, handshake),
        ("smtps", None, True, greets),
        ("smtps", None, True, answers_mail),
        ("smtp", asks_for_tls, False, handshake),
        ("smtp", asks_for_tls, True, answers_ehlo),
    ],
)
def test_smtp(
    scheme: str, first: Script | None, encrypted: bool, then: Script, tls: ssl.SSLContext, ca_file: Path
) -> None:
    """A handshake, greeting or reply that drips."""

    def script(connection: Connection) -> None:
        if first:
            first(connection)
        if encrypted:
            connection.start_tls(tls)
        then(connection)

    with RawServer(script) as server:
        provider = SmtpProvider(f"{scheme}://localhost:{server.port}?ca_file={ca_file}")
        with pytest.raises(RetryLater, match="the exchange took longer than 1"):
            provider.send(MAIL)
        provider.close()
        assert server.closed.acquire(timeout=PATIENCE_SECONDS)


def head(connection: Connection) -> None:
    connection.until(b"\r\n\r\n")
    connection.say(b"HTTP/1.1 201 Created\r\n")
    drip(connection, b"X: y\r\n")


def body(connection: Connection) -> None:
    connection.until(b"\r\n\r\n")
    connection.say(b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n")
    drip(connection, b"1\r\n \r\n")


@pytest.mark.parametrize(
    ("encrypted", "then", "error"),
    [(False, handshake, RetryLater), (True, head, Unconfirmed), (True, body, Unconfirmed)],
)
def test_https(
    encrypted: bool,
    then: Callable[[Connection], None],
    error: type[Exception],
    tls: ssl.SSLContext,
    ca_file: Path,
) -> None:
    """A handshake, head or body that drips."""

    def script(connection: Connection) -> None:
        if encrypted:
            connection.start_tls(tls)
        then(connection)

    with RawServer(script) as server:
        pool = HttpPool(1, exchange_seconds=EXCHANGE_SECONDS, ca_file=str(ca_file))
        provider = TwilioProvider(f"https://localhost:{server.port}", TWILIO_ACCOUNT_SID, "token", pool)
        with pytest.raises(error, match="the exchange took longer than 1 seconds in all"):
            provider.place([("To", "+919800000001")])
        pool.close()
        assert server.closed.acquire(timeout=PATIENCE_SECONDS)
