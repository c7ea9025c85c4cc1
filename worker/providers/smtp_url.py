"""SMTP_URL: which server sends the e-mail, and how the connection is protected.

    smtp://user:password@mail.example.com:587     STARTTLS, which must succeed with a valid certificate
    smtps://user:password@mail.example.com:465    TLS from the first byte, with a valid certificate
    smtp://127.0.0.1:2525                         without TLS: on the loopback interface only

``?ca_file=/path/ca.pem`` trusts that certificate authority instead of the system's. With it, STARTTLS is also
required on a loopback address, because naming an authority means that a certificate has to be checked.
"""

import ipaddress
import re
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from worker.content.loopback import is_loopback

Security = Literal["starttls", "tls", "plaintext"]

_HOST = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*\.?")


@dataclass(frozen=True, slots=True)
class SmtpUrl:
    """A valid SMTP_URL. ``repr`` shows neither user nor password."""

    host: str
    port: int
    security: Security
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    ca_file: str | None = None


def parse_smtp_url(url: str) -> SmtpUrl:
    """The parts of an SMTP_URL; ports default to 587 (smtp) and 465 (smtps).

    Raises ValueError with a text for the operator. No text repeats a part of the URL: a password with an unescaped
    '/', '?' or '#' is split there, and then a piece of the password looks like a port, a path or an option.
    """
    parts, port = _split(url)
    host = _host(parts)
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if bool(user) != bool(password):
        raise ValueError("SMTP_URL has a user without a password, or a password without a user")
    if not (user + password).isascii():
        raise ValueError("SMTP_URL: user and password may contain ASCII characters only")
    ca_file = _ca_file(parts)
    if parts.scheme == "smtps":
        return SmtpUrl(host, port or 465, "tls", user, password, ca_file)
    security: Security = "plaintext" if ca_file is None and is_loopback(host) else "starttls"
    return SmtpUrl(host, port or 587, security, user, password, ca_file)


def _split(url: str) -> tuple[SplitResult, int | None]:
    # The standard library's errors quote the URL and must not become the context of our error, so ours is raised
    # outside the except block.
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts = None
    if parts is None or parts.path not in ("", "/") or parts.fragment:
        raise ValueError(
            "SMTP_URL cannot be parsed: it must look like smtp://user:password@host:587; write '/', '?', '#', '@', "
            "':' and '%' in the user or the password as %2F, %3F, %23, %40, %3A and %25"
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
    raise ValueError("SMTP_URL must name a valid host: smtp://user:password@host:587")


def _ca_file(parts: SplitResult) -> str | None:
    options = parse_qsl(parts.query, keep_blank_values=True)
    if not parts.query:
        return None
    if len(options) == 1 and options[0][0] == "ca_file" and options[0][1]:
        return options[0][1]
    raise ValueError("SMTP_URL: the only option allowed is ?ca_file=/path/to/ca.pem")
