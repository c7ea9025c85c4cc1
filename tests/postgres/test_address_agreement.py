"""worker.address and Python call the same addresses one: both are fed the same inputs."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from urllib.parse import urlsplit

import idna
import phonenumbers
import psycopg2
import psycopg2.extensions
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sandbox.crm import apply_schema
from worker.content import invisible_characters as invisible
from worker.content.addresses import parse_address
from worker.content.phones import to_e164, whatsapp_id
from worker.runtime import migrations
from worker.runtime.db import Database

Connection = psycopg2.extensions.connection
KINDS = (phonenumbers.PhoneNumberType.MOBILE, phonenumbers.PhoneNumberType.FIXED_LINE)
WITHOUT_DATABASE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)


@pytest.fixture(scope="module")
def db(databases: object, template: str) -> Iterator[Connection]:
    with closing(psycopg2.connect(databases.url_of(template))) as connection:  # type: ignore[attr-defined]
        connection.autocommit = True
        yield connection


def in_sql(db: Connection, values: Iterable[str], expression: str) -> dict[str, str | None]:
    """What an SQL ``expression`` of the text ``v`` gives for each of ``values``."""
    with db.cursor() as cursor:
        cursor.execute(f"SELECT v, {expression} FROM unnest(%s::text[]) AS v", (list(values),))
        return dict(cursor.fetchall())


def email_keys(db: Connection, values: Iterable[str]) -> dict[str, str | None]:
    return in_sql(db, values, "worker.address('email', v, NULL)")


def phone_keys(db: Connection, values: Iterable[str], channel: str = "whatsapp") -> dict[str, str | None]:
    return in_sql(db, values, f"worker.address('{channel}', NULL, v)")


def called(value: str) -> str:
    return to_e164(value)[1:]


def one_on_whatsapp(value: str) -> str:
    """A number of Argentina is one with and without the 9 that its mobile phones have in WhatsApp."""
    return re.sub(r"^54([1-3][0-9]{9})$", r"549\1", called(value))


PHONE_CHANNELS = (("call", called), ("whatsapp", one_on_whatsapp))


def taken(read: Callable[[str], str], value: str) -> str | None:
    try:
        return read(value)
    except ValueError:
        return None


def assert_agreement(keys: dict[str, str | None], read: Callable[[str], str], canonical: bool = True) -> None:
    """What SQL calls one address Python sends to one address, or to none; and ``canonical``: the other way round."""
    groups = defaultdict(set)
    for value, key in keys.items():
        address = taken(read, value)
        groups[key].add(address)
        if canonical and address is not None:
            assert key == address, value
    assert {key: found for key, found in groups.items() if len(found) > 1 and key is not None} == {}


def test_invisible_characters(db: Connection) -> None:
    """Both know the same characters that show nothing."""
    with db.cursor() as cursor:
        cursor.execute("SELECT code FROM generate_series(0, 1114111) AS code WHERE worker.is_invisible(code)")
        assert {code for (code,) in cursor.fetchall()} == set(map(ord, invisible.CHARACTERS))


SAME_EMAIL = [
    ("info@bücher.example", "info@xn--bcher-kva.example"),
    ("info@bücher.example", "Info@BÜCHER.Example"),
    ("info@bücher.example", "info@bu\u0308cher.example"),
    ("info@bücher.example", "info@XN--BCHER-KVA.example"),
    ("info@bücher.example", "info@bü\u00adcher.example"),
    ("info@straße.example", "INFO@STRAẞE.example"),
    ("a@उदाहरण.भारत", "a@xn--p1b6ci4b4b3a.xn--h2brj9c"),
    ("a@क\u094d\u200dष.भारत", "a@xn--11b2ezcw70k.xn--h2brj9c"),
    ("a@例え.テスト", "a@例え。テスト"),
    ("a@example.com", "a@ｅｘａｍｐｌｅ．ｃｏｍ"),
    ("a@ΒΌΛΟΣ.gr", "a@βόλοσ.gr"),
    ("a@İstanbul.example", "a@i\u0307stanbul.example"),
    *[
        ("asha@x.example", written)
        for written in (
            " asha@x.example", "asha@x.example\t", "asha@x.example\r", "asha@x.example\r\n", "asha@x.example\u00a0",
            "\ufeffasha@x.example", "\u200basha@x.example", "asha@x.example\u2028", "\u202aasha@x.example\u202c",
            "\u2007\u034fasha@x.example\u200c\u00ad", "\x85asha@x.example\x1f", "\tAsha@X.Example \u3000",
        )
    ],
]  # fmt: skip
OTHER_EMAIL = [
    ("info@straße.example", "info@strasse.example"),
    ("a@क\u094d\u200dष.भारत", "a@क\u094dष.भारत"),
    ("a@βόλος.gr", "a@βόλοσ.gr"),
    ("asha@x.example", "asha@x.example."),
    ("asha@x.example", "as\u200bha@x.example"),
    ("asha@x.example", "asha@x․example"),
    ("asha@x.example", "asha x.example"),
]


@pytest.mark.parametrize(("one", "other"), SAME_EMAIL)
def test_one_email_address(db: Connection, one: str, other: str) -> None:
    """However it is written, it is one address to both."""
    keys = email_keys(db, [one, other])
    assert keys[one] == keys[other] == parse_address(one).lower() == parse_address(other).lower()


@pytest.mark.parametrize(("one", "other"), OTHER_EMAIL)
def test_two_email_addresses(db: Connection, one: str, other: str) -> None:
    """What is another address, or none, is no double."""
    keys = email_keys(db, [one, other])
    assert keys[one] != keys[other]
    assert taken(parse_address, one) != taken(parse_address, other)


def mapped_characters() -> list[str]:
    """Characters that UTS 46 changes or drops, and a good many that it keeps or forbids.

    Not those that an older idna library than the migration's does not know yet: it refuses them.
    """
    kept = [chr(code) for code in range(1, 0x3400) if unicodedata.category(chr(code)) != "Cn"]
    changed = []
    for code in [*range(0xA640, 0xD7FB), *range(0xF900, 0x30000), *range(0xE0000, 0xE0200)]:
        try:
            if idna.uts46_remap(chr(code), std3_rules=False) != chr(code):
                changed.append(chr(code))
        except idna.IDNAError:
            continue
    return kept + changed


@pytest.mark.parametrize("domain", ["{}.example", "x{}y.example", "x.{}"])
def test_every_character_in_a_domain(db: Connection, domain: str) -> None:
    """Each character that has a mapping, at the places of a label: the same address, or refused by both."""
    keys = email_keys(db, [f"a@{domain.format(char)}" for char in mapped_characters()])
    assert_agreement(keys, lambda value: parse_address(value).lower())


LABELS = st.text(
    st.sampled_from(
        "aB1-.ßẞüÜ\u0308\u0301\u0327\u0345\u0323eςΣάΆİıǅﬁｘ९कष्\u200d\u200cא٣०\u00ad例。😀ᄀ가ᅡ\u09be\u09c7"
    ),
    max_size=14,
)


@WITHOUT_DATABASE
@given(st.lists(st.tuples(st.sampled_from(["", " ", "\u00a0"]), LABELS), min_size=1, max_size=20))
@example([("", "á\u0323\u0327.例")])
@example([("", "ü" * 63), ("", "ü" * 59), ("", "a" * 62 + "ü"), ("", ".".join(["üb"] * 80))])
@example([("", "-ü-"), ("", "xn--ü"), ("", "ＸＮ--bcher-kva"), ("", "")])
def test_any_domain(db: Connection, parts: list[tuple[str, str]]) -> None:
    """Whatever is typed: what Python takes has in SQL the address that it goes to, and its double goes there, too."""
    values = {f"{space}Asha@{domain}{suffix}" for space, domain in parts for suffix in (".example", space)}
    assert_agreement(email_keys(db, values), lambda value: parse_address(value).lower())


SAME_PHONE = [
    ("+919876543211", written)
    for written in (
        "0919876543211", "+91 98765 43211", "9876543211", "09876543211", "00919876543211", "919876543211",
        "91 0 98765 43211", "+91 (0) 98765-43211", "(+91) 98765.43211", "९८७६५४३२११", "٩٨٧٦٥٤٣٢١١", "＋91 9876543211",
        "\u202a+91\u00a098765\u00a043211\u202c", "\ufeff9876543211\t", "9876543211.0", "919876543211.00",
        "9.876543211E9", "9.876543211e+09", "+91 91 98765 43211", "98765\u201343211", "98765/43211",
        "+91 9876543211.0", "98765 43211,000", "(+91) 98765\u201343211 .0", "９８７６５４３２１１.0",
        "＋91 9876543211.00",
    )
] + [
    ("+12025550123", "+1 (202) 555-0123"), ("+12025550123", "001 202 555 0123"),
    ("+12025550123", "+1 1 202 555 0123"),
    ("+4915123456789", "+49 15123456789.0"), ("+491512345678", "+49 151 2345678.000"),
    ("+4915123456789", "0049-15123456789,0"), ("+12025550123", "+1 2025550123.0"),
    ("+447700900123", "+44 (0)7700 900123"), ("+447700900123", "0044 07700 900123"),
    ("+447700900123", "+44 447700900123"), ("+971501234567", "+971 050 123 4567"),
    ("+79123456789", "+7 8 912 345-67-89"), ("+3612345678", "+36 06 1 234 5678"), ("+5491123456789", "5491123456789"),
]  # fmt: skip
OTHER_PHONE = [
    ("+18001234567", "1800 123 4567"),  # a number of America, and one that only Indian telephones dial
    ("+39669812345", "+39 (0)6 698 12345"),  # Italy's zero is a part of the number
    ("9876543210", "98765432.10"),
    ("+49151234567895", "+49 15123456789.5"),
    ("9876543210", "call 9876543210"),
    ("+989121234567", "000989121234567"),
    ("+14155552671", "14155552671"),
    ("9876543210", "98765432100"),
    ("+919876543210", "+91009876543210"),
]


@pytest.mark.parametrize(("one", "other"), SAME_PHONE)
def test_one_phone_number(db: Connection, one: str, other: str) -> None:
    """However it is written, it is one number to both, and its key is what it is sent to."""
    keys = phone_keys(db, [one, other])
    assert keys[one] == keys[other] == whatsapp_id(one) == whatsapp_id(other) == one.removeprefix("+")


@pytest.mark.parametrize(("one", "other"), OTHER_PHONE)
def test_two_phone_numbers(db: Connection, one: str, other: str) -> None:
    """What is another number, or none, is no double."""
    keys = phone_keys(db, [one, other])
    assert keys[one] != keys[other]
    assert taken(whatsapp_id, one) != taken(whatsapp_id, other)


def test_a_number_as_whatsapp_reports_it(db: Connection) -> None:
    """Mexico's number with the 1 of WhatsApp is the same person's as without, and both are sent to."""
    keys = phone_keys(db, ["+525512345678", "5215512345678", "+5215512345678", "+52 1 55 1234 5678"])
    assert set(keys.values()) == {"525512345678"}
    assert taken(whatsapp_id, "5215512345678") == "5215512345678"


def test_an_argentine_number_as_whatsapp_reports_it(db: Connection) -> None:
    """With the 9 of WhatsApp and without it is one person's, and both are sent to; to call, they are two numbers."""
    mobile, plain = ["5491123456789", "+54 9 11 2345-6789"], ["+541123456789", "0054 11 2345 6789"]
    assert set(phone_keys(db, mobile + plain).values()) == {"5491123456789"}
    assert {whatsapp_id(each) for each in mobile} == {"5491123456789"}
    assert {whatsapp_id(each) for each in plain} == {"541123456789"}
    assert set(phone_keys(db, mobile, "call").values()) == {"5491123456789"}
    assert set(phone_keys(db, plain, "call").values()) == {"541123456789"}
    assert set(phone_keys(db, ["+548101234567", "+541123456", "+5411234567890"]).values()) == {
        "548101234567",  # no area code begins like that
        "541123456",
        "5411234567890",
    }


