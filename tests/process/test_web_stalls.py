"""bin/web and clients that stall: half requests, slow readers, endless heads. None of them keeps others waiting."""

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from web_process import OpenWeb, Web
from workers import ATTEMPTS, Start, wait_for

from worker.web.http_connection import ANSWER_SECONDS, CLOSING_SECONDS, HEAD_BYTES, REQUEST_SECONDS

TCP_ESTABLISHED = 1
PROMPT_SECONDS = 1.0
SLACK_SECONDS = 5.0  # of a busy machine
GROWN_BYTES = 60_000_000  # of memory, by a thousand connections
REQUEST = b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n"

# what a client sends before it stalls -> the status of the answer that it gets in the end, 0: none
STALLS = {
    "nothing": (b"", 0),
    "half a request line": (b"GET /hea", 408),
    "a head without its last line": (b"GET /health HTTP/1.1\r\nHost: x\r\n", 408),
    "half a header": (b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: text", 408),
    "lines that end with LF only": (b"GET /health HTTP/1.1\nHost: x\n\n", 408),
    "half a body": (b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc", 405),
    "half a body that nobody asked for": (b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc", 200),
    "half a chunk": (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc", 405),
    "no first chunk": (b"PUT /livez HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", 405),
    "100-continue": (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n", 405),
    "a long header that goes on": (b"GET / HTTP/1.1\r\nHost: " + b"x" * 50_000, 408),
}


class Clients:
    """Raw connections to a bin/web; all are closed when the test is over."""

    def __init__(self, port: int, stack: ExitStack) -> None:
        self._port = port
        self._stack = stack

    def connect(self, sent: bytes = b"", receive_bytes: int = 0) -> socket.socket:
        client = self._stack.enter_context(socket.socket())
        if receive_bytes:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        client.settimeout(60)
        client.connect(("127.0.0.1", self._port))
        client.sendall(sent)
        return client


@pytest.fixture
def clients() -> Iterator[Callable[[Web], Clients]]:
    with ExitStack() as stack:
        yield lambda web: Clients(web.port, stack)


ClientsOf = Callable[[Web], Clients]


def everything(client: socket.socket) -> bytes:
    """All that is received until the server closes."""
    received = b""
    with suppress(ConnectionResetError):
        while chunk := client.recv(65_536):
            received += chunk
    return received


def status(answer: bytes) -> int:
    return int(answer.split()[1]) if answer else 0


def assert_prompt(web: Web) -> None:
    """/livez answers within a second; one of several times, since the machine may be busy."""
    took = []
    for _ in range(ATTEMPTS):
        began = time.monotonic()
        assert web.get("/livez").status == 200
        took.append(time.monotonic() - began)
    assert min(took) < PROMPT_SECONDS, took


def resident_bytes(web: Web) -> int:
    """Of gunicorn's process that serves."""
    (child,) = Path(f"/proc/{web.worker.pid}/task/{web.worker.pid}/children").read_text("ascii").split()
    return int(Path(f"/proc/{child}/statm").read_text("ascii").split()[1]) * 4096


def test_half_requests_of_a_hundred_clients(open_web: OpenWeb, clients: ClientsOf, start: Start) -> None:
    """Others are answered meanwhile, /livez within a second; each has an end, with the answer that fits."""
    web = open_web()
    memory = resident_bytes(web)
    began = time.monotonic()
    stalled = [(name, clients(web).connect(sent)) for name, (sent, _) in STALLS.items() for _ in range(10)]
    assert_prompt(web)
    assert web.get("/health").status == 200
    assert start(program="healthcheck", PORT=str(web.port)).wait() == 0
    assert resident_bytes(web) - memory < GROWN_BYTES
    with ThreadPoolExecutor(len(stalled)) as threads:
        answers = list(threads.map(everything, [client for _, client in stalled]))
    took = time.monotonic() - began
    assert {name: status(answer) for (name, _), answer in zip(stalled, answers, strict=True)} == {
        name: expected for name, (_, expected) in STALLS.items()
    }
    assert not [answer for answer in answers if answer.count(b"HTTP/1.1 ") > 1], "one answer each"
    refused = [answer.partition(b"\r\n\r\n") for answer in answers if status(answer) == 408]
    assert all(b"application/json" in head and b'"title"' in body for head, _, body in refused)
    assert REQUEST_SECONDS - 0.1 < took < REQUEST_SECONDS + CLOSING_SECONDS + SLACK_SECONDS
    assert "Traceback" not in web.worker.log


@pytest.mark.parametrize("line", [b"x", b"GET /livez HTTP/1.1\r\nHost: x\r\n"], ids=["line", "headers"])
def test_a_head_that_drips(open_web: OpenWeb, clients: ClientsOf, line: bytes) -> None:
    """The deadline is one in all: a byte now and then does not extend it."""
    web = open_web()
    client = clients(web).connect(line)
    began = time.monotonic()
    client.settimeout(0.2)
    answer = b""
    while not answer:
        assert time.monotonic() - began < REQUEST_SECONDS + SLACK_SECONDS
        with suppress(TimeoutError):
            client.sendall(b"X")
            answer = client.recv(65_536)
    assert status(answer) == 408


def test_slow_readers_of_answers(open_web: OpenWeb, clients: ClientsOf) -> None:
    """A hundred that ask for much and take nothing: their connections end, and what waits for them is bounded."""
    web = open_web()
    memory = resident_bytes(web)
    slow = [clients(web).connect(REQUEST % b"/" * 100, receive_bytes=1024) for _ in range(100)]
    assert_prompt(web)
    wait_for(lambda: web.get("/metrics").status == 200, "others are answered")
    wait_for(
        lambda: all(map(is_closed, slow)), "they are closed", REQUEST_SECONDS + 2 * ANSWER_SECONDS + SLACK_SECONDS
    )
    assert resident_bytes(web) - memory < GROWN_BYTES


def is_closed(client: socket.socket) -> bool:
    """Whether the server has given the connection up, although the client has not read what it was sent.

    https://man7.org/linux/man-pages/man7/tcp.7.html: tcpi_state is the first byte of TCP_INFO.
    """
    return client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != TCP_ESTABLISHED


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: " + b"a/b, " * 10_000 + b"\r\n\r\n", 200),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: " + b"a/b, " * 200_000 + b"\r\n\r\n", 431),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
        (b"GET /livez HTTP/1.1\r\n" + b"X" * 1_000_000, 431),
        (b"\x00" * 200_000, 431),
        (b"\r\n" * 100_000, 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET /livez HTTP/9.9\r\nHost: x\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: cow\r\n\r\n", 501),
        (b"GET /livez HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n", 400),
        (b"get /livez HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"PUT /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1_000_000, 405),
    ],
    ids=lambda value: value[:40].decode("latin-1").split("\r")[0] if isinstance(value, bytes) else str(value),
)
def test_odd_and_large_requests(web_of_all: Web, clients: ClientsOf, head: bytes, expected: int) -> None:
    """Each gets its answer, also while it still sends, and the next client too."""
    client = clients(web_of_all).connect()
    with suppress(ConnectionResetError, BrokenPipeError):
        client.sendall(head)
    if expected == 200:
        client.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert status(everything(client)) == expected
    assert_prompt(web_of_all)


@pytest.fixture
def web_of_all(open_web: OpenWeb) -> Web:
    return open_web()


def test_an_endless_header_line(open_web: OpenWeb, clients: ClientsOf) -> None:
    """It is refused when it is too long, and what follows is dropped, not kept."""
    web = open_web()
    memory = resident_bytes(web)
    client = clients(web).connect(b"GET / HTTP/1.1\r\nX: ")
    sent, began = 0, time.monotonic()
    with suppress(ConnectionResetError, BrokenPipeError):
        while time.monotonic() - began < REQUEST_SECONDS:
            sent += client.send(b"x" * 65_536)
    assert sent > HEAD_BYTES
    assert time.monotonic() - began < REQUEST_SECONDS, "the server has closed the connection"
    assert resident_bytes(web) - memory < GROWN_BYTES
    assert_prompt(web)


def test_pipelined_requests(open_web: OpenWeb, clients: ClientsOf) -> None:
    """They are answered in their order on one connection, also those after a request that the application refuses."""
    web = open_web()
    last = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    asked = [
        REQUEST % b"/livez",
        REQUEST % b"/nope",
        b"DELETE / HTTP/1.1\r\nHost: x\r\n\r\n",
        REQUEST % b"/health",
        last,
    ]
    answers = everything(clients(web).connect(b"".join(asked)))
    assert [status(b"HTTP/1.1 " + each) for each in answers.split(b"HTTP/1.1 ")[1:]] == [200, 404, 405, 200, 200]


def test_a_body_does_not_become_the_next_request(open_web: OpenWeb, clients: ClientsOf) -> None:
    """No body is read, so the connection ends with the answer."""
    web = open_web()
    hidden = REQUEST % b"/metrics"
    sent = b"POST /livez HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(hidden) + hidden
    answers = everything(clients(web).connect(sent))
    assert answers.count(b"HTTP/1.1 ") == 1
    assert b"Connection: close" in answers


def test_a_thousand_idle_connections(open_web: OpenWeb, clients: ClientsOf) -> None:
    """Those that have been idle longest make room, once in the log; the newest are still good."""
    web = open_web()
    memory = resident_bytes(web)
    idle = [clients(web).connect(REQUEST % b"/livez") for _ in range(1000)]
    assert_prompt(web)
    assert web.get("/").status == 200
    assert resident_bytes(web) - memory < GROWN_BYTES
    newest = idle[-1]
    assert status(newest.recv(65_536)) == 200
    newest.sendall(REQUEST % b"/livez")
    assert status(newest.recv(65_536)) == 200
    assert web.worker.said("too many connections") == 1
    assert web.worker.said("Too many open files") == 0


def test_a_hundred_requests_wait_for_servers_that_hang(open_web: OpenWeb, clients: ClientsOf) -> None:
    """/livez asks no server and waits for none of them; the others are answered together, in time."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        port = silent.getsockname()[1]
        web = open_web(DATABASE_URL=f"postgresql://crm@127.0.0.1:{port}/crm", REDIS_URL=f"redis://127.0.0.1:{port}")
        waiting = [clients(web).connect(REQUEST % b"/health") for _ in range(100)]
        assert_prompt(web)
        began = time.monotonic()
        assert {status(each.recv(65_536)) for each in waiting} == {503}
        assert time.monotonic() - began < SLACK_SECONDS


def test_it_ends_while_clients_stall(open_web: OpenWeb, clients: ClientsOf) -> None:
    """SIGTERM does not wait for half requests and idle connections."""
    web = open_web()
    held = [clients(web).connect(sent) for sent in (b"", b"GET / HT", REQUEST % b"/livez")]
    began = time.monotonic()
    assert web.worker.stop() == 0
    assert time.monotonic() - began < SLACK_SECONDS
    assert all(everything(each) in (b"",) or each is held[-1] for each in held)
    assert "Traceback" not in web.worker.log


def test_it_idles_cheaply(open_web: OpenWeb, clients: ClientsOf) -> None:
    """Stalled connections cost no processor time: 200 of them, watched for two seconds."""
    web = open_web()
    held = [clients(web).connect(b"GET / HTTP/1.1\r\n") for _ in range(200)]
    (child,) = Path(f"/proc/{web.worker.pid}/task/{web.worker.pid}/children").read_text("ascii").split()

    def used_seconds() -> float:
        fields = Path(f"/proc/{child}/stat").read_text("ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

    before, began = used_seconds(), time.monotonic()
    wait_for(lambda: time.monotonic() - began > 2.0, "two seconds have passed")
    assert used_seconds() - before < 0.4
    assert len(held) == 200
