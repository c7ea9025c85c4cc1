"""Answers of HTTP servers as they should be, and as they should not be; connections that are kept, and that are not.

The worker reads them itself, so each kind of answer that http.client would have judged is tried here.
"""

import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import trustme
from raw_server import Connection, RawServer, Script

from worker.errors import AccountRejected, RetryLater, Unconfirmed
from worker.providers.http import Answer, HttpPool

TYPE = "application/json"
OK = b'HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n{"a":1}'
MEGABYTE = b"x" * 1_000_000

Pool = Callable[..., HttpPool]


@pytest.fixture
def pool_of() -> Iterator[Pool]:
    pools: list[HttpPool] = []

    def make(**options: object) -> HttpPool:
        pools.append(HttpPool(**{"read_timeout_seconds": 10.0} | options))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def post(pool: HttpPool, server: RawServer, body: bytes = b"{}", scheme: str = "http") -> Answer:
    return pool.post(f"{scheme}://127.0.0.1:{server.port}/x", body, TYPE, {})


def take(connection: Connection) -> bytes:
    """The head of one request; its body is read, too."""
    head = connection.until(b"\r\n\r\n")
    length = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    connection.exactly(int(length[0][15:]) if length else 0)
    return head


def saying(*answers: bytes) -> Script:
    """A server that gives these answers on each connection, one to each request, and then leaves it open."""

    def script(connection: Connection) -> None:
        for answer in answers:
            take(connection)
            connection.say(answer)
        connection.hang()

    return script


def endless(*octets: bytes) -> Script:
    """A server whose answer begins with the first octets; the last ones it repeats for ever."""

    def script(connection: Connection) -> None:
        take(connection)
        connection.say(b"".join(octets[:-1]))
        while True:
            connection.say(octets[-1])

    return script


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        OK,
        OK.replace(b"\r\n", b"\n"),
        OK.replace(b" OK", b""),
        OK.replace(b"Content-Length: 7", b"CONTENT-LENGTH:007 "),
        OK.replace(b"\r\n\r\n", b"\r\nX: y\r\n z\r\nno field\r\n: \r\nX: \xff\r\nConnection: keep-alive\r\n\r\n"),
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nContent-Length: 900\r\n\r\n" + OK,
        CHUNKED + b'7\r\n{"a":1}\r\n0\r\n\r\n',
        CHUNKED + b'003;name="a;b"\r\n{"a\r\n4 ; x\r\n":1}\r\n000\r\nTrailer: x\r\nContent-Length: 3\r\n\r\n',
        CHUNKED.replace(b"chunked", b"CHUNKED").replace(b"\r\n", b"\n") + b'7\n{"a":1}\n0\n\n',
    ],
)
def test_an_answer_is_read_and_its_connection_used_again(pool_of: Pool, answer: bytes) -> None:
    with RawServer(saying(answer, answer)) as server:
        pool = pool_of()
        assert [post(pool, server) for _ in range(2)] == [Answer(200, {"a": 1})] * 2
        assert server.connections == 1


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_without_a_body(pool_of: Pool, status: int) -> None:
    """It has none, whatever length it names (RFC 9112, 6.3), and the next one follows at once."""
    answer = b"HTTP/1.1 %d x\r\nContent-Length: 5\r\n\r\n" % status
    with RawServer(saying(answer, OK)) as server:
        pool = pool_of()
        assert post(pool, server) == Answer(status, {})
        assert post(pool, server) == Answer(200, {"a": 1})
        assert server.connections == 1


def test_an_answer_that_comes_octet_by_octet(pool_of: Pool) -> None:
    def script(connection: Connection) -> None:
        take(connection)
        for octet in CHUNKED + b'7\r\n{"a":1}\r\n0\r\n\r\n':
            connection.say(bytes([octet]))
        take(connection)
        connection.say(OK)

    with RawServer(script) as server:
        pool = pool_of()
        assert [post(pool, server) for _ in range(2)] == [Answer(200, {"a": 1})] * 2


@pytest.mark.parametrize(
    "answer",
    [
        OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
        OK.replace(b"\r\n\r\n", b"\r\nConnection: x\r\nConnection: Keep-Alive, Close\r\n\r\n"),
        OK.replace(b"HTTP/1.1", b"HTTP/1.0"),
        OK + OK,
        OK + b"\r\n",
        OK + b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n",
    ],
    ids=["close", "close in a list", "HTTP/1.0", "two answers", "an empty line", "a farewell"],
)
def test_a_connection_whose_answer_is_followed_by_something_is_not_used_again(pool_of: Pool, answer: bytes) -> None:
    """Octets behind an answer would be taken for the answer to the next request."""
    with RawServer(saying(answer), saying(OK.replace(b"1}", b"2}"))) as server:
        pool = pool_of()
        assert [post(pool, server).body for _ in range(2)] == [{"a": 1}, {"a": 2}]
        assert server.connections == 2


