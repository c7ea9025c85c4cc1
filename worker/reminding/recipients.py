"""Who is reminded of which leads, from the settings that tenants saved.

Broken settings of one tenant affect no other tenant: what cannot be used is left out, and logged once.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from worker.content.addresses import parse_address
from worker.content.reminder_settings import ReminderSettings, read_settings
from worker.reminding.digest import DigestContent
from worker.reminding.tenants import ReminderTenant

log = logging.getLogger(__name__)

# Ticks are aligned to the clock, give or take milliseconds: today's may begin a little earlier than yesterday's did.
EARLY_SECONDS = 0.5
MOST_COMPLAINTS = 5  # of one tenant in one line


@dataclass(frozen=True, slots=True)
class DigestRecipient:
    """One recipient on one channel, and which leads of the tenant are due to this recipient.

    ``address`` is in lower case, or digits. Times are UTC without a zone.
    """

    tenant_id: str
    channel: str
    address: str
    quiet_since: datetime  # leads without a contact since then are due ...
    reminded_since: datetime  # ... unless this recipient was reminded of them since then
    stage_ids: Sequence[str]
    content: DigestContent

    def as_json(self) -> dict[str, Any]:
        """As the statement ``claim`` takes it."""
        return {
            "tenant_id": self.tenant_id,
            "channel": self.channel,
            "address": self.address,
            "quiet_since": self.quiet_since.isoformat(),
            "reminded_since": self.reminded_since.isoformat(),
            "stage_ids": self.stage_ids,
            "content": self.content.as_json(),
        }


@dataclass(frozen=True, slots=True)
class _Address:
    """Where a digest goes; ``user_id`` is None for a bare address."""

    channel: str
    address: str
    name: str = ""
    user_id: str | None = None


class RecipientReader:
    """Reads tenants' settings, and remembers which complaints were logged."""

    def __init__(self) -> None:
        self._logged: dict[str, tuple[str, ...]] = {}

    @property
    def complained(self) -> bool:
        """Whether there are complaints that are not to be logged again."""
        return any(self._logged.values())

    def recipients_of_all(self, tenants: Iterable[ReminderTenant], now: datetime) -> list[DigestRecipient]:
        """The recipients of all tenants. ``now``: UTC without a zone."""
        found: list[DigestRecipient] = []
        logged: dict[str, tuple[str, ...]] = {}
        for tenant in tenants:
            recipients, complaints = recipients_of(tenant, now)
            found += recipients
            logged[tenant.id] = tuple(complaints)
            if complaints and self._logged.get(tenant.id) != tuple(complaints):
                log.warning(
                    "a tenant's reminder settings have errors",
                    {"tenant": tenant.id, "leadReminders": _shortened(complaints)},
                )
        self._logged = logged
        return found


def _shortened(complaints: Sequence[str]) -> str:
    """The first of them, and how many more."""
    more = len(complaints) - MOST_COMPLAINTS
    return "; ".join(complaints[:MOST_COMPLAINTS]) + (f"; and {more} more" if more > 0 else "")


def recipients_of(tenant: ReminderTenant, now: datetime) -> tuple[list[DigestRecipient], list[str]]:
    """The recipients of one tenant, and what is wrong with its settings."""
    if not isinstance(tenant.settings, dict):
        return [], ["the tenant's settings cannot be read"]
    settings, complaints = read_settings(tenant.settings.get("leadReminders"))
    if settings is None:
        return [], complaints
    unknown = [slug for slug in settings.stages if slug not in tenant.stages]
    if unknown:
        complaints.append(f"includedStages has {len(unknown)} unknown of {len(settings.stages)}")
    stage_ids = [tenant.stages[slug] for slug in settings.stages or tenant.stages if slug in tenant.stages]
    if not stage_ids:
        return [], [*complaints, "no stage is left: no reminders"]
    addresses = _addresses(tenant, settings, complaints)
    quiet_since = now - timedelta(hours=settings.hours)
    reminded_since = quiet_since + timedelta(seconds=EARLY_SECONDS)
    gmail = tenant.gmail_address
    return [
        DigestRecipient(
            tenant_id=tenant.id,
            channel=each.channel,
            address=each.address,
            quiet_since=quiet_since,
            reminded_since=reminded_since,
            stage_ids=stage_ids,
            content=DigestContent(
                recipient_name=each.name,
                user_id=each.user_id,
                check_interval_hours=settings.hours,
                gmail=gmail if each.channel == "email" else None,
                template_id=tenant.template_id if each.channel == "email" else None,
            ),
        )
        for each in addresses
    ], complaints


def _addresses(tenant: ReminderTenant, settings: ReminderSettings, complaints: list[str]) -> list[_Address]:
    """Each address once; a user before a bare address, which has no name."""
    found: dict[tuple[str, str], _Address] = {}
    if settings.send_email:
        bare = [_Address("email", each) for each in settings.emails]
        for each in [*_users(tenant, settings, complaints), *bare]:
            found.setdefault((each.channel, each.address.lower()), each)
    if settings.send_whatsapp:
        for phone in settings.phones:
            found.setdefault(("whatsapp", phone), _Address("whatsapp", phone))
    return [_Address(channel, address, each.name, each.user_id) for (channel, address), each in found.items()]


def _users(tenant: ReminderTenant, settings: ReminderSettings, complaints: list[str]) -> list[_Address]:
    unknown = sum(user_id not in tenant.users for user_id in settings.user_ids)
    if unknown:
        complaints.append(f"recipientUserIds has {unknown} that are not active users of this tenant")
    found = []
    for user_id in settings.user_ids:
        user = tenant.users.get(user_id)
        if user is None:
            continue
        try:
            found.append(_Address("email", parse_address(user.email), user.name, user_id))
        except ValueError:
            complaints.append("recipientUserIds has a user whose e-mail address is not valid")
    return found
