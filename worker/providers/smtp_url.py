"""SMTP_URL: which server carries the e-mail, and how its line is protected.

    smtp://user:password@mail.example.com:587     STARTTLS, which must succeed with a valid certificate
    smtps://user:password@mail.example.com:465    TLS from the first byte, with a valid certificate
    smtp://127.0.0.1:2525                         in clear: on the loopback interface only

``?ca_file=/path/ca.pem`` trusts that certificate authority instead of the system's. On a loopback
address it asks for STARTTLS too: who names an authority wants a certificate checked.
"""

import ipaddress
import re
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

Security = Literal["starttls", "tls", "clear"]

_HOST = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*\.?")


@dataclass(frozen=True, slots=True)
class SmtpUrl:
    """A checked SMTP_URL. ``repr`` shows neither user nor password."""

    host: str
    port: int
    security: Security
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    ca_file: str | None = None


def parse_smtp_url(url: str) -> SmtpUrl:
    """The parts of an SMTP_URL; ports default to 587 (smtp) and 465 (smtps).

    Raises ValueError with a text for the operator. No text repeats any of the URL:
    a password with an unescaped '/', '?' or '#' is taken apart at it, and then a piece of the password
    looks like a port, a path or an option.
    """
    parts, port = _split(url)
    host = _host(parts)
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if bool(user) != bool(password):
        raise ValueError("SMTP_URL has a user without a password, or a password without a user")
    if not (user + password).isascii():
        raise ValueError("SMTP_URL: user and password may hold ASCII characters only")
    ca_file = _ca_file(parts)
    if parts.scheme == "smtps":
        return SmtpUrl(host, port or 465, "tls", user, password, ca_file)
    clear = ca_file is None and is_loopback(host)
    return SmtpUrl(host, port or 587, "clear" if clear else "starttls", user, password, ca_file)


def is_loopback(host: str) -> bool:
    """Whether traffic to ``host`` stays inside this machine (127.0.0.0/8, ::1, localhost)."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _split(url: str) -> tuple[SplitResult, int | None]:
    # The standard library's own texts quote what they could not read: they must not get out, nor
    # hang on our error as its context. So ours is raised outside of the except block.
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts = None
    if parts is None or parts.path not in ("", "/") or parts.fragment:
        raise ValueError(
            "SMTP_URL cannot be read: it looks like smtp://user:password@host:587, and '/', '?', '#', '@', "
            "':' and '%' in the user or the password are written as %2F, %3F, %23, %40, %3A and %25"
        )
    if parts.scheme not in ("smtp", "smtps"):
        raise ValueError("SMTP_URL must start with smtp:// or smtps://")
    if port == 0:
        raise ValueError("SMTP_URL: the port must be between 1 and 65535")
    return parts, port


def _host(parts: SplitResult) -> str:
    host = parts.hostname or ""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        if _HOST.fullmatch(host):
            return host
    raise ValueError("SMTP_URL names no valid host: smtp://user:password@host:587")


def _ca_file(parts: SplitResult) -> str | None:
    options = parse_qsl(parts.query, keep_blank_values=True)
    if not parts.query:
        return None
    if len(options) == 1 and options[0][0] == "ca_file" and options[0][1]:
        return options[0][1]
    raise ValueError("SMTP_URL: the only option is ?ca_file=/path/to/ca.pem")
