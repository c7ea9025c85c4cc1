"""Addresses that may not be written to or called: worker.suppression, a list for each tenant and channel.

Whoever claims a message or call looks whether its address is suppressed. SuppressionWatch sees what is added to the
list between the claim and the moment at which the message leaves.
"""

import time
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from worker.runtime.clock import boot_seconds
from worker.runtime.counters import Counters
from worker.runtime.db import Database, queries
from worker.sending.outcomes import Suppression

LOOK_SECONDS = 0.3  # between two looks
LOOK_VALID_SECONDS = 2.0  # without a newer look no message leaves: the thread that looks may be kept busy for long


class SuppressionList(NamedTuple):
    """The list of one tenant for one channel: email, whatsapp or call."""

    tenant_id: str
    channel: str


def suppress(
    db: Database,
    counters: Counters,
    among: SuppressionList,
    address: str,
    suppression: Suppression,
    *,
    reason: str | None,
    code: str = "",
) -> None:
    """Remembers what a provider said about an address: an e-mail address, or a number with its plus sign.

    ``code``: the provider's, of its refusal.
    """
    row = db.execute_one(
        queries("sending")["suppress"],
        tenant_id=among.tenant_id,
        channel=among.channel,
        address=address,
        reason=reason,
        source=suppression.source,
        until=suppression.until,
        code=code,
    )
    if row and row["changed"]:
        count_suppressions(counters, among.channel, suppression.source)


def count_suppressions(counters: Counters, channel: str, source: str, number: int = 1) -> None:
    """Counts addresses that this process added to a list, for the metrics."""
    if number:
        counters.add("suppressions_total", number, channel=channel, source=source)


class SuppressionWatch:
    """Looks now and then whether lists got entries. For the thread that has the database connection.

    A look is one statement by index. It finds every entry that was committed since the look before, however long its
    transaction took: it remembers by PostgreSQL's own numbers which transactions had ended by then.
    """

    def __init__(self, db: Database, monotonic: Callable[[], float] = time.monotonic) -> None:
        """``monotonic``: a clock, in seconds."""
        self._db = db
        self._monotonic = monotonic
        self._sql = queries("sending")
        self._look_at = float("-inf")  # monotonic()
        self.looked_at = float("-inf")  # boot_seconds() just before the latest look
        self._seen = "0"  # the first transaction that may not have ended at the latest look

    def changed(self, lists: Collection[SuppressionList]) -> set[SuppressionList]:
        """Those of the lists that got entries since the latest look; none so soon after it that none is made.

        To be called for every list of which something is claimed: what was on the list before the claim, the claim
        has seen.
        """
        if not lists or self._monotonic() < self._look_at:
            return set()
        ordered, now = list(lists), boot_seconds()
        row = self._db.execute_one_prepared(
            "suppressions_since",
            self._sql["suppressions_since"],
            tenant_ids=[each.tenant_id for each in ordered],
            channels=[each.channel for each in ordered],
            seen=self._seen,
        )
        self._look_at, self.looked_at = self._monotonic() + LOOK_SECONDS, now
        if row is None:
            return set()
        self._seen = row["seen"]
        return {ordered[number - 1] for number in row["changed"]}

    def suppressed(self, among: SuppressionList, addresses: Sequence[str]) -> dict[str, str]:
        """Which of these addresses, in the spelling of the list, are suppressed now, and why."""
        rows = self._db.all(
            self._sql["suppressed_addresses"],
            tenant_id=among.tenant_id,
            channel=among.channel,
            addresses=list(addresses),
        )
        return {row["address"]: row["reason"] for row in rows}
