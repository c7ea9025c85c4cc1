"""The environment, read and checked in one place.

Each variable is one field of ``Settings``: its name, its default, how it is read and what it is for.
``load`` gives a job the values it needs or raises SettingsError with one line that names the variable,
the value (never a secret) and what is allowed. Any variable may come from a file: ``NAME_FILE=/path``.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from worker.errors import SettingsError

EVERY_JOB = "every job"
LONGEST_SECONDS = 31 * 86_400.0
UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0}
_UNIT_WORDS = {"sec": "s", "m": "min", "": ""} | {unit: unit for unit in UNIT_SECONDS}


def variable(
    name: str,
    read: Callable[[str], Any],
    default: str | None,
    purpose: str,
    *,
    jobs: str = EVERY_JOB,
    secret: bool = False,
    required: bool = False,
) -> Any:
    """A field of Settings that is read from the environment variable ``name``."""
    meta = {"name": name, "read": read, "default": default, "purpose": purpose}
    return field(metadata=meta | {"jobs": jobs.split(), "secret": secret, "required": required})


def duration(unit: str, minimum: float = 0.0) -> Callable[[str], float]:
    """Reads seconds from '90', '90s', '5 min', '500ms' or '2h'; a bare number counts in ``unit``."""

    def read(raw: str) -> float:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|sec|m|min|h|)", raw.strip().lower())
        if not match:
            raise ValueError(f"a duration such as 30s, 5min or 500ms (a bare number counts in {unit})")
        seconds = float(match[1]) * UNIT_SECONDS[_UNIT_WORDS[match[2]] or unit]
        if not minimum <= seconds <= LONGEST_SECONDS:
            raise ValueError(f"from {minimum:g} seconds to 31 days")
        return seconds

    return read


def whole_number(minimum: int, maximum: int) -> Callable[[str], int]:
    def read(raw: str) -> int:
        if not re.fullmatch(r"\d{1,9}", raw.strip()) or not minimum <= int(raw) <= maximum:
            raise ValueError(f"a whole number from {minimum} to {maximum}")
        return int(raw)

    return read


def rate(raw: str) -> float:
    if not re.fullmatch(r"\d{1,9}(\.\d+)?", raw.strip()) or float(raw) < 0.01:
        raise ValueError("a number of messages a second, at least 0.01")
    return float(raw)


def truth(raw: str) -> bool:
    if raw.strip().lower() not in {"true", "false", "1", "0", "yes", "no"}:
        raise ValueError("true or false")
    return raw.strip().lower() in {"true", "1", "yes"}


def one_of(*choices: str) -> Callable[[str], str]:
    def read(raw: str) -> str:
        if raw.strip().lower() not in choices:
            raise ValueError("one of " + ", ".join(choices))
        return raw.strip().lower()

    return read


def url(*schemes: str) -> Callable[[str], str]:
    def read(raw: str) -> str:
        try:
            parts = urlsplit(raw.strip())
        except ValueError:
            parts = urlsplit("")
        web = parts.scheme in ("http", "https")
        if parts.scheme not in schemes or f"{parts.scheme}://" not in raw or (web and not parts.netloc):
            raise ValueError("a URL that begins with " + " or ".join(f"{scheme}://" for scheme in schemes))
        return raw.strip().rstrip("/") if web else raw.strip()

    return read


def urls(*schemes: str) -> Callable[[str], list[str]]:
    return lambda raw: [url(*schemes)(part) for part in raw.split()]


def unsubscribe_url(raw: str) -> str:
    if not re.fullmatch(r"(https?://|mailto:)[^\s<>]{1,500}", raw.strip(), re.IGNORECASE):
        raise ValueError("an https://, http:// or mailto: address of at most 500 characters")
    return raw.strip()


def hex_key(raw: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{64}", raw.strip()):
        raise ValueError("64 hex digits (32 bytes)")
    return raw.strip()


def folder(raw: str) -> Path:
    path = Path(os.path.expanduser(raw))  # leaves an unknown user's name as it is
    if not path.is_absolute():
        raise ValueError("an absolute path")
    return path


REDIS_SCHEMES = ("redis", "rediss", "unix", "redis+sentinel")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the environment says, checked. Times are seconds unless a name says otherwise."""

    database_url: str = variable(
        "DATABASE_URL",
        url("postgresql", "postgres"),
        None,
        "the CRM's PostgreSQL",
        secret=True,
        required=True,
    )
    redis_url: str = variable(
        "REDIS_URL",
        url(*REDIS_SCHEMES),
        "redis://redis:6379",
        "locks, counters, pacing, live events",
        secret=True,
    )
    lock_redis_urls: list[str] | None = variable(
        "LOCK_REDIS_URLS",
        urls(*REDIS_SCHEMES),
        None,
        "several independent Redis servers, separated by spaces: a lock then needs their majority",
        secret=True,
    )
    is_worker: bool = variable("IS_WORKER", truth, "true", "false: job programs do nothing and end with status 0")
    lock_ttl_ms: int = variable(
        "LOCK_TTL_MS",
        whole_number(1000, 3_600_000),
        "60000",
        "life of a lock that nobody renews, milliseconds",
    )
    shutdown_grace_seconds: float = variable(
        "SHUTDOWN_GRACE_SECONDS", duration("s"), "5s", "how long SIGTERM waits for messages in flight"
    )
    state_dir: Path = variable(
        "STATE_DIR",
        folder,
        "/var/lib/crm-worker",
        "journals of what is being sent; must survive a restart of the programs",
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
        jobs="campaign",
    )
    smtp_url: str | None = variable(
        "SMTP_URL",
        url("smtp", "smtps"),
        None,
        "smtp://user:password@host:587, smtps://host:465; plain SMTP on loopback only",
        jobs="campaign",
        secret=True,
    )
    gmail_api_url: str = variable(
        "GMAIL_API_URL", url("https", "http"), "https://gmail.googleapis.com", "Gmail's API", jobs="campaign"
    )
    google_token_url: str = variable(
        "GOOGLE_TOKEN_URL",
        url("https", "http"),
        "https://oauth2.googleapis.com/token",
        "Google's token endpoint",
        jobs="campaign",
    )
    gmail_rate: float = variable("GMAIL_RATE", rate, "2", "messages a second for one Gmail user", jobs="campaign")
    whatsapp_api_url: str = variable(
        "WHATSAPP_API_URL",
        url("https", "http"),
        "https://graph.facebook.com/v26.0",
        "WhatsApp Cloud API",
        jobs="campaign",
    )
    whatsapp_rate: float = variable(
        "WHATSAPP_RATE", rate, "20", "messages a second for one phone id", jobs="campaign"
    )
    app_url: str | None = variable(
        "APP_URL", url("https", "http"), None, "the CRM's address, for short links", jobs="campaign"
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
        jobs="campaign",
        secret=True,
    )


