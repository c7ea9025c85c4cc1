"""Addresses that mail can go to pass, all others are refused with a reason a user understands."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.content.addresses import message_id_for, parse_address


@pytest.mark.parametrize(
    ("raw", "address"),
    [
        ("asha@example.com", "asha@example.com"),
        ("  asha@example.com ", "asha@example.com"),
        ("o'brien+crm_1@Mail.Example.co.in", "o'brien+crm_1@Mail.Example.co.in"),
        ("a@bücher.example", "a@xn--bcher-kva.example"),
        ("a@उदाहरण.भारत", "a@xn--p1b6ci4b4b3a.xn--h2brj9c"),
        ("info@straße.example", "info@xn--strae-oqa.example"),
        ("info@STRASSE.example", "info@STRASSE.example"),
        ("info@BÜCHER.example", "info@xn--bcher-kva.example"),
        ("info@bu\u0308cher.example", "info@xn--bcher-kva.example"),
        ("info@xn--bcher-kva.example", "info@xn--bcher-kva.example"),
        ("a@βόλος.com", "a@xn--nxasmm1c.com"),  # the example of UTS 46
        ("a@क\u094d\u200dष.भारत", "a@xn--11b2ezcw70k.xn--h2brj9c"),
        ("a@क\u094dष.भारत", "a@xn--11b2ezc.xn--h2brj9c"),
        ("a@例え。テスト", "a@xn--r8jz45g.xn--zckzah"),
        ("a@ｅｘａｍｐｌｅ．ｃｏｍ", "a@example.com"),
        ("a@ab--cd.bücher.example", "a@ab--cd.xn--bcher-kva.example"),
        ("a@example.com\n", "a@example.com"),
        ("\t\r\n a@example.com\u00a0\u2007", "a@example.com"),
        ("\ufeffa@example.com", "a@example.com"),
        ("\u200ba@example.com\u200d\u2060", "a@example.com"),
        ("\u202aa@example.com\u202c\u2028", "a@example.com"),
        (" " * 400 + "a@example.com" + " " * 400, "a@example.com"),
        ("a" * 64 + "@example.com", "a" * 64 + "@example.com"),
        ("a@1and1.xn--p1ai", "a@1and1.xn--p1ai"),
        ("a@3m.4g", "a@3m.4g"),
    ],
)
def test_addresses_that_mail_can_go_to_come_out_bare_and_ascii(raw: str, address: str) -> None:
    assert parse_address(raw) == address


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("", "no @"),
        ("asha", "no @"),
        ("a@b@example.com", "more than one @"),
        ("आशा@example.com", "plain Latin letters"),
        ("asha devi@example.com", "before the @"),
        ("Asha <asha@example.com", "before the @"),
        ('"a"@example.com', "before the @"),
        (".a@example.com", "before the @"),
        ("a..b@example.com", "before the @"),
        ("a.@example.com", "before the @"),
        ("@example.com", "before the @"),
        ("a@", "not a domain"),
        ("a@localhost", "not a domain"),
        ("a@example..com", "not a domain"),
        ("a@-x.com", "not a domain"),
        ("a@x-.com", "not a domain"),
        ("a@x_y.com", "not a domain"),
        ("a@1.2.3.4", "not a domain"),
        ("a@[1.2.3.4]", "not a domain"),
        ("a@example.com>", "not a domain"),
        ("a@exa\rmple.com", "not a domain"),
        ("a@example.com\nb", "not a domain"),
        ("a\u00a0b@example.com", "plain Latin letters"),
        ("a@bücher\n.example", "not a domain"),
        ("a@☃.example", "not a domain"),
        ("a@क\u200dष.भारत", "not a domain"),  # a joiner that joins nothing
        ("a@-ü.example", "not a domain"),
        ("a@ü..example", "not a domain"),
        ("a@example.com" + " " * 1000, "longer than"),
        ("a@example.com, b@example.com", "more than one @"),
        ("a@b\uff20c.example", "not a domain"),
        ("a@" + "x" * 64 + ".com", "not a domain"),
        ("a@" + "ü" * 80 + ".com", "not a domain"),
        ("a" * 65 + "@example.com", "longer than"),
        ("a@" + "x." * 126 + "com", "longer than"),
    ],
)
def test_all_others_are_refused_with_a_reason(raw: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r"^not an e-mail address: ") as caught:
        parse_address(raw)
    assert reason in str(caught.value)
    assert str(caught.value).isprintable()


@given(st.text() | st.from_regex(r"[a-z.]{1,70}@[a-z.ü\n ]{1,20}"))
def test_what_passes_is_safe_in_a_header_and_on_an_smtp_line(raw: str) -> None:
    try:
        address = parse_address(raw)
    except ValueError:
        return
    assert address.isascii()
    assert not set(address) & set(' \t\r\n\0<>,;:"()[]\\')
    assert address.count("@") == 1
    assert len(address) <= 254


def test_the_message_id_is_the_recipient_at_the_senders_domain_every_time() -> None:
    assert message_id_for("6f1b-9", "crm@Mail.Example.com") == "<6f1b-9@mail.example.com>"
    assert message_id_for("6f1b-9", "crm@bücher.example") == "<6f1b-9@xn--bcher-kva.example>"


def test_a_recipient_id_that_could_not_stand_in_a_message_id_is_hashed() -> None:
    made = message_id_for("a b>\r\nBcc: x", "crm@example.com")
    assert made == message_id_for("a b>\r\nBcc: x", "crm@example.com") != message_id_for("a b", "crm@example.com")
    assert set(made.removesuffix("@example.com>").removeprefix("<")) <= set("0123456789abcdef")