def test_what_comes_while_a_connection_is_idle_is_no_answer(pool_of: Pool) -> None:
    came = threading.Event()

    def script(connection: Connection) -> None:
        take(connection)
        connection.say(OK)
        time.sleep(0.05)  # so that the answer has been read before
        connection.say(OK.replace(b"1}", b"6}"))
        came.set()
        connection.hang()

    with RawServer(script, saying(OK.replace(b"1}", b"2}"))) as server:
        pool = pool_of()
        assert post(pool, server).body == {"a": 1}
        assert came.wait(20)
        assert post(pool, server).body == {"a": 2}


def test_a_body_until_the_end_of_the_connection(pool_of: Pool) -> None:
    def script(connection: Connection) -> None:
        take(connection)
        connection.say(b'HTTP/1.1 200 OK\r\n\r\n{"a"')
        connection.say(b":1}")

    with RawServer(script) as server:
        pool = pool_of()
        assert [post(pool, server) for _ in range(2)] == [Answer(200, {"a": 1})] * 2


UNCLEAR = "the length of the answer is not clear"


@pytest.mark.parametrize(
    ("rest", "fault"),
    [
        (b"Content-Length: seven\r\n\r\n", UNCLEAR),
        (b"Content-Length: -7\r\n\r\n", UNCLEAR),
        (b"Content-Length: +7\r\n\r\n", UNCLEAR),
        (b"Content-Length: 7_0\r\n\r\n", UNCLEAR),
        (b"Content-Length: \xb2\r\n\r\n", UNCLEAR),
        (b"Content-Length:\r\n\r\n", UNCLEAR),
        (b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n", UNCLEAR),
        (b"Content-Length: 7\r\nContent-Length: 8\r\n\r\n", UNCLEAR),
        (b"Content-Length: 7\r\nTransfer-Encoding: chunked\r\n\r\n", UNCLEAR),
        (b"Transfer-Encoding: gzip, chunked\r\n\r\n", UNCLEAR),
        (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", UNCLEAR),
        (b"Content-Length: 1048577\r\n\r\n", "longer than 1048576 octets"),
        (b"Content-Length: 7\r\nContent-Encoding: gzip\r\n\r\n\x1f\x8b.....", "encoded, which was not asked for"),
        (b"Transfer-Encoding: chunked\r\n\r\n-7\r\n", "a chunk of the answer has no size"),
        (b"Transfer-Encoding: chunked\r\n\r\n\r\n", "a chunk of the answer has no size"),
        (b"Transfer-Encoding: chunked\r\n\r\n0x7\r\n", "a chunk of the answer has no size"),
        (b"Transfer-Encoding: chunked\r\n\r\n" + b"0" * 99 + b"\r\n\r\n", "a chunk of the answer has no size"),
        (b"Transfer-Encoding: chunked\r\n\r\nffffffff\r\n", "longer than 1048576 octets"),
        (b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n", "does not end where it should"),
        (
            b"Transfer-Encoding: chunked\r\n\r\n7;" + b"x" * 2000 + b"\r\n{}",
            "a line in the body of the answer is too",
        ),
    ],
)
def test_a_status_counts_although_the_body_cannot_be_read(pool_of: Pool, rest: bytes, fault: str) -> None:
    """The connection is not used again: nobody knows where the next answer begins."""
    first = saying(b"HTTP/1.1 429 No\r\nRetry-After: 7\r\nRetry-After: 9\r\n" + rest)
    with RawServer(first, saying(OK)) as server:
        pool = pool_of()
        answer = post(pool, server)
        assert (answer.status, answer.body, answer.retry_after_seconds) == (429, {}, 7.0)
        assert fault in answer.fault
        assert post(pool, server) == Answer(200, {"a": 1})
        assert server.connections == 2


@pytest.mark.parametrize(
    "octets",
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", MEGABYTE),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n", MEGABYTE),
        (CHUNKED, b"8000\r\n" + b"x" * 0x8000 + b"\r\n"),
        (CHUNKED, b"1\r\nx\r\n"),
        (CHUNKED, MEGABYTE),
        (CHUNKED, b"7;", MEGABYTE),
        (CHUNKED, b"0\r\n", b"Trailer: x\r\n" * 1000),
        (CHUNKED, b"0\r\n", MEGABYTE),
    ],
    ids=["body", "length", "chunks", "small chunks", "no line", "extension", "trailers", "trailer"],
)
def test_a_body_without_an_end_is_cut_off_by_its_size(pool_of: Pool, octets: tuple[bytes, ...]) -> None:
    with RawServer(endless(*octets)) as server:
        answer = post(pool_of(), server)
    assert (answer.status, answer.body) == (200, {})
    assert "long" in answer.fault


@pytest.mark.parametrize(
    "octets",
    [
        (b"HTTP/1.1 200 OK", MEGABYTE),
        (b"HTTP/1.1 200 OK\r\nX: ", MEGABYTE),
        (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 1000),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 1000,),
        (b"HTTP/1.1 102 Processing\r\nX: y\r\n\r\n" * 1000,),
        (b"\x00" * 100_000,),
    ],
    ids=["status line", "field", "fields", "continue", "processing", "zeros"],
)
def test_a_head_without_an_end_is_cut_off_by_its_size(pool_of: Pool, octets: tuple[bytes, ...]) -> None:
    reason = "the head of the answer is longer than 65536 octets"
    with RawServer(endless(*octets)) as server, pytest.raises(Unconfirmed, match=reason):
        post(pool_of(), server)


