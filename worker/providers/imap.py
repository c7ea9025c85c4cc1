"""A mailbox by IMAP (RFC 3501): its messages in batches, and moving them to other folders. Nothing is ever deleted.

Every exchange has a deadline in all and a limit for what the server may answer, because IMAPClient keeps a whole
answer in memory.
"""

import imaplib
import logging
import socket
import ssl
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

from imapclient import IMAPClient

from worker.errors import ServerUnavailable, SettingsError, WorkerError
from worker.providers.deadlines import exchange, thread_deadline
from worker.providers.imap_url import ImapUrl
from worker.providers.untrusted import safe_text

SERVER = "the mailbox of BOUNCE_MAILBOX_URL"
SESSION_SECONDS = 60.0  # connecting, TLS, login
EXCHANGE_SECONDS = 30.0
READ_SECONDS = 20.0
ANSWER_OCTETS = 65_536  # of one command, besides what is asked for

_Answer = TypeVar("_Answer")
# What IMAPClient raises for an answer that is not IMAP
_NOT_IMAP = (ValueError, LookupError, TypeError, AttributeError, AssertionError, RecursionError)

# It writes to the log what it reads
logging.getLogger("imapclient").setLevel(logging.WARNING)


class MailboxError(WorkerError):
    """The server refuses something: login, folder, command; or what it says is not IMAP."""


@dataclass(frozen=True, slots=True)
class MailboxWindow:
    """Some messages of the folder, by their UIDs. ``size``: how many messages of the folder it covers."""

    uids: list[int]
    size: int


class _ImapConnection(imaplib.IMAP4):
    """imaplib's connection within the limits of this module."""

    def __init__(self, url: ImapUrl, tls: ssl.SSLContext | None) -> None:
        self._tls = tls if url.security == "tls" else None
        self._octets = ANSWER_OCTETS
        super().__init__(url.host, url.port, READ_SECONDS)

    def allow(self, octets: int) -> None:
        """How much the server may send from now on."""
        self._octets = octets

    def _create_socket(self, timeout: float | None) -> socket.socket:
        sock = socket.create_connection((self.host, self.port), timeout)
        thread_deadline().attach(sock)
        return self._tls.wrap_socket(sock, server_hostname=self.host) if self._tls else sock

    def read(self, size: int) -> bytes:
        self._spend(size)  # before it is read: the size of a literal is what the server says
        return super().read(size)

    def readline(self) -> bytes:
        line: bytes = super().readline()
        self._spend(len(line))
        return line

    def _spend(self, octets: int) -> None:
        self._octets -= octets
        if self._octets < 0:
            raise self.abort("its answer is larger than what was asked for")


class _Client(IMAPClient):  # type: ignore[misc]
    """IMAPClient over such a connection."""

    def __init__(self, url: ImapUrl, tls: ssl.SSLContext | None) -> None:
        self.connection = _ImapConnection(url, tls)
        super().__init__(url.host, url.port, ssl=url.security == "tls", timeout=READ_SECONDS)

    def _create_IMAP4(self) -> imaplib.IMAP4:
        return self.connection


