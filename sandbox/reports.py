"""Delivery reports and complaints in the shapes of several mail servers, for tests. All words and addresses are ours.

raw = postfix("bounces+r...@mail.example", "asha@gone.example")
"""

from collections.abc import Callable, Mapping

OURS = "mta.relay.example"


def report(
    to: str,
    parts: list[tuple[str, str]],
    *,
    sender: str = f"MAILER-DAEMON@{OURS}",
    report_type: str = "delivery-status",
    subject: str = "Delivery failed",
    fields: dict[str, str] | None = None,
) -> bytes:
    """A multipart/report to an address. ``parts``: Content-Type and content of each."""
    head = {
        "Return-Path": "<>",
        "Received": f"by {OURS}; Sat, 31 Jan 2026 12:00:00 +0000",
        "From": f"Mail Delivery System <{sender}>",
        "To": to,
        "Subject": subject,
        "Date": "Sat, 31 Jan 2026 12:00:00 +0000",
        "Message-ID": f"<20260131120000.1@{OURS}>",
        "MIME-Version": "1.0",
        "Content-Type": f'multipart/report; report-type={report_type};\n boundary="=_edge/1"',
    } | (fields or {})
    lines = [f"{name}: {value}" for name, value in head.items()] + ["", "A report in several parts."]
    for kind, content in parts:
        lines += ["", "--=_edge/1", f"Content-Type: {kind}", "", content]
    return "\n".join([*lines, "", "--=_edge/1--", ""]).replace("\n", "\r\n").encode()


def returned(to: str, address: str, message_id: str = "<row-1@crm.example>") -> str:
    """The header of a message that came back."""
    return f"Return-Path: <{to}>\nFrom: Chaiwala <news@crm.example>\nTo: Asha <{address}>\nMessage-ID: {message_id}\n"


def postfix(to: str, address: str, status: str = "5.1.1", reply: str = "", action: str = "failed") -> bytes:
    reply = reply or f"550 {status} <{address}>: nobody here has this name"
    machine = (
        f"Reporting-MTA: dns; {OURS}\nX-Postfix-Queue-ID: 4ABCDEF\nX-Postfix-Sender: rfc822; {to}\n"
        "Arrival-Date: Sat, 31 Jan 2026 11:59:58 +0000 (UTC)\n\n"
        f"Final-Recipient: rfc822; {address}\nOriginal-Recipient: rfc822;{address}\nAction: {action}\n"
        f"Status: {status}\nRemote-MTA: dns; mx.gone.example\nDiagnostic-Code: smtp; {reply}\n"
    )
    human = f"The mail system at {OURS} could not deliver your message to <{address}>.\n"
    return report(
        to,
        [
            ("text/plain; charset=us-ascii", human),
            ("message/delivery-status", machine),
            ("text/rfc822-headers", returned(to, address)),
        ],
    )


def exim(to: str, address: str) -> bytes:
    """The status says no more than its class; the reply says more."""
    machine = (
        f"Reporting-MTA: dns; {OURS}\n\nAction: failed\nFinal-Recipient: rfc822;{address}\nStatus: 5.0.0\n"
        "Remote-MTA: dns; mx.gone.example\n"
        "Diagnostic-Code: smtp; 550-5.1.1 This account is not\n 550 5.1.1 one of ours\n"
    )
    human = f"A message that you sent could not be delivered:\n\n  {address}\n"
    return report(
        to,
        [
            ("text/plain; charset=us-ascii", human),
            ("message/delivery-status", machine),
            ("message/rfc822", returned(to, address) + "\nHello\n"),
        ],
        fields={"X-Failed-Recipients": address, "Auto-Submitted": "auto-replied"},
    )


