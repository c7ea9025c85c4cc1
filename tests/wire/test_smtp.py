"""E-mail through SMTP: what each answer means, and whether a message was sent when a connection breaks."""

import itertools
import ssl
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import trustme
from raw_server import Connection, RawServer, Script
from smtp_scripts import HUGE, MAIL, PIPELINING, PLAIN, answering, deliver, greet

from worker.errors import (
    AccountRejected,
    CampaignRejected,
    RecipientDeferred,
    RecipientRefused,
    RetryLater,
    SendError,
    TooLate,
    Unconfirmed,
)
from worker.messages import Accepted, Email
from worker.providers.handover import handed_over_while

EHLOS = pytest.mark.parametrize("ehlo", [PIPELINING, PLAIN], ids=["pipelining", "step by step"])


@EHLOS
def test_messages_follow_each_other_on_one_kept_connection(provider_of, ehlo: bytes) -> None:
    seen: list[bytes] = []

    def script(connection: Connection) -> None:
        greet(connection, ehlo)
        seen.extend(deliver(connection) for _ in range(3))
        connection.hang()

    with RawServer(script) as server:
        provider = provider_of(server)
        for _ in range(3):
            assert provider.send(MAIL) == Accepted(message_id="<1@shop.example>")
        provider.close()
        assert server.connections == 1
    commands = b"MAIL FROM:<from@shop.example>\r\nRCPT TO:<to@customer.example>\r\nDATA\r\n"
    assert seen == [commands + MAIL.content + b".\r\n"] * 3


def test_pipelined_commands_arrive_in_one_write_and_wait_for_no_answer(provider_of) -> None:
    def script(connection: Connection) -> None:
        greet(connection)
        connection.until(b"DATA\r\n")
        connection.say(b"250 ok\r\n250 ok\r\n354 go\r\n")
        connection.until(b"\r\n.\r\n")
        connection.say(b"250-several\r\n250 lines\r\n")
        connection.hang()

    with RawServer(script) as server:
        provider_of(server).send(MAIL)
        provider_of(server).send(MAIL)


@pytest.mark.parametrize("parts", [0, 1], ids=["before the content", "within it"])
def test_a_claim_that_was_lost_on_the_way(parts: int, provider_of) -> None:
    """The process was frozen while it connected or wrote: the server never gets the end, and the session is over."""
    seen: list[bytes] = []
    looks = iter([True] * parts)

    def script(connection: Connection) -> None:
        greet(connection)
        connection.until(b"DATA\r\n")
        connection.say(b"250 ok\r\n250 ok\r\n354 go\r\n")
        while octets := connection.sock.recv(65536):
            seen.append(octets[-5:])

    def once_more() -> bool:
        return next(looks, False)

    with RawServer(script) as server:
        provider = provider_of(server)
        with pytest.raises(TooLate), handed_over_while(once_more):
            provider.send(HUGE)
        assert server.closed.acquire(timeout=20)
    assert b"\r\n.\r\n" not in seen
    assert bool(seen) is bool(parts)


def test_size_is_announced_and_kept(provider_of) -> None:
    seen: list[bytes] = []

    def script(connection: Connection) -> None:
        greet(connection, b"250-test\r\n250-SIZE 1000\r\n250 PIPELINING\r\n")
        seen.append(deliver(connection))
        connection.hang()

    with RawServer(script) as server:
        provider = provider_of(server)
        provider.send(MAIL)
        with pytest.raises(CampaignRejected, match="at most 1000"):
            provider.send(HUGE)
        assert server.connections == 1
    assert seen[0].startswith(b"MAIL FROM:<from@shop.example> SIZE=")


def test_eight_bit_content_needs_a_server_that_takes_it(provider_of) -> None:
    eight_bit = Email(MAIL.envelope_from, MAIL.to, MAIL.message_id, "Subject: x\r\n\r\nनमस्ते\r\n".encode())
    seen: list[bytes] = []

    def modern(connection: Connection) -> None:
        greet(connection, b"250-test\r\n250 8BITMIME\r\n")
        seen.append(deliver(connection))

    with RawServer(modern) as server:
        provider_of(server).send(eight_bit)
    assert b"> BODY=8BITMIME\r\n" in seen[0]  # the server notes it only after it has answered
    with RawServer(answering()) as server, pytest.raises(CampaignRejected, match="7-bit"):
        provider_of(server).send(eight_bit)


