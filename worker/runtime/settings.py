"""The environment, read and checked in one place.

Each variable is one field of ``Settings``: its name, its default, how it is read and what it is for.
``load`` gives a job the values it needs or raises SettingsError with one line that names the variable,
the value (never a secret) and what is allowed. Any variable may come from a file: ``NAME_FILE=/path``.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from worker.errors import SettingsError
from worker.registry import DATABASE_USERS, REDIS_USERS
from worker.runtime.setting_parsers import (
    address,
    collection_name,
    concerns,
    duration,
    folder,
    hex_key,
    one_of,
    qdrant_url,
    rate,
    secret_text,
    truth,
    unsubscribe_url,
    url,
    urls,
    variable,
    whole_number,
    zone,
)

_ACCOUNT = re.compile(r"//[^/]*@")  # of a URL that should have none
REDIS_SCHEMES = ("redis", "rediss", "unix", "redis+sentinel")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the environment says, checked. Times are seconds unless a name says otherwise."""

    database_url: str = variable(
        "DATABASE_URL",
        url("postgresql", "postgres"),
        None,
        "the CRM's PostgreSQL",
        jobs=DATABASE_USERS,
        secret=True,
        required_by=DATABASE_USERS,
    )
    redis_url: str = variable(
        "REDIS_URL",
        url(*REDIS_SCHEMES),
        "redis://redis:6379",
        "locks, counters, pacing, live events",
        jobs=REDIS_USERS,
        secret=True,
    )
    lock_redis_urls: list[str] | None = variable(
        "LOCK_REDIS_URLS",
        urls(*REDIS_SCHEMES),
        None,
        "several independent Redis servers, separated by spaces: a lock then needs their majority",
        jobs=REDIS_USERS,
        secret=True,
    )
    is_worker: bool = variable(
        "IS_WORKER", truth, "true", "false: job programs do nothing and end with status 0", jobs=REDIS_USERS
    )
    lock_ttl_ms: int = variable(
        "LOCK_TTL_MS",
        whole_number(1000, 3_600_000),
        "60000",
        "life of a lock that nobody renews, milliseconds",
        jobs=REDIS_USERS,
    )
    shutdown_grace_seconds: float = variable(
        "SHUTDOWN_GRACE_SECONDS",
        duration("s"),
        "5s",
        "how long SIGTERM waits for messages in flight",
        jobs=REDIS_USERS,
    )
    state_dir: Path = variable(
        "STATE_DIR",
        folder,
        "/var/lib/crm-worker",
        "journals of what is being sent; must survive a restart of the programs",
        jobs="campaign",
    )
    log_level: str = variable(
        "LOG_LEVEL", one_of("debug", "info", "warning", "error"), "info", "debug, info, warning or error"
    )
    log_format: str = variable("LOG_FORMAT", one_of("text", "json"), "text", "text or json")

    campaign_interval_seconds: float = variable(
        "CAMPAIGN_INTERVAL",
        duration("s", 0.1),
        "60",
        "how often due campaigns are looked for",
        jobs="campaign",
    )
    campaign_batch_size: int = variable(
        "CAMPAIGN_BATCH_SIZE", whole_number(1, 10_000), "100", "recipients claimed at once", jobs="campaign"
    )
    campaign_batch_delay_seconds: float = variable(
        "CAMPAIGN_BATCH_DELAY",
        duration("ms"),
        "5000ms",
        "pause between two full batches of one campaign",
        jobs="campaign",
    )
    campaign_concurrency: int = variable(
        "CAMPAIGN_CONCURRENCY",
        whole_number(1, 256),
        "8",
        "connections, so messages in flight",
        jobs="campaign",
    )
    campaign_adopt_after_seconds: float = variable(
        "CAMPAIGN_ADOPT_AFTER",
        duration("s"),
        "600s",
        "a running campaign of the app servers is taken over when nothing changed for so long; 0: at once",
        jobs="campaign",
    )
    campaign_retry_delay_seconds: float = variable(
        "CAMPAIGN_RETRY_DELAY",
        duration("s", 0.1),
        "60s",
        "first wait of a recipient who was put off without a delay of the provider's own; doubles up to 1 h",
        jobs="campaign",
    )
    campaign_max_attempts: int = variable(
        "CAMPAIGN_MAX_ATTEMPTS", whole_number(1, 100), "12", "tries before a recipient fails", jobs="campaign"
    )
    unconfirmed_sends: str = variable(
        "UNCONFIRMED_SENDS",
        one_of("fail", "resend"),
        "fail",
        "messages whose answer never came: fail (never twice) or resend (never lost)",
        jobs="campaign reminders trial",
    )
    smtp_url: str | None = variable(
        "SMTP_URL",
        url("smtp", "smtps"),
        None,
        "smtp://user:password@host:587, smtps://host:465; plain SMTP on loopback only",
        jobs="campaign reminders trial",
        secret=True,
    )
    gmail_api_url: str = variable(
        "GMAIL_API_URL",
        url("https", "http"),
        "https://gmail.googleapis.com",
        "Gmail's API",
        jobs="campaign reminders",
    )
    google_token_url: str = variable(
        "GOOGLE_TOKEN_URL",
        url("https", "http"),
        "https://oauth2.googleapis.com/token",
        "Google's token endpoint",
        jobs="campaign reminders",
    )
    gmail_rate: float = variable(
        "GMAIL_RATE", rate, "2", "messages a second for one Gmail user", jobs="campaign reminders"
    )
    whatsapp_api_url: str = variable(
        "WHATSAPP_API_URL",
        url("https", "http"),
        "https://graph.facebook.com/v26.0",
        "WhatsApp Cloud API",
        jobs="campaign reminders",
    )
    whatsapp_rate: float = variable(
        "WHATSAPP_RATE", rate, "20", "messages a second for one phone id", jobs="campaign reminders"
    )
    app_url: str | None = variable(
        "APP_URL",
        url("https", "http"),
        None,
        "the CRM's address, for short links and Twilio's webhooks",
        jobs="campaign calls",
        required_by="calls",
    )
    unsubscribe_url: str | None = variable(
        "UNSUBSCRIBE_URL",
        unsubscribe_url,
        None,
        "List-Unsubscribe target; {{email}} and {{recipient_id}} are filled in",
        jobs="campaign",
    )
    encryption_key: str | None = variable(
        "ENCRYPTION_KEY",
        hex_key,
        None,
        "opens the tenants' OAuth client secrets, 64 hex digits",
        jobs="campaign reminders",
        secret=True,
    )

    lead_reminder_interval_seconds: float = variable(
        "LEAD_REMINDER_INTERVAL",
        duration("min", 1.0),
        "60min",
        "how often quiet leads are looked for",
        jobs="reminders",
    )
    call_scheduler_interval_seconds: float = variable(
        "CALL_SCHEDULER_INTERVAL", duration("s", 0.1), "30s", "how often queued calls are looked for", jobs="calls"
    )
    twilio_api_url: str = variable(
        "TWILIO_API_URL", url("https", "http"), "https://api.twilio.com", "Twilio's API", jobs="calls"
    )
    twilio_rate: float = variable("TWILIO_RATE", rate, "1", "calls a second for one Twilio account", jobs="calls")
    call_cleanup_interval_seconds: float = variable(
        "CALL_CLEANUP_INTERVAL",
        duration("h", 60.0),
        "24h",
        "how often old rows of the call queue are deleted, counted from local midnight",
        jobs="call-cleanup",
    )
    cleanup_timezone: ZoneInfo = variable(
        "CLEANUP_TIMEZONE", zone, "Asia/Kolkata", "whose midnight that is", jobs="call-cleanup web"
    )
    trial_check_interval_seconds: float = variable(
        "TRIAL_CHECK_INTERVAL", duration("min", 1.0), "60min", "how often expired trials are suspended", jobs="trial"
    )
    owner_email: str | None = variable(
        "OWNER_EMAIL",
        address,
        None,
        "who runs this CRM: is told of suspended trials, and those mails are from there",
        jobs="trial",
    )
    company_name: str = variable(
        "COMPANY_NAME", str.strip, "Bharat CRM", "the CRM's name in mails about trials", jobs="trial"
    )
    port: int = variable(
        "PORT", whole_number(1, 65_535), "3002", "where the web process listens", jobs="web healthcheck"
    )
    metrics_token: str | None = variable(
        "METRICS_TOKEN",
        secret_text,
        None,
        "/metrics wants it as a bearer token, or as the password of basic authentication",
        jobs="web",
        secret=True,
    )
    qdrant_url: str = variable(
        "QDRANT_URL",
        qdrant_url,
        "http://localhost:6333",
        "the vector database; without a port 6333 is meant, as to all of Qdrant's clients",
        jobs="web knowledge",
    )
    qdrant_api_key: str | None = variable(
        "QDRANT_API_KEY",
        secret_text,
        None,
        "its API key; for bin/qdrant: the one that it asks for",
        jobs="web knowledge qdrant",
        secret=True,
    )

    vector_collection_name: str = variable(
        "VECTOR_COLLECTION_NAME",
        collection_name,
        "bharat_crm_knowledge",
        "the collection of the CRM's AI",
        jobs="knowledge",
    )
    knowledge_vector_size: int = variable(
        "KNOWLEDGE_VECTOR_SIZE",
        whole_number(1, 65_535),
        "1536",
        "numbers in each of its vectors; only read when it is made",
        jobs="knowledge",
    )
    knowledge_snapshot_interval_seconds: float = variable(
        "KNOWLEDGE_SNAPSHOT_INTERVAL",
        duration("h", 1.0),
        "24h",
        "how often a snapshot is taken, counted from midnight UTC",
        jobs="knowledge",
    )
    knowledge_snapshot_keep: int = variable(
        "KNOWLEDGE_SNAPSHOT_KEEP",
        whole_number(1, 1000),
        "7",
        "so many of the newest snapshots stay, in Qdrant and in KNOWLEDGE_SNAPSHOT_DIR",
        jobs="knowledge",
    )
    knowledge_snapshot_dir: Path | None = variable(
        "KNOWLEDGE_SNAPSHOT_DIR",
        folder,
        None,
        "each new snapshot is copied there, best onto another disk",
        jobs="knowledge",
    )

    migrate: bool = variable(
        "MIGRATE", truth, "false", "true: bin/migrate runs before the programs start", jobs="entrypoint"
    )
    entrypoint_wait_seconds: float = variable(
        "ENTRYPOINT_WAIT",
        duration("s"),
        "60s",
        "how long PostgreSQL and Redis are waited for; then it ends with status 1",
        jobs="entrypoint",
    )

    qdrant_embedded: bool = variable(
        "QDRANT_EMBEDDED", truth, "true", "false: Qdrant runs elsewhere, bin/qdrant ends with status 0", jobs="qdrant"
    )
    qdrant_bin: Path | None = variable(
        "QDRANT_BIN", folder, None, "Qdrant's program; where it is not set, qdrant in PATH", jobs="qdrant"
    )
    qdrant_development: bool = variable(
        "QDRANT_DEVELOPMENT",
        truth,
        "false",
        "true: without Qdrant's program a server for development starts in its place",
        jobs="qdrant",
    )
    qdrant_storage_path: Path = variable(
        "QDRANT__STORAGE__STORAGE_PATH", folder, "/qdrant/storage", "Qdrant's data", jobs="qdrant"
    )
    qdrant_snapshots_path: Path = variable(
        "QDRANT__STORAGE__SNAPSHOTS_PATH", folder, "/qdrant/snapshots", "its snapshots", jobs="qdrant"
    )


