"""How many recipients a claim takes: what the operator wrote, or what is sent in a tenth of a second."""

from worker.campaigns.claim_size import CAMPAIGNS_KEPT, LARGEST_CLAIM, ClaimSize
from worker.runtime.settings import load

ENVIRONMENT = {"DATABASE_URL": "postgresql://crm@127.0.0.1/crm", "REDIS_URL": "redis://127.0.0.1:6379"}


def sizes(**environ: str) -> ClaimSize:
    return ClaimSize(load(ENVIRONMENT | {"CAMPAIGN_BATCH_DELAY": "0"} | environ, "campaign"))


def test_with_a_pause_the_operator_decides() -> None:
    size = sizes(CAMPAIGN_BATCH_DELAY="1s", CAMPAIGN_BATCH_SIZE="700")
    size.measured("c", 700, 0.01)
    assert (size.of("c"), size.side_by_side) == (700, 1)


def test_what_takes_a_tenth_of_a_second() -> None:
    """It grows by no more than four times at a time, and shrinks at once."""
    size = sizes(CAMPAIGN_BATCH_SIZE="100", CAMPAIGN_CONCURRENCY="8")
    assert (size.of("c"), size.side_by_side) == (16, 2)
    size.measured("c", 16, 0.0064)  # 2,500 a second
    assert size.of("c") == 64
    size.measured("c", 64, 0.08)  # 800 a second
    assert size.of("c") == 80
    size.measured("c", 80, 0.32)
    assert size.of("c") == 25


def test_a_recipient_for_each_connection() -> None:
    size = sizes(CAMPAIGN_BATCH_SIZE="100", CAMPAIGN_CONCURRENCY="8")
    size.measured("c", 50, 30.0)
    assert size.of("c") == 8
    few = sizes(CAMPAIGN_BATCH_SIZE="4", CAMPAIGN_CONCURRENCY="8")
    assert few.of("c") == 2
    few.measured("c", 2, 30.0)
    assert few.of("c") == 2


def test_at_most() -> None:
    size = sizes()
    for _ in range(10):
        size.measured("c", size.of("c"), 0.0)
    assert size.of("c") == LARGEST_CLAIM


def test_campaigns_are_measured_apart() -> None:
    """A slow campaign is no reason for small claims of a fast one; few of them are remembered."""
    size = sizes()
    size.measured("slow", 50, 10.0)
    assert size.of("fast") == 16
    for number in range(CAMPAIGNS_KEPT):
        size.measured(f"c-{number}", 50, 0.01)
    assert size.of("slow") == 16


def test_a_batch_of_nobody() -> None:
    size = sizes()
    size.measured("c", 0, 1.0)
    assert size.of("c") == 16


def test_all_batches_share_twice_the_number_of_threads() -> None:
    """What a lost machine leaves unconfirmed, whatever the size of its batches."""
    paused = sizes(CAMPAIGN_BATCH_DELAY="1s", CAMPAIGN_BATCH_SIZE="700", CAMPAIGN_CONCURRENCY="8")
    assert [paused.allowance("c", campaigns) for campaigns in (1, 2, 5, 100)] == [16, 8, 3, 1]
    free = sizes(CAMPAIGN_CONCURRENCY="8")  # two batches of each campaign
    assert [free.allowance("c", campaigns) for campaigns in (1, 2, 5, 100)] == [8, 4, 1, 1]
    free.measured("c", 8, 0.03)  # 267 a second
    assert (free.of("c"), free.allowance("c", 1)) == (26, 8)


def test_a_batch_for_a_quick_server_may_leave_as_a_whole() -> None:
    """Its commits in between would cost too much."""
    size = sizes(CAMPAIGN_CONCURRENCY="8", CAMPAIGN_BATCH_SIZE="200")
    size.measured("c", 16, 0.04)  # 400 a second
    assert (size.of("c"), size.allowance("c", 1)) == (40, 8)
    size.measured("c", 40, 0.04)  # 1,000 a second
    assert (size.of("c"), size.allowance("c", 1)) == (100, None)


def test_many_connections_say_nothing_of_the_rate() -> None:
    """A first claim has a recipient for each; its server may be slow all the same."""
    size = sizes(CAMPAIGN_CONCURRENCY="64", CAMPAIGN_BATCH_SIZE="500")
    assert (size.of("c"), size.allowance("c", 1)) == (64, 64)
    size.measured("c", 64, 30.0)
    assert (size.of("c"), size.allowance("c", 1)) == (64, 64)
