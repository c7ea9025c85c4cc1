"""The backlog: how much waits to be sent, called or confirmed."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from worker.web.dependencies import SystemSnapshot
from worker.web.formatting import ago, capped, clock, count, span
from worker.web.work_in_progress import CAP, WorkInProgress


@dataclass(frozen=True)
class Backlog:
    """How much waits. None: unknown. Counts from the database end at CAP + 1. Times are Unix seconds."""

    recipients: int | None = None
    recipients_oldest_due_seconds: float | None = None
    calls_due: int | None = None
    calls_oldest_due_seconds: float | None = None
    calls_queued: int | None = None
    calls_waiting: int | None = None  # for the hours of their numbers
    calls_wait_until: float | None = None
    calls_being_placed: int | None = None
    calls_unconfirmed: int | None = None
    messages_unconfirmed: int | None = None
    notifications: int | None = None
    next_campaign_at: float | None = None
    next_call_at: float | None = None


@dataclass(frozen=True)
class Figure:
    """One number of the backlog as text."""

    name: str
    number: str
    note: str = ""


def read_backlog(snapshot: SystemSnapshot, now: float) -> Backlog:
    """The backlog at ``now`` (Unix seconds): what the jobs reported to Redis, and the rest from the database."""
    gauges = {each.metric: each.value for each in snapshot.readings.gauges} if snapshot.readings else {}
    work = snapshot.work
    return Backlog(
        recipients=_whole(gauges.get("campaign_pending_recipients")),
        recipients_oldest_due_seconds=gauges.get("campaign_oldest_due_seconds"),
        calls_due=_calls_due(gauges, work),
        calls_oldest_due_seconds=gauges.get("calls_oldest_due_seconds"),
        calls_queued=work.calls_queued if work else None,
        calls_waiting=work.calls_waiting if work else None,
        calls_wait_until=_after(now, work.calls_wait_seconds) if work else None,
        calls_being_placed=work.calls_being_placed if work else None,
        calls_unconfirmed=work.calls_unconfirmed if work else None,
        messages_unconfirmed=work.messages_unconfirmed if work else None,
        notifications=work.notifications if work else None,
        next_campaign_at=_after(now, work.next_campaign_seconds) if work else None,
        next_call_at=_after(now, work.next_call_seconds) if work else None,
    )


def figures(backlog: Backlog, now: float) -> Iterator[Figure]:
    """The backlog as the page and the terminal show it."""
    queued = [f"and {count(backlog.calls_being_placed)} being placed"] if backlog.calls_being_placed else []
    if backlog.next_call_at is not None:
        queued.append(f"the next later one is due {ago(backlog.next_call_at, now)}")
    calls, messages = backlog.calls_unconfirmed, backlog.messages_unconfirmed
    yield _reported("Campaign recipients", backlog.recipients, backlog.recipients_oldest_due_seconds)
    yield _reported("Calls due", backlog.calls_due, backlog.calls_oldest_due_seconds)
    yield _counted("Calls queued", backlog.calls_queued, ", ".join(queued))
    yield _counted("Calls outside their hours", backlog.calls_waiting, _first_until(backlog.calls_wait_until, now))
    yield _counted("Unconfirmed calls", calls, "Twilio is asked whether it has them" if calls else "")
    yield _counted("Unconfirmed e-mails", messages, "Gmail is asked whether it has them" if messages else "")
    yield _counted("Notifications", backlog.notifications, "reminder digests, trial e-mails")


def _first_until(at: float | None, now: float) -> str:
    return "" if at is None else f"the first may be placed at {clock(at, now)}, {ago(at, now)}"


def _reported(name: str, number: int | None, oldest_seconds: float | None) -> Figure:
    """A number that a job reported; it is complete."""
    oldest = f"the oldest for {span(oldest_seconds)}" if number and oldest_seconds else ""
    return Figure(name, "unknown" if number is None else count(number), oldest)


def _counted(name: str, number: int | None, note: str = "") -> Figure:
    """A number that was counted in the database, no further than CAP."""
    return Figure(name, "unknown" if number is None else capped(number), note)


def _calls_due(gauges: Mapping[str, float], work: WorkInProgress | None) -> int | None:
    due = _whole(gauges.get("calls_due"))
    # the gauge may be ten seconds older than the count of the queue
    if due is not None and work and work.calls_queued <= CAP:
        return min(due, work.calls_queued)
    return due


def _whole(number: float | None) -> int | None:
    return None if number is None else int(number)


def _after(now: float, seconds: float | None) -> float | None:
    return None if seconds is None else now + seconds