@pytest.mark.parametrize(
    ("listed", "left"),
    [
        ([("541123456789", "provider", None)], [("5491123456789", "provider", None)]),
        (
            [("541123456789", "provider", None), ("5491123456789", "operator", None)],
            [("5491123456789", "operator", None), ("5491123456789", "provider", None)],
        ),
        (
            [("541123456789", "operator", None), ("5491123456789", "operator", "2030-01-01")],
            [("5491123456789", "operator", None)],
        ),
        (
            [("541123456789", "operator", "2029-01-01"), ("5491123456789", "operator", "2030-01-01")],
            [("5491123456789", "operator", "2030-01-01")],
        ),
        ([("525512345678", "operator", None)], [("525512345678", "operator", None)]),
    ],
)
def test_suppressed_argentine_numbers_are_renamed(
    crm_only_url: str,
    monkeypatch: pytest.MonkeyPatch,
    listed: list[tuple[str, str, str | None]],
    left: list[tuple[str, str, str | None]],
) -> None:
    """Who is on the list without the 9 stays on it, for as long as the entry that ends last; numbers to call stay."""
    everything = migrations.migrations()
    with closing(Database(crm_only_url, "test").connect()) as connection:
        monkeypatch.setattr(migrations, "migrations", lambda: [each for each in everything if each.version < 12])
        migrations.migrate(connection)
        with connection.cursor() as cursor:
            for channel in ("whatsapp", "call"):
                for address, source, until in listed:
                    cursor.execute(
                        """INSERT INTO worker.suppression
                               (tenant_id, channel, address, source, until, reason, created_at)
                           VALUES ('t', %s, %s, %s, %s, 'r', now())""",
                        (channel, address, source, until),
                    )
        monkeypatch.undo()
        migrations.migrate(connection)
        with connection.cursor() as cursor:
            statement = """SELECT channel, address, source, until::date::text FROM worker.suppression
                           ORDER BY channel, address, source"""
            cursor.execute(statement)
            found = cursor.fetchall()
    assert [tuple(rest) for channel, *rest in found if channel == "whatsapp"] == left
    assert {tuple(rest) for channel, *rest in found if channel == "call"} == set(listed)


