"""The form that places one call at Twilio, a call's status in the CRM's words, and the pauses between attempts.

Source: https://www.twilio.com/docs/voice/api/call-resource#create-a-call-resource.
"""

from urllib.parse import quote, urlencode

CALL_EVENTS = ("initiated", "ringing", "answered", "completed")
LONGEST_RING_SECONDS = 600  # Twilio's limit
LONGEST_RETRY_DELAY_SECONDS = 24 * 3600.0

# in the reasons of calls in the queue
WAITING_FOR_HOURS = "not called yet: calls to "  # how one begins that waits for the hours of its number
WHAT_TO_DO = "; what to do: "  # then comes what the call's tenant has to change

# "CallLog"."twilioStatus"; Twilio has others, such as 'initiated'
CRM_STATUSES = {"queued", "ringing", "in-progress", "completed", "busy", "failed", "no-answer", "canceled"}

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
    """The fields of POST Calls in Twilio's names, not encoded yet; StatusCallbackEvent comes four times.

    ``to`` and ``from_`` are E.164. ``timeout_seconds`` is how long the phone may ring, and is brought into 1..600.
    ``call_type`` None is 'ai', as in the CRM. ``script_recording`` None: the call has no script.
    """
    webhook = app_url.rstrip("/") + _WEBHOOK
    query = {"leadId": lead_id or contact_id or "", "callType": call_type or "ai"}
    form = [
        ("To", to),
        ("From", from_),
        ("Url", f"{webhook}/twiml?{urlencode(query, errors='replace', quote_via=quote)}"),
        ("StatusCallback", f"{webhook}/status"),
        *(("StatusCallbackEvent", event) for event in CALL_EVENTS),
        ("Timeout", str(min(max(timeout_seconds, 1), LONGEST_RING_SECONDS))),
        ("MachineDetection", "Enable"),
        ("AsyncAmd", "true"),
    ]
    if tenant_recording if script_recording is None else script_recording:
        form += [("Record", "true"), ("RecordingStatusCallback", f"{webhook}/recording")]
    return form


def crm_status(twilio_status: str, otherwise: str = "queued") -> str:
    """The status of a call as "CallLog" knows it; ``otherwise`` for one that only Twilio knows."""
    return twilio_status if twilio_status in CRM_STATUSES else otherwise


def retry_delay_seconds(attempts: int) -> float:
    """Seconds to wait after ``attempts`` that failed: 2, 4, 8 ... minutes, at most 24 hours. Below 1 counts as 1."""
    # 2 ** 20 minutes are beyond the limit already, and 2.0 ** 5000 would overflow
    return min(60.0 * 2.0 ** min(max(attempts, 1), 20), LONGEST_RETRY_DELAY_SECONDS)
