"""The overview: when the worker is healthy, degraded or down, the rates of campaigns, and the last hour."""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from worker.campaigns.forecast import Forecast
from worker.registry import LOCKS
from worker.runtime.counter_readings import CounterReadings, JobState, MetricValue
from worker.runtime.settings import load
from worker.web.backlog import Backlog, figures, read_backlog
from worker.web.campaign_failures import CampaignFailures, FrequentReply
from worker.web.campaign_forecasts import AccountUse, CampaignForecasts
from worker.web.campaign_views import CampaignView, ScheduledView, campaign_view
from worker.web.counter_history import Minute, MinuteSample, last_hour, parse_samples
from worker.web.dependencies import SystemSnapshot
from worker.web.formatting import TEXT_LIMIT, ago, clock, plain, rate, span
from worker.web.job_views import ErrorView, JobView, job_views
from worker.web.overview import Overview, ProgramView, ServiceView, overview
from worker.web.service import Service
from worker.web.status_page import StatusPage
from worker.web.status_text import status_lines
from worker.web.terminal import Terminal, fitted, width
from worker.web.text_table import Cell, text_table
from worker.web.work_in_progress import CAP, CampaignRates, RunningCampaign, ScheduledCampaign, WorkInProgress

NOW = datetime(2026, 1, 31, 12, 0, 7, tzinfo=UTC).timestamp()
UP = Service(up=True)
UNAVAILABLE = Service(up=False, reason="Connection refused")
SERVERS = {"redis": UP, "database": UP, "qdrant": UP}
NO_WORK = WorkInProgress((), 0, 0, None, 0, 0, None, None, 0, 0, 0, 0)
CAMPAIGN = RunningCampaign(
    "c-1", "Diwali", "email", 100, 40, 10, 60.0, -1.0, prepared=True, deferrals=0, adopted=False
)


def job(name: str = "campaign", **known: Any) -> JobState:
    """A job that succeeded ten seconds ago, each minute, in a quarter of a second."""
    usual: dict[str, Any] = {
        "running": False,
        "interval_seconds": 60.0,
        "last_run": NOW - 10,
        "last_success": NOW - 9.75,
        "heartbeat": NOW - 9.75,
        "last_error": None,
        "last_error_at": None,
        "pid": 7,
        "host": "crm-1",
        "duration_buckets": (),
        "duration_sum_seconds": 2.5,
        "duration_count": 10,
    }
    return JobState(job=name, **(usual | known))


def snapshot(*jobs: JobState, services: Mapping[str, Service] = SERVERS, **more: Any) -> SystemSnapshot:
    readings = CounterReadings(more.pop("counters", []), more.pop("gauges", []), {each.job: each for each in jobs})
    return SystemSnapshot(services, readings if services["redis"].up else None, **({"work": NO_WORK} | more))


def seen(*jobs: JobState, **more: Any) -> Overview:
    return overview(snapshot(*jobs, **more), NOW, {})


def gauge(metric: str, value: float, **labels: str) -> MetricValue:
    return MetricValue(metric, labels, value)


@pytest.mark.parametrize(
    ("unavailable", "state", "says"),
    [
        ((), "ok", ()),
        (("qdrant",), "degraded", ("Qdrant does not answer",)),
        (("redis",), "down", ("Redis does not answer",)),
        (("database",), "down", ("PostgreSQL does not answer",)),
        (("redis", "qdrant"), "down", ("Redis does not answer", "Qdrant does not answer")),
    ],
)
def test_servers(unavailable: tuple[str, ...], state: str, says: tuple[str, ...]) -> None:
    """Down without Redis or PostgreSQL, degraded without Qdrant; each reason names its server."""
    shown = seen(job(), services=SERVERS | dict.fromkeys(unavailable, UNAVAILABLE))
    assert shown.state == state
    assert len(shown.reasons) == len(says)
    assert all(text.startswith(start) for text, start in zip(shown.reasons, says, strict=True))