def variables(job: str) -> Iterator[Field[Any]]:
    """The fields that ``job`` reads."""
    for each in fields(Settings):
        if concerns(job, each.metadata["jobs"]):
            yield each


def is_worker(environ: Mapping[str, str]) -> bool:
    """IS_WORKER alone: where it is false nothing else has to be set."""
    meta = next(each.metadata for each in fields(Settings) if each.name == "is_worker")
    return bool(_checked(meta, _raw(environ, meta["name"]) or meta["default"]))


def load(environ: Mapping[str, str], job: str) -> Settings:
    """Reads and checks what ``job`` needs; other jobs' variables keep their defaults unread."""
    return Settings(**{each.name: _value(environ, each.metadata, job) for each in fields(Settings)})


def problems(environ: Mapping[str, str], jobs: Iterable[str]) -> list[str]:
    """All that ``load`` would refuse for any of ``jobs``, each once."""
    found: dict[str, None] = {}
    for job in jobs:
        for each in fields(Settings):
            try:
                _value(environ, each.metadata, job)
            except SettingsError as error:
                found[str(error)] = None
    return list(found)


def _value(environ: Mapping[str, str], meta: Mapping[str, Any], job: str) -> Any:
    """One variable, checked; one that ``job`` does not read has its default."""
    raw = _raw(environ, meta["name"]) if concerns(job, meta["jobs"]) else None
    if raw is None and concerns(job, meta["required_by"]):
        raise SettingsError(f"{meta['name']} is not set: {meta['purpose']}")
    raw = raw if raw is not None else meta["default"]
    return None if raw is None else _checked(meta, raw)


def _raw(environ: Mapping[str, str], name: str) -> str | None:
    """The variable's text: from itself, or from the file that NAME_FILE names; empty counts as not set."""
    if environ.get(name):
        return environ[name]
    path = environ.get(f"{name}_FILE")
    if not path:
        return None
    try:
        return Path(path).read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{name}_FILE={path} cannot be read: {error}") from error


def _checked(meta: Mapping[str, Any], raw: str) -> Any:
    try:
        return meta["read"](raw)
    except ValueError as error:
        shown = "(a secret, not shown)" if meta["secret"] else repr(_ACCOUNT.sub("//...@", raw))
        raise SettingsError(f"{meta['name']} is {shown}, allowed is {error}") from None
