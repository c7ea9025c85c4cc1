"""Benchmark of the campaign job: campaigns of several sizes into a sink, beside what the bare transport carries."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import product
from typing import Any

import psycopg2

from benchmarks.jobrun import Usage, run_job
from benchmarks.report import Failure, Progress, Report, Target
from benchmarks.sinks import PROJECT, Sink, http_sink, smtp_sink
from benchmarks.world import World, world
from sandbox.crm import Crm

BARE_LIMIT = 20_000  # messages; enough for a steady rate
APPLICATION = "crm-worker campaign"
UNPACED = "1000000"  # messages a second

# About 1 KB for a row of the outbox.
PARAGRAPH = 'Our Diwali offers are <a href="https://shop.example/diwali?a=1&amp;b={}">here, number {}</a>.'
HTML = "<html><body><p>Namaste {{name}},</p>{}</body></html>".replace(
    "{}", "".join(f"<p>{PARAGRAPH.format(i, i)}</p>" for i in range(8))
)
TEXT = "Namaste {{name}},\n\n" + "".join(f"Our Diwali offers are here, number {i}.\n" for i in range(6))

COLUMNS = ("campaign", "sink", "per_second", "bare/s", "ratio", "job us", "db us", "stmts", "peak MB", "seconds")


@dataclass(frozen=True)
class Measurement:
    """One campaign. Times are seconds, microseconds where the name says so."""

    channel: str
    recipients: int
    sink: str
    sent: int
    outbox_rows: int
    sink_count: int
    seconds: float
    per_second: float
    bare_messages: int
    bare_per_second: float
    ratio: float
    job_cpu_seconds: float
    job_cpu_us_per_recipient: float
    backend_cpu_us_per_recipient: float
    statements_per_recipient: float
    peak_bytes: int


def run(options: argparse.Namespace, progress: Progress) -> Report:
    """Measures each channel with each number of recipients. Raises Failure when a count is wrong."""
    progress.say("starting PostgreSQL and Redis ...")
    with world() as servers:
        measured = [
            measure(servers, channel, recipients, options, progress)
            for channel, recipients in product(options.channel, options.recipients)
        ]
    cores = len(os.sched_getaffinity(0))
    title = f"campaign: {options.concurrency} connections, batches of {options.batch_size}, {cores} cores"
    return Report(title, COLUMNS, [line(each) for each in measured], measured, targets(measured))


def measure(
    servers: World, channel: str, recipients: int, options: argparse.Namespace, progress: Progress
) -> Measurement:
    what = f"{channel} {recipients:,}"
    progress.say(f"{what}: filling the database ...")
    database = f"campaign_{channel}_{recipients}"
    url = servers.fresh_database(database)
    campaign_id = seed(url, channel, recipients)
    with (smtp_sink if channel == "email" else http_sink)(servers.folder) as sink:
        progress.say(f"{what}: bare transport into {sink.name} ...")
        bare = run_bare(url, campaign_id, sink, options.concurrency)
        before = sink.count()
        progress.say(f"{what}: bin/campaign --once ...")
        usage = run_job(
            [str(PROJECT / "bin" / "campaign"), "--once"],
            environment(servers, url, sink, options),
            servers,
            APPLICATION,
            lambda: progress.count(what, sink.count() - before, recipients),
        )
        counted = sink.count() - before
    return verified(url, campaign_id, channel, recipients, sink.name, counted, bare, usage)


def seed(url: str, channel: str, recipients: int) -> str:
    """A due campaign; returns its id."""
    with closing(psycopg2.connect(url)) as connection:
        crm = Crm(connection)
        texts: dict[str, Any] = {"textContent": TEXT} | ({"htmlContent": HTML} if channel == "email" else {})
        campaign_id = crm.add_campaign(channel, recipients=recipients, **texts)
        crm.execute("VACUUM ANALYZE")
        return campaign_id


def run_bare(url: str, campaign_id: str, sink: Sink, connections: int) -> dict[str, float]:
    argv = [sys.executable, "-m", "benchmarks.bare", url, campaign_id]
    argv += [str(sink.port), str(connections), str(BARE_LIMIT)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, cwd=PROJECT, check=False)
    if done.returncode != 0:
        raise Failure(f"the bare transport ended with status {done.returncode}")
    result: dict[str, float] = json.loads(done.stdout)
    return result


def environment(servers: World, url: str, sink: Sink, options: argparse.Namespace) -> dict[str, str]:
    """All that the job reads; of ours it gets nothing but the path."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "DATABASE_URL": url,
        "REDIS_URL": servers.redis.url,
        "STATE_DIR": str(servers.folder / "state"),
        "SMTP_URL": f"smtp://127.0.0.1:{sink.port}",
        "WHATSAPP_API_URL": f"http://127.0.0.1:{sink.port}",
        "WHATSAPP_RATE": UNPACED,
        "GMAIL_RATE": UNPACED,
        "CAMPAIGN_BATCH_DELAY": "0",
        "CAMPAIGN_BATCH_SIZE": str(options.batch_size),
        "CAMPAIGN_CONCURRENCY": str(options.concurrency),
    }


