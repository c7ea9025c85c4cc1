"""One e-mail over an open SMTP connection: the transaction, and what is known when it breaks off.

Two exchanges a message: MAIL, RCPT and DATA in one write where the server announced PIPELINING
(RFC 2920), then the content. smtplib takes four, and a regular expression over every content.

Where the border lies. A server may act on a message only once it has read the content's last octets,
CRLF "." CRLF; a connection that ends before them means that nothing was sent (RFC 5321, 4.1.1.4 and
4.1.1.10). So the content is written with ``send`` in a loop of our own, which counts what the kernel
took; the documentation of ``sendall`` leaves that open. While one octet was not taken, the server
cannot have read the end: ``RetryLater``. Once the last octet was taken, only a reply tells:
``Unconfirmed`` without one. The same holds inside TLS: ``send`` counts whole records, and half a record
cannot be decrypted. This is exact and costs nothing, where holding the terminator back would cost a
packet for each message.
"""

import re
import smtplib
import socket
import ssl
from collections.abc import Sequence

from worker.errors import CampaignRejected, RecipientDeferred, RecipientRefused, RetryLater, SendError, Unconfirmed
from worker.providers.smtp_replies import TIMED_OUT, MalformedReply, Reply, ReplyReader, let_kernel_time
from worker.providers.untrusted import printable

_LINE_END = re.compile(rb"\r\n|\r|\n")
_REFUSED_BY: dict[str, type[SendError]] = {
    "sender": CampaignRejected,
    "recipient": RecipientRefused,
    "content": CampaignRejected,
}


class ConnectionGone(Exception):
    """The connection had ended before the first command of this message was answered."""


def wire_content(content: bytes) -> bytes:
    """The content as it goes over the wire: dots stuffed, the final dot added (RFC 5321, 4.5.2).

    A dot after a bare CR or LF must not get out: some servers take LF "." LF for the end of the message
    and what follows for commands. Then all line ends are made CRLF (2.3.8). Without such a dot nothing
    can be taken for the end, and looking for the two pairs is twice as fast as counting line ends.
    """
    if b"\n." in content or b"\r." in content:
        content = _LINE_END.sub(b"\r\n", content).replace(b"\r\n.", b"\r\n..")
    if content.startswith(b"."):
        content = b"." + content
    return content + (b".\r\n" if content.endswith(b"\r\n") else b"\r\n.\r\n")


