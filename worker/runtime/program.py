"""What all programs of bin/ share: arguments, settings, logs, exit statuses.

Exit status 0: done, or stopped by a signal. 1: a tick failed (with --once). 2: invalid settings or missing tables;
supervisord does not start the program again after status 2.
"""

import argparse
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NoReturn

import redis

from worker.errors import SchemaError, SettingsError
from worker.registry import JOBS, MANY
from worker.runtime import logs, rest, settings
from worker.runtime.counters import Counters
from worker.runtime.db import Database
from worker.runtime.environment_variable import EnvironmentVariable
from worker.runtime.job import Job, JobContext
from worker.runtime.lock import Lock
from worker.runtime.lock_servers import LOCK_SERVER_TIMEOUT_SECONDS
from worker.runtime.loop import Loop
from worker.runtime.process_token import new_token
from worker.runtime.redis_client import READ_TIMEOUT_SECONDS, connect
from worker.runtime.settings import Settings
from worker.runtime.signals import Signals

log = logging.getLogger(__name__)

BAD_SETTINGS = 2
SUPERVISOR_START_SECONDS = 1.5  # longer than startsecs in conf/supervisord.worker.conf


def run_job(
    name: str,
    description: str,
    build: Callable[[JobContext], Job],
    arguments: Sequence[str] | None,
    why_off: Callable[[Settings], str | None] = lambda _: None,
) -> int:
    """The main program of a job: parses arguments, checks settings, runs the loop. Returns the exit status.

    ``why_off``: why the job has nothing to do with these settings; None: it runs.
    """
    return run_loop(name, build, job_parser(name, description).parse_args(arguments), why_off)


def run_loop(
    name: str,
    build: Callable[[JobContext], Job],
    options: argparse.Namespace,
    why_off: Callable[[Settings], str | None] = lambda _: None,
) -> int:
    """Runs a job whose arguments have been parsed by ``job_parser``. Returns the exit status."""
    return run_main(lambda: _run_job(name, build, why_off, once=options.once, after=options.after_rest))


def job_parser(name: str, description: str) -> argparse.ArgumentParser:
    """The argument parser of a job."""
    result = parser(
        name,
        description,
        "SIGTERM and SIGINT stop it after the messages in flight, SIGUSR1 makes it run a tick now.\n"
        "Exit status: 0 done or stopped, 1 a tick failed (--once), 2 invalid settings or bin/migrate has to run.",
    )
    result.add_argument("--once", action="store_true", help="do everything that is due now, then end")
    result.add_argument(rest.ARGUMENT, type=rest.Rest.from_text, help=argparse.SUPPRESS)  # for this program itself
    return result


