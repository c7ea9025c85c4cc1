"""Stand-in of Twilio's Calls resource: making, listing and fetching calls.

Shapes: https://www.twilio.com/docs/voice/api/call-resource and https://www.twilio.com/docs/api/errors.
"""

import base64
import binascii
import json
import re
import secrets
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

from sandbox.http import Reply, Request
from sandbox.records import Received
from sandbox.script import Rule
from sandbox.stand import Rate, Stand

PREFIX = "/twilio"
_ACCOUNT = PREFIX + r"/2010-04-01/Accounts/(AC[0-9a-fA-F]{32})"
_CALLS = re.compile(_ACCOUNT + r"/Calls\.json")
_CALL = re.compile(_ACCOUNT + r"/Calls/(CA[0-9a-f]{32})\.json")
_E164 = re.compile(r"\+[1-9]\d{6,14}")

# code -> HTTP status and text
_ERRORS = {
    20003: (401, "Authenticate"),
    20404: (404, "The requested resource was not found"),
    20429: (429, "Too Many Requests"),
    21201: (400, "No 'To' number is specified"),
    21205: (400, "Url is not a valid URL"),
    21211: (400, "Invalid 'To' Phone Number"),
    21212: (400, "Invalid 'From' Phone Number"),
    21213: (400, "'From' phone number is required"),
    21214: (400, "'To' phone number cannot be reached"),
    21216: (400, "Account not allowed to call this number"),
    21217: (400, "Phone number does not appear to be valid"),
    21610: (400, "Attempt to reach an unsubscribed recipient"),
}


class Twilio:
    def __init__(self, stand: Stand, rate: float = 0) -> None:
        """``rate``: calls a second for one account; 0: no limit."""
        self._stand = stand
        self.rate = Rate(rate, lambda: error(20429))

    async def handle(self, request: Request) -> Reply:
        user, password = _basic(request)
        listing, single = _CALLS.fullmatch(request.path), _CALL.fullmatch(request.path)
        if not (listing or single):
            return error(20404)
        good = user == (listing or single)[1] and self._stand.knows(password)  # type: ignore[index]
        if listing and request.method == "POST":
            return await self._create(request, user, password, good)
        if not good:
            return error(20003)
        if listing and request.method == "GET":
            return self._list(request, listing[1])
        if single and request.method == "GET":
            return self._fetch(single[1], single[2])
        return error(20404)

    async def _create(self, request: Request, account: str, password: str, good: bool) -> Reply:
        form = request.form()
        sid = f"CA{secrets.token_hex(16)}"
        call = Received(
            "twilio",
            form.get("To", "") or "?",
            "accepted",
            account=account,
            credential=password,
            external_id=sid,
            content=json.dumps(request.form_pairs()).encode(),
        )
        problem = 0 if good else 20003
        problem = problem or _problem(form)
        if problem:
            return self._stand.refuse(error(problem), call)
        answer = _call(sid, account, form["To"], form["From"], datetime.now(UTC))
        return await self._stand.settle([call], Reply(201, answer), _scripted_error, self.rate)

    def _list(self, request: Request, account: str) -> Reply:
        query = request.query
        calls = self._stand.records.deliveries("twilio", query.get("To"))
        since = _moment(query.get("StartTime>", ""))
        until = _moment(query.get("StartTime<", ""))
        found = [
            _recorded(call)
            for call in reversed(calls)
            if call.account == account
            and (since is None or datetime.fromisoformat(call.at) >= since)
            and (until is None or datetime.fromisoformat(call.at) <= until)
            and query.get("From", _form(call)["From"]) == _form(call)["From"]
        ]
        size = int(query["PageSize"]) if query.get("PageSize", "").isdigit() else 50
        page = {"page": 0, "page_size": size, "start": 0, "end": max(len(found[:size]) - 1, 0)}
        links = {"uri": request.target.removeprefix(PREFIX), "next_page_uri": None, "previous_page_uri": None}
        return Reply(200, {"calls": found[:size], **page, **links})

    def _fetch(self, account: str, sid: str) -> Reply:
        found = [call for call in self._stand.records.find("twilio", external_id=sid) if call.account == account]
        return Reply(200, _recorded(found[0])) if found else error(20404)


def error(code: int, status: int | None = None, message: str = "") -> Reply:
    """An error as Twilio words it; the HTTP status is the code's usual one unless given."""
    usual_status, usual_message = _ERRORS.get(code, (400, "Unknown error"))
    status = status or usual_status
    body = {"code": code, "message": message or usual_message, "status": status}
    return Reply(status, body | {"more_info": f"https://www.twilio.com/docs/errors/{code}"})


def _scripted_error(rule: Rule) -> Reply:
    return error(int(rule.code or 20500), rule.status, rule.text or "")


def _problem(form: dict[str, str]) -> int:
    """The code of what Twilio would not take, 0 when it would."""
    if not form.get("To"):
        return 21201
    if not form.get("From"):
        return 21213
    if not _E164.fullmatch(form["To"]):
        return 21211
    if not _E164.fullmatch(form["From"]):
        return 21212
    return 0 if re.match(r"https?://[^\s/]+", form.get("Url", "")) else 21205


def _basic(request: Request) -> tuple[str, str]:
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    try:
        user, _, password = base64.b64decode(value, validate=True).decode("utf-8").partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return "", ""
    return (user, password) if scheme.lower() == "basic" else ("", "")


def _call(sid: str, account: str, to: str, from_: str, at: datetime) -> dict[str, Any]:
    when = format_datetime(at)
    return {
        "sid": sid,
        "account_sid": account,
        "to": to,
        "from": from_,
        "status": "queued",
        "direction": "outbound-api",
        "api_version": "2010-04-01",
        "date_created": when,
        "date_updated": when,
        "start_time": when,
        "end_time": None,
        "duration": None,
        "uri": f"/2010-04-01/Accounts/{account}/Calls/{sid}.json",
    }


def _form(call: Received) -> dict[str, str]:
    return dict(json.loads(call.content))


def _recorded(call: Received) -> dict[str, Any]:
    form = _form(call)
    return _call(call.external_id, call.account, form["To"], form["From"], datetime.fromisoformat(call.at))


def _moment(text: str) -> datetime | None:
    """A day or a moment, in UTC unless it says otherwise; None when there is none."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
