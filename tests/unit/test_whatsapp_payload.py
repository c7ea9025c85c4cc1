"""The body of a WhatsApp message, from a campaign's columns."""

from typing import Any

import pytest

from worker.content.whatsapp import UnfitCampaign, UnfitForRecipient, whatsapp_payload
from worker.errors import CampaignRejected, RecipientRefused

COMMON = {
    "messaging_product": "whatsapp",
    "recipient_type": "individual",
    "to": "919800000001",
    "biz_opaque_callback_data": "row-1",
}


def built(message_type: str | None = None, **columns: Any) -> dict[str, Any]:
    arguments = {"recipient_row_id": "row-1", "to": "919800000001", "message_type": message_type} | columns
    payload = whatsapp_payload(**arguments)
    assert {key: payload.pop(key) for key in COMMON} == COMMON
    return payload


@pytest.mark.parametrize("message_type", [None, "", "text"])
def test_text(message_type: str | None) -> None:
    assert built(message_type, text="Hi") == {"type": "text", "text": {"body": "Hi", "preview_url": False}}


@pytest.mark.parametrize(
    ("text", "preview"), [("see HTTPS://x.example", True), ("see x.example", False), ("http:// x", False)]
)
def test_a_link_gets_a_preview(text: str, preview: bool) -> None:
    assert built(text=text)["text"]["preview_url"] is preview


def test_text_has_a_limit() -> None:
    assert len(built(text="अ" * 4096)["text"]["body"]) == 4096
    with pytest.raises(UnfitForRecipient, match="4097"):
        built(text="अ" * 4097)
    with pytest.raises(UnfitCampaign):
        built(text=" \n")


@pytest.mark.parametrize(
    ("media_type", "media"),
    [
        ("image", {"link": "https://x.example/a/b%20c.pdf?d=e", "caption": "Look"}),
        ("video", {"link": "https://x.example/a/b%20c.pdf?d=e", "caption": "Look"}),
        ("audio", {"link": "https://x.example/a/b%20c.pdf?d=e"}),
        ("document", {"link": "https://x.example/a/b%20c.pdf?d=e", "caption": "Look", "filename": "b c.pdf"}),
    ],
)
def test_media(media_type: str, media: dict[str, str]) -> None:
    payload = built("media", media_type=media_type, media_url="https://x.example/a/b%20c.pdf?d=e", caption="Look")
    assert payload == {"type": media_type, media_type: media}


@pytest.mark.parametrize(
    ("url", "filename"),
    [("https://x.example", "document"), ("https://x.example/%2F%00", "document"), ("https://x/a/", "a")],
)
def test_a_document_always_has_a_filename(url: str, filename: str) -> None:
    assert built("media", media_type="document", media_url=url)["document"] == {"link": url, "filename": filename}


def test_template() -> None:
    payload = built("template", template_name="offer", template_language="hi", template_params=["Asha", "10 %"])
    parameters = [{"type": "text", "text": "Asha"}, {"type": "text", "text": "10 %"}]
    components = [{"type": "body", "parameters": parameters}]
    template = {"name": "offer", "language": {"code": "hi"}, "components": components}
    assert payload == {"type": "template", "template": template}
    assert built("template", template_name="plain")["template"] == {"name": "plain", "language": {"code": "en"}}


@pytest.mark.parametrize(
    ("param", "sent"),
    [
        ("a\nb", "a b"),
        ("a \r\n\t b", "a b"),
        ("a    b", "a    b"),
        ("a     b", "a b"),
        (" a ", "a"),
        ("a   \n   b", "a b"),
    ],
)
def test_a_parameter_holds_nothing_that_whatsapp_refuses(param: str, sent: str) -> None:
    template = built("template", template_name="t", template_params=[param])["template"]
    assert template["components"][0]["parameters"][0]["text"] == sent


@pytest.mark.parametrize("param", ["", "  ", "\n\t"])
def test_an_empty_parameter_is_refused(param: str) -> None:
    with pytest.raises(UnfitForRecipient, match="parameter 2 is empty"):
        built("template", template_name="t", template_params=["a", param])


@pytest.mark.parametrize(
    "columns",
    [
        {"message_type": "sticker"},
        {"message_type": "media", "media_type": "sticker", "media_url": "https://x/a"},
        {"message_type": "media", "media_type": None, "media_url": "https://x/a"},
        {"message_type": "media", "media_type": "image"},
        {"message_type": "media", "media_type": "image", "media_url": "file:///etc/passwd"},
        {"message_type": "media", "media_type": "document", "media_url": "https://[x/a"},
        {"message_type": "template"},
    ],
)
def test_a_campaign_that_fits_nobody(columns: dict[str, Any]) -> None:
    with pytest.raises(UnfitCampaign) as caught:
        built(**columns)
    assert isinstance(caught.value, CampaignRejected)


@pytest.mark.parametrize("to", ["", "+919800000001", "98000", "९१९८०००००००१", "1" * 16, "919800000001\n"])
def test_a_number_that_is_none(to: str) -> None:
    with pytest.raises(UnfitForRecipient) as caught:
        built(to=to, text="x")
    assert isinstance(caught.value, RecipientRefused)
    assert isinstance(caught.value, ValueError)
