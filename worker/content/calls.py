"""The form that places one call at Twilio, and when a call that failed is tried again.

Source: https://www.twilio.com/docs/voice/api/call-resource#create-a-call-resource.
"""

from urllib.parse import quote, urlencode

CALL_EVENTS = ("initiated", "ringing", "answered", "completed")
LONGEST_RING_SECONDS = 600  # Twilio's limit
LONGEST_RETRY_DELAY_SECONDS = 24 * 3600.0

_WEBHOOK = "/api/calls/webhook"


def call_form(
    *,
    app_url: str,
    to: str,
    from_: str,
    lead_id: str | None,
    contact_id: str | None,
    call_type: str | None,
    timeout_seconds: int,
    tenant_recording: bool,
    script_recording: bool | None,
) -> list[tuple[str, str]]:
    """The fields of POST Calls, not encoded yet, in Twilio's names; StatusCallbackEvent comes four times.

    ``to`` and ``from_`` are E.164. ``timeout_seconds`` is how long it may ring and is brought into 1..600.
    ``call_type`` None is 'ai', as in the CRM. ``script_recording`` None: the call has no script.
    """
    webhook = app_url.rstrip("/") + _WEBHOOK
    person = {"leadId": lead_id or contact_id or "", "callType": call_type or "ai"}
    form = [
        ("To", to),
        ("From", from_),
        ("Url", f"{webhook}/twiml?{urlencode(person, errors='replace', quote_via=quote)}"),
        ("StatusCallback", f"{webhook}/status"),
        *(("StatusCallbackEvent", event) for event in CALL_EVENTS),
        ("Timeout", str(min(max(timeout_seconds, 1), LONGEST_RING_SECONDS))),
        ("MachineDetection", "Enable"),
        ("AsyncAmd", "true"),
    ]
    if tenant_recording if script_recording is None else script_recording:
        form += [("Record", "true"), ("RecordingStatusCallback", f"{webhook}/recording")]
    return form


def retry_delay_seconds(attempts: int) -> float:
    """Seconds until the next try after ``attempts`` (at least 1) that failed: 2, 4, 8 ... minutes, at most 24 h."""
    # 2 ** 20 minutes are beyond the limit already, and a float holds no 2 ** 5000.
    return min(60.0 * 2.0 ** min(attempts, 20), LONGEST_RETRY_DELAY_SECONDS)
