"""Which units to queue next, so that no tenant keeps the others waiting."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

QUEUED_FOR_EACH = 2  # units for each sender: one runs, the next one waits


@dataclass(frozen=True, slots=True)
class ReadyRun:
    """A run that may send now."""

    campaign_id: str
    tenant_id: str


@dataclass(frozen=True, slots=True)
class QueuedUnit:
    """A unit that waits for a sender, or that one runs. ``slot``: its name, campaign/number."""

    campaign_id: str
    tenant_id: str
    slot: str
    waits: bool


@dataclass(frozen=True, slots=True)
class NewUnit:
    """A unit that is to be queued."""

    campaign_id: str
    number: int


def next_units(runs: Sequence[ReadyRun], units: Iterable[QueuedUnit], *, spread: int, senders: int) -> list[NewUnit]:
    """The units to queue, in their order: the next one is always of the tenant that has the fewest.

    As many as keep the senders busy, at most ``spread`` for each run, and at least one for each tenant. The queue is
    short, so a tenant that comes to it waits for a few seconds only. ``runs``: the longest waiting first.
    """
    present = list(units)
    waiting = {unit.slot for unit in present if unit.waits}
    of_tenant = Counter(unit.tenant_id for unit in present)
    of_run = Counter(unit.campaign_id for unit in present)
    free = {run: [number for number in range(spread) if f"{run.campaign_id}/{number}" not in waiting] for run in runs}
    wanted = QUEUED_FOR_EACH * max(1, senders)
    total, chosen = len(present), []
    while candidates := [run for run, numbers in free.items() if numbers]:
        run = min(candidates, key=lambda each: (of_tenant[each.tenant_id], of_run[each.campaign_id]))
        if total >= wanted and of_tenant[run.tenant_id]:
            break
        chosen.append(NewUnit(run.campaign_id, free[run].pop(0)))
        of_tenant[run.tenant_id] += 1
        of_run[run.campaign_id] += 1
        total += 1
    return chosen
