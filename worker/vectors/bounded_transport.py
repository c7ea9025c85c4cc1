"""How the client of Qdrant exchanges requests and answers: each within a deadline, and no answer without a limit."""

import ssl
from typing import Any

import httpx

from worker.providers.deadlines import exchange, thread_deadline

LONGEST_ANSWER = 16 << 20  # bytes; the largest is a list of collections or snapshots
LONGEST_NAME = 300  # characters of an encoding, in an error's text


class BoundedTransport(httpx.BaseTransport):
    """httpx's own, with a deadline for each exchange and a limit for its answer.

    No connection is kept: so each exchange reports its socket, which the deadline can end.
    """

    def __init__(self, exchange_seconds: float, answer_seconds: float, tls: ssl.SSLContext) -> None:
        """``answer_seconds``: for the body of an answer, once its head is there."""
        self._exchange_seconds = exchange_seconds
        self._answer_seconds = answer_seconds
        self._inner = httpx.HTTPTransport(verify=tls, limits=httpx.Limits(max_keepalive_connections=0))

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.headers["Accept-Encoding"] = "identity"  # a short compressed answer may be a long one
        request.extensions = {**request.extensions, "trace": attach_socket}
        with exchange(self._exchange_seconds) as deadline:
            try:
                response = self._inner.handle_request(request)
                stream = response.extensions["network_stream"]
                deadline.begin(self._answer_seconds, stream.get_extra_info("socket"))
                content = _limited_content(response)
            except httpx.TransportError as error:
                if deadline.passed:
                    raise httpx.ReadTimeout(deadline.explain(error), request=request) from error
                raise
        return httpx.Response(response.status_code, headers=response.headers, content=content)

    def close(self) -> None:
        self._inner.close()


def attach_socket(event: str, details: dict[str, Any]) -> None:
    """Follows httpcore's trace of a request: it goes over this socket from now on."""
    if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
        thread_deadline().attach(details["return_value"].get_extra_info("socket"))


def _limited_content(response: httpx.Response) -> bytes:
    """Raises httpx.DecodingError for an answer that is too long, or compressed although nobody asked for it."""
    try:
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding.strip().lower() not in ("", "identity"):
            raise httpx.DecodingError(f"it is encoded: {encoding[:LONGEST_NAME]}")
        content = bytearray()
        for chunk in response.iter_raw():
            content += chunk
            if len(content) > LONGEST_ANSWER:
                raise httpx.DecodingError(f"it is longer than {LONGEST_ANSWER} bytes")
        return bytes(content)
    finally:
        response.close()
