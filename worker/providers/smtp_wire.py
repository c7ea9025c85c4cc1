"""Sends one e-mail over an open SMTP connection, and decides what is known when the connection breaks.

A message takes two exchanges: MAIL, RCPT and DATA in one write if the server announced PIPELINING (RFC 2920), then
the content. smtplib takes four, and applies a regular expression to every content. When it is known which message
follows, its three commands go out in the write of the content before it, and it takes one exchange. Its own content
waits until it is sent: until then nothing of it can be delivered, and a connection that is closed forgets it.

"Not sent" and "may have been sent" are told apart like this. A server may act on a message only after it has read the
content's last octets, CRLF "." CRLF; if the connection ends before them, nothing was sent (RFC 5321, 4.1.1.4 and
4.1.1.10). So the content is written with ``send`` in a loop, which counts the octets that the kernel has taken (what
``sendall`` has written when it fails is not documented). While one octet was not taken, the server cannot have read
the end: RetryLater. After the last octet was taken, only a reply tells what happened: Unconfirmed if none comes. The
same is true with TLS: ``send`` counts whole records, and a part of a record cannot be decrypted. This is exact and
costs nothing; to send the final dot in a write of its own would cost a packet for each message.
"""

import smtplib
import socket
import ssl
from collections.abc import Sequence

from worker.errors import CampaignRejected, RetryLater, SendError, Unconfirmed
from worker.providers import smtp_refusals
from worker.providers.deadlines import Deadline, exchange
from worker.providers.handover import check_handover
from worker.providers.smtp_extensions import Extensions
from worker.providers.smtp_refusals import SERVICE_NOT_AVAILABLE, Step
from worker.providers.smtp_replies import TIMED_OUT, MalformedReply, Reply, ReplyReader, set_kernel_timeout
from worker.providers.smtp_transaction import Transaction
from worker.providers.untrusted import safe_text

EXCHANGE_SECONDS = 180.0  # for a message and all of its replies, and beyond that what this rate takes
SLOWEST_OCTETS_A_SECOND = 50_000
ANNOUNCED = (b"MAIL", b"RCPT", b"DATA")  # commands that are sent already
_PART = 262_144  # octets of a content that are written at once


class ConnectionGone(Exception):
    """The connection was closed before the first command of this message was answered, or is one too many.

    ``refused``: the server said so (421), or that there are too many, when it accepts no more connections.
    ``too_early``: it refused commands that were sent before it had answered to the message before.
    """

    def __init__(self, reason: str, *, refused: bool = False, too_early: bool = False) -> None:
        super().__init__(reason)
        self.refused = refused
        self.too_early = too_early


