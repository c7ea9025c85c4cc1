"""The failures that a test asks for: rules, each for one recipient or all, a number of times or always."""

import asyncio
import re
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Channel = Literal["smtp", "gmail", "token", "whatsapp", "number", "twilio"]
Action = Literal["answer", "cut-before", "cut-after", "hang", "close"]
Stage = Literal["auth", "mail", "rcpt", "data", "request", "list", "fetch"]

STAGES: dict[str, tuple[Stage, ...]] = {
    "smtp": ("auth", "mail", "rcpt", "data"),
    "twilio": ("request", "list", "fetch"),
}


@dataclass
class FailureRule:
    """One failure.

    action  answer      refuse with ``status`` (SMTP: the reply code) and ``text`` or ``body``
            cut-before  break the connection without reading the message, after ``seconds``
            cut-after   accept and record the message, then break the connection without an answer
            hang        accept and record the message, and answer only after ``seconds``
            close       SMTP only: answer 421 (or ``status``), then close the connection

    ``seconds`` are over at once when the rule is cleared.
    """

    channel: Channel
    address: str | None = None  # recipient or number; SMTP stage mail: the sender; None: all
    action: Action = "answer"
    stage: Stage = "request"  # SMTP: at which command; Twilio: list and fetch are the requests that read calls
    after: int = 0  # so many messages pass before the first one that fails
    times: int | None = None  # None: always
    status: int | None = None
    code: int | str | None = None  # the provider's own error code or reason
    text: str | None = None
    body: Any = None  # JSON of the answer, instead of the stand-in's own error body; a str is sent as it is
    retry_after: str | None = None  # the header's value
    seconds: float = 0.0
    _seen: int = field(default=0, init=False)
    _cleared: asyncio.Event = field(default_factory=asyncio.Event, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.channel == "smtp" and self.stage == "request":
            self.stage = "data" if self.action in ("cut-after", "hang") else "rcpt"
        self._check()
        if self.address is not None:
            self.address = normal_address(self.address)

    def matches(self, channel: Channel, addresses: set[str], stage: Stage) -> bool:
        return self.channel == channel and self.stage == stage and (self.address is None or self.address in addresses)

    def fails_next(self) -> bool:
        """Whether the next message that matches fails; counts it."""
        self._seen += 1
        return self._seen > self.after and (self.times is None or self._seen <= self.after + self.times)

    async def hang(self) -> None:
        """Waits for ``seconds``, or until the rule is cleared."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._cleared.wait(), self.seconds)

    def clear(self) -> None:
        self._cleared.set()

    def _check(self) -> None:
        for name, allowed in (("channel", Channel), ("action", Action), ("stage", Stage)):
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(f"{name} is {getattr(self, name)!r}, not one of {', '.join(get_args(allowed))}")
        if self.action in ("cut-after", "hang") and self.stage in ("auth", "mail", "rcpt"):
            raise ValueError(f"{self.action} needs a whole message: stage data")
        if self.stage == "auth" and self.action != "answer":
            raise ValueError("a login can only be answered")
        if self.stage not in STAGES.get(self.channel, ("request",)):
            raise ValueError(f"the channel {self.channel} has no stage {self.stage}")


class FailureScript:
    """The present rules. The newest one that matches is used."""

    def __init__(self) -> None:
        self._rules: list[FailureRule] = []

    def add(self, rule: FailureRule) -> None:
        self._rules.insert(0, rule)

    def take(self, channel: Channel, addresses: list[str], stage: Stage = "request") -> FailureRule | None:
        """The rule for a message to ``addresses``, which it counts."""
        known = {normal_address(address) for address in addresses}
        matching = (rule for rule in self._rules if rule.matches(channel, known, stage))
        return next((rule for rule in matching if rule.fails_next()), None)

    def clear(self, channel: str | None = None) -> None:
        """Removes the rules; messages that hang because of them are answered."""
        for rule in [rule for rule in self._rules if channel in (None, rule.channel)]:
            self._rules.remove(rule)
            rule.clear()


def normal_address(address: str) -> str:
    """One spelling of each address: e-mail in lower case, numbers as digits."""
    address = address.strip()
    return address.lower() if "@" in address else re.sub(r"\D", "", address) or address.lower()
