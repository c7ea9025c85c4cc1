"""A message that is announced: its commands leave with the message before it, its content only when it is sent."""

import ssl
import threading
from collections.abc import Callable

import pytest
from raw_server import Connection, RawServer, Script
from smtp_scripts import MAIL, PLAIN, answering, deliver, greet

from worker.errors import CampaignRejected, RecipientRefused, RetryLater, Unconfirmed
from worker.messages import Email
from worker.providers import smtp_transaction

NEXT = Email(MAIL.envelope_from, "next@customer.example", "<2@shop.example>", b"Subject: Next\r\n\r\nHello again\r\n")
COMMANDS = b"MAIL FROM:<from@shop.example>\r\nRCPT TO:<%b>\r\nDATA\r\n"
ACCEPTED = b"250 ok\r\n250 ok\r\n354 go\r\n"


def one_then(after: Callable[[Connection], object], heard: list[bytes] | None = None) -> Script:
    """Takes the first message, and the commands of the next one, in one go; then ``after``."""

    def script(connection: Connection) -> None:
        greet(connection)
        deliver(connection)
        commands = connection.until(b"DATA\r\n")
        if heard is not None:
            heard.append(commands)
        after(connection)

    return script


def replying(replies: bytes, then: Callable[[Connection], object] = Connection.hang) -> Callable[[Connection], None]:
    def after(connection: Connection) -> None:
        connection.say(replies)
        then(connection)

    return after


def content(connection: Connection) -> None:
    assert connection.until(b"\r\n.\r\n") == NEXT.content + b".\r\n"
    connection.say(b"250 queued\r\n")
    connection.hang()


def test_one_exchange_for_a_message(provider_of) -> None:
    """The commands come before the answer to the content, the next content only after their replies."""
    heard: list[bytes] = []

    def script(connection: Connection) -> None:
        greet(connection)
        connection.until(b"DATA\r\n")
        connection.say(ACCEPTED)
        heard.append(connection.until(b"DATA\r\n"))  # nothing was answered to the content so far
        connection.say(b"250 queued\r\n" + ACCEPTED)
        heard.append(connection.until(b"\r\n.\r\n"))
        connection.say(b"250 queued\r\n")
        connection.hang()

    with RawServer(script) as server:
        provider = provider_of(server)
        provider.send(MAIL, NEXT)
        provider.send(NEXT)
        assert server.connections == 1
    assert heard == [MAIL.content + b".\r\n" + COMMANDS % NEXT.to.encode(), NEXT.content + b".\r\n"]


@pytest.mark.parametrize(
    "ehlo", [PLAIN, b"250-test\r\n250-PIPELINING\r\n250 SIZE 60\r\n"], ids=["plain", "too large"]
)
def test_not_where_the_server_would_not_take_it(provider_of, ehlo: bytes) -> None:
    """Without PIPELINING, and for a message that is larger than what the server takes, nothing leaves early."""
    large = Email(
        MAIL.envelope_from, "large@customer.example", "<3@shop.example>", MAIL.content + b"x" * 60 + b"\r\n"
    )
    heard: list[bytes] = []

    def script(connection: Connection) -> None:
        greet(connection, ehlo)
        heard.extend(deliver(connection) for _ in range(2))
        connection.hang()

    with RawServer(script) as server:
        provider = provider_of(server)
        provider.send(MAIL, large)
        if b"SIZE" in ehlo:
            with pytest.raises(CampaignRejected, match="accepts at most 60"):
                provider.send(large)
        provider.send(MAIL)
        assert server.connections == 1
    assert [each.count(b"DATA") for each in heard] == [1, 1]


@pytest.mark.parametrize("data", [b"354 go\r\n", b"503 no recipient\r\n"], ids=["DATA taken", "DATA refused"])
def test_a_refused_recipient_of_an_announced_message(provider_of, data: bytes) -> None:
    """The refusal is the announced message's own, and the connection serves the next one."""

    def after(connection: Connection) -> None:
        connection.say(b"250 ok\r\n550 5.1.1 no such user\r\n" + data)
        if data.startswith(b"354"):
            assert connection.until(b".\r\n") == b".\r\n"  # nothing of the content
            connection.say(b"554 no recipients\r\n")
        assert connection.line() == b"RSET\r\n"
        connection.say(b"250 ok\r\n")
        deliver(connection)
        connection.hang()

    with RawServer(one_then(after)) as server:
        provider = provider_of(server)
        provider.send(MAIL, NEXT)
        with pytest.raises(RecipientRefused, match="no such user"):
            provider.send(NEXT)
        provider.send(MAIL)
        assert server.connections == 1


def test_a_withdrawn_message(provider_of) -> None:
    """Its connection is closed without its content, and without a dot; another message takes another connection."""
    rest: list[bytes] = []

    def after(connection: Connection) -> None:
        connection.say(ACCEPTED)
        try:
            connection.until(b"\r\n")
        except ConnectionError:
            rest.append(connection.received)

    with RawServer(one_then(after), one_then(Connection.hang)) as server:
        provider = provider_of(server)
        provider.send(MAIL, NEXT)
        provider.withdraw(NEXT)
        provider.withdraw(NEXT)
        assert server.closed.acquire(timeout=20)
        provider.send(MAIL, NEXT)
        assert server.connections == 2
    assert rest == [b""]


