"""Benchmark of the calls job: many tenants with long queues, compared with the bare transport.

    python -m benchmarks.calls PORT CONNECTIONS CALLS

is that bare transport: it places so many calls at the sink with plain http.client and prints {"calls", "seconds"}.
It is a process of its own, so that its memory and its threads are not the benchmark's.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlencode

import psycopg2

from benchmarks.call_plans import Plan, plans
from benchmarks.jobrun import Usage, run_job
from benchmarks.report import Failure, Progress, Report, Target
from benchmarks.sinks import PROJECT, Sink, http_sink
from benchmarks.world import World, world
from sandbox.crm import Crm
from worker.calls import REQUEST_THREADS
from worker.content.calls import call_form

APPLICATION = "crm-worker calls"
UNPACED = "1000000"  # calls a second
SLOTS = 5  # calls at once for each tenant
IDLE_RUNS = 3
APP_URL = "https://app.crm.example.in"

LEAST_PER_SECOND = 100  # 1,000 tenants with five calls at once of a minute each need 83
MOST_IDLE_SECONDS = 0.5  # a tick without a free slot
MOST_PLAN_SECONDS = 0.05  # one statement

COLUMNS = ("queue", "placed", "per_second", "bare/s", "ratio", "job us", "db us", "stmts", "idle ms", "peak MB")

_TICK = re.compile(r"DEBUG tick .*seconds=([\d.]+)")

# As many rows that are over as there are queued ones, and their CallLog rows.
SEED = """
INSERT INTO "Tenant" (id, name, slug, "contactEmail", "updatedAt")
SELECT 't' || n, 'Tenant ' || n, 't' || n, 'owner@a.example', now() FROM generate_series(1, %(tenants)s) n;
INSERT INTO "User" (id, email, name, "tenantId", "updatedAt")
SELECT 'u' || n, 'asha@a.example', 'Asha', 't' || n, now() FROM generate_series(1, %(tenants)s) n;
INSERT INTO "CallSettings" (id, "tenantId", "twilioAccountSid", "twilioAuthToken", "twilioPhoneNumber", "updatedAt",
                            "maxConcurrentCalls", "businessHoursStart", "businessHoursEnd", "businessDays")
SELECT 's' || n, 't' || n, 'AC' || md5(n::text), 'sandbox-token', '+918047112233', now(), %(slots)s, '00:00', '24:00',
       '["mon", "tue", "wed", "thu", "fri", "sat", "sun"]'
FROM generate_series(1, %(tenants)s) n;
INSERT INTO "CallQueue" (id, "tenantId", "phoneNumber", status, priority, "triggerType", "createdById", "createdAt",
                         "updatedAt")
SELECT md5('q' || n)::uuid::text, 't' || n %% %(tenants)s + 1, '+9170' || 10000000 + n,
       CASE WHEN n > %(queued)s THEN 'completed' ELSE 'pending' END, n / %(tenants)s %% 10 + 1, 'manual',
       'u' || n %% %(tenants)s + 1, at, at
FROM generate_series(1, 2 * %(queued)s) n,
     LATERAL (SELECT (now() AT TIME ZONE 'UTC') - n * interval '1 s' AS at) AS moment;
INSERT INTO "CallLog" (id, "tenantId", "phoneNumber", direction, "twilioCallSid", "twilioStatus", "triggerType",
                       "createdById", "createdAt", "updatedAt")
SELECT 'l-' || id, "tenantId", "phoneNumber", 'outbound', 'CA-' || id, 'completed', 'manual', "createdById",
       "createdAt", "updatedAt"
