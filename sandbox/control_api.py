"""The control API of the stand-ins: JSON over HTTP under /control.

    GET    /control/health                        {"status": "ok", "pid"}
    POST   /control/script                        a rule: the fields of sandbox.failure_script.FailureRule
    DELETE /control/script[?channel=]             removes the rules
    GET    /control/summary                       {channel: {deliveries, addresses, duplicates, unanswered, refused}}
    GET    /control/counts?channel=               {address: deliveries}
    GET    /control/deliveries?channel=&address=&limit=    without their content
    GET    /control/refusals?channel=&address=
    GET    /control/message?channel=&address=     content of the newest one, unchanged; 404 if there is none
    POST   /control/settings                      {"whatsapp_rate", "twilio_rate", "gmail_rate"}: each second
    POST   /control/revoke                        {"credential"}: a token, secret or password becomes invalid
    POST   /control/call                          {"sid", "status"}: a call's status from now on; null: forgotten
    POST   /control/reset                         deletes deliveries, rules and revocations; first rates again

A request that is not understood is answered with 400 and {"error"}.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from sandbox import twilio
from sandbox.failure_script import FailureRule
from sandbox.http_server import Reply, Request
from sandbox.rate_limit import RateLimit
from sandbox.received_store import Received
from sandbox.stand_in_state import StandInState

PREFIX = "/control"
CHANNELS = ("smtp", "gmail", "token", "whatsapp", "twilio")


class ControlApi:
    def __init__(self, state: StandInState, rates: Mapping[str, RateLimit]) -> None:
        self._state = state
        self._rates = rates
        self._first_rates = {name: rate.per_second for name, rate in rates.items()}
        self._actions: dict[tuple[str, str], Callable[[Request], Reply]] = {
            ("GET", "health"): lambda _: Reply(200, {"status": "ok", "pid": os.getpid()}),
            ("POST", "script"): self._add_rule,
            ("DELETE", "script"): self._clear_rules,
            ("GET", "summary"): lambda _: Reply(200, {channel: self._summary(channel) for channel in CHANNELS}),
            ("GET", "counts"): lambda request: Reply(200, self._state.received.counts(request.query.get("channel"))),
            ("GET", "deliveries"): self._deliveries,
            ("GET", "refusals"): self._refusals,
            ("GET", "message"): self._message,
            ("POST", "settings"): self._set,
            ("POST", "revoke"): self._revoke,
            ("POST", "call"): self._set_call,
            ("POST", "reset"): self._reset,
        }

    async def handle(self, request: Request) -> Reply:
        action = self._actions.get((request.method, request.path.removeprefix(f"{PREFIX}/")))
        if action is None:
            return Reply(404, {"error": f"no {request.method} {request.path} here"})
        try:
            return action(request)
        except (TypeError, ValueError, KeyError) as error:
            return Reply(400, {"error": str(error)})

    def _add_rule(self, request: Request) -> Reply:
        self._state.script.add(FailureRule(**_object(request)))
        return Reply(200, {})

    def _clear_rules(self, request: Request) -> Reply:
        self._state.script.clear(request.query.get("channel"))
        return Reply(200, {})

    def _summary(self, channel: str) -> dict[str, int]:
        counts = self._state.received.counts(channel)
        deliveries = self._state.received.deliveries(channel)
        return {
            "deliveries": counts.total(),
            "addresses": len(counts),
            "duplicates": counts.total() - len(counts),
            "unanswered": sum(each.outcome == "unanswered" for each in deliveries),
            "refused": len(self._state.received.refusals(channel)),
        }

    def _deliveries(self, request: Request) -> Reply:
        query = request.query
        found = self._state.received.deliveries(
            query.get("channel"), query.get("address"), int(query.get("limit", -1))
        )
        return Reply(200, {"deliveries": [_described(each) for each in found]})

    def _refusals(self, request: Request) -> Reply:
        found = self._state.received.refusals(request.query.get("channel"), request.query.get("address"))
        return Reply(200, {"refusals": [_described(each) for each in found]})

    def _message(self, request: Request) -> Reply:
        found = self._state.received.deliveries(request.query.get("channel"), request.query.get("address"))
        if not found:
            return Reply(404, {"error": "no such message was received"})
        kind = "message/rfc822" if found[-1].channel in ("smtp", "gmail") else "application/octet-stream"
        return Reply(200, found[-1].content, {"Content-Type": kind})

    def _set(self, request: Request) -> Reply:
        wanted = {name: float(value) for name, value in _object(request).items()}
        unknown = wanted.keys() - self._rates.keys()
        if unknown:
            raise ValueError(f"unknown setting: {', '.join(sorted(unknown))}")
        for name, per_second in wanted.items():
            self._rates[name].change(per_second)
        return Reply(200, {})

    def _revoke(self, request: Request) -> Reply:
        self._state.revoked.add(str(_object(request)["credential"]))
        return Reply(200, {})

    def _set_call(self, request: Request) -> Reply:
        body = _object(request)
        twilio.set_call(self._state, body["sid"], body["status"])
        return Reply(200, {})

    def _reset(self, _: Request) -> Reply:
        self._state.script.clear()
        self._state.calls.clear()
        self._state.revoked.clear()
        self._state.received.clear()
        for name, per_second in self._first_rates.items():
            self._rates[name].change(per_second)
        return Reply(200, {})


def _object(request: Request) -> dict[str, Any]:
    body = request.json()
    if not isinstance(body, dict):
        raise ValueError("the body must be a JSON object")  # noqa: TRY004 - a mistake of the client, not of the program
    return body


def _described(received: Received) -> dict[str, Any]:
    description = asdict(received)
    description["bytes"] = len(description.pop("content"))
    return description