def example_numbers() -> Iterator[tuple[str, str]]:
    """(calling code, number) of every region of the world, and some that are a digit too long or too short."""
    for region in sorted(phonenumbers.SUPPORTED_REGIONS):
        for kind in KINDS:
            number = phonenumbers.example_number_for_type(region, kind)
            if number is not None:
                code, national = str(number.country_code), phonenumbers.national_significant_number(number)
                for digits in (national, national + "7", national[:-1], national[:-1] + "5"):
                    yield code, digits


def test_numbers_of_the_world(db: Connection) -> None:
    """Numbers of every region, written in all the ways that people write: what is one in SQL is sent to as one."""
    spellings = [
        spelling
        for code, digits in example_numbers()
        for spelling in (
            f"+{code}{digits}", f"00{code}{digits}", f"+{code}0{digits}", f"+{code} (0) {digits}", f"{code}{digits}",
            f"+{code} {code}{digits}", f"+{code} 0 {code}{digits}", digits, f"0{digits}", f"0{code}{digits}",
            f"+{code}1{digits}", f"+{code}8{digits}", f"+91{digits}", f"910{digits}", f"91{code}{digits}",
        )
    ]  # fmt: skip
    for channel, read in PHONE_CHANNELS:
        assert_agreement(phone_keys(db, spellings, channel), read, canonical=False)


