"""What is under way and what waits, as it is shown: running campaigns, calls, messages in doubt."""

from collections.abc import Iterator
from dataclasses import dataclass

from worker.web.dependencies import SystemSnapshot
from worker.web.words import ago, capped, count, one_line, span
from worker.web.work import CAP, RunningCampaign


@dataclass(frozen=True)
class CampaignView:
    """A running campaign. Times are Unix seconds."""

    id: str
    name: str
    channel: str
    total: int
    sent: int
    failed: int
    running_seconds: float
    per_second: float | None  # None: not known yet
    ends_at: float | None  # as expected at this rate
    resumes_at: float | None  # its provider puts its messages off until then
    prepared: bool

    @property
    def done(self) -> int:
        return self.sent + self.failed


@dataclass(frozen=True)
class Backlog:
    """What waits. None: unknown. Counts from the database end at CAP + 1; times are Unix seconds."""

    recipients: int | None = None
    recipients_oldest_due_seconds: float | None = None
    calls_due: int | None = None
    calls_oldest_due_seconds: float | None = None
    calls_queued: int | None = None
    calls_in_hand: int | None = None
    calls_in_doubt: int | None = None
    messages_in_doubt: int | None = None
    notices: int | None = None
    next_campaign_at: float | None = None
    next_call_at: float | None = None


@dataclass(frozen=True)
class Figure:
    """One number of what waits, in words."""

    name: str
    number: str
    note: str = ""


def figures(waiting: Backlog, now: float) -> Iterator[Figure]:
    """What waits, as the page and the terminal say it."""
    later = waiting.next_call_at
    queued = [f"and {count(waiting.calls_in_hand)} being placed"] if waiting.calls_in_hand else []
    queued += [f"the next later one is due {ago(later, now)}"] if later is not None else []
    yield _gauge("Recipients of campaigns", waiting.recipients, waiting.recipients_oldest_due_seconds)
    yield _gauge("Calls due", waiting.calls_due, waiting.calls_oldest_due_seconds)
    yield _counted("Calls queued", waiting.calls_queued, ", ".join(queued))
    yield _counted("Calls in doubt", waiting.calls_in_doubt, "Twilio is asked" if waiting.calls_in_doubt else "")
    yield _counted(
        "Messages in doubt", waiting.messages_in_doubt, "Gmail is asked" if waiting.messages_in_doubt else ""
    )
    yield _counted("Digests and notices", waiting.notices)


def _gauge(name: str, number: int | None, oldest_seconds: float | None) -> Figure:
    """What a job told; it counts all of them."""
    oldest = f"the oldest for {span(oldest_seconds)}" if number and oldest_seconds else ""
    return Figure(name, "not known" if number is None else count(number), oldest)


def _counted(name: str, number: int | None, note: str = "") -> Figure:
    return Figure(name, "not known" if number is None else capped(number), note)


def campaign_view(run: RunningCampaign, now: float) -> CampaignView:
    """A run as it is shown at ``now`` (Unix seconds), with its expected end."""
    left = max(0, run.total - run.done)
    held = run.holds > 0 and run.next_batch_seconds > 0
    return CampaignView(
        id=run.id,
        name=one_line(run.name) or "(no name)",
        channel=one_line(run.channel),
        total=max(run.total, run.done),
        sent=run.sent,
        failed=run.failed,
        running_seconds=max(0.0, run.running_seconds),
        per_second=run.per_second,
        ends_at=now + left / run.per_second if run.per_second and run.prepared and not held else None,
        resumes_at=now + run.next_batch_seconds if held else None,
        prepared=run.prepared,
    )


def waiting(snapshot: SystemSnapshot, now: float) -> Backlog:
    """What waits at ``now`` (Unix seconds): backlogs as the jobs told Redis, the rest from the database."""
    gauges = {each.metric: each.value for each in snapshot.readings.gauges} if snapshot.readings else {}
    told = {"recipients": "campaign_pending_recipients", "calls_due": "calls_due"}
    ages = {
        "recipients_oldest_due_seconds": "campaign_oldest_due_seconds",
        "calls_oldest_due_seconds": "calls_oldest_due_seconds",
    }
    figures: dict[str, int | float | None] = {
        **{name: int(gauges[metric]) for name, metric in told.items() if metric in gauges},
        **{name: gauges[metric] for name, metric in ages.items() if metric in gauges},
    }
    if work := snapshot.work:
        # the gauge of calls that are due may be ten seconds older than the queue
        if "calls_due" in gauges and work.calls_queued <= CAP:
            figures["calls_due"] = min(int(gauges["calls_due"]), work.calls_queued)
        counts = ("calls_queued", "calls_in_hand", "calls_in_doubt", "messages_in_doubt", "notices")
        figures |= {name: getattr(work, name) for name in counts}
        figures["next_campaign_at"] = _in(work.next_campaign_seconds, now)
        figures["next_call_at"] = _in(work.next_call_seconds, now)
    return Backlog(**figures)  # type: ignore[arg-type]


def _in(seconds: float | None, now: float) -> float | None:
    return None if seconds is None else now + seconds
