"""The settings that all jobs share: servers, locks, logs."""

from dataclasses import dataclass
from pathlib import Path

from worker.registry import DATABASE_USERS, REDIS_USERS
from worker.runtime.environment_variable import variable
from worker.runtime.setting_parsers import (
    absolute_path,
    boolean,
    duration,
    one_of,
    url,
    url_list,
    whole_number,
)

REDIS_SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "valkey", "valkeys")


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Fields of ``Settings``."""

    database_url: str = variable(
        "DATABASE_URL",
        url("postgresql", "postgres"),
        None,
        "the CRM's PostgreSQL",
        programs=DATABASE_USERS,
        secret=True,
        required_by=DATABASE_USERS,
    )
    redis_url: str = variable(
        "REDIS_URL",
        url(*REDIS_SCHEMES),
        "redis://redis:6379",
        "Redis: locks, counters, rate limits, live events",
        programs=REDIS_USERS,
        secret=True,
    )
    lock_redis_urls: list[str] | None = variable(
        "LOCK_REDIS_URLS",
        url_list(*REDIS_SCHEMES),
        None,
        "several independent Redis servers, separated by spaces; a lock then needs the majority of them (Redlock)",
        programs=REDIS_USERS,
        secret=True,
    )
    is_worker: bool = variable(
        "IS_WORKER", boolean, "true", "false: job programs do nothing and end with status 0", programs=REDIS_USERS
    )
    lock_ttl_ms: int = variable(
        "LOCK_TTL_MS",
        whole_number(1000, 3_600_000),
        "60000",
        "how long a lock stays without being renewed, in milliseconds",
        programs=REDIS_USERS,
    )
    shutdown_grace_seconds: float = variable(
        "SHUTDOWN_GRACE_SECONDS",
        duration("s"),
        "5s",
        "how long a program waits for messages in flight after SIGTERM",
        programs=REDIS_USERS,
    )
    state_dir: Path = variable(
        "STATE_DIR",
        absolute_path,
        "/var/lib/crm-worker",
        "journals of messages and PostgreSQL's timeline; must survive a restart of the programs",
        programs=REDIS_USERS,
    )
    log_level: str = variable(
        "LOG_LEVEL", one_of("debug", "info", "warning", "error"), "info", "debug, info, warning or error"
    )
    log_format: str = variable("LOG_FORMAT", one_of("text", "json"), "text", "text or json")
