"""What each reply of a mail server means for its recipient, the suppression list and the campaign: one row a reply.

The texts have the shapes of those of Gmail, Outlook, Yahoo, Postfix and Exim; the codes are RFC 3463's.
"""

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from raw_server import Connection, RawServer
from smtp_scripts import MAIL, PIPELINING, PLAIN, deliver, greet

from worker.errors import (
    AccountRejected,
    CampaignRejected,
    RecipientDeferred,
    RecipientRefused,
    RetryLater,
    SendError,
)
from worker.messages import Accepted
from worker.providers.smtp_refusals import Step, refusal

DAYS_30 = 30 * 86_400.0
MAIL_FROM, RCPT_TO, CONTENT = "mail", "rcpt", "content"


@dataclass(frozen=True)
class Row:
    """A reply, and what has to come of it. ``advice``: a word of what an operator is told to do."""

    reply: str
    kind: type[SendError]
    code: str
    suppress_seconds: float = 0.0
    advice: str = ""
    at: tuple[str, ...] = (RCPT_TO, CONTENT)

    @property
    def octets(self) -> bytes:
        return self.reply.encode() + b"\r\n"


def gone(reply: str, code: str, at: tuple[str, ...] = (RCPT_TO, CONTENT)) -> Row:
    """There is no such address: it is suppressed for ever."""
    return Row(reply, RecipientRefused, code, math.inf, at=at)


def refused(reply: str, code: str, *at: str) -> Row:
    """The recipient fails; many in a row are the sender's fault."""
    return Row(reply, RecipientRefused, code, at=at or (RCPT_TO, CONTENT))


def senders(reply: str, code: str, advice: str, *at: str) -> Row:
    """The campaign fails; its recipients stay pending."""
    return Row(reply, CampaignRejected, code, advice=advice, at=at or (MAIL_FROM, RCPT_TO, CONTENT))


