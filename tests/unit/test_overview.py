"""The overview: when the worker is healthy, degraded or down, how fast campaigns are, and what the last hour was."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from worker.registry import LOCKS
from worker.runtime.counter_readings import CounterReadings, JobState, MetricValue
from worker.web import history
from worker.web.backlog import CampaignView, campaign_view
from worker.web.dependencies import Service, SystemSnapshot
from worker.web.history import Minute, last_hour, parsed
from worker.web.jobs import job_views
from worker.web.overview import Overview, overview
from worker.web.table import Cell, Terminal, fitted, table, width
from worker.web.terminal import drawn
from worker.web.words import ago, clock, one_line, plain, rate, span
from worker.web.work import CampaignRates, RunningCampaign, WorkInProgress

NOW = datetime(2026, 1, 31, 12, 0, 7, tzinfo=UTC).timestamp()
UP = Service(up=True)
UNAVAILABLE = Service(up=False, reason="Connection refused")
SERVERS = {"redis": UP, "database": UP, "qdrant": UP}
NO_WORK = WorkInProgress((), 0, 0, None, 0, None, 0, 0, 0, 0)
RUN = RunningCampaign("c-1", "Diwali", "email", 100, 40, 10, 60.0, -1.0, prepared=True, holds=0, adopted=False)


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
    ("away", "state", "says"),
    [
        ((), "ok", ()),
        (("qdrant",), "degraded", ("Qdrant does not answer",)),
        (("redis",), "down", ("Redis does not answer",)),
        (("database",), "down", ("PostgreSQL does not answer",)),
        (("redis", "qdrant"), "down", ("Redis does not answer", "Qdrant does not answer")),
    ],
)
def test_servers(away: tuple[str, ...], state: str, says: tuple[str, ...]) -> None:
    """Down without Redis or PostgreSQL, degraded without Qdrant; each reason names its server."""
    shown = seen(job(), services=SERVERS | dict.fromkeys(away, UNAVAILABLE))
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


def test_a_tick_that_failed_is_no_alarm_but_a_job_that_never_succeeded_is() -> None:
    """The next tick tries again; a job that can do nothing from its start on needs somebody."""
    failed = job(last_error="broken", last_error_at=NOW - 5)
    assert (seen(failed).state, (seen(failed).jobs or ())[0].state) == ("ok", "failed")
    assert seen(replace(failed, last_success=None)).reasons == ("campaign has never succeeded",)
    assert seen(job(last_success=None)).state == "ok", "its first tick"
    assert seen(job(last_run=NOW - 500, last_success=None)).state == "degraded", "it hangs in its first tick"
    assert [error.over for error in seen(failed).errors] == [False]
    mended = job(last_error="broken", last_error_at=NOW - 50)
    assert ((seen(mended).jobs or ())[0].state, seen(mended).errors[0].over) == ("waiting", True)


def test_a_job_is_at_work_while_its_lock_is_held() -> None:
    """Its own word is not enough; the holder is shown by host and process."""
    at_work = snapshot(job(running=True), holders={LOCKS["campaign"]: "crm-1:77:0a1b.secret"})
    (first, *_) = job_views(at_work, NOW, {})
    assert (first.state, first.holder) == ("running", "crm-1, pid 77")
    (first, *_) = job_views(replace(at_work, holders={}), NOW, {})
    assert (first.state, first.holder) == ("waiting", None)


def test_jobs_that_never_ran_are_listed_and_no_alarm() -> None:
    """Every job, in its usual order; unknown names never do."""
    assert [each.name for each in seen().jobs or ()] == list(LOCKS)
    assert {each.state for each in seen().jobs or ()} == {"never"}
    assert seen().state == "ok"
    assert [each.name for each in seen(job("knowledge"), job("x")).jobs or ()] == list(LOCKS)


def test_the_next_run_is_on_the_jobs_own_clock() -> None:
    """A daily job runs at midnight of its zone, an hourly one at the full hour of UTC."""
    zones = {"call-cleanup": ZoneInfo("Asia/Kolkata")}
    daily = job("call-cleanup", interval_seconds=86_400.0)
    views = {
        each.name: each for each in job_views(snapshot(daily, job("trial", interval_seconds=3600.0)), NOW, zones)
    }
    assert views["call-cleanup"].next_run_at == datetime(2026, 1, 31, 18, 30, tzinfo=UTC).timestamp()
    assert views["trial"].next_run_at == datetime(2026, 1, 31, 12, 0, tzinfo=UTC).timestamp() + 0 * 3600


def test_programs_that_supervisord_cannot_keep_up() -> None:
    """FATAL, BACKOFF and bad settings degrade; one that somebody stopped, or that ended, does not."""
    states = {"campaign": 20, "calls": 200, "trial": 0, "reminders": 100, "web": 30}
    gauges = [gauge("program_state", number, program=name) for name, number in states.items()]
    gauges.append(gauge("program_bad_settings", 1, program="reminders"))
    gauges.append(gauge("program_bad_settings", 0, program="trial"))
    shown = seen(job(), gauges=gauges)
    assert {each.name for each in shown.programs if each.failing} == {"calls", "web"}
    assert {each.name for each in shown.programs if each.running} == {"campaign"}
    assert [text.split()[0] for text in shown.reasons] == ["calls", "reminders", "web"]
    assert seen(job(), gauges=gauges[2:3]).state == "ok"


def test_a_database_that_tells_nothing_degrades_and_warnings_do_not() -> None:
    """Without the worker's tables nobody knows what is under way; a warning is only worth a look."""
    shown = seen(job(), work=None, work_refused='relation "worker.campaign_run" does not exist')
    assert (shown.state, shown.campaigns) == ("degraded", None)
    assert "bin/migrate" in shown.reasons[0]
    shown = seen(job(), warnings=("Redis may evict\x1b[2J locks",))
    assert (shown.state, shown.warnings) == ("ok", ("Redis may evict [2J locks",))


