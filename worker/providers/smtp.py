"""E-mail through an SMTP server: kept connections, and what a server's refusals mean.

smtplib connects (EHLO, STARTTLS, AUTH); smtp_wire.py does the transaction itself.

The connections are kept in a stack: ``send`` takes the one that was used last, or makes a new one, and returns it. So
there are never more connections than threads that send at the same time, the same few stay in use, and a thread that
ends leaves no connection open.
"""

import base64
import re
import smtplib
import socket
import ssl
import threading
import time

from worker.errors import AccountRejected, CampaignRejected, RecipientRefused, RetryLater, SendError
from worker.messages import Accepted, Email
from worker.providers.smtp_url import SmtpUrl, parse_smtp_url
from worker.providers.smtp_wire import ConnectionGone, SmtpConnection, wire_content
from worker.providers.untrusted import safe_text

# What may stand between < and > in MAIL FROM and RCPT TO: nothing that could end the command or add a parameter to
# it. Quoted local parts with spaces are legal, but nobody uses them.
_ADDRESS = re.compile(r"[!-;=?-~]{1,254}")


class SmtpProvider:
    """Sends e-mail through the server that SMTP_URL names. May be used by several threads at the same time."""

    def __init__(self, url: str, *, timeout_seconds: float = 30.0, answer_timeout_seconds: float = 120.0) -> None:
        """Does not connect yet. Raises ValueError when SMTP_URL cannot be used.

        ``timeout_seconds`` limits connecting and each reply but the last. The answer to a whole message may take
        longer, because servers scan it first: RFC 5321, 4.5.3.2.6 asks clients to wait 10 minutes, so that they do
        not repeat an accepted message. Two minutes are enough for a scanner, and do not block a thread for too long.
        """
        self._url = parse_smtp_url(url)
        self._timeout_seconds = timeout_seconds
        self._answer_timeout_seconds = answer_timeout_seconds
        self._tls = _tls_context(self._url)
        self._lock = threading.Lock()
        self._idle: list[SmtpConnection] = []
        self._busy: set[SmtpConnection] = set()
        self._closed = False

    def __repr__(self) -> str:
        return f"SmtpProvider({self._url.host}:{self._url.port}, {self._url.security})"

    def send(self, message: Email) -> Accepted:
        """Sends one message. Raises the kinds of SendError, as the CRM contract has them for SMTP:

        RetryLater for 4xx, and for a connection that was refused, or lost before the end of the message was handed
        over; RecipientRefused for 5xx on RCPT TO; CampaignRejected for 5xx on MAIL FROM, DATA or the content;
        AccountRejected for 5xx before that (greeting, STARTTLS, AUTH) and for a connection that cannot be protected;
        Unconfirmed when the end was handed over and no answer came.
        """
        if not _ADDRESS.fullmatch(message.to):
            raise RecipientRefused(f"not a valid address for SMTP: {safe_text(message.to)}")
        if not _ADDRESS.fullmatch(message.envelope_from):
            raise CampaignRejected(f"not a valid sender address for SMTP: {safe_text(message.envelope_from)}")
        content = wire_content(message.content)
        connection = self._take_kept()
        if connection is not None:
            try:
                return self._transact(connection, message, content)
            except ConnectionGone:
                pass  # the server closed it while it was idle: nothing of this message was handed over
        connection = self._connect()
        try:
            return self._transact(connection, message, content)
        except ConnectionGone as gone:
            raise RetryLater(f"the server closed the connection before the message was handed over: {gone}") from gone

    def close(self) -> None:
        """Closes all connections. A ``send`` in another thread ends at once, with RetryLater or Unconfirmed."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            # Under the lock, because a connection leaves the set before it is closed: these sockets are open.
            for connection in self._busy:
                connection.abort()
        # All send QUIT before the first one waits for the answer: one second is enough for all.
        for connection in idle:
            connection.say_quit()
        deadline = time.monotonic() + 1.0
        for connection in idle:
            connection.close(deadline - time.monotonic())

    def _transact(self, connection: SmtpConnection, message: Email, content: bytes) -> Accepted:
        try:
            connection.send(message.envelope_from, message.to, content)
            return Accepted(message_id=message.message_id)
        finally:
            self._return(connection)

    def _take_kept(self) -> SmtpConnection | None:
        with self._lock:
            if self._closed:
                raise RetryLater("the program is stopping")
            if not self._idle:
                return None
            connection = self._idle.pop()
            self._busy.add(connection)
            return connection

    def _connect(self) -> SmtpConnection:
        smtp = _open(self._url, self._tls, self._timeout_seconds)
        connection = SmtpConnection(smtp, self._answer_timeout_seconds, _secrets(self._url))
        with self._lock:
            if not self._closed:
                self._busy.add(connection)
                return connection
        connection.close()
        raise RetryLater("the program is stopping")

    def _return(self, connection: SmtpConnection) -> None:
        with self._lock:
            self._busy.discard(connection)
            if connection.usable and not self._closed:
                self._idle.append(connection)
                return
        connection.close()


def _open(url: SmtpUrl, tls: ssl.SSLContext | None, timeout_seconds: float) -> smtplib.SMTP:
    """A connection after greeting, TLS and login.

    An invalid certificate, and a server without STARTTLS or AUTH, are AccountRejected: the configuration is wrong (or
    somebody is in the middle) and waiting does not help. RetryLater would use up the attempts of recipients who have
    nothing to do with it; this way they stay pending.
    """
    where = f"{url.host}:{url.port}"
    try:
        return _greeted(url, tls, timeout_seconds)
    except smtplib.SMTPResponseException as error:
        raise _refused(where, error.smtp_code, error.smtp_error, url) from None
    except smtplib.SMTPNotSupportedError as error:
        raise AccountRejected(f"{where} does not support what SMTP_URL asks for: {error}") from None
    except ssl.SSLCertVerificationError as error:
        raise AccountRejected(
            f"{where}: the certificate is not valid: {error.verify_message}; "
            "correct it, or name its authority in SMTP_URL with ?ca_file="
        ) from error
    except ssl.SSLError as error:
        if error.reason in ("WRONG_VERSION_NUMBER", "UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION"):
            raise AccountRejected(f"{where} does not speak TLS 1.2 or newer on this port: {error.reason}") from error
        raise RetryLater(f"{where}: TLS failed: {error.reason or error}") from error
    except (OSError, ValueError) as error:
        # ValueError: a challenge in AUTH that is not base64.
        text = safe_text(str(error), _secrets(url))
        raise RetryLater(f"{where}: no connection: {text or type(error).__name__}") from None


def _greeted(url: SmtpUrl, tls: ssl.SSLContext | None, timeout_seconds: float) -> smtplib.SMTP:
    # The name for EHLO is set, because smtplib would ask the DNS for one at every connection.
    smtp: smtplib.SMTP
    if url.security == "tls":
        smtp = smtplib.SMTP_SSL(url.host, url.port, "localhost", timeout=timeout_seconds, context=tls)
    else:
        smtp = smtplib.SMTP(url.host, url.port, "localhost", timeout=timeout_seconds)
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


def _refused(where: str, code: int, reply: bytes | str, url: SmtpUrl) -> SendError:
    text = f"{where}: {code} {safe_text(reply, _secrets(url))}"
    return AccountRejected(text) if code // 100 == 5 else RetryLater(text)


def _secrets(url: SmtpUrl) -> list[str]:
    """The password in all forms in which AUTH sends it and a server may repeat it."""
    if not url.password:
        return []
    plain = f"\0{url.user}\0{url.password}"
    return [*(base64.b64encode(text.encode()).decode() for text in (plain, url.password)), url.password]


def _tls_context(url: SmtpUrl) -> ssl.SSLContext | None:
    if url.security == "plaintext":
        return None
    try:
        return ssl.create_default_context(cafile=url.ca_file)
    except OSError as error:
        raise ValueError(f"SMTP_URL: ca_file={url.ca_file} cannot be read: {error}") from None