@pytest.mark.parametrize(
    ("since_seconds", "interval_seconds", "late"),
    [(119, 60, False), (121, 60, True), (29, 1, False), (31, 1, True), (7199, 3600, False), (7201, 3600, True)],
)
def test_a_job_is_late_after_two_intervals(since_seconds: float, interval_seconds: float, late: bool) -> None:
    """And its usual duration (here a quarter of a second), but never before half a minute has passed."""
    last_success = NOW - since_seconds - 0.25
    shown = seen(job(interval_seconds=interval_seconds, last_run=NOW - 1, last_success=last_success))
    assert shown.state == ("degraded" if late else "ok")
    assert (shown.jobs or ())[0].state == ("late" if late else "waiting")
    assert bool(shown.reasons) is late


def test_a_failed_tick_does_not_degrade_but_a_job_that_never_succeeded_does() -> None:
    """The next tick retries; a job that has never worked needs an operator."""
    failed = job(last_error="broken", last_error_at=NOW - 5)
    assert (seen(failed).state, (seen(failed).jobs or ())[0].state) == ("ok", "failed")
    assert seen(replace(failed, last_success=None)).reasons == ("campaign has never succeeded",)
    assert seen(job(last_success=None)).state == "ok", "its first tick"
    assert seen(job(last_run=NOW - 500, last_success=None)).state == "degraded", "it hangs in its first tick"
    assert [error.over for error in seen(failed).errors] == [False]
    mended = job(last_error="broken", last_error_at=NOW - 50)
    assert ((seen(mended).jobs or ())[0].state, seen(mended).errors[0].over) == ("waiting", True)


def test_a_job_is_running_while_its_lock_is_held() -> None:
    """What the job reported is not enough; the holder is shown by host and process."""
    running = snapshot(job(running=True), holders={LOCKS["campaign"]: "crm-1:77:0a1b.secret"})
    (first, *_) = job_views(running, NOW, {})
    assert (first.state, first.holder) == ("running", "crm-1, pid 77")
    (first, *_) = job_views(replace(running, holders={}), NOW, {})
    assert (first.state, first.holder) == ("waiting", None)


def test_jobs_that_never_ran_are_listed_and_do_not_degrade() -> None:
    """Every job, in the order of the registry; unknown names are not listed."""
    assert [each.name for each in seen().jobs or ()] == list(LOCKS)
    assert {each.state for each in seen().jobs or ()} == {"never"}
    assert seen().state == "ok"
    assert [each.name for each in seen(job("knowledge"), job("x")).jobs or ()] == list(LOCKS)


def test_the_next_run_is_on_the_jobs_own_clock() -> None:
    """A daily job runs at midnight of its time zone, an hourly one at the full hour of UTC."""
    zones = {"call-cleanup": ZoneInfo("Asia/Kolkata")}
    daily = job("call-cleanup", interval_seconds=86_400.0)
    views = {
        each.name: each for each in job_views(snapshot(daily, job("trial", interval_seconds=3600.0)), NOW, zones)
    }
    assert views["call-cleanup"].next_run_at == datetime(2026, 1, 31, 18, 30, tzinfo=UTC).timestamp()
    assert views["trial"].next_run_at == datetime(2026, 1, 31, 12, 0, tzinfo=UTC).timestamp() + 0 * 3600


def test_programs_that_do_not_stay_up() -> None:
    """FATAL, BACKOFF and bad settings degrade; a program that was stopped, or has exited, does not."""
    states = {"campaign": 20, "calls": 200, "trial": 0, "reminders": 100, "web": 30}
    gauges = [gauge("program_state", number, program=name) for name, number in states.items()]
    gauges.append(gauge("program_bad_settings", 1, program="reminders"))
    gauges.append(gauge("program_bad_settings", 0, program="trial"))
    shown = seen(job(), gauges=gauges)
    assert {each.name for each in shown.programs if each.failing} == {"calls", "web"}
    assert {each.name for each in shown.programs if each.running} == {"campaign"}
    assert [text.split()[0] for text in shown.reasons] == ["calls", "reminders", "web"]
    assert seen(job(), gauges=gauges[2:3]).state == "ok"