def test_it_is_json() -> None:
    """Everything in it, with names, for bin/status --json."""
    shown = seen(job(), work=replace(NO_WORK, runs=(replace(RUN, per_second=5.0),), runs_in_all=1))
    told = json.loads(json.dumps(asdict(shown)))
    assert told["campaigns"][0]["ends_at"] == NOW + 10
    assert told["state"] == "ok"


def test_when_a_campaign_ends() -> None:
    """At its rate, unless that is not known, nothing moves, it is put off, or its recipients are not known yet."""

    def view(**changed: Any) -> CampaignView:
        return campaign_view(replace(RUN, **changed), NOW)

    assert view(per_second=5.0).ends_at == NOW + 10
    assert view(per_second=None).ends_at is view(per_second=0.0).ends_at is None
    assert view(per_second=5.0, prepared=False).ends_at is None
    held = view(per_second=5.0, holds=1, next_batch_seconds=30.0)
    assert (held.ends_at, held.resumes_at) == (None, NOW + 30)
    assert view(total=20).total == 50, "the CRM's total may be behind"
    assert view(name="\x00\u202e ").name == "(no name)"


def test_the_rate_is_that_of_the_last_minute() -> None:
    """From look to look; on the first one since the start, where the worker itself began; never below zero."""
    time = [0.0]
    paces = CampaignRates(lambda: time[0])

    def look(at: float, **changed: Any) -> float | None:
        time[0] = at
        return paces.per_second([replace(RUN, **changed)])[0]

    assert look(0, running_seconds=100.0) == 0.5
    assert look(10, sent=140) == 10.0
    for at in range(20, 200, 10):
        look(float(at), sent=140)
    assert look(200, sent=140) == 0.0, "what was long ago is forgotten"
    assert look(204, sent=0, running_seconds=2.0) == 5.0, "it was started anew"
    assert CampaignRates(lambda: 0.0).per_second([replace(RUN, adopted=True)]) == [None], (
        "who knows when those were sent"
    )


def sample(minute: int, **totals: float) -> history.MinuteSample:
    return history.MinuteSample(minute, totals)


def test_two_minutes_of_history_make_two_bars() -> None:
    """One for each minute between samples, and one for the minute that is not over."""
    samples = [sample(10, messages=100), sample(11, messages=130), sample(12, messages=130)]
    assert last_hour(samples, None) == (Minute(10, {"messages": 30}), Minute(11, {"messages": 0}))
    assert last_hour(samples, sample(12, messages=137))[-1] == Minute(12, {"messages": 7})
    assert last_hour([], None) == last_hour(samples[:1], None) == ()


def test_counters_that_start_anew_make_no_negative_bar() -> None:
    """What fell counts from 0, and so does what is new."""
    minutes = last_hour([sample(1, messages=500), sample(2, messages=20, calls=3)], None)
    assert minutes == (Minute(1, {"messages": 20, "calls": 3}),)


