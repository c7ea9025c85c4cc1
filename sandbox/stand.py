"""What the providers' stand-ins have in common: a message is refused, cut, recorded and answered here."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

from sandbox.accounts import PREFIX
from sandbox.http import Cut, Reply
from sandbox.records import Outcome, Received, Records
from sandbox.script import Rule, Script

MakeError = Callable[[Rule], Reply]


@dataclass(frozen=True)
class CallState:
    """What a test made of a call."""

    status: str | None  # None: forgotten
    at: datetime  # of the change
    started_at: datetime | None = None  # None: still queued


class Stand:
    """The rules, the records and the state that all stand-ins of one process share."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self.script = Script()
        self.revoked: set[str] = set()
        self.calls: dict[str, CallState] = {}  # by sid; a call that is not in it is queued

    def knows(self, credential: str) -> bool:
        """Whether a token, secret or password is good."""
        return credential.startswith(PREFIX) and credential not in self.revoked

    def refuse(self, reply: Reply, *messages: Received) -> Reply:
        """Records that these were refused, and returns the reply."""
        self.records.add(*(replace(each, outcome="refused", status=reply.status) for each in messages))
        return reply

    async def settle(self, messages: list[Received], reply: Reply, error: MakeError, rate: "Rate | None") -> Reply:
        """Accepts valid messages of one request as the script wants it; returns the reply or raises Cut.

        ``error`` makes the reply for a scripted refusal, ``rate`` refuses what comes too fast.
        """
        first = messages[0]
        rule = self.script.take(first.channel, [each.address for each in messages])  # type: ignore[arg-type]
        if rule and rule.action == "cut-before":
            self.refuse(Reply(0), *messages)
            raise Cut
        if rule and rule.action == "answer":
            answer = scripted(rule, error)
            if answer.status >= 300:
                return self.refuse(answer, *messages)
            reply = answer
        if rate and not rate.allows(first.account):
            return self.refuse(rate.refusal(), *messages)
        cut = rule is not None and rule.action == "cut-after"
        outcome: Outcome = "unanswered" if cut else "accepted"
        status = 0 if cut else reply.status
        self.records.add(*(replace(each, outcome=outcome, status=status) for each in messages))
        if cut:
            raise Cut
        if rule and rule.action == "hang":
            await asyncio.sleep(rule.seconds)
        return reply


class Rate:
    """At most so many requests a second for one account, in a bucket that holds one second's worth."""

    def __init__(self, per_second: float, refusal: Callable[[], Reply]) -> None:
        """``per_second`` 0: no limit."""
        self.per_second = per_second
        self.refusal = refusal
        self._buckets: dict[str, tuple[float, float]] = {}

    def change(self, per_second: float) -> None:
        """Another limit from now on, with full buckets."""
        self.per_second = per_second
        self._buckets.clear()

    def allows(self, account: str) -> bool:
        if self.per_second <= 0:
            return True
        now, size = time.monotonic(), max(self.per_second, 1.0)
        tokens, at = self._buckets.get(account, (size, now))
        tokens = min(size, tokens + (now - at) * self.per_second)
        allowed = tokens >= 1
        self._buckets[account] = (tokens - allowed, now)
        return allowed


def scripted(rule: Rule, error: MakeError) -> Reply:
    """The reply that a rule asks for: its own body, or the error in the provider's shape."""
    reply = error(rule) if rule.body is None else Reply(rule.status or 500, rule.body)
    if rule.retry_after is not None:
        reply.headers["Retry-After"] = rule.retry_after
    return reply
