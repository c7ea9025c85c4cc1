"""What the HTTP providers share: kept connections, and what is known when one of them breaks.

"Not sent" and "may have been sent" are told apart like this. A server can act on a request only after it has read the
whole body that Content-Length announces (RFC 9112, 6.3 and 8). urllib3 takes the body from a generator and asks for
more only after ``sendall`` has returned, so the generator knows when everything was handed to the kernel. (CPython's
``sendall``, with and without TLS, raises only while the kernel has not taken all octets.) Before that moment nothing
was handed over: RetryLater. After it, only an answer tells what happened: Unconfirmed if none comes.

A kept connection may have been closed by the server while it was idle: urllib3 checks for the end of the stream
before each use and connects again. A close can still cross the request on its way. From here that looks the same as a
server that failed while it worked on the request, so it is Unconfirmed, and nothing is ever sent again automatically.
"""

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError, ProtocolError, SSLError
from urllib3.response import BaseHTTPResponse

from worker.errors import AccountRejected, RetryLater, SendError, Unconfirmed
from worker.providers.deadlines import Deadline, exchange, thread_deadline
from worker.providers.handover import check_handover
from worker.providers.untrusted import safe_text

EXCHANGE_SECONDS = 60.0  # for a request and its whole answer, however it arrives

_LONGEST_ANSWER = 1_048_576  # octets
_PART = 262_144  # octets of a request body that are written at once
_LONGEST_WAIT_SECONDS = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A provider's answer. ``body`` is {} if it is not a JSON object; ``fault`` says what is wrong with it."""

    status: int
    body: dict[str, Any]
    retry_after_seconds: float | None = None
    fault: str = ""

    @property
    def success(self) -> bool:
        """Whether the status is 2xx."""
        return 200 <= self.status < 300

    def without(self, what: str) -> str:
        """The text for an answer that lacks something: "answered 200 without a message id"."""
        return f"answered {self.status} without {what}" + (f": {self.fault}" if self.fault else "")


class _Body:
    """A request body that records whether all of it was handed to the kernel."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.handed_over = False

    def __iter__(self) -> Iterator[bytes]:
        for start in range(0, len(self._content), _PART):
            check_handover()
            yield self._content[start : start + _PART]
        self.handed_over = True


class _FinalResponse(http.client.HTTPResponse):
    """The answer to a request, whatever a server says before it (102, 103: RFC 9110, 15.2).

    http.client knows 100 only, and takes any other for the answer: the message would be sent a second time.
    """

    def _read_status(self) -> tuple[str, int, str]:
        while True:
            version, status, reason = super()._read_status()  # type: ignore[misc]
            if status in (http.HTTPStatus.CONTINUE, http.HTTPStatus.SWITCHING_PROTOCOLS) or status >= 200:
                return version, status, reason
            http.client.parse_headers(self.fp)


class _ConnectionWithDeadline(HTTPConnection):
    """A connection that the deadline of its thread's exchange can end."""

    response_class = _FinalResponse

    def _new_conn(self) -> socket.socket:
        sock = super()._new_conn()
        thread_deadline().attach(sock)
        return sock

    def putrequest(self, *arguments: Any, **options: Any) -> None:
        if self.sock is not None:  # a kept connection
            thread_deadline().attach(self.sock)
        super().putrequest(*arguments, **options)


class _TlsConnectionWithDeadline(_ConnectionWithDeadline, HTTPSConnection):
    """The same, with TLS."""


class _Connections(HTTPConnectionPool):
    ConnectionCls = _ConnectionWithDeadline


class _TlsConnections(HTTPSConnectionPool):
    ConnectionCls = _TlsConnectionWithDeadline


def pools_with_deadlines(**options: Any) -> urllib3.PoolManager:
    """A PoolManager whose connections the deadline of their thread's exchange can end."""
    pools = urllib3.PoolManager(**options)
    pools.pool_classes_by_scheme = {"http": _Connections, "https": _TlsConnections}
    return pools