def variables(job: str) -> Iterator[Field[Any]]:
    """The fields that ``job`` reads."""
    for each in fields(Settings):
        if each.metadata["jobs"] == EVERY_JOB.split() or job in each.metadata["jobs"]:
            yield each


def is_worker(environ: Mapping[str, str]) -> bool:
    """IS_WORKER alone: where it is false nothing else has to be set."""
    meta = next(each.metadata for each in fields(Settings) if each.name == "is_worker")
    return bool(_checked(meta, _raw(environ, meta["name"]) or meta["default"]))


def load(environ: Mapping[str, str], job: str) -> Settings:
    """Reads and checks what ``job`` needs; other jobs' variables keep their defaults unread."""
    read_now = {each.name for each in variables(job)}
    values: dict[str, Any] = {}
    for each in fields(Settings):
        meta = each.metadata
        raw = _raw(environ, meta["name"]) if each.name in read_now else None
        if raw is None and meta["required"] and each.name in read_now:
            raise SettingsError(f"{meta['name']} is not set: {meta['purpose']}")
        raw = raw if raw is not None else meta["default"]
        values[each.name] = None if raw is None else _checked(meta, raw)
    return Settings(**values)


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
        shown = "(a secret, not shown)" if meta["secret"] else repr(raw)
        raise SettingsError(f"{meta['name']} is {shown}, allowed is {error}") from None
