"""Phone numbers as people type them, brought to E.164 (ITU-T) for Twilio and WhatsApp.

Whether a number has a length that its country uses is decided here; whether anybody has it is for the
provider to say, who knows the ranges that were opened last month.
"""

import re

import phonenumbers
from phonenumbers import PhoneNumber, PhoneNumberFormat, PhoneNumberType, ValidationResult

# What people put between digits: white space, points, slashes, brackets, and hyphens and dashes of all kinds,
# with the invisible marks that come along from web pages and address books.
_BETWEEN = re.compile("[\\s./()\\[\\]\\-\u2010-\u2015\u2212\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]+")
_NUMBER = re.compile("(\\+|\uff0b|00)?(\\d{4,20})")
_CALLING_CODE = re.compile(r"(?:\+|00)?([1-9][0-9]{0,6})")
_NO_REGION = frozenset({"ZZ", "001"})  # unknown, and codes that belong to no country


def to_e164(raw: str, country_code: str = "+91") -> str:
    """``+919876543210`` for ``98765 43210``; a number with its own ``+`` or ``00`` keeps its country.

    A trunk prefix (``098...``) is dropped. A number without ``+`` that no telephone inside the country could
    dial, but that begins with ``country_code``, counts as international. Raises ValueError with the reason.
    """
    found = _NUMBER.fullmatch(_BETWEEN.sub("", raw))
    if found is None:
        raise ValueError(f"not a phone number: {raw[:60]!r}")
    prefix, digits = found.groups()
    number = _possible(f"+{digits}", None) if prefix else _inside(digits, country_code)
    if number is None:
        raise ValueError(f"not a phone number with a length its country uses: {raw[:60]!r}")
    return str(phonenumbers.format_number(number, PhoneNumberFormat.E164))


def whatsapp_id(raw: str, country_code: str = "+91") -> str:
    """The digits of ``to_e164`` without the plus sign, as the WhatsApp Cloud API wants them in ``to``."""
    return to_e164(raw, country_code)[1:]


def _inside(digits: str, country_code: str) -> PhoneNumber | None:
    """The number that ``digits`` mean when somebody in the country of ``country_code`` writes them down."""
    found = _CALLING_CODE.fullmatch(_BETWEEN.sub("", country_code))
    if found is None:
        raise ValueError(f"not a country code: {country_code[:20]!r}")
    calling_code = found[1]
    region = phonenumbers.region_code_for_country_code(int(calling_code))
    if region in _NO_REGION:  # "+1684", say: a calling code and an area code in one
        return _possible(f"+{calling_code}{digits}", None)
    number = _possible(digits, region)
    if number is None and digits.startswith(calling_code):
        return _possible(f"+{digits}", None)
    return number


def _possible(dialled: str, region: str | None) -> PhoneNumber | None:
    try:
        number = phonenumbers.parse(dialled, region)
    except phonenumbers.NumberParseException:
        return None
    if phonenumbers.is_valid_number(number):
        return number
    fits = phonenumbers.is_possible_number_for_type_with_reason(number, PhoneNumberType.FIXED_LINE_OR_MOBILE)
    # A zero that is left after the trunk prefix is a typing error, except where numbers in use begin with one.
    return number if fits == ValidationResult.IS_POSSIBLE and not number.italian_leading_zero else None