def parser(name: str, description: str, how_it_ends: str) -> argparse.ArgumentParser:
    """The argument parser of bin/<name>, whose --help lists every environment variable that the program reads."""
    known = settings.variables(name)
    width = max(len(each.name) for each in known)
    reads = "\n".join(_help_line(each, name, width) for each in known)
    return argparse.ArgumentParser(
        prog=f"bin/{name}",
        description=description,
        epilog=f"Environment variables (each may come from the file that NAME_FILE names):\n{reads}\n\n{how_it_ends}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def settings_from_environment(name: str) -> Settings:
    """The checked settings of a program; also sets up its logs accordingly. Raises SettingsError."""
    loaded = settings.load(os.environ, name)
    logs.configure(loaded.log_level, loaded.log_format)
    return loaded


def settings_problems(names: Iterable[str]) -> list[str]:
    """All that is wrong with the settings of these programs, one line each."""
    return settings.problems(os.environ, names)


def is_worker() -> bool:
    """Whether the jobs on this machine should run (IS_WORKER). Raises SettingsError."""
    return settings.is_worker(os.environ)


def run_main(main: Callable[[], int]) -> int:
    """Runs the main function of a program. Turns a configuration error into one log line and exit status 2."""
    logs.configure("info", "text")
    try:
        return main()
    except (SettingsError, SchemaError) as error:
        log.error("cannot start", {"reason": error})
        _wait_past_startsecs()
        return BAD_SETTINGS


def redis_client(loaded: Settings, *, timeout_seconds: float = READ_TIMEOUT_SECONDS) -> redis.Redis:
    """A client for REDIS_URL, not connected yet. Raises SettingsError."""
    try:
        return connect(loaded.redis_url, timeout_seconds=timeout_seconds)
    except ValueError as error:
        raise SettingsError(f"REDIS_URL: {error}") from error


def create_lock(loaded: Settings, client: redis.Redis, name: str, on_lost: Callable[[], None] | None = None) -> Lock:
    """``lock:<name>`` where the settings keep locks: in ``client``'s Redis, or in several. Raises SettingsError."""
    try:
        clients = [
            connect(each, timeout_seconds=LOCK_SERVER_TIMEOUT_SECONDS) for each in loaded.lock_redis_urls or ()
        ]
    except ValueError as error:
        raise SettingsError(f"LOCK_REDIS_URLS: {error}") from error
    return Lock(clients or [client], name, loaded.lock_ttl_ms, on_lost=on_lost)


def end_without_work(reason: str, name: str) -> int:
    """Logs why a program has nothing to do on this machine. Returns its exit status."""
    log.info("nothing to do on this machine", {"program": name, "reason": reason})
    _wait_past_startsecs()
    return 0


def secret_variables() -> Iterator[str]:
    """The names of the variables that contain a secret, and of those that name a file with one."""
    for each in settings.variables():
        if each.secret:
            yield each.name
            yield f"{each.name}_FILE"


def replace_process(command: Sequence[str], environment: Mapping[str, str | None]) -> NoReturn:
    """Replaces this process by another program. ``environment`` changes this process's one; None removes a variable.

    Raises SettingsError when the program cannot be started.
    """
    changed = os.environ | environment
    logging.shutdown()
    try:
        remaining = {name: value for name, value in changed.items() if value is not None}
        os.execve(command[0], [*command], remaining)  # noqa: S606 - a command of ours
    except OSError as error:
        raise SettingsError(f"{command[0]} cannot be started: {error.strerror}") from error


def _wait_past_startsecs() -> None:
    """Under supervisord, waits: an exit within startsecs is a failed start, which it repeats whatever the status."""
    if "SUPERVISOR_ENABLED" in os.environ:
        time.sleep(SUPERVISOR_START_SECONDS)


def _run_job(
    name: str,
    build: Callable[[JobContext], Job],
    why_off: Callable[[Settings], str | None],
    *,
    once: bool,
    after: rest.Rest | None = None,
) -> int:
    if not is_worker():
        return end_without_work("IS_WORKER is false", name)
    loaded = settings_from_environment(name)
    if reason := why_off(loaded):
        return end_without_work(reason, name)
    signals = Signals()
    signals.install()
    client = redis_client(loaded)
    counters = Counters(client, name)
    spec = MANY.get(name) or JOBS[name]
    lock_name = spec.lock or f"{name}:{new_token()}"
    lock = create_lock(
        loaded, client, lock_name, on_lost=lambda: counters.add("lock_lost_total", lock=spec.lock or name)
    )
    pooled = after is not None and after.pooled
    database = Database(loaded.database_url, f"crm-worker {name}", pooled=pooled) if spec.database else None
    context = JobContext(name, loaded, client, lock, counters, signals, database=database, rest=after)
    job = build(context)
    if after is None:
        log.info("started", {"job": name, "pid": os.getpid(), "interval_seconds": job.interval_seconds})
    loop = Loop(job, context)
    status = loop.run(once=once, after=after)
    if loop.rest:
        rest.begin(loop.rest, context.clock(), signals)
    log.info("ended", {"job": name, "status": status})
    if not loop.all_ended:
        logging.shutdown()
        os._exit(status)  # without waiting for the threads; their messages are settled as unconfirmed
    signals.close()
    return status


def _help_line(variable: EnvironmentVariable, name: str, width: int) -> str:
    default = "required" if variable.is_required_by(name) else f"default {variable.default or 'none'}"
    return f"  {variable.name:<{width}} {variable.purpose} ({default})"