FROM "CallQueue" WHERE status = 'completed';
"""


@dataclass(frozen=True)
class Measurement:
    """One run, its counts verified. Times are seconds, microseconds where the name says so."""

    tenants: int
    queued: int
    placed: int
    sink_count: int
    seconds: float
    per_second: float
    bare_per_second: float
    ratio: float
    job_cpu_us_per_call: float
    backend_cpu_us_per_call: float
    statements_per_call: float
    idle_tick_seconds: float
    idle_backend_cpu_seconds: float
    peak_bytes: int
    plans: list[Plan]


def run(options: argparse.Namespace, progress: Progress) -> Report:
    """Measures one round of calls and the ticks after it. Raises Failure when a count is wrong."""
    progress.say("starting PostgreSQL and Redis ...")
    with world() as servers:
        measured = measure(servers, options.tenants, options.queued, progress)
    cores = len(os.sched_getaffinity(0))
    title = (
        f"calls: {options.tenants:,} tenants with {SLOTS} slots each, {REQUEST_THREADS} connections, {cores} cores"
    )
    return Report(title, COLUMNS, [row(measured)], [measured], targets(measured))


def measure(servers: World, tenants: int, queued: int, progress: Progress) -> Measurement:
    progress.say(f"filling the database: {queued:,} queued calls of {tenants:,} tenants ...")
    url = servers.fresh_database("calls")
    execute(url, SEED, tenants=tenants, queued=queued, slots=SLOTS)
    execute(url, "VACUUM ANALYZE")
    wanted = min(queued, tenants * SLOTS)
    with http_sink(servers.folder) as sink:
        progress.say("bare transport ...")
        bare = run_bare(sink, wanted)
        before = sink.count()
        progress.say("bin/calls --once ...")
        argv, environ = [str(PROJECT / "bin" / "calls"), "--once"], environment(servers, url, sink)
        usage = run_job(
            argv, environ, servers, APPLICATION, lambda: progress.count("calls", sink.count() - before, wanted)
        )
        counted = sink.count() - before
        seconds = verified(url, wanted, counted)
        progress.say("ticks without a free slot ...")
        idle = [idle_tick(argv, environ, servers) for _ in range(IDLE_RUNS)]
        if sink.count() - before != wanted:
            raise Failure("calls were placed without a free slot")
    idle_seconds, idle_usage = sorted(idle, key=lambda each: each[0])[IDLE_RUNS // 2]
    progress.say("plans ...")
    return Measurement(
        tenants=tenants,
        queued=queued,
        placed=wanted,
        sink_count=counted,
        seconds=seconds,
        per_second=wanted / seconds,
        bare_per_second=bare["calls"] / bare["seconds"],
        ratio=wanted / seconds / (bare["calls"] / bare["seconds"]),
        job_cpu_us_per_call=usage.cpu_seconds / wanted * 1e6,
        backend_cpu_us_per_call=usage.backend_cpu_seconds / wanted * 1e6,
        statements_per_call=usage.statements / wanted,
        idle_tick_seconds=idle_seconds,
        idle_backend_cpu_seconds=idle_usage.backend_cpu_seconds,
        peak_bytes=max(usage.peak_bytes, *(each.peak_bytes for _, each in idle)),
        plans=plans(url),
    )


def execute(url: str, statement: str, **parameters: Any) -> None:
    with closing(psycopg2.connect(url)) as connection:
        Crm(connection).execute(statement, parameters or None)


def run_bare(sink: Sink, calls: int) -> dict[str, float]:
    argv = [sys.executable, "-m", "benchmarks.calls", str(sink.port), str(REQUEST_THREADS), str(calls)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, cwd=PROJECT, check=False)
    if done.returncode != 0:
        raise Failure(f"the bare transport ended with status {done.returncode}")
    result: dict[str, float] = json.loads(done.stdout)
    return result


def environment(servers: World, url: str, sink: Sink) -> dict[str, str]:
    """All variables that the job gets; only PATH is from our own environment."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "DATABASE_URL": url,
        "STATE_DIR": str(servers.folder / "state"),
        "REDIS_URL": servers.redis.url,
        "TWILIO_API_URL": f"http://127.0.0.1:{sink.port}",
        "TWILIO_RATE": UNPACED,
        "APP_URL": APP_URL,
        "LOG_LEVEL": "warning",
    }


def idle_tick(argv: list[str], environ: dict[str, str], servers: World) -> tuple[float, Usage]:
    """The seconds that a tick takes in which all calls wait for a slot, and what it used."""
    usage = run_job(argv, environ | {"LOG_LEVEL": "debug"}, servers, APPLICATION, lambda: None)
    found = _TICK.findall((servers.folder / "job.log").read_text("utf-8"))
    if len(found) != 1:
        raise Failure(f"{len(found)} ticks instead of one without a free slot")
    return float(found[0]), usage


