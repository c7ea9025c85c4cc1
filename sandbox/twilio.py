"""Stand-in of Twilio's Calls resource: making, listing and fetching calls.

A call stays queued, without a start_time, until a test gives it another status. StartTime compares whole days in UTC
and leaves out calls without a start_time; a list is paginated, newest call first.

Shapes: https://www.twilio.com/docs/voice/api/call-resource and https://www.twilio.com/docs/api/errors.
"""

import base64
import binascii
import json
import re
import secrets
from datetime import UTC, date, datetime
from email.utils import format_datetime
from typing import Any
from urllib.parse import urlencode

from sandbox.failure_script import FailureRule, Stage
from sandbox.http_server import ConnectionCut, Reply, Request
from sandbox.rate_limit import RateLimit
from sandbox.received_store import Received
from sandbox.stand_in_state import CallState, StandInState, scripted_reply

PREFIX = "/twilio"
_ACCOUNT = PREFIX + r"/2010-04-01/Accounts/(AC[0-9a-fA-F]{32})"
_CALLS = re.compile(_ACCOUNT + r"/Calls\.json")
_CALL = re.compile(_ACCOUNT + r"/Calls/(CA[0-9a-f]{32})\.json")
STATUSES = ("queued", "initiated", "ringing", "in-progress", "completed", "busy", "failed", "no-answer", "canceled")
_FINAL = STATUSES[4:]
_LONGEST_PAGE = 1000
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
    def __init__(self, state: StandInState, rate: float = 0) -> None:
        """``rate``: calls a second for one account; 0: no limit."""
        self._state = state
        self.rate = RateLimit(rate, lambda: error(20429))

    async def handle(self, request: Request) -> Reply:
        user, password = _basic(request)
        listing, single = _CALLS.fullmatch(request.path), _CALL.fullmatch(request.path)
        if not (listing or single):
            return error(20404)
        good = user == (listing or single)[1] and self._state.knows(password)  # type: ignore[index]
        if listing and request.method == "POST":
            return await self._create(request, user, password, good)
        if not good:
            return error(20003)
        if listing and request.method == "GET":
            return await self._answered("list", request.query.get("To", ""), self._list(request, listing[1]))
        if single and request.method == "GET":
            return await self._answered("fetch", *self._fetch(single[1], single[2]))
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
            return self._state.refuse(error(problem), call)
        answer = _call(sid, account, form["To"], form["From"], datetime.now(UTC), None)
        return await self._state.settle([call], Reply(201, answer), _scripted_error, self.rate)

    def _list(self, request: Request, account: str) -> Reply:
        query = request.query
        calls = self._state.received.deliveries("twilio", query.get("To"))
        found = [
            shown
            for call in reversed(calls)
            if call.account == account
            and query.get("From", _form(call)["From"]) == _form(call)["From"]
            and (shown := self._shown(call)) is not None
            and _started(self._state.calls.get(call.external_id), query)
        ]
        size = min(max(int(query["PageSize"]), 1), _LONGEST_PAGE) if query.get("PageSize", "").isdigit() else 50
        number = int(query["Page"]) if query.get("Page", "").isdigit() else 0
        last = query.get("PageToken", "").removeprefix("PA")
        start = 1 + next((place for place, call in enumerate(found) if call["sid"] == last), -1)
        shown_calls, following = found[start : start + size], None
        if found[start + size :]:
            token = {"PageSize": size, "Page": number + 1, "PageToken": f"PA{shown_calls[-1]['sid']}"}
            following = f"{request.path.removeprefix(PREFIX)}?{urlencode(query | token)}"
        first = number * size
        page = {"page": number, "page_size": size, "start": first, "end": first + max(len(shown_calls) - 1, 0)}
        links = {"uri": request.target.removeprefix(PREFIX), "next_page_uri": following, "previous_page_uri": None}
        return Reply(200, {"calls": shown_calls, **page, **links})

    def _fetch(self, account: str, sid: str) -> tuple[str, Reply]:
        """The number that was called ('' if there is no such call) and the reply."""
        for call in self._state.received.find("twilio", external_id=sid):
            shown = self._shown(call)
            if call.account == account and shown is not None:
                return call.address, Reply(200, shown)
        return "", error(20404)

    async def _answered(self, stage: Stage, address: str, reply: Reply) -> Reply:
        """The reply to a request that reads calls, or what a rule asks for instead."""
        rule = self._state.script.take("twilio", [address], stage)
        if rule is None:
            return reply
        if rule.action == "answer":
            return scripted_reply(rule, _scripted_error)
        if rule.action != "hang":
            raise ConnectionCut
        await rule.hang()
        return reply

    def _shown(self, call: Received) -> dict[str, Any] | None:
        """The call in Twilio's form; None if a test made Twilio forget it."""
        form, state = _form(call), self._state.calls.get(call.external_id)
        if state is not None and state.status is None:
            return None
        made_at = datetime.fromisoformat(call.at)
        return _call(call.external_id, call.account, form["To"], form["From"], made_at, state)


def set_call(state: StandInState, sid: str, status: str | None) -> None:
    """Gives a call a status, or makes Twilio forget it (None). Raises ValueError: no such call or status."""
    if status is not None and status not in STATUSES:
        raise ValueError(f"status is {status!r}, not one of {', '.join(STATUSES)}")
    if not state.received.find("twilio", external_id=str(sid)):
        raise ValueError(f"no call has the sid {sid!r}")
    now, before = datetime.now(UTC), state.calls.get(sid)
    started_at = before.started_at if before else None
    state.calls[sid] = CallState(status, now, None if status == "queued" else started_at or now)


def error(code: int, status: int | None = None, message: str = "") -> Reply:
    """An error in Twilio's form; the HTTP status is the code's usual one unless given."""
    usual_status, usual_message = _ERRORS.get(code, (400, "Unknown error"))
    status = status or usual_status
    body = {"code": code, "message": message or usual_message, "status": status}
    return Reply(status, body | {"more_info": f"https://www.twilio.com/docs/errors/{code}"})


def _scripted_error(rule: FailureRule) -> Reply:
    return error(int(rule.code or 20500), rule.status, rule.text or "")


def _problem(form: dict[str, str]) -> int:
    """The error code with which Twilio would refuse the call; 0 if it would not."""
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


def _call(sid: str, account: str, to: str, from_: str, at: datetime, state: CallState | None) -> dict[str, Any]:
    status = state.status if state else "queued"
    return {
        "sid": sid,
        "account_sid": account,
        "to": to,
        "from": from_,
        "status": status,
        "direction": "outbound-api",
        "api_version": "2010-04-01",
        "date_created": format_datetime(at),
        "date_updated": format_datetime(state.at if state else at),
        "start_time": format_datetime(state.started_at) if state and state.started_at else None,
        "end_time": format_datetime(state.at) if state and status in _FINAL else None,
        "duration": "0" if status in _FINAL else None,
        "uri": f"/2010-04-01/Accounts/{account}/Calls/{sid}.json",
    }


def _form(call: Received) -> dict[str, str]:
    return dict(json.loads(call.content))


def _started(state: CallState | None, query: dict[str, str]) -> bool:
    """Whether a call started on one of the days that the query's StartTime asks for."""
    since, on, until = (_day(query.get(f"StartTime{sign}", "")) for sign in (">", "", "<"))
    if not (since or on or until):
        return True
    if state is None or state.started_at is None:
        return False
    day = state.started_at.date()
    return (since or day) <= day <= (until or day) and day == (on or day)


def _day(text: str) -> date | None:
    """The day in UTC of a date or a time; None for any other text."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (moment.astimezone(UTC) if moment.tzinfo else moment).date()
