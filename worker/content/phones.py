"""Phone numbers as people type them, brought to E.164 (ITU-T) for Twilio and WhatsApp.

Whether a number has a length that its country uses is decided here; whether anybody has it is for the
provider to say, who knows the ranges that were opened last month. worker.address in the database finds double
numbers: what it takes for one number is one number here, too, but for the 9 of Argentina's mobile numbers, without
which they are one person's on WhatsApp (tests/postgres/test_address_agreement.py).
"""

import re

import phonenumbers
from phonenumbers import PhoneNumber, PhoneNumberFormat, PhoneNumberType, ValidationResult

from worker.content import invisible_characters as invisible

LONGEST_WRITTEN = 1000  # characters; what is longer is refused before it is looked at

# What people put between digits, points aside: white space, slashes, brackets, and hyphens and dashes of all kinds,
# with the invisible marks that come along from web pages and address books.
_BETWEEN = re.compile(f"[{invisible.CLASS}/()\\[\\]\\-\u2010-\u2015\u2212\uff0d]+")
_NUMBER = re.compile(r"(\+|00)?([0-9]{4,20})")
_CALLING_CODE = re.compile(r"(?:\+|00)?([1-9][0-9]{0,6})")

# The zeros of the scripts that numbers are written in; nine more digits follow each.
_ZEROS = (
    0x0660, 0x06F0, 0x07C0, 0x0966, 0x09E6, 0x0A66, 0x0AE6, 0x0B66, 0x0BE6, 0x0C66, 0x0CE6, 0x0D66, 0x0DE6, 0x0E50,
    0x0ED0, 0x0F20, 0x1040, 0x1090, 0x17E0, 0x1810, 0x1946, 0x19D0, 0x1A80, 0x1A90, 0x1B50, 0x1BB0, 0x1C40, 0x1C50,
    0xA620, 0xA8D0, 0xA900, 0xA9D0, 0xA9F0, 0xAA50, 0xABF0, 0xFF10,
)  # fmt: skip
_PLAIN = {zero + value: str(value) for zero in _ZEROS for value in range(10)} | {0xFF0B: "+"}

# A number that a spreadsheet or a program kept as a float: 9876543210.0, 9.876543210E9, also with its country code
# put before it. One point, so that a number written with points (01.42.68.53.00) is none.
_FLOAT = re.compile(r"((?:\+|00)?[0-9]{7,20})[.,]([0-9]{1,2}|0{3,20})")
_POWER = re.compile(r"\+?([0-9])(?:[.,]([0-9]{1,20}))?[eE]\+?([0-9]{1,2})")

# Numbers as WhatsApp reports them, whose country dials them otherwise: Mexico's mobile numbers with the 1 of before
# 2019. They and Argentina's (with a 9, as in E.164) are told by their length, also without a plus sign.
_MEXICAN_ID = re.compile(r"521([0-9]{10})")
_REPORTED_ID = re.compile(r"(?:521|549)[0-9]{10}")


def to_e164(raw: str, country_code: str = "+91") -> str:
    """``+919876543210`` for ``98765 43210``: see ``phone_number``. Raises ValueError with the reason."""
    return e164(phone_number(raw, country_code))


def e164(number: PhoneNumber) -> str:
    return str(phonenumbers.format_number(number, PhoneNumberFormat.E164))


def phone_number(raw: str, country_code: str = "+91") -> PhoneNumber:
    """The number that somebody wrote; one with its own ``+`` or ``00`` keeps its country.

    A trunk prefix (``098...``) is dropped. A number without ``+`` that begins with ``country_code`` and that no
    telephone inside the country could dial counts as international. Raises ValueError with the reason.
    """
    international, digits = _read(raw)
    if international:
        number = _abroad(digits)
    else:
        code = _calling_code(country_code)
        number = _inside(digits, code) or _dialled_abroad(digits, code)
    if number is None:
        raise ValueError(f"not a phone number with a length its country uses: {raw[:60]!r}")
    return number


def whatsapp_id(raw: str, country_code: str = "+91") -> str:
    """The digits of ``to_e164`` without the plus sign, as the WhatsApp Cloud API wants them in ``to``.

    An id that WhatsApp itself reported stays as it is: 521 and ten digits in Mexico.
    """
    number = to_e164(raw, country_code)[1:]
    _, digits = _read(raw)
    return digits if _MEXICAN_ID.fullmatch(digits) and digits[3:] == number[2:] else number


