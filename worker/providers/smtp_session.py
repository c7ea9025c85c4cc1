"""A new SMTP connection: greeting, EHLO, TLS and login, by smtplib, with a deadline and a size limit in all."""

import base64
import io
import re
import smtplib
import socket
import ssl

from worker.errors import AccountRejected, RetryLater, SendError
from worker.providers.deadlines import exchange, thread_deadline
from worker.providers.smtp_url import SmtpUrl
from worker.providers.untrusted import safe_text

SESSION_SECONDS = 60.0  # for all of it, from the greeting to the login
_LONGEST_REPLIES = 65_536  # octets of all replies of it
# What some servers say with 5xx to a connection, session or login that is one too many for now.
_TOO_MANY = re.compile(r"too many|\blimit|\bmaximum", re.IGNORECASE)


class _Replies(io.BufferedIOBase):
    """The replies of a session that is being opened, with a limit: smtplib keeps all lines of a reply in memory."""

    def __init__(self, stream: io.BufferedIOBase) -> None:
        self._stream = stream
        self._octets = 0

    def readline(self, size: int | None = -1, /) -> bytes:
        line = self._stream.readline(size)
        self._octets += len(line)
        if self._octets > _LONGEST_REPLIES:
            raise OSError(f"its replies are longer than {_LONGEST_REPLIES} octets")
        if line and not line.endswith(b"\n"):  # smtplib would take it for a whole reply
            raise OSError("the connection ended in the middle of a reply")
        return line

    def close(self) -> None:
        self._stream.close()
        super().close()


class _Smtp(smtplib.SMTP):
    """smtplib's connection within the limits of this module."""

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        sock: socket.socket = super()._get_socket(host, port, timeout)  # type: ignore[misc]
        thread_deadline().attach(sock)
        return sock

    def getreply(self) -> tuple[int, bytes]:
        if self.file is None and self.sock is not None:
            self.file = _Replies(self.sock.makefile("rb"))
        return super().getreply()


class _SmtpOverTls(smtplib.SMTP_SSL, _Smtp):
    """The same, with TLS from the first octet: the plain socket is attached before the handshake."""


def open_session(url: SmtpUrl, tls: ssl.SSLContext | None, timeout_seconds: float) -> smtplib.SMTP:
    """A connection after greeting, TLS and login; ``timeout_seconds`` is for each reply.

    An invalid certificate, and a server without STARTTLS or a usable AUTH, are AccountRejected: the configuration is
    wrong (or somebody is in the middle) and waiting does not help. RetryLater would use up the attempts of recipients
    who have nothing to do with it; this way they stay pending.
    """
    where = f"{url.host}:{url.port}"
    with exchange(SESSION_SECONDS) as deadline:
        try:
            return _greeted(url, tls, timeout_seconds)
        except smtplib.SMTPException as error:
            if deadline.passed:
                raise RetryLater(f"{where}: no connection: {deadline.explain(error)}") from None
            raise _refused(where, error, url) from None
        except ssl.SSLCertVerificationError as error:
            raise AccountRejected(
                f"{where}: the certificate is not valid: {error.verify_message}; "
                "correct it, or name its authority in SMTP_URL with ?ca_file="
            ) from error
        except ssl.SSLError as error:
            if error.reason in ("WRONG_VERSION_NUMBER", "UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION"):
                raise AccountRejected(
                    f"{where} does not speak TLS 1.2 or newer on this port: {error.reason}"
                ) from error
            reason = deadline.explain(error) if deadline.passed else error.reason or str(error)
            raise RetryLater(f"{where}: TLS failed: {reason}") from error
        except (OSError, ValueError) as error:
            # ValueError: a challenge in AUTH that is not base64.
            text = safe_text(deadline.explain(error), passwords_of(url))
            raise RetryLater(f"{where}: no connection: {text or type(error).__name__}") from None


def _greeted(url: SmtpUrl, tls: ssl.SSLContext | None, timeout_seconds: float) -> smtplib.SMTP:
    # The name for EHLO is set, because smtplib would ask the DNS for one at every connection.
    smtp: smtplib.SMTP
    if url.security == "tls":
        smtp = _SmtpOverTls(url.host, url.port, "localhost", timeout=timeout_seconds, context=tls)
    else:
        smtp = _Smtp(url.host, url.port, "localhost", timeout=timeout_seconds)
    try:
        assert smtp.sock is not None  # noqa: S101 - the line above connects or raises
        smtp.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        smtp.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        smtp.local_hostname = _own_name(smtp.sock)
        smtp.ehlo_or_helo_if_needed()
        if url.security == "starttls":
            smtp.starttls(context=tls)
            smtp.ehlo_or_helo_if_needed()
        if url.user:
            smtp.login(url.user, url.password)
    except BaseException:
        smtp.close()
        raise
    return smtp


def _own_name(sock: socket.socket) -> str:
    """The name for EHLO: this host's full name, else its address (RFC 5321, 4.1.3)."""
    name = socket.gethostname()
    if re.fullmatch(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+", name):
        return name
    address = str(sock.getsockname()[0])
    return f"[IPv6:{address}]" if ":" in address else f"[{address}]"


def _refused(where: str, error: smtplib.SMTPException, url: SmtpUrl) -> SendError:
    """What smtplib's errors mean, the most special first."""
    if isinstance(error, smtplib.SMTPResponseException):
        text = f"{where}: {error.smtp_code} {safe_text(error.smtp_error, passwords_of(url))}"
        for_good = error.smtp_code // 100 == 5 and not _TOO_MANY.search(text)
        return AccountRejected(text) if for_good else RetryLater(text)
    text = safe_text(str(error), passwords_of(url))
    if isinstance(error, smtplib.SMTPServerDisconnected):
        return RetryLater(f"{where}: no connection: {text}")
    if isinstance(error, smtplib.SMTPNotSupportedError):
        return AccountRejected(f"{where} does not support what SMTP_URL asks for: {text}")
    # of those that can come here: no mechanism for the login in common
    return AccountRejected(f"{where} accepts no login with a user and a password: {text}")


def passwords_of(url: SmtpUrl) -> list[str]:
    """The password in all forms in which AUTH sends it and a server may repeat it."""
    if not url.password:
        return []
    plain = f"\0{url.user}\0{url.password}"
    return [*(base64.b64encode(text.encode()).decode() for text in (plain, url.password)), url.password]


def tls_context(url: SmtpUrl) -> ssl.SSLContext | None:
    """None: without TLS. Raises ValueError for a ca_file that cannot be read."""
    if url.security == "plaintext":
        return None
    try:
        return ssl.create_default_context(cafile=url.ca_file)
    except OSError as error:
        raise ValueError(f"SMTP_URL: ca_file={url.ca_file} cannot be read: {error}") from None
