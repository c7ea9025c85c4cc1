"""The standard library's parser reads every message back as what was put in."""

import re
from base64 import b64decode
from datetime import UTC, datetime, timedelta, timezone
from email import message_from_bytes, policy
from email.header import decode_header, make_header
from email.message import EmailMessage
from email.utils import unquote
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from worker.content.mime import EmailSkeleton
from worker.content.placeholders import RECIPIENT_ID_SLOT, Template
from worker.content.unsubscribe_link import UnsubscribeLink

WHEN = datetime(2026, 1, 31, 9, 30, tzinfo=timezone(timedelta(hours=5, minutes=30)))
ASHA = {"name": "Asha", "email": "asha@example.com", "phone": "+919876543210", "recipient_id": "r-1"}
MESSAGE_ID = "<r-1@example.com>"

CONTROLS = [*map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0)), "\u2028", "\u2029"]
ANY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=400)
# Pieces that have broken mail programs before.
AWKWARD = st.lists(
    st.sampled_from(
        [
            "\r",
            "\n",
            "\r\n",
            ".",
            "From ",
            "=",
            "=?utf-8?q?x?=",
            "é",
            "आशा ",
            "😀",
            " ",
            "\t",
            "a" * 80,
            "\x0b",
            "\x85",
            ",",
        ]
    ),
    max_size=40,
).map("".join)
BODIES = ANY | AWKWARD


def skeleton(
    subject: str = "Hello {{name}}", text: str = "Dear {{name}},", html: str | None = None, **more: Any
) -> EmailSkeleton:
    settings = {"from_name": "Bharat CRM", "from_email": "crm@example.com", "boundary_seed": "c-1", **more}
    return EmailSkeleton(Template(subject), Template(text), None if html is None else Template(html), **settings)


def build(made: EmailSkeleton, to_name: str = "Asha", **values: str) -> bytes:
    content = made.build(to_name, "asha@example.com", {**ASHA, "name": to_name, **values}, MESSAGE_ID, WHEN)
    assert_fit_for_the_wire(content)
    return content


def read(content: bytes) -> EmailMessage:
    message = message_from_bytes(content, policy=policy.default)
    assert isinstance(message, EmailMessage)
    assert not [part.defects for part in message.walk() if part.defects]
    return message


def assert_fit_for_the_wire(content: bytes) -> None:
    assert content.endswith(b"\r\n")
    assert content.isascii()
    assert b"\0" not in content
    assert not re.search(rb"\r(?!\n)|(?<!\r)\n", content)
    assert not re.search(rb"^(\.|From )", content, re.MULTILINE)
    head, body = content.split(b"\r\n\r\n", 1)
    assert not re.search(rb"[ \t]\r\n", body)  # mail servers remove white space there (RFC 2045 6.7)
    assert max(map(len, body.split(b"\r\n"))) <= 76
    assert all(len(line) <= 78 for line in head.split(b"\r\n") if not line.startswith(b"List-Unsub"))
    for word in re.findall(rb"=\?utf-8\?b\?\S+\?=", head):
        assert len(word) <= 75
        b64decode(word[10:-2], validate=True).decode("utf-8")  # each has whole characters (RFC 2047 5)


def lines(text: str) -> str:
    """``text`` with one kind of line end."""
    return re.sub(r"\r\n|\r", "\n", text)


def one_line(text: str) -> str:
    """``text`` as it may stand in a header field."""
    return "".join(" " if char in CONTROLS else char for char in text).strip(" ")


def display_name(field: str, address: str) -> str:
    """The display name by RFC 2047's rules (the structured parser of Python 3.11 keeps the space between words)."""
    raw = field.replace("\r\n", "").removesuffix(f"<{address}>").strip(" ")
    return str(make_header(decode_header(raw))) if "=?" in raw else unquote(raw)


def body(message: EmailMessage, kind: str) -> str:
    part = message.get_body((kind,))
    assert part is not None
    return lines(part.get_payload(decode=True).decode("utf-8"))


def test_a_message_has_all_its_fields_and_both_bodies_text_first() -> None:
    made = skeleton(html="<p>Dear {{name}}</p>", reply_to="reply@example.com")
    message = read(build(made))
    assert message["From"].addresses[0].display_name == "Bharat CRM"
    assert message["From"].addresses[0].addr_spec == made.from_email == "crm@example.com"
    assert str(message["To"]) == "Asha <asha@example.com>"
    assert message["Subject"] == "Hello Asha"
    assert message["Date"].datetime == WHEN
    assert message["Message-ID"] == MESSAGE_ID
    assert message["Reply-To"] == "reply@example.com"
    assert message["MIME-Version"] == "1.0"
    assert message["List-Unsubscribe"] is None
    assert message.get_content_type() == "multipart/alternative"
    assert [part.get_content_type() for part in message.iter_parts()] == ["text/plain", "text/html"]
    assert [part.get_content() for part in message.iter_parts()] == ["Dear Asha,", "<p>Dear Asha</p>"]
    assert [len(message.get_all(name)) for name in set(message.keys())] == [1] * len(message.keys())


