"""``{{unsubscribe_url}}`` and the header fields of a campaign's messages."""

from dataclasses import dataclass
from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.message import EmailMessage
from html.parser import HTMLParser
from typing import Any

import pytest

from worker.content.campaign import EmailContent, Sender, WhatsAppContent
from worker.content.campaign_texts import CampaignTexts
from worker.content.list_fields import list_fields
from worker.content.unsubscribe_link import UnsubscribeLink
from worker.content.unsubscribe_token import Subscription, UnsubscribeTokens
from worker.messages import Accepted

AT = datetime(2026, 3, 1, 12, 0, tzinfo=UTC).replace(tzinfo=None)
PUBLIC_URL = "https://mail.crm.example.in"
TOKENS = UnsubscribeTokens(["5a" * 32])
SENDER = Sender("Crm", "crm@Shop.Example")
CRM_URL = "https://crm.example/stop?e={{email}}&r={{recipient_id}}"


@dataclass(frozen=True)
class Recipient:
    id: str = "r-1"
    name: str = "Asha"
    email: str | None = "Asha@Example.com"
    phone: str | None = "098765 43210"


def texts(channel: str = "email", **columns: Any) -> CampaignTexts:
    return CampaignTexts(**{"id": "c-1", "tenant_id": "t-1", "name": "Diwali", "channel": channel} | columns)


def link(tenant: str = "t-1", channel: str = "email") -> UnsubscribeLink:
    return UnsubscribeLink.of_worker(PUBLIC_URL, TOKENS.maker(tenant, channel, "c-1"))


def content(unsubscribe: UnsubscribeLink | None, **columns: Any) -> EmailContent:
    return EmailContent(texts(**columns), SENDER, "https://app.example", unsubscribe)


def read(made: EmailContent, recipient: Recipient | None = None) -> EmailMessage:
    message = message_from_bytes(made.message(recipient or Recipient(), AT).content, policy=policy.default)
    assert isinstance(message, EmailMessage)
    assert not [part.defects for part in message.walk() if part.defects]
    return message


def body(message: EmailMessage, kind: str) -> str:
    part = message.get_body((kind,))
    assert part is not None
    return str(part.get_content())


