"""Stand-ins of the Gmail API (sending, and finding by Message-ID) and of Google's token endpoint.

Shapes: https://developers.google.com/gmail/api/reference/rest/v1/users.messages and
https://developers.google.com/identity/protocols/oauth2/web-server#offline.
"""

import base64
import binascii
import re
import secrets
from email.message import Message
from email.parser import BytesHeaderParser
from email.utils import getaddresses

from sandbox.failure_script import FailureRule
from sandbox.http_server import Reply, Request
from sandbox.rate_limit import RateLimit
from sandbox.received_store import Received
from sandbox.stand_in_state import StandInState

MESSAGES = "/gmail/v1/users/me/messages"
TOKEN = "/token"
TOKEN_SECONDS = 3599

_STATUSES = {
    400: ("INVALID_ARGUMENT", "invalidArgument", "Request contains an invalid argument."),
    401: ("UNAUTHENTICATED", "authError", "Invalid Credentials"),
    403: ("PERMISSION_DENIED", "rateLimitExceeded", "Rate Limit Exceeded"),
    404: ("NOT_FOUND", "notFound", "Requested entity was not found."),
    429: ("RESOURCE_EXHAUSTED", "rateLimitExceeded", "Too many concurrent requests for user."),
    500: ("INTERNAL", "backendError", "Backend Error"),
    503: ("UNAVAILABLE", "backendError", "The service is currently unavailable."),
}
_ADDRESS = re.compile(r"[^@\s<>,]+@[^@\s<>,]+")


class Gmail:
    def __init__(self, state: StandInState) -> None:
        self._state = state
        self.rate = RateLimit(0, lambda: error(429))  # for one access token

    async def handle(self, request: Request) -> Reply:
        if request.path == f"{MESSAGES}/send" and request.method == "POST":
            return await self._send(request)
        if request.path == MESSAGES and request.method == "GET":
            return self._list(request)
        return error(404)

    async def _send(self, request: Request) -> Reply:
        token = request.bearer()
        raw = _raw(request)
        headers = BytesHeaderParser().parsebytes(raw)
        sender = str(headers.get("From", ""))
        gmail_id = secrets.token_hex(8)
        messages = [
            Received(
                "gmail",
                address,
                "accepted",
                account=sender,
                credential=token,
                external_id=gmail_id,
                message_id=str(headers.get("Message-ID", "")).strip(),
                content=raw,
            )
            for address in _recipients(headers) or ["?"]
        ]
        if not self._state.knows(token):
            return self._state.refuse(error(401), *messages)
        problem = _problem(raw, headers)
        if problem:
            return self._state.refuse(error(400, problem), *messages)
        answer = Reply(200, {"id": gmail_id, "threadId": gmail_id, "labelIds": ["SENT"]})
        return await self._state.settle(messages, answer, _scripted_error, self.rate)

    def _list(self, request: Request) -> Reply:
        if not self._state.knows(request.bearer()):
            return error(401)
        operator, _, wanted = request.query.get("q", "").partition(":")
        if operator != "rfc822msgid":
            return error(400, "this stand-in only searches for rfc822msgid:")
        bare = wanted.strip("<>")
        seen = self._state.received.find("gmail", message_id=f"<{bare}>")
        found = [each for each in seen if each.outcome != "refused"]
        mine = [each for each in found if each.credential == request.bearer()] or found
        ids = list(dict.fromkeys(each.external_id for each in mine))
        if not ids:
            return Reply(200, {"resultSizeEstimate": 0})
        messages = [{"id": each, "threadId": each} for each in ids]
        return Reply(200, {"messages": messages, "resultSizeEstimate": len(messages)})


class GoogleToken:
    def __init__(self, state: StandInState) -> None:
        self._state = state
        self._issued = 0

    async def handle(self, request: Request) -> Reply:
        form = request.form()
        refresh_token = form.get("refresh_token", "")
        asked = Received(
            "token",
            refresh_token,
            "accepted",
            account=form.get("client_id", ""),
            credential=form.get("client_secret", ""),
            content=request.body,
        )
        problem = self._problem(request, form)
        if problem:
            return self._state.refuse(problem, asked)
        self._issued += 1
        issued = f"sandbox-access-{self._issued}-{secrets.token_hex(8)}"
        answer = {"access_token": issued, "expires_in": TOKEN_SECONDS, "token_type": "Bearer"}
        scope = "https://www.googleapis.com/auth/gmail.send"
        return await self._state.settle([asked], Reply(200, answer | {"scope": scope}), _scripted_token_error, None)

    def _problem(self, request: Request, form: dict[str, str]) -> Reply | None:
        if request.method != "POST" or form.get("grant_type") != "refresh_token":
            return token_error(400, "unsupported_grant_type", "Invalid grant_type")
        if not form.get("client_id") or not self._state.knows(form.get("client_secret", "")):
            return token_error(401, "invalid_client", "Unauthorized")
        if not self._state.knows(form.get("refresh_token", "")):
            return token_error(400, "invalid_grant", "Token has been expired or revoked.")
        return None


def error(status: int, message: str = "", reason: str = "") -> Reply:
    """An error in Google's form; ``reason`` such as rateLimitExceeded."""
    name, usual_reason, usual_message = _STATUSES.get(status, ("UNKNOWN", "unknown", "Unknown error"))
    message = message or usual_message
    detail = {"message": message, "domain": "global", "reason": reason or usual_reason}
    return Reply(status, {"error": {"code": status, "message": message, "errors": [detail], "status": name}})


def token_error(status: int, code: str, description: str) -> Reply:
    """An error in the form of RFC 6749, 5.2."""
    return Reply(status, {"error": code, "error_description": description})


def _scripted_error(rule: FailureRule) -> Reply:
    return error(rule.status or 500, rule.text or "", str(rule.code or ""))


def _scripted_token_error(rule: FailureRule) -> Reply:
    code = str(rule.code or "invalid_grant")
    return token_error(rule.status or 400, code, rule.text or "Token has been expired or revoked.")


def _raw(request: Request) -> bytes:
    """The message; b'' if the body has none that can be decoded."""
    body = request.json()
    raw = body.get("raw") if isinstance(body, dict) else None
    if not isinstance(raw, str) or not re.fullmatch(r"[A-Za-z0-9_-]+={0,2}", raw):
        return b""
    try:
        return base64.urlsafe_b64decode(raw.rstrip("=") + "=" * (-len(raw.rstrip("=")) % 4))
    except binascii.Error:
        return b""


def _recipients(headers: Message) -> list[str]:
    fields = [str(value) for name in ("To", "Cc", "Bcc") for value in headers.get_all(name, [])]
    return [address for _, address in getaddresses(fields) if address]


def _problem(raw: bytes, headers: Message) -> str:
    """Why Gmail would refuse the message; '' if it would not."""
    if not raw:
        return "'raw' RFC822 payload message string or uploading message via /upload/* URL required"
    recipients = _recipients(headers)
    if not recipients:
        return "Recipient address required"
    if not all(_ADDRESS.fullmatch(address) for address in recipients):
        return "Invalid To header"
    return ""