def test_programs_of_two_machines() -> None:
    """They are kept apart; a machine whose watchdog is silent, and a watchdog of an older version, do not count."""
    hosts = {"m1": 20, "m2": 200, "gone": 200}
    gauges = [gauge("program_state", number, program="calls", host=host) for host, number in hosts.items()]
    gauges += [gauge("watchdog_timestamp_seconds", NOW - 30, host=host) for host in ("m1", "m2")]
    gauges += [gauge("watchdog_timestamp_seconds", NOW - 3600, host="gone")]
    gauges += [gauge("program_state", 200, program="trial")]
    shown = seen(job(), gauges=gauges)
    assert {(each.name, each.host, each.running) for each in shown.programs} == {
        ("calls", "m1", True),
        ("calls", "m2", False),
    }
    assert shown.reasons == ("calls on m2 failed to start",)


def test_senders_that_were_not_started() -> None:
    """They are not missed: they run where an operator has started them."""
    gauges = [gauge("program_state", n, program=f"campaign-sender:campaign-sender_{n}") for n in (0, 20)]
    assert [each.state for each in seen(job(), gauges=gauges).programs] == ["running"]


def test_a_database_that_cannot_be_queried_degrades_and_warnings_do_not() -> None:
    """Without the worker's tables the work in progress is unknown; a warning changes no state."""
    shown = seen(job(), work=None, work_error='relation "worker.campaign_run" does not exist')
    assert (shown.state, shown.campaigns) == ("degraded", None)
    assert "bin/migrate" in shown.reasons[0]
    shown = seen(job(), warnings=("Redis may evict\x1b[2J locks",))
    assert (shown.state, shown.warnings) == ("ok", ("Redis may evict [2J locks",))


def test_it_is_json() -> None:
    """Everything in it, with field names as keys, for bin/status --json."""
    ends = datetime.fromtimestamp(NOW + 10, UTC).replace(tzinfo=None)
    expected = Forecast(50, 50, ends, None, ends, "ends today about 12:00 UTC")
    running = replace(CAMPAIGN, per_second=5.0, forecast=expected)
    shown = seen(job(), work=replace(NO_WORK, campaigns=(running,), campaigns_in_all=1))
    parsed = json.loads(json.dumps(asdict(shown)))
    assert parsed["campaigns"][0]["ends_at"] == NOW + 10
    assert parsed["state"] == "ok"