@EHLOS
@pytest.mark.parametrize(
    ("replies", "kind", "text"),
    [
        (
            [b"550 5.7.1 not you\r\n", b"503 no\r\n", b"503 no\r\n"],
            CampaignRejected,
            "sender refused: 550 5.7.1 not you",
        ),
        ([b"451 4.3.0 later\r\n", b"503 no\r\n", b"503 no\r\n"], RetryLater, "451 4.3.0 later"),
        ([b"250 ok\r\n", b"550 5.1.1 nobody\r\n", b"554 none\r\n"], RecipientRefused, "550 5.1.1 nobody"),
        ([b"250 ok\r\n", b"552 full\r\n", b"503 none\r\n"], RecipientRefused, "552 full"),
        ([b"250 ok\r\n", b"450 4.2.0 greylisted\r\n", b"503 no\r\n"], RecipientDeferred, "450 4.2.0 greylisted"),
        ([b"250 ok\r\n", b"250 ok\r\n", b"554 no data\r\n"], CampaignRejected, "content refused: 554 no data"),
        ([b"250 ok\r\n", b"250 ok\r\n", b"451 busy\r\n"], RetryLater, "451 busy"),
    ],
)
def test_a_refused_command_has_its_kind_and_the_connection_serves_the_next_message(
    provider_of, ehlo: bytes, replies: list[bytes], kind: type[Exception], text: str
) -> None:
    def script(connection: Connection) -> None:
        greet(connection, ehlo)
        for reply in replies:
            connection.line()
            connection.say(reply)
            if ehlo == PLAIN and not reply.startswith(b"2"):
                break
        assert connection.line() == b"RSET\r\n"
        connection.say(b"250 reset\r\n")
        deliver(connection)
        deliver(connection)
        connection.hang()

    with RawServer(script) as server:
        provider = provider_of(server)
        with pytest.raises(kind) as caught:
            provider.send(MAIL)
        assert type(caught.value) is kind
        assert str(caught.value) == text
        provider.send(MAIL)
        provider.send(MAIL)
        assert server.connections == 1


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"554 5.7.1 spam\r\n", CampaignRejected),
        (b"452 4.3.1 disk full\r\n", RetryLater),
        (b"421 bye\r\n", RetryLater),
    ],
)
def test_the_answer_to_the_content_decides(provider_of, answer: bytes, kind: type[Exception]) -> None:
    def script(connection: Connection) -> None:
        greet(connection)
        deliver(connection, answer)
        if not answer.startswith(b"421"):
            deliver(connection)
            connection.hang()

    with RawServer(
        script, answering(*[b"250 ok\r\n"] * 2, b"354 go\r\n", then=lambda c: c.say(b"250 ok\r\n"))
    ) as server:
        provider = provider_of(server)
        with pytest.raises(kind, match=answer[:3].decode()):
            provider.send(MAIL)
        provider.send(MAIL)
        assert server.connections == (2 if answer.startswith(b"421") else 1)


def test_data_taken_without_a_recipient_is_ended_by_a_lone_dot(provider_of) -> None:
    def script(connection: Connection) -> None:
        greet(connection)
        connection.until(b"DATA\r\n")
        connection.say(b"250 ok\r\n550 5.1.1 nobody\r\n354 go\r\n")
        assert connection.line() == b".\r\n"
        connection.say(b"554 no valid recipients\r\n")
        assert connection.line() == b"RSET\r\n"
        connection.say(b"250 ok\r\n")
        deliver(connection)
        connection.hang()

    with RawServer(script) as server:
        provider = provider_of(server)
        with pytest.raises(RecipientRefused, match=r"550 5\.1\.1 nobody"):
            provider.send(MAIL)
        provider.send(MAIL)


def test_data_taken_with_a_recipient_but_no_sender_is_left_without_a_dot(provider_of) -> None:
    rest: list[bytes] = []

    def script(connection: Connection) -> None:
        greet(connection)
        connection.until(b"DATA\r\n")
        connection.say(b"550 no\r\n250 ok\r\n354 go\r\n")
        rest.append(connection.sock.recv(100))

    with RawServer(script) as server, pytest.raises(CampaignRejected):
        provider_of(server).send(MAIL)
    assert rest == [b""]


