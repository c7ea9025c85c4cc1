"""The failures that a test asks for: rules, each for one recipient or all, a number of times or always."""

import re
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Channel = Literal["smtp", "gmail", "token", "whatsapp", "twilio"]
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
            cut-before  break the connection without reading the message
            cut-after   accept and record the message, then break the connection without an answer
            hang        accept and record the message, and answer only after ``seconds``
            close       SMTP only: answer 421 (or ``status``), then close the connection
    """

    channel: Channel
    address: str | None = None  # recipient or number; SMTP stage mail: the sender; None: all
    action: Action = "answer"
    stage: Stage = "request"  # SMTP: at which command; Twilio: list and fetch are the requests that read calls
    times: int | None = None  # None: always
    status: int | None = None
    code: int | str | None = None  # the provider's own error code or reason
    text: str | None = None
    body: Any = None  # JSON of the answer, instead of the stand-in's own error body; a str is sent as it is
    retry_after: str | None = None  # the header's value
    seconds: float = 0.0
    used: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.channel == "smtp" and self.stage == "request":
            self.stage = "data" if self.action in ("cut-after", "hang") else "rcpt"
        self._check()
        if self.address is not None:
            self.address = normal_address(self.address)

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
        """The rule for a message to ``addresses``; counts one use of it."""
        known = {normal_address(address) for address in addresses}
        for rule in self._rules:
            if rule.channel == channel and rule.stage == stage and (rule.address is None or rule.address in known):
                rule.used += 1
                if rule.used == rule.times:
                    self._rules.remove(rule)
                return rule
        return None

    def clear(self, channel: str | None = None) -> None:
        self._rules = [rule for rule in self._rules if channel not in (None, rule.channel)]


def normal_address(address: str) -> str:
    """One spelling of each address: e-mail in lower case, numbers as digits."""
    address = address.strip()
    return address.lower() if "@" in address else re.sub(r"\D", "", address) or address.lower()
