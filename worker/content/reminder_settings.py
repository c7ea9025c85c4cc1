"""What a tenant saved under leadReminders, read: what is missing takes its default, what is broken is complained of.

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
    """The tenant's wishes. ``stages`` are slugs; none: every stage. Addresses are in the form they are sent to."""

    hours: float  # how long a lead may be quiet, and how long it is not reminded of again
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
        return None, ["leadReminders is no object: no reminders"]
    enabled = saved.get("enabled")
    if enabled is not True:
        broken = enabled is not None and enabled is not False
        return None, ["enabled is neither true nor false: no reminders"] if broken else []
    reader = _Reader(saved)
    settings = ReminderSettings(
        hours=reader.hours("checkIntervalHours"),
        user_ids=reader.texts("recipientUserIds", str, "text"),
        emails=reader.texts("recipientEmails", parse_address, "e-mail address"),
        phones=reader.texts("recipientPhones", whatsapp_id, "phone number"),
        send_email=reader.truth("sendEmail"),
        send_whatsapp=reader.truth("sendWhatsApp"),
        stages=reader.texts("includedStages", str, "text"),
    )
    if saved.get("includedStages") and isinstance(saved["includedStages"], list) and not settings.stages:
        return None, [*reader.complaints, "includedStages has no stage left: no reminders"]
    return settings, reader.complaints


class _Reader:
    """Reads one key after the other and collects complaints."""

    def __init__(self, saved: dict[str, Any]) -> None:
        self._saved = saved
        self.complaints: list[str] = []

    def hours(self, key: str) -> float:
        value = self._saved.get(key)
        if value is None:
            return USUAL_HOURS
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MOST_HOURS:
            self.complaints.append(f"{key} is no number above 0 and up to {MOST_HOURS:g}: {USUAL_HOURS:g} is taken")
            return USUAL_HOURS
        return float(value)

    def truth(self, key: str) -> bool:
        value = self._saved.get(key)
        if value is None or isinstance(value, bool):
            return value is not False
        self.complaints.append(f"{key} is neither true nor false: true is taken")
        return True

    def texts(self, key: str, read: Callable[[str], str], what: str) -> tuple[str, ...]:
        """The items that ``read`` takes, each once; it raises ValueError for others."""
        value = self._saved.get(key)
        if value is None:
            return ()
        if not isinstance(value, list):
            self.complaints.append(f"{key} is no list: it is left out")
            return ()
        found: dict[str, None] = {}
        for number, item in enumerate(value):
            try:
                found[read(_text(item))] = None
            except ValueError:
                self.complaints.append(f"{key}[{number}] is no {what}: it is left out")
        return tuple(found)


def _text(item: object) -> str:
    if not isinstance(item, str):
        raise ValueError("no text")  # noqa: TRY004 - what a tenant saved, not what a program passed
    return item
