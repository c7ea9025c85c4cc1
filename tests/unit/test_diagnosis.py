"""What an error means for an operator: which server or machine is at fault, and whether the job waits for it."""

import errno
import os

import psycopg2
import psycopg2.errors
import pytest
import redis

from worker.errors import ServerUnavailable, WorkerError
from worker.runtime.db import DatabaseReadOnly, StatementTooLarge, is_unavailable
from worker.runtime.diagnosis import (
    EXHAUSTED,
    MACHINE,
    MACHINE_EXHAUSTED,
    POSTGRESQL,
    READ_ONLY,
    REDIS,
    REFUSED,
    TICK_FAILED,
    UNAVAILABLE,
    diagnose,
)


def coded(code: str) -> psycopg2.Error:
    """An error of PostgreSQL with this SQLSTATE."""

    class Coded(psycopg2.errors.lookup(code)):  # type: ignore[misc]
        pgcode = code

    error: psycopg2.Error = Coded("text in the server's language")
    return error


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("25006", READ_ONLY),
        ("53100", READ_ONLY),
        ("53200", EXHAUSTED),
        ("53300", EXHAUSTED),
        ("58030", EXHAUSTED),
        ("08006", UNAVAILABLE),
        ("08P01", UNAVAILABLE),
        ("57P01", UNAVAILABLE),
        ("57P02", UNAVAILABLE),
        ("57P03", UNAVAILABLE),
        ("25P03", UNAVAILABLE),  # it ended the session of a process that was frozen in a transaction
    ],
)
def test_a_postgresql_that_cannot_work(code: str, message: str) -> None:
    """The job waits for it."""
    found = diagnose(coded(code))
    assert found
    assert (found.message, found.server, found.waits) == (message, POSTGRESQL, True)
    assert is_unavailable(coded(code))
    assert bool(found.do) == (message != UNAVAILABLE)


@pytest.mark.parametrize(
    "code",
    ["55P03", "57014", "40P01", "40001", "53400", "54000", "54001", "22P05", "23505", "42501", "42P01", "42703"],
)
def test_a_postgresql_that_refuses_a_statement(code: str) -> None:
    """The server works: one tick failed, and it is no bug of unknown cause."""
    found = diagnose(coded(code))
    assert found
    assert (found.message, found.server, found.waits) == (TICK_FAILED, POSTGRESQL, False)
    assert not is_unavailable(coded(code))


@pytest.mark.parametrize(
    ("text", "message", "server"),
    [
        ('connection to server at "db" failed: FATAL:  sorry, too many clients already', EXHAUSTED, POSTGRESQL),
        ("FATAL:  remaining connection slots are reserved for roles with the SUPERUSER", EXHAUSTED, POSTGRESQL),
        ('FATAL:  too many connections for role "crm_worker"', EXHAUSTED, POSTGRESQL),
        ("FATAL:  no more connections allowed (max_client_conn)", EXHAUSTED, POSTGRESQL),
        ('FATAL:  password authentication failed for user "crm"', REFUSED, POSTGRESQL),
        ('FATAL:  database "crm" does not exist', REFUSED, POSTGRESQL),
        ("connection refused\n\tIs the server running on that host?", UNAVAILABLE, POSTGRESQL),
        ("FATAL:  the database system is starting up", UNAVAILABLE, POSTGRESQL),
        ("to server at a failed: refused\nto server at b failed: session is read-only\n", READ_ONLY, POSTGRESQL),
        ('connection to server at "b" failed: server is in hot standby mode', READ_ONLY, POSTGRESQL),
        ("FATAL:  server login has been failing, try again later (server_login_retry)", UNAVAILABLE, POSTGRESQL),
        (f"could not create socket: {os.strerror(errno.EMFILE)}", MACHINE_EXHAUSTED, MACHINE),
    ],
)
def test_while_connecting(text: str, message: str, server: str) -> None:
    """libpq has no SQLSTATE for what happens while it connects."""
    found = diagnose(psycopg2.OperationalError(text))
    assert found
    assert (found.message, found.server, found.waits) == (message, server, True)