@pytest.mark.parametrize(
    "shown", [Overview, ServiceView, JobView, ProgramView, CampaignView, ScheduledView, Backlog, ErrorView, Minute]
)
def test_every_key_of_the_json_is_documented(shown: Any) -> None:
    """In docs/operating.md."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "operating.md").read_text("utf-8")
    section = page.partition("### The JSON of `bin/status`")[2].partition("\n## ")[0]
    assert [each.name for each in fields(shown) if f"`{each.name}`" not in section] == []


def test_failures_of_a_campaign() -> None:
    """By kind, the most frequent first, with their replies; no text from elsewhere breaks a line or a terminal."""
    replies = [
        {"kind": "address", "pattern": "550 5.1.1 unknown", "number": 5, "of_kind": 6, "place": 1},
        {"kind": "refused", "pattern": "550\n\x1b[31m", "number": 9, "of_kind": 9, "place": 1},
        {"kind": "address", "pattern": "", "number": 1, "of_kind": 6, "place": 2},
    ]
    row = {
        "id": "c-1",
        "name": "Di\nwali",
        "channel": "email",
        "status": "failed",
        "reason": "553\t<asha@a.example> no",
    }
    failures = CampaignFailures.from_row(row | {"replies": replies})
    (shown,) = seen(work=replace(NO_WORK, failures=(failures,))).failures
    assert [(each.kind, each.number) for each in shown.kinds] == [("refused", 9), ("address", 6)]
    assert shown.kinds[1].replies == (FrequentReply("550 5.1.1 unknown", 5), FrequentReply("(none)", 1))
    assert shown.reason == "553 <…> no", "no address is on the page"
    assert (shown.number, shown.more) == (15, False)
    texts = [shown.name, shown.reason, *(reply.text for kind in shown.kinds for reply in kind.replies)]
    assert all(text.isprintable() for text in texts), texts
    assert not CampaignFailures.from_row(row | {"replies": None}).kinds


def test_when_a_campaign_ends() -> None:
    """At its rate, unless that is unknown or 0, it is deferred, or its recipients are not selected yet."""

    def view(**changed: Any) -> CampaignView:
        return campaign_view(replace(CAMPAIGN, **changed), NOW)

    ends = datetime.fromtimestamp(NOW + 10, UTC).replace(tzinfo=None)
    expected = Forecast(50, 50, ends, None, ends, "ends today about 12:00 UTC")
    shown = view(per_second=5.0, forecast=expected)
    assert (shown.ends_at, shown.forecast) == (NOW + 10, "ends today about 12:00 UTC")
    assert (view(per_second=5.0).ends_at, view(per_second=5.0).forecast) == (None, "")
    deferred = view(per_second=5.0, deferrals=1, next_batch_seconds=30.0, forecast=expected)
    assert (deferred.ends_at, deferred.forecast, deferred.resumes_at) == (None, "", NOW + 30)
    waiting = view(per_second=5.0, waits_for="quota", waits_seconds=60.0, forecast=expected)
    assert (waiting.ends_at, waiting.waits_for, waiting.waits_until) == (NOW + 10, "its account's quota", NOW + 60)
    waiting = view(deferrals=1, next_batch_seconds=30.0, waits_for="window", waits_seconds=90.0)
    assert (waiting.resumes_at, waiting.waits_for) == (None, "its hours"), "it is not the provider that it waits for"
    assert view(waits_for="quota", waits_seconds=-1.0).waits_until is None, "it is about to go on"
    assert view(total=20).total == 50, "the CRM's total may be behind"
    assert view(name="\x00\u202e ").name == "(no name)"


def test_scheduled_campaigns() -> None:
    """The next ones, each with what is expected of it, on the page and in the terminal."""
    begins, ends = datetime(2026, 2, 1, 4), datetime(2026, 2, 1, 9)  # noqa: DTZ001
    words = "120 of 10,000 tomorrow, the rest on 2 February from 09:00 (Asia/Kolkata)"
    expected = Forecast(10_000, 0, begins, begins, ends, words)
    scheduled = (
        ScheduledCampaign("c-2", "Holi\x00", "whatsapp", 10_000, 3600.0, expected),
        ScheduledCampaign("c-3", "Onam", "email", 0, 7200.0),
    )
    shown = seen(work=replace(NO_WORK, scheduled=scheduled))
    first, second = shown.scheduled
    assert (first.name, first.due_at, first.forecast) == ("Holi", NOW + 3600, words)
    assert first.ends_at == ends.replace(tzinfo=UTC).timestamp()
    assert (second.total, second.ends_at, second.forecast) == (0, None, "")
    lines = "\n".join(status_lines(shown, Terminal(None, colours=False)))
    assert f"Scheduled in 1 h: Holi (whatsapp), {words}" in lines
    assert "Onam (email), its recipients are not selected yet" in lines
    page = StatusPage(lambda: snapshot(), 0.0, {}).html(shown)
    assert words in page
    assert "its recipients are not selected yet" in page


ACCOUNT = {
    "tenant_id": "t-1", "timezone": "Asia/Kolkata", "kind": "smtp", "address": "asha@gmail.com", "people": None,
    "is_shared": True, "hours": [{"hour": "2026-01-31T10:00:00", "used": 900, "used_by_tenant": 100}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("environ", "account", "words"),
    [
        ({}, {}, "ends today about 17:35 (Asia/Kolkata)"),
        ({"SMTP_RATE": "0.01"}, {}, "231 of 500 today, the rest until tomorrow 07:28 (Asia/Kolkata)"),
        (
            {"SMTP_DAILY_LIMIT": "1000"},
            {},
            "100 of 500 today, the rest tomorrow from 16:30 (Asia/Kolkata)",
        ),
        (
            {"SMTP_DAILY_LIMIT": "1300"},
            {"is_shared": False},
            "400 of 500 today, the rest tomorrow from 16:30 (Asia/Kolkata)",
        ),
        ({"GMAIL_DAILY_LIMIT": "2000"}, {"kind": "gmail", "hours": []}, "ends today about 17:43 (Asia/Kolkata)"),
        (
            {},
            {"kind": "gmail"},
            "500 tomorrow from 16:30 (Asia/Kolkata)",
        ),
        ({}, {"kind": "whatsapp", "people": 250, "hours": []}, "225 of 500 today, the rest from"),
        ({}, {"kind": "whatsapp"}, "ends today about"),
        ({"CAMPAIGN_WINDOW": "09:00-17:30"}, {}, "500 tomorrow from 09:00 (Asia/Kolkata)"),
        ({"CAMPAIGN_WINDOW": "17:00-18:00"}, {"timezone": "UTC"}, "ends today about 17:0"),
        ({}, {"timezone": "Mars/Olympus"}, "ends today about 17:35 (Asia/Kolkata)"),
        ({"CAMPAIGN_WINDOW": "09:00-21:00"}, {"timezone": "Mars/Olympus"}, "500 wait: the tenant's time zone cannot"),
        ({"CAMPAIGN_WINDOW": "09:00-21:00"}, {"timezone": "Mars/Olympus", "kind": "whatsapp"}, "ends today about"),
    ],
)
def test_what_bounds_a_scheduled_campaign(environ: dict[str, str], account: dict[str, Any], words: str) -> None:
    """The rate of its account, the quota as it is used by now, and the hours of campaigns by the tenant's clock."""
    needed = {"DATABASE_URL": "postgresql://h/crm", "REDIS_URL": "redis://h", "CAMPAIGN_BATCH_DELAY": "0"}
    forecasts = CampaignForecasts(load(needed | environ, "web"))
    now = datetime(2026, 1, 31, 12)  # noqa: DTZ001
    expected = forecasts.scheduled(500, AccountUse.from_row(ACCOUNT | account), now, 300.0)
    assert expected.words.startswith(words)


