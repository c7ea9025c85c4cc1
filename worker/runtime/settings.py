"""The settings of all programs: the only place that reads the environment.

Each variable is one field of ``Settings``: its name, how it is parsed, its default and its purpose. ``load`` returns
the values that a program needs, or raises SettingsError with one line that names the variable, the value (never a
secret) and what is allowed. Any variable may come from a file: ``NAME_FILE=/path``.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from zoneinfo import ZoneInfo

from worker.content.return_path import ReturnPaths
from worker.content.whatsapp import TemplateName
from worker.errors import SettingsError
from worker.registry import DATABASE_USERS, REDIS_USERS
from worker.runtime.engine_settings import EngineSettings
from worker.runtime.environment_variable import EnvironmentVariable, variable
from worker.runtime.quota_settings import QuotaSettings
from worker.runtime.setting_parsers import (
    absolute_path,
    boolean,
    bounce_address,
    collection_name,
    days,
    duration,
    email_address,
    hex_key,
    hex_keys,
    networks,
    one_of,
    public_url,
    qdrant_url,
    rate,
    template_name,
    time_zone,
    token,
    unsubscribe_url,
    url,
    url_list,
    whole_number,
)
from worker.runtime.window_settings import WindowSettings

DEFAULT_MESSAGE_MAX_BYTES = 26_214_400  # 25 MiB, what Gmail and most mail servers accept
REDIS_SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "valkey", "valkeys")


@dataclass(frozen=True, kw_only=True)
class Settings(QuotaSettings, WindowSettings, EngineSettings):
    """The checked values. Times are in seconds unless a name says otherwise."""

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

    campaign_interval_seconds: float = variable(
        "CAMPAIGN_INTERVAL",
        duration("s", 0.1),
        "60",
        "how often the worker looks for due campaigns",
        programs="campaign",
    )
    campaign_batch_size: int = variable(
        "CAMPAIGN_BATCH_SIZE",
        whole_number(1, 10_000),
        "100",
        "recipients in one batch; with CAMPAIGN_BATCH_DELAY=0 in the first, later ones take a tenth of a second",
        programs="campaign web",
    )
    campaign_batch_delay_seconds: float = variable(
        "CAMPAIGN_BATCH_DELAY",
        duration("ms"),
        "5000ms",
        "pause between two full batches of one campaign",
        programs="campaign web",
    )
    campaign_concurrency: int = variable(
        "CAMPAIGN_CONCURRENCY",
        whole_number(1, 256),
        "8",
        "how many messages are sent at the same time, each on a connection of its own",
        programs="campaign web",
    )
    campaign_adopt_after_seconds: float = variable(
        "CAMPAIGN_ADOPT_AFTER",
        duration("s"),
        "600s",
        "how long a running campaign of the app servers has to be unchanged before the worker adopts it; 0: at once",
        programs="campaign",
    )
    campaign_retry_delay_seconds: float = variable(
        "CAMPAIGN_RETRY_DELAY",
        duration("s", 0.1),
        "60s",
        "first delay of a deferred recipient when the provider names none; doubles up to 1 h",
        programs="campaign",
    )
    campaign_max_attempts: int = variable(
        "CAMPAIGN_MAX_ATTEMPTS", whole_number(1, 100), "12", "attempts before a recipient fails", programs="campaign"
    )
    refusal_breaker: int = variable(
        "REFUSAL_BREAKER",
        whole_number(1, 1_000_000),
        "20",
        "recipients in a row refused with the same reply, through no fault of theirs, after which a campaign fails",
        programs="campaign",
    )
    unconfirmed_sends: str = variable(
        "UNCONFIRMED_SENDS",
        one_of("fail", "resend"),
        "fail",
        "what to do with a message whose answer never came: fail (never sent twice) or resend (never lost)",
        programs="campaign reminders trial",
    )
    message_max_bytes: int = variable(
        "MESSAGE_MAX_BYTES",
        whole_number(1_000, 100_000_000),
        str(DEFAULT_MESSAGE_MAX_BYTES),
        "the largest message that is sent, in bytes as it leaves; a campaign whose message is larger fails",
        programs="campaign reminders trial",
    )
    smtp_url: str | None = variable(
        "SMTP_URL",
        url("smtp", "smtps"),
        None,
        "the SMTP server: smtp://user:password@host:587 or smtps://host:465; without TLS on loopback only",
        programs="campaign reminders trial",
        secret=True,
    )
    smtp_from: str | None = variable(
        "SMTP_FROM",
        email_address,
        None,
        "From of e-mails through SMTP_URL whose own From is a free mailbox (gmail.com), which becomes Reply-To",
        programs="campaign reminders trial",
    )
    gmail_api_url: str = variable(
        "GMAIL_API_URL",
        url("https", "http"),
        "https://gmail.googleapis.com",
        "Gmail's API",
        programs="campaign reminders",
    )
    google_token_url: str = variable(
        "GOOGLE_TOKEN_URL",
        url("https", "http"),
        "https://oauth2.googleapis.com/token",
        "Google's token endpoint",
        programs="campaign reminders",
    )
    gmail_rate: float = variable(
        "GMAIL_RATE", rate, "2", "messages a second for one Gmail user", programs="campaign reminders web"
    )
    whatsapp_api_url: str = variable(
        "WHATSAPP_API_URL",
        url("https", "http"),
        "https://graph.facebook.com/v26.0",
        "WhatsApp Cloud API",
        programs="campaign reminders",
    )
    whatsapp_rate: float = variable(
        "WHATSAPP_RATE", rate, "20", "messages a second for one phone id", programs="campaign reminders web"
    )
    app_url: str | None = variable(
        "APP_URL",
        url("https", "http"),
        None,
        "the CRM's address, for short links and Twilio's webhooks",
        programs="campaign calls",
        required_by="calls",
    )
    unsubscribe_url: str | None = variable(
        "UNSUBSCRIBE_URL",
        unsubscribe_url,
        None,
        "the CRM's own unsubscribe address, instead of PUBLIC_URL; {{email}} and {{recipient_id}} are filled in",
        programs="campaign",
    )
    public_url: str | None = variable(
        "PUBLIC_URL",
        public_url,
        None,
        "the https:// address at which everybody reaches PUBLIC_PORT; with it campaigns have unsubscribe links",
        programs="campaign web",
    )
    unsubscribe_keys: list[str] | None = variable(
        "UNSUBSCRIBE_KEY",
        hex_keys,
        None,
        "the key of unsubscribe links, 64 hex digits, then keys of older links; without it ENCRYPTION_KEY is used",
        programs="campaign web",
        secret=True,
    )
    encryption_key: str | None = variable(
        "ENCRYPTION_KEY",
        hex_key,
        None,
        "decrypts the tenants' OAuth client secrets; 64 hex digits",
        programs="campaign reminders trial bounces web",
        secret=True,
    )
    bounce_address: str | None = variable(
        "BOUNCE_ADDRESS",
        bounce_address,
        None,
        "where mail servers send delivery reports of e-mails through SMTP_URL: bounces+<token>@mail.example",
        programs="campaign reminders trial bounces",
    )
    bounce_mailbox_url: str | None = variable(
        "BOUNCE_MAILBOX_URL",
        url("imaps", "imap"),
        None,
        "the mailbox of BOUNCE_ADDRESS: imaps://user:password@host/INBOX; without TLS on loopback only",
        programs="bounces",
        secret=True,
    )
    bounce_interval_seconds: float = variable(
        "BOUNCE_INTERVAL", duration("min", 1.0), "5min", "how often that mailbox is read", programs="bounces"
    )

    lead_reminder_interval_seconds: float = variable(
        "LEAD_REMINDER_INTERVAL",
        duration("min", 1.0),
        "60min",
        "how often the worker looks for leads that were not contacted for too long",
        programs="reminders",
    )
    reminder_whatsapp_template: TemplateName | None = variable(
        "REMINDER_WHATSAPP_TEMPLATE",
        template_name,
        None,
        "name:language of the template that digests leave as on WhatsApp: {{1}} number of leads, {{2}} company",
        programs="reminders",
    )
    call_scheduler_interval_seconds: float = variable(
        "CALL_SCHEDULER_INTERVAL",
        duration("s", 0.1),
        "30s",
        "how often the worker looks for queued calls",
        programs="calls",
    )
    twilio_api_url: str = variable(
        "TWILIO_API_URL", url("https", "http"), "https://api.twilio.com", "Twilio's API", programs="calls"
    )
    twilio_rate: float = variable("TWILIO_RATE", rate, "1", "calls a second for one Twilio account", programs="calls")
    call_cleanup_interval_seconds: float = variable(
        "CALL_CLEANUP_INTERVAL",
        duration("h", 60.0),
        "24h",
        "how often old rows of the call queue are deleted, counted from local midnight",
        programs="call-cleanup",
    )
    failures_keep_days: int = variable(
        "FAILURES_KEEP",
        days(1, 3650),
        "90",
        "days for which the failures of recipients are kept",
        programs="call-cleanup",
    )
    cleanup_timezone: ZoneInfo = variable(
        "CLEANUP_TIMEZONE",
        time_zone,
        "Asia/Kolkata",
        "the time zone of the midnight that CALL_CLEANUP_INTERVAL is counted from",
        programs="call-cleanup web",
    )
    trial_check_interval_seconds: float = variable(
        "TRIAL_CHECK_INTERVAL",
        duration("min", 1.0),
        "60min",
        "how often expired trials are suspended",
        programs="trial",
    )
    owner_email: str | None = variable(
        "OWNER_EMAIL",
        email_address,
        None,
        "the CRM's owner: receives a mail about each suspended trial, and mails about trials are from this address",
        programs="trial",
    )
    company_name: str = variable(
        "COMPANY_NAME", str.strip, "Bharat CRM", "the CRM's name in mails about trials", programs="trial"
    )
    port: int = variable(
        "PORT",
        whole_number(1, 65_535),
        "3002",
        "the port that the web process listens on",
        programs="web healthcheck",
    )
    public_port: int = variable(
        "PUBLIC_PORT",
        whole_number(1, 65_535),
        "3003",
        "the port of the pages for everybody; the web process listens on it only with PUBLIC_URL",
        programs="web",
    )
    public_proxies: list[IPv4Network | IPv6Network] = variable(
        "PUBLIC_PROXIES",
        networks,
        "127.0.0.0/8 ::1",
        "the reverse proxies in front of PUBLIC_PORT, whose X-Forwarded-For is believed: addresses or networks",
        programs="web",
    )
    metrics_token: str | None = variable(
        "METRICS_TOKEN",
        token,
        None,
        "/metrics requires it, as a bearer token or as the password of basic authentication",
        programs="web",
        secret=True,
    )
    qdrant_url: str = variable(
        "QDRANT_URL",
        qdrant_url,
        "http://localhost:6333",
        "the vector database; the port is 6333 unless the URL names one, as with Qdrant's own clients",
        programs="web knowledge",
    )
    qdrant_api_key: str | None = variable(
        "QDRANT_API_KEY",
        token,
        None,
        "Qdrant's API key; the server that bin/qdrant starts requires it",
        programs="web knowledge qdrant",
        secret=True,
    )

    vector_collection_name: str = variable(
        "VECTOR_COLLECTION_NAME",
        collection_name,
        "bharat_crm_knowledge",
        "the collection of the CRM's AI",
        programs="knowledge",
    )
    knowledge_vector_size: int = variable(
        "KNOWLEDGE_VECTOR_SIZE",
        whole_number(1, 65_535),
        "1536",
        "the length of its vectors; only used when the collection is created",
        programs="knowledge",
    )
    knowledge_snapshot_interval_seconds: float = variable(
        "KNOWLEDGE_SNAPSHOT_INTERVAL",
        duration("h", 1.0),
        "24h",
        "how often a snapshot is taken, counted from midnight UTC",
        programs="knowledge",
    )
    knowledge_snapshot_keep: int = variable(
        "KNOWLEDGE_SNAPSHOT_KEEP",
        whole_number(1, 1000),
        "7",
        "how many of the newest snapshots are kept, in Qdrant and in KNOWLEDGE_SNAPSHOT_DIR",
        programs="knowledge",
    )
    knowledge_snapshot_dir: Path | None = variable(
        "KNOWLEDGE_SNAPSHOT_DIR",
        absolute_path,
        None,
        "a folder that each new snapshot is copied to, best on another disk",
        programs="knowledge",
    )

    migrate: bool = variable(
        "MIGRATE", boolean, "false", "true: bin/migrate runs before the programs start", programs="entrypoint"
    )
    entrypoint_wait_seconds: float = variable(
        "ENTRYPOINT_WAIT",
        duration("s"),
        "60s",
        "how long bin/entrypoint waits for PostgreSQL and Redis before it ends with status 1",
        programs="entrypoint",
    )

    qdrant_embedded: bool = variable(
        "QDRANT_EMBEDDED",
        boolean,
        "true",
        "false: Qdrant runs elsewhere, and bin/qdrant ends with status 0",
        programs="qdrant",
    )
    qdrant_bin: Path | None = variable(
        "QDRANT_BIN",
        absolute_path,
        None,
        "the path of Qdrant's program; without it, qdrant is searched in PATH",
        programs="qdrant",
    )
    qdrant_development: bool = variable(
        "QDRANT_DEVELOPMENT",
        boolean,
        "false",
        "true: without Qdrant's program a server for development starts in its place",
        programs="qdrant",
    )
    qdrant_storage_path: Path = variable(
        "QDRANT__STORAGE__STORAGE_PATH", absolute_path, "/qdrant/storage", "Qdrant's data folder", programs="qdrant"
    )
    qdrant_snapshots_path: Path = variable(
        "QDRANT__STORAGE__SNAPSHOTS_PATH",
        absolute_path,
        "/qdrant/snapshots",
        "Qdrant's snapshot folder",
        programs="qdrant",
    )

    @property
    def link_keys(self) -> list[str]:
        """The keys of unsubscribe links: the first one makes them, all of them read.

        ENCRYPTION_KEY last: it made the links of mails that were sent before UNSUBSCRIBE_KEY was set.
        """
        return [*(self.unsubscribe_keys or ()), *filter(None, [self.encryption_key])]

    @property
    def return_paths(self) -> ReturnPaths | None:
        """The envelope senders of e-mails through SMTP_URL; None: as without reports. Raises SettingsError."""
        if self.bounce_address is None:
            return None
        if self.encryption_key is None:
            raise SettingsError("BOUNCE_ADDRESS needs ENCRYPTION_KEY, which proves what the reports are about")
        return ReturnPaths(self.bounce_address, self.encryption_key)


_VARIABLES: dict[str, EnvironmentVariable] = {each.name: each.metadata["variable"] for each in fields(Settings)}


def variables(program: str | None = None) -> list[EnvironmentVariable]:
    """The variables that a program reads, or all."""
    return [each for each in _VARIABLES.values() if program is None or each.is_read_by(program)]


def is_worker(environ: Mapping[str, str]) -> bool:
    """The value of IS_WORKER alone: where it is false, no other variable has to be set."""
    return bool(_VARIABLES["is_worker"].value(environ))


def load(environ: Mapping[str, str], program: str) -> Settings:
    """The checked settings of a program; variables that it does not read have defaults. Raises SettingsError."""
    settings = Settings(**{field: each.value_for(program, environ) for field, each in _VARIABLES.items()})
    if settings.public_url and not settings.link_keys:
        raise SettingsError("PUBLIC_URL is set, and neither UNSUBSCRIBE_KEY nor ENCRYPTION_KEY: links need a key")
    if settings.public_url and settings.public_port == settings.port:
        raise SettingsError(f"PORT and PUBLIC_PORT are both {settings.port}: the status page may not be public")
    return settings


def problems(environ: Mapping[str, str], programs: Iterable[str]) -> list[str]:
    """All that ``load`` would refuse for any of the programs, each once."""
    found: dict[str, None] = {}
    for program in programs:
        for each in _VARIABLES.values():
            try:
                each.value_for(program, environ)
            except SettingsError as error:
                found[str(error)] = None
        try:
            load(environ, program)
        except SettingsError as error:
            found[str(error)] = None
    return list(found)