@pytest.mark.parametrize("html", [None, "", " \n"])
def test_without_html_a_message_is_plain_text(html: str | None) -> None:
    message = read(build(skeleton(html=html)))
    assert message.get_content_type() == "text/plain"
    assert message.get_content() == "Dear Asha,\r\n"


@given(BODIES, BODIES, BODIES)
@example(text="x" * 10_000 + "\n.\n..\nFrom me\r\n.", html="<p>" + "y" * 10_000, name=".")
@example(text="नमस्ते " * 500, html="<p>" + "आ" * 3_000 + "</p>", name="From आशा")
@example(text="", html="", name="From me")
@example(text="a \r b\t\n c", html="<p>é</p>\r\r\n\n", name=" \r\n ")
def test_any_body_with_any_value_reads_back_as_it_was(text: str, html: str, name: str) -> None:
    made = skeleton("s", f"<{text}|{{{{name}}}}|{text}", f"<p>{html}</p>{{{{name}}}}.{html}")
    message = read(build(made, "Asha", name=name))
    template = Template(f"<p>{html}</p>{{{{name}}}}.{html}")
    assert body(message, "plain") == lines(f"<{text}|{name}|{text}")
    assert body(message, "html") == lines(template.fill_html({"name": name}))


@given(BODIES)
@example("Dear {{name}}")
@example("आशा " * 50)
def test_any_text_alone_reads_back(text: str) -> None:
    expected = Template(lines(text)).fill(ASHA)
    # Quoted-printable text gets the line end that the message has to end with.
    assert body(read(build(skeleton("s", text))), "plain") in {expected, expected + "\n"}


@given(BODIES, BODIES)
@example(fixed="", name="=?utf-8?q?x?=")
@example(fixed="word " * 60, name="x")
@example(fixed="a  b" * 60, name="x")
@example(fixed="\u0301" * 60, name="😀" * 60)
def test_any_subject_reads_back_without_controls(fixed: str, name: str) -> None:
    for subject in ("{{name}}", fixed + "{{name}}", fixed):
        raw = message_from_bytes(build(skeleton(subject), name), policy=policy.compat32)["Subject"]
        got = str(make_header(decode_header(re.sub(r"\r\n(?=[ \t])", "", raw))))
        assert got == one_line(Template(subject).fill({"name": name}))


@pytest.mark.parametrize("subject", ["Diwali – 20% छूट for {{name}} " * 6, "plain words " * 20, "x" * 300])
def test_long_subjects_read_back_with_the_modern_parser_too(subject: str) -> None:
    message = read(build(skeleton(subject)))
    assert message["Subject"] == subject.replace("{{name}}", "Asha").strip()


@given(BODIES)
@example(name='Asha "the boss", Devi <x@y.z>\\')
@example(name="=?utf-8?q?x?=")
@example(name="अधिवक्ता " * 20)
@example(name="J. R. D.")
def test_any_recipient_name_reads_back_without_controls(name: str) -> None:
    raw = message_from_bytes(build(skeleton(), name), policy=policy.compat32)["To"]
    expected = one_line(name)
    if expected:
        assert raw.endswith("<asha@example.com>")
        assert display_name(raw, "asha@example.com") == expected
    else:
        assert raw == "asha@example.com"
    assert [a.addr_spec for a in read(build(skeleton(), name))["To"].addresses] == ["asha@example.com"]


@given(BODIES)
@example(name="=?utf-8?q?x?= & co")
@example(name="000" + "\xa0\u0800" * 30)
def test_any_sender_name_reads_back_without_controls(name: str) -> None:
    content = build(skeleton(from_name=name))
    raw = message_from_bytes(content, policy=policy.compat32)["From"]
    expected = one_line(name)
    assert (display_name(raw, "crm@example.com") if expected else raw) == (expected or "crm@example.com")
    assert [address.addr_spec for address in read(content)["From"].addresses] == ["crm@example.com"]


@pytest.mark.parametrize("end", ["\r\n", "\n", "\r", "\0\n", "\x0b", "\x85", "\u2028"])
def test_nothing_injects_a_header(end: str) -> None:
    evil = f"x{end}Bcc: victim@example.com{end}{end}body"
    made = skeleton("{{name}}", from_name=evil, html="<p>", unsubscribe=UnsubscribeLink("https://x.in/?{{name}}"))
    content = made.build(evil, "asha@example.com", {**ASHA, "name": evil}, MESSAGE_ID, WHEN)
    message = read(content)
    assert message["Bcc"] is None
    assert b"\r\nBcc:" not in content.split(b"\r\n\r\n")[0]
    assert message.get_content_type() == "multipart/alternative"
    for bad in (
        {"from_email": f"a@b.in{end}x"},
        {"reply_to": evil},
        {"unsubscribe": UnsubscribeLink(f"https://x{end}")},
    ):
        with pytest.raises(ValueError, match=r"not an"):
            skeleton(**bad)
    assert skeleton(from_email=f"a@b.in{end}").from_email == "a@b.in"
    with pytest.raises(ValueError, match="not an e-mail address"):
        made.build("x", f"a@b.in{end}x", ASHA, MESSAGE_ID, WHEN)
    ending = made.build("x", f"a@b.in{end}", ASHA, MESSAGE_ID, WHEN)
    assert ending.startswith(b"To: x <a@b.in>\r\nSubject:") or b"\r\nTo: x <a@b.in>\r\nSubject:" in ending
    with pytest.raises(ValueError, match="not a Message-ID"):
        made.build("x", "a@b.in", ASHA, f"<a@b{end}>", WHEN)


