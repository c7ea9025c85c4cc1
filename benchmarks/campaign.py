"""Benchmark of the campaign job: campaigns of several sizes into a sink, beside what the bare transport can do."""

import argparse
import json
import os
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import product
from typing import Any

import psycopg2

from benchmarks.jobrun import Usage, run_job
from benchmarks.measurement import COLUMNS, Measurement, line, targets
from benchmarks.report import Failure, Progress, Report
from benchmarks.sinks import PROJECT, Sink, http_sink, smtp_sink
from benchmarks.world import World, world
from sandbox import accounts
from sandbox.crm import Crm, utc_now

BARE_LIMIT = 20_000  # messages; enough for a steady rate
APPLICATION = "crm-worker campaign"
UNPACED = "1000000"  # messages a second

# About 1 KB for a row of the outbox.
PARAGRAPH = '<p>Our Diwali offers are <a href="https://shop.example/diwali?a=1&amp;b={0}">here, number {0}</a>.</p>'
HTML = f"<html><body><p>Namaste {{{{name}}}},</p>{''.join(PARAGRAPH.format(i) for i in range(3))}</body></html>"
TEXT = "Namaste {{name}},\n\n" + "".join(f"Our Diwali offers are here, number {i}.\n" for i in range(3))


def run(options: argparse.Namespace, progress: Progress) -> Report:
    """Measures each channel with each number of recipients. Raises Failure when a count is wrong."""
    load = os.getloadavg()[0]
    progress.say("starting PostgreSQL and Redis ...")
    with world() as servers:
        measured = [
            measure(servers, channel, recipients, options, progress)
            for channel, recipients in product(options.channel, options.recipients)
        ]
    cores = len(os.sched_getaffinity(0))
    title = f"campaign: {options.concurrency} connections, batches of {options.batch_size}, {cores} cores"
    if load > cores / 4:
        title += (
            f"\nThe machine was busy with something else (load {load:.1f}): CPU times count, rates and ratios suffer."
        )
    return Report(title, COLUMNS, [line(each) for each in measured], measured, targets(measured))


def run_gmail(options: argparse.Namespace, progress: Progress) -> Report:
    """The same for e-mail through Gmail."""
    options.channel = ["gmail"]
    return run(options, progress)


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
        bare = run_bare(url, campaign_id, channel, sink, options.concurrency)
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
    return measurement(verified(url, campaign_id, channel, recipients, counted), sink.name, bare, usage)


def seed(url: str, channel: str, recipients: int) -> str:
    """A due campaign; returns its id."""
    with closing(psycopg2.connect(url)) as connection:
        crm = Crm(connection)
        texts: dict[str, Any] = {"textContent": TEXT} | ({} if channel == "whatsapp" else {"htmlContent": HTML})
        if channel == "gmail":
            texts |= gmail_user(crm)
        campaign_id = crm.add_campaign(
            "whatsapp" if channel == "whatsapp" else "email", recipients=recipients, **texts
        )
        crm.execute("VACUUM ANALYZE")
        return campaign_id


def gmail_user(crm: Crm) -> dict[str, str]:
    """The tenant and the user of a campaign that leaves through Gmail, with a token that needs no refresh."""
    settings = {"mail": accounts.mail_settings(client_secret=accounts.GOOGLE_CLIENT_SECRET)}
    tenant_id = crm.add_tenant(settings=settings)
    columns = accounts.gmail_columns("asha@shop.example") | {"gmailTokenExpiry": utc_now() + timedelta(days=1)}
    return {"tenant_id": tenant_id, "user_id": crm.add_user(tenant_id, **columns)}


def run_bare(url: str, campaign_id: str, channel: str, sink: Sink, connections: int) -> dict[str, float]:
    argv = [sys.executable, "-m", "benchmarks.bare", url, campaign_id, channel]
    argv += [str(sink.port), str(connections), str(BARE_LIMIT)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, cwd=PROJECT, check=False)
    if done.returncode != 0:
        raise Failure(f"the bare transport ended with status {done.returncode}")
    result: dict[str, float] = json.loads(done.stdout)
    return result


