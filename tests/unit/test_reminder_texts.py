"""The texts of a digest: which leads, how many, safe whatever a lead is called, and readable on a phone."""

from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.content.markup import tags
from worker.content.mime import EmailSkeleton
from worker.content.reminders import LONGEST_FIELD, Digest, email_texts, whatsapp_text

LEADS = [["Asha Rao", "asha@shop.example", "+919812345678"], ["Ravi", "", "98111 11111"]]


def digest(leads: Any = LEADS, count: int | None = None, **fields: Any) -> Digest:
    usual = {
        "recipient_name": "Meera",
        "address": "meera@x.example",
        "hours": 24.0,
        "company_name": "Chaiwala Traders",
    }
    return Digest(leads=leads, count=len(leads) if count is None else count, **(usual | fields))


def mail(digest: Digest, subject: str | None = None, html: str | None = None) -> EmailMessage:
    """What a mail program makes of it."""
    texts = email_texts(digest, subject, html)
    skeleton = EmailSkeleton(
        texts.subject, texts.text, texts.html, from_name="Shop", from_email="a@shop.example", boundary_seed="1"
    )
    at = datetime(2026, 3, 10, tzinfo=UTC)
    raw = skeleton.build(digest.recipient_name, digest.address, texts.values, "<1@shop.example>", at)
    return message_from_bytes(raw, policy=policy.default)


def parts(message: EmailMessage) -> tuple[str, str]:
    text, html = message.get_body(("plain",)), message.get_body(("html",))
    assert text
    assert html
    return text.get_content().replace("\r\n", "\n"), html.get_content().replace("\r\n", "\n")


def test_built_in() -> None:
    """Subject, greeting, each lead with what is known of it, and the company's name."""
    message = mail(digest())
    text, html = parts(message)
    assert message["Subject"] == "2 leads waiting for a follow-up"
    assert text == (
        "Hello Meera,\n\n2 leads had no contact for more than 24 hours:\n\n"
        "1. Asha Rao, asha@shop.example, +919812345678\n2. Ravi, 98111 11111\n\nChaiwala Traders\n"
    )
    assert "<strong>Asha Rao</strong><br>asha@shop.example<br>+919812345678" in html
    assert "<strong>Ravi</strong><br>98111 11111</td>" in html
    assert "Hello Meera," in html
    assert "{{" not in html


def test_on_a_phone() -> None:
    """As wide as the screen: a viewport, no fixed width, one column, nothing to load."""
    _, html = parts(mail(digest()))
    assert 'name="viewport"' in html
    found = list(tags(html))
    assert {each.name for each in found} & {"img", "link", "script", "style", "th"} == set()
    assert sum(each.name == "td" and not each.closing for each in found) == len(LEADS)
    assert "max-width" in html
    assert "px;width" not in html


def test_one_lead() -> None:
    """One lead is one lead, an hour one hour, half an hour a half."""
    message = mail(digest(LEADS[:1], hours=1.0))
    assert message["Subject"] == "1 lead waiting for a follow-up"
    assert "1 lead had no contact for more than 1 hour:" in parts(message)[0]
    assert "more than 0.5 hours" in whatsapp_text(digest(hours=0.5))


def test_nameless() -> None:
    """Somebody of whom only an address is known is addressed by it in an e-mail, and not at all in a message."""
    assert parts(mail(digest(recipient_name="")))[0].startswith("Hello meera@x.example,")
    assert whatsapp_text(digest(recipient_name="")).startswith("2 leads had no contact")