def test_minutes_that_nobody_measured_share_what_was_added() -> None:
    """Marked as an estimate; and nothing older than an hour is shown."""
    assert last_hour([sample(1, messages=0), sample(4, messages=30)], None) == tuple(
        Minute(minute, {"messages": 10}, measured=False) for minute in (1, 2, 3)
    )
    old = last_hour([sample(1, messages=0), sample(500, messages=499)], None)
    assert (len(old), old[-1].minute) == (60, 499)
    future = last_hour([sample(1, messages=0), sample(10**12, messages=1)], sample(2, messages=2))
    assert [each.minute for each in future] == [1, 2]


def test_what_is_no_sample_is_left_out() -> None:
    """The ring is in Redis, where anybody may write; samples come out oldest first."""
    good = [json.dumps({"minute": minute, "totals": {"messages": 1}}) for minute in (3, 2)]
    ring = [
        *good,
        "",
        "[]",
        "{",
        '{"minute": 1}',
        '{"minute": "x", "totals": {}}',
        '{"minute": 1, "totals": {"a": []}}',
    ]
    assert [each.minute for each in parsed(ring)] == [2, 3]


def test_a_run_time_is_the_mean_of_its_minute() -> None:
    """None where no run ended."""
    assert Minute(1, {"runs:calls": 4, "seconds:calls": 2}).mean_seconds("calls") == 0.5
    assert Minute(1, {"runs:calls": 0, "seconds:calls": 0}).mean_seconds("calls") is None
    assert Minute(1, {}).mean_seconds("calls") is None


def test_words() -> None:
    """Times, rates and errors as a person says them."""
    lengths = {0.0012: "1 ms", 0.9996: "1.0 s", 9.96: "10 s", 59.6: "1 min", 3600: "1 h", 12_000: "3 h 20 min"}
    assert {seconds: span(seconds) for seconds in lengths} == lengths
    assert span(200_000) == "2 d 7 h"
    assert (ago(NOW - 61, NOW), ago(NOW + 3, NOW), ago(NOW, NOW)) == ("1 min 1 s ago", "in 3 s", "now")
    assert (clock(NOW, NOW), clock(NOW + 86_400, NOW)) == ("12:00:07", "01 Feb 12:00")
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
    assert one_line("क्‍ष\u202e\x1b]0;x\x07") == "क्‍ष ]0;x"
    assert len(one_line("x" * 1000)) == 500


def test_a_table_fits_its_terminal() -> None:
    """Names are cut first, then columns are left out; wide letters count as two."""
    rows = [
        [Cell("Diwali offers for everybody in the whole of Pune"), Cell("email"), Cell("12")],
        [Cell("短い"), Cell("whatsapp"), Cell("3")],
    ]
    for columns in (80, 50, 40, 30, 12, 5, 1):
        lines = list(table(("Campaign", "Channel", "Sent"), rows, Terminal(columns, colours=False), ("Channel",)))
        assert all(width(line) <= columns for line in lines), columns
    wide = list(table(("Campaign", "Channel", "Sent"), rows, Terminal(None, colours=False)))
    assert wide[1].startswith("Diwali offers for everybody in the whole of Pune  email")
    assert width(wide[2].partition("whatsapp")[0]) == 50, "columns stand under each other"
    assert (fitted("短い名前", 5), width("短い…")) == ("短い…", 5)
    assert (width("é"), width("e\u0301"), width("क्\u200dष")) == (1, 1, 2)


@pytest.mark.parametrize("columns", [20, 40, 80, 200])
@pytest.mark.parametrize("colours", [True, False])
def test_the_whole_status_fits(columns: int, colours: bool) -> None:
    """Whatever state it is in, and however long the names are."""
    long = replace(RUN, name="Averylongname" * 20, per_second=3.0)
    states = [
        seen(job(last_error="x" * 300, last_error_at=NOW), work=replace(NO_WORK, runs=(long,), runs_in_all=9)),
        seen(job(), services=dict.fromkeys(SERVERS, UNAVAILABLE), work=None),
        seen(job(), history=(sample(1, messages=1), sample(2, messages=900))),
    ]
    for shown in states:
        lines = list(drawn(shown, Terminal(columns, colours)))
        assert colours == any("\x1b[" in line for line in lines)
        if not colours:
            assert max(map(width, lines)) <= columns