class SmtpConnection:
    """A greeted, protected and authenticated connection, used by one thread at a time.

    ``usable`` tells after each ``send``, however it ended, whether the next message can use it.
    """

    def __init__(self, smtp: smtplib.SMTP, answer_timeout_seconds: float, secrets: Sequence[str]) -> None:
        assert smtp.sock is not None  # noqa: S101 - it was connected by its maker
        self._smtp = smtp
        self._sock: socket.socket | ssl.SSLSocket = smtp.sock
        self._timeout_seconds = self._sock.gettimeout() or 30.0
        self._replies = ReplyReader(self._sock, secrets)
        if not isinstance(self._sock, ssl.SSLSocket):
            let_kernel_time(self._sock, self._timeout_seconds)
        self._answer_timeout_seconds = answer_timeout_seconds
        self._secrets = secrets
        self._pipelining = smtp.has_extn("pipelining")
        self._eight_bit = smtp.has_extn("8bitmime")
        self._size_announced = smtp.has_extn("size")
        size = smtp.esmtp_features.get("size", "")
        self._largest = int(size[:18]) if size.isdecimal() else 0
        self._reset_first = False
        self.usable = True

    def send(self, envelope_from: str, to: str, content: bytes) -> None:
        """Hand one message over; ``content`` comes from ``wire_content``.

        Raises ConnectionGone when the server had left before this message, else the SendError kinds.
        """
        self.usable = False  # until the dialogue is known to be in step again
        self._ask(self._mail(envelope_from, content), b"RCPT TO:<%b>\r\n" % to.encode("ascii"))
        self._hand_over(content)
        try:
            reply = self._replies.read(self._answer_timeout_seconds)
        except (OSError, MalformedReply) as error:
            raise Unconfirmed(f"the message was handed over, then came no answer: {error}") from error
        if reply[0] // 100 == 3:
            raise Unconfirmed(f"the message was handed over, the answer makes no sense: {self._text(reply)}")
        # After the final dot the transaction is over on both sides, whatever the answer was. Octets
        # that follow the answer would be taken for the answer to the next message.
        self.usable = reply[0] != 421 and not self._replies.pending
        if reply[0] // 100 != 2:
            raise self._refusal("content", reply)

    def abort(self) -> None:
        """End the connection under a thread that is using it: its ``send`` raises at once."""
        try:
            # Not SSLSocket.shutdown, which would make the other thread read the raw octets.
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)
        except OSError:
            return  # it had ended already

    def say_quit(self) -> None:
        """Take leave (RFC 5321, 4.1.1.10); ``close`` comes next."""
        try:
            self._sock.settimeout(1.0)
            self._sock.sendall(b"QUIT\r\n")
        except OSError:
            return  # it had ended already

    def close(self, wait_seconds: float = 0.0) -> None:
        """Close the socket, after waiting this long for the answer to QUIT."""
        self.usable = False
        try:
            if wait_seconds > 0:
                self._sock.settimeout(wait_seconds)
                self._sock.recv(512)
        except OSError:
            pass  # no answer, which changes nothing
        finally:
            self._smtp.close()

    def _mail(self, envelope_from: str, content: bytes) -> bytes:
        if 0 < self._largest < len(content):
            self.usable = True
            raise CampaignRejected(f"the message has {len(content)} octets, the server takes at most {self._largest}")
        parameters = b" SIZE=%d" % len(content) if self._size_announced else b""
        if not content.isascii():
            if not self._eight_bit:
                self.usable = True
                raise CampaignRejected("the message holds 8-bit octets, and the server takes 7-bit messages only")
            parameters += b" BODY=8BITMIME"
        return b"MAIL FROM:<%b>%b\r\n" % (envelope_from.encode("ascii"), parameters)

    def _ask(self, mail: bytes, recipient: bytes) -> None:
        """Everything up to the server's 354; raises when it does not come."""
        commands = [mail, recipient, b"DATA\r\n"]
        if self._reset_first:
            # What is left of a refused transaction is cleared in the same write as the next begins.
            commands.insert(0, b"RSET\r\n")
        replies = self._exchange(commands)
        if self._reset_first and replies.pop(0)[0] // 100 != 2:
            raise ConnectionGone("RSET was refused")
        last = replies[-1]
        codes = [code // 100 for code, _ in replies]
        if codes == [2, 2, 3]:
            self._reset_first = False
            return
        self._get_back_in_step(codes, last)
        if codes[0] != 2:
            raise self._refusal("sender", replies[0])
        if codes[1] != 2:
            raise self._refusal("recipient", replies[1])
        raise self._refusal("content", last)

    def _exchange(self, commands: list[bytes]) -> list[Reply]:
        """The replies to the commands; fewer when the server was leaving (421), or refused one of them
        where they go out one by one.
        """
        replies: list[Reply] = []
        groups = [commands] if self._pipelining else [[command] for command in commands]
        try:
            for group in groups:
                self._sock.sendall(b"".join(group))
                if not self._read_replies(replies, len(group)):
                    break
        except TIMED_OUT as error:
            raise RetryLater("the server did not answer in time; the message was not handed over") from error
        except (OSError, MalformedReply) as error:
            if not replies:
                raise ConnectionGone(str(error)) from error
            raise RetryLater(f"the message was not handed over: {error}") from error
        if replies[0][0] == 421:
            raise ConnectionGone(self._text(replies[0]))
        return replies

    def _read_replies(self, replies: list[Reply], count: int) -> bool:
        """Read ``count`` more; tells whether there is a point in going on with the next command."""
        for _ in range(count):
            replies.append(self._replies.read(self._timeout_seconds))
            if replies[-1][0] == 421:
                return False
        return replies[-1][0] < 400

    def _get_back_in_step(self, codes: list[int], last: Reply) -> None:
        if last[0] == 421 or self._replies.pending:
            return
        if codes[-1] == 3:
            # DATA was taken although a command before it was refused. With the recipient refused, a
            # lone dot ends the transaction (RFC 2920, 3.1). With a recipient accepted, it would send
            # an empty message: then only leaving is safe.
            if codes[:2] != [2, 4] and codes[:2] != [2, 5]:
                return
            try:
                self._sock.sendall(b".\r\n")
                self._replies.read(self._timeout_seconds)
            except (OSError, MalformedReply):
                return
        self._reset_first = True
        self.usable = True

    def _hand_over(self, content: bytes) -> None:
        taken = 0
        view = memoryview(content)
        try:
            while taken < len(content):
                taken += self._sock.send(view[taken:])
        except TIMED_OUT as error:
            raise RetryLater("the server stopped reading before the end of the message") from error
        except OSError as error:
            # A server that has seen enough says why and closes: its words are worth a look.
            raise self._last_words(error) from error

    def _last_words(self, error: OSError) -> SendError:
        try:
            reply = self._replies.read(0.0)
        except (OSError, MalformedReply):
            return RetryLater(f"the connection was lost before the end of the message: {error}")
        if reply[0] // 100 == 2:
            return Unconfirmed(f"the server accepted before the end of the message: {self._text(reply)}")
        return self._refusal("content", reply)

    def _refusal(self, what: str, reply: Reply) -> SendError:
        code = reply[0]
        text = self._text(reply)
        if code // 100 == 5:
            return _REFUSED_BY[what](text if what == "recipient" else f"{what} refused: {text}")
        if code // 100 != 4:
            self.usable = False  # a 2xx or 3xx where none can be: out of step
        return RecipientDeferred(text) if what == "recipient" and code // 100 == 4 else RetryLater(text)

    def _text(self, reply: Reply) -> str:
        return printable(f"{reply[0]} {reply[1].decode('utf-8', 'replace')}", self._secrets)
