"""The mailbox of delivery reports against servers that do not keep to IMAP: no time and no memory without limit."""

import itertools
import time
import tracemalloc
from collections.abc import Iterator

import pytest
from raw_server import Connection, RawServer, Script

from worker.errors import ServerUnavailable, WorkerError
from worker.providers.imap import Mailbox, MailboxError
from worker.providers.imap_url import parse_imap_url

EXCHANGE_SECONDS = 1.0
PATIENCE_SECONDS = 15.0  # the servers go on for 20


@pytest.fixture(autouse=True)
def _took_no_longer_than_it_may(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("worker.providers.imap.SESSION_SECONDS", EXCHANGE_SECONDS)
    monkeypatch.setattr("worker.providers.imap.EXCHANGE_SECONDS", EXCHANGE_SECONDS)
    began = time.monotonic()
    yield
    assert time.monotonic() - began < PATIENCE_SECONDS


def drip(connection: Connection, octets: bytes) -> None:
    """Each read ends in time, and there is always one more."""
    until = time.monotonic() + 20.0
    while time.monotonic() < until:
        connection.say(octets)
        time.sleep(0.1)


def flood(connection: Connection, octets: bytes) -> None:
    """100 MB, as long as the client takes it."""
    for _ in range(100_000_000 // len(octets)):
        connection.say(octets)


def tag_of_command(connection: Connection) -> bytes:
    """Of the next one that does not ask what the server can do."""
    while True:
        tag, command = connection.line().split()[:2]
        if command != b"CAPABILITY":
            return tag
        connection.say(b"* CAPABILITY IMAP4rev1 MOVE NAMESPACE\r\n" + tag + b" OK done\r\n")


def logged_in(connection: Connection) -> None:
    """Greeting and login."""
    connection.say(b"* OK ready\r\n")
    connection.say(tag_of_command(connection) + b" OK logged in\r\n")


def answer_select(connection: Connection, said: bytes = b"[READ-WRITE]") -> bytes:
    """Answers SELECT; returns the tag of the next command."""
    tag = tag_of_command(connection)
    connection.say(b"* 3 EXISTS\r\n* 0 RECENT\r\n" + tag + b" OK " + said + b" selected\r\n")
    return tag_of_command(connection)


def url_of(server: RawServer) -> str:
    return f"imap://bounces:hunter2@127.0.0.1:{server.port}/INBOX"


def opens(script: Script) -> WorkerError:
    """The error with which a session ends that is opened."""
    with RawServer(script) as server, pytest.raises(WorkerError) as caught:
        Mailbox(parse_imap_url(url_of(server)))
    return caught.value


def windows(script: Script) -> WorkerError:
    """The error with which the first look into the folder ends."""

    def play(connection: Connection) -> None:
        logged_in(connection)
        script(connection)

    with (
        RawServer(play) as server,
        pytest.raises(WorkerError) as caught,
        Mailbox(parse_imap_url(url_of(server))) as mailbox,
    ):
        mailbox.window(0, 50)
    return caught.value


def reads(literal: bytes) -> object:
    """What a session returns, or raises, that reads a message whose answer is this."""

    def play(connection: Connection) -> None:
        logged_in(connection)
        tag = answer_select(connection)
        connection.say(b"* SEARCH 7\r\n" + tag + b" OK done\r\n")
        tag = tag_of_command(connection)
        connection.say(literal)
        flood(connection, b"x" * 65_536) if b"{9" in literal else connection.say(tag + b" OK done\r\n")

    with RawServer(play) as server:
        try:
            with Mailbox(parse_imap_url(url_of(server))) as mailbox:
                assert mailbox.window(0, 50).uids == [7]
                return mailbox.read(7, 1000)
        except WorkerError as error:
            return error


@pytest.mark.parametrize(
    "script",
    [
        lambda connection: connection.hang(),
        lambda connection: drip(connection, b"* OK"),
        lambda connection: flood(connection, b"* OK [ALERT] hello\r\n" * 1000),
        lambda connection: flood(connection, b"x" * 65_536),
        lambda connection: connection.reset(),
        lambda connection: None,
    ],
    ids=["silent", "drips", "floods", "one line", "reset", "closed"],
)
def test_a_server_that_does_not_greet(script: Script) -> None:
    assert isinstance(opens(script), ServerUnavailable | MailboxError)


def test_a_refused_login_shows_no_password() -> None:
    """Nor the user's name, which the server repeats."""

    def refuse(connection: Connection) -> None:
        connection.say(b"* OK ready\r\n")
        tag = tag_of_command(connection)
        connection.say(tag + b" NO [AUTHENTICATIONFAILED] bounces with hunter2 is wrong\x1b[2J\r\n")

    error = opens(refuse)
    assert isinstance(error, MailboxError)
    assert "is wrong" in str(error)
    assert "hunter2" not in repr(error)
    assert str(error).isprintable()


@pytest.mark.parametrize(
    "script",
    [
        lambda connection: connection.hang(),
        lambda connection: drip(connection, b"* 1 EXISTS\r\n"),
        lambda connection: flood(connection, b"* 1 EXISTS\r\n" * 1000),
    ],
    ids=["silent", "drips", "floods"],
)
def test_a_server_that_does_not_end_its_answer(script: Script) -> None:
    assert isinstance(windows(script), ServerUnavailable)


@pytest.mark.parametrize("said", [b"* SEARCH (((", b"* BYE", b"\xff\xfe", b"* SEARCH {x"])
def test_an_answer_that_is_not_imap(said: bytes) -> None:
    """It is one of our errors, whatever the library makes of it."""

    def script(connection: Connection) -> None:
        tag = answer_select(connection)
        connection.say(said + b"\r\n" + tag + b" OK done\r\n")

    assert isinstance(windows(script), MailboxError | ServerUnavailable)


def test_no_more_uids_than_were_asked_for() -> None:
    """A server cannot make the job read what is not in the window."""

    def script(connection: Connection) -> None:
        logged_in(connection)
        tag = answer_select(connection)
        connection.say(
            b"* SEARCH " + b" ".join(b"%d" % uid for uid in range(1, 10_000)) + b"\r\n" + tag + b" OK done\r\n"
        )

    with RawServer(script) as server, Mailbox(parse_imap_url(url_of(server))) as mailbox:
        assert mailbox.window(0, 50).uids == [1, 2, 3]


def test_a_message_that_is_larger_than_the_server_was_asked_for() -> None:
    """An announced size beyond what was asked for is not even read."""
    tracemalloc.start()
    try:
        error = reads(b"* 1 FETCH (UID 7 BODY[]<0> {99999999}\r\n")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(error, ServerUnavailable)
    assert "larger than what was asked for" in str(error)
    assert peak < 10_000_000


@pytest.mark.parametrize(
    ("literal", "expected"),
    [
        (b"* 1 FETCH (UID 7 BODY[]<0> {5}\r\nhello)\r\n", b"hello"),
        (b'* 1 FETCH (UID 7 BODY[]<0> "hello")\r\n', b"hello"),
        (b"* 1 FETCH (UID 7 BODY[]<0> NIL)\r\n", None),
        (b"* 1 FETCH (UID 8 BODY[]<0> {5}\r\nhello)\r\n", None),
        (b"", None),
        (b"* 1 FETCH (UID 7 BODY[]<0> {2000}\r\n" + b"x" * 2000 + b")\r\n", b"x" * 1000),
    ],
)
def test_a_message(literal: bytes, expected: bytes | None) -> None:
    """Only the one that was asked for, and not more of it; None when it is gone."""
    assert reads(literal) == expected


def test_a_mailbox_that_nothing_can_be_moved_out_of() -> None:
    error = windows(lambda connection: answer_select(connection, b"[READ-ONLY]"))
    assert isinstance(error, MailboxError)
    assert "read-only" in str(error)


def test_every_session_is_closed() -> None:
    """Also one that is refused or breaks off."""
    with RawServer(lambda connection: connection.say(b"* BYE\r\n")) as server:
        for _ in itertools.repeat(None, 3):
            with pytest.raises(WorkerError):
                Mailbox(parse_imap_url(url_of(server)))
        for _ in range(3):
            assert server.closed.acquire(timeout=10)
