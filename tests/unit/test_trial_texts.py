"""The e-mails about suspended trials: what they say, and what a tenant's name can not do to them."""

import re
from datetime import datetime
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.content.one_line import one_line
from worker.content.trial import (
    LISTED,
    LONGEST_NAME,
    SuspendedTenant,
    SuspensionSummary,
    contact_email,
    contact_values,
    owner_email,
    owner_values,
    read_summary,
    read_tenant,
    written_time,
)

AT = datetime(2026, 1, 31, 18, 30)  # noqa: DTZ001 - UTC without a zone, like all times of the CRM
NOTIFICATION = "7b7f2f0e-5c0a-4d8e-9a51-0f2e0c8f1d11"
FACTS = {"name": "Chaiwala Traders", "slug": "chaiwala-traders", "ended_at": "2026-01-31T00:00:00", "user_id": "u"}


def tenant(**more: Any) -> dict[str, Any]:
    return FACTS | {"contact": "owner@chaiwala.example"} | more


def contact(company: str = "Bharat CRM", **more: Any) -> EmailMessage:
    facts = read_tenant(FACTS | more)
    mail = contact_email(company, "owner@crm.example.in")
    made = mail.message(NOTIFICATION, facts.name, "owner@chaiwala.example", contact_values(facts), AT)
    return message_from_bytes(made.content, policy=policy.default)


def owner(*tenants: dict[str, Any], count: int | None = None) -> EmailMessage:
    facts = read_summary({"count": len(tenants) if count is None else count, "tenants": list(tenants)})
    mail = owner_email("Bharat CRM", "owner@crm.example.in")
    made = mail.message(NOTIFICATION, "", "owner@crm.example.in", owner_values(facts, AT), AT)
    return message_from_bytes(made.content, policy=policy.default)


def body(message: EmailMessage, kind: str) -> str:
    part = message.get_body((kind,))
    assert part is not None
    return str(part.get_content()).replace("\r\n", "\n")


def test_to_the_contact() -> None:
    """It is from the operator, names the tenant and when its trial ended, and says what to do; as text and HTML."""
    message = contact()
    assert message["From"] == "Bharat CRM <owner@crm.example.in>"
    assert message["To"] == "Chaiwala Traders <owner@chaiwala.example>"
    assert message["Subject"] == "Your Bharat CRM trial has ended"
    assert message["Date"].datetime.isoformat() == "2026-01-31T18:30:00+00:00"
    assert message["Message-ID"] == f"<{NOTIFICATION}@crm.example.in>"
    assert message["Auto-Submitted"] == "auto-generated"
    for kind in ("plain", "html"):
        text = re.sub(r"<[^>]*>", "", body(message, kind))
        assert "the free trial of Chaiwala Traders (chaiwala-traders) on Bharat CRM ended" in text
        assert "31 January 2026, 00:00 UTC" in text
        assert "answer this e-mail" in text
    assert 'name="viewport"' in body(message, "html")


def test_replies_reach_the_operator() -> None:
    """Where the mail is from SMTP_FROM, because the operator has a free mailbox, answers go to that mailbox."""
    facts = read_tenant(FACTS)
    mail = contact_email("Bharat CRM", "crm@mail.example", "owner@gmail.com")
    made = mail.message(NOTIFICATION, facts.name, "owner@chaiwala.example", contact_values(facts), AT)
    message = message_from_bytes(made.content, policy=policy.default)
    assert (message["From"], message["Reply-To"]) == ("Bharat CRM <crm@mail.example>", "owner@gmail.com")
    assert contact()["Reply-To"] is None


def test_to_the_owner() -> None:
    """The summary names each tenant with its contact, says how many there are and when they were suspended."""
    message = owner(tenant(), tenant(name="Sweets & Co", slug="sweets", contact="s@s.example"))
    assert message["Subject"] == "Bharat CRM: 2 trials suspended"
    assert message["Auto-Submitted"] == "auto-generated"
    assert message["To"] == "owner@crm.example.in"
    text, html = body(message, "plain"), body(message, "html")
    assert "Suspended on 31 January 2026, 18:30 UTC: 2 trials that had ended." in text
    assert (
        "- Chaiwala Traders (chaiwala-traders), owner@chaiwala.example, ended 31 January 2026, 00:00 UTC\n"
        "- Sweets & Co (sweets), s@s.example, ended 31 January 2026, 00:00 UTC\n"
    ) in text
    assert "<li>Sweets &amp; Co (sweets), s@s.example, ended 31 January 2026, 00:00 UTC</li>" in html
    assert "<li>" not in text
    assert owner(tenant())["Subject"] == "Bharat CRM: 1 trial suspended"


@pytest.mark.parametrize(("shown", "count", "more"), [(LISTED, LISTED, 0), (LISTED, 20_000, 19_800), (3, 4, 1)])
def test_a_long_summary(shown: int, count: int, more: int) -> None:
    """Of many tenants the first 200 are listed and the rest is counted."""
    message = owner(*[tenant(slug=f"t-{number}") for number in range(shown)], count=count)
    for kind, item in (("plain", "- "), ("html", "<li>")):
        lines = [line for line in body(message, kind).splitlines() if line.startswith(item)]
        assert len(lines) == shown + bool(more)
        assert (f"and {more} more" in lines[-1]) == bool(more)