TABLE = [
    gone(
        "550-5.1.1 The email account that you tried to reach does not exist.\r\n550 5.1.1 q1-20 - gsmtp", "550 5.1.1"
    ),
    gone(
        "550 5.1.1 <asha@a.example>: Recipient address rejected: User unknown in virtual mailbox table", "550 5.1.1"
    ),
    gone("550 5.1.2 Host unknown", "550 5.1.2"),
    gone("501 5.1.3 Bad recipient address syntax", "501 5.1.3"),
    gone("551 5.1.6 Recipient no longer on server", "551 5.1.6"),
    gone(
        "550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient asha@a.example not found by SMTP lookup", "550 5.1.10"
    ),
    gone("550 5.4.1 Recipient address rejected: Access denied. [PN2IND01.prod.outlook.example]", "550 5.4.1"),
    Row("550 5.2.1 The email account that you tried to reach is inactive.", RecipientRefused, "550 5.2.1", DAYS_30),
    Row("550 5.2.1 This mailbox has been disabled", RecipientRefused, "550 5.2.1", DAYS_30),
    refused("552 5.2.2 The recipient's inbox is out of storage space", "552 5.2.2"),
    refused("552-5.2.3 too large for this mailbox\r\n552 5.2.3 see the help", "552 5.2.3"),
    refused("550 5.1.0 Address rejected", "550 5.1.0"),
    refused("550 no mailbox by that name is currently available", "550", RCPT_TO),
    refused("554 delivery error: dd This user doesn't have a yahoo.example account", "554", RCPT_TO),
    refused("550 5.7.1 <asha@a.example>: Relay access denied", "550 5.7.1", RCPT_TO),
    refused("553 5.7.1 Sender address rejected: not owned by user crm", "553 5.7.1", RCPT_TO),
    refused("550 5.4.1 All recipient hosts are down", "550 5.4.1", RCPT_TO),
    senders("553 5.1.7 The address of the sender is not valid", "553 5.1.7", "fromEmail"),
    senders("550 5.1.8 Access denied, bad outbound sender", "550 5.1.8", "fromEmail"),
    senders("552 5.3.4 Message size exceeds fixed limit", "552 5.3.4", "smaller"),
    senders("550-5.7.25 The IP address has no PTR record\r\n550 5.7.25 gsmtp", "550 5.7.25", "PTR"),
    senders("550 5.7.26 This mail has been blocked because the sender is unauthenticated", "550 5.7.26", "SPF"),
    senders("550 5.7.27 SPF did not pass for the domain", "550 5.7.27", "SPF"),
    senders("550 5.7.28 an unusual rate of unsolicited mail", "550 5.7.28", "unwanted"),
    senders("550 5.7.29 this message was not sent over TLS", "550 5.7.29", "DKIM"),
    senders("550 5.7.30 DKIM did not pass", "550 5.7.30", "DKIM"),
    senders("550 5.7.515 Access denied, sending domain shop.example does not pass DMARC", "550 5.7.515", "DMARC"),
    senders("550 5.7.1 Sender refused", "550 5.7.1", "DKIM", MAIL_FROM),
    senders("550 5.1.1 no such sender", "550 5.1.1", "fromEmail", MAIL_FROM),
    senders("550 who are you", "550", "fromEmail", MAIL_FROM),
    senders("554 Message not allowed - [PH01] Email not accepted for policy reasons", "554", "content", CONTENT),
    senders("550-5.7.1 likely unsolicited mail\r\n550 5.7.1 message blocked", "550 5.7.1", "DKIM", CONTENT),
    senders("554 5.6.0 malformed", "554 5.6.0", "content", CONTENT),
    Row(
        "550 5.4.5 Daily user sending limit exceeded", AccountRejected, "550 5.4.5", at=(MAIL_FROM, RCPT_TO, CONTENT)
    ),
    Row("530 5.7.0 Authentication Required", AccountRejected, "530 5.7.0", at=(MAIL_FROM, RCPT_TO)),
    Row("451 4.7.500 Server busy, too many messages", RetryLater, "451 4.7.500", at=(MAIL_FROM, RCPT_TO, CONTENT)),
    Row("454 4.7.1 <asha@a.example>: Relay access denied", RetryLater, "454 4.7.1"),
    Row("450 4.7.25 Client host rejected: cannot find your hostname, [203.0.113.10]", RetryLater, "450 4.7.25"),
    Row("450 4.7.1 Client host rejected: cannot find your reverse hostname", RetryLater, "450 4.7.1"),
    Row("451 4.7.24 SPF could not be checked", RetryLater, "451 4.7.24"),
    Row("451 4.7.500 Server busy. Please try again later from [203.0.113.10].", RetryLater, "451 4.7.500"),
    Row("450-4.2.1 is receiving mail at a rate\r\n450 4.2.1 gsmtp", RecipientDeferred, "450 4.2.1"),
    Row("452 4.2.2 The email account is over quota", RecipientDeferred, "452 4.2.2"),
    Row("451 4.7.1 Greylisting in action, please come back later", RecipientDeferred, "451 4.7.1"),
    Row("450 4.7.1 <asha@a.example>: not known yet, try later", RecipientDeferred, "450 4.7.1", at=(RCPT_TO,)),
    Row("450 4.2.0 <asha@a.example>: Recipient address rejected: Greylisted", RecipientDeferred, "450 4.2.0"),
    Row("451 4.7.0 [TSS04] Messages temporarily deferred: user complaints, rate", RetryLater, "451 4.7.0"),
]
CASES = [(row, step) for row in TABLE for step in row.at]


ACCOUNTS = [
    ("450 4.7.1 Error: too much mail from 192.0.2.1", 15.0),
    ("454 Throttling failure: Maximum sending rate exceeded.", 15.0),
    ("451 4.7.500 Server busy, too many messages", 15.0),
    ("421 4.3.2 Service shutting down", 15.0),
    ("451 4.7.0 [TSS04] Messages temporarily deferred: user complaints, rate", 15.0),
    ("450 4.7.1 Client host rejected: cannot find your reverse hostname", None),
    ("451 4.3.0 queue file write error", None),
    ("450 4.7.1 Error: too much mail from <asha@shop.example>", None),
    ("451 4.7.1 Sender rate limit exceeded", None),
    ("432 4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded", None),
    ("421 4.7.0 Too many concurrent connections", None),
    ("450 4.2.1 is receiving mail at a rate", None),
    ("452 4.2.2 The email account is over quota", None),
    ("451 4.7.1 Greylisting in action, please come back later", None),
]