# A break before the last octet of the content is RetryLater, after it Unconfirmed.


def after_354(end: Callable[[Connection], object]) -> Script:
    return answering(b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n", then=end)


def half_then(end: Callable[[Connection], object]) -> Callable[[Connection], None]:
    def script(connection: Connection) -> None:
        connection.exactly(100_000)
        end(connection)

    return script


def dot_then(end: Callable[[Connection], object]) -> Callable[[Connection], None]:
    def script(connection: Connection) -> None:
        connection.until(b"\r\n.\r\n")
        end(connection)

    return script


def leave(_: Connection) -> None:
    """Ends the script, and with it the connection."""


@pytest.mark.parametrize("end", [leave, Connection.reset, Connection.hang], ids=["close", "reset", "hang"])
@pytest.mark.parametrize(
    "before",
    [
        lambda end: end,
        lambda end: answering(then=end),
        lambda end: answering(b"250 ok\r\n", then=end),
        lambda end: answering(b"250 ok\r\n", b"250 ok\r\n", then=end),
        lambda end: answering(b"250 ok\r\n", ehlo=PLAIN, then=end),
        lambda end: answering(b"rubbish\r\n", then=end),
        lambda end: answering(b"250 ok\r\n", b"rubbish\r\n", then=end),
        lambda end: answering(b"421 too many\r\n", then=end),
    ],
    ids=["greeting", "MAIL", "RCPT", "DATA", "RCPT step by step", "rubbish", "later rubbish", "421"],
)
def test_a_connection_lost_before_the_content_is_retry_later(provider_of, before, end) -> None:
    with RawServer(before(end)) as server, pytest.raises(RetryLater):
        provider_of(server, timeout_seconds=0.3).send(MAIL)


@pytest.mark.parametrize("end", [leave, Connection.reset], ids=["close", "reset"])
def test_a_connection_lost_in_the_content_is_retry_later(provider_of, end) -> None:
    with RawServer(after_354(half_then(end))) as server, pytest.raises(RetryLater, match="before the end"):
        provider_of(server).send(HUGE)


def test_a_server_that_stops_reading_in_the_content_is_retry_later(provider_of) -> None:
    release = threading.Event()
    script = after_354(half_then(lambda connection: connection.hang_unread(release)))
    with RawServer(script) as server:
        with pytest.raises(RetryLater, match="stopped reading"):
            provider_of(server, timeout_seconds=1.0).send(HUGE)
        release.set()


def test_a_server_that_refuses_in_the_middle_of_the_content_is_heard(provider_of) -> None:
    def refuse(connection: Connection) -> None:
        connection.say(b"552 5.3.4 too big\r\n")

    with RawServer(after_354(half_then(refuse))) as server, pytest.raises(CampaignRejected, match="too big"):
        provider_of(server).send(HUGE)


@pytest.mark.parametrize(
    "end",
    [
        leave,
        Connection.reset,
        Connection.hang,
        lambda connection: connection.say(b"25"),
        lambda connection: connection.say(b"rubbish\r\n"),
        lambda connection: connection.say(b"250-and then\r\n"),
        lambda connection: connection.say(b"354 again\r\n"),
    ],
    ids=["close", "reset", "hang", "half a reply", "rubbish", "half a long reply", "senseless"],
)
def test_no_answer_after_the_final_dot_is_unconfirmed_and_not_repeated(provider_of, end) -> None:
    with RawServer(after_354(dot_then(end))) as server:
        provider = provider_of(server, timeout_seconds=2.0, answer_timeout_seconds=2.0)
        with pytest.raises(Unconfirmed):
            provider.send(MAIL)
        assert server.connections == 1


def test_the_answer_to_the_content_may_take_longer_than_other_replies(provider_of) -> None:
    answer = threading.Event()

    def slowly(connection: Connection) -> None:
        connection.until(b"\r\n.\r\n")
        answer.wait(2.5)
        connection.say(b"250 scanned\r\n")
        connection.hang()

    with RawServer(after_354(slowly)) as server:
        provider_of(server, timeout_seconds=1.5, answer_timeout_seconds=60).send(MAIL)


# Kept connections.


@pytest.mark.parametrize(
    "goodbye",
    [
        leave,
        Connection.reset,
        lambda connection: connection.say(b"421 idle too long\r\n"),
        lambda connection: (connection.line(), connection.say(b"421 enough messages\r\n")),
    ],
    ids=["close", "reset", "421 unasked", "421 as answer"],
)
def test_a_connection_closed_while_idle_is_replaced(provider_of, goodbye) -> None:
    def first(connection: Connection) -> None:
        greet(connection)
        deliver(connection)
        goodbye(connection)

    def second(connection: Connection) -> None:
        greet(connection)
        deliver(connection)
        connection.hang()

    with RawServer(first, second) as server:
        provider = provider_of(server)
        provider.send(MAIL)
        server.closed.acquire(timeout=0.2)
        provider.send(MAIL)
        assert server.connections == 2


def test_a_server_that_always_leaves_is_tried_once_more_and_then_later(provider_of) -> None:
    def first(connection: Connection) -> None:
        greet(connection)
        deliver(connection)

    with RawServer(first, answering(b"421 go away\r\n", then=leave)) as server:
        provider = provider_of(server)
        provider.send(MAIL)
        with pytest.raises(RetryLater, match="421 go away"):
            provider.send(MAIL)
        assert server.connections == 2


def test_octets_after_an_answer_are_not_taken_for_the_next_answer(provider_of) -> None:
    def chatty(connection: Connection) -> None:
        greet(connection)
        deliver(connection, b"250 ok\r\n250 and more\r\n")
        connection.hang()

    with RawServer(chatty) as server:
        provider = provider_of(server)
        provider.send(MAIL)
        provider.send(MAIL)
        assert server.connections == 2


def test_many_threads_share_no_connection_at_the_same_time(provider_of) -> None:
    recipients: list[bytes] = []

    def script(connection: Connection) -> None:
        greet(connection)
        while True:
            recipients.append(deliver(connection).split(b"\r\n")[1])

    with RawServer(script) as server:
        provider = provider_of(server)
        mails = [Email(MAIL.envelope_from, f"n{n}@x.example", "<1@x>", MAIL.content) for n in range(400)]
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(provider.send, mails))
        provider.close()
        assert server.connections <= 8
    assert sorted(recipients) == sorted(b"RCPT TO:<n%d@x.example>" % n for n in range(400))


