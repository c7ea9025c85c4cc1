"""The settings of what messages leave through, of their links, and of what comes back."""

from dataclasses import dataclass

from worker.runtime.environment_variable import variable
from worker.runtime.setting_parsers import (
    bounce_address,
    duration,
    email_address,
    hex_key,
    hex_keys,
    public_url,
    rate,
    unsubscribe_url,
    url,
)


@dataclass(frozen=True, kw_only=True)
class MessageSettings:
    """Fields of ``Settings``."""

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
        "GMAIL_RATE", rate, "1", "messages a second for one Gmail user", programs="campaign reminders web"
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
