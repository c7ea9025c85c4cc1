"""What bin/entrypoint does: checks, waits, migrates if MIGRATE is true, and becomes supervisord.

Problems that would keep all programs from working are written to the container's own output before they start.
"""

import argparse
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import psycopg2
import redis

from worker.errors import SchemaError
from worker.runtime import program
from worker.runtime.db import Database
from worker.runtime.migrations import require_current
from worker.runtime.redis_client import connect, require_no_cluster
from worker.runtime.settings import Settings
from worker.starting.preflight import problems
from worker.starting.wait_for_services import AwaitedService, wait_for_all

log = logging.getLogger(__name__)

PROJECT = Path(__file__).resolve().parents[2]
CONF = PROJECT / "conf" / "supervisord.worker.conf"
REDIS_TIMEOUT_SECONDS = 2.0  # for the answer to a PING
NOT_FOUND, NOT_EXECUTABLE = 127, 126  # exit statuses, the same as a shell's

DESCRIPTION = """\
Starts the worker server in a container: checks the settings of all programs and the folders that they write to, waits
for PostgreSQL and Redis, runs bin/migrate if MIGRATE=true, and becomes supervisord. With a COMMAND it becomes that
command instead (bin/migrate, bin/status, bin/campaign --once) and checks nothing."""

HOW_IT_ENDS = """\
Exit status, unless it becomes another program: 0 stopped by a signal, 1 PostgreSQL or Redis did not answer in time
or bin/migrate failed, 2 bad settings, a folder that cannot be written to, or bin/migrate has to run."""


def run(arguments: Sequence[str] | None) -> int:
    """Returns the exit status, unless the process becomes another program."""
    parser = program.parser("entrypoint", DESCRIPTION, HOW_IT_ENDS)
    parser.add_argument("--conf", type=Path, default=CONF, help="another configuration for supervisord")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND ...", help="what to run instead")
    options = parser.parse_args(arguments)
    if options.command:
        return become_command(options.command)
    return program.run_main(lambda: start(options.conf))


def start(conf: Path) -> int:
    """Becomes supervisord, or returns an exit status. Raises SettingsError and SchemaError."""
    found = problems(conf)
    for each in found:
        log.error("cannot start", {"reason": each})
    if found:
        return program.BAD_SETTINGS
    settings = program.settings_from_environment("entrypoint")
    if settings.is_worker or settings.migrate:
        status = await_servers(settings) or prepare_database(settings)
        if status:
            return status
    log.info("starting supervisord", {"conf": conf})
    program.replace_process([sys.executable, "-m", "supervisor.supervisord", "-c", str(conf)], {})


def await_servers(settings: Settings) -> int:
    """Waits for PostgreSQL and Redis. Returns 0 when both answer, else 1.

    Raises SettingsError when Redis is a cluster.
    """
    database = Database(settings.database_url, "crm-worker entrypoint")
    client = connect(settings.redis_url, timeout_seconds=REDIS_TIMEOUT_SECONDS)
    check = "is it running and reachable from here, and are address, user and password in {} right?"
    servers = [
        AwaitedService("PostgreSQL", lambda: database.connect().close(), check.format("DATABASE_URL")),
        AwaitedService("Redis", client.ping, check.format("REDIS_URL")),
    ]
    silent = wait_for_all(servers, settings.entrypoint_wait_seconds)
    for server in silent:
        log.error(
            "a server did not answer within ENTRYPOINT_WAIT",
            {"server": server.name, "reason": server.reason, "check": server.check},
        )
    if silent:
        return 1
    try:
        require_no_cluster(client)
    except redis.RedisError as error:
        log.error("cannot check whether Redis is a cluster", {"reason": error})
        return 1
    return 0


def prepare_database(settings: Settings) -> int:
    """Runs bin/migrate if MIGRATE is true, checks the worker's tables. Returns an exit status; raises SchemaError."""
    status = _migrate(PROJECT / "bin" / "migrate") if settings.migrate else 0
    if status or not settings.is_worker:
        return status
    with closing(Database(settings.database_url, "crm-worker entrypoint")) as database:
        try:
            require_current(database)
        except SchemaError as error:
            raise SchemaError(f"{error}, or start the container with MIGRATE=true") from error
        except psycopg2.Error as error:
            log.error("cannot check whether bin/migrate has run", {"reason": str(error).strip()})
            return 1
    return 0


def become_command(command: Sequence[str]) -> int:
    """Returns an exit status only when the command cannot be started."""
    try:
        os.execvp(command[0], [*command])  # noqa: S606 - without a shell
    except OSError as error:
        sys.stderr.write(f"bin/entrypoint: {command[0]}: {error.strerror}\n")
        return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE


def _migrate(command: Path) -> int:
    """Runs a program to its end, and stops it when this process is stopped. Returns its exit status."""
    process = subprocess.Popen([command])  # noqa: S603 - a program of our own
    try:
        return process.wait()
    except SystemExit:
        process.terminate()
        process.wait()
        raise
