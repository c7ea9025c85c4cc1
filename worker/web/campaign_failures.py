"""Why recipients of a running or just ended campaign failed, by kind, with the most frequent replies."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LATEST = 1000  # failures of a campaign that are counted, the latest first
REPLIES = 3  # of one kind that are shown


@dataclass(frozen=True)
class FrequentReply:
    """How many recipients failed with one reply; what differs between them is left out of ``text``."""

    text: str
    number: int


@dataclass(frozen=True)
class KindOfFailure:
    """The failures of one kind among the latest ones, and the most frequent replies."""

    kind: str
    number: int
    replies: tuple[FrequentReply, ...]


@dataclass(frozen=True)
class CampaignFailures:
    """A campaign of which recipients failed, or that failed itself, for this ``reason``."""

    id: str
    name: str
    channel: str
    status: str
    reason: str
    kinds: tuple[KindOfFailure, ...]

    @property
    def number(self) -> int:
        return sum(each.number for each in self.kinds)

    @property
    def more(self) -> bool:
        """Whether there are perhaps more failures than were counted."""
        return self.number >= LATEST

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "CampaignFailures":
        """Of the statement ``work_in_progress``: the texts as the CRM and the providers wrote them."""
        kinds: dict[str, KindOfFailure] = {}
        for each in row["replies"] or ():
            found = kinds.get(each["kind"])
            reply = FrequentReply(each["pattern"], each["number"])
            replies = (*found.replies, reply) if found else (reply,)
            kinds[each["kind"]] = KindOfFailure(each["kind"], each["of_kind"], replies)
        ordered = tuple(sorted(kinds.values(), key=lambda each: -each.number))
        return cls(**{name: row[name] for name in ("id", "name", "channel", "status", "reason")}, kinds=ordered)