@pytest.mark.parametrize(
    ("point", "kind"),
    [(answering, RetryLater), (lambda then: after_354(dot_then(then)), Unconfirmed)],
    ids=["before the content", "after the dot"],
)
def test_close_ends_a_send_that_is_under_way(provider_of, point, kind: type[Exception]) -> None:
    reached = threading.Event()

    def wait(connection: Connection) -> None:
        reached.set()
        connection.hang()

    with RawServer(point(then=wait)) as server, ThreadPoolExecutor(1) as threads:
        provider = provider_of(server)
        sending = threads.submit(provider.send, MAIL)
        assert reached.wait(10)
        provider.close()
        with pytest.raises(kind):
            sending.result(10)
        with pytest.raises(RetryLater):
            provider.send(MAIL)


# Connecting: protection and login.


def test_nobody_listening_is_retry_later(provider_of) -> None:
    with RawServer(leave) as server:
        provider = provider_of(server)
    with pytest.raises(RetryLater, match="no connection"):
        provider.send(MAIL)


@pytest.mark.parametrize(
    ("greeting", "kind"),
    [(b"554 blocked\r\n", AccountRejected), (b"421 later\r\n", RetryLater), (b"what?\r\n", RetryLater)],
)
def test_a_greeting_that_refuses(provider_of, greeting: bytes, kind: type[Exception]) -> None:
    with RawServer(lambda connection: connection.say(greeting)) as server, pytest.raises(kind):
        provider_of(server).send(MAIL)


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (b"535 5.7.8 no: %b\r\n", AccountRejected),
        (b"501 bad: %b\r\n", AccountRejected),
        (b"454 later: %b\r\n", RetryLater),
    ],
)
def test_a_refused_login_stops_the_account_and_shows_no_password(provider_of, reply: bytes, kind) -> None:
    def script(connection: Connection) -> None:
        greet(connection, b"250-test\r\n250 AUTH PLAIN\r\n")
        argument = connection.line().split()[-1]
        connection.say(reply % (argument + b" hunter2"))

    with RawServer(script) as server:
        provider = provider_of(server, prefix="smtp://me:hunter2@")
        with pytest.raises(kind) as caught:
            provider.send(MAIL)
    assert str(caught.value).endswith("*** ***")
    assert "hunter2" not in repr(caught.value) + repr(provider) + repr(caught.value.__cause__)