def test_the_usual_spellings_of_the_world(db: Connection) -> None:
    """Of mobile numbers every usual spelling has one key, which is what it is sent to."""
    one_length = {"1", "27", "33", "44", "61", "64", "65", "91", "94", "880", "966", "968", "971", "974", "977"}
    spellings = []
    for region in sorted(phonenumbers.SUPPORTED_REGIONS):
        number = phonenumbers.example_number_for_type(region, phonenumbers.PhoneNumberType.MOBILE)
        if number is not None:
            code, digits = str(number.country_code), phonenumbers.national_significant_number(number)
            spellings += [f"+{code}{digits}", f"00{code} {digits}", f"+{code}-{digits[:3]}-{digits[3:]}"]
            spellings += [f"+{code} {code}{digits}"] if code in one_length else []
    for channel, read in PHONE_CHANNELS:
        assert_agreement(phone_keys(db, spellings, channel), read)


@WITHOUT_DATABASE
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["", "+", "00", "0", "+91", "91", "091", "+1 ", "+52 1", "+971-", "+39 0", "521", "549"]),
            st.text(alphabet="0123456789 -.,eE+()x\u00a0९", min_size=1, max_size=14),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_any_phone_number(db: Connection, parts: list[tuple[str, str]]) -> None:
    """Whatever is typed: what is one number in SQL is one in Python."""
    for channel, read in PHONE_CHANNELS:
        assert_agreement(phone_keys(db, {prefix + rest for prefix, rest in parts}, channel), read, canonical=False)


