"""What an SMTP server announced in its answer to EHLO, and the commands of a message that follow from it."""

import smtplib
from dataclasses import dataclass

from worker.errors import CampaignRejected
from worker.providers.smtp_transaction import Transaction

LONGEST_ANNOUNCED = 1024 * 1024  # octets of a content; with longer ones a round trip does not count


@dataclass(frozen=True, slots=True)
class Extensions:
    """``largest_octets``: of a content (RFC 1870); 0: the server names no limit."""

    pipelining: bool  # RFC 2920
    eight_bit: bool  # RFC 6152
    size: bool
    largest_octets: int

    @classmethod
    def of(cls, smtp: smtplib.SMTP) -> "Extensions":
        """Of a connection on which EHLO was answered."""
        size = smtp.esmtp_features.get("size", "")
        return cls(
            smtp.has_extn("pipelining"),
            smtp.has_extn("8bitmime"),
            smtp.has_extn("size"),
            int(size[:18]) if size.isdecimal() else 0,
        )

    def commands(self, message: Transaction) -> tuple[bytes, ...]:
        """The commands up to DATA. Raises CampaignRejected for a message that the server would not take."""
        mail = self._mail(message.envelope_from, message.content)
        return mail, b"RCPT TO:<%b>\r\n" % message.to.encode("ascii"), b"DATA\r\n"

    def announcement(self, following: Transaction) -> bytes:
        """The commands of a message that follows; none where the server does not allow that, or would refuse them."""
        if not self.pipelining or len(following.content) > LONGEST_ANNOUNCED:
            return b""
        try:
            return b"".join(self.commands(following))
        except CampaignRejected:
            return b""

    def _mail(self, envelope_from: str, content: bytes) -> bytes:
        if 0 < self.largest_octets < len(content):
            raise CampaignRejected(
                f"the message has {len(content)} octets, the server accepts at most {self.largest_octets}"
            )
        parameters = b" SIZE=%d" % len(content) if self.size else b""
        if not content.isascii():
            if not self.eight_bit:
                raise CampaignRejected(
                    "the message contains 8-bit octets, and the server accepts 7-bit messages only"
                )
            parameters += b" BODY=8BITMIME"
        return b"MAIL FROM:<%b>%b\r\n" % (envelope_from.encode("ascii"), parameters)
