"""What the HTTP providers share: kept connections, and what is known when one of them breaks.

"Not sent" and "may have been sent" are told apart like this. A server can act on a request only after it has read the
whole body that Content-Length announces (RFC 9112, 6.3 and 8). A request is written with ``sendall``, which, with and
without TLS, raises only while the kernel has not taken all octets. Until the last one has returned nothing was handed
over: RetryLater. After it, only an answer tells what happened: Unconfirmed if none comes.

A kept connection may have been closed by the server while it was idle: it is looked for the end of the stream before
each use, and replaced. A close can still cross the request on its way. From here that looks the same as a server that
failed while it worked on the request, so it is Unconfirmed, and nothing is ever sent again automatically.

Proxies that the environment names (HTTPS_PROXY) are not used.
"""

import json
import re
import ssl
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import Any

from worker.errors import AccountRejected, RetryLater, SendError, Unconfirmed
from worker.providers.deadlines import Deadline, exchange
from worker.providers.http_wire import (
    AnswerHead,
    KeptConnection,
    MalformedAnswer,
    Origin,
    origin_and_target,
    request_octets,
)
from worker.providers.untrusted import safe_text

EXCHANGE_SECONDS = 60.0  # for a request and its whole answer, however it arrives

IDLE_SECONDS = 60.0  # a connection that was not used for so long is closed: what is between may have forgotten it

_COMPACT = json.JSONEncoder(separators=(",", ":"))
_TOKEN = re.compile(r"[!-~]+")
_USER_AGENT = "bharat-crm-worker"
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


class HttpPool:
    """Kept connections to the HTTP providers, for ``concurrency`` threads."""

    def __init__(
        self,
        concurrency: int = 8,
        *,
        connect_timeout_seconds: float = 5.0,
        read_timeout_seconds: float = 30.0,
        exchange_seconds: float = EXCHANGE_SECONDS,
        idle_seconds: float = IDLE_SECONDS,
        ca_file: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``clock`` returns seconds since 1970, because Retry-After may be a date. Does not connect yet."""
        self._clock = clock
        self._exchange_seconds = exchange_seconds
        self._connect_timeout_seconds = connect_timeout_seconds
        self._read_timeout_seconds = read_timeout_seconds
        self._idle_seconds = idle_seconds
        self._ca_file = ca_file
        self._most_kept = concurrency  # to each origin
        self._lock = threading.Lock()
        self._kept: defaultdict[Origin, deque[KeptConnection]] = defaultdict(deque)  # the latest used last

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
        headers = {**headers, "Content-Type": content_type, "Content-Length": str(len(body))}
        return self._exchange("POST", url, headers, body, repeatable=repeatable)

    def get(self, url: str, headers: Mapping[str, str]) -> Answer:
        """GET, which may be repeated: raises RetryLater when no answer came, else as ``post``."""
        return self._exchange("GET", url, headers, b"", repeatable=True)

    def close(self) -> None:
        """Closes the kept connections. One that is in use is closed when its answer has come."""
        with self._lock:
            self._most_kept = 0
            connections = [each for kept in self._kept.values() for each in kept]
            self._kept.clear()
        for connection in connections:
            connection.close()

    def _exchange(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes, *, repeatable: bool
    ) -> Answer:
        try:
            origin, target = origin_and_target(url)
        except ValueError as error:
            raise RetryLater(f"the request was not handed over, the URL is not valid: {error}") from error
        headers = {"Host": origin.authority, "Accept-Encoding": "identity", "User-Agent": _USER_AGENT, **headers}
        request = request_octets(method, target, headers, body)
        connection, handed_over = None, False
        try:
            with exchange(self._exchange_seconds) as deadline:
                connection = self._connected(origin, deadline)
                try:
                    connection.hand_over(request)
                    handed_over = True
                except BrokenPipeError:
                    pass  # a server that reads no further may have answered before
                return self._answer(connection, connection.head(), deadline)
        except (OSError, MalformedAnswer) as error:
            raise _failure(error, deadline, handed_over=handed_over, repeatable=repeatable) from error
        finally:
            if connection:
                self._give_back(origin, connection)  # now that the deadline cannot end it any more

    def _answer(self, connection: KeptConnection, head: AnswerHead, deadline: Deadline) -> Answer:
        retry_after = retry_after_seconds(head.fields.get(b"retry-after"), self._clock())
        try:
            body, fault = _json_object(connection.body(head)), ""
        except (OSError, MalformedAnswer) as error:  # the status is known all the same
            body, fault = {}, safe_text(deadline.explain(error))
        return Answer(head.status, body, retry_after, fault)

    def _connected(self, origin: Origin, deadline: Deadline) -> KeptConnection:
        """A kept connection that still stands, or a new one. Raises OSError."""
        while connection := self._kept_one(origin):
            if time.monotonic() - connection.idle_since < self._idle_seconds and connection.is_silent():
                connection.begin(deadline, self._exchange_seconds)
                return connection
            connection.close()
        return KeptConnection(
            origin,
            self._tls if origin.tls else None,
            deadline,
            connect_timeout_seconds=self._connect_timeout_seconds,
            read_timeout_seconds=self._read_timeout_seconds,
        )

    def _kept_one(self, origin: Origin) -> KeptConnection | None:
        with self._lock:
            kept = self._kept[origin]
            return kept.pop() if kept else None

    def _give_back(self, origin: Origin, connection: KeptConnection) -> None:
        """Keeps a connection that can be used again, and closes those that nobody has used for long."""
        connection.idle_since = now = time.monotonic()
        surplus = []
        with self._lock:
            kept = self._kept[origin]
            if connection.usable and len(kept) < self._most_kept:
                kept.append(connection)
            else:
                surplus.append(connection)
            while kept and now - kept[0].idle_since > self._idle_seconds:
                surplus.append(kept.popleft())
        for each in surplus:
            each.close()

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        """Made when it is needed first: the authorities' certificates take memory."""
        return ssl.create_default_context(cafile=self._ca_file)


def bearer(token: str) -> dict[str, str]:
    """The Authorization header. Raises AccountRejected for a token that cannot stand in a header.

    http.client would raise an error, too, but it would quote the token.
    """
    if not is_header_token(token):
        raise AccountRejected("the access token is empty or contains characters that no token has")
    return {"Authorization": f"Bearer {token}"}


def is_header_token(token: str) -> bool:
    """Whether a token or password can stand in a header: printable ASCII without spaces."""
    return _TOKEN.fullmatch(token) is not None


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
    return _COMPACT.encode(value).encode("ascii")


def _json_object(content: bytes) -> dict[str, Any]:
    """The body of an answer; {} if it is not a JSON object."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _failure(error: Exception, deadline: Deadline, *, handed_over: bool, repeatable: bool) -> SendError:
    text = safe_text(deadline.explain(error))
    if isinstance(error, ssl.SSLCertVerificationError):
        return AccountRejected(f"the server's certificate is not valid: {text}")
    if not handed_over:
        return RetryLater(f"the request was not handed over: {text}")
    if repeatable:
        return RetryLater(f"no answer came: {text}")
    return Unconfirmed(f"the request was handed over, but no answer came: {text}")
