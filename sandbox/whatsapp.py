"""Stand-in of the WhatsApp Cloud API: POST /<version>/<phone id>/messages, with Meta's checks of the payload.

GET /<version>/<phone id> answers that the number is good and has no limit, unless a rule of the channel "number" says
something else.

Shapes: https://developers.facebook.com/docs/whatsapp/cloud-api/reference/messages and
https://developers.facebook.com/docs/whatsapp/cloud-api/support/error-codes.
"""

import base64
import re
import secrets
from typing import Any

from sandbox.failure_script import FailureRule, normal_address
from sandbox.http_server import Reply, Request
from sandbox.rate_limit import RateLimit
from sandbox.received_store import Received
from sandbox.stand_in_state import StandInState, scripted_reply

PREFIX = "/whatsapp"
USUAL_RATE = 80.0  # messages a second for one phone id

_PATH = re.compile(PREFIX + r"(?:/v\d+\.\d+)?/(\d+)/messages")
_NUMBER_PATH = re.compile(PREFIX + r"(?:/v\d+\.\d+)?/(\d+)")
_KEYS = {"messaging_product", "recipient_type", "to", "type", "context", "biz_opaque_callback_data"}
_LONGEST_TEXT, _LONGEST_CAPTION, _LONGEST_CALLBACK_DATA = 4096, 1024, 512
_MEDIA_KEYS = {
    "image": {"link", "id", "caption"},
    "video": {"link", "id", "caption"},
    "document": {"link", "id", "caption", "filename"},
    "audio": {"link", "id"},
}
_NOT_IN_PARAMETER = re.compile(r"[\n\t]| {5,}")

# code -> HTTP status and text
_ERRORS = {
    4: (400, "Application request limit reached"),
    10: (403, "Application does not have permission for this action"),
    33: (400, "Parameter value is not valid"),
    100: (400, "Invalid parameter"),
    190: (401, "Invalid OAuth access token - Cannot parse access token"),
    368: (403, "Temporarily blocked for policies violations"),
    80007: (400, "Rate limit issues"),
    130429: (429, "Rate limit hit"),
    130472: (400, "User's number is part of an experiment"),
    130497: (403, "Business account is restricted from messaging users in this country."),
    131000: (500, "Something went wrong"),
    131008: (400, "Required parameter is missing"),
    131009: (400, "Parameter value is not valid"),
    131016: (500, "Service unavailable"),
    131026: (400, "Message Undeliverable"),
    131031: (403, "Business Account locked"),
    131037: (400, "Display name needs approval"),
    131042: (400, "Business eligibility payment issue"),
    131047: (400, "Re-engagement message"),
    131048: (400, "Spam rate limit hit"),
    131049: (400, "Meta chose not to deliver"),
    131050: (400, "User has stopped marketing messages"),
    131056: (400, "(Business Account, Consumer Account) pair rate limit hit"),
    132000: (400, "Number of parameters does not match the expected number of params"),
    132001: (404, "Template name does not exist in the translation"),
    132015: (400, "Template is paused"),
    133010: (400, "Phone number not registered"),
}


class WhatsApp:
    def __init__(self, state: StandInState, rate: float = USUAL_RATE) -> None:
        self._state = state
        self.rate = RateLimit(rate, lambda: error(130429, "Cloud API message throughput has been reached."))

    async def handle(self, request: Request) -> Reply:
        if request.method == "GET" and (number := _NUMBER_PATH.fullmatch(request.path)):
            return await self._number(number[1], request)
        match = _PATH.fullmatch(request.path)
        if match is None or request.method != "POST":
            return error(100, f"Unsupported {request.method.lower()} request.")
        payload = request.json()
        to = payload.get("to") if isinstance(payload, dict) else None
        wamid = "wamid." + base64.b64encode(secrets.token_bytes(30)).decode("ascii")
        message = Received(
            "whatsapp",
            to if isinstance(to, str) and normal_address(to) else "?",
            "accepted",
            account=match[1],
            credential=request.bearer(),
            external_id=wamid,
            content=request.body,
        )
        if not self._state.knows(request.bearer()):
            return self._state.refuse(error(190), message)
        if not request.headers.get("content-type", "").startswith("application/json"):
            return self._state.refuse(error(100, "The body must be JSON"), message)
        problem = problem_of(payload)
        if problem:
            return self._state.refuse(error(*problem), message)
        contact = {"input": to, "wa_id": message.address.lstrip("+")}
        answer = {"messaging_product": "whatsapp", "contacts": [contact], "messages": [{"id": wamid}]}
        return await self._state.settle([message], Reply(200, answer), _scripted_error, self.rate)

    async def _number(self, phone_id: str, request: Request) -> Reply:
        """The fields of a number that a request names."""
        if not self._state.knows(request.bearer()):
            return error(190)
        rule = self._state.script.take("number", [phone_id])
        if rule and rule.action == "hang":
            await rule.hang()
        if rule and (rule.action != "hang" or rule.body is not None):
            return scripted_reply(rule, _scripted_error)
        known = {"quality_rating": "GREEN", "whatsapp_business_manager_messaging_limit": "TIER_UNLIMITED"}
        asked = request.query.get("fields", "").split(",")
        return Reply(200, {name: value for name, value in known.items() if name in asked} | {"id": phone_id})


