"""Which units of running campaigns are queued next: every tenant has its turn."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from worker.campaigns.unit_shares import QUEUED_FOR_EACH, QueuedUnit, ReadyRun, next_units


def runs(**of_tenant: int) -> list[ReadyRun]:
    """So many runs for each tenant, those of the first one waiting longest."""
    return [ReadyRun(f"{tenant}{n}", tenant) for tenant, number in of_tenant.items() for n in range(number)]


def queued(run: ReadyRun, number: int, *, waits: bool) -> QueuedUnit:
    return QueuedUnit(run.campaign_id, run.tenant_id, f"{run.campaign_id}/{number}", waits)


def test_one_campaign_is_spread() -> None:
    """It gets as many units as it may have, one for each number; with fewer senders, as many as keep them busy."""
    (run,) = runs(a=1)
    assert [each.number for each in next_units([run], [], spread=4, senders=9)] == [0, 1, 2, 3]
    assert len(next_units([run], [], spread=4, senders=1)) == QUEUED_FOR_EACH
    assert len(next_units([run], [], spread=4, senders=0)) == QUEUED_FOR_EACH, "before the first sender is there"


def test_a_slot_has_one_unit_that_waits() -> None:
    """While a unit runs, the next one of its slot is queued; never a second one."""
    (run,) = runs(a=1)
    running = [queued(run, 0, waits=False)]
    assert [each.number for each in next_units([run], running, spread=1, senders=1)] == [0]
    both = [*running, queued(run, 0, waits=True)]
    assert next_units([run], both, spread=1, senders=9) == []


def test_a_tenant_with_many_campaigns_has_no_more_than_its_share() -> None:
    """One with fifty campaigns and one with a single campaign get the same number of units."""
    chosen = next_units(runs(a=50, b=1), [], spread=4, senders=4)
    assert Counter(each.campaign_id[0] for each in chosen) == {"a": 4, "b": 4}


def test_whoever_comes_to_a_full_queue_gets_a_unit_at_once() -> None:
    """Behind those that wait already, which are few."""
    large, small = runs(a=1, b=1)
    full = [queued(large, n, waits=waits) for n in range(2) for waits in (False, True)]
    assert [each.campaign_id for each in next_units([large, small], full, spread=8, senders=2)] == ["b0"]
    assert next_units([large], full, spread=8, senders=2) == []


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 6), min_size=1),
    st.integers(1, 5),
    st.integers(0, 12),
)
def test_shares(of_tenant: dict[str, int], spread: int, senders: int) -> None:
    """No slot twice, nobody left out, and nobody has two more than another who could have more."""
    chosen = next_units(runs(**of_tenant), [], spread=spread, senders=senders)
    slots = [(each.campaign_id, each.number) for each in chosen]
    assert len(set(slots)) == len(slots)
    got = Counter(each.campaign_id[0] for each in chosen)
    assert set(got) == set(of_tenant)
    for tenant, number in of_tenant.items():
        assert got[tenant] == number * spread or all(other <= got[tenant] + 1 for other in got.values())