def test_country_codes(db: Connection) -> None:
    """A number with its lead's country code is, sent to from SQL, the number that Python makes of the two."""
    written = [
        (number, prefix + code)
        for code, digits in example_numbers()
        for number in (digits, f"0{digits}", f"{code}{digits}", f"0{code}{digits}", f"+{code}{digits}", f"{digits}.0")
        for prefix in ("+", "00")
    ]
    with db.cursor() as cursor:
        cursor.execute(
            "SELECT n, c, worker.international(n, c) FROM unnest(%s::text[], %s::text[]) AS w (n, c)",
            ([number for number, _ in written], [code for _, code in written]),
        )
        wrong = [
            (number, code, made)
            for number, code, made in cursor.fetchall()
            if taken(to_e164, made) not in {taken(lambda raw, code=code: to_e164(raw, code), number), None}  # type: ignore[misc]
        ]
    assert wrong == []


@pytest.mark.parametrize(
    ("number", "code", "expected"),
    [
        ("(202) 555-0123", "+1", "+12025550123"),
        ("12025550123", "+1", "+12025550123"),
        ("07700 900123", "+44", "+447700900123"),
        ("447700900123", "44", "+447700900123"),
        ("0447700900123", "0044", "+447700900123"),
        ("050 123 4567", "+971 ", "+971501234567"),
        ("06 698 12345", "+39", "+390669812345"),
        ("8 912 345-67-89", "+7", "+79123456789"),
        ("733-1234", "+1-684", "+16847331234"),
        ("(684) 733-1234", "+1-684", "+16847331234"),
        ("5215512345678", "+52", "+5215512345678"),
        ("15123456789.0", "+49", "+4915123456789"),
        ("+44 7700 900123", "+1", "+44 7700 900123"),
        ("0044 7700 900123", "+1", "0044 7700 900123"),
        ("98765 43210", "+91", "98765 43210"),
        ("98765 43210", "", "98765 43210"),
        ("98765 43210", " +", "98765 43210"),
        ("98765 43210", None, "98765 43210"),
        ("n/a", "+1", None),
        ("", "+1", None),
        (None, "+1", None),
    ],
)
def test_a_number_with_a_country_code(
    db: Connection, number: str | None, code: str | None, expected: str | None
) -> None:
    """A country code applies to a number that does not name its own; without one it is Indian."""
    with db.cursor() as cursor:
        cursor.execute("SELECT worker.international(%s, %s)", (number, code))
        assert cursor.fetchall() == [(expected,)]


