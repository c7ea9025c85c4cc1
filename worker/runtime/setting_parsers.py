"""Parsers for the values of environment variables, one for each kind of value.

A parser takes the variable's text and returns the value, or raises ValueError, whose text says what is allowed.
"""

import os
import re
from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from worker.content.addresses import parse_address
from worker.content.loopback import is_loopback
from worker.content.return_path import LONGEST_LOCAL_PART
from worker.content.whatsapp import TemplateName
from worker.content.windows import Window

LONGEST_SECONDS = 31 * 86_400.0
UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0}
_UNIT_WORDS = {"sec": "s", "m": "min", "": ""} | {unit: unit for unit in UNIT_SECONDS}


def duration(unit: str, minimum: float = 0.0) -> Callable[[str], float]:
    """Parses '90', '90s', '5 min', '500ms' or '2h' into seconds; a number without a unit counts in ``unit``."""

    def parse(raw: str) -> float:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|sec|m|min|h|)", raw.strip().lower())
        if not match:
            raise ValueError(f"a duration such as 30s, 5min or 500ms (a number without a unit counts in {unit})")
        seconds = float(match[1]) * UNIT_SECONDS[_UNIT_WORDS[match[2]] or unit]
        if not minimum <= seconds <= LONGEST_SECONDS:
            raise ValueError(f"from {minimum:g} seconds to 31 days")
        return seconds

    return parse


def whole_number(minimum: int, maximum: int) -> Callable[[str], int]:
    def parse(raw: str) -> int:
        if not re.fullmatch(r"\d{1,9}", raw.strip()) or not minimum <= int(raw) <= maximum:
            raise ValueError(f"a whole number from {minimum} to {maximum}")
        return int(raw)

    return parse


def days(minimum: int, maximum: int) -> Callable[[str], int]:
    """Parses '90', '90d' or '90 days'."""

    def parse(raw: str) -> int:
        match = re.fullmatch(r"(\d{1,6})\s*(?:d|days?|)", raw.strip().lower())
        if not match or not minimum <= int(match[1]) <= maximum:
            raise ValueError(f"a number of days from {minimum} to {maximum}, such as {minimum}d")
        return int(match[1])

    return parse


def rate(raw: str) -> float:
    if not re.fullmatch(r"\d{1,9}(\.\d+)?", raw.strip()) or float(raw) < 0.01:
        raise ValueError("a number of messages a second, at least 0.01")
    return float(raw)


def boolean(raw: str) -> bool:
    if raw.strip().lower() not in {"true", "false", "1", "0", "yes", "no"}:
        raise ValueError("true or false")
    return raw.strip().lower() in {"true", "1", "yes"}


def one_of(*choices: str) -> Callable[[str], str]:
    def parse(raw: str) -> str:
        if raw.strip().lower() not in choices:
            raise ValueError("one of " + ", ".join(choices))
        return raw.strip().lower()

    return parse


def url(*schemes: str) -> Callable[[str], str]:
    def parse(raw: str) -> str:
        text = raw.strip()
        scheme, found, _ = text.partition(
            "://"
        )  # not urlsplit: it refuses libpq's lists of hosts with IPv6 addresses
        web = scheme in ("http", "https")
        if scheme not in schemes or not found or (web and not _has_host(text)):
            raise ValueError("a URL that begins with " + " or ".join(f"{each}://" for each in schemes))
        return text.rstrip("/") if web else text

    return parse


def _has_host(text: str) -> bool:
    try:
        return bool(urlsplit(text).netloc)
    except ValueError:
        return False


def qdrant_url(raw: str) -> str:
    """A URL with its port written out, so that all programs and Qdrant's clients use the same one."""
    checked = url("http", "https")(raw)
    parts = urlsplit(checked)
    try:
        port = parts.port or 6333
    except ValueError:
        raise ValueError("a URL whose port is a number up to 65535") from None
    if parts.username or parts.query or parts.fragment or not parts.hostname:
        raise ValueError("a URL such as http://qdrant:6333, the key in QDRANT_API_KEY")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return f"{parts.scheme}://{host}:{port}{parts.path}"


def url_list(*schemes: str) -> Callable[[str], list[str]]:
    return lambda raw: [url(*schemes)(part) for part in raw.split()]


