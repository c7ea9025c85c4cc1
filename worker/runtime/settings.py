"""The settings of all programs: the only place that reads the environment.

Each variable is one field of ``Settings``: its name, how it is parsed, its default and its purpose. ``load`` returns
the values that a program needs, or raises SettingsError with one line that names the variable, the value (never a
secret) and what is allowed. Any variable may come from a file: ``NAME_FILE=/path``.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from ipaddress import IPv4Network, IPv6Network
from zoneinfo import ZoneInfo

from worker.content.return_path import ReturnPaths
from worker.content.whatsapp import TemplateName
from worker.errors import SettingsError
from worker.runtime.campaign_settings import CampaignSettings
from worker.runtime.engine_settings import EngineSettings
from worker.runtime.environment_variable import EnvironmentVariable, variable
from worker.runtime.message_settings import MessageSettings
from worker.runtime.quota_settings import QuotaSettings
from worker.runtime.server_settings import ServerSettings
from worker.runtime.setting_parsers import (
    boolean,
    days,
    duration,
    email_address,
    networks,
    rate,
    template_name,
    time_zone,
    token,
    url,
    whole_number,
)
from worker.runtime.vector_settings import VectorSettings
from worker.runtime.window_settings import WindowSettings


@dataclass(frozen=True, kw_only=True)
class Settings(
    VectorSettings, EngineSettings, WindowSettings, QuotaSettings, MessageSettings, CampaignSettings, ServerSettings
):
    """The checked values. Times are in seconds unless a name says otherwise."""

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