def test_no_more_than_listed() -> None:
    """A summary never shows more than 200 tenants, whatever its row holds."""
    assert "and 5 more" in body(owner(*[tenant()] * (LISTED + 5)), "plain")


HOSTILE = [
    "Chai\r\nBcc: victim@example.com",
    "Chai\n\n<script>alert(1)</script>",
    '<a href="https://evil.example">click</a>',
    "{{company}} {{ended}} {{name}}",
    "=?utf-8?b?QmNjOiB4?=",
    '"); DROP TABLE "Tenant"; --',
    "\u202eevil\u2066",
    "\x00\x1b[31m",
    "चाय वाला",
    "x" * 5000,
    "",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names(name: str) -> None:
    """A tenant's name adds no header, no line, no markup and no placeholder."""
    for message in (contact(name=name, slug=name), owner(tenant(name=name, slug=name, contact=name))):
        assert set(message.keys()) <= {
            "From", "To", "Subject", "Date", "Message-ID", "MIME-Version", "Content-Type", "Auto-Submitted",
        }  # fmt: skip
        text, html = body(message, "plain"), body(message, "html")
        assert "<script" not in html
        assert "evil.example" not in html or "&lt;a href=" in html
        assert len(text.splitlines()) == len(body(contact(), "plain").splitlines()) or "- " in text
        if "{{" in name:
            assert "{{company}} {{ended}} {{name}}" in text
            assert "{{company}} {{ended}} {{name}}" in html


def test_words_in_indian_scripts() -> None:
    """A name with joiners, which shape letters, arrives as it is."""
    name = "ക്\u200dഷ ന്\u200cമ"
    assert name in body(contact(name=name), "plain")


@given(st.text(max_size=300))
def test_one_line(text: str) -> None:
    """Whatever a name holds, one line of printable characters is shown, of at most 100."""
    shown = one_line(text, LONGEST_NAME)
    assert len(shown) <= LONGEST_NAME
    assert len(shown.splitlines()) <= 1
    assert all(char.isprintable() or char in "\u200c\u200d" for char in shown)
    assert one_line(shown, LONGEST_NAME) == shown


@given(st.text(max_size=50), st.text(max_size=50))
def test_any_name_makes_a_message(name: str, company: str) -> None:
    """Any tenant and any company make a message that can be read back."""
    message = contact(company=company, name=name)
    assert one_line(name, LONGEST_NAME) in body(message, "plain")
    assert owner(tenant(name=name))["Subject"] == "Bharat CRM: 1 trial suspended"


@pytest.mark.parametrize(
    ("iso", "words"),
    [
        ("2026-01-31T18:30:00", "31 January 2026, 18:30 UTC"),
        ("2026-12-01T00:00:59.999", "1 December 2026, 00:00 UTC"),
        ("2026-12-01T00:00:59.5", "1 December 2026, 00:00 UTC"),
        ("-infinity", "-infinity"),
        ("0044-03-15T00:00:00 BC", "0044-03-15T00:00:00 BC"),
    ],
)
def test_times(iso: str, words: str) -> None:
    """Times are written out; those that PostgreSQL knows and Python does not are shown as they are."""
    assert written_time(iso) == words


@pytest.mark.parametrize("address", ["", "asha", "a@b", "a b@c.in", "a@c.in\r\nRCPT TO:<x@y.in>"])
def test_bad_addresses(address: str) -> None:
    """An address that cannot be written to is refused before anything leaves."""
    mail = contact_email("Bharat CRM", "owner@crm.example.in")
    with pytest.raises(ValueError, match="not an e-mail address"):
        mail.message(NOTIFICATION, "Chai", address, contact_values(read_tenant(FACTS)), AT)


def test_saved_facts() -> None:
    """What a notification's row holds is read once, by name."""
    listed = [tenant(), tenant(name="Sweets")]
    chai = SuspendedTenant("Chaiwala Traders", "chaiwala-traders", "2026-01-31T00:00:00", user_id="u")
    assert read_tenant(FACTS) == chai
    summary = read_summary({"count": 7, "tenants": listed})
    assert summary == SuspensionSummary(7, [read_tenant(each) for each in listed])
    assert summary.tenants[0].contact == "owner@chaiwala.example"


@pytest.mark.parametrize("saved", [None, [], "x", {}, {"name": "x"}, {"count": 1}, {"count": 1, "tenants": None},
                                   {"count": 1, "tenants": [{}]}, {"count": None, "tenants": []}])  # fmt: skip
def test_saved_facts_of_another_version(saved: Any) -> None:
    """A row whose content has another form is refused with its reason."""
    for read in (read_tenant, read_summary):
        with pytest.raises(ValueError, match="its content cannot be read"):
            read(saved)


def test_the_outbox() -> None:
    """What "EmailLog" gets is what was sent."""
    values = contact_values(read_tenant(FACTS | {"name": "A & B"}))
    filed = contact_email("Bharat CRM", "owner@crm.example.in").copy(values)
    assert filed.sender == "owner@crm.example.in"
    assert filed.subject == "Your Bharat CRM trial has ended"
    assert "of A & B (" in filed.body
    assert filed.html
    assert "<strong>A &amp; B</strong>" in filed.html
