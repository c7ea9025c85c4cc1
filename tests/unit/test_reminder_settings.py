"""What tenants save under leadReminders: missing keys take their defaults, broken ones are ignored and named."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.content.reminder_settings import ReminderSettings, read_settings

USUAL = ReminderSettings(24.0, (), (), (), send_email=True, send_whatsapp=True, stages=())


def test_only_enabled() -> None:
    """Everything but enabled has a default, and null counts as missing."""
    keys = (
        "checkIntervalHours",
        "recipientUserIds",
        "recipientEmails",
        "sendEmail",
        "sendWhatsApp",
        "includedStages",
    )
    for saved in ({"enabled": True}, {"enabled": True} | dict.fromkeys(keys)):
        assert read_settings(saved) == (USUAL, [])


def test_all_keys() -> None:
    """Addresses come out as the providers take them, each once and in their order."""
    saved = {
        "enabled": True,
        "checkIntervalHours": 0.5,
        "recipientUserIds": ["u-2", "u-1", "u-2"],
        "recipientEmails": [" asha@Shop.example ", "ravi@दुकान.example"],
        "recipientPhones": ["98123 45678", "+91 9812345678", "+44 20 7946 0018"],
        "sendWhatsApp": False,
        "sendEmail": True,
        "includedStages": ["new"],
    }
    emails = ("asha@Shop.example", "ravi@xn--j2bxb9cdp.example")
    settings, complaints = read_settings(saved)
    assert complaints == []
    assert settings
    assert settings.emails[0] == emails[0]
    assert settings.emails[1].startswith("ravi@xn--")
    assert (settings.hours, settings.user_ids, settings.stages) == (0.5, ("u-2", "u-1"), ("new",))
    assert settings.phones == ("919812345678", "442079460018")
    assert (settings.send_email, settings.send_whatsapp) == (True, False)


@pytest.mark.parametrize("saved", [None, {}, {"enabled": False}, {"enabled": None, "recipientEmails": 5}])
def test_off(saved: Any) -> None:
    """Reminders that are missing or switched off cause no complaint, whatever else is saved."""
    assert read_settings(saved) == (None, [])


@pytest.mark.parametrize("saved", ["yes", ["enabled"], 1, True, {"enabled": "true"}, {"enabled": 1}, {"enabled": {}}])
def test_neither_on_nor_off(saved: Any) -> None:
    """What is neither true nor false means no reminders, and a complaint."""
    settings, complaints = read_settings(saved)
    assert settings is None
    assert len(complaints) == 1
    assert "no reminders" in complaints[0]


@pytest.mark.parametrize("hours", ["24", True, 0, -1, 8761, 1e400, [], {}])
def test_broken_hours(hours: Any) -> None:
    """A broken interval is a day."""
    settings, complaints = read_settings({"enabled": True, "checkIntervalHours": hours})
    assert settings == USUAL
    assert complaints == ["checkIntervalHours is not a number above 0 and up to 8760: 24 is used"]


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("sendEmail", "no", "sendEmail is neither true nor false: true is used"),
        ("sendWhatsApp", 0, "sendWhatsApp is neither true nor false: true is used"),
        ("recipientUserIds", "u-1", "recipientUserIds is not a list: it is ignored"),
        ("recipientUserIds", [7], "recipientUserIds[0] is not a string: it is ignored"),
        ("recipientEmails", {"a": 1}, "recipientEmails is not a list: it is ignored"),
        ("recipientEmails", ["asha at shop"], "recipientEmails[0] is not an e-mail address: it is ignored"),
        ("recipientEmails", [["a@b.example"]], "recipientEmails[0] is not an e-mail address: it is ignored"),
        ("recipientPhones", ["12"], "recipientPhones[0] is not a phone number: it is ignored"),
        ("recipientPhones", [9812345678], "recipientPhones[0] is not a phone number: it is ignored"),
        ("includedStages", "new", "includedStages is not a list: it is ignored"),
    ],
)
def test_broken_values(key: str, value: Any, complaint: str) -> None:
    """A complaint names the key of a broken value, not the value, and all else is as usual."""
    assert read_settings({"enabled": True, key: value}) == (USUAL, [complaint])


def test_one_broken_item() -> None:
    """A broken item leaves the others."""
    settings, complaints = read_settings({"enabled": True, "recipientEmails": ["a@b.example", None, "c@d.example"]})
    assert settings
    assert settings.emails == ("a@b.example", "c@d.example")
    assert complaints == ["recipientEmails[1] is not an e-mail address: it is ignored"]


def test_stages_that_are_none() -> None:
    """Where stages were chosen and none can be read, there are no reminders rather than those of every stage."""
    settings, complaints = read_settings({"enabled": True, "includedStages": [5]})
    assert settings is None
    assert "no stage left" in complaints[-1]


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=8,
)
KEYS = ["checkIntervalHours", "recipientUserIds", "recipientEmails", "recipientPhones", "sendWhatsApp", "sendEmail",
        "includedStages"]  # fmt: skip


@given(st.dictionaries(st.sampled_from(KEYS), json_values))
def test_anything(saved: dict[str, Any]) -> None:
    """Whatever JSON holds, there are settings that can be worked with, or none."""
    settings, _ = read_settings(saved | {"enabled": True})
    if settings:
        assert 0 < settings.hours <= 8760
        assert all("@" in each for each in settings.emails)
        assert all(each.isdigit() for each in settings.phones)