class Mailbox:
    """One session: ``with Mailbox(url) as mailbox``.

    Its methods raise ServerUnavailable when the server is lost or does not answer in time, and MailboxError.
    """

    def __init__(self, url: ImapUrl) -> None:
        """Connects and logs in. Raises also SettingsError when ``ca_file`` cannot be read."""
        self._url = url
        self._client = self._opened()

    def __enter__(self) -> "Mailbox":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                with suppress(WorkerError):  # everything was done
                    self._do(self._client.logout)
        finally:
            _shut_down(self._client)

    def make_folder(self, name: str) -> str:
        """The full name of a folder beside the user's others, which is made if there is none."""
        folder = self._prefix() + name
        if not self._do(self._client.folder_exists, folder):
            try:
                self._do(self._client.create_folder, folder)
            except MailboxError:
                if not self._do(self._client.folder_exists, folder):  # unless another worker was quicker
                    raise
        return folder

    def window(self, skip: int, size: int) -> MailboxWindow:
        """The next messages of the folder behind the first ``skip`` ones."""
        exists = int(self._do(self._client.select_folder, self._url.path)[b"EXISTS"])
        size = min(size, exists - skip)
        if size <= 0:
            return MailboxWindow([], 0)
        found = self._do(self._client.search, f"{skip + 1}:{skip + size} UNDELETED")
        return MailboxWindow(sorted(found)[:size], size)

    def read(self, uid: int, octets: int) -> bytes | None:
        """The first octets of a message, which stays unread for others; None: it is gone."""
        answer = self._do(self._client.fetch, [uid], [f"BODY.PEEK[]<0.{octets}>"], octets=octets)
        found = answer.get(uid, {}).get(b"BODY[]<0>")
        return found[:octets] if isinstance(found, bytes) else None

    def move(self, uids: Iterable[int], folder: str) -> None:
        """Moves messages; those that are gone do not matter."""
        chosen = list(uids)
        if not chosen:
            return
        if self._do(self._client.has_capability, "MOVE"):
            self._do(self._client.move, chosen, folder)
            return
        if not self._do(self._client.has_capability, "UIDPLUS"):
            raise MailboxError("the mail server can neither MOVE (RFC 6851) nor UIDPLUS (RFC 4315): use another one")
        self._do(self._client.copy, chosen, folder)
        self._do(self._client.add_flags, chosen, [b"\\Deleted"], silent=True)
        self._do(self._client.uid_expunge, chosen)  # those and no others

    def _prefix(self) -> str:
        """Before the name of a new folder: '' or 'INBOX.', as the server wants it."""
        if not self._do(self._client.has_capability, "NAMESPACE"):
            return ""
        personal = self._do(self._client.namespace).personal
        return str(personal[0][0]) if personal else ""

    def _opened(self) -> _Client:
        url, tls = self._url, _tls_context(self._url)
        with exchange(SESSION_SECONDS) as deadline:
            client = _answer(lambda: _Client(url, tls), deadline.explain, self._secrets)
            try:
                if url.security == "starttls":
                    _answer(lambda: client.starttls(tls), deadline.explain, self._secrets)
                _answer(lambda: client.login(url.user, url.password), deadline.explain, self._secrets)
            except BaseException:
                _shut_down(client)
                raise
        return client

    def _do(self, command: Callable[..., Any], *arguments: Any, octets: int = 0, **options: Any) -> Any:
        with exchange(EXCHANGE_SECONDS, self._client.socket()) as deadline:
            self._client.connection.allow(ANSWER_OCTETS + octets)
            return _answer(lambda: command(*arguments, **options), deadline.explain, self._secrets)

    @property
    def _secrets(self) -> tuple[str, ...]:
        return self._url.user, self._url.password


def _answer(
    exchanged: Callable[[], _Answer], explain: Callable[[Exception | None], str], secrets: tuple[str, ...]
) -> _Answer:
    """What an exchange returns; its errors as ours."""
    try:
        return exchanged()
    except ssl.SSLCertVerificationError as error:
        raise MailboxError(
            f"its certificate is not valid: {error.verify_message}; correct it, or name its authority in "
            "BOUNCE_MAILBOX_URL with ?ca_file="
        ) from None
    except imaplib.IMAP4.readonly:
        raise MailboxError("the mailbox is read-only: its user must be allowed to move messages") from None
    except (imaplib.IMAP4.abort, OSError) as error:
        raise ServerUnavailable(SERVER, safe_text(explain(error), secrets) or type(error).__name__) from None
    except imaplib.IMAP4.error as error:
        raise MailboxError(f"the mailbox refuses: {safe_text(_text(error), secrets)}") from None
    except _NOT_IMAP as error:
        raise MailboxError(f"the mailbox's answer is not IMAP: {safe_text(str(error), secrets)}") from None


def _text(error: Exception) -> str:
    """imaplib puts the server's octets into its errors."""
    argument = error.args[0] if error.args else ""
    return argument.decode("utf-8", "replace") if isinstance(argument, bytes) else str(argument)


def _shut_down(client: _Client) -> None:
    with suppress(OSError):  # it is closed, or was lost
        client.shutdown()


def _tls_context(url: ImapUrl) -> ssl.SSLContext | None:
    """Raises SettingsError."""
    if url.security == "plaintext":
        return None
    try:
        return ssl.create_default_context(cafile=url.ca_file)
    except OSError as error:
        raise SettingsError(f"BOUNCE_MAILBOX_URL: ca_file={url.ca_file} cannot be read: {error}") from None
