"""Who is to be reminded of which leads: from what tenants saved to rows that a claim takes.

A tenant whose settings are broken harms no other: what is wrong is left out and said once.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from worker.content.addresses import parse_address
from worker.content.reminder_settings import ReminderSettings, read_settings
from worker.runtime.db import Row
from worker.sending.accounts import part

log = logging.getLogger(__name__)

# Ticks are aligned to the clock, give or take milliseconds: today's may begin a little earlier than yesterday's did.
EARLY_SECONDS = 0.5
MOST_COMPLAINTS = 5  # of one tenant in one line


@dataclass(frozen=True, slots=True)
class DigestRecipient:
    """One recipient. ``address`` is lower case or digits; ``user_id`` is None for a bare address."""

    channel: str
    address: str
    name: str = ""
    user_id: str | None = None


class RecipientReader:
    """Reads tenants' settings and remembers what was complained of."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[str, ...]] = {}

    def of(self, tenants: Iterable[Row], now: datetime) -> list[Row]:
        """The recipients of all tenants, as the statement ``claim`` takes them. ``now``: UTC without zone."""
        found: list[Row] = []
        said: dict[str, tuple[str, ...]] = {}
        for tenant in tenants:
            rows, complaints = recipients_of(tenant, now)
            found += rows
            said[tenant["tenantId"]] = tuple(complaints)
            if complaints and self._said.get(tenant["tenantId"]) != tuple(complaints):
                log.warning(
                    "a tenant's reminders are not as they should be",
                    {"tenant": tenant["tenantId"], "leadReminders": _shortened(complaints)},
                )
        self._said = said
        return found


def _shortened(complaints: Sequence[str]) -> str:
    """The first of them, and how many more."""
    more = len(complaints) - MOST_COMPLAINTS
    return "; ".join(complaints[:MOST_COMPLAINTS]) + (f"; and {more} more" if more > 0 else "")


def recipients_of(tenant: Row, now: datetime) -> tuple[list[Row], list[str]]:
    """The recipients of one tenant (a row of the statement ``tenants``), and what is wrong with its settings."""
    if not isinstance(tenant["tenant_settings"], dict):
        return [], ["the tenant's settings cannot be read"]
    settings, complaints = read_settings(tenant["tenant_settings"].get("leadReminders"))
    if settings is None:
        return [], complaints
    stages: dict[str, str] = tenant["stages"] or {}
    unknown = [slug for slug in settings.stages if slug not in stages]
    if unknown:
        complaints.append(f"includedStages has {len(unknown)} unknown of {len(settings.stages)}")
    stage_ids = [stages[slug] for slug in settings.stages or stages if slug in stages]
    if not stage_ids:
        return [], [*complaints, "no stage is left: no reminders"]
    people = _people(tenant, settings, complaints)
    quiet_since = now - timedelta(hours=settings.hours)
    shared = {
        "tenant_id": tenant["tenantId"],
        "quiet_since": quiet_since.isoformat(),
        "reminded_since": (quiet_since + timedelta(seconds=EARLY_SECONDS)).isoformat(),
        "stage_ids": stage_ids,
    }
    return [
        shared | {"channel": person.channel, "address": person.address, "content": _content(tenant, settings, person)}
        for person in people
    ], complaints


def gmail_address(tenant: Row) -> str | None:
    """Of the Gmail account that the tenant's digests leave through; None: through SMTP_URL."""
    oauth = part(part(tenant["tenant_settings"], "mail"), "oauth")
    if not (tenant["gmailAccessToken"] and tenant["gmailRefreshToken"] and oauth):
        return None
    return str(tenant["googleEmail"] or tenant["user_email"])


def _people(tenant: Row, settings: ReminderSettings, complaints: list[str]) -> list[DigestRecipient]:
    """Each address once; a user before a bare address, which has no name."""
    found: dict[tuple[str, str], DigestRecipient] = {}
    if settings.send_email:
        for person in [
            *_users(tenant, settings, complaints),
            *(DigestRecipient("email", each) for each in settings.emails),
        ]:
            found.setdefault((person.channel, person.address.lower()), person)
    if settings.send_whatsapp:
        for phone in settings.phones:
            found.setdefault(("whatsapp", phone), DigestRecipient("whatsapp", phone))
    return [DigestRecipient(channel, address, each.name, each.user_id) for (channel, address), each in found.items()]


def _users(tenant: Row, settings: ReminderSettings, complaints: list[str]) -> list[DigestRecipient]:
    users: dict[str, Row] = tenant["users"] or {}
    unknown = sum(user_id not in users for user_id in settings.user_ids)
    if unknown:
        complaints.append(f"recipientUserIds has {unknown} who is no active user of this tenant")
    found = []
    for user_id in settings.user_ids:
        try:
            if user_id in users:
                address = parse_address(users[user_id]["email"])
                found.append(DigestRecipient("email", address, users[user_id]["name"], user_id))
        except ValueError:
            complaints.append("recipientUserIds has a user whose e-mail address is none")
    return found


def _content(tenant: Row, settings: ReminderSettings, person: DigestRecipient) -> Row:
    """What the digest is made of, but for its leads; gmail: whom to ask what became of it."""
    return {
        "recipientName": person.name,
        "userId": person.user_id,
        "checkIntervalHours": settings.hours,
        "gmail": gmail_address(tenant) if person.channel == "email" else None,
        "templateId": tenant["template_id"] if person.channel == "email" else None,
    }
