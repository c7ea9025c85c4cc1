"""Benchmark of the reminders job: a thousand due leads among a million, found, sent and settled; and an idle tick."""

import argparse
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import psycopg2

from benchmarks.jobrun import Usage, run_job
from benchmarks.reminder_rows import MIXES, fill
from benchmarks.report import Failure, Progress, Report, Target
from benchmarks.sinks import PROJECT, Sink, http_sink, smtp_sink
from benchmarks.world import World, world
from sandbox.crm import Crm, utc_now
from worker.reminding.recipients import RecipientReader
from worker.reminding.tenants import read_tenants
from worker.runtime.db import Database, Row, queries

APPLICATION = "crm-worker reminders"
TENANTS = 1000
LEADS = 1000  # of each tenant
MOST_SECONDS = 2.0  # of database time, to find and claim what is due
COLUMNS = (
    "tick", "digests", "find ms", "of it claim", "all db ms", "stmts", "wall s", "job CPU s", "peak MB", "through",
)  # fmt: skip
# what the statements begin with
FINDING = {"tenants": "WITH template AS", "claim": "SELECT pg_advisory_xact_lock"}
_DURATION = re.compile(rf"bench app={APPLICATION} LOG:  duration: ([0-9.]+) ms  statement: (.*)")


@dataclass(frozen=True)
class Measurement:
    """One run of bin/reminders --once. Times are milliseconds unless a name says otherwise."""

    tick: str
    leads: int
    digests: int
    find_ms: float
    claim_ms: float
    database_ms: float
    statements: int
    wall_seconds: float  # the program's start included
    job_cpu_seconds: float
    peak_bytes: int
    indexes: list[str]  # through which leads were read
    sequential: list[str]  # tables that the claim reads as a whole


def run(options: argparse.Namespace, progress: Progress) -> Report:
    """Measures each mix, a tick with digests and an idle one. Raises Failure when a count is wrong."""
    progress.say("starting PostgreSQL and Redis ...")
    measured: list[Measurement] = []
    with world() as servers, smtp_sink(servers.folder) as smtp, http_sink(servers.folder) as http:
        for mix, phones in [*((mix, 0) for mix in MIXES), (MIXES[-1], 1)]:
            measured += measure(servers, smtp, http, mix, phones, progress)
    cores = len(os.sched_getaffinity(0))
    title = f"reminders: {TENANTS:,} tenants, {TENANTS * LEADS:,} leads, {TENANTS:,} of them due; {cores} cores"
    return Report(title, COLUMNS, [line(each) for each in measured], measured, targets(measured))


def measure(
    servers: World, smtp: Sink, http: Sink, mix: str, phones: int, progress: Progress
) -> Iterator[Measurement]:
    what = f"{mix}, {1 + phones} {'recipient' if not phones else 'recipients'} each"
    progress.say(f"{what}: filling the database ...")
    url = servers.fresh_database(f"reminders_{mix}_{phones}")
    with closing(psycopg2.connect(url)) as connection:
        crm = Crm(connection)
        fill(crm, mix, TENANTS, LEADS, phones)
        crm.execute("ALTER DATABASE " + connection.info.dbname + " SET log_min_duration_statement = 0")
        crm.execute("CHECKPOINT")
    for tick, wanted in ((what, TENANTS * (1 + phones)), (f"{what}, idle", 0)):
        progress.say(f"{tick}: bin/reminders --once ...")
        before = smtp.count() + http.count()
        log_from = (servers.postgres.data_dir / "postgres.log").stat().st_size
        began = time.monotonic()
        argv = [str(PROJECT / "bin" / "reminders"), "--once"]
        usage = run_job(argv, environment(servers, url, smtp, http), servers, APPLICATION, lambda: None)
        wall_seconds = time.monotonic() - began
        verify(url, tick, wanted, smtp.count() + http.count() - before, (1 + phones) * TENANTS)
        yield measurement(tick, wanted, durations(servers, log_from), wall_seconds, usage, plan(url))


