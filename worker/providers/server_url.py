"""URLs of mail servers (SMTP_URL, BOUNCE_MAILBOX_URL): where the server is, and how the connection is protected.

A scheme that ends with an s means TLS from the first byte. The other one means STARTTLS, which must succeed with a
valid certificate, or no TLS at all on the loopback interface. ``?ca_file=/path/ca.pem`` trusts that certificate
authority instead of the system's; with it, STARTTLS is also required on a loopback address, because naming an
authority means that a certificate has to be checked.
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
class ServerUrl:
    """A valid URL. ``repr`` shows neither user nor password. ``path`` is decoded, without its first slash."""

    host: str
    port: int
    security: Security
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    ca_file: str | None = None
    path: str = ""


@dataclass(frozen=True, slots=True)
class UrlForm:
    """How the URL in a variable looks: its scheme with and without TLS, their ports, and an example."""

    variable: str
    scheme: str
    tls_scheme: str
    port: int
    tls_port: int
    example: str
    has_path: bool = False


def parse_server_url(form: UrlForm, url: str) -> ServerUrl:
    """The parts of a URL.

    Raises ValueError with a text for the operator. No text repeats a part of the URL: a password with an unescaped
    '/', '?' or '#' is split there, and then a piece of the password looks like a port, a path or an option.
    """
    parts, port = _split(form, url)
    host = _host(form, parts)
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if bool(user) != bool(password):
        raise ValueError(f"{form.variable} has a user without a password, or a password without a user")
    if not (user + password).isascii():
        raise ValueError(f"{form.variable}: user and password may contain ASCII characters only")
    ca_file, path = _ca_file(form, parts), unquote(parts.path[1:])
    if parts.scheme == form.tls_scheme:
        return ServerUrl(host, port or form.tls_port, "tls", user, password, ca_file, path)
    security: Security = "plaintext" if ca_file is None and is_loopback(host) else "starttls"
    return ServerUrl(host, port or form.port, security, user, password, ca_file, path)


def _split(form: UrlForm, url: str) -> tuple[SplitResult, int | None]:
    # The standard library's errors quote the URL and must not become the context of our error, so ours is raised
    # outside the except block.
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts = None
    if parts is None or not (form.has_path or parts.path in ("", "/")) or parts.fragment:
        raise ValueError(
            f"{form.variable} cannot be parsed: it must look like {form.example}; write '/', '?', '#', '@', "
            "':' and '%' in the user or the password as %2F, %3F, %23, %40, %3A and %25"
        )
    if parts.scheme not in (form.scheme, form.tls_scheme):
        raise ValueError(f"{form.variable} must start with {form.scheme}:// or {form.tls_scheme}://")
    if port == 0:
        raise ValueError(f"{form.variable}: the port must be between 1 and 65535")
    return parts, port


def _host(form: UrlForm, parts: SplitResult) -> str:
    host = parts.hostname or ""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        if _HOST.fullmatch(host):
            return host
    raise ValueError(f"{form.variable} must name a valid host: {form.example}")


def _ca_file(form: UrlForm, parts: SplitResult) -> str | None:
    options = parse_qsl(parts.query, keep_blank_values=True)
    if not parts.query:
        return None
    if len(options) == 1 and options[0][0] == "ca_file" and options[0][1]:
        return options[0][1]
    raise ValueError(f"{form.variable}: the only option allowed is ?ca_file=/path/to/ca.pem")