def test_a_server_without_login_stops_the_account(provider_of) -> None:
    with RawServer(answering()) as server, pytest.raises(AccountRejected, match="AUTH"):
        provider_of(server, prefix="smtp://me:hunter2@").send(MAIL)


def secured(context: ssl.SSLContext, prefix: str, end: Callable[[Connection], object]) -> Script:
    """A server with STARTTLS or implicit TLS that accepts DATA and then does ``end``."""

    def script(connection: Connection) -> None:
        if prefix == "smtp://":
            greet(connection, b"250-test\r\n250 STARTTLS\r\n")
            assert connection.line() == b"STARTTLS\r\n"
            connection.say(b"220 go\r\n")
            connection.start_tls(context)
            assert connection.line().startswith(b"ehlo ")
            connection.say(PIPELINING)
        else:
            connection.start_tls(context)
            greet(connection)
        connection.until(b"DATA\r\n")
        connection.say(b"250 ok\r\n250 ok\r\n354 go\r\n")
        end(connection)

    return script


@pytest.mark.parametrize("prefix", ["smtp://", "smtps://"])
def test_the_border_is_the_same_inside_tls(provider_of, authority, prefix: str) -> None:
    context, ca_file = authority
    accept = dot_then(lambda connection: (connection.say(b"250 ok\r\n"), connection.hang()))
    with RawServer(secured(context, prefix, accept)) as server:
        provider_of(server, prefix, ca_file).send(MAIL)
    with RawServer(secured(context, prefix, dot_then(Connection.reset))) as server, pytest.raises(Unconfirmed):
        provider_of(server, prefix, ca_file).send(MAIL)
    with RawServer(secured(context, prefix, dot_then(Connection.hang))) as server, pytest.raises(Unconfirmed):
        provider_of(server, prefix, ca_file, timeout_seconds=2.0, answer_timeout_seconds=2.0).send(MAIL)
    with RawServer(secured(context, prefix, half_then(Connection.reset))) as server, pytest.raises(RetryLater):
        provider_of(server, prefix, ca_file).send(HUGE)


@pytest.mark.parametrize("prefix", ["smtp://", "smtps://"])
def test_a_certificate_of_an_unknown_authority_stops_the_account(provider_of, authority, prefix, tmp_path) -> None:
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    with RawServer(secured(authority[0], prefix, leave)) as server:
        provider = provider_of(server, prefix, f"?ca_file={tmp_path / 'other.pem'}")
        with pytest.raises(AccountRejected, match="certificate is not valid"):
            provider.send(MAIL)


def test_without_starttls_nothing_goes_out_in_clear(provider_of, authority) -> None:
    with RawServer(answering(then=lambda connection: rest.append(connection.sock.recv(100)))) as server:
        rest: list[bytes] = []
        with pytest.raises(AccountRejected, match="STARTTLS"):
            provider_of(server, "smtp://me:hunter2@", authority[1]).send(MAIL)
    assert rest == [b""]


def test_tls_to_a_port_without_it_stops_the_account(provider_of, authority) -> None:
    def clear(connection: Connection) -> None:
        connection.say(b"220 hello\r\n")
        connection.hang()

    with RawServer(clear) as server, pytest.raises(AccountRejected, match="TLS"):
        provider_of(server, "smtps://", authority[1]).send(MAIL)


# Addresses that are sent to the server, and texts that come from it.


