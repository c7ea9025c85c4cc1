"""Who would get a campaign: its recipients, each looked at as the worker's preparation and claims would look at it.

They are read through a cursor, a few thousand at a time, so the memory does not grow with their number. A message is
not made for each of them: an address is parsed for each, a message is made where a value is missing or longer than
in all messages before.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from worker.campaign_commands.campaign_state import CampaignState, count_recipients
from worker.campaigns.campaign import Campaign
from worker.campaigns.targets import target_parameters
from worker.campaigns.transport import Transport
from worker.content import invisible_characters as invisible
from worker.content.addresses import parse_address
from worker.content.campaign import values_of
from worker.content.phones import country_of, whatsapp_id
from worker.errors import CampaignRejected, SendError
from worker.runtime.db import Database, queries

FETCHED = 5_000  # recipients at a time
EXAMPLES = 5  # of each kind

_INDIAN = re.compile(r"\+?91[6-9][0-9]{9}")  # what most numbers are, and phones.py takes as it is


@dataclass(frozen=True, slots=True)
class ReviewedRecipient:
    """A row of the statements ``pending`` and ``targeted``."""

    id: str
    name: str
    email: str | None
    phone: str | None
    duplicate: bool
    suppressed: bool


@dataclass(slots=True)
class RecipientReview:
    """The recipients of a campaign. Each pending one counts once: to send, or as duplicate, suppressed, or unfit."""

    from_target: bool = False  # it has no recipients yet: they are built from its target when it starts
    statuses: dict[str, int] = field(default_factory=dict)  # of all recipients, as they are now
    recently_sent: int = 0
    of_other_tenants: int = 0
    without_address: int = 0  # people in the target
    to_send: int = 0
    duplicates: int = 0
    suppressed: int = 0
    unfit: int = 0  # no message can be made, or sent to the address
    missing: Counter[str] = field(default_factory=Counter)  # by placeholder: recipients without a value
    countries: Counter[str] = field(default_factory=Counter)  # of the numbers to send to; '': of none
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    rejection: str = ""  # why no message can be made for anybody
    sample: ReviewedRecipient | None = None

    @property
    def looked_at(self) -> int:
        return self.to_send + self.duplicates + self.suppressed + self.unfit


class RecipientReviewer:
    """Looks at recipients one after the other. ``transport`` None: only their addresses are looked at."""

    def __init__(self, review: RecipientReview, channel: str, transport: Transport | None, now: datetime) -> None:
        self._review = review
        self._channel = channel
        self._transport = transport
        self._now = now
        self._names = transport.content.personal_names if transport else frozenset[str]()
        self._sample_lacks = False  # a value
        self._longest: dict[frozenset[str], int] = {}  # by what is missing: the characters of values that fit

    def add(self, recipient: ReviewedRecipient) -> None:
        review = self._review
        if recipient.duplicate:
            review.duplicates += 1
        elif recipient.suppressed:
            review.suppressed += 1
        else:
            self._add_pending(recipient)

    def _add_pending(self, recipient: ReviewedRecipient) -> None:
        review = self._review
        values = values_of(recipient)
        missing = self._missing(values)
        try:
            country = self._country(recipient)
            self._require_message(recipient, missing, sum(len(values[name]) for name in self._names))
        except CampaignRejected as error:
            review.rejection = review.rejection or str(error)
            self._transport = None  # the same for all others
        except (ValueError, SendError) as error:
            review.unfit += 1
            self._example("unfit", f"{_shown(recipient)}: {error}")
            return
        review.to_send += 1
        if self._channel == "whatsapp":
            review.countries[country] += 1
        for name in missing:
            review.missing[name] += 1
            self._example(name, _shown(recipient))
        if review.sample is None or (self._sample_lacks and not missing):
            review.sample, self._sample_lacks = recipient, bool(missing)

    def _country(self, recipient: ReviewedRecipient) -> str:
        """Of a number; '' of an e-mail address. Raises ValueError for what cannot be sent to."""
        if self._channel != "whatsapp":
            parse_address(recipient.email or "")
            return ""
        if _INDIAN.fullmatch(recipient.phone or ""):
            return "IN"
        return country_of(whatsapp_id(recipient.phone or ""))

    def _require_message(self, recipient: ReviewedRecipient, missing: frozenset[str], length: int) -> None:
        """Raises ValueError and SendError where no message can be made."""
        if self._transport and length > self._longest.get(missing, -1):
            self._transport.message(recipient, self._now)
            self._longest[missing] = length

    def _missing(self, values: Mapping[str, str]) -> frozenset[str]:
        """The placeholders of the campaign that have no value, or none that shows."""
        return frozenset(name for name in self._names if not invisible.trimmed(values[name]))

    def _example(self, kind: str, text: str) -> None:
        if len(examples := self._review.examples[kind]) < EXAMPLES:
            examples.append(text)


def review_recipients(
    db: Database, campaign: Campaign, transport: Transport | None, state: CampaignState, review: RecipientReview
) -> None:
    """Fills ``review``, inside a transaction of the caller's. Raises CampaignRejected for a target that is none."""
    sql = queries("campaign_check")
    which: dict[str, Any] = {
        "campaign_id": campaign.id,
        "tenant_id": campaign.tenant_id,
        "channel": campaign.channel,
    }
    counts = count_recipients(db, state)
    review.statuses, review.recently_sent = counts.statuses, counts.recently_sent
    review.of_other_tenants = counts.of_other_tenants
    review.from_target = not counts.statuses and not counts.of_other_tenants
    if review.from_target:
        which |= target_parameters(campaign.target, campaign.channel) | {"user_id": campaign.user_id}
    reviewer = RecipientReviewer(review, campaign.channel, transport, state.now)
    for recipient in _rows(db, sql["targeted" if review.from_target else "pending"], which):
        reviewer.add(recipient)
    if review.from_target:
        [row] = db.all(sql["target_size"], **which)
        review.without_address = row["number"] - review.looked_at


def _rows(db: Database, statement: str, which: dict[str, Any]) -> Iterator[ReviewedRecipient]:
    db.execute(
        "SELECT set_config('cursor_tuple_fraction', '1', true)"
    )  # all rows are wanted, not the first ones soon
    # of a campaign that is new the planner expects one row: a nested loop over its recipients would take hours
    db.execute("SELECT set_config('enable_nestloop', 'off', true)")
    db.execute(f"DECLARE reviewed NO SCROLL CURSOR FOR {statement}", **which)
    db.execute("SELECT set_config('enable_nestloop', 'on', true)")
    while rows := db.all(f"FETCH {FETCHED} FROM reviewed"):
        yield from (ReviewedRecipient(**row) for row in rows)


def _shown(recipient: ReviewedRecipient) -> str:
    return recipient.email or recipient.phone or recipient.id
