"""Benchmark of what the programs need while there is nothing to do: their memory, and the imports that cost most."""

import argparse
import json
import subprocess
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.imports import memory, own_bytes
from benchmarks.program_set import SUPERVISORD, ProgramSet, program_set, surroundings
from benchmarks.report import Failure, Progress, Report, Target
from benchmarks.sinks import PROJECT
from worker.runtime.rest import LEAST_REST_SECONDS

MOST_MEGABYTES = 200
HALF_HOUR = 1800  # hourly jobs tick at the full hour of their zone
BEFORE_SECONDS = LEAST_REST_SECONDS + 15.0  # so long before a tick a job may not rest
SETTLE_SECONDS = 2.0  # after the first ticks: what they needed is given back
LARGEST = 4  # imports that the table shows
LEAST_MEGABYTES = 0.5  # of an import that the table shows
RESTING = b"resting_process.py"
COLUMNS = ("program", "processes", "rests", "PSS MB", "own MB", "largest imports of its start, own MB")

# What the processes of a program import at their start where it is not worker.<program>.
MODULES = {
    SUPERVISORD: ["supervisor.supervisord"],
    "call-cleanup": ["worker.call_cleanup"],
    "web": ["gunicorn.app.wsgiapp", "worker.web.gunicorn_worker", "worker.web.app"],
}


@dataclass(frozen=True)
class ProgramMemory:
    """Of all processes of one program, in bytes."""

    program: str
    processes: int
    rests: bool  # until its next tick (worker/runtime/rest.py)
    pss: int  # memory that n processes share counts as an n-th for each
    own: int
    imports: dict[str, int] = field(default_factory=dict)  # package -> own memory that its modules cost


def run(options: argparse.Namespace, progress: Progress) -> Report:
    """Raises Failure when a program does not run, or a job does not tick."""
    with surroundings(progress) as around:
        progress.say("starting supervisord and its programs ...")
        with program_set(around) as programs:
            programs.wait_until_running()
            programs.wait_for_ticks(progress)
            wait_past_the_tick(progress)
            time.sleep(SETTLE_SECONDS)
            measured = measure(programs, progress)
    total = sum(each.pss for each in measured)
    title = "memory: all programs, without PostgreSQL, Redis and Qdrant, while there is nothing to do"
    target = Target(
        "sum of PSS", f"below {MOST_MEGABYTES} MB", f"{total / 1e6:.1f} MB", total < MOST_MEGABYTES * 10**6
    )
    return Report(title, COLUMNS, [line(each) for each in measured], measured, [target])


def wait_past_the_tick(progress: Progress) -> None:
    """Right before the hour no hourly job rests: that would say nothing about the other 58 minutes."""
    left = HALF_HOUR - time.time() % HALF_HOUR
    if left < BEFORE_SECONDS:
        progress.say(f"waiting {left + SETTLE_SECONDS:.0f} s until the hourly jobs have ticked ...")
        time.sleep(left + SETTLE_SECONDS)


def measure(programs: ProgramSet, progress: Progress) -> list[ProgramMemory]:
    processes = programs.processes()
    found = [program_memory(name, pids) for name, pids in processes.items()]
    progress.say("measuring what their imports cost ...")
    complete = [replace(each, imports=import_costs(each.program)) for each in found]
    return sorted(complete, key=lambda each: each.pss, reverse=True)


def program_memory(name: str, pids: list[int]) -> ProgramMemory:
    """Without its imports. Raises OSError when one of the processes has ended."""
    rests = RESTING in Path(f"/proc/{pids[0]}/cmdline").read_bytes()
    pss, own = sum(memory(pid, b"Pss:") for pid in pids), sum(map(own_bytes, pids))
    return ProgramMemory(name, len(pids), rests, pss, own)


def import_costs(program: str) -> dict[str, int]:
    """Measured in a child that only imports."""
    modules = MODULES.get(program, [f"worker.{program}"])
    argv = [str(PROJECT / "bin" / "python"), "-m", "benchmarks.imports", *modules]
    done = subprocess.run(argv, stdout=subprocess.PIPE, cwd=PROJECT, check=False)
    if done.returncode != 0:
        raise Failure(f"the modules of {program} cannot be imported")
    costs: dict[str, int] = json.loads(done.stdout)
    return dict(sorted(costs.items(), key=lambda each: each[1], reverse=True))


def line(measured: ProgramMemory) -> tuple[str, ...]:
    large = [(name, cost / 1e6) for name, cost in measured.imports.items() if cost >= LEAST_MEGABYTES * 1e6]
    return (
        measured.program,
        str(measured.processes),
        "yes" if measured.rests else "",
        f"{measured.pss / 1e6:.1f}",
        f"{measured.own / 1e6:.1f}",
        ", ".join(f"{name} {megabytes:.1f}" for name, megabytes in large[:LARGEST]),
    )