@pytest.mark.parametrize("address", ["", "a b@x", "a@x>\r\nRSET", "a@x\n", "a@x> SIZE=1", "अ@x", "a@" + "x" * 300])
def test_an_address_cannot_change_the_dialogue(provider_of, address: str) -> None:
    with RawServer(leave) as server:
        provider = provider_of(server)
        with pytest.raises(RecipientRefused):
            provider.send(Email(MAIL.envelope_from, address, "<1@x>", MAIL.content))
        with pytest.raises(CampaignRejected):
            provider.send(Email(address, MAIL.to, "<1@x>", MAIL.content))
        assert server.connections == 0


def test_a_servers_text_is_printable_and_short(provider_of) -> None:
    reply = b"550-\x1b[31mred\x00\r\n550 " + b"long " * 500 + b"\xff\r\n"
    script = answering(b"250 ok\r\n", reply, b"503 no\r\n")
    with RawServer(script) as server, pytest.raises(RecipientRefused) as caught:
        provider_of(server).send(MAIL)
    text = str(caught.value)
    assert text.startswith("550 [31mred long long")
    assert text.isprintable()
    assert len(text) <= 300


def drip(connection: Connection, octets: bytes) -> None:
    """One octet every 50 ms, and then the last one again and again."""
    for octet in itertools.chain(octets, itertools.repeat(octets[-1])):
        connection.say(bytes([octet]))
        time.sleep(0.05)


def dripping_greeting(connection: Connection) -> None:
    drip(connection, b"220 " + b"x" * 100)


def dripping_ehlo(connection: Connection) -> None:
    connection.say(b"220 test\r\n")
    connection.line()
    drip(connection, b"250-" + b"x" * 100)


def dripping_login(connection: Connection) -> None:
    greet(connection, b"250-test\r\n250 AUTH PLAIN\r\n")
    connection.line()
    drip(connection, b"235 " + b"x" * 100)


@pytest.mark.parametrize("script", [dripping_greeting, dripping_ehlo, dripping_login])
def test_a_session_that_drips_ends_at_its_deadline(provider_of, script: Script, monkeypatch) -> None:
    """Every reply has its time-out; opening the session has a deadline in all."""
    monkeypatch.setattr("worker.providers.smtp_session.SESSION_SECONDS", 0.6)
    with RawServer(script) as server, pytest.raises(RetryLater, match=r"took longer than 0\.6 seconds in all"):
        provider_of(server, "smtp://user:password@").send(MAIL)


def test_a_tls_handshake_that_drips_ends_at_its_deadline(provider_of, monkeypatch) -> None:
    monkeypatch.setattr("worker.providers.smtp_session.SESSION_SECONDS", 0.6)
    script = partial(drip, octets=b"\x16\x03\x03\x40\x00\x02")
    with RawServer(script) as server, pytest.raises(RetryLater, match=r"took longer than 0\.6 seconds in all"):
        provider_of(server, "smtps://").send(MAIL)


@pytest.mark.parametrize("before", [b"", b"220 test\r\n"], ids=["greeting", "ehlo"])
def test_a_reply_without_an_end_is_cut_off_by_its_size(provider_of, before: bytes) -> None:
    """smtplib would keep all lines of a reply in memory."""

    def flood(connection: Connection) -> None:
        connection.say(before)
        code = b"250-" if before else b"220-"
        while True:
            connection.say(code + b"x" * 1000 + b"\r\n")

    with RawServer(flood) as server, pytest.raises(RetryLater, match="replies are longer than 65536 octets"):
        provider_of(server).send(MAIL)


@EHLOS
def test_a_reply_that_drips_ends_at_the_deadline_of_the_message(provider_of, ehlo: bytes, monkeypatch) -> None:
    """Before the content: not handed over, and not repeated on another connection at once."""
    monkeypatch.setattr("worker.providers.smtp_wire.EXCHANGE_SECONDS", 0.6)
    script = answering(ehlo=ehlo, then=partial(drip, octets=b"250 " + b"x" * 100))
    with RawServer(script) as server:
        with pytest.raises(RetryLater, match=r"not handed over: the exchange took longer than"):
            provider_of(server).send(MAIL)
        assert server.connections == 1