class Hrefs(HTMLParser):
    """The addresses of links, as a browser reads them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[str | None] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name == "href"]


def expected() -> str:
    return f"{PUBLIC_URL}/u/{TOKENS.maker('t-1', 'email', 'c-1')('asha@example.com')}"


@pytest.mark.parametrize(
    "written",
    [
        "{{unsubscribe_url}}",
        "{{ unsubscribe_url }}",
        "{{<b>unsubscribe_url</b>}}",
        "%7B%7Bunsubscribe_url%7D%7D",
        "http://{{unsubscribe_url}}",
        "https://{{unsubscribe_url}}",
        "&#123;&#123;unsubscribe_url&#125;&#125;",
    ],
)
def test_however_an_editor_writes_it(written: str) -> None:
    """In text, and in HTML as text and as a link."""
    if "<b>" not in written:
        html = body(read(content(link(), html=f"<p><a href='{written}'>x</a>")), "html")
        assert Hrefs(html).found == [expected()]
    plain = body(read(content(link(), html=f"<p>{written}</p>")), "plain")
    assert plain.strip() == expected()
    if "&" not in written:
        assert body(read(content(link(), text=f"Leave: {written}")), "plain").replace("<b></b>", "").strip() in (
            f"Leave: {expected()}",
            f"Leave: <b>{expected()}</b>",
        )


@pytest.mark.parametrize(
    ("html", "href"),
    [
        ("<a href={{unsubscribe_url}}>x</a>", "{}"),
        ('<a href=" {{unsubscribe_url}} ">x</a>', " {} "),
        ('<a href="https://track.example/?to={{unsubscribe_url}}">x</a>', "https://track.example/?to={}"),
    ],
)
def test_where_it_stands_in_a_link(html: str, href: str) -> None:
    assert Hrefs(body(read(content(link(), html=html)), "html")).found == [href.format(expected())]


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("unsubscribe", [link(), UnsubscribeLink.of_crm(CRM_URL)], ids=["own", "crm"])
def test_it_is_no_link_of_the_campaign(short: bool, unsubscribe: UnsubscribeLink) -> None:
    """Not tagged, not shortened, not counted; other links are."""
    made = content(
        unsubscribe,
        html='<a href="https://a.example/">a</a><a href="{{unsubscribe_url}}">b</a>'
        '<a href="https://{{unsubscribe_url}}">c</a><a href="https://t.example/?u={{unsubscribe_url}}">d</a>',
        use_short_links=short,
    )
    assert [each.original_url for each in made.links] == ["https://a.example/"]
    first, *others = Hrefs(body(read(made), "html")).found
    assert first is not None
    assert ("/l/" in first) == short
    assert not [each for each in others if each is None or "utm_" in each or "/l/" in each]


def test_the_header_fields() -> None:
    """One click for the worker's own page, in messages that have no link in their text, too."""
    message = read(content(link(), text="Hello"))
    assert message["List-Unsubscribe"] == f"<{expected()}>"
    assert message["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    assert message["List-Id"] == "<t-1.campaigns.shop.example>"
    assert message["Feedback-ID"] == "c-1:t-1:email:worker"
    assert "Auto-Submitted" not in message
    assert [name for name, _ in message.items() if name.startswith(("List", "Feed"))] == [
        "List-Unsubscribe",
        "List-Unsubscribe-Post",
        "List-Id",
        "Feedback-ID",
    ]


def test_a_page_of_the_crms_own() -> None:
    """Its placeholders are filled in wherever it stands, encoded for an address."""
    made = content(
        UnsubscribeLink.of_crm(CRM_URL),
        html='<a href="{{unsubscribe_url}}">x</a> {{unsubscribe_url}}',
        text="{{unsubscribe_url}}",
    )
    message = read(made, Recipient(email="a+b@example.com"))
    address = "https://crm.example/stop?e=a%2Bb%40example.com&r=r-1"
    assert message["List-Unsubscribe"] == f"<{address}>"
    assert body(message, "plain").strip() == address
    assert Hrefs(body(message, "html")).found == [address]


def test_without_any_address_it_is_an_unknown_placeholder() -> None:
    message = read(content(None, text="{{unsubscribe_url}}", html='<a href="{{unsubscribe_url}}">x</a>'))
    assert "List-Unsubscribe" not in message
    assert "List-Unsubscribe-Post" not in message
    assert body(message, "plain").strip() == "{{unsubscribe_url}}"
    assert Hrefs(body(message, "html")).found == ["{{unsubscribe_url}}"]
    assert message["List-Id"]


def test_the_outbox_has_the_same_link() -> None:
    """Also when the recipient's address is none any more: a message that was sent has to be filed."""
    made = content(link(), text="{{unsubscribe_url}}", html="<p>{{unsubscribe_url}}")
    row = made.outbox_row(Recipient(), Accepted("m"), AT)
    assert row is not None
    assert (row.body, row.html) == (expected(), f"<p>{expected()}")
    assert made.outbox_row(Recipient(email="nobody"), Accepted("m"), AT) is not None


def test_two_tenants_never_share_a_link() -> None:
    tokens = {}
    for tenant in ("t-1", "t-2"):
        url = str(read(content(link(tenant), tenant_id=tenant))["List-Unsubscribe"]).strip("<>")
        tokens[tenant] = TOKENS.read(url.rpartition("/")[2])
    assert tokens == {each: Subscription(each, "email", "asha@example.com", "c-1") for each in ("t-1", "t-2")}


@pytest.mark.parametrize("address", ["\u00a0Info@B\u00dccher.example\u200b", "info@xn--bcher-kva.example"])
def test_the_address_in_its_one_spelling(address: str) -> None:
    message = read(content(link()), Recipient(email=address))
    token = str(message["List-Unsubscribe"]).strip("<>").rpartition("/")[2]
    assert TOKENS.read(token).address == "info@xn--bcher-kva.example"


def test_whatsapp() -> None:
    """In text, caption and the parameters of a template, with the channel and number in the token."""
    unsubscribe = link(channel="whatsapp")
    address = f"{PUBLIC_URL}/u/{TOKENS.maker('t-1', 'whatsapp', 'c-1')('+919876543210')}"
    text = {"text": "Offers https://a.example/x . Leave: {{ unsubscribe_url }}.", "whatsapp_message_type": "text"}
    made = WhatsAppContent(texts("whatsapp", **text), "https://app.example", unsubscribe)
    assert made.message(Recipient(), AT).payload["text"]["body"].endswith(f" Leave: {address}.")
    assert [each.original_url for each in made.links] == ["https://a.example/x"]
    template = {"whatsapp_message_type": "template", "whatsapp_template_name": "diwali"}
    params = {"whatsapp_template_params": ["{{name}}", "{{unsubscribe_url}}"]}
    payload = WhatsAppContent(texts("whatsapp", **template, **params), None, unsubscribe).message(Recipient(), AT)
    (component,) = payload.payload["template"]["components"]
    assert [each["text"] for each in component["parameters"]] == ["Asha", address]


@pytest.mark.parametrize("evil", ["a:b", "a\r\nBcc: x@y.in", "a b<c>", "आशा", "", "-", "x" * 300])
def test_ids_cannot_break_a_field(evil: str) -> None:
    """No id can end a field, add a part to Feedback-ID, or make a field that is no ASCII."""
    message = read(content(None, id=evil or "c", tenant_id=evil))
    assert str(message["Feedback-ID"]).count(":") == 3
    assert str(message["List-Id"]).isascii()
    assert "Bcc" not in message
    for _, value in list_fields(evil, evil, "a@b.in"):
        assert value.isascii()
        assert "\n" not in value
