"""Benchmark of how soon the programs are there: after boot, when a campaign is due, and when /metrics is asked."""

import argparse
import os
import random
import signal
import statistics
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from http.client import HTTPConnection, HTTPException

import psycopg2

from benchmarks.program_set import ProgramSet, Surroundings, program_set, surroundings
from benchmarks.report import Failure, Progress, Report, Target
from sandbox.crm import Crm, utc_now

BOOTS = 3
CAMPAIGNS = 20
FIRST_DUE_SECONDS = 3.0  # from their insertion
APART_SECONDS = 0.5  # on average
WAIT_SECONDS = 30.0
CONNECTIONS = 8
SECONDS = 5  # of /metrics
COLUMNS = ("what", "number", "median ms", "99 % ms", "most ms", "per second")

MOST_BOOT_MS, MOST_LATE_MS = 1500.0, 50.0
LEAST_ANSWERS, MOST_ANSWER_MS = 500.0, 40.0

BOOT, MESSAGE, METRICS = "all programs run after boot", "first message of a due campaign", "answer of /metrics"


@dataclass(frozen=True)
class Reaction:
    """How long one thing took."""

    what: str
    number: int
    median_ms: float
    p99_ms: float
    most_ms: float
    per_second: float | None = None  # of what is asked as fast as it answers


def run(options: argparse.Namespace, progress: Progress) -> Report:
    """Raises Failure when a program does not run, a message does not come, or an answer is not 200."""
    seconds = options.seconds or SECONDS
    with surroundings(progress) as around:
        boots = [boot(around, progress, number) for number in range(1, BOOTS)]
        progress.say(f"starting supervisord and its programs, {BOOTS} of {BOOTS} ...")
        began = time.monotonic()
        with program_set(around) as programs:
            programs.wait_until_running()
            boots.append(time.monotonic() - began)
            programs.wait_for_ticks(progress)
            progress.say(f"{CAMPAIGNS} campaigns, each due at another moment ...")
            late = first_messages(programs, around)
            progress.say(f"/metrics through {CONNECTIONS} connections for {seconds} s ...")
            answers = metrics_answers(programs.port, seconds)
    measured = (
        reaction(BOOT, boots),
        reaction(MESSAGE, late),
        reaction(METRICS, answers, len(answers) / seconds),
    )
    title = f"reaction: all programs under supervisord, {len(os.sched_getaffinity(0))} cores"
    return Report(title, COLUMNS, [line(each) for each in measured], measured, targets(*measured))


def boot(around: Surroundings, progress: Progress, number: int) -> float:
    """Starts and stops all programs; returns the seconds until supervisord said that all of them run."""
    progress.say(f"starting supervisord and its programs, {number} of {BOOTS} ...")
    began = time.monotonic()
    with program_set(around) as programs:
        programs.wait_until_running()
        return time.monotonic() - began


def first_messages(programs: ProgramSet, around: Surroundings) -> list[float]:
    """How many seconds after each campaign was due its message was in the inbox."""
    due: dict[str, datetime] = {}
    moments = random.Random(1)  # noqa: S311 - no secret
    with closing(psycopg2.connect(around.database_url)) as connection:
        crm = Crm(connection)
        at = utc_now() + timedelta(seconds=FIRST_DUE_SECONDS)
        for number in range(CAMPAIGNS):
            address = f"first-{number}@crm.example.in"
            at = at.replace(microsecond=at.microsecond // 1000 * 1000)  # as the column keeps it
            crm.add_campaign(scheduled_at=at, recipients=[{"recipientEmail": address}])
            due[address] = at
            at += timedelta(seconds=moments.uniform(0.5, 1.5) * APART_SECONDS)
    # as if they had been there when the job looked last, half a minute ago at most
    os.kill(programs.running()["campaign"], signal.SIGUSR1)
    received = messages(around)
    return [(received[address] - at).total_seconds() for address, at in due.items()]


def messages(around: Surroundings) -> dict[str, datetime]:
    """When the message to each address came, in UTC without a zone."""
    try:
        around.outside.wait_for("smtp", CAMPAIGNS, WAIT_SECONDS)
    except TimeoutError as error:
        raise Failure(f"the messages of the campaigns: {error}") from error
    received = around.outside.deliveries("smtp")
    return {each.address: datetime.fromisoformat(each.at).replace(tzinfo=None) for each in received}


def metrics_answers(port: int, seconds: float) -> list[float]:
    """The seconds that each answer took, through several connections at once."""
    until = time.monotonic() + seconds
    answers: list[float] = []
    failures: list[str] = []

    def ask() -> None:
        with closing(HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
            while (began := time.monotonic()) < until and not failures:
                try:
                    connection.request("GET", "/metrics")
                    response = connection.getresponse()
                    response.read()
                except (OSError, HTTPException) as error:
                    failures.append(repr(error))
                    return
                if response.status != 200:
                    failures.append(f"HTTP {response.status}")
                answers.append(time.monotonic() - began)

    threads = [threading.Thread(target=ask) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise Failure(f"/metrics: {failures[0]}")
    return answers


def reaction(what: str, seconds: Sequence[float], per_second: float | None = None) -> Reaction:
    in_order = sorted(1000 * each for each in seconds)
    p99 = in_order[min(len(in_order) - 1, int(0.99 * len(in_order)))]
    return Reaction(what, len(in_order), statistics.median(in_order), p99, in_order[-1], per_second)


def line(measured: Reaction) -> tuple[str, ...]:
    return (
        measured.what,
        f"{measured.number:,}",
        f"{measured.median_ms:,.0f}",
        f"{measured.p99_ms:,.0f}",
        f"{measured.most_ms:,.0f}",
        "" if measured.per_second is None else f"{measured.per_second:,.0f}",
    )


def targets(boots: Reaction, late: Reaction, answers: Reaction) -> list[Target]:
    rate = answers.per_second or 0.0
    return [
        _at_most(f"{BOOT}, median", MOST_BOOT_MS, boots.median_ms),
        _at_most(f"{MESSAGE}, the latest", MOST_LATE_MS, late.most_ms),
        Target("answers of /metrics a second", f"at least {LEAST_ANSWERS:.0f}", f"{rate:.0f}", rate >= LEAST_ANSWERS),
        _at_most(f"{METRICS}, 99 %", MOST_ANSWER_MS, answers.p99_ms),
    ]


def _at_most(what: str, wanted_ms: float, measured_ms: float) -> Target:
    return Target(what, f"at most {wanted_ms:,.0f} ms", f"{measured_ms:,.0f} ms", measured_ms <= wanted_ms)
