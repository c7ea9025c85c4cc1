"""Makes the JSON body of a WhatsApp message from a campaign's columns, which are already personalised.

Source: https://developers.facebook.com/docs/whatsapp/cloud-api/reference/messages. What Meta is known to refuse is
refused here, before a request is made, with a text that says what to change.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from worker.errors import CampaignRejected, RecipientRefused

LONGEST_TEXT = 4096
LONGEST_CAPTION = 1024
_MEDIA_TYPES = ("image", "document", "video", "audio")

_LINK = re.compile(r"https?://\S", re.IGNORECASE)
# Meta refuses a template parameter with a line break, a tab or more than 4 spaces in a row (132000 ff.).
_BREAK = "\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029"
_NOT_IN_PARAMETER = re.compile(f"[ {_BREAK}]*[{_BREAK}][ {_BREAK}]*| {{5,}}")


class TemplateName(NamedTuple):
    """A message template of a WhatsApp business account, in one language: ``en``, ``en_US``."""

    name: str
    language: str


class UnfitForRecipient(RecipientRefused, ValueError):
    """With this recipient's number or values, the message is one that WhatsApp does not accept."""


class UnfitCampaign(CampaignRejected, ValueError):
    """The campaign's columns make no valid WhatsApp message, for any recipient."""


def whatsapp_payload(
    *,
    recipient_row_id: str,
    to: str,
    message_type: str | None,
    text: str = "",
    media_type: str | None = None,
    media_url: str | None = None,
    caption: str | None = None,
    template_name: str | None = None,
    template_language: str | None = None,
    template_params: Sequence[str] = (),
) -> dict[str, Any]:
    """The body of POST /{phoneId}/messages. ``to``: digits with country code; ``message_type``: None means text.

    Raises UnfitForRecipient and UnfitCampaign; both are SendErrors and ValueErrors.
    """
    if not re.fullmatch(r"[0-9]{7,15}", to):
        raise UnfitForRecipient("the number is not an international phone number in digits")
    payload: dict[str, Any] = {
        "messaging_product": "whatsapp",
        "recipient_type": "individual",
        "to": to,
        "biz_opaque_callback_data": recipient_row_id,
    }
    match message_type or "text":
        case "text":
            return payload | {"type": "text", "text": _text(text)}
        case "media":
            kind, media = _media(media_type, media_url, caption)
            return payload | {"type": kind, kind: media}
        case "template":
            template = _template(template_name, template_language, template_params)
            return payload | {"type": "template", "template": template}
    raise UnfitCampaign(f"whatsappMessageType is {message_type!r}; it must be text, media or template")


def _text(text: str) -> dict[str, Any]:
    if not text.strip():
        raise UnfitCampaign("the message has no text")
    if len(text) > LONGEST_TEXT:
        raise UnfitForRecipient(f"the text has {len(text)} characters, WhatsApp accepts at most {LONGEST_TEXT}")
    return {"body": text, "preview_url": bool(_LINK.search(text))}


def _media(kind: str | None, url: str | None, caption: str | None) -> tuple[str, dict[str, Any]]:
    if kind not in _MEDIA_TYPES:
        raise UnfitCampaign(f"whatsappMediaType is {kind!r}; it must be one of {', '.join(_MEDIA_TYPES)}")
    if not url or not _LINK.match(url):
        raise UnfitCampaign("whatsappMediaUrl must be an http or https link")
    media = {"link": url}
    if caption and kind != "audio":
        if len(caption) > LONGEST_CAPTION:
            raise UnfitForRecipient(
                f"the caption has {len(caption)} characters, WhatsApp accepts at most {LONGEST_CAPTION}"
            )
        media["caption"] = caption
    if kind == "document":
        media["filename"] = _filename(url)
    return kind, media


def _filename(url: str) -> str:
    """The name that the document is shown with: the last part of the link's path."""
    try:
        last = unquote(urlsplit(url).path).rstrip("/").rpartition("/")[2]
    except ValueError as error:
        raise UnfitCampaign("whatsappMediaUrl is not a valid URL") from error
    return "".join(c for c in last if c.isprintable()).strip()[-240:] or "document"


def _template(name: str | None, language: str | None, params: Sequence[str]) -> dict[str, Any]:
    if not name:
        raise UnfitCampaign("whatsappTemplateName is missing")
    template: dict[str, Any] = {"name": name, "language": {"code": language or "en"}}
    if params:
        parameters = [{"type": "text", "text": _parameter(number, param)} for number, param in enumerate(params, 1)]
        template["components"] = [{"type": "body", "parameters": parameters}]
    return template


def _parameter(number: int, param: str) -> str:
    text = _NOT_IN_PARAMETER.sub(" ", param).strip()
    if not text:
        raise UnfitForRecipient(f"template parameter {number} is empty, which WhatsApp does not accept")
    return text