@pytest.mark.parametrize(
    "answer",
    [
        b"\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 020 OK\r\n\r\n",
        b"HTTP/1.1 +20 OK\r\n\r\n",
        "HTTP/1.1 ２００ OK\r\n\r\n".encode(),
        b"HTTP/1.1200 OK\r\n\r\n",
        b"http/1.1 200 OK\r\n\r\n",
        b"ICY 200 OK\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n" + OK,
        b"{}\r\n\r\n",
    ],
)
def test_what_is_no_answer_leaves_the_request_unconfirmed(pool_of: Pool, answer: bytes) -> None:
    reason = "no answer came: .* (did not answer in HTTP|answered 101)"
    with RawServer(saying(answer), saying(answer), saying(OK)) as server:
        pool = pool_of()
        with pytest.raises(Unconfirmed, match=reason):
            post(pool, server)
        with pytest.raises(RetryLater, match=reason):  # what may be repeated
            pool.get(f"http://127.0.0.1:{server.port}/", {})
        assert post(pool, server) == Answer(200, {"a": 1})


def test_a_refusal_before_the_whole_request_was_read_counts(pool_of: Pool) -> None:
    """A server that reads no further because the body is too large has said so."""

    def script(connection: Connection) -> None:
        connection.until(b"\r\n\r\n")
        connection.exactly(100_000)
        connection.say(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\n{}")
        connection.sock.shutdown(1)

    with RawServer(script) as server:
        assert post(pool_of(), server, b"x" * 30_000_000) == Answer(413, {})


# Requests.


def test_a_request_is_one_request_whatever_its_url_contains(pool_of: Pool) -> None:
    heads: list[bytes] = []

    def script(connection: Connection) -> None:
        heads.append(take(connection))
        connection.say(OK)

    with RawServer(script) as server:
        address = f"http://user:password@127.0.0.1:{server.port}"
        pool_of().get(f'{address}/ä b%20%2F"<>?q=a b&c=%26"é\r\nX: y#fragment', {"X-A": "b"})
        pool_of().get(f"{address}?q", {})
    first, host, *fields = heads[0].decode("ascii").split("\r\n")
    assert first == "GET /%C3%A4%20b%20%2F%22%3C%3E?q=a%20b&c=%26%22%C3%A9X:%20y HTTP/1.1"
    assert host == f"Host: 127.0.0.1:{server.port}"
    assert fields == ["Accept-Encoding: identity", "User-Agent: bharat-crm-worker", "X-A: b", "", ""]
    assert heads[1].startswith(b"GET /?q HTTP/1.1\r\n")


@pytest.mark.parametrize(
    "value", ["a\r\nX: secret", "a\nX: secret", "secret\x00", "secret\x85", "secret\x7f", "secreté"]
)
def test_a_header_that_could_be_two_is_refused_and_not_shown(pool_of: Pool, value: str) -> None:
    with RawServer(saying(OK)) as server:
        with pytest.raises(ValueError, match="no header can have") as caught:
            pool_of().get(f"http://127.0.0.1:{server.port}/", {"X-A": value})
        assert "secret" not in str(caught.value)
        assert server.connections == 0


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:99999/", "http:///x", "ftp://a.example/", "http://[::1/", "http://a..b/"]
)
def test_a_url_that_is_none_is_retry_later(pool_of: Pool, url: str) -> None:
    """A setting is wrong: nothing is sent, and the log says why."""
    with pytest.raises(RetryLater, match="not handed over, the URL is not valid"):
        pool_of().post(url, b"", TYPE, {})


