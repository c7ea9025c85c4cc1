"""Phone numbers reach the providers in one form however people typed them."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from worker.content.phones import to_e164, whatsapp_id


@pytest.mark.parametrize(
    "raw",
    [
        "9876543210",
        "98765 43210",
        "+91-98765-43210",
        "0091 98765 43210",
        "09876543210",
        "(0)98765.43210",
        "919876543210",
        "\u202a+91 98765\u00a043210\u202c",
        "९८७६५४३२१०",
        "\uff0b91 9876543210",
        "0919876543210",
        "0 91 98765 43210",
        "+91 0 98765 43210",
        "+91 91 98765 43210",
        "\ufeff98765\u202843210\u00a0",
        "9876543210.0",
        "+919876543210.00",
        "919876543210,0",
        "+91 9876543210.0",
        "98765-43210.000",
        "\uff0b91 98765 43210,0",
        "9.876543210E9",
        "9,876543210e+09",
    ],
)
def test_an_indian_number_comes_out_the_same_however_it_is_typed(raw: str) -> None:
    assert to_e164(raw) == "+919876543210"
    assert whatsapp_id(raw) == "919876543210"


@pytest.mark.parametrize(
    ("raw", "country_code", "expected"),
    [
        ("9198765432", "+91", "+919198765432"),
        ("911234567890", "+91", "+911234567890"),
        ("65 7417 2985", "+65", "+6574172985"),
        ("9876543210", "91", "+919876543210"),
        ("+1 (415) 555-2671", "+91", "+14155552671"),
        ("415 555 2671", "+1", "+14155552671"),
        ("07911 123456", "0044", "+447911123456"),
        ("050 123 4567", "+971", "+971501234567"),
        ("733 1234", "+1-684", "+16847331234"),
        ("+91 98765 43210", "nonsense", "+919876543210"),
        ("+39 06 698 12345", "+91", "+390669812345"),
        ("1800 123 4567", "+91", "+9118001234567"),
        ("01.42.68.53.00", "+33", "+33142685300"),
        ("447700900123", "+44", "+447700900123"),
        ("0447700900123", "+44", "+447700900123"),
        ("+44 447700900123", "+91", "+447700900123"),
        ("4915123456789", "+49", "+4915123456789"),
        ("15123456789.0", "+49", "+4915123456789"),
        ("8123456789.0", "+62", "+628123456789"),
        ("1.5123456789E10", "+49", "+4915123456789"),
        ("(684) 733-1234", "+1-684", "+16847331234"),
        ("011 91 98765 43210", "+1", "+919876543210"),
        ("9876543210", "+९१", "+919876543210"),
    ],
)
def test_a_number_is_read_as_in_its_country_unless_it_names_another(
    raw: str, country_code: str, expected: str
) -> None:
    assert to_e164(raw, country_code) == expected


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "   ",
        "abc",
        "12345",
        "98765432101",
        "987654321",
        "9876543210 / 9876543211",
        "call 9876543210",
        "+",
        "+91",
        "+0 98",
        "98765432.10",
        "9876543210.5",
        "9.8765E9",
        "9.87654321E9",
        "9.8765432105E9",
        "98765432100.0",
        "9" * 100_000,
        " " * 1000 + "9876543210",
    ],
)
def test_what_cannot_be_dialled_is_refused_with_a_reason(raw: str) -> None:
    with pytest.raises(ValueError, match="not a phone number"):
        to_e164(raw)


@pytest.mark.parametrize("country_code", ["", "IN", "+", "0"])
def test_a_country_code_that_is_none_is_named(country_code: str) -> None:
    with pytest.raises(ValueError, match="not a country code"):
        to_e164("9876543210", country_code)


@given(
    st.sampled_from(["", "+", "00", "0", "+91", "91", "+1 ", "+971-"]),
    st.text(alphabet="0123456789 -", min_size=7, max_size=13),
)
@example("+", "911234567890")
@example("+91", "0017729 8866")
def test_whatever_comes_out_is_e164_and_stays_what_it_is(prefix: str, rest: str) -> None:
    try:
        number = to_e164(prefix + rest)
    except ValueError:
        return
    assert number[0] == "+"
    assert number[1:].isdecimal()
    assert 6 <= len(number) <= 16
    assert to_e164(number) == number


@given(st.integers(6_000_000_000, 9_999_999_999))
def test_every_ten_digit_indian_mobile_number_is_taken(number: int) -> None:
    assert to_e164(str(number)) == f"+91{number}"
    assert to_e164(f"0{number}") == f"+91{number}"


@pytest.mark.parametrize(
    ("raw", "country_code", "expected"),
    [
        ("5215512345678", "+91", "5215512345678"),
        ("+5215512345678", "+52", "5215512345678"),
        ("+52 1 55 1234 5678", "+91", "5215512345678"),
        ("55 1234 5678", "+52", "525512345678"),
        ("5491123456789", "+91", "5491123456789"),
        ("+54 9 11 2345-6789", "+54", "5491123456789"),
        ("+553187654321", "+91", "553187654321"),
    ],
)
def test_a_number_is_sent_to_as_whatsapp_reports_it(raw: str, country_code: str, expected: str) -> None:
    assert whatsapp_id(raw, country_code) == expected


@given(
    st.sampled_from(["521", "549"]),
    st.from_regex(r"[1-9][0-9]{9}", fullmatch=True),
    st.sampled_from(["", "+", "00"]),
    st.sampled_from(["+91", "+52", "+54", "+1"]),
)
def test_every_id_that_whatsapp_reports_is_sent_to_as_it_is(
    prefix: str, rest: str, written: str, country_code: str
) -> None:
    """Also one in a range that the metadata do not know, and whatever country its lead is said to be in."""
    assert whatsapp_id(f"{written}{prefix}{rest}", country_code) == prefix + rest


def test_a_mexican_number_is_called_without_the_1_that_only_whatsapp_writes() -> None:
    assert to_e164("5215512345678") == to_e164("1 55 1234 5678", "+52") == "+525512345678"
