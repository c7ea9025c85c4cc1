"""The last hour as charts: what was sent, placed and reminded, and how long the jobs' runs took."""

from collections.abc import Iterator
from dataclasses import dataclass

from markupsafe import Markup

from worker.web.charts import Bar, bar_chart
from worker.web.history import MINUTE_SECONDS, Minute
from worker.web.overview import Overview
from worker.web.words import clock, count, span


@dataclass(frozen=True)
class Chart:
    """One chart with its words. ``svg`` is None where there is nothing to draw."""

    name: str
    text: str
    most: str  # what the highest bar says
    svg: Markup | None


# what is counted, its name, what those of it that went well are, what those that did not are counted as
TOTALS = (
    ("messages", "Messages", "sent", "messages_failed"),
    ("calls", "Calls", "placed", "calls_failed"),
    ("reminders", "Reminders", "sent", ""),
)


def charts_of(shown: Overview) -> list[Chart]:
    """Three charts of numbers, and one of run times for each job that ended a run in the last hour."""
    return [*(_numbers(shown, *each) for each in TOTALS), *_run_times(shown)]


def _numbers(shown: Overview, key: str, name: str, well: str, failed_key: str) -> Chart:
    def said(good: float, bad: float) -> str:
        return f"{count(good)} {well}" + (f", {count(bad)} failed" if failed_key else "")

    done = [(minute, minute.added.get(key, 0.0), minute.added.get(failed_key, 0.0)) for minute in shown.last_hour]
    text = said(sum(good for _, good, _ in done), sum(bad for _, _, bad in done))
    bars = [_bar(minute, (good, bad), said(good, bad)) for minute, good, bad in done]
    most = max((good + bad for _, good, bad in done), default=0.0)
    svg = bar_chart(key, f"{name} of the last hour", f"One bar a minute. {text}.", bars, ("good", "bad"))
    # made as a tree, which escapes all text
    return Chart(name, text, f"at most {count(most)} a minute", Markup(svg) if most else None)  # noqa: S704


def _run_times(shown: Overview) -> Iterator[Chart]:
    for job in shown.jobs or ():
        means = [(minute, minute.mean_seconds(job.name)) for minute in shown.last_hour]
        known = [mean for _, mean in means if mean is not None]
        if not known:
            continue
        bars = [_bar(minute, (mean or 0.0,), span(mean or 0.0)) for minute, mean in means]
        text = f"{span(known[-1])} last"
        name = f"Run times of {job.name}"
        svg = bar_chart(f"time-{job.name}", name, f"One bar a minute, the mean of its runs. {text}.", bars, ("time",))
        yield Chart(name, text, f"at most {span(max(known))}", Markup(svg))  # noqa: S704 - as above


def _bar(minute: Minute, parts: tuple[float, ...], text: str) -> Bar:
    at = float(minute.minute * MINUTE_SECONDS)
    about = "" if minute.measured else "about "
    return Bar(parts, f"{clock(at, at)[:5]}: {about}{text}", pale=not minute.measured)