def exchange(to: str, address: str) -> bytes:
    machine = (
        "Reporting-MTA: dns;AB1PR01MB0001.prod.mailhost.example\nReceived-From-MTA: dns;mta.relay.example\n"
        "Arrival-Date: Sat, 31 Jan 2026 11:59:58 +0000\n\n"
        f"Final-Recipient: rfc822;{address}\nAction: failed\nStatus: 5.1.10\n"
        "Diagnostic-Code: smtp;550 5.1.10 RESOLVER.ADR.RecipientNotFound; not found by lookup\n"
        "X-Display-Name: Asha\n"
    )
    return report(
        to,
        [
            ('text/html; charset="utf-8"', "<p>Your message to Asha couldn't be delivered.</p>"),
            ("message/delivery-status", machine),
            ("message/rfc822", returned(to, address) + "\nHello\n"),
        ],
        subject="Undeliverable: Diwali",
        fields={"X-MS-Exchange-Message-Is-Ndr": ""},
    )


def gmail(to: str, address: str, status: str = "5.2.2") -> bytes:
    machine = (
        "Reporting-MTA: dns; googlehost.example\nReceived-From-MTA: dns; news@crm.example\n"
        "Arrival-Date: Sat, 31 Jan 2026 03:59:58 -0800 (PST)\nX-Original-Message-ID: <row-1@crm.example>\n\n"
        f"Final-Recipient: rfc822; {address}\nAction: failed\nStatus: {status}\nRemote-MTA: dns; mx.full.example.\n"
        f"Diagnostic-Code: smtp; 452-{status} The recipient's inbox is out of storage space.\n"
        f" 452 {status} Please direct the recipient to a page of help\n"
        "Last-Attempt-Date: Sat, 31 Jan 2026 04:00:00 -0800\n"
    )
    human = "--inner\nContent-Type: text/plain\n\nInbox full\n\n--inner--\n"
    return report(
        to,
        [
            ('multipart/related; boundary="inner"', human),
            ("message/delivery-status", machine),
            ("message/rfc822", returned(to, address) + "\nHello\n"),
        ],
        fields={"X-Failed-Recipients": address, "Delivered-To": to},
    )  # fmt: skip


def ses(to: str, address: str) -> bytes:
    machine = (
        f"Reporting-MTA: dns; a1-2.smtp-out.cloudmail.example\n\nAction: failed\nFinal-Recipient: rfc822; {address}\n"
        f"Diagnostic-Code: smtp; 550 5.1.1 <{address}>: unknown in the table of users\nStatus: 5.1.1\n"
    )
    return report(
        to,
        [
            ("text/plain; charset=us-ascii", "An error occurred while trying to deliver the mail."),
            ("message/delivery-status", machine),
            ("message/rfc822", returned(to, address) + "\nHello\n"),
        ],
    )


def complaint(to: str, address: str, feedback: str = "abuse") -> bytes:
    """ARF (RFC 5965), sent to an address that is registered for a feedback loop; the envelope is in its fields."""
    machine = (
        f"Feedback-Type: {feedback}\nUser-Agent: BigMailbox-Feedback/1.2\nVersion: 1\nOriginal-Mail-From: <{to}>\n"
        f"Original-Rcpt-To: <{address}>\nArrival-Date: Sat, 31 Jan 2026 11:00:00 +0000\nSource-IP: 192.0.2.25\n"
    )
    return report(
        "fbl@mail.example",
        [
            ("text/plain", "This is a complaint about a message of yours."),
            ("message/feedback-report", machine),
            ("message/rfc822", returned(to, address) + "\nHello\n"),
        ],
        report_type="feedback-report",
        sender="feedback@bigmailbox.example",
    )


def vacation(to: str, address: str) -> bytes:
    """An automatic answer, which is no report."""
    return (
        f"From: {address}\r\nTo: {to}\r\nSubject: Out of office\r\nAuto-Submitted: auto-replied\r\n\r\n"
        "I am back on Monday.\r\n"
    ).encode()


def broken(to: str, address: str) -> bytes:
    """Without the fields that say what became of which recipient, and cut off in the middle."""
    whole = (
        postfix(to, address)
        .replace(b"Action: failed\r\n", b"")
        .replace(b"Status: 5.1.1\r\n", b"Status: \xff\x00\r\n")
    )
    return whole[: whole.index(b"Message-ID: <row-1")]


FAILURES: Mapping[str, Callable[[str, str], bytes]] = {
    "postfix": postfix,
    "exim": exim,
    "exchange": exchange,
    "gmail": gmail,
    "ses": ses,
}