class SmtpConnection:
    """A connection after greeting, TLS and login; used by one thread at a time.

    After each ``send``, however it ended, ``usable`` says whether the next message can use the connection.
    """

    def __init__(self, smtp: smtplib.SMTP, answer_timeout_seconds: float, secrets: Sequence[str]) -> None:
        assert smtp.sock is not None  # noqa: S101 - the caller has connected it
        self._smtp = smtp
        self._sock: socket.socket | ssl.SSLSocket = smtp.sock
        self._timeout_seconds = self._sock.gettimeout() or 30.0
        self._replies = ReplyReader(self._sock, secrets)
        if not isinstance(self._sock, ssl.SSLSocket):
            set_kernel_timeout(self._sock, self._timeout_seconds)
        self._answer_timeout_seconds = answer_timeout_seconds
        self._secrets = secrets
        self._extensions = Extensions.of(smtp)
        self._reset_first = False
        self._announced: Transaction | None = None
        self.usable = True

    @property
    def announced(self) -> Transaction | None:
        """The next message, if its commands are on the wire: no other one can use the connection."""
        return self._announced

    def send(self, message: Transaction, following: Transaction | None = None) -> None:
        """Sends one message, and announces the ``following`` one where the server allows that.

        Raises ConnectionGone when the server had closed the connection before this message, or does not take messages
        that are announced, else the kinds of SendError.
        """
        self.usable = False  # until it is known that each command had its reply
        early, self._announced = self._announced is message, None
        seconds = EXCHANGE_SECONDS + len(message.content) / SLOWEST_OCTETS_A_SECOND
        with exchange(seconds, self._sock) as deadline:
            self._ask(message, deadline, early=early)
            announcement = self._extensions.announcement(following) if following else b""
            self._hand_over(message.content, announcement, deadline)
            self._announced = following if announcement else None
            self._read_answer(deadline)

    def _read_answer(self, deadline: Deadline) -> None:
        """Raises unless the server has accepted the content."""
        try:
            reply = self._replies.read(self._answer_timeout_seconds)
        except (OSError, MalformedReply) as error:
            reason = deadline.explain(error)
            raise Unconfirmed(f"the message was handed over, but no answer came: {reason}") from error
        if reply[0] // 100 == 3:
            raise Unconfirmed(f"the message was handed over, but the answer is not valid: {self._text(reply)}")
        # After the final dot the transaction is over on both sides, whatever the answer was. Octets after the answer
        # that nothing was asked for would be read as the answer to the next message.
        expected = self._announced is not None or not self._replies.pending
        self.usable = reply[0] != SERVICE_NOT_AVAILABLE and expected
        self._require_within_limit(reply)
        if reply[0] // 100 != 2:
            raise self._refusal(Step.CONTENT, reply)

    def abort(self) -> None:
        """Ends the connection while another thread is using it: its ``send`` raises at once."""
        try:
            # Not SSLSocket.shutdown, which would make the other thread read encrypted octets.
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)
        except OSError:
            return  # it had ended already

    def say_quit(self) -> None:
        """Sends QUIT (RFC 5321, 4.1.1.10); ``close`` has to follow."""
        try:
            self._sock.settimeout(1.0)
            self._sock.sendall(b"QUIT\r\n")
        except OSError:
            return  # it had ended already

    def close(self, wait_seconds: float = 0.0) -> None:
        """Closes the socket, after waiting at most so long for the answer to QUIT."""
        self.usable = False
        try:
            if wait_seconds > 0:
                self._sock.settimeout(wait_seconds)
                self._sock.recv(512)
        except OSError:
            pass  # no answer, which does not matter
        finally:
            self._smtp.close()

    def _ask(self, message: Transaction, deadline: Deadline, *, early: bool) -> None:
        """Sends the commands up to DATA, unless they were sent ``early``; raises unless the answer is 354."""
        try:
            commands = ANNOUNCED if early else self._extensions.commands(message)
        except CampaignRejected:
            self.usable = True  # nothing was sent
            raise
        if self._reset_first:
            # Clears what is left of a refused transaction, in the same write as the next one.
            commands = (b"RSET\r\n", *commands)
        replies = self._exchange(commands, deadline, is_sent=early)
        if self._reset_first and replies.pop(0)[0] // 100 != 2:
            raise ConnectionGone("RSET was refused")
        if early:
            self._require_order_accepted(replies)
        last = replies[-1]
        codes = [code // 100 for code, _ in replies]
        if codes == [2, 2, 3]:
            self._reset_first = False
            return
        self._end_refused_transaction(codes, last)
        if codes[0] != 2:
            raise self._refusal(Step.SENDER, replies[0])
        if codes[1] != 2:
            raise self._refusal(Step.RECIPIENT, replies[1])
        raise self._refusal(Step.CONTENT, last)

    def _exchange(self, commands: tuple[bytes, ...], deadline: Deadline, *, is_sent: bool) -> list[Reply]:
        """The replies to the commands. Fewer if the server ended the connection (421), or refused a command and the
        commands are sent one by one.
        """
        replies: list[Reply] = []
        groups = [commands] if self._extensions.pipelining else [(command,) for command in commands]
        try:
            for group in groups:
                if not is_sent:
                    self._sock.sendall(b"".join(group))
                if not self._read_replies(replies, len(group)):
                    break
        except (OSError, MalformedReply) as error:
            if is_sent:
                self._require_order_accepted(replies)
            raise _not_handed_over(error, deadline, answered=bool(replies)) from error
        if self._is_one_too_many(replies[:1]):
            raise ConnectionGone(self._text(replies[0]), refused=True)
        for reply in replies:
            self._require_within_limit(reply)
        return replies

    def _require_within_limit(self, reply: Reply) -> None:
        """Raises ConnectionGone when the server says, at whatever command, that it has too many connections.

        The message was not accepted: it can be sent on a connection that the server does accept.
        """
        if reply[0] // 100 == 4 and smtp_refusals.limits_connections(reply[0], self._text(reply)):
            self.usable = False
            raise ConnectionGone(self._text(reply), refused=True)

    def _require_order_accepted(self, replies: list[Reply]) -> None:
        """Raises ConnectionGone when the first of the commands that were sent early is refused.

        Perhaps only for their order: on another connection they are sent in the usual one.
        """
        if replies and replies[0][0] // 100 == 5:
            raise ConnectionGone(self._text(replies[0]), too_early=True)

    def _is_one_too_many(self, replies: list[Reply]) -> bool:
        """Whether the only reply so far refuses the connection itself."""
        if len(replies) != 1 or replies[0][0] // 100 != 4:
            return False
        return smtp_refusals.is_one_too_many(replies[0][0], self._text(replies[0]))

    def _read_replies(self, replies: list[Reply], count: int) -> bool:
        """Reads so many replies. Whether the next command may be sent."""
        for _ in range(count):
            replies.append(self._replies.read(self._timeout_seconds))
            if replies[-1][0] == SERVICE_NOT_AVAILABLE or self._is_one_too_many(replies):
                return False
        return replies[-1][0] < 400

    def _end_refused_transaction(self, codes: list[int], last: Reply) -> None:
        if last[0] == SERVICE_NOT_AVAILABLE or self._replies.pending:
            return
        if codes[-1] == 3:
            # DATA was accepted although a command before it was refused. If the recipient was refused, a single dot
            # ends the transaction (RFC 2920, 3.1). If a recipient was accepted, the dot would send an empty message:
            # then only closing the connection is safe.
            if codes[:2] != [2, 4] and codes[:2] != [2, 5]:
                return
            try:
                self._sock.sendall(b".\r\n")
                self._replies.read(self._timeout_seconds)
            except (OSError, MalformedReply):
                return
        self._reset_first = True
        self.usable = True

    def _hand_over(self, content: bytes, announcement: bytes, deadline: Deadline) -> None:
        taken = 0
        view = memoryview(content + announcement)
        try:
            while taken < len(view):
                if taken < len(content):
                    check_handover()
                taken += self._sock.send(view[taken : taken + _PART])
        except OSError as error:
            if taken >= len(content):
                return  # the server's answer, or that there is none, says what became of the message
            if isinstance(error, TIMED_OUT):
                raise RetryLater("the server stopped reading before the end of the message") from error
            if deadline.passed:
                raise RetryLater(f"the message was not handed over: {deadline.explain(error)}") from error
            # A server that stops reading may have said why before it closed the connection.
            raise self._reply_before_close(error) from error

    def _reply_before_close(self, error: OSError) -> SendError:
        try:
            reply = self._replies.read(0.0)
        except (OSError, MalformedReply):
            return RetryLater(f"the connection was lost before the end of the message: {error}")
        if reply[0] // 100 == 2:
            return Unconfirmed(f"the server accepted before the end of the message: {self._text(reply)}")
        return self._refusal(Step.CONTENT, reply)

    def _refusal(self, step: Step, reply: Reply) -> SendError:
        code, said = reply
        if code // 100 not in (4, 5):
            self.usable = False  # 2xx or 3xx is not valid here: replies and commands do not match any more
        return smtp_refusals.refusal(step, code, said.decode("utf-8", "replace"), self._text(reply))

    def _text(self, reply: Reply) -> str:
        return safe_text(f"{reply[0]} {reply[1].decode('utf-8', 'replace')}", self._secrets)


def _not_handed_over(error: Exception, deadline: Deadline, *, answered: bool) -> RetryLater | ConnectionGone:
    """The connection broke before the content. ``answered``: one of the commands was."""
    if isinstance(error, TIMED_OUT):
        return RetryLater("the server did not answer in time; the message was not handed over")
    if not answered and not deadline.passed:
        return ConnectionGone(str(error))
    return RetryLater(f"the message was not handed over: {deadline.explain(error)}")