def environment(servers: World, url: str, sink: Sink, options: argparse.Namespace) -> dict[str, str]:
    """All that the job reads; of this process's environment it gets only the path."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "DATABASE_URL": url,
        "REDIS_URL": servers.redis.url,
        "STATE_DIR": str(servers.folder / "state"),
        "PUBLIC_URL": "https://mail.crm.example.in",  # each e-mail has an unsubscribe link
        "UNSUBSCRIBE_KEY": "5a" * 32,
        "SMTP_URL": f"smtp://127.0.0.1:{sink.port}",
        "WHATSAPP_API_URL": f"http://127.0.0.1:{sink.port}",
        "GMAIL_API_URL": f"http://127.0.0.1:{sink.port}",
        "ENCRYPTION_KEY": accounts.ENCRYPTION_KEY,
        "GOOGLE_TOKEN_URL": f"http://127.0.0.1:{sink.port}/token",
        "WHATSAPP_RATE": UNPACED,
        "GMAIL_RATE": UNPACED,
        "GMAIL_DAILY_LIMIT": UNPACED,
        "CAMPAIGN_BATCH_DELAY": "0",
        "CAMPAIGN_BATCH_SIZE": str(options.batch_size),
        "CAMPAIGN_CONCURRENCY": str(options.concurrency),
    }


@dataclass(frozen=True)
class Outcome:
    """What the database and the sink contain at the end."""

    channel: str
    sent: int
    outbox_rows: int
    sink_count: int
    seconds: float  # from CampaignLog 'started' to 'completed'


def verified(url: str, campaign_id: str, channel: str, recipients: int, sink_count: int) -> Outcome:
    """Raises Failure unless the database and the sink agree that each message was sent once."""
    with closing(psycopg2.connect(url)) as connection:
        crm = Crm(connection)
        counts = crm.counts(campaign_id)
        rows, messages = crm.execute('SELECT count(*), count(DISTINCT "messageId") FROM "EmailLog"')[0]
        logged: dict[str, datetime] = dict(crm.execute('SELECT action, "createdAt" FROM "CampaignLog"'))
    outbox = 0 if channel == "whatsapp" else recipients
    for what, wanted, found in (
        ("recipients by status", {"sent": recipients}, counts),
        ("rows of EmailLog", outbox, rows),
        ("distinct message ids in EmailLog", outbox, messages),
        ("messages in the sink", recipients, sink_count),
        ("entries of CampaignLog", {"started", "completed"}, set(logged)),
    ):
        if wanted != found:
            raise Failure(f"{channel} {recipients:,}: {what}: {found}, wanted {wanted}")
    seconds = (logged["completed"] - logged["started"]).total_seconds()
    return Outcome(channel, counts["sent"], rows, sink_count, seconds)


def measurement(outcome: Outcome, sink: str, bare: dict[str, float], usage: Usage) -> Measurement:
    recipients = outcome.sent
    bare_per_second, per_second = bare["messages"] / bare["seconds"], recipients / outcome.seconds
    return Measurement(
        channel=outcome.channel,
        recipients=recipients,
        sink=sink,
        sent=outcome.sent,
        outbox_rows=outcome.outbox_rows,
        sink_count=outcome.sink_count,
        seconds=outcome.seconds,
        per_second=per_second,
        bare_messages=int(bare["messages"]),
        bare_per_second=bare_per_second,
        bare_cpu_us_per_message=bare["cpu_seconds"] / bare["messages"] * 1e6,
        ratio=per_second / bare_per_second,
        job_cpu_seconds=usage.cpu_seconds,
        job_cpu_us_per_recipient=usage.cpu_seconds / recipients * 1e6,
        backend_cpu_us_per_recipient=usage.backend_cpu_seconds / recipients * 1e6,
        statements_per_recipient=usage.statements / recipients,
        peak_bytes=usage.peak_bytes,
    )