class HttpPool:
    """Kept connections to the HTTP providers, for ``concurrency`` threads."""

    def __init__(
        self,
        concurrency: int = 8,
        *,
        connect_timeout_seconds: float = 5.0,
        read_timeout_seconds: float = 30.0,
        exchange_seconds: float = EXCHANGE_SECONDS,
        ca_file: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``clock`` returns seconds since 1970, because Retry-After may be a date. Does not connect yet."""
        self._clock = clock
        self._exchange_seconds = exchange_seconds
        self._pools = pools_with_deadlines(
            num_pools=10,
            maxsize=concurrency,
            retries=False,
            timeout=urllib3.Timeout(connect=connect_timeout_seconds, read=read_timeout_seconds),
            ca_certs=ca_file,
        )

    def post(
        self,
        url: str,
        body: bytes,
        content_type: str,
        headers: Mapping[str, str],
        *,
        repeatable: bool = False,
    ) -> Answer:
        """POST ``body``. A redirect is an answer like any other; nothing is retried here.

        Raises RetryLater when the request was not handed over (TooLate: see handover.py), or is ``repeatable`` (does
        no harm when it is sent twice); Unconfirmed when it was handed over and no answer came; AccountRejected when
        the server's certificate is not valid: waiting does not help, and the recipients stay pending.
        """
        sent = _Body(body)
        headers = {**headers, "Content-Type": content_type, "Content-Length": str(len(body))}
        with exchange(self._exchange_seconds) as deadline:
            try:
                return self._answer(self._request("POST", url, sent, headers), deadline)
            except (HTTPError, OSError) as error:
                raise _failure(error, deadline, handed_over=sent.handed_over, repeatable=repeatable) from error

    def get(self, url: str, headers: Mapping[str, str]) -> Answer:
        """GET, which may be repeated: raises RetryLater when no answer came, else as ``post``."""
        with exchange(self._exchange_seconds) as deadline:
            try:
                return self._answer(self._request("GET", url, None, headers), deadline)
            except (HTTPError, OSError) as error:
                raise _failure(error, deadline, handed_over=True, repeatable=True) from error

    def close(self) -> None:
        """Closes the kept connections. One that is in use is closed when its answer has come."""
        self._pools.clear()

    def _request(self, method: str, url: str, body: Any, headers: Mapping[str, str]) -> BaseHTTPResponse:
        # The status must be known even if the connection breaks in the body, so the body is read separately.
        response = self._pools.request(method, url, body=body, headers=headers, redirect=False, preload_content=False)
        if response.status < 200:
            response.close()
            raise ProtocolError(f"answered {response.status}, which is no answer to this request")
        return response

    def _answer(self, response: BaseHTTPResponse, deadline: Deadline) -> Answer:
        retry_after = retry_after_seconds(response.headers.get("Retry-After"), self._clock())
        body: dict[str, Any] = {}
        try:
            body = _json_object(response)
            fault = deadline.explain(None)  # an end in the middle of the headers is no error to urllib3
        except (HTTPError, OSError, ValueError) as error:  # the status is known all the same
            response.close()
            fault = safe_text(deadline.explain(error))
        return Answer(response.status, body, retry_after, fault)


def bearer(token: str) -> dict[str, str]:
    """The Authorization header. Raises AccountRejected for a token that cannot stand in a header.

    http.client would raise an error, too, but it would quote the token.
    """
    if not is_header_token(token):
        raise AccountRejected("the access token is empty or contains characters that no token has")
    return {"Authorization": f"Bearer {token}"}


def is_header_token(token: str) -> bool:
    """Whether a token or password can stand in a header: printable ASCII without spaces."""
    return bool(token) and all("!" <= character <= "~" for character in token)


def retry_after_seconds(value: str | None, now: float) -> float | None:
    """The seconds that a Retry-After header asks for (RFC 9110, 10.2.3), which is a number or a date.

    Between 0 and 24 hours; None without a header or with an invalid one. ``now``: seconds since 1970.
    """
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        # 20 digits are more than any number of seconds up to a day has; int() refuses thousands of digits.
        return min(float(value[:20]), _LONGEST_WAIT_SECONDS)
    try:
        date = parsedate_to_datetime(value)
        at = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
    return min(max(at - now, 0.0), _LONGEST_WAIT_SECONDS)


def json_body(value: Any) -> bytes:
    """``value`` as compact JSON in ASCII."""
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def _json_object(response: BaseHTTPResponse) -> dict[str, Any]:
    """The body; {} if it is not a JSON object. Raises HTTPError, OSError, and ValueError when it is too long."""
    content = response.read(_LONGEST_ANSWER + 1)
    if len(content) > _LONGEST_ANSWER:
        raise ValueError(f"the answer is longer than {_LONGEST_ANSWER} octets")
    response.release_conn()
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _failure(error: HTTPError | OSError, deadline: Deadline, *, handed_over: bool, repeatable: bool) -> SendError:
    text = safe_text(deadline.explain(error))
    if isinstance(error, SSLError) and "certificate verify failed" in str(error).lower():
        return AccountRejected(f"the server's certificate is not valid: {text}")
    if not handed_over:
        return RetryLater(f"the request was not handed over: {text}")
    if repeatable:
        return RetryLater(f"no answer came: {text}")
    return Unconfirmed(f"the request was handed over, but no answer came: {text}")