@pytest.mark.parametrize(("reply", "seconds"), ACCOUNTS, ids=[reply for reply, _ in ACCOUNTS])
def test_what_a_whole_account_waits_for(reply: str, seconds: float | None) -> None:
    """Replies about all that is sent; neither one recipient's nor one sender's, nor one about connections."""
    error = refusal(Step.RECIPIENT, int(reply[:3]), reply[4:], reply)
    assert isinstance(error, RetryLater)
    assert error.account_seconds == seconds
    assert error.delay_seconds is None


def refuse(connection: Connection, row: Row, step: str) -> None:
    """One transaction that the server ends at this step."""
    replies = {MAIL_FROM: [row.octets], RCPT_TO: [b"250 ok\r\n", row.octets]}.get(step)
    if replies is None:
        deliver(connection, row.octets)
        return
    for reply in replies:
        connection.line()
        connection.say(reply)


@pytest.mark.parametrize(
    ("row", "step"), CASES, ids=[f"{row.code} at {step}: {row.reply[:30]}" for row, step in CASES]
)
def test_every_row(provider_of, row: Row, step: str) -> None:
    """The reply's kind, code, suppression and advice; and the connection serves the next message."""

    def script(connection: Connection) -> None:
        greet(connection, PLAIN)
        refuse(connection, row, step)
        if step != CONTENT:
            assert connection.line() == b"RSET\r\n"
            connection.say(b"250 ok\r\n")
        deliver(connection)
        connection.hang()

    with RawServer(script) as server:
        provider = provider_of(server)
        with pytest.raises(SendError) as caught:
            provider.send(MAIL)
        error = caught.value
        assert (type(error), error.code) == (row.kind, row.code)
        if isinstance(error, RecipientRefused):
            assert error.suppress_seconds == row.suppress_seconds
            assert error.address_fault == (row.suppress_seconds > 0)
        if isinstance(error, CampaignRejected):
            assert row.advice in error.advice
        assert provider.send(MAIL) == Accepted(MAIL.message_id)
        assert server.connections == 1


@pytest.mark.parametrize("step", [RCPT_TO, CONTENT])
@pytest.mark.parametrize("ehlo", [PIPELINING, PLAIN], ids=["pipelining", "step by step"])
def test_a_connection_that_is_one_too_many_at_any_command(provider_of, step: str, ehlo: bytes) -> None:
    """While another connection works, its message is sent over that one: none is deferred, none is sent twice."""
    limit = Row("450 4.7.1 too many concurrent connections", RetryLater, "450 4.7.1")
    said = threading.Event()
    delivered: list[bytes] = []

    def works(connection: Connection) -> None:
        greet(connection, ehlo)
        for number in range(3):
            delivered.append(deliver(connection, b""))
            if number:  # meanwhile the other message needs a connection of its own
                assert said.wait(20)
            connection.say(b"250 queued\r\n")
        connection.hang()

    def is_too_many(connection: Connection) -> None:
        greet(connection, ehlo)
        if step == CONTENT:
            deliver(connection, limit.octets)
        else:
            for reply in (b"250 ok\r\n", limit.octets, b"503 no\r\n")[: 3 if ehlo is PIPELINING else 2]:
                connection.line()
                connection.say(reply)
        said.set()

    with RawServer(works, is_too_many) as server:
        provider = provider_of(server)
        provider.send(MAIL)
        with ThreadPoolExecutor(2) as threads:
            assert list(threads.map(lambda _: provider.send(MAIL), range(2))) == [Accepted(MAIL.message_id)] * 2
        assert (len(delivered), server.connections) == (3, 2)
