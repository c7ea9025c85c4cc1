"""The status as text for a terminal: the same content as the status page, in the same words."""

from collections.abc import Iterator, Sequence

from worker.web.backlog import figures
from worker.web.campaign_views import CampaignView
from worker.web.counter_history import MINUTES, Minute
from worker.web.formatting import HEADLINES, MARKS, ago, capped, clock, count, moment, rate, span
from worker.web.job_views import STATES, JobView
from worker.web.overview import Overview
from worker.web.terminal import Terminal
from worker.web.text_table import Cell, text_table

BAR_COLUMNS = 16
JOB_HEADS = ("Job", "State", "Last run", "Last success", "Took", "Usually", "Next run", "Failures", "Lock holder")
OPTIONAL_JOB_HEADS = ("Usually", "Last run", "Lock holder", "Took", "Next run", "Failures")
CAMPAIGN_HEADS = ("Campaign", "Channel", "", "Done", "Of", "Failed", "Rate", "Ends about")
OPTIONAL_CAMPAIGN_HEADS = ("Channel", "", "Of", "Failed")
BACKLOG_HEADS = ("Backlog", "Count", "")
HOUR_HEADS = ("Last hour", "Count", "Each minute")
COLOURS = {
    **dict.fromkeys(("ok", "running"), "good"),
    **dict.fromkeys(("degraded", "failed"), "warning"),
    **dict.fromkeys(("down", "late"), "bad"),
}
ENDS_TODAY = "ends today"  # how a forecast begins that says no more than its column
NOT_SELECTED = "its recipients are not selected yet"
LEVELS = " ▁▂▃▄▅▆▇█"


def status_lines(shown: Overview, terminal: Terminal) -> Iterator[str]:
    """All lines of the status; none is wider than the terminal."""
    yield from _head(shown, terminal)
    yield ""
    if shown.jobs is None:
        yield terminal.line("Jobs: unknown, Redis does not answer")
    else:
        yield from text_table(JOB_HEADS, [_job(job, shown.at) for job in shown.jobs], terminal, OPTIONAL_JOB_HEADS)
    yield ""
    yield from _campaigns(shown, terminal)
    yield from _failures(shown, terminal)
    if shown.senders:
        yield from terminal.wrapped(shown.senders.text, "" if shown.senders.machines else "warning")
    yield ""
    rows = [
        [Cell(each.name), Cell(each.number, "strong"), Cell(each.note, "quiet")]
        for each in figures(shown.waiting, shown.at)
    ]
    yield from text_table(BACKLOG_HEADS, rows, terminal, ("",))
    if shown.last_hour:
        yield ""
        yield from text_table(HOUR_HEADS, [*_hour(shown.last_hour)], terminal, HOUR_HEADS[2:])
    if shown.errors:
        yield ""
    for error in shown.errors:
        over = ", has succeeded since" if error.over else ""
        text = f"Error of {error.job} {ago(error.at, shown.at)}{over}: {error.text}"
        yield from terminal.wrapped(text, "quiet" if error.over else "")


def _head(shown: Overview, terminal: Terminal) -> Iterator[str]:
    colour = COLOURS[shown.state]
    yield terminal.line(f"{MARKS[shown.state]} {HEADLINES[shown.state]}  {moment(shown.at)}", colour)
    for text in shown.reasons:
        yield from terminal.wrapped(text, colour, "  ")
    for text in shown.warnings:
        yield from terminal.wrapped(f"Warning: {text}", "warning", "  ")
    for server in shown.services:
        answer = server.state if server.up else f"{server.state}: {server.reason}"
        text = f"{MARKS['ok' if server.up else 'down']} {server.name} {answer}"
        yield from terminal.wrapped(text, "" if server.up else "bad", "  ")
    for program in shown.programs:
        if not program.running:
            bad = program.failing or program.bad_settings
            mark = MARKS["down" if bad else "waiting"]
            settings = ", bad settings" if program.bad_settings else ""
            where = f" on {program.host}" if program.host else ""
            text = f"  {mark} program {program.name}{where}: {program.state}{settings}"
            yield terminal.line(text, "bad" if bad else "")


def _job(job: JobView, now: float) -> list[Cell]:
    def when(at: float | None) -> str:
        return "never" if at is None else ago(at, now)

    def duration(seconds: float | None) -> str:
        return "" if seconds is None else span(seconds)

    return [
        Cell(job.name),
        Cell(f"{MARKS[job.state]} {STATES[job.state]}{_stuck(job)}", COLOURS.get(job.state, "")),
        Cell(when(job.last_run_at)),
        Cell(when(job.last_success_at)),
        Cell(duration(job.last_seconds)),
        Cell(duration(job.usual_seconds)),
        Cell(_next_run(job, now)),
        Cell(f"{count(job.failures)} of {count(job.runs)}"),
        Cell(job.holder or "", "quiet"),
    ]


