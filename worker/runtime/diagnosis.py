"""What an error means for an operator: whose fault it is, and what to do. One function for all jobs.

Sources: https://www.postgresql.org/docs/current/errcodes-appendix.html and the error replies of Redis
(https://redis.io/docs/latest/develop/reference/protocol-spec/#simple-errors).
"""

import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

import psycopg2
import redis

from worker.errors import ServerUnavailable
from worker.runtime.db import StatementTooLarge, is_read_only, is_unavailable
from worker.runtime.redis_client import NO_CLUSTER

POSTGRESQL, REDIS, MACHINE = "PostgreSQL", "Redis", "this machine"
UNAVAILABLE = "a server is unavailable, the job waits for it"
READ_ONLY = "a server takes no writes, the job waits for it"
EXHAUSTED = "a server has not enough resources, the job waits for it"
REFUSED = "a server refuses the worker, the job waits for it"
MACHINE_EXHAUSTED = "this machine has not enough resources, the job waits for them"
TICK_FAILED = "tick failed"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What happened: ``message`` for the log, ``server`` at fault, and what to do ('' if nothing but waiting helps).

    ``waits``: the job tries again soon, with growing pauses, until it works. Otherwise one tick has failed.
    """

    message: str
    server: str
    do: str = ""
    waits: bool = True

    @property
    def takes_no_writes(self) -> bool:
        """Whether the server answers questions, but nothing can be written to it."""
        return self.message == READ_ONLY


_OF_MACHINE = {
    errno.EMFILE: "raise the limit of open files (ulimit -n, nofile), and see which program has so many",
    errno.ENFILE: "raise fs.file-max, and see which program has so many files open",
    errno.ENOSPC: "free disk space: df -h, and STATE_DIR and the logs first",
    errno.EDQUOT: "raise the disk quota of the worker's user",
    errno.EROFS: "mount the file system writable: STATE_DIR and the logs are written to",
    errno.EIO: "see dmesg: the disk may be broken",
    errno.ENOMEM: "free memory, or raise the container's limit",
}
_THREADS = "raise the limit of processes and threads (ulimit -u, pids.max, TasksMax)"
_MEMORY = _OF_MACHINE[errno.ENOMEM]

# By SQLSTATE, or by the text where libpq has no SQLSTATE: while it connects
_POSTGRESQL: tuple[tuple[re.Pattern[str], Diagnosis], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), diagnosis)
    for pattern, diagnosis in (
        (
            r"^53300|too many clients|too many connections|connection slots|no more connections allowed",
            Diagnosis(EXHAUSTED, POSTGRESQL, "raise max_connections (or the role's, the database's, the pooler's "
                      "limit), or end connections that nobody needs (pg_stat_activity)"),
        ),
        (
            r"failed: (session is read-only|server is in hot standby mode)",
            Diagnosis(READ_ONLY, POSTGRESQL, "no host in DATABASE_URL takes writes: start the primary, or promote a "
                      "standby (pg_promote())"),
        ),
        (r"^53100", Diagnosis(READ_ONLY, POSTGRESQL, "free space on PostgreSQL's disk")),
        (r"^53200", Diagnosis(EXHAUSTED, POSTGRESQL, "PostgreSQL is out of memory: see its log")),
        (r"^58030", Diagnosis(EXHAUSTED, POSTGRESQL, "PostgreSQL cannot read or write its files: see its log")),
        (
            r"^28|password authentication failed|no pg_hba.conf entry|role .* does not exist",
            Diagnosis(REFUSED, POSTGRESQL, "correct user and password in DATABASE_URL, or pg_hba.conf"),
        ),
        (r"^3D|database .* does not exist", Diagnosis(REFUSED, POSTGRESQL, "correct the database in DATABASE_URL")),
    )
)  # fmt: skip
_STATEMENTS = {
    "42501": "grant the worker's user its rights: docs/operating.md, Before the first start",
    "42P01": "a table is missing: run bin/migrate, and see the page's warnings about the CRM's tables",
    "42703": "a column is missing: run bin/migrate, and see the page's warnings about the CRM's tables",
    "42883": "a function is missing: run bin/migrate",
    "3F000": "a schema is missing: run bin/migrate, or correct ?schema= in DATABASE_URL",
    "55P03": "another session has held a lock for longer than 30 s: see pg_locks and pg_stat_activity",
    "57014": "a statement was cancelled, by an operator or after 5 minutes: see docs/operating.md, It is slow",
    "40P01": "",
    "40001": "",
    "53400": "a statement needs larger temporary files than temp_file_limit allows",
}
_ROWS = ("22", "23", "54")  # SQLSTATE classes of what a row's values cause: data, constraints, limits

_REDIS: tuple[tuple[re.Pattern[str], Diagnosis], ...] = tuple(
    (re.compile(pattern), diagnosis)
    for pattern, diagnosis in (
        (
            r"\bMISCONF\b",
            Diagnosis(READ_ONLY, REDIS, "Redis cannot save its data to disk: free space there, see its log"),
        ),
        (
            r"\bREADONLY\b|read only replica|previous master is now a slave",
            Diagnosis(READ_ONLY, REDIS, "REDIS_URL leads to a replica: it must lead to the master"),
        ),
        (r"\bNOREPLICAS\b", Diagnosis(READ_ONLY, REDIS, "Redis wants more replicas (min-replicas-to-write)")),
        (
            r"\bOOM\b|used memory > 'maxmemory'",
            Diagnosis(EXHAUSTED, REDIS, "raise Redis's maxmemory, or find out what fills it (redis-cli --bigkeys)"),
        ),
        (r"max number of clients reached", Diagnosis(EXHAUSTED, REDIS, "raise Redis's maxclients")),
        (
            r"\b(NOAUTH|WRONGPASS)\b|[Aa]uthentication required|invalid (username-)?password|without any password",
            Diagnosis(REFUSED, REDIS, "correct user and password in REDIS_URL"),
        ),
        (
            r"\bNOPERM\b|has no permissions|No permissions",
            Diagnosis(REFUSED, REDIS, "give the user of REDIS_URL the rights of docs/operating.md, Before the first "
                      "start (redis-cli ACL LOG names what was refused)"),
        ),
        (r"\bMOVED\b", Diagnosis(REFUSED, REDIS, f"REDIS_URL: {NO_CLUSTER}")),
        (r"\bBUSY\b", Diagnosis(UNAVAILABLE, REDIS, "a script blocks Redis: redis-cli SCRIPT KILL")),
        (r"\b(LOADING|MASTERDOWN|CLUSTERDOWN|TRYAGAIN)\b", Diagnosis(UNAVAILABLE, REDIS)),
        (
            r"\bWRONGTYPE\b",
            Diagnosis(TICK_FAILED, REDIS, "a key of the worker has a wrong type: delete it, which is safe "
                      "(redis-cli --scan --pattern 'worker:*', TYPE, DEL)", waits=False),
        ),
    )
)  # fmt: skip
_REDIS_TYPES: tuple[tuple[type[redis.RedisError], str], ...] = (  # whose texts have lost their code
    (redis.exceptions.ReadOnlyError, "READONLY"),
    (redis.exceptions.OutOfMemoryError, "OOM"),
    (redis.exceptions.NoPermissionError, "NOPERM"),
    (redis.exceptions.BusyLoadingError, "LOADING"),
    (redis.exceptions.MasterDownError, "MASTERDOWN"),
    (redis.exceptions.ClusterDownError, "CLUSTERDOWN"),
    (redis.exceptions.TryAgainError, "TRYAGAIN"),
    (redis.exceptions.AuthenticationError, "NOAUTH"),
    (redis.exceptions.MovedError, "MOVED"),
)


def diagnose(error: BaseException) -> Diagnosis | None:
    """None: nothing is known that causes such an error, so it is a bug."""
    if found := _of_machine(error):
        return found
    if isinstance(error, psycopg2.Error):
        return _of_postgresql(error)
    if isinstance(error, redis.RedisError):
        return _of_redis(error)
    if isinstance(error, ServerUnavailable):
        return Diagnosis(UNAVAILABLE, error.server)
    return None


def _of_machine(error: BaseException) -> Diagnosis | None:
    for each in _causes(error):
        if isinstance(each, MemoryError):
            return Diagnosis(MACHINE_EXHAUSTED, MACHINE, _MEMORY)
        if isinstance(each, RuntimeError) and "can't start new thread" in str(each):
            return Diagnosis(MACHINE_EXHAUSTED, MACHINE, _THREADS)
        if isinstance(each, OSError) and each.errno in _OF_MACHINE:
            return Diagnosis(MACHINE_EXHAUSTED, MACHINE, _OF_MACHINE[each.errno])
        if isinstance(each, psycopg2.Error | redis.RedisError) and getattr(each, "pgcode", None) is None:
            for number in (errno.EMFILE, errno.ENFILE):  # libpq has the words of its machine's errors only
                if os.strerror(number) in str(each):
                    return Diagnosis(MACHINE_EXHAUSTED, MACHINE, _OF_MACHINE[number])
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and those that it was raised from."""
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        yield each
        seen.add(id(each))
        each = each.__cause__


