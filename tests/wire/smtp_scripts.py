"""What an SMTP server says and hears, for the raw server."""

from collections.abc import Callable

from raw_server import Connection, Script

from worker.messages import Email

MAIL = Email("from@shop.example", "to@customer.example", "<1@shop.example>", b"Subject: Hi\r\n\r\nHello\r\n")
# Larger than the kernel's buffers on both sides: its end is not sent unless the server reads.
HUGE = Email(MAIL.envelope_from, MAIL.to, MAIL.message_id, b"Subject: Hi\r\n\r\n" + b"x" * 998 * 30_000 + b"\r\n")
PIPELINING, PLAIN = b"250-test\r\n250 PIPELINING\r\n", b"250 test\r\n"


def greet(connection: Connection, ehlo: bytes = PIPELINING) -> None:
    connection.say(b"220 test\r\n")
    assert connection.line().startswith(b"ehlo ")
    connection.say(ehlo)


def deliver(connection: Connection, answer: bytes = b"250 queued\r\n") -> bytes:
    """One whole transaction; returns commands and content as they came."""
    seen = b""
    for reply in (b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n"):
        seen += connection.line()
        connection.say(reply)
    seen += connection.until(b"\r\n.\r\n")
    connection.say(answer)
    return seen


def answering(
    *replies: bytes, ehlo: bytes = PIPELINING, then: Callable[[Connection], object] | None = None
) -> Script:
    """A server that gives one reply a command line, then does ``then`` (else it waits)."""

    def script(connection: Connection) -> None:
        greet(connection, ehlo)
        for reply in replies:
            connection.line()
            connection.say(reply)
        (then or Connection.hang)(connection)

    return script