def test_the_rate_is_that_of_the_last_minute() -> None:
    """Between two reads; on the first one since the campaign's start, if the worker started it; never below 0."""
    time = [0.0]
    rates = CampaignRates(lambda: time[0])

    def rate_at(at: float, **changed: Any) -> float | None:
        time[0] = at
        return rates.per_second([replace(CAMPAIGN, **changed)])[0]

    assert rate_at(0, running_seconds=100.0) == 0.5
    assert rate_at(10, sent=140) == 10.0
    for at in range(20, 200, 10):
        rate_at(float(at), sent=140)
    assert rate_at(200, sent=140) == 0.0, "what was sent long ago does not count"
    assert rate_at(204, sent=0, running_seconds=2.0) == 5.0, "it was restarted"
    adopted = CampaignRates(lambda: 0.0).per_second([replace(CAMPAIGN, adopted=True)])
    assert adopted == [None], "it is unknown when those were sent"


def sample(minute: int, **totals: float) -> MinuteSample:
    return MinuteSample(minute, totals)


def test_the_backlog_is_what_jobs_reported_and_what_the_database_counted() -> None:
    """Unknown is not 0; the queue is counted later than the gauge of due calls, so it is never below that."""
    assert read_backlog(SystemSnapshot(SERVERS), NOW) == Backlog()
    gauges = [gauge("campaign_pending_recipients", 1200), gauge("campaign_oldest_due_seconds", 90.0)]
    at_night = read_backlog(snapshot(work=replace(NO_WORK, calls_waiting=7, calls_wait_seconds=3600.0)), NOW)
    assert (at_night.calls_waiting, at_night.calls_wait_until) == (7, NOW + 3600)
    work = replace(NO_WORK, calls_queued=3, calls_unconfirmed=2, next_campaign_seconds=60.0, next_call_seconds=30.0)
    backlog = read_backlog(snapshot(gauges=[*gauges, gauge("calls_due", 5)], work=work), NOW)
    assert (backlog.recipients, backlog.recipients_oldest_due_seconds) == (1200, 90.0)
    assert (backlog.calls_due, backlog.calls_queued, backlog.calls_unconfirmed) == (3, 3, 2)
    assert (backlog.next_campaign_at, backlog.next_call_at) == (NOW + 60, NOW + 30)
    capped = read_backlog(
        snapshot(gauges=[gauge("calls_due", 99_999)], work=replace(work, calls_queued=CAP + 1)), NOW
    )
    assert capped.calls_due == 99_999


