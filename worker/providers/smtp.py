"""E-mail through an SMTP server: kept connections, and what a server's refusals mean.

smtp_session.py opens a connection (EHLO, STARTTLS, AUTH); smtp_wire.py does the transaction itself.

The connections are kept in a stack: ``send`` takes the one that was used last, or makes a new one, and returns it. So
there are never more connections than threads that send at the same time, the same few stay in use, and a thread that
ends leaves no connection open. A server may accept fewer: when it refuses a connection for now while others work (421
says so, but some servers just close it), threads share those for a while instead of failing their messages.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from worker.errors import RetryLater, SendError, TooLate
from worker.messages import Accepted, Email
from worker.providers.learned_limit import LearnedLimit
from worker.providers.places import ConnectionUse, SharedPlaces
from worker.providers.smtp_refusals import account_pause
from worker.providers.smtp_session import open_session, passwords_of, tls_context
from worker.providers.smtp_transaction import Transaction, transaction_of
from worker.providers.smtp_url import parse_smtp_url
from worker.providers.smtp_wire import ConnectionGone, SmtpConnection

WAIT_SECONDS = 30.0  # for a connection to become free
POLL_SECONDS = 0.5  # how soon a thread that waits for one sees that the process is to end


class _Announced(NamedTuple):
    """A message whose commands are on the wire, and the connection that waits for its content."""

    message: Email  # kept, so that no other one gets its id()
    transaction: Transaction
    connection: SmtpConnection


class SmtpProvider:
    """Sends e-mail through the server that SMTP_URL names. May be used by several threads at the same time."""

    def __init__(
        self,
        url: str,
        *,
        timeout_seconds: float = 30.0,
        answer_timeout_seconds: float = 120.0,
        places: SharedPlaces | None = None,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """Does not connect yet. Raises ValueError when SMTP_URL cannot be used.

        ``timeout_seconds`` limits connecting and each reply but the last. The answer to a whole message may take
        longer, because servers scan it first: RFC 5321, 4.5.3.2.6 asks clients to wait 10 minutes, so that they do
        not repeat an accepted message. Two minutes are enough for a scanner, and do not block a thread for too long.
        ``places``: how many connections this process may have; None: as many as the server accepts.
        ``is_stopping``: whether the process is to end; then no message waits for a connection any more.
        """
        self._url = parse_smtp_url(url)
        self._timeout_seconds = timeout_seconds
        self._answer_timeout_seconds = answer_timeout_seconds
        self._tls = tls_context(self._url)
        self._changed = threading.Condition()  # guards what follows
        self._idle: list[SmtpConnection] = []
        self._busy: set[SmtpConnection] = set()
        self._announced: dict[int, _Announced] = {}  # by the id() of their message
        self._announces = True
        self._opening = 0  # connections that are being opened
        self._waiting = 0  # threads that wait for one
        self._limit = LearnedLimit()
        self._closed = False
        self._is_stopping = is_stopping
        self.places = places
        if places:
            places.serve(self)

    def __repr__(self) -> str:
        return f"SmtpProvider({self._url.host}:{self._url.port}, {self._url.security})"

    @property
    def host(self) -> str:
        """The server's name."""
        return self._url.host

    @property
    def announces(self) -> bool:
        """Whether ``send`` may be told which message follows: not if the server has refused that."""
        return self._announces

    def use(self) -> ConnectionUse:
        with self._changed:
            return ConnectionUse(self._number_open(), self._number_wanted())

    def keep(self, number: int) -> None:
        surplus = []
        with self._changed:
            while self._idle and self._number_open() > number:
                surplus.append(self._idle.pop(0))  # the one that was not used for longest
            self._changed.notify_all()
        for connection in surplus:
            connection.say_quit()
            connection.close()

    def send(self, message: Email, following: Email | None = None) -> Accepted:
        """Sends one message. Raises the kinds of SendError, as the CRM contract has them for SMTP:

        RetryLater for 4xx, and for a connection that was refused, or lost before the end of the message was handed
        over; RecipientRefused for 5xx on RCPT TO; CampaignRejected for 5xx on MAIL FROM, DATA or the content;
        AccountRejected for 5xx before that (greeting, STARTTLS, AUTH) and for a connection that cannot be protected;
        Unconfirmed when the end was handed over and no answer came.

        ``following``: the message that this thread sends next, which saves it a round trip. Its commands may leave
        with this message, its content does not. It must be sent or withdrawn afterwards.
        """
        announced = self._take_announced(message)
        transaction, connection = (
            (announced.transaction, announced.connection)
            if announced
            else (transaction_of(message), self._take_kept())
        )
        if connection is None or not self._transact(connection, transaction, following):
            self._transact_anew(transaction, following)
        return Accepted(message_id=message.message_id)

    def withdraw(self, message: Email) -> None:
        """A message that was announced as ``following`` is not sent: its connection is closed, which forgets it."""
        if announced := self._take_announced(message):
            with self._changed:
                announced.connection.close()  # before it is counted as closed
                self._busy.discard(announced.connection)
                self._changed.notify()

    def close(self) -> None:
        """Closes all connections. A ``send`` in another thread ends at once, with RetryLater or Unconfirmed."""
        with self._changed:
            self._closed = True
            idle, self._idle = self._idle, []
            announced, self._announced = self._announced, {}
            self._busy.difference_update(each.connection for each in announced.values())
            self._changed.notify_all()
            # Under the lock, because a connection leaves the set before it is closed: these sockets are open.
            for connection in self._busy:
                connection.abort()
        for each in announced.values():
            each.connection.close()
        # All send QUIT before the first one waits for the answer: one second is enough for all.
        for connection in idle:
            connection.say_quit()
        deadline = time.monotonic() + 1.0
        for connection in idle:
            connection.close(deadline - time.monotonic())
        if self.places:
            self.places.close()

    def _transact(self, connection: SmtpConnection, message: Transaction, following: Email | None) -> bool:
        """On a kept connection; False if the server closed it while it was idle, and nothing was handed over."""
        try:
            self._send(connection, message, following)
        except ConnectionGone as gone:
            self._announces = self._announces and not gone.too_early
            return False
        return True

    def _transact_anew(self, message: Transaction, following: Email | None) -> None:
        """On a new connection, or one that becomes free."""
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                return self._send(self._connection(deadline), message, following, is_new=True)
            except ConnectionGone as gone:
                # a new connection that is refused at its first command, while others work, was one too many
                if not gone.refused or time.monotonic() > deadline or not self._keep_to_the_open_ones():
                    raise RetryLater(
                        f"the server closed the connection before the message was handed over: {gone}",
                        account_seconds=account_pause(0, str(gone)),  # a bare 421 may mean too many connections
                    ) from gone

    def _send(
        self, connection: SmtpConnection, message: Transaction, following: Email | None, *, is_new: bool = False
    ) -> None:
        announced: _Announced | None = None
        one_too_many = False
        try:
            if following and self._announces and not self._has_too_many():
                with suppress(SendError):  # it is said when it is sent itself
                    announced = _Announced(following, transaction_of(following), connection)
            connection.send(message, announced.transaction if announced else None)
        except ConnectionGone as gone:
            one_too_many = is_new and gone.refused
            raise
        finally:
            self._return(connection, announced, one_too_many=one_too_many)

    def _take_announced(self, message: Email) -> "_Announced | None":
        """What has been done for this message, if it was announced."""
        with self._changed:
            return self._announced.pop(id(message), None)

    def _take_kept(self) -> SmtpConnection | None:
        """An idle connection, if there is one."""
        with self._changed:
            self._require_open()
            return self._take_idle()

    def _connection(self, deadline: float) -> SmtpConnection:
        """A new connection; where the server accepts no more of them, the next one that becomes idle in time."""
        while True:
            with self._changed:
                while not self._may_open():
                    if connection := self._take_idle():
                        return connection
                    self._wait(deadline)
                    self._require_open()
                self._require_open()
                self._opening += 1
            try:
                return self._opened()
            except RetryLater:
                if time.monotonic() > deadline or not self._keep_to_the_open_ones():
                    raise

    def _opened(self) -> SmtpConnection:
        try:
            smtp = open_session(self._url, self._tls, self._timeout_seconds)
        except BaseException:
            with self._changed:
                self._opening -= 1
                self._changed.notify()
            raise
        connection = SmtpConnection(smtp, self._answer_timeout_seconds, passwords_of(self._url))
        with self._changed:
            self._opening -= 1
            if not self._closed:
                self._busy.add(connection)
                return connection
        connection.close()
        raise RetryLater("the program is stopping")

    def _wait(self, deadline: float) -> None:
        """Waits a moment for a connection of another thread."""
        self._waiting += 1
        try:
            if self.places:
                self.places.want(self._number_wanted())
            if self._changed.wait(min(POLL_SECONDS, deadline - time.monotonic())):
                return
        finally:
            self._waiting -= 1
        if self._is_stopping():
            raise TooLate("the program stops, and no connection was free yet")
        if time.monotonic() < deadline:
            return
        if self.places and self._number_open() >= self.places.number:
            raise TooLate("no connection of those that SMTP_CONNECTIONS allows became free in time")
        raise RetryLater("the server accepts no more connections, and none became free in time")

    def _may_open(self) -> bool:
        number = self._number_open()
        return (self.places is None or self.places.may_open(number)) and self._limit.allows_one_more(number)

    def _number_open(self) -> int:
        return len(self._busy) + len(self._idle) + self._opening

    def _number_wanted(self) -> int:
        return len(self._busy) + self._opening + self._waiting

    def _has_too_many(self) -> bool:
        """Whether other processes need a place that a connection of this one has."""
        return self.places is not None and self._number_open() > self.places.number

    def _keep_to_the_open_ones(self) -> bool:
        """The server refused one more connection. False if there is no other."""
        with self._changed:
            others = self._number_open()
            self._limit.one_was_refused(others)
            self._changed.notify_all()
            return others > 0

    def _take_idle(self) -> SmtpConnection | None:
        if not self._idle or (self.places and not self.places.number):
            return None
        connection = self._idle.pop()
        self._busy.add(connection)
        if self.places:
            self.places.want(self._number_wanted())
        return connection

    def _return(
        self, connection: SmtpConnection, announced: "_Announced | None", *, one_too_many: bool = False
    ) -> None:
        with self._changed:
            waits_for = connection.announced
            if announced and waits_for is announced.transaction and connection.usable and not self._closed:
                self._announced[id(announced.message)] = announced
                return  # it stays busy
            # one that is not usable may still wait for the content that could not be sent just now
            is_kept = connection.usable and waits_for is None and not self._closed and not self._has_too_many()
            if not is_kept:
                connection.close()  # before it is counted as closed
            self._busy.discard(connection)
            if one_too_many and (others := self._number_open()):
                # before a thread that waits sees room for one more, which would be refused, too
                self._limit.one_was_refused(others)
            if is_kept:
                self._idle.append(connection)
            self._changed.notify()

    def _require_open(self) -> None:
        if self._closed:
            raise RetryLater("the program is stopping")