def test_the_rest_is_counted() -> None:
    """Two hundred are listed, the others counted."""
    leads = [[f"Lead {number}", "", ""] for number in range(200)]
    text, html = parts(mail(digest(leads, 201)))
    assert "200. Lead 199\n... and 1 more\n" in text
    assert "... and 1 more</td>" in html
    assert "201 leads had" in text


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=1>',
    "{{email}} {{leadsList}}",
    "$1 \\1 \\g<0>",
    "Line\r\nBcc: all@x.example",
    "A\n2. Forged, forged@x.example",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names(name: str) -> None:
    """A lead, a recipient and a company with such a name make no markup, no placeholder, no header and no line."""
    harmless = mail(digest([["X", "e", "p"]], recipient_name="X", company_name="X"))
    message = mail(digest([[name, name, name]], recipient_name=name, company_name=name))
    assert message.keys() == harmless.keys()
    assert [each.name for each in tags(parts(message)[1])] == [each.name for each in tags(parts(harmless)[1])]
    assert parts(message)[0].count("\n") == parts(harmless)[0].count("\n")
    shown = " ".join(name.split())
    assert f"1. {shown}, {shown}, {shown}\n" in parts(message)[0]
    assert f"1. {shown}\n... and 1 more\n" in whatsapp_text(digest([[name, "", ""]], 2))


def test_long_fields() -> None:
    """What is too long is cut, with a mark."""
    text, _ = parts(mail(digest([["N" * 500, "e" * 500, None]])))
    assert f"1. {'N' * (LONGEST_FIELD - 1)}…, {'e' * (LONGEST_FIELD - 1)}…\n" in text


HTML = "<h1>Hi {{ recipientName }}</h1>{{leadsList}}<p>{{leadsCount}}, {{checkIntervalHours}} h, {{x}}{{leads}}</p>"


def test_a_tenants_template() -> None:
    """Its placeholders are filled, unknown ones are empty, and its text part has the list as text."""
    message = mail(digest(), "{{companyName}}: {{leadsCount}} {{nonsense}}leads", HTML)
    text, html = parts(message)
    assert message["Subject"] == "Chaiwala Traders: 2 leads"
    assert html.startswith("<h1>Hi Meera</h1><table")
    assert "<p>2, 24 h, </p>" in html
    assert "1. Asha Rao, asha@shop.example, +919812345678\n2. Ravi, 98111 11111" in text
    assert "<" not in text


def test_a_template_with_the_text_list() -> None:
    """leadsListText in HTML is escaped like any value."""
    _, html = parts(mail(digest([["<b>", "", ""]]), "S", "<pre>{{leadsListText}}</pre>"))
    assert html.strip() == "<pre>1. &lt;b&gt;</pre>"


@pytest.mark.parametrize(("subject", "html"), [("", HTML), (" ", None), ("Mine", " ")])
def test_a_half_empty_template(subject: str, html: str | None) -> None:
    """What a template leaves empty is as built in."""
    message = mail(digest(), subject, html)
    assert message["Subject"] == (subject.strip() or "2 leads waiting for a follow-up")
    assert ("Hi Meera" if html == HTML else "Hello Meera,") in parts(message)[1]


def test_whatsapp() -> None:
    """The same as plain text."""
    assert whatsapp_text(digest()) == (
        "Hello Meera,\n2 leads had no contact for more than 24 hours:\n\n"
        "1. Asha Rao, asha@shop.example, +919812345678\n2. Ravi, 98111 11111\n\nChaiwala Traders"
    )


@given(
    st.lists(st.tuples(st.text(max_size=150), st.text(max_size=150), st.text(max_size=40)), min_size=1, max_size=200),
    st.integers(0, 10_000),
    st.text(max_size=200),
)
def test_whatsapp_fits(leads: list[tuple[str, str, str]], more: int, name: str) -> None:
    """Never above 4,096 characters, only whole leads, and together with the rest all of them."""
    whole = digest(leads, len(leads) + more, recipient_name=name, company_name=name)
    text = whatsapp_text(whole)
    assert len(text) <= 4096
    every = whatsapp_text(whole, limit=10**9).split("\n\n", 1)[1].split("\n")
    body = text.split("\n\n", 1)[1].split("\n")
    listed = next((n for n, (a, b) in enumerate(zip(body, every, strict=False)) if a != b), len(body))
    if text != whatsapp_text(whole, limit=10**9):
        assert body[listed] == f"... and {whole.count - listed} more"


def test_whatsapp_is_full() -> None:
    """As many leads as there is room for."""
    leads = [[f"Lead number {number}", f"lead{number}@shop.example", "+919812345678"] for number in range(200)]
    text = whatsapp_text(digest(leads, 5000))
    assert 4096 - 60 < len(text) <= 4096