def test_own_errors_of_the_database() -> None:
    """A session that takes no writes is an outage; a statement that is too large is not."""
    assert is_unavailable(DatabaseReadOnly("x"))
    assert not is_unavailable(StatementTooLarge("x"))
    assert not is_unavailable(psycopg2.OperationalError("invalid message length"))
    found = diagnose(DatabaseReadOnly("x"))
    assert found
    assert found.message == READ_ONLY
    assert "DATABASE_URL must lead to the primary" in found.do


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (redis.ResponseError("MISCONF Redis is configured to save RDB snapshots, but it's unable to"), READ_ONLY),
        (redis.exceptions.ReadOnlyError("You can't write against a read only replica."), READ_ONLY),
        (redis.ResponseError("ERR Error running script: @user_script:1: -READONLY You can't write"), READ_ONLY),
        (redis.ResponseError("NOREPLICAS Not enough good replicas to write."), READ_ONLY),
        (redis.exceptions.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."), EXHAUSTED),
        (redis.ResponseError("OOM command not allowed when used memory > 'maxmemory'. script: 0a"), EXHAUSTED),
        (redis.ConnectionError("max number of clients reached"), EXHAUSTED),
        (redis.AuthenticationError("Authentication required."), REFUSED),
        (redis.AuthenticationError("invalid username-password pair or user is disabled."), REFUSED),
        (redis.exceptions.NoPermissionError("User worker has no permissions to run the 'set' command"), REFUSED),
        (redis.BusyLoadingError("Redis is loading the dataset in memory"), UNAVAILABLE),
        (redis.ResponseError("BUSY Redis is busy running a script."), UNAVAILABLE),
        (redis.ConnectionError("Error 111 connecting to redis:6379. Connection refused."), UNAVAILABLE),
        (redis.TimeoutError("Timeout reading from socket"), UNAVAILABLE),
    ],
)  # fmt: skip
def test_a_redis_that_cannot_work(error: redis.RedisError, message: str) -> None:
    """It is said as what it is, and the job waits for it."""
    found = diagnose(error)
    assert found
    assert (found.message, found.server, found.waits) == (message, REDIS, True)
    assert bool(found.do) == (message != UNAVAILABLE or "BUSY" in str(error))


@pytest.mark.parametrize("text", ["WRONGTYPE Operation against a key holding the wrong kind", "unknown command 'X'"])
def test_a_redis_that_refuses_a_command(text: str) -> None:
    """Waiting does not help."""
    found = diagnose(redis.ResponseError(text))
    assert found
    assert (found.message, found.server, found.waits) == (TICK_FAILED, REDIS, False)
    assert found.do


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
        OSError(errno.ENFILE, os.strerror(errno.ENFILE)),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EROFS, os.strerror(errno.EROFS)),
        RuntimeError("can't start new thread"),
        MemoryError(),
        redis.ConnectionError(f"Error 24 connecting to redis:6379. {os.strerror(errno.EMFILE)}."),
        caused(WorkerError("the journal cannot be written"), OSError(errno.ENOSPC, "full")),
    ],
    ids=str,
)
def test_a_machine_without_resources(error: Exception) -> None:
    """It is not called a bug, nor an outage of a server, and the advice names what is missing."""
    found = diagnose(error)
    assert found
    assert (found.message, found.server, found.waits) == (MACHINE_EXHAUSTED, MACHINE, True)
    assert found.do


def test_other_errors() -> None:
    """Another server is waited for; what nothing is known about is a bug."""
    found = diagnose(ServerUnavailable("Qdrant", "gone"))
    assert found
    assert (found.message, found.server, found.waits) == (UNAVAILABLE, "Qdrant", True)
    for error in (ZeroDivisionError("oops"), RuntimeError("oops"), OSError(errno.ENOENT, "none"), coded("42601")):
        assert diagnose(error) is None
