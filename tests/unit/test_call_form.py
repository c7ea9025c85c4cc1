"""The form of a call is what the CRM contract says, whatever the database holds; and the pauses between attempts."""

from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.content.calls import call_form, retry_delay_seconds

WEBHOOK = "https://crm.example.in/api/calls/webhook"
USUAL: dict[str, Any] = {
    "app_url": "https://crm.example.in",
    "to": "+919800000001",
    "from_": "+918047112233",
    "lead_id": "lead-1",
    "contact_id": None,
    "call_type": "ai",
    "timeout_seconds": 300,
    "tenant_recording": False,
    "script_recording": None,
}


def form(**changes: Any) -> list[tuple[str, str]]:
    return call_form(**(USUAL | changes))


def test_the_whole_form() -> None:
    assert form(tenant_recording=True) == [
        ("To", "+919800000001"),
        ("From", "+918047112233"),
        ("Url", f"{WEBHOOK}/twiml?leadId=lead-1&callType=ai"),
        ("StatusCallback", f"{WEBHOOK}/status"),
        ("StatusCallbackEvent", "initiated"),
        ("StatusCallbackEvent", "ringing"),
        ("StatusCallbackEvent", "answered"),
        ("StatusCallbackEvent", "completed"),
        ("Timeout", "300"),
        ("MachineDetection", "Enable"),
        ("AsyncAmd", "true"),
        ("Record", "true"),
        ("RecordingStatusCallback", f"{WEBHOOK}/recording"),
    ]


@pytest.mark.parametrize("tenant", [True, False])
@pytest.mark.parametrize("script", [True, False, None])
def test_the_scripts_setting_of_recording_wins_over_the_tenants(tenant: bool, script: bool | None) -> None:
    names = [name for name, _ in form(tenant_recording=tenant, script_recording=script)]
    wanted = tenant if script is None else script
    assert ("Record" in names, "RecordingStatusCallback" in names) == (wanted, wanted)


@pytest.mark.parametrize(
    ("changes", "query"),
    [
        ({"contact_id": "contact-1"}, "leadId=lead-1&callType=ai"),
        ({"lead_id": None, "contact_id": "contact-1"}, "leadId=contact-1&callType=ai"),
        ({"lead_id": None}, "leadId=&callType=ai"),
        ({"call_type": None}, "leadId=lead-1&callType=ai"),
        ({"call_type": "manual"}, "leadId=lead-1&callType=manual"),
        ({"lead_id": "a b&c=/?#é+"}, "leadId=a%20b%26c%3D%2F%3F%23%C3%A9%2B&callType=ai"),
    ],
)
def test_who_is_called_stands_in_the_url(changes: dict[str, Any], query: str) -> None:
    assert dict(form(**changes))["Url"] == f"{WEBHOOK}/twiml?{query}"


@pytest.mark.parametrize(
    ("seconds", "sent"),
    [(-(2**31), "1"), (0, "1"), (1, "1"), (45, "45"), (600, "600"), (601, "600"), (2**31 - 1, "600")],
)
def test_it_rings_from_1_to_600_seconds(seconds: int, sent: str) -> None:
    assert dict(form(timeout_seconds=seconds))["Timeout"] == sent


@pytest.mark.parametrize("app_url", ["https://crm.example.in/", "https://crm.example.in"])
def test_a_slash_at_the_end_of_app_url_changes_nothing(app_url: str) -> None:
    assert form(app_url=app_url) == form()


@given(st.text(min_size=1), st.text(min_size=1), st.text(), st.text())
def test_no_value_changes_another_field(lead_id: str, call_type: str, to: str, from_: str) -> None:
    made = form(lead_id=lead_id, call_type=call_type, to=to, from_=from_)
    assert parse_qsl(urlencode(made), keep_blank_values=True) == made
    url = urlsplit(dict(made)["Url"])
    assert (url.netloc, url.path) == ("crm.example.in", "/api/calls/webhook/twiml")
    assert parse_qsl(url.query) == [("leadId", lead_id), ("callType", call_type)]


def test_half_a_surrogate_pair_is_no_error() -> None:
    assert "leadId=%3F&" in dict(form(lead_id="\ud800"))["Url"]


def test_pauses_double_from_2_minutes_to_a_day() -> None:
    minutes = [retry_delay_seconds(attempts) / 60 for attempts in range(1, 13)]
    assert minutes == [2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1440, 1440]


@given(st.integers(1, 10**9), st.integers(1, 10**9))
def test_pauses_never_shrink_and_have_a_limit(one: int, other: int) -> None:
    fewer, more = sorted((one, other))
    assert 120.0 <= retry_delay_seconds(fewer) <= retry_delay_seconds(more) <= 86_400.0
