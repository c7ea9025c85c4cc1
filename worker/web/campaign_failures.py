"""Why recipients of a running or just ended campaign failed, by kind, with the most frequent replies."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.content.one_line import one_line
from worker.web.formatting import TEXT_LIMIT

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
        """Of the statement ``work_in_progress``; all texts come from the CRM or from providers."""
        kinds: dict[str, KindOfFailure] = {}
        for each in row["replies"] or ():
            found = kinds.get(each["kind"])
            reply = FrequentReply(one_line(each["pattern"], TEXT_LIMIT) or "(no reply)", each["number"])
            replies = (*found.replies, reply) if found else (reply,)
            kinds[each["kind"]] = KindOfFailure(one_line(each["kind"], TEXT_LIMIT), each["of_kind"], replies)
        return cls(
            id=row["id"],
            name=one_line(row["name"], TEXT_LIMIT) or "(no name)",
            channel=one_line(row["channel"], TEXT_LIMIT),
            status=one_line(row["status"], TEXT_LIMIT),
            reason=one_line(row["reason"], TEXT_LIMIT),
            kinds=tuple(sorted(kinds.values(), key=lambda each: -each.number)),
        )
