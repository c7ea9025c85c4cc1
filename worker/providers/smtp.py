"""E-mail through an SMTP server: kept connections, and what a server's refusals mean.

Connecting (EHLO, STARTTLS, AUTH) is smtplib's work; the transaction itself is ``smtp_wire``'s.

The connections are kept in a stack: ``send`` takes the one used last, or makes one, and puts it back.
So there are never more than there are threads sending at once, those in use stay warm, and a thread
that ends leaves nothing behind.
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
from worker.providers.untrusted import printable

# What may stand between < and > in MAIL FROM and RCPT TO: nothing that could end the command or add
# a parameter to it. Quoted local parts with spaces are legal and extinct.
_ADDRESS = re.compile(r"[!-;=?-~]{1,254}")


class SmtpProvider:
    """Sends e-mail through the server that SMTP_URL names. Safe for many threads at once."""

    def __init__(self, url: str, *, timeout_seconds: float = 30.0, answer_timeout_seconds: float = 120.0) -> None:
        """Connects to nothing yet. Raises ValueError when SMTP_URL cannot be used.

        ``timeout_seconds`` holds for connecting and for each reply but the last. The answer to a whole
        message may take longer, because servers scan it first: RFC 5321, 4.5.3.2.6 asks for 10 minutes
        so that nobody repeats what was accepted. Two are enough for a scanner, and a thread is free again.
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
        """Hand one message over. Raises the SendError kinds, by the contract's SMTP row:

        RetryLater for 4xx and for a connection refused or lost before the message's end was handed
        over, RecipientRefused for 5xx on RCPT TO, CampaignRejected for 5xx on MAIL FROM, DATA or the
        content, AccountRejected for 5xx before that (greeting, STARTTLS, AUTH) and for a line that
        cannot be protected, Unconfirmed when the end was handed over and no answer came.
        """
        if not _ADDRESS.fullmatch(message.to):
            raise RecipientRefused(f"not an address that SMTP can carry: {printable(message.to)}")
        if not _ADDRESS.fullmatch(message.envelope_from):
            raise CampaignRejected(f"not a sender address that SMTP can carry: {printable(message.envelope_from)}")
        content = wire_content(message.content)
        connection = self._take_kept()
        if connection is not None:
            try:
                return self._transact(connection, message, content)
            except ConnectionGone:
                pass  # closed while idle, as servers do: nothing of this message was handed over
        connection = self._connect()
        try:
            return self._transact(connection, message, content)
        except ConnectionGone as gone:
            raise RetryLater(f"the server left before the message was handed over: {gone}") from gone

    def close(self) -> None:
        """Close all connections. A send that is under way ends at once, as RetryLater or Unconfirmed."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            # Under the lock: a connection leaves the set before it is closed, so its socket is open.
            for connection in self._busy:
                connection.abort()
        # All take leave before the first one waits: together they have a second for the answers.
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
            self._give_back(connection)

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

    def _give_back(self, connection: SmtpConnection) -> None:
        with self._lock:
            self._busy.discard(connection)
            if connection.usable and not self._closed:
                self._idle.append(connection)
                return
        connection.close()


def _open(url: SmtpUrl, tls: ssl.SSLContext | None, timeout_seconds: float) -> smtplib.SMTP:
    """A greeted, protected and authenticated connection.

    A certificate that does not verify, and a server without STARTTLS or AUTH, are AccountRejected: it
    is configuration (or somebody in the middle), waiting does not mend it, and RetryLater would use up
    each recipient's attempts for a fault that is not theirs. This way they stay pending.
    """
    where = f"{url.host}:{url.port}"
    try:
        return _greeted(url, tls, timeout_seconds)
    except smtplib.SMTPResponseException as error:
        raise _refused(where, error.smtp_code, error.smtp_error, url) from None
    except smtplib.SMTPNotSupportedError as error:
        raise AccountRejected(f"{where} cannot do what SMTP_URL asks for: {error}") from None
    except ssl.SSLCertVerificationError as error:
        raise AccountRejected(
            f"{where}: the certificate is not valid: {error.verify_message}; "
            "mend it, or name its authority in SMTP_URL with ?ca_file="
        ) from error
    except ssl.SSLError as error:
        if error.reason in ("WRONG_VERSION_NUMBER", "UNSUPPORTED_PROTOCOL", "TLSV1_ALERT_PROTOCOL_VERSION"):
            raise AccountRejected(f"{where} does not speak TLS 1.2 or newer on this port: {error.reason}") from error
        raise RetryLater(f"{where}: TLS failed: {error.reason or error}") from error
    except (OSError, ValueError) as error:
        # ValueError: a challenge in AUTH that is no base64.
        text = printable(str(error), _secrets(url))
        raise RetryLater(f"{where}: no connection: {text or type(error).__name__}") from None


def _greeted(url: SmtpUrl, tls: ssl.SSLContext | None, timeout_seconds: float) -> smtplib.SMTP:
    # The name for EHLO is given, because smtplib would ask the DNS for one at every connection.
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
    """What to say in EHLO: this host's full name, else its address (RFC 5321, 4.1.3)."""
    name = socket.gethostname()
    if re.fullmatch(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+", name):
        return name
    address = str(sock.getsockname()[0])
    return f"[IPv6:{address}]" if ":" in address else f"[{address}]"


def _refused(where: str, code: int, said: bytes | str, url: SmtpUrl) -> SendError:
    text = f"{where}: {code} {printable(said, _secrets(url))}"
    return AccountRejected(text) if code // 100 == 5 else RetryLater(text)


def _secrets(url: SmtpUrl) -> list[str]:
    """The password in the forms in which AUTH sends it, and in which a server may echo it."""
    if not url.password:
        return []
    plain = f"\0{url.user}\0{url.password}"
    return [*(base64.b64encode(text.encode()).decode() for text in (plain, url.password)), url.password]


def _tls_context(url: SmtpUrl) -> ssl.SSLContext | None:
    if url.security == "clear":
        return None
    try:
        return ssl.create_default_context(cafile=url.ca_file)
    except OSError as error:
        raise ValueError(f"SMTP_URL: ca_file={url.ca_file} cannot be read: {error}") from None
