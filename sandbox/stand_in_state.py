"""What the stand-ins of all providers share: failure rules, what was received, revoked credentials, states of calls.

A message is refused, cut off, recorded and answered here.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

from sandbox.accounts import PREFIX
from sandbox.failure_script import FailureRule, FailureScript
from sandbox.http_server import ConnectionCut, Reply
from sandbox.rate_limit import RateLimit
from sandbox.received_store import Outcome, Received, ReceivedStore

MakeError = Callable[[FailureRule], Reply]


@dataclass(frozen=True)
class CallState:
    """The state that a test gave to a call."""

    status: str | None  # None: forgotten
    at: datetime  # of the change
    started_at: datetime | None = None  # None: still queued


class StandInState:
    """One for all stand-ins of a process."""

    def __init__(self, received: ReceivedStore) -> None:
        self.received = received
        self.script = FailureScript()
        self.revoked: set[str] = set()
        self.calls: dict[str, CallState] = {}  # by sid; a call that is not in it is queued

    def knows(self, credential: str) -> bool:
        """Whether a token, secret or password is valid."""
        return credential.startswith(PREFIX) and credential not in self.revoked

    def refuse(self, reply: Reply, *messages: Received) -> Reply:
        """Records that the messages were refused, and returns the reply."""
        self.received.add(*(replace(each, outcome="refused", status=reply.status) for each in messages))
        return reply

    async def settle(
        self, messages: list[Received], reply: Reply, make_error: MakeError, rate: RateLimit | None
    ) -> Reply:
        """Accepts the messages of a valid request, unless a rule applies. Returns the reply or raises ConnectionCut.

        ``make_error`` makes the reply of a refusing rule; ``rate`` refuses what comes too fast.
        """
        first = messages[0]
        rule = self.script.take(first.channel, [each.address for each in messages])  # type: ignore[arg-type]
        if rule and rule.action == "cut-before":
            await rule.hang()
            self.refuse(Reply(0), *messages)
            raise ConnectionCut
        if rule and rule.action == "answer":
            answer = scripted_reply(rule, make_error)
            if answer.status >= 300:
                return self.refuse(answer, *messages)
            reply = answer
        if rate and not rate.allows(first.account):
            return self.refuse(rate.refusal(), *messages)
        cut = rule is not None and rule.action == "cut-after"
        outcome: Outcome = "unanswered" if cut else "accepted"
        status = 0 if cut else reply.status
        self.received.add(*(replace(each, outcome=outcome, status=status) for each in messages))
        if cut:
            raise ConnectionCut
        if rule and rule.action == "hang":
            await rule.hang()
        return reply


def scripted_reply(rule: FailureRule, make_error: MakeError) -> Reply:
    """The reply that a rule asks for: its own body, or the error in the provider's form."""
    reply = make_error(rule) if rule.body is None else Reply(rule.status or 500, rule.body)
    if rule.retry_after is not None:
        reply.headers["Retry-After"] = rule.retry_after
    return reply