def test_another_message_does_not_use_the_connection(provider_of) -> None:
    """Its replies would be those to somebody else's commands."""
    with RawServer(one_then(replying(ACCEPTED, content)), one_then(Connection.hang)) as server:
        provider = provider_of(server)
        provider.send(MAIL, NEXT)
        other = Email(MAIL.envelope_from, MAIL.to, MAIL.message_id, MAIL.content)
        provider.send(other, Email(*NEXT))
        assert server.connections == 2
        provider.send(NEXT)
        assert server.connections == 2


@pytest.mark.parametrize(
    "after",
    [
        Connection.reset,
        lambda connection: connection.sock.close(),
        replying(b"421 too many messages on one connection\r\n"),
        replying(b"503 5.5.1 out of order\r\n503 5.5.1\r\n503 5.5.1\r\n"),
        replying(b"554 5.5.0 synchronization error\r\n", lambda connection: connection.sock.close()),
    ],
    ids=["reset", "closed", "421", "503", "554"],
)
def test_a_server_that_does_not_take_the_commands(provider_of, after: Callable[[Connection], None]) -> None:
    """The message was not handed over: it is sent on a new connection in the usual order."""
    heard: list[bytes] = []

    def usual(connection: Connection) -> None:
        greet(connection)
        heard.append(deliver(connection))
        connection.hang()

    with RawServer(one_then(after), usual) as server:
        provider = provider_of(server)
        provider.send(MAIL, NEXT)
        provider.send(NEXT)
        assert server.connections == 2
    assert heard == [COMMANDS % NEXT.to.encode() + NEXT.content + b".\r\n"]


def test_a_server_that_refuses_the_order_is_not_told_early_again(provider_of) -> None:
    heard: list[bytes] = []

    def usual(connection: Connection) -> None:
        greet(connection)
        heard.extend(deliver(connection) for _ in range(2))
        connection.hang()

    out_of_order = replying(b"503 5.5.1 out of order\r\n503 5.5.1\r\n503 5.5.1\r\n")
    with RawServer(one_then(out_of_order), usual) as server:
        provider = provider_of(server)
        assert provider.announces
        provider.send(MAIL, NEXT)
        provider.send(NEXT, MAIL)
        assert not provider.announces
        provider.send(MAIL, NEXT)
        assert server.connections == 2
    assert [each.count(b"DATA") for each in heard] == [1, 1]


def test_a_sender_that_is_refused_is_refused_in_the_usual_order_too(provider_of) -> None:
    refused = (b"550 5.7.1 sender refused\r\n", b"503 no\r\n", b"503 no\r\n")
    with RawServer(one_then(replying(b"".join(refused))), answering(*refused)) as server:
        provider = provider_of(server)
        provider.send(MAIL, NEXT)
        with pytest.raises(CampaignRejected, match="sender refused"):
            provider.send(NEXT)


@pytest.mark.parametrize(
    "answer",
    [b"550 5.7.1 spam\r\n", b"451 later\r\n", b""],
    ids=["refused", "deferred", "no answer"],
)
def test_the_answer_to_the_content_is_its_own(provider_of, answer: bytes) -> None:
    """Whatever the next message's commands are answered with, and however the connection ends."""

    def script(connection: Connection) -> None:
        greet(connection)
        connection.until(b"DATA\r\n")
        connection.say(ACCEPTED)
        connection.until(b"DATA\r\n")
        if answer:
            connection.say(answer + ACCEPTED)
            content(connection)

    def second(connection: Connection) -> None:
        greet(connection)
        connection.until(b"DATA\r\n")
        connection.say(ACCEPTED)
        content(connection)

    kinds = {b"5": CampaignRejected, b"4": RetryLater, b"": Unconfirmed}
    with RawServer(script, second) as server:
        provider = provider_of(server)
        with pytest.raises(kinds[answer[:1]]):
            provider.send(MAIL, NEXT)
        provider.send(NEXT)
        assert server.connections == (1 if answer else 2)


def test_no_memory_for_the_message_after_an_announced_one(provider_of, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection waits for the content of the announced one: no other message may use it, or be taken for it."""
    third = Email(MAIL.envelope_from, "third@customer.example", "<3@shop.example>", b"Subject: 3\r\n\r\nThird\r\n")
    heard: list[bytes] = []

    def usual(connection: Connection) -> None:
        greet(connection)
        heard.append(deliver(connection))
        connection.hang()

    def without_memory(_content: bytes) -> bytes:
        raise MemoryError

    with RawServer(one_then(replying(ACCEPTED)), usual) as server:
        provider = provider_of(server)
        provider.send(MAIL, NEXT)
        with monkeypatch.context() as patch:
            patch.setattr(smtp_transaction, "wire_content", without_memory)
            with pytest.raises(MemoryError):
                provider.send(NEXT, third)
        provider.send(third)
        assert server.connections == 2
    assert heard == [COMMANDS % third.to.encode() + third.content + b".\r\n"]


def test_close_ends_what_is_announced(provider_of) -> None:
    gone = threading.Event()

    def after(connection: Connection) -> None:
        connection.say(ACCEPTED)
        connection.hang()
        gone.set()

    with RawServer(one_then(after)) as server:
        provider = provider_of(server)
        provider.send(MAIL, NEXT)
        provider.close()
        assert gone.wait(20)
        with pytest.raises(RetryLater):
            provider.send(NEXT)


def test_inside_tls(provider_of, authority: tuple[ssl.SSLContext, str]) -> None:
    context, ca_file = authority

    def script(connection: Connection) -> None:
        connection.start_tls(context)
        one_then(replying(ACCEPTED, content))(connection)

    with RawServer(script) as server:
        provider = provider_of(server, "smtps://", ca_file)
        provider.send(MAIL, NEXT)
        provider.send(NEXT)
        assert server.connections == 1