def country_of(number: str) -> str:
    """The country of a number in E.164, by its two letters ('IN'); '' where it belongs to none, as +800."""
    region = phonenumbers.region_code_for_number(_parsed(number.removeprefix("+")) or PhoneNumber())
    return region if region and region.isalpha() else ""


def _read(raw: str) -> tuple[bool, str]:
    """Whether the number names its country, and its digits."""
    text = invisible.trimmed(raw) if len(raw) <= LONGEST_WRITTEN else ""
    if not text.isascii():
        text = text.translate(_PLAIN)
    found = _NUMBER.fullmatch(_whole(text))
    if found is None:
        raise ValueError(f"not a phone number: {raw[:60]!r}")
    return found[1] is not None, found[2]


def _whole(text: str) -> str:
    """``text`` with nothing between its digits; '' for a float that is not whole, or that has lost digits."""
    if found := _POWER.fullmatch(text):
        fraction, exponent = found[2] or "", int(found[3])
        exact = len(fraction) >= exponent and not fraction[exponent:].strip("0")
        return found[1] + fraction[:exponent] if exact else ""  # fewer digits were rounded
    text = _BETWEEN.sub("", text)
    if found := _FLOAT.fullmatch(text):
        return found[1] if not found[2].strip("0") else ""
    return text.replace(".", "")


def _calling_code(country_code: str) -> str:
    written = country_code[:LONGEST_WRITTEN].translate(_PLAIN)
    found = _CALLING_CODE.fullmatch(_BETWEEN.sub("", written).replace(".", ""))
    if found is None:
        raise ValueError(f"not a country code: {country_code[:20]!r}")
    return found[1]


def _abroad(digits: str) -> PhoneNumber | None:
    """The number that ``digits`` mean after a plus sign."""
    number = _parsed(digits)
    return number and _inside(digits.removeprefix(str(number.country_code)), str(number.country_code), number)


def _inside(digits: str, code: str, number: PhoneNumber | None = None) -> PhoneNumber | None:
    """The number that ``digits`` mean inside the country of ``code``; ``number``: when they are taken as they are.

    They may begin with the code all the same: it was typed in two places. ``code`` may hold an area code, too: 1684.
    """
    bare = digits.removeprefix("0")
    number = number or _parsed(code + digits)
    calling_code = str(number.country_code) if number else code
    if bare.startswith(code) or _REPORTED_ID.fullmatch(bare):
        return _likelier(number, _parsed(bare))
    if len(calling_code) < len(code) and (calling_code + bare).startswith(code):
        return _likelier(number, _parsed(calling_code + bare))
    return _likelier(number, None)


def _dialled_abroad(digits: str, code: str) -> PhoneNumber | None:
    """The number in another country that ``digits`` reach from the country of ``code``: 011 before it in the USA."""
    try:
        number = phonenumbers.parse(digits, phonenumbers.region_code_for_country_code(int(code)))
    except phonenumbers.NumberParseException:
        return None
    return number if str(number.country_code) != code and phonenumbers.is_valid_number(number) else None


def _likelier(number: PhoneNumber | None, other: PhoneNumber | None) -> PhoneNumber | None:
    """Of two readings the one that is in use, else the one with a possible length; None: neither.

    Where both are in use (Germany has numbers of all lengths), a mobile number is likelier than none; where neither
    is, the other.
    """
    valid = [each for each in (number, other) if each and phonenumbers.is_valid_number(each)]
    if len(valid) > 1:
        return next(filter(_is_mobile, valid), number)
    return next(iter(valid), None) or next(filter(_is_possible, filter(None, (other, number))), None)


def _parsed(digits: str) -> PhoneNumber | None:
    """The number that begins with its country code; None when there is no such country."""
    if found := _MEXICAN_ID.fullmatch(digits):
        digits = f"52{found[1]}"
    try:
        return phonenumbers.parse(f"+{digits}")
    except phonenumbers.NumberParseException:
        return None


def _is_possible(number: PhoneNumber) -> bool:
    fits = phonenumbers.is_possible_number_for_type_with_reason(number, PhoneNumberType.FIXED_LINE_OR_MOBILE)
    # A zero that is left after the trunk prefix is a typing error, except where numbers in use begin with one.
    return fits == ValidationResult.IS_POSSIBLE and not number.italian_leading_zero


def _is_mobile(number: PhoneNumber) -> bool:
    return phonenumbers.number_type(number) in {PhoneNumberType.MOBILE, PhoneNumberType.FIXED_LINE_OR_MOBILE}