def _stuck(job: JobView) -> str:
    return f", {count(job.stuck)} without an answer" if job.stuck else ""


def _next_run(job: JobView, now: float) -> str:
    if job.next_run_at is None or job.state == "running":
        return ""
    return f"{'was due ' if job.next_run_at <= now - 1 else ''}{ago(job.next_run_at, now)}"


def _campaigns(shown: Overview, terminal: Terminal) -> Iterator[str]:
    if shown.campaigns is None:
        yield terminal.line("Campaigns: unknown, the database could not be queried")
        return
    if shown.campaigns:
        rows = [_campaign(each, shown.at) for each in shown.campaigns]
        yield from text_table(CAMPAIGN_HEADS, rows, terminal, OPTIONAL_CAMPAIGN_HEADS)
    else:
        next_at = shown.waiting.next_campaign_at
        due = f"; the next one is due {ago(next_at, shown.at)}" if next_at is not None else ""
        yield terminal.line(f"No campaign is running{due}")
    for each in shown.campaigns:
        if each.forecast and (each.waits_until or not each.forecast.startswith(ENDS_TODAY)):
            yield from terminal.wrapped(f"{each.name}: {each.forecast}", "quiet")
    for later in shown.scheduled:
        expected = later.forecast or NOT_SELECTED
        text = f"Scheduled {ago(later.due_at, shown.at)}: {later.name} ({later.channel}), {expected}"
        yield from terminal.wrapped(text, "quiet")
    if shown.campaigns_in_all > len(shown.campaigns):
        text = f"{count(shown.campaigns_in_all)} campaigns in all; the longest running are shown"
        yield terminal.line(text, "quiet")
    if shown.campaigns_of_others:
        text = f"{capped(shown.campaigns_of_others)} more running, sent by the CRM's app servers"
        yield terminal.line(text, "quiet")


def _failures(shown: Overview, terminal: Terminal) -> Iterator[str]:
    for campaign in shown.failures:
        kinds = ", ".join(f"{count(each.number)} {each.kind}" for each in campaign.kinds) or "none"
        yield from terminal.wrapped(f"Failures of {campaign.name} ({campaign.status}): {kinds}", "warning")
        if campaign.reason:
            yield from terminal.wrapped(campaign.reason, "quiet", "  ")
        for kind in campaign.kinds:
            for reply in kind.replies:
                yield from terminal.wrapped(f"{count(reply.number)} {kind.kind}: {reply.text}", "quiet", "  ")


def _campaign(campaign: CampaignView, now: float) -> list[Cell]:
    share = campaign.done / campaign.total if campaign.total else 0.0
    filled = int(share * BAR_COLUMNS)
    if campaign.resumes_at is not None:
        pace, end = "deferred", f"next attempt {ago(campaign.resumes_at, now)}"
    elif campaign.waits_until is not None:
        pace, end = "waits", f"for {campaign.waits_for} until {clock(campaign.waits_until, now)} UTC"
    elif campaign.per_second is None or not campaign.prepared:
        pace, end = "not known yet", ""
    else:
        pace = rate(campaign.per_second)
        end = f"{clock(campaign.ends_at, now)}, {ago(campaign.ends_at, now)}" if campaign.ends_at else ""
    return [
        Cell(campaign.name),
        Cell(campaign.channel),
        Cell("█" * filled + "░" * (BAR_COLUMNS - filled) + f" {100 * share:3.0f} %"),
        Cell(count(campaign.done)),
        Cell(count(campaign.total) if campaign.prepared else "being selected"),
        Cell(count(campaign.failed), "warning" if campaign.failed else ""),
        Cell(pace, "warning" if campaign.resumes_at is not None else ""),
        Cell(end),
    ]


def _hour(minutes: Sequence[Minute]) -> Iterator[list[Cell]]:
    for key, name in (("messages", "Messages sent"), ("calls", "Calls placed"), ("reminders", "Reminders sent")):
        added = [minute.added.get(key, 0.0) for minute in minutes][-MINUTES:]
        yield [Cell(name), Cell(count(sum(added)), "strong"), Cell(_sparkline(added) if any(added) else "")]


def _sparkline(numbers: Sequence[float]) -> str:
    """One character for each number, as high as its share of the highest number."""
    highest = max(numbers)
    return "".join(LEVELS[-int(-number * (len(LEVELS) - 1) // highest)] for number in numbers)