@pytest.mark.parametrize("code", ["US", "0", "+0", "12345678", "x", "+1 or +44"])
def test_a_country_code_that_cannot_be_read(db: Connection, code: str) -> None:
    """The number is not sent to: taken for an Indian one it would be a stranger's."""
    with db.cursor() as cursor:
        cursor.execute("SELECT worker.international('(202) 555-0123', %s)", (code,))
        ((made,),) = cursor.fetchall()
    assert code in made
    with pytest.raises(ValueError, match="not a phone number"):
        to_e164(made)


@pytest.mark.parametrize("length", [100_000, 1_000_000])
def test_long_inputs(db: Connection, length: int) -> None:
    """What is far too long for an address is refused by both, at once, and is nobody's double."""
    for read, keys in ((parse_address, email_keys), (whatsapp_id, phone_keys)):
        for value in ("ü" * length, " " * length + "9876543210", "9" * length, "a@" + "ü." * (length // 2)):
            assert taken(read, value) is None
            assert keys(db, [value])[value] in {value, None}


def test_remembered_addresses_are_renamed(crm_only_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who opted out before the addresses got their new spelling is still found, and once."""
    everything = migrations.migrations()
    remembered = [
        ("email", "info@bücher.example"), ("email", "info@xn--bcher-kva.example"), ("email", "asha@x.example\t"),
        ("email", "plain@x.example"), ("whatsapp", "4407700900123"), ("whatsapp", "919876543210"),
        ("call", "91919876543211"), ("call", "0"),
    ]  # fmt: skip
    with closing(Database(crm_only_url, "test").connect()) as connection:
        monkeypatch.setattr(migrations, "migrations", lambda: everything[:4])
        migrations.migrate(connection)
        with connection.cursor() as cursor:
            for channel, address in remembered:
                cursor.execute("INSERT INTO worker.suppression VALUES ('t', %s, %s, 'r', now())", (channel, address))
        monkeypatch.undo()
        migrations.migrate(connection)
        with connection.cursor() as cursor:
            cursor.execute("SELECT channel, address FROM worker.suppression")
            found = cursor.fetchall()
    assert sorted(found) == [
        ("call", "0"),
        ("call", "919876543211"),
        ("email", "asha@x.example"),
        ("email", "info@xn--bcher-kva.example"),
        ("email", "plain@x.example"),
        ("whatsapp", "447700900123"),
        ("whatsapp", "919876543210"),
    ]


def test_a_database_without_an_encoding(postgres_url: str) -> None:
    """SQL_ASCII knows no characters: addresses as keyboards write them are told all the same."""
    url = urlsplit(postgres_url)._replace(path="/crm_test_addresses").geturl()
    with closing(psycopg2.connect(postgres_url)) as server:
        server.autocommit = True
        server.cursor().execute(
            "CREATE DATABASE crm_test_addresses ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0"
        )
        try:
            with closing(psycopg2.connect(url)) as connection:
                connection.set_client_encoding("UTF8")
                apply_schema(connection)
            with closing(Database(url, "test").connect()) as connection:
                migrations.migrate(connection)
                emails = email_keys(connection, ["a@bücher.example", "A@BÜCHER.example\u00a0", "\\a@ü.example"])
                assert emails["a@bücher.example"] == emails["A@BÜCHER.example\u00a0"] == "a@xn--bcher-kva.example"
                phones = phone_keys(connection, ["९८७६५४३२१०", "\u202a98765\u00a043210", "à9876543210"])
                assert phones["९८७६५४३२१०"] == phones["\u202a98765\u00a043210"] == "919876543210"
                assert phones["à9876543210"] == "à9876543210"
                with connection.cursor() as cursor:
                    cursor.execute("SELECT worker.address('email', 'a@' || chr(228), chr(228))")  # no UTF-8 at all
        finally:
            server.cursor().execute("DROP DATABASE crm_test_addresses WITH (FORCE)")
