"""Reads what a tenant saved under leadReminders: missing keys take their defaults, broken ones become complaints.

A complaint names the key and never the value, which may be somebody's address.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from worker.content.addresses import parse_address
from worker.content.phones import whatsapp_id

USUAL_HOURS = 24.0
MOST_HOURS = 8760.0  # a year


@dataclass(frozen=True, slots=True)
class ReminderSettings:
    """A tenant's settings. ``stages`` are slugs; none: every stage. Addresses are as the providers take them."""

    hours: float  # without a contact until a lead is due, and between two reminders of it
    user_ids: tuple[str, ...]
    emails: tuple[str, ...]
    phones: tuple[str, ...]  # digits with country code
    send_email: bool
    send_whatsapp: bool
    stages: tuple[str, ...]


def read_settings(saved: object) -> tuple[ReminderSettings | None, list[str]]:
    """The settings, None when reminders are off, and complaints about what is broken.

    ``saved``: the value of leadReminders as JSON has it. null counts as missing.
    """
    if saved is None:
        return None, []
    if not isinstance(saved, dict):
        return None, ["leadReminders is not an object: no reminders"]
    enabled = saved.get("enabled")
    if enabled is not True:
        broken = enabled is not None and enabled is not False
        return None, ["enabled is neither true nor false: no reminders"] if broken else []
    reader = _Reader(saved)
    settings = ReminderSettings(
        hours=reader.hours("checkIntervalHours"),
        user_ids=reader.strings("recipientUserIds", str, "a string"),
        emails=reader.strings("recipientEmails", parse_address, "an e-mail address"),
        phones=reader.strings("recipientPhones", whatsapp_id, "a phone number"),
        send_email=reader.switch("sendEmail"),
        send_whatsapp=reader.switch("sendWhatsApp"),
        stages=reader.strings("includedStages", str, "a string"),
    )
    if saved.get("includedStages") and isinstance(saved["includedStages"], list) and not settings.stages:
        return None, [*reader.complaints, "includedStages has no stage left: no reminders"]
    return settings, reader.complaints


class _Reader:
    """Reads one key after the other, and collects complaints."""

    def __init__(self, saved: dict[str, Any]) -> None:
        self._saved = saved
        self.complaints: list[str] = []

    def hours(self, key: str) -> float:
        value = self._saved.get(key)
        if value is None:
            return USUAL_HOURS
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MOST_HOURS:
            self.complaints.append(f"{key} is not a number above 0 and up to {MOST_HOURS:g}: {USUAL_HOURS:g} is used")
            return USUAL_HOURS
        return float(value)

    def switch(self, key: str) -> bool:
        value = self._saved.get(key)
        if value is None or isinstance(value, bool):
            return value is not False
        self.complaints.append(f"{key} is neither true nor false: true is used")
        return True

    def strings(self, key: str, read: Callable[[str], str], what: str) -> tuple[str, ...]:
        """The items of a list, each once. ``read`` raises ValueError for those that are not ``what``."""
        value = self._saved.get(key)
        if value is None:
            return ()
        if not isinstance(value, list):
            self.complaints.append(f"{key} is not a list: it is ignored")
            return ()
        found: dict[str, None] = {}
        for number, item in enumerate(value):
            try:
                found[read(_string(item))] = None
            except ValueError:
                self.complaints.append(f"{key}[{number}] is not {what}: it is ignored")
        return tuple(found)


def _string(item: object) -> str:
    if not isinstance(item, str):
        raise ValueError("not a string")  # noqa: TRY004 - what a tenant saved, not what a program passed
    return item
