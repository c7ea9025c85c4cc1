"""The form of the development Qdrant's answers and errors, and the checks before each call.

{"result": ..., "status": "ok", "time": 0.0012}
{"status": {"error": "Not found: ..."}, "time": 0.0012}
"""

import hmac
import json
import logging
import time
from collections.abc import Mapping
from typing import Any

import falcon
from falcon import Request, Response

from sandbox.qdrant.errors import Refusal, TooLarge, Unauthorized
from sandbox.qdrant.metrics import Metrics

_WITHOUT_KEY = {"/", "/healthz", "/livez", "/readyz"}
_UNLIMITED = "/snapshots/upload"

log = logging.getLogger("qdrant")


class RequestChecks:
    """Middleware: the API key and the body's length before a call, the count of calls after it."""

    def __init__(self, api_key: str, max_request_bytes: int, metrics: Metrics) -> None:
        self._key = api_key.encode()
        self._limit = max_request_bytes
        self._metrics = metrics

    def process_request(self, req: Request, resp: Response) -> None:
        req.context.started = time.perf_counter()
        if self._key and req.path not in _WITHOUT_KEY:
            self._check_key(req)
        length = req.content_length or 0
        if length > self._limit and not req.path.endswith(_UNLIMITED):
            raise TooLarge(f"Payload error: the body ({length} bytes) is larger than {self._limit} bytes")

    def process_response(self, req: Request, resp: Response, resource: object, succeeded: bool) -> None:
        self._metrics.count(req.method, req.uri_template or "", resp.status_code)

    def _check_key(self, req: Request) -> None:
        scheme, _, token = (req.get_header("Authorization") or "").partition(" ")
        key = req.get_header("api-key") or (token.strip() if scheme.lower() == "bearer" else "")
        if not key:
            raise Unauthorized("Must provide an API key or an Authorization bearer token")
        if not hmac.compare_digest(key.encode("latin-1", "replace"), self._key):
            raise Unauthorized("Invalid API key or JWT")


def answer(req: Request, resp: Response, result: object) -> None:
    resp.text = json.dumps({"result": result, "status": "ok", "time": _seconds(req)})


def body_of(req: Request) -> Any:
    """The body's JSON; {} when there is none. Raises Refusal."""
    raw = req.bounded_stream.read()
    if not raw.strip():
        return {}
    try:
        body = json.loads(raw, parse_constant=_refuse_constant)
        if b"\\u" in raw:
            json.dumps(body, ensure_ascii=False).encode()  # half of a surrogate pair is not text
    except (ValueError, RecursionError) as error:
        raise Refusal(f"Format error in JSON body: {error}") from error
    return body


def serialize(req: Request, resp: Response, error: falcon.HTTPError) -> None:
    """Errors of the framework: unknown paths and methods."""
    _show_error(req, resp, error.status_code, error.description or error.title or "")


def refused(req: Request, resp: Response, error: Refusal, params: Mapping[str, Any]) -> None:
    if error.status >= 500:
        log.error("call failed", {"method": req.method, "path": req.path, "error": error})
    _show_error(req, resp, error.status, str(error))


def unexpected(req: Request, resp: Response, error: Exception, params: Mapping[str, Any]) -> None:
    log.error("call failed", {"method": req.method, "path": req.path}, exc_info=error)
    _show_error(req, resp, 500, "Service internal error: see the server's log")


def _show_error(req: Request, resp: Response, status: int, text: str) -> None:
    resp.status = status
    resp.text = json.dumps({"status": {"error": text}, "time": _seconds(req)})


def _seconds(req: Request) -> float:
    started: float = req.context.started
    return round(time.perf_counter() - started, 9)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
