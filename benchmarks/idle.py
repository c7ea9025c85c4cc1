"""Benchmark of what the programs do while there is nothing to do: CPU time, statements and Redis commands."""

import argparse
import os
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from benchmarks.program_set import ProgramSet, Surroundings, program_set, surroundings
from benchmarks.report import Failure, Progress, Report, Target
from worker.registry import SUPERVISED

SECONDS = 300  # whatever comes at least every five minutes is in it
SETTLE_SECONDS = 2.0
SAMPLE_SECONDS = 1.0
MOST_CPU_PERCENT = 0.5  # of one core
MOST_STATEMENTS, MOST_COMMANDS = 20, 200  # a minute
MOST_COUNTED = 1_000_000
IN_SCRIPT = b"?:"
COLUMNS = ("program", "CPU % of a core", "CPU ms a minute", "statements a minute")


@dataclass(frozen=True)
class ProgramIdle:
    """What one program took."""

    program: str
    seconds: float
    cpu_seconds: float
    statements: int  # counted by PostgreSQL


@dataclass(frozen=True)
class _Counted:
    """At one moment, since the start."""

    cpu_seconds: dict[str, float]
    statements: dict[str, int]


def run(options: argparse.Namespace, progress: Progress) -> Report:
    """Raises Failure when a program does not run, a job does not tick, or a program ends meanwhile."""
    with surroundings(progress) as around:
        progress.say("starting supervisord and its programs ...")
        with program_set(around) as programs:
            programs.wait_until_running()
            programs.wait_for_ticks(progress)
            time.sleep(SETTLE_SECONDS)
            with closing(around.servers.redis.client()) as client:
                count_commands(client)
                before, began = counted(programs, around), time.monotonic()
                wait(options.seconds or SECONDS, progress)
                after, seconds = counted(programs, around), time.monotonic() - began
                commands = sent_commands(client)
    measured = differences(before, after, seconds)
    title = f"idle: all programs for {seconds:.0f} seconds in which there is nothing to do"
    return Report(
        title, COLUMNS, [line(each) for each in measured], measured, targets(measured, commands * 60 / seconds)
    )


def wait(seconds: int, progress: Progress) -> None:
    progress.say(f"measuring for {seconds} seconds ...")
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        progress.count("seconds", round(seconds - left), seconds)
        time.sleep(min(SAMPLE_SECONDS, left))


def counted(programs: ProgramSet, around: Surroundings) -> _Counted:
    statements = {name: around.servers.statements(f"crm-worker {name}") for name in SUPERVISED}
    cpu = {name: sum(map(cpu_seconds, pids)) for name, pids in programs.processes().items()}
    return _Counted(cpu, statements)


def count_commands(client: redis.Redis) -> None:
    """From now on Redis lists every command as slow."""
    client.config_set("slowlog-max-len", MOST_COUNTED)
    client.config_set("slowlog-log-slower-than", 0)
    client.slowlog_reset()


def sent_commands(client: redis.Redis) -> int:
    """How many commands programs have sent since ``count_commands``; those that scripts called have no address."""
    entries: list[dict[str, Any]] = client.slowlog_get(MOST_COUNTED)
    return sum(not each["client_address"].startswith(IN_SCRIPT) for each in entries)


def cpu_seconds(pid: int) -> float:
    """Of a process, and of its children that have ended. Raises Failure when it has ended itself."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    except OSError as error:
        raise Failure(f"the process {pid} ended while it was measured") from error
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")  # proc(5): utime, stime, cutime, cstime


def differences(before: _Counted, after: _Counted, seconds: float) -> list[ProgramIdle]:
    if before.cpu_seconds.keys() != after.cpu_seconds.keys():
        raise Failure("a program ended, or was started again, while it was measured")
    found = [
        ProgramIdle(name, seconds, spent - before.cpu_seconds[name], new_statements(before, after, name))
        for name, spent in after.cpu_seconds.items()
    ]
    return sorted(found, key=lambda each: each.cpu_seconds, reverse=True)


def new_statements(before: _Counted, after: _Counted, name: str) -> int:
    return after.statements.get(name, 0) - before.statements.get(name, 0)


def line(measured: ProgramIdle) -> tuple[str, ...]:
    return (
        measured.program,
        f"{measured.cpu_seconds / measured.seconds:.2%}",
        f"{measured.cpu_seconds / measured.seconds * 60_000:.0f}",
        f"{measured.statements / measured.seconds * 60:.1f}",
    )


def targets(measured: Sequence[ProgramIdle], commands: float) -> list[Target]:
    """Of all programs together; ``commands`` a minute."""
    seconds = measured[0].seconds
    percent = sum(each.cpu_seconds for each in measured) / seconds * 100
    statements = sum(each.statements for each in measured) / seconds * 60
    return [
        Target("CPU", f"at most {MOST_CPU_PERCENT} % of a core", f"{percent:.2f} %", percent <= MOST_CPU_PERCENT),
        _at_most("statements a minute", MOST_STATEMENTS, statements),
        _at_most("Redis commands a minute", MOST_COMMANDS, commands),
    ]


def _at_most(what: str, wanted: int, measured: float) -> Target:
    return Target(what, f"at most {wanted}", f"{measured:.1f}", measured <= wanted)