def test_the_backlog_as_text() -> None:
    """Each number with a note where there is something to say; "unknown" without Redis or PostgreSQL."""
    shown = {each.name: (each.number, each.note) for each in figures(Backlog(), NOW)}
    assert {number for number, _ in shown.values()} == {"unknown"}
    backlog = Backlog(
        recipients=1200,
        recipients_oldest_due_seconds=90.0,
        calls_queued=CAP + 1,
        calls_being_placed=2,
        calls_unconfirmed=1,
        messages_unconfirmed=0,
        next_call_at=NOW + 30,
        calls_waiting=120,
        calls_wait_until=NOW + 3600,
    )
    shown = {each.name: (each.number, each.note) for each in figures(backlog, NOW)}
    assert shown["Campaign recipients"] == ("1,200", "the oldest for 1 min 30 s")
    assert shown["Calls queued"] == ("more than 10,000", "and 2 being placed, the next later one is due in 30 s")
    until = clock(NOW + 3600, NOW)
    assert shown["Calls outside their hours"] == ("120", f"the first may be placed at {until}, in 1 h")
    assert shown["Unconfirmed calls"] == ("1", "Twilio is asked whether it has them")
    assert shown["Unconfirmed e-mails"] == ("0", "")


def test_two_minutes_of_history_make_two_bars() -> None:
    """One for each minute between samples, and one for the minute that is not over yet."""
    samples = [sample(10, messages=100), sample(11, messages=130), sample(12, messages=130)]
    assert last_hour(samples, None) == (Minute(10, {"messages": 30}), Minute(11, {"messages": 0}))
    assert last_hour(samples, sample(12, messages=137))[-1] == Minute(12, {"messages": 7})
    assert last_hour([], None) == last_hour(samples[:1], None) == ()


def test_counters_that_start_again_make_no_negative_bar() -> None:
    """A counter that fell counts from 0, and so does a new one."""
    minutes = last_hour([sample(1, messages=500), sample(2, messages=20, calls=3)], None)
    assert minutes == (Minute(1, {"messages": 20, "calls": 3}),)


def test_minutes_without_a_sample_share_what_was_added() -> None:
    """Marked as an estimate; and nothing older than an hour is shown."""
    assert last_hour([sample(1, messages=0), sample(4, messages=30)], None) == tuple(
        Minute(minute, {"messages": 10}, measured=False) for minute in (1, 2, 3)
    )
    old = last_hour([sample(1, messages=0), sample(500, messages=499)], None)
    assert (len(old), old[-1].minute) == (60, 499)
    future = last_hour([sample(1, messages=0), sample(10**12, messages=1)], sample(2, messages=2))
    assert [each.minute for each in future] == [1, 2]


def test_what_is_not_a_sample_is_left_out() -> None:
    """The history is in Redis, where others may write; samples come out oldest first."""
    good = [json.dumps({"minute": minute, "totals": {"messages": 1}}) for minute in (3, 2)]
    entries = [
        *good,
        "",
        "[]",
        "{",
        '{"minute": 1}',
        '{"minute": "x", "totals": {}}',
        '{"minute": 1, "totals": {"a": []}}',
    ]
    assert [each.minute for each in parse_samples(entries)] == [2, 3]


def test_a_run_time_is_the_mean_of_its_minute() -> None:
    """None when no run ended."""
    assert Minute(1, {"runs:calls": 4, "seconds:calls": 2}).mean_seconds("calls") == 0.5
    assert Minute(1, {"runs:calls": 0, "seconds:calls": 0}).mean_seconds("calls") is None
    assert Minute(1, {}).mean_seconds("calls") is None


def test_times_rates_and_errors_as_text() -> None:
    """In a form that a person reads at a glance."""
    lengths = {0.0012: "1 ms", 0.9996: "1.0 s", 9.96: "10 s", 59.6: "1 min", 3600: "1 h", 12_000: "3 h 20 min"}
    assert {seconds: span(seconds) for seconds in lengths} == lengths
    assert span(200_000) == "2 d 7 h"
    assert (ago(NOW - 61, NOW), ago(NOW + 3, NOW), ago(NOW, NOW)) == ("1 min 1 s ago", "in 3 s", "now")
    assert (clock(NOW, NOW), clock(NOW + 86_400, NOW)) == ("12:00:07", "01 Feb 12:00")
    assert clock(NOW + 0.9, NOW) == "12:00:08", "a time that was computed from a difference is not a second early"
    assert [rate(number) for number in (25.2, 2.5, 0.2, 0.001)] == [
        "25 a second",
        "2.5 a second",
        "12 a minute",
        "4 an hour",
    ]
    refused = 'connection to server at "10.0.0.5", port 5432 failed: Connection refused\n\tIs the server running?'
    assert plain(refused).startswith("PostgreSQL could not be reached: connection to server at")
    assert "\n" not in plain(refused)
    assert plain("Error 111 connecting to redis:6379.").startswith("Redis could not be reached: ")
    assert plain("HTTPConnection(host='q', port=6333): refused") == "q:6333: refused"
    assert plain(" ") == "no reason was given"
    assert plain("क्‍ष\u202e\x1b]0;x\x07") == "क्‍ष ]0;x"
    assert len(plain("x" * 1000)) == TEXT_LIMIT