def test_proxies_of_the_environment_are_not_used(pool_of: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens go to the provider and to nobody else."""
    with RawServer(saying(OK)) as proxy, RawServer(saying(OK)) as server:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
            monkeypatch.setenv(name.upper(), f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("no_proxy", "")
        assert post(pool_of(), server) == Answer(200, {"a": 1})
        assert (proxy.connections, server.connections) == (0, 1)


# Kept connections.


def test_a_connection_that_was_idle_for_long_is_replaced(pool_of: Pool) -> None:
    """A firewall on the way may have forgotten it, and the next request would be lost without an answer."""
    with RawServer(saying(OK, OK)) as server:
        pool = pool_of(idle_seconds=0.0)
        for count in range(1, 4):
            post(pool, server)
            assert server.connections == count
        for _ in range(2):
            assert server.closed.acquire(timeout=20)


def test_more_connections_than_are_kept_are_closed(pool_of: Pool) -> None:
    """A burst opens as many as it needs; afterwards there are as many as the pool keeps."""
    together = threading.Barrier(4)

    def script(connection: Connection) -> None:
        take(connection)
        together.wait(20)
        connection.say(OK)
        connection.hang()

    with RawServer(script) as server, ThreadPoolExecutor(4) as threads:
        pool = pool_of(concurrency=2)
        answers = list(threads.map(lambda _: post(pool, server), range(4)))
        assert answers == [Answer(200, {"a": 1})] * 4
        for _ in range(2):
            assert server.closed.acquire(timeout=20)
        assert not server.closed.acquire(blocking=False)
        pool.close()
        for _ in range(2):
            assert server.closed.acquire(timeout=20)


def test_a_connection_in_use_is_closed_when_its_answer_has_come(pool_of: Pool) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def script(connection: Connection) -> None:
        take(connection)
        asked.set()
        assert go_on.wait(20)
        connection.say(OK)
        connection.hang()

    with RawServer(script) as server, ThreadPoolExecutor(1) as threads:
        pool = pool_of()
        answer = threads.submit(post, pool, server)
        assert asked.wait(20)
        pool.close()
        go_on.set()
        assert answer.result(20) == Answer(200, {"a": 1})
        assert server.closed.acquire(timeout=20)


# TLS.


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def tls_context(authority: trustme.CA, name: str = "127.0.0.1") -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name).configure_cert(context)
    return context


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> str:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


def with_tls(context: ssl.SSLContext, script: Script, connection: Connection) -> None:
    connection.start_tls(context)
    script(connection)


def test_tls_with_an_authority_of_ones_own(pool_of: Pool, authority: trustme.CA, ca_file: str) -> None:
    script = partial(with_tls, tls_context(authority), saying(OK, OK, OK))
    with RawServer(script) as server:
        pool = pool_of(ca_file=ca_file)
        assert [post(pool, server, scheme="https") for _ in range(3)] == [Answer(200, {"a": 1})] * 3
        assert server.connections == 1


def test_a_certificate_for_another_name_stops_the_account(pool_of: Pool, authority: trustme.CA, ca_file: str) -> None:
    script = partial(with_tls, tls_context(authority, "other.example"), saying(OK))
    with RawServer(script) as server, pytest.raises(AccountRejected, match="certificate is not valid"):
        post(pool_of(ca_file=ca_file), server, scheme="https")


@pytest.mark.parametrize("octet", [b"", b"\x16", b"220 smtp\r\n"])
def test_a_handshake_that_never_ends_hands_nothing_over(pool_of: Pool, octet: bytes) -> None:
    def script(connection: Connection) -> None:
        connection.say(octet)
        connection.hang()

    with RawServer(script) as server, pytest.raises(RetryLater, match="not handed over"):
        post(pool_of(connect_timeout_seconds=20.0, exchange_seconds=0.3), server, scheme="https")


def test_an_answer_through_tls_that_drips_ends_at_the_deadline(
    pool_of: Pool, authority: trustme.CA, ca_file: str
) -> None:
    def drip(connection: Connection) -> None:
        take(connection)
        for octet in OK * 100:
            connection.say(bytes([octet]))
            time.sleep(0.05)

    script = partial(with_tls, tls_context(authority), drip)
    with RawServer(script) as server:
        pool = pool_of(ca_file=ca_file, exchange_seconds=0.6)
        with pytest.raises(Unconfirmed, match=r"took longer than 0\.6 seconds in all"):
            pool.post(f"https://127.0.0.1:{server.port}/", b"", TYPE, {})


def test_a_large_request_through_tls_that_is_not_read_is_not_handed_over(
    pool_of: Pool, authority: trustme.CA, ca_file: str
) -> None:
    release = threading.Event()
    script = partial(with_tls, tls_context(authority), lambda connection: connection.hang_unread(release))
    with RawServer(script) as server:
        with pytest.raises(RetryLater, match="not handed over"):
            post(pool_of(ca_file=ca_file, exchange_seconds=0.6), server, b"x" * 30_000_000, scheme="https")
        release.set()