def verified(
    url: str, campaign_id: str, channel: str, n: int, sink: str, counted: int, bare: dict[str, float], usage: Usage
) -> Measurement:
    """The measurement, once the database and the sink agree that each message was sent once."""
    with closing(psycopg2.connect(url)) as connection:
        crm = Crm(connection)
        counts = crm.counts(campaign_id)
        rows, messages = crm.execute('SELECT count(*), count(DISTINCT "messageId") FROM "EmailLog"')[0]
        seconds = float(
            crm.value(
                "SELECT extract(epoch FROM max(\"createdAt\") FILTER (WHERE action = 'completed') "
                '- min("createdAt") FILTER (WHERE action = \'started\')) FROM "CampaignLog"'
            )
            or 0.0
        )
    outbox = n if channel == "email" else 0
    for what, wanted, found in (
        ("recipients by status", {"sent": n}, counts),
        ("rows of EmailLog", outbox, rows),
        ("distinct message ids in EmailLog", outbox, messages),
        ("messages in the sink", n, counted),
        ("campaign completed", True, seconds > 0),
    ):
        if wanted != found:
            raise Failure(f"{channel} {n:,}: {what}: {found}, wanted {wanted}")
    bare_per_second, per_second = bare["messages"] / bare["seconds"], n / seconds
    return Measurement(
        channel=channel,
        recipients=n,
        sink=sink,
        sent=counts["sent"],
        outbox_rows=rows,
        sink_count=counted,
        seconds=seconds,
        per_second=per_second,
        bare_messages=int(bare["messages"]),
        bare_per_second=bare_per_second,
        ratio=per_second / bare_per_second,
        job_cpu_seconds=usage.cpu_seconds,
        job_cpu_us_per_recipient=usage.cpu_seconds / n * 1e6,
        backend_cpu_us_per_recipient=usage.backend_cpu_seconds / n * 1e6,
        statements_per_recipient=usage.statements / n,
        peak_bytes=usage.peak_bytes,
    )


def line(measured: Measurement) -> tuple[str, ...]:
    return (
        f"{measured.channel} {measured.recipients:,}",
        measured.sink,
        f"{measured.per_second:,.0f}",
        f"{measured.bare_per_second:,.0f}",
        f"{measured.ratio:.2f}",
        f"{measured.job_cpu_us_per_recipient:.0f}",
        f"{measured.backend_cpu_us_per_recipient:.0f}",
        f"{measured.statements_per_recipient:.3f}",
        f"{measured.peak_bytes / 1e6:.1f}",
        f"{measured.seconds:.1f}",
    )


def targets(measured: Sequence[Measurement]) -> list[Target]:
    """Those that the measured campaigns say something about."""
    found = [target for each in measured if each.channel == "email" for target in throughput(each)]
    for channel in {each.channel for each in measured}:
        found += memory([each for each in measured if each.channel == channel])
    return found


def throughput(email: Measurement) -> Iterable[Target]:
    what = f"email {email.recipients:,}"
    yield Target(f"{what}: ratio to bare smtplib", "at least 0.50", f"{email.ratio:.2f}", email.ratio >= 0.5)
    rate = email.per_second
    yield Target(f"{what}: recipients a second", "at least 2,500", f"{rate:,.0f}", rate >= 2500)


def memory(measured: Sequence[Measurement]) -> Iterable[Target]:
    """The job's memory must not grow with the campaign."""
    by_size = sorted(measured, key=lambda each: each.recipients)
    least, most = by_size[0], by_size[-1]
    if most.recipients > least.recipients:
        growth = most.peak_bytes / least.peak_bytes - 1
        what = f"{most.channel}: peak memory at {most.recipients:,} over that at {least.recipients:,}"
        yield Target(what, "at most +10 %", f"{growth:+.1%}", growth <= 0.1)