def test_a_table_fits_its_terminal() -> None:
    """Names are cut first, then columns are left out; wide letters count as two."""
    rows = [
        [Cell("Diwali offers for everybody in the whole of Pune"), Cell("email"), Cell("12")],
        [Cell("短い"), Cell("whatsapp"), Cell("3")],
    ]
    heads = ("Campaign", "Channel", "Sent")
    for columns in (80, 50, 40, 30, 12, 5, 1):
        lines = list(text_table(heads, rows, Terminal(columns, colours=False), ("Channel",)))
        assert all(width(line) <= columns for line in lines), columns
    wide = list(text_table(heads, rows, Terminal(None, colours=False)))
    assert wide[1].startswith("Diwali offers for everybody in the whole of Pune  email")
    assert width(wide[2].partition("whatsapp")[0]) == 50, "columns are aligned"
    assert (fitted("短い名前", 5), width("短い…")) == ("短い…", 5)
    assert (width("é"), width("e\u0301"), width("क्\u200dष")) == (1, 1, 2)


@pytest.mark.parametrize("columns", [20, 40, 80, 200])
@pytest.mark.parametrize("colours", [True, False])
def test_the_whole_status_fits(columns: int, colours: bool) -> None:
    """In every state, and however long the names are."""
    long = replace(CAMPAIGN, name="Averylongname" * 20, per_second=3.0)
    many = replace(NO_WORK, campaigns=(long,), campaigns_in_all=9)
    states = [
        seen(job(last_error="x" * 300, last_error_at=NOW), work=many),
        seen(job(), services=dict.fromkeys(SERVERS, UNAVAILABLE), work=None),
        seen(job(), history=(sample(1, messages=1), sample(2, messages=900))),
    ]
    for shown in states:
        lines = list(status_lines(shown, Terminal(columns, colours)))
        assert colours == any("\x1b[" in line for line in lines)
        if not colours:
            assert max(map(width, lines)) <= columns


@pytest.mark.parametrize(
    ("known", "refused"),
    [
        ({"refused_by": "PostgreSQL", "last_error_at": NOW - 5}, True),
        ({"refused_by": "PostgreSQL", "last_error_at": NOW - 5, "last_success": None}, True),
        ({"refused_by": "PostgreSQL", "last_error_at": NOW - 20}, False),  # over
        ({"refused_by": "PostgreSQL", "last_error_at": NOW - 500, "last_success": NOW - 900}, False),  # stopped
        ({"refused_by": "Redis", "last_error_at": NOW - 5}, False),
        ({"last_error_at": NOW - 5}, False),
        ({}, False),
    ],
)
def test_a_job_that_cannot_write(known: dict[str, Any], refused: bool) -> None:
    """Its report counts until it succeeds, and for two minutes, in which it has tried again."""
    readings = CounterReadings([], [], {"campaign": job(**known)})
    assert readings.refused_job("PostgreSQL", NOW) == ("campaign" if refused else None)


def test_messages_without_an_answer() -> None:
    """Their number is shown while the tick that waits for them runs; what a killed process reported last is not."""
    waiting = job(running=True, stuck=8)
    assert seen(waiting, holders={LOCKS["campaign"]: "crm-1:7:0"}).jobs[0].stuck == 8  # type: ignore[index]
    assert seen(waiting).jobs[0].stuck == 0  # type: ignore[index]
    shown = status_lines(seen(waiting, holders={LOCKS["campaign"]: "crm-1:7:0"}), Terminal(160, colours=False))
    assert any("running, 8 without an answer" in line for line in shown)