def verified(url: str, wanted: int, sink_count: int) -> float:
    """The seconds from the first to the last booking. Raises Failure unless each call was placed and booked once."""
    with closing(psycopg2.connect(url)) as connection:
        crm = Crm(connection)
        seconds, rows, numbers, most = crm.execute(
            """SELECT extract(epoch FROM max(last) - min(first)), sum(calls)::int, sum(numbers)::int, max(calls)
               FROM (SELECT min("createdAt") AS first, max("createdAt") AS last, count(*) AS calls,
                            count(DISTINCT "phoneNumber") AS numbers
                     FROM "CallLog" WHERE "twilioStatus" = 'queued' GROUP BY "tenantId") AS tenants"""
        )[0]
        linked = crm.value(
            """SELECT count(*) FROM "CallQueue" q JOIN "CallLog" l ON l.id = q."callLogId"
               WHERE q.status = 'completed' AND l."phoneNumber" = q."phoneNumber" """
        )
        claims = crm.value("SELECT count(*) FROM worker.call_claim")
    for what, right, found in (
        ("rows of CallLog", wanted, rows),
        ("numbers in CallLog", wanted, numbers),
        ("rows of CallQueue that are linked to their call", wanted, linked),
        ("calls in the sink", wanted, sink_count),
        ("open claims", 0, claims),
        ("most calls of one tenant", SLOTS, most),
    ):
        if right != found:
            raise Failure(f"calls: {what}: {found}, wanted {right}")
    return float(seconds)


def row(measured: Measurement) -> tuple[str, ...]:
    return (
        f"{measured.queued:,} of {measured.tenants:,}",
        f"{measured.placed:,}",
        f"{measured.per_second:,.0f}",
        f"{measured.bare_per_second:,.0f}",
        f"{measured.ratio:.2f}",
        f"{measured.job_cpu_us_per_call:.0f}",
        f"{measured.backend_cpu_us_per_call:.0f}",
        f"{measured.statements_per_call:.2f}",
        f"{measured.idle_tick_seconds * 1e3:.0f}",
        f"{measured.peak_bytes / 1e6:.1f}",
    )


def targets(measured: Measurement) -> list[Target]:
    rate, idle = measured.per_second, measured.idle_tick_seconds
    found = [
        Target("calls a second", f"at least {LEAST_PER_SECOND}", f"{rate:,.0f}", rate >= LEAST_PER_SECOND),
        Target(
            f"a tick without a free slot, {measured.queued - measured.placed:,} queued",
            f"at most {MOST_IDLE_SECONDS * 1e3:.0f} ms",
            f"{idle * 1e3:.0f} ms",
            idle <= MOST_IDLE_SECONDS,
        ),
    ]
    return found + [plan_target(plan) for plan in measured.plans]


def plan_target(plan: Plan) -> Target:
    through = [*plan.indexes, *(f"all of {table}" for table in plan.sequential)]
    return Target(
        f"plan of {plan.statement}",
        f"by index, at most {MOST_PLAN_SECONDS * 1e3:.0f} ms",
        f"{plan.seconds * 1e3:.1f} ms: {', '.join(through)}",
        not plan.sequential and plan.seconds <= MOST_PLAN_SECONDS,
    )


def bare(port: int, connections: int, calls: int) -> dict[str, float]:
    """Places ``calls`` over ``connections`` kept connections of plain http.client; the forms are made beforehand."""
    waiting = deque(urlencode(form(number)).encode() for number in range(calls))
    headers = {"Authorization": "Basic eDp4", "Content-Type": "application/x-www-form-urlencoded"}

    def place_calls() -> None:
        connection = HTTPConnection("127.0.0.1", port)
        while True:
            try:
                body = waiting.popleft()
            except IndexError:
                return
            path = f"/2010-04-01/Accounts/AC{0:032x}/Calls.json"
            connection.request("POST", path, body, headers)
            json.loads(connection.getresponse().read())

    threads = [threading.Thread(target=place_calls) for _ in range(connections)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"calls": calls, "seconds": time.monotonic() - began}


def form(number: int) -> list[tuple[str, str]]:
    return call_form(
        app_url=APP_URL,
        to=f"+9170{10_000_000 + number}",
        from_="+918047112233",
        lead_id=f"lead-{number}",
        contact_id=None,
        call_type="ai",
        timeout_seconds=300,
        tenant_recording=True,
        script_recording=None,
    )


if __name__ == "__main__":
    print(json.dumps(bare(*map(int, sys.argv[1:4]))))
