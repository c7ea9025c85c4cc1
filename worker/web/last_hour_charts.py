"""The charts of the last hour: messages, calls and reminders, and how long the runs of each job took."""

from collections.abc import Iterator
from dataclasses import dataclass

from markupsafe import Markup

from worker.web.bar_chart import Bar, bar_chart
from worker.web.counter_history import MINUTE_SECONDS, Minute
from worker.web.formatting import clock, count, span
from worker.web.overview import Overview


@dataclass(frozen=True)
class Chart:
    """One chart with its texts. ``svg`` is None when there is nothing to draw."""

    name: str
    text: str
    highest: str  # the value of the highest bar
    svg: Markup | None


@dataclass(frozen=True)
class _Counted:
    """What a chart of numbers shows. The keys are those of counter_history.TOTALS."""

    key: str
    name: str
    succeeded: str  # the word for those that succeeded
    failed_key: str = ""  # '': failures are not counted


_CHARTED = (
    _Counted("messages", "Messages", "sent", "messages_failed"),
    _Counted("calls", "Calls", "placed", "calls_failed"),
    _Counted("reminders", "Reminders", "sent"),
)


def last_hour_charts(shown: Overview) -> list[Chart]:
    """Three charts of numbers, and a chart of run times for each job that ended a run in the last hour."""
    return [*(_numbers(shown, each) for each in _CHARTED), *_run_times(shown)]


def _numbers(shown: Overview, counted: _Counted) -> Chart:
    def text_of(succeeded: float, failed: float) -> str:
        return f"{count(succeeded)} {counted.succeeded}" + (f", {count(failed)} failed" if counted.failed_key else "")

    succeeded = [minute.added.get(counted.key, 0.0) for minute in shown.last_hour]
    failed = [minute.added.get(counted.failed_key, 0.0) for minute in shown.last_hour]
    text = text_of(sum(succeeded), sum(failed))
    numbers = list(zip(succeeded, failed, strict=True))
    bars = [_bar(minute, parts, text_of(*parts)) for minute, parts in zip(shown.last_hour, numbers, strict=True)]
    highest = max(map(sum, numbers), default=0.0)
    title = f"{counted.name} of the last hour"
    svg = bar_chart(counted.key, title, f"One bar per minute. {text}.", bars, ("good", "bad"))
    # built as a tree of elements, which escapes all text
    drawn = Markup(svg) if highest else None  # noqa: S704
    return Chart(counted.name, text, f"at most {count(highest)} a minute", drawn)


def _run_times(shown: Overview) -> Iterator[Chart]:
    for job in shown.jobs or ():
        means = [(minute, minute.mean_seconds(job.name)) for minute in shown.last_hour]
        known = [mean for _, mean in means if mean is not None]
        if not known:
            continue
        bars = [_bar(minute, (mean or 0.0,), span(mean or 0.0)) for minute, mean in means]
        text = f"{span(known[-1])} last"
        name = f"Run times of {job.name}"
        description = f"One bar per minute, the mean of its runs. {text}."
        svg = bar_chart(f"time-{job.name}", name, description, bars, ("time",))
        yield Chart(name, text, f"at most {span(max(known))}", Markup(svg))  # noqa: S704 - as above


def _bar(minute: Minute, parts: tuple[float, ...], text: str) -> Bar:
    at = float(minute.minute * MINUTE_SECONDS)
    about = "" if minute.measured else "about "
    return Bar(parts, f"{clock(at, at)[:5]}: {about}{text}", pale=not minute.measured)
