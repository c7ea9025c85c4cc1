"""Benchmark of many senders: one campaign through 1, 2 and 4 of them, and what they cost without work."""

import argparse
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass

import psycopg2

from benchmarks.campaign import environment, seed
from benchmarks.idle import cpu_seconds
from benchmarks.report import Failure, Progress, Report, Target
from benchmarks.sinks import PROJECT, Sink, slow_smtp_sink
from benchmarks.world import World, world
from sandbox.crm import Crm
from sandbox.servers import Child

MESSAGE_SECONDS = 0.06  # that the sink takes
FOR_EACH = 2_500  # recipients for each sender
IDLE_SECONDS = 120
LEAST_SHARE = 0.9  # of n times the rate of one sender
APPLICATIONS = ("crm-worker campaign", "crm-worker campaign-sender", "crm-worker engine")
WAIT_SECONDS = 300.0
SENDING_SECONDS = 'SELECT extract(epoch FROM max("sentAt") - min("sentAt"))::float8 FROM "CampaignRecipient"'
COLUMNS = ("senders", "recipients", "per_second", "share")


@dataclass(frozen=True)
class Rate:
    """What so many senders did together: from the first message to the last one."""

    senders: int
    recipients: int
    per_second: float
    share: float  # of n times one sender's rate


def run(options: argparse.Namespace, progress: Progress) -> Report:
    """Raises Failure when a recipient is not sent to, or twice."""
    rates: list[Rate] = []
    with world() as servers, slow_smtp_sink(servers.folder, MESSAGE_SECONDS) as sink:
        for number in (1, 2, 4):
            progress.say(f"{number} senders ...")
            recipients = number * FOR_EACH
            per_second = measured(servers, sink, options, number, recipients)
            one = rates[0].per_second if rates else per_second
            rates.append(Rate(number, recipients, per_second, per_second / (number * one)))
        progress.say("nothing to do ...")
        statements, cpu = idle(servers, sink, options)
    title = (
        f"senders: {options.concurrency} connections each, a message takes {MESSAGE_SECONDS * 1000:.0f} ms\n"
        f"without work a scheduler and a sender: {statements:.0f} statements and {cpu * 1000:.0f} ms of CPU a minute"
    )
    lines = [
        [str(each.senders), str(each.recipients), f"{each.per_second:.0f}", f"{each.share:.2f}"] for each in rates
    ]
    least = min(each.share for each in rates)
    target = Target("rate of n senders", f"{LEAST_SHARE} n", f"{least:.2f} n", least >= LEAST_SHARE)
    return Report(title, COLUMNS, lines, rates, [target])


@contextmanager
def programs(
    servers: World, url: str, sink: Sink, options: argparse.Namespace, senders: int
) -> Iterator[list[Child]]:
    """A scheduler and so many senders, once the engine's tables are there."""
    environ = environment(servers, url, sink, options) | {"CAMPAIGN_ENGINE": "procrastinate"}
    names = ["campaign", *["campaign-sender"] * senders]
    with ExitStack() as stack:
        migrate = Child([PROJECT / "bin" / "migrate"], servers.folder / "migrate.log", environment=environ)
        if migrate.wait(WAIT_SECONDS) != 0:
            raise Failure(f"bin/migrate failed{migrate.tail()}")
        children = []
        for number, name in enumerate(names):
            log = servers.folder / f"{name}-{number}.log"
            children.append(Child([PROJECT / "bin" / name], log, environment=environ, directory=PROJECT))
            stack.callback(children[-1].end, signal.SIGTERM)
        yield children


def measured(servers: World, sink: Sink, options: argparse.Namespace, senders: int, recipients: int) -> float:
    """Messages a second, when all are sent once."""
    url = servers.fresh_database(f"senders_{senders}")
    before = sink.count()
    with programs(servers, url, sink, options, senders) as children, closing(psycopg2.connect(url)) as connection:
        crm = Crm(connection)
        wait_for(crm, "SELECT count(*) = %s FROM engine.sender", senders)
        campaign = seed(url, "email", recipients)
        children[0].send(signal.SIGUSR1)  # look for due campaigns now
        wait_for(crm, """SELECT status = 'completed' FROM "Campaign" WHERE id = %s""", campaign)
        seconds = crm.value(SENDING_SECONDS)
        sent = crm.counts(campaign)
    if sent != {"sent": recipients} or sink.count() - before != recipients:
        raise Failure(f"of {recipients} recipients: {sent}, and {sink.count() - before} messages arrived")
    return float(recipients / seconds)


def idle(servers: World, sink: Sink, options: argparse.Namespace) -> tuple[float, float]:
    """Statements, and seconds of CPU, a minute."""
    url = servers.fresh_database("senders_idle")
    with programs(servers, url, sink, options, 1) as children, closing(psycopg2.connect(url)) as connection:
        wait_for(Crm(connection), "SELECT count(*) = %s FROM engine.sender", 1)
        time.sleep(5.0)  # until they have begun
        before, began = counted(servers, children), time.monotonic()
        time.sleep(options.seconds or IDLE_SECONDS)
        minutes = (time.monotonic() - began) / 60
        after = counted(servers, children)
    return (after[0] - before[0]) / minutes, (after[1] - before[1]) / minutes


def counted(servers: World, children: list[Child]) -> tuple[int, float]:
    return sum(map(servers.statements, APPLICATIONS)), sum(cpu_seconds(each.pid) for each in children)


def wait_for(crm: Crm, statement: str, *parameters: object) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not crm.value(statement, *parameters):
        if time.monotonic() > deadline:
            raise Failure(f"not within {WAIT_SECONDS:.0f} s: {statement}")
        time.sleep(0.1)
