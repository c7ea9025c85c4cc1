"""What one campaign's run came to, its line in the table, and the targets it is held against."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.report import Target

LEAST_RATIO = 0.5  # of the bare transport
LEAST_PER_SECOND = 2500  # recipients, on two cores
MOST_GROWTH = 0.1  # of the peak memory, from the smallest campaign to the largest one

COLUMNS = ("campaign", "sink", "per_second", "bare/s", "ratio", "job us", "db us", "stmts", "peak MB", "seconds")


@dataclass(frozen=True)
class Measurement:
    """One campaign, its counts verified. Times are seconds, microseconds where the name says so."""

    channel: str
    recipients: int
    sink: str
    sent: int
    outbox_rows: int
    sink_count: int
    seconds: float
    per_second: float
    bare_messages: int
    bare_per_second: float
    bare_cpu_us_per_message: float
    ratio: float
    job_cpu_seconds: float
    job_cpu_us_per_recipient: float
    backend_cpu_us_per_recipient: float
    statements_per_recipient: float
    peak_bytes: int


def line(measured: Measurement) -> tuple[str, ...]:
    return (
        f"{measured.channel} {measured.recipients:,}",
        measured.sink,
        f"{measured.per_second:,.0f}",
        f"{measured.bare_per_second:,.0f}",
        f"{measured.ratio:.2f}",
        f"{measured.job_cpu_us_per_recipient:.0f}",
        f"{measured.backend_cpu_us_per_recipient:.0f}",
        f"{measured.statements_per_recipient:.3f}",
        f"{measured.peak_bytes / 1e6:.1f}",
        f"{measured.seconds:.1f}",
    )


def targets(measured: Sequence[Measurement]) -> list[Target]:
    """Those that the measured campaigns say something about."""
    found = [target for each in measured if each.channel == "email" for target in throughput(each)]
    for channel in {each.channel for each in measured}:
        found += memory([each for each in measured if each.channel == channel])
    return found


def throughput(email: Measurement) -> Iterable[Target]:
    what = f"email {email.recipients:,}"
    ratio, rate = email.ratio, email.per_second
    yield Target(f"{what}: ratio to bare smtplib", f"at least {LEAST_RATIO}", f"{ratio:.2f}", ratio >= LEAST_RATIO)
    yield Target(
        f"{what}: recipients a second", f"at least {LEAST_PER_SECOND:,}", f"{rate:,.0f}", rate >= LEAST_PER_SECOND
    )


def memory(measured: Sequence[Measurement]) -> Iterable[Target]:
    """The job's memory must not grow with the campaign."""
    by_size = sorted(measured, key=lambda each: each.recipients)
    least, most = by_size[0], by_size[-1]
    if most.recipients > least.recipients:
        growth = most.peak_bytes / least.peak_bytes - 1
        what = f"{most.channel}: peak memory at {most.recipients:,} over that at {least.recipients:,}"
        yield Target(what, f"at most {MOST_GROWTH:+.0%}", f"{growth:+.1%}", growth <= MOST_GROWTH)