def test_mostly_ascii_text_stays_readable_and_hindi_is_sent_as_base64() -> None:
    message = read(build(skeleton(html="<p>" + "नमस्ते " * 50 + "{{name}}</p>")))
    plain, html = message.iter_parts()
    assert plain["Content-Transfer-Encoding"] == "quoted-printable"
    assert html["Content-Transfer-Encoding"] == "base64"
    assert html.get_content().endswith("Asha</p>")


def test_a_value_with_markup_in_it_is_escaped_in_html_only() -> None:
    message = read(build(skeleton(html='<a href="x?{{name}}">{{name}}</a>'), "A & <B>"))
    assert body(message, "plain") == "Dear A & <B>,"
    assert body(message, "html") == '<a href="x?A%20%26%20%3CB%3E">A &amp; &lt;B&gt;</a>'


def test_a_blank_text_is_derived_from_the_html_and_personal_like_it() -> None:
    html = (
        "<head><title>T</title><style>p{}</style></head><body><!-- c --><h1>Hi&nbsp;{{name}}</h1>\n"
        "<p>See <a href='https://x.in/?a=1&amp;b=2'>our <b>offer</b></a>,<br>now</p><ul><li>one<li>two</ul>"
        f"<a href='https://c.in/l/x?r={RECIPIENT_ID_SLOT}'><img src=x alt='Shop &amp; save'></a>"
        "<a href='mailto:a@b.in'>Write</a></body>"
    )
    message = read(build(skeleton(text=" \n", html=html)))
    assert body(message, "plain") == (
        "Hi Asha\n\nSee our offer (https://x.in/?a=1&b=2),\nnow\n\n- one\n- two\n\n"
        "Shop & save (https://c.in/l/x?r=r-1)Write"
    )


def test_the_boundary_comes_from_the_seed_and_no_content_can_hold_it() -> None:
    first = read(build(skeleton(html="<p>")))
    boundary = first.get_boundary()
    assert boundary == read(build(skeleton(html="<p>"))).get_boundary()
    assert boundary != read(build(skeleton(html="<p>", boundary_seed="c-2"))).get_boundary()
    evil = f"\r\n--{boundary}--\r\n"
    message = read(build(skeleton(text=f"x{evil}y{{{{name}}}}", html=f"<p>{evil}z"), "Asha", name=evil))
    assert [part.get_content_type() for part in message.iter_parts()] == ["text/plain", "text/html"]
    assert body(message, "plain") == lines(f"x{evil}y{evil}")


def test_https_unsubscribing_takes_one_click() -> None:
    url = f"https://x.in/u?e={{{{email}}}}&r={RECIPIENT_ID_SLOT}"
    message = read(build(skeleton(unsubscribe=UnsubscribeLink(url)), email="a+b@x.in"))
    assert message["List-Unsubscribe"] == "<https://x.in/u?e=a%2Bb%40x.in&r=r-1>"
    assert message["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"


@pytest.mark.parametrize("url", ["mailto:u@x.in?subject=stop", "http://x.in/u"])
def test_other_unsubscribing_does_not(url: str) -> None:
    message = read(build(skeleton(unsubscribe=UnsubscribeLink(url))))
    assert message["List-Unsubscribe"] == f"<{url}>"
    assert message["List-Unsubscribe-Post"] is None


@pytest.mark.parametrize("url", ["javascript:x", "https://x.in/ y", "https://x>, <https://y", "https://" + "x" * 900])
def test_an_unsubscribe_url_that_cannot_be_a_header_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="to unsubscribe at"):
        skeleton(unsubscribe=UnsubscribeLink(url))


def test_an_unsubscribe_url_made_too_long_by_its_values_is_left_out() -> None:
    message = read(build(skeleton(unsubscribe=UnsubscribeLink("https://x.in/{{name}}")), "आ" * 200))
    assert message["List-Unsubscribe"] is None
    assert message["List-Unsubscribe-Post"] is None


def test_a_date_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="time zone"):
        skeleton().build("x", "a@b.in", ASHA, MESSAGE_ID, datetime.now(UTC).replace(tzinfo=None))


def test_the_same_recipient_gets_the_same_bytes() -> None:
    assert build(skeleton(html="<p>{{name}}")) == build(skeleton(html="<p>{{name}}"))