def environment(servers: World, url: str, smtp: Sink, http: Sink) -> dict[str, str]:
    """All that the job reads; of ours it gets nothing but the path."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "DATABASE_URL": url,
        "REDIS_URL": servers.redis.url,
        "SMTP_URL": f"smtp://127.0.0.1:{smtp.port}",
        "WHATSAPP_API_URL": f"http://127.0.0.1:{http.port}",
        "WHATSAPP_RATE": "1000000",
    }


def verify(url: str, tick: str, wanted: int, arrived: int, remembered_now: int) -> None:
    """Raises Failure unless sinks and database agree."""
    with closing(psycopg2.connect(url)) as connection:
        crm = Crm(connection)
        left = crm.value("SELECT count(*) FROM worker.notice")
        recent = "reminded_at > now() AT TIME ZONE 'UTC' - interval '30 minutes'"
        remembered = crm.value(f"SELECT count(*) FROM worker.lead_reminder WHERE {recent}")  # noqa: S608 - a constant
    if (arrived, left, remembered) != (wanted, 0, remembered_now):
        raise Failure(f"{tick}: {arrived} messages of {wanted}, {left} unsettled, {remembered} leads remembered")


def durations(servers: World, log_from: int) -> list[tuple[float, str]]:
    """(milliseconds, how the statement begins) of each statement of the job, from the server's log."""
    with (servers.postgres.data_dir / "postgres.log").open("r", encoding="utf-8", errors="replace") as log:
        log.seek(log_from)
        return [(float(found[1]), found[2][:40]) for text in log if (found := _DURATION.match(text))]


def plan(url: str) -> tuple[list[str], list[str]]:
    """The indexes through which a claim reads leads, and the tables that it reads as a whole; it claims nothing."""
    sql = queries("reminders")
    db = Database(url, "bench plan")
    with closing(db):
        recipients = RecipientReader().recipients_of_all(read_tenants(db), utc_now())
        as_json = json.dumps([recipient.as_json() for recipient in recipients])
        explained = sql["claim"].partition(";")[2]
        parameters: dict[str, Any] = {"job": "plan", "holder": "x", "now": utc_now(), "listed": 200}
        found = db.all(f"EXPLAIN (FORMAT JSON) {explained}", recipients=as_json, **parameters)
    nodes = list(walk(found[0]["QUERY PLAN"][0]["Plan"]))
    indexes = {node["Index Name"] for node in nodes if node.get("Relation Name") == "Lead" and "Index Name" in node}
    return sorted(indexes), sorted({node["Relation Name"] for node in nodes if node["Node Type"] == "Seq Scan"})


def walk(node: Row) -> Iterator[Row]:
    yield node
    for child in node.get("Plans", []):
        yield from walk(child)


def measurement(
    tick: str,
    digests: int,
    statements: list[tuple[float, str]],
    wall_seconds: float,
    usage: Usage,
    read: tuple[list[str], list[str]],
) -> Measurement:
    claim_ms = sum(ms for ms, text in statements if text.startswith(FINDING["claim"]))
    return Measurement(
        tick=tick,
        leads=TENANTS * LEADS,
        digests=digests,
        find_ms=claim_ms + sum(ms for ms, text in statements if text.startswith(FINDING["tenants"])),
        claim_ms=claim_ms,
        database_ms=sum(ms for ms, _ in statements),
        statements=len(statements),
        wall_seconds=wall_seconds,
        job_cpu_seconds=usage.cpu_seconds,
        peak_bytes=usage.peak_bytes,
        indexes=read[0],
        sequential=read[1],
    )


def line(measured: Measurement) -> tuple[str, ...]:
    return (
        measured.tick,
        f"{measured.digests:,}",
        f"{measured.find_ms:,.0f}",
        f"{measured.claim_ms:,.0f}",
        f"{measured.database_ms:,.0f}",
        f"{measured.statements:,}",
        f"{measured.wall_seconds:.1f}",
        f"{measured.job_cpu_seconds:.1f}",
        f"{measured.peak_bytes / 1e6:.1f}",
        " ".join(measured.indexes),
    )


def targets(measured: list[Measurement]) -> list[Target]:
    found = []
    for each in measured:
        seconds = each.find_ms / 1000
        what = f"{each.tick}: database time to find and claim"
        found.append(Target(what, f"less than {MOST_SECONDS:g} s", f"{seconds:.2f} s", seconds < MOST_SECONDS))
        whole = "Lead" in each.sequential
        found.append(Target(f'{each.tick}: "Lead" read as a whole', "no", "yes" if whole else "no", not whole))
    return found
