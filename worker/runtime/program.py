"""What every program of bin/ shares: arguments, settings, logs, exit statuses.

Exit status 0: done or stopped. 1: with --once, a round failed. 2: bad settings or missing tables; supervisord does
not start the program again after it.
"""

import argparse
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, NoReturn

import redis

from worker.errors import SchemaError, SettingsError
from worker.registry import LOCKS
from worker.runtime import logs, settings
from worker.runtime.counters import Counters
from worker.runtime.job import Job, JobContext
from worker.runtime.lock import Lock
from worker.runtime.loop import Loop
from worker.runtime.redis_client import READ_TIMEOUT_SECONDS, connect
from worker.runtime.setting_parsers import concerns
from worker.runtime.settings import Settings
from worker.runtime.signals import Signals

log = logging.getLogger(__name__)

BAD_SETTINGS = 2
SUPERVISOR_START_SECONDS = 1.5  # more than startsecs in conf/supervisord.worker.conf


def run_job(name: str, description: str, build: Callable[[JobContext], Job], arguments: Sequence[str] | None) -> int:
    """The main program of a job: parses arguments, checks settings, runs the loop. Returns the exit status."""
    options = job_parser(name, description).parse_args(arguments)
    return run_loop(name, build, once=options.once)


def run_loop(name: str, build: Callable[[JobContext], Job], *, once: bool) -> int:
    """Runs a job whose arguments are parsed already. Returns the exit status."""
    return guarded(lambda: _run_job(name, build, once=once))


def job_parser(name: str, description: str) -> argparse.ArgumentParser:
    result = parser(
        name,
        description,
        "SIGTERM and SIGINT end it in good order, SIGUSR1 makes it run a tick now.\n"
        "Exit status: 0 done or stopped, 1 a round failed (--once), 2 bad settings or bin/migrate has to run.",
    )
    result.add_argument("--once", action="store_true", help="do all that is due now and end")
    return result


def parser(name: str, description: str, how_it_ends: str) -> argparse.ArgumentParser:
    """The parser of bin/<name>, whose --help lists every variable that it reads."""
    known = [each.metadata for each in settings.variables(name)]
    width = max(len(meta["name"]) for meta in known)
    reads = "\n".join(_described(meta, name, width) for meta in known)
    return argparse.ArgumentParser(
        prog=f"bin/{name}",
        description=description,
        epilog=f"It reads from the environment (any of them also from a file that NAME_FILE names):\n{reads}\n\n"
        f"{how_it_ends}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def settings_from_environment(job: str) -> Settings:
    """The checked settings of ``job``, with logs set up as they say. Raises SettingsError."""
    loaded = settings.load(os.environ, job)
    logs.configure(loaded.log_level, loaded.log_format)
    return loaded


def settings_problems(jobs: Iterable[str]) -> list[str]:
    """All that is wrong with the settings of these programs, a line each."""
    return settings.problems(os.environ, jobs)


def is_worker() -> bool:
    """Whether the jobs of this machine are to work (IS_WORKER). Raises SettingsError."""
    return settings.is_worker(os.environ)


def guarded(main: Callable[[], int]) -> int:
    """Runs a program's main part and turns its configuration errors into exit status 2 and one line."""
    logs.configure("info", "text")
    try:
        return main()
    except (SettingsError, SchemaError) as error:
        log.error("cannot start", {"reason": error})
        _outlast_start()
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
        clients = [connect(each) for each in loaded.lock_redis_urls or ()]
    except ValueError as error:
        raise SettingsError(f"LOCK_REDIS_URLS: {error}") from error
    return Lock(clients or [client], name, loaded.lock_ttl_ms, on_lost=on_lost)


def exit_idle(reason: str, name: str) -> int:
    """Says why a program has nothing to do on this machine. Returns its exit status."""
    log.info("nothing to do here", {"program": name, "reason": reason})
    _outlast_start()
    return 0


def secret_variables() -> Iterator[str]:
    """The names of the variables that hold a secret, and of those that name a file with one."""
    for each in fields(Settings):
        if each.metadata["secret"]:
            yield each.metadata["name"]
            yield f"{each.metadata['name']}_FILE"


def become(command: Sequence[str], environment: Mapping[str, str | None]) -> NoReturn:
    """Goes on as another program, with this one's environment but for ``environment`` (None: without that variable).

    Raises SettingsError when it cannot be started.
    """
    wanted = os.environ | environment
    logging.shutdown()
    try:
        left = {name: value for name, value in wanted.items() if value is not None}
        os.execve(command[0], [*command], left)  # noqa: S606 - a command of ours
    except OSError as error:
        raise SettingsError(f"{command[0]} cannot be started: {error.strerror}") from error


def _outlast_start() -> None:
    """An exit within startsecs is a failed start to supervisord, which it repeats whatever the status."""
    if "SUPERVISOR_ENABLED" in os.environ:
        time.sleep(SUPERVISOR_START_SECONDS)


def _run_job(name: str, build: Callable[[JobContext], Job], *, once: bool) -> int:
    if not is_worker():
        return exit_idle("IS_WORKER is false", name)
    loaded = settings_from_environment(name)
    signals = Signals()
    signals.install()
    client = redis_client(loaded)
    counters = Counters(client, name)
    lock_name = LOCKS[name]
    lock = create_lock(loaded, client, lock_name, on_lost=lambda: counters.add("lock_lost_total", lock=lock_name))
    context = JobContext(name, loaded, client, lock, counters, signals)
    job = build(context)
    log.info("started", {"job": name, "pid": os.getpid(), "interval_seconds": job.interval_seconds})
    loop = Loop(job, context)
    status = loop.run(once=once)
    log.info("ended", {"job": name, "status": status})
    if not loop.all_ended:
        logging.shutdown()
        os._exit(status)  # without waiting for threads; what they sent is settled as unconfirmed
    signals.close()
    return status


def _described(meta: Mapping[str, Any], job: str, width: int) -> str:
    default = "required" if concerns(job, meta["required_by"]) else f"default {meta['default'] or 'none'}"
    return f"  {meta['name']:<{width}} {meta['purpose']} ({default})"
