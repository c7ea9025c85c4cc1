"""What every program of bin/ shares: arguments, settings, logs, exit statuses.

Exit status 0: done or stopped. 1: with --once, a round failed. 2: bad settings or missing tables; supervisord does
not start the program again after it.
"""

import argparse
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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
    return guarded(lambda: _run_job(name, lock_name, build, once=options.once))


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
    reads = "\n".join(_described(each.metadata, name) for each in settings.variables(name))
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
        log.info("IS_WORKER is false: nothing to do here", {"job": name})
        _outlast_start()
        return 0
    loaded = settings_from_environment(name)
    signals = Signals()
    signals.install()
    try:
        client = connect(loaded.redis_url)
        lock_clients = [connect(each) for each in loaded.lock_redis_urls] if loaded.lock_redis_urls else [client]
    except ValueError as error:
        raise SettingsError(f"REDIS_URL or LOCK_REDIS_URLS: {error}") from error
    counters = Counters(client, name)
    lock = Lock(
        lock_clients,
        lock_name,
        loaded.lock_ttl_ms,
        on_lost=lambda: counters.add("lock_lost_total", lock=lock_name),
    )
    job = build(loaded, counters, lock, signals)
    log.info("started", {"job": name, "pid": os.getpid(), "interval_seconds": job.interval_seconds})
    loop = Loop(job, lock, counters, signals)
    status = loop.run(once=once)
    log.info("ended", {"job": name, "status": status})
    if not loop.all_ended:
        logging.shutdown()
        os._exit(status)  # without waiting for threads; what they sent is settled as unconfirmed
    return status


def _described(meta: Mapping[str, Any], job: str) -> str:
    default = "required" if concerns(job, meta["required_by"]) else f"default {meta['default'] or 'none'}"
    return f"  {meta['name']:<24} {meta['purpose']} ({default})"
