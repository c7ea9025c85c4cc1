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

from worker import logs, settings
from worker.counters import Counters
from worker.errors import SchemaError, SettingsError
from worker.lock import Lock
from worker.loop import Job, Loop, Signals
from worker.redis_client import connect
from worker.settings import Settings
from worker.variables import concerns

log = logging.getLogger(__name__)

BAD_SETTINGS = 2
SUPERVISOR_START_SECONDS = 1.5  # more than startsecs in conf/supervisord.worker.conf


def run_job(
    name: str,
    lock_name: str,
    description: str,
    build: Callable[[Settings, Counters, Lock, Signals], Job],
    arguments: Sequence[str] | None,
) -> int:
    """The main program of a job: parses arguments, checks settings, runs the loop. Returns the exit status."""
    options = job_parser(name, description).parse_args(arguments)
    return run_loop(name, lock_name, build, once=options.once)


def run_loop(
    name: str, lock_name: str, build: Callable[[Settings, Counters, Lock, Signals], Job], *, once: bool
) -> int:
    """Runs a job whose arguments are parsed already. Returns the exit status."""
    return guarded(lambda: _run_job(name, lock_name, build, once=once))


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


def lock_of(loaded: Settings, client: redis.Redis, name: str, on_lost: Callable[[], None] | None = None) -> Lock:
    """``lock:<name>`` where the settings keep locks: in ``client``'s Redis, or in several. Raises SettingsError."""
    try:
        clients = [connect(each) for each in loaded.lock_redis_urls or ()]
    except ValueError as error:
        raise SettingsError(f"LOCK_REDIS_URLS: {error}") from error
    return Lock(clients or [client], name, loaded.lock_ttl_ms, on_lost=on_lost)


def stand_aside(reason: str, name: str) -> int:
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


def _run_job(
    name: str,
    lock_name: str,
    build: Callable[[Settings, Counters, Lock, Signals], Job],
    *,
    once: bool,
) -> int:
    if not is_worker():
        return stand_aside("IS_WORKER is false", name)
    loaded = settings_from_environment(name)
    signals = Signals()
    signals.install()
    try:
        client = connect(loaded.redis_url)
    except ValueError as error:
        raise SettingsError(f"REDIS_URL: {error}") from error
    counters = Counters(client, name)
    lock = lock_of(loaded, client, lock_name, on_lost=lambda: counters.add("lock_lost_total", lock=lock_name))
    job = build(loaded, counters, lock, signals)
    log.info("started", {"job": name, "pid": os.getpid(), "interval_seconds": job.interval_seconds})
    loop = Loop(job, lock, counters, signals)
    status = loop.run(once=once)
    log.info("ended", {"job": name, "status": status})
    if not loop.all_ended:
        logging.shutdown()
        os._exit(status)  # without waiting for threads; what they sent is settled as unconfirmed
    signals.close()
    client.close()
    return status


def _described(meta: Mapping[str, Any], job: str, width: int) -> str:
    default = "required" if concerns(job, meta["required_by"]) else f"default {meta['default'] or 'none'}"
    return f"  {meta['name']:<{width}} {meta['purpose']} ({default})"