def test_an_answer_to_the_content_that_drips_is_unconfirmed(provider_of, monkeypatch) -> None:
    monkeypatch.setattr("worker.providers.smtp_wire.EXCHANGE_SECONDS", 0.6)

    def script(connection: Connection) -> None:
        greet(connection)
        deliver(connection, b"250")
        drip(connection, b" " + b"x" * 100)

    with RawServer(script) as server, pytest.raises(Unconfirmed, match=r"no answer came: the exchange took longer"):
        provider_of(server).send(MAIL)


def test_a_server_that_reads_slowly_ends_at_the_deadline(provider_of, monkeypatch) -> None:
    """It takes a few octets at a time: the end of the message was not handed over."""
    monkeypatch.setattr("worker.providers.smtp_wire.EXCHANGE_SECONDS", 0.6)
    monkeypatch.setattr("worker.providers.smtp_wire.SLOWEST_OCTETS_A_SECOND", 10**12)

    def sip(connection: Connection) -> None:
        for _ in range(40):  # what the kernel has taken would keep it busy for hours
            connection.sock.recv(100)
            time.sleep(0.05)

    script = answering(b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n", then=sip)
    with RawServer(script) as server, pytest.raises(RetryLater, match="not handed over: the exchange took longer"):
        provider_of(server).send(HUGE)


@pytest.mark.parametrize("mechanisms", [b"XOAUTH2", b"GSSAPI NTLM", b"EXTERNAL"])
def test_a_server_whose_mechanisms_need_no_password_stops_the_account(provider_of, mechanisms: bytes) -> None:
    """Waiting does not help: SMTP_URL's user and password fit none of them."""

    def script(connection: Connection) -> None:
        greet(connection, b"250-test\r\n250 AUTH " + mechanisms + b"\r\n")
        connection.hang()

    with RawServer(script) as server, pytest.raises(AccountRejected, match="no login with a user and a password"):
        provider_of(server, "smtp://user:password@").send(MAIL)


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (b"550 5.1.1 user unknown", RecipientRefused),
        (b"550 5.2.2 mailbox full", RecipientRefused),
        (b"552 5.2.3 message too large for this mailbox", RecipientRefused),
        (b"550 5.1.8 sender address has a null MX", CampaignRejected),
        (b"554 5.7.1 message refused as spam", CampaignRejected),
        (b"550 spam", CampaignRejected),
        (b"550 #5.1.0 Address rejected", RecipientRefused),
        (b"550 <asha@x.example>: (5.1.1) no mailbox here", RecipientRefused),
        (b"550-Sorry\r\n550 5.1.1. user unknown", RecipientRefused),
        (b"550 user unknown", RecipientRefused),
        (b"550 No such user here", RecipientRefused),
        (b"552 The mailbox of the recipient is full", RecipientRefused),
        (b"452 mailbox full", RecipientDeferred),
        (b"554 10.5.1.1 is on a list", CampaignRejected),
        (b"550 5.7.1 recipient unknown to our policy", CampaignRejected),
        (b"550 5.4.5 daily sending quota exceeded", AccountRejected),
        (b"530 5.7.0 authentication required", AccountRejected),
        (b"452 4.2.2 mailbox full", RecipientDeferred),
        (b"451 4.3.0 try again", RetryLater),
    ],
)
def test_an_answer_to_the_content_may_concern_the_recipient(provider_of, reply: bytes, kind: type) -> None:
    """Some servers look at the recipient only after the content; the enhanced code says so."""

    def script(connection: Connection) -> None:
        greet(connection)
        deliver(connection, reply + b"\r\n")
        deliver(connection)

    with RawServer(script) as server:
        provider = provider_of(server)
        with pytest.raises(SendError) as caught:
            provider.send(MAIL)
        assert type(caught.value) is kind
        assert provider.send(MAIL) == Accepted(MAIL.message_id)
        assert server.connections == 1


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (b"450 4.2.0 Greylisted, please try again in 300 seconds", RecipientDeferred),
        (b"451 4.7.1 Greylisting in action", RecipientDeferred),
        (b"450 4.1.1 mailbox unavailable", RecipientDeferred),
        (b"452 4.2.2 over quota", RecipientDeferred),
        (b"450 try later", RecipientDeferred),
        (b"450 4.7.1 too many messages from your account", RetryLater),
        (b"450 4.7.0 sending rate exceeded", RetryLater),
        (b"451 4.7.650 The mail server has been temporarily rate limited", RetryLater),
        (b"452 too many recipients this hour", RetryLater),
        (b"451 4.3.2 system not accepting messages", RetryLater),
        (b"550 5.1.8 bad sender", CampaignRejected),
        (b"530 5.7.57 client not authenticated", AccountRejected),
        (b"535 authentication required", AccountRejected),
        (b"550 5.4.5 daily user sending limit exceeded", AccountRejected),
        (b"450 #4.7.1 too many messages", RetryLater),
        (b"550 5.7.1 relaying denied", RecipientRefused),
    ],
)
def test_a_refused_recipient_may_mean_the_whole_account(provider_of, reply: bytes, kind: type) -> None:
    with RawServer(answering(b"250 ok\r\n", reply + b"\r\n", ehlo=PLAIN)) as server:
        with pytest.raises(SendError) as caught:
            provider_of(server).send(MAIL)
        assert type(caught.value) is kind