def error(code: int, details: str = "", status: int | None = None, text: str = "") -> Reply:
    """An error in the Graph API's form; the HTTP status is the code's usual one unless given."""
    usual_status, usual_text = _ERRORS.get(code, (400, "Unknown error"))
    text = text or usual_text
    body = {
        "message": f"(#{code}) {text}",
        "type": "OAuthException",
        "code": code,
        "error_data": {"messaging_product": "whatsapp", "details": details or text},
        "fbtrace_id": base64.b64encode(secrets.token_bytes(9)).decode("ascii"),
    }
    return Reply(status or usual_status, {"error": body})


def _scripted_error(rule: FailureRule) -> Reply:
    return error(int(rule.code or 131000), status=rule.status, text=rule.text or "")


Problem = tuple[int, str]  # an error code and its details


def problem_of(payload: Any) -> Problem | None:
    """Why Meta would refuse a payload; None if it would not."""
    if not isinstance(payload, dict):
        return 100, "The body must be a JSON object"
    if payload.get("messaging_product") != "whatsapp":
        return 100, "The parameter messaging_product is required."
    if payload.get("recipient_type", "individual") != "individual":
        return 131009, "Param recipient_type must be individual"
    to = payload.get("to")
    if not to:
        return 131008, "The parameter to is required."
    if not isinstance(to, str) or not re.fullmatch(r"\+?[0-9][0-9 ()-]{6,19}", to):
        return 131009, "Param to is not a valid phone number"
    kind = payload.get("type", "text")
    return (
        _unexpected_key(payload, _KEYS | {str(kind)}, "")
        or _callback_problem(payload)
        or _content_problem(kind, payload)
    )


def _callback_problem(payload: dict[str, Any]) -> Problem | None:
    data = payload.get("biz_opaque_callback_data", "")
    if not isinstance(data, str) or len(data) > _LONGEST_CALLBACK_DATA:
        return 100, f"Param biz_opaque_callback_data must be at most {_LONGEST_CALLBACK_DATA} characters long."
    return None


def _content_problem(kind: Any, payload: dict[str, Any]) -> Problem | None:
    if kind not in {"text", "template", *_MEDIA_KEYS}:
        return 100, "Param type must be one of {TEXT, TEMPLATE, IMAGE, VIDEO, DOCUMENT, AUDIO}"
    content = payload.get(kind)
    if not isinstance(content, dict):
        return 131008, f"Required parameter is missing: {kind}"
    if kind == "text":
        return _text_problem(content)
    if kind == "template":
        return _template_problem(content)
    return _media_problem(kind, content)


def _text_problem(text: dict[str, Any]) -> Problem | None:
    if not isinstance(text.get("preview_url", False), bool):
        return 100, "Param text['preview_url'] must be a boolean"
    return _unexpected_key(text, {"body", "preview_url"}, "text") or _string(
        "text['body']", text.get("body"), _LONGEST_TEXT
    )


def _media_problem(kind: str, media: dict[str, Any]) -> Problem | None:
    link, number = media.get("link"), media.get("id")
    if bool(link) == bool(number):
        return 131008, f"{kind}: either link or id is required"
    if link and not (isinstance(link, str) and re.match(r"https?://[^\s/]+", link)):
        return 131009, f"Param {kind}['link'] is not a valid URI."
    unexpected = _unexpected_key(media, _MEDIA_KEYS[kind], kind)
    caption = _string(f"{kind}['caption']", media["caption"], _LONGEST_CAPTION) if "caption" in media else None
    return unexpected or caption


def _template_problem(template: dict[str, Any]) -> Problem | None:
    language = template.get("language")
    code = language.get("code") if isinstance(language, dict) else None
    for name, value in (("template['name']", template.get("name")), ("template['language']['code']", code)):
        problem = _string(name, value, 512)
        if problem:
            return problem
    components = template.get("components", [])
    if not isinstance(components, list):
        return 100, "Param template['components'] must be an array."
    problems = (_component_problem(each) for each in components)
    unexpected = _unexpected_key(template, {"name", "language", "components", "namespace"}, "template")
    return unexpected or next(filter(None, problems), None)


def _component_problem(component: Any) -> Problem | None:
    if not isinstance(component, dict) or component.get("type") not in {"header", "body", "button"}:
        return 100, "template['components'][]['type'] must be one of {HEADER, BODY, BUTTON}"
    parameters = component.get("parameters", [])
    if not isinstance(parameters, list) or not all(isinstance(each, dict) for each in parameters):
        return 100, "template['components'][]['parameters'] must be an array of objects."
    for parameter in parameters:
        problem = _parameter_problem(parameter)
        if problem:
            return problem
    return None


def _parameter_problem(parameter: dict[str, Any]) -> Problem | None:
    if parameter.get("type") != "text":
        return None  # media and others are not checked
    text = parameter.get("text")
    if isinstance(text, str) and _NOT_IN_PARAMETER.search(text):
        return 100, "Param text cannot have new-line/tab characters or more than 4 consecutive spaces"
    return _string("template['components'][]['parameters'][]['text']", text, 32768)


def _string(name: str, value: Any, longest: int) -> Problem | None:
    if value is None or value == "":
        return 131008, f"Required parameter is missing: {name}"
    if not isinstance(value, str):
        return 100, f"Param {name} must be a string."
    if len(value) > longest:
        return 100, f"Param {name} must be at most {longest} characters long."
    return None


def _unexpected_key(holder: dict[str, Any], known: set[str], name: str) -> Problem | None:
    unknown = [key for key in holder if key not in known]
    return (100, f'Unexpected key "{unknown[0]}" on param "{name}".') if unknown else None