def unsubscribe_url(raw: str) -> str:
    if not re.fullmatch(r"(https?://|mailto:)[^\s<>]{1,500}", raw.strip(), re.IGNORECASE):
        raise ValueError("an https://, http:// or mailto: address of at most 500 characters")
    return raw.strip()


def public_url(raw: str) -> str:
    """An address for links in messages, without a slash at its end; without TLS only on loopback, to try it out."""
    expected = "an https:// address of at most 200 characters without a query (http:// only on loopback)"
    try:
        checked = url("https", "http")(raw)
        parts = urlsplit(checked)
        usable = bool(parts.hostname) and (parts.port is None or parts.port > 0)  # reading the port may raise
    except ValueError:
        raise ValueError(expected) from None
    secure = parts.scheme == "https" or is_loopback(parts.hostname or "")
    if not (usable and secure and re.fullmatch(r"[a-z]+://[A-Za-z0-9._~:/\[\]%-]{1,190}", checked)):
        raise ValueError(expected)
    return checked


def networks(raw: str) -> list[IPv4Network | IPv6Network]:
    try:
        return [ip_network(each) for each in raw.split()]
    except ValueError:
        raise ValueError("addresses or networks such as 10.0.0.0/8, separated by spaces") from None


def hex_keys(raw: str) -> list[str]:
    try:
        return [hex_key(each) for each in raw.split()]
    except ValueError:
        raise ValueError("64 hex digits (32 bytes), or several such keys separated by spaces") from None


def hex_key(raw: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{64}", raw.strip()):
        raise ValueError("64 hex digits (32 bytes)")
    return raw.strip()


def email_address(raw: str) -> str:
    try:
        return parse_address(raw.strip())
    except ValueError:
        raise ValueError("an e-mail address such as owner@example.in") from None


def bounce_address(raw: str) -> str:
    expected = (
        f"an e-mail address such as bounces@mail.example, with at most {LONGEST_LOCAL_PART} characters before @"
    )
    try:
        address = parse_address(raw.strip())
    except ValueError:
        raise ValueError(expected) from None
    if len(address.partition("@")[0]) > LONGEST_LOCAL_PART:
        raise ValueError(expected)
    return address


def template_name(raw: str) -> TemplateName:
    found = re.fullmatch(r"([a-z0-9_]{1,512}):([a-z]{2,3}(?:_[A-Z]{2,3})?)", raw.strip())
    if not found:
        raise ValueError("a template's name and language, such as lead_reminder:en or lead_reminder:en_US")
    return TemplateName(found[1], found[2])


def time_zone(raw: str) -> ZoneInfo:
    try:
        return ZoneInfo(raw.strip())
    except (ZoneInfoNotFoundError, ValueError, TypeError, OSError):  # TypeError: a path that names a module of tzdata
        raise ValueError("a time zone such as Asia/Kolkata or UTC") from None


def call_windows(raw: str) -> dict[int, Window]:
    """The windows of some countries by their calling codes, written as '+44=08:00-20:00 +971=09:00-18:00'."""
    from worker.content.call_hours import is_calling_code  # not before it is needed: it costs 7 MB

    allowed = "hours by calling code, separated by spaces, as in +44=08:00-20:00 +971=09:00-18:00"
    found: dict[int, Window] = {}
    for each in raw.split():
        code, _, window = each.partition("=")
        if not (re.fullmatch(r"\+[1-9][0-9]{0,2}", code) and is_calling_code(int(code))):
            raise ValueError(f"{allowed}; no such code: {code[:20]}")
        if int(code) in found:
            raise ValueError(f"{allowed}; there twice: {code}")
        try:
            found[int(code)] = Window.parse(window)
        except ValueError:
            raise ValueError(f"{allowed}; no such hours: {window[:40]}") from None
    return found


def token(raw: str) -> str:
    if not re.fullmatch(r"[!-~]{1,500}", raw.strip()):
        raise ValueError("1 to 500 printable ASCII characters without spaces")
    return raw.strip()


def collection_name(raw: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,199}", raw.strip()):
        raise ValueError("1 to 200 letters, digits, '_', '-' and '.', not beginning with '.'")
    return raw.strip()


def absolute_path(raw: str) -> Path:
    path = Path(os.path.expanduser(raw))  # does not change the name of an unknown user
    if not path.is_absolute():
        raise ValueError("an absolute path")
    return path