TOO_MANY = b"421 4.7.0 Too many concurrent connections\r\n"


class LimitedServer(RawServer):
    """Accepts so many connections at the same time; others are refused, as a greeting or at their first command."""

    def __init__(self, limit: int, *, greets_first: bool, refusal: bytes = TOO_MANY) -> None:
        super().__init__(self._serve)
        self.limit = limit
        self._greets_first = greets_first
        self._refusal = refusal
        self._guard = threading.Lock()
        self._open = 0
        self.most = 0
        self.delivered = 0

    def _serve(self, connection: Connection) -> None:
        with self._guard:
            accepted = self._open < self.limit
            self._open += accepted
            self.most = max(self.most, self._open)
        if not accepted:
            if self._greets_first:
                greet(connection)
                connection.line()
            if self._refusal:
                connection.say(self._refusal)
            return
        try:
            greet(connection)
            while True:
                deliver(connection, b"")
                time.sleep(0.005)
                with self._guard:
                    self.delivered += 1
                connection.say(b"250 queued\r\n")
        finally:
            with self._guard:
                self._open -= 1


@pytest.mark.parametrize(
    ("greets_first", "refusal"),
    [
        (False, TOO_MANY),
        (True, TOO_MANY),
        (False, b"450 4.7.0 too many connections from your address\r\n"),
        (True, b"450 4.7.0 connection limit exceeded\r\n"),
        (False, b"554 5.7.1 too many sessions\r\n"),
        (False, b""),
    ],
    ids=["greeting", "first command", "450", "450 to a command", "554", "closed without a word"],
)
def test_a_server_that_allows_two_connections_gets_two(provider_of, greets_first: bool, refusal: bytes) -> None:
    """Eight threads share them; no message fails, and none is sent twice."""
    with LimitedServer(2, greets_first=greets_first, refusal=refusal) as server:
        provider = provider_of(server)
        assert provider.send(MAIL)  # one works, so that a refusal is known to be for the number
        with ThreadPoolExecutor(8) as threads:
            results = list(threads.map(lambda _: provider.send(MAIL), range(100)))
        assert results == [Accepted(MAIL.message_id)] * 100
        assert (server.delivered, server.most) == (101, 2)
        assert server.connections < 20, "a refusal keeps it from trying again at once"


def test_a_limit_that_is_gone_is_noticed(provider_of, monkeypatch) -> None:
    """After a while one more connection is tried."""
    monkeypatch.setattr("worker.providers.learned_limit.LIMIT_SECONDS", 0.05)
    with LimitedServer(1, greets_first=False) as server:
        provider = provider_of(server)
        with ThreadPoolExecutor(4) as threads:
            assert len(list(threads.map(lambda _: provider.send(MAIL), range(20)))) == 20
            assert server.most == 1
            server.limit = 4
            until = time.monotonic() + 30.0
            while server.most < 2 and time.monotonic() < until:
                list(threads.map(lambda _: provider.send(MAIL), range(20)))
        assert server.most >= 2


def test_a_server_that_refuses_every_connection_is_retry_later(provider_of) -> None:
    """There is no other connection to wait for."""
    with LimitedServer(0, greets_first=False) as server, pytest.raises(RetryLater, match="Too many concurrent"):
        provider_of(server).send(MAIL)
