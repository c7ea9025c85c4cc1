"""bin/bench: measures a job's throughput, CPU time and memory against local sinks."""

import argparse
import json
import os
import platform
import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from benchmarks import calls, campaign, idle, memory, reaction, reminders, senders
from benchmarks.report import Failure, Progress, Report
from sandbox.servers import ServerFailed, ServerMissing

DESCRIPTION = """\
Starts PostgreSQL, Redis and sinks of its own on 127.0.0.1, fills the CRM's tables, runs the real job as a child
process and measures it. Everything it started ends with it, and nothing is left on the disk.

benchmarks:
  campaign   bin/campaign --once with CAMPAIGN_BATCH_DELAY=0 and one due campaign. For each channel and each number of
             recipients a fresh database; before it, in the same run, the bare transport: the same messages, built
             beforehand, through plain smtplib or http.client over as many kept connections (20,000 at most).
             Afterwards it is verified that every recipient is 'sent', that the outbox ("EmailLog") has one row for
             each e-mail, and that the sink counted each message once.
  gmail      short for campaign --channel gmail: e-mail of a user who connected Gmail, into a sink that answers as its
             API does.
  reminders  bin/reminders --once on 1,000 tenants with a million leads of which a thousand are due: the others were
             contacted an hour ago, or half of them are quiet and were reminded of an hour ago, to one recipient or to
             two of each tenant; then the same once more, when nothing is due. Takes no options but --json.
  calls      bin/calls --once on 1,000 tenants with 100,000 queued calls, as many that are over, and five slots each;
             before it the bare transport: the same forms through plain http.client. It is verified that each call was
             placed and booked once. Then ticks in which everybody waits for a slot, and the query plans.
  memory     all programs under supervisord with conf/supervisord.worker.conf once each job has ended its first tick,
             without Qdrant: their memory, and the imports that cost most of it. Takes no options but --json.
  idle       the same programs for --seconds: their CPU time, and what PostgreSQL and Redis count of them.
  reaction   the same programs: when all of them run, how late the first messages of 20 due campaigns come, and
             /metrics, asked through 8 connections for --seconds.
  senders    CAMPAIGN_ENGINE=procrastinate: one campaign through 1, 2 and 4 bin/campaign-sender into a sink that takes
             60 ms for a message; then a scheduler and a sender for --seconds without work. Takes no other options."""

BENCHMARKS = {"campaign": campaign.run, "gmail": campaign.run_gmail, "reminders": reminders.run, "calls": calls.run}
BENCHMARKS |= {"memory": memory.run, "idle": idle.run, "reaction": reaction.run, "senders": senders.run}

EPILOG = """\
columns of campaign:
  per_second     recipients a second, from CampaignLog 'started' to 'completed'
  bare/s, ratio  messages a second of the bare transport, and per_second as a share of it
  job us         user and system CPU time of the job for a recipient, microseconds
  db us          CPU time of the job's PostgreSQL backend for a recipient, microseconds
  stmts          statements (round trips) of the job to PostgreSQL for a recipient, counted in the server's log
  peak MB        the job's largest resident memory
columns of reminders:
  find ms        database time of the statements that read the tenants and find and claim what is due (server's log)
  all db ms      of all statements, those of sending and settling included
  through        the indexes by which the claim reads leads
columns of calls:
  per_second     calls a second, from the first CallLog row to the last one; bare/s, ratio, job us, db us, stmts and
                 peak MB as for campaign, for each call
  idle ms        a tick in which nobody has a free slot
columns of memory:
  rests          whether the program waits for its next tick as a small process
  PSS MB         what n processes share counts as an n-th for each (proc(5), smaps_rollup)
  own MB         memory that it shares with no other process
  largest ...    what its modules cost when a new process imports them, by package, without those they import in turn

The SMTP sink is Postfix's smtp-sink where it is installed (also in /usr/sbin), else a small one of our own.
Exit status: 0 measured and verified, whether or not a target was met; 1 a count was wrong or a server failed;
2 bad arguments."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # unwinds, so that all is cleaned up
    progress = Progress(sys.stderr)
    try:
        report = BENCHMARKS[options.benchmark](options, progress)
    except KeyboardInterrupt:
        progress.say("stopped")
        return 1
    except (Failure, ServerMissing, ServerFailed) as error:
        progress.say(f"bin/bench: {error}")
        return 1
    print(json.dumps(as_json(options.benchmark, report), indent=2) if options.json else report.text())
    return 0


def parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    result = argparse.ArgumentParser("bin/bench", None, DESCRIPTION, EPILOG, formatter_class=formatter)
    result.add_argument(
        "benchmark", nargs="?", default="campaign", choices=list(BENCHMARKS), help="default: campaign"
    )
    result.add_argument(
        "--recipients", type=numbers, default=[5_000, 100_000], metavar="N,...", help="default: 5000,100000"
    )
    result.add_argument(
        "--channel", type=channels, default=["email"], metavar="C,...", help="email, whatsapp, gmail; default: email"
    )
    result.add_argument("--concurrency", type=number, default=8, metavar="N", help="connections; default: 8")
    result.add_argument(
        "--batch-size", type=number, default=100, metavar="N", help="CAMPAIGN_BATCH_SIZE; default: 100"
    )
    result.add_argument("--tenants", type=number, default=1_000, metavar="N", help="of calls; default: 1000")
    result.add_argument("--queued", type=number, default=100_000, metavar="N", help="calls; default: 100000")
    result.add_argument(
        "--seconds", type=number, default=None, metavar="N", help="of idle, default: 300; of reaction, default: 5"
    )
    result.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    return result


def number(raw: str) -> int:
    if not raw.isdecimal() or not 1 <= int(raw) <= 10_000_000:
        raise argparse.ArgumentTypeError(f"{raw!r} is no number from 1 to 10000000")
    return int(raw)


def numbers(raw: str) -> list[int]:
    return [number(part) for part in raw.split(",")]


def channels(raw: str) -> list[str]:
    if unknown := set(raw.split(",")) - {"email", "whatsapp", "gmail"}:
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))!r} is neither email nor whatsapp nor gmail")
    return raw.split(",")


def as_json(benchmark: str, report: Report) -> dict[str, object]:
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    machine = {"cores": cores, "load_at_end": load, "python": platform.python_version()}
    at = datetime.now(UTC).isoformat(timespec="seconds")
    return {"benchmark": benchmark, "at": at, "machine": machine, **report.as_json()}


if __name__ == "__main__":
    sys.exit(main())