def _of_postgresql(error: psycopg2.Error) -> Diagnosis | None:
    code = error.pgcode or ""
    if not is_unavailable(error):
        return _of_statement(error, code)
    if is_read_only(error):
        return Diagnosis(
            READ_ONLY,
            POSTGRESQL,
            "PostgreSQL is a standby or read-only: DATABASE_URL must lead to the primary (with several hosts, add "
            "target_session_attrs=read-write); see default_transaction_read_only and pg_is_in_recovery()",
        )
    for pattern, diagnosis in _POSTGRESQL:
        if pattern.search(code or str(error)):
            return diagnosis
    return Diagnosis(UNAVAILABLE, POSTGRESQL)


def _of_statement(error: psycopg2.Error, code: str) -> Diagnosis | None:
    if code in _STATEMENTS:
        return Diagnosis(TICK_FAILED, POSTGRESQL, _STATEMENTS[code], waits=False)
    if code.startswith(_ROWS) or isinstance(error, StatementTooLarge) or "invalid message length" in str(error):
        return Diagnosis(TICK_FAILED, POSTGRESQL, "a row's values cannot be used; please report it", waits=False)
    return None


def _of_redis(error: redis.RedisError) -> Diagnosis:
    code = next((code for kind, code in _REDIS_TYPES if isinstance(error, kind)), "")
    for pattern, diagnosis in _REDIS:
        if pattern.search(f"{code} {error}"):
            return diagnosis
    if isinstance(error, redis.ResponseError):
        return Diagnosis(
            TICK_FAILED, REDIS, "Redis refuses a command: docs/operating.md has the versions", waits=False
        )
    return Diagnosis(UNAVAILABLE, REDIS)
