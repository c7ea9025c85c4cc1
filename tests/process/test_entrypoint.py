"""bin/entrypoint without a container: its checks, what it waits for, and stopping it meanwhile."""

import os
import signal
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest
from workers import PROJECT, Start, Worker, wait_for

from sandbox.ports import free_port
from sandbox.postgres import Postgres
from worker.runtime.migrations import ADVISORY_LOCK

CONF = """
[unix_http_server]
file = {folder}/run/supervisor.sock
[supervisord]
nodaemon = true
logfile = {folder}/log/supervisord.log
pidfile = {folder}/run/supervisord.pid
childlogdir = {folder}/log
[program:campaign]
command = /bin/sleep 600
stdout_logfile = NONE
stderr_logfile = NONE
[program:web]
command = /bin/sleep 600
stdout_logfile = NONE
stderr_logfile = NONE
"""
PASSWORD = "a-password-that-must-not-be-logged"

Enter = Callable[..., Worker]


@pytest.fixture
def conf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """supervisord's configuration with two programs, in a new folder."""
    folder = tmp_path_factory.mktemp("ep")
    path = folder / "supervisord.conf"
    path.write_text(CONF.format(folder=folder), "utf-8")
    return path


@pytest.fixture
def enter(start: Start, conf: Path) -> Enter:
    """Starts bin/entrypoint with these settings in addition to the usual ones."""
    return lambda **settings: start("--conf", str(conf), program="entrypoint", **settings)


def becomes_supervisord(entrypoint: Worker) -> None:
    wait_for(lambda: entrypoint.said("spawned: 'campaign'"), "supervisord starts the programs")
    assert entrypoint.stop() == 0


def unreachable(database_url: str) -> str:
    """The URL of a PostgreSQL that does not answer."""
    return f"postgresql://crm:{PASSWORD}@127.0.0.1:{free_port()}/crm"


def test_all_problems_are_logged_at_once(enter: Enter, conf: Path) -> None:
    """Wrong settings of several programs, and a folder: one line each, status 2, and no server is contacted."""
    conf.write_text(conf.read_text("utf-8").replace(f"{conf.parent}/log", "/dev/null/log"), "utf-8")
    entrypoint = enter(LOG_LEVEL="loud", PORT="http", CAMPAIGN_BATCH_SIZE="many", DATABASE_URL="", SMTP_URL=PASSWORD)
    assert entrypoint.wait() == 2
    for text in ("LOG_LEVEL is 'loud'", "PORT is 'http'", "CAMPAIGN_BATCH_SIZE is 'many'", "DATABASE_URL is not set"):
        assert entrypoint.said(text) == 1
    assert entrypoint.said("SMTP_URL is (a secret, not shown)") == 1
    assert entrypoint.said(f"/dev/null/log cannot be written by user {os.getuid()}:{os.getgid()}") == 1
    assert entrypoint.said("ERROR cannot start") == 6
    assert PASSWORD not in entrypoint.log


def test_problems_that_a_program_finds_at_its_start_are_found_before(enter: Enter) -> None:
    """Values whose form is right and that still cannot be used."""
    entrypoint = enter(REDIS_URL="redis://h:port", STATE_DIR="/dev/null/state", DATABASE_URL="postgresql://a:b@c:d/e")
    assert entrypoint.wait() == 2
    for text in ("REDIS_URL: ", "/dev/null/state cannot be written", "DATABASE_URL cannot be read"):
        assert entrypoint.said(text) == 1


def test_it_waits_for_a_server_that_comes_later(enter: Enter, new_postgres: Callable[[], Postgres]) -> None:
    """It logs which server it waits for, and continues when that answers."""
    server = new_postgres()
    server.stop()
    entrypoint = enter(DATABASE_URL=server.url, MIGRATE="true", IS_WORKER="false")
    wait_for(lambda: entrypoint.said("waiting for a server server=PostgreSQL"), "it waits")
    assert entrypoint.said("server=Redis") == 0
    server.start()
    wait_for(lambda: entrypoint.said("all servers answer"), "it continues")


def test_it_waits_no_longer_than_entrypoint_wait(enter: Enter, database_url: str, redis_url: str) -> None:
    """Status 1, so that it is started again; the log names both servers and no password."""
    redis = f"redis://:{PASSWORD}@{redis_url.rpartition('@')[2]}"
    entrypoint = enter(DATABASE_URL=unreachable(database_url), REDIS_URL=redis, ENTRYPOINT_WAIT="2s")
    assert entrypoint.wait() == 1
    assert entrypoint.said("did not answer within ENTRYPOINT_WAIT server=PostgreSQL") == 1
    assert entrypoint.said("did not answer within ENTRYPOINT_WAIT server=Redis") == 1
    assert entrypoint.said("are address, user and password in DATABASE_URL right?") == 1
    assert PASSWORD not in entrypoint.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_is_stopped_while_it_waits(enter: Enter, database_url: str, number: signal.Signals) -> None:
    entrypoint = enter(DATABASE_URL=unreachable(database_url))
    wait_for(lambda: entrypoint.said("waiting for a server"), "it waits")
    assert entrypoint.stop(number) == 0
    assert entrypoint.said("Traceback") == 0


def test_it_is_stopped_while_it_migrates(enter: Enter, crm_only_url: str) -> None:
    """It waits for another migration: both processes end, and the next start migrates."""
    with closing(psycopg2.connect(crm_only_url)) as other:
        other.autocommit = True
        cursor = other.cursor()
        cursor.execute("SELECT pg_advisory_lock(%s)", (ADVISORY_LOCK,))
        entrypoint = enter(DATABASE_URL=crm_only_url, MIGRATE="true")
        wait_for(lambda: migrating(cursor), "bin/migrate waits")
        entrypoint.send(signal.SIGTERM)
        assert entrypoint.stop() == 0
        wait_for(lambda: not migrating(cursor), "bin/migrate has ended")
        assert entrypoint.said("starting supervisord") == 0
    again = enter(DATABASE_URL=crm_only_url, MIGRATE="true")
    becomes_supervisord(again)
    assert again.said("done: ") > 0


def migrating(cursor: psycopg2.extensions.cursor) -> bool:
    cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'crm-worker migrate'")
    row = cursor.fetchone()
    return bool(row and row[0])


def test_missing_tables_are_reported_before_programs_start(enter: Enter, crm_only_url: str) -> None:
    """Status 2, and both ways to create them."""
    entrypoint = enter(DATABASE_URL=crm_only_url)
    assert entrypoint.wait() == 2
    assert entrypoint.said("missing: run bin/migrate, or start the container with MIGRATE=true") == 1


def test_it_does_not_wait_with_is_worker_false(enter: Enter, database_url: str) -> None:
    """IS_WORKER=false: web runs and shows itself which server is unavailable; what only jobs read is not checked."""
    entrypoint = enter(DATABASE_URL=unreachable(database_url), IS_WORKER="false", CAMPAIGN_MAX_ATTEMPTS="many")
    becomes_supervisord(entrypoint)


def test_a_command_replaces_supervisord(start: Start) -> None:
    """With its arguments and its exit status, whatever the settings are; a missing command is named."""
    assert start("sh", "-c", 'echo "$0"; exit 7', "--once", program="entrypoint", LOG_LEVEL="loud").wait() == 7
    missing = start("bin/mirgate", program="entrypoint")
    assert missing.wait() == 127
    assert missing.said("bin/mirgate: No such file or directory") == 1
    assert os.access(PROJECT / "bin" / "entrypoint", os.X_OK)
