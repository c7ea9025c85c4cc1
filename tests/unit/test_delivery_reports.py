"""Delivery reports and complaints: what is read of the shapes that mail servers send, and of hostile ones."""

import tracemalloc
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox import reports
from worker.bouncing.report import ReportKind, read_report
from worker.bouncing.verdict import BounceKind, Verdict, verdict

TO = "bounces+rabc@mail.example"
ADDRESS = "asha@gone.example"
PEAK_OCTETS = 25_000_000
HARD = Verdict(BounceKind.HARD, "address", suppresses=True)


@pytest.mark.parametrize(
    ("server", "status", "kind"),
    [
        ("postfix", "5.1.1", BounceKind.HARD),
        ("exim", "5.1.1", BounceKind.HARD),
        ("exchange", "5.1.10", BounceKind.HARD),
        ("gmail", "5.2.2", BounceKind.SOFT),
        ("ses", "5.1.1", BounceKind.HARD),
    ],
)
def test_the_shapes_of_servers(server: str, status: str, kind: BounceKind) -> None:
    """The code, the server's words, the return path and the address are found in each of them."""
    report = read_report(reports.FAILURES[server](TO, ADDRESS))
    assert report is not None
    assert (report.kind, report.status) == (ReportKind.FAILED, status)
    assert status in report.words
    assert TO in report.envelopes
    assert ADDRESS in report.addresses
    found = verdict(report)
    assert found is not None
    assert found.kind is kind


def test_a_complaint() -> None:
    """Its return path is in its own fields, whatever address it was sent to."""
    report = read_report(reports.complaint(TO, ADDRESS))
    assert report is not None
    assert report.kind is ReportKind.COMPLAINT
    assert report.words == "abuse complaint by BigMailbox-Feedback/1.2"
    assert TO in report.envelopes
    assert verdict(report) == Verdict(BounceKind.COMPLAINT, None, suppresses=True)


@pytest.mark.parametrize(
    "raw",
    [
        reports.postfix(TO, ADDRESS, "4.4.1", "connect to mx.gone.example: timed out", action="delayed"),
        reports.postfix(TO, ADDRESS, "2.1.5", "250 2.1.5 ok", action="delivered"),
        reports.complaint(TO, ADDRESS, "not-spam"),
        reports.complaint(TO, ADDRESS, "auth-failure"),
    ],
)
def test_reports_from_which_nothing_follows(raw: bytes) -> None:
    """A delay is no failure; "not spam" is no complaint."""
    report = read_report(raw)
    assert report is not None
    assert report.kind is ReportKind.OTHER
    assert verdict(report) is None


@pytest.mark.parametrize(
    ("status", "reply", "expected"),
    [
        ("5.1.2", "no such domain", HARD),
        ("5.1.3", "bad address", HARD),
        ("5.1.6", "moved", HARD),
        ("5.4.1", "550 5.4.1 Recipient address rejected: Access denied", HARD),
        ("5.4.1", "no answer from host", Verdict(BounceKind.REFUSED, "refused")),
        ("5.0.0", "550 No such user here", HARD),
        ("5.0.0", "550 mailbox unavailable for spammers", Verdict(BounceKind.REFUSED, "refused")),
        (
            "5.2.1",
            "disabled",
            Verdict(BounceKind.HARD, "address", suppresses=True, suppressed_for=timedelta(days=30)),
        ),
        ("5.2.2", "mailbox full", Verdict(BounceKind.SOFT, "refused")),
        ("4.4.7", "expired", Verdict(BounceKind.SOFT, "deferred")),
        ("4.2.2", "over quota", Verdict(BounceKind.SOFT, "deferred")),
        ("5.7.1", "policy", Verdict(BounceKind.REFUSED, "refused")),
        ("5.1.8", "sender's domain", Verdict(BounceKind.REFUSED, "refused")),
        ("5.3.4", "too large", Verdict(BounceKind.REFUSED, "refused")),
    ],
)
def test_what_a_code_means(status: str, reply: str, expected: Verdict) -> None:
    report = read_report(reports.postfix(TO, ADDRESS, status, reply))
    assert report is not None
    assert verdict(report) == expected


def test_the_failed_recipient_of_several() -> None:
    """Servers that expand a list report on each of its members."""
    block = b"Final-Recipient: rfc822; a@x.example\r\nAction: delivered\r\nStatus: 2.0.0\r\n\r\nFinal-Recipient"
    report = read_report(reports.postfix(TO, ADDRESS).replace(b"Final-Recipient", block, 1))
    assert report is not None
    assert (report.kind, report.status) == (ReportKind.FAILED, "5.1.1")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\r\n\r\n",
        b"\x00" * 100,
        reports.vacation(TO, ADDRESS),
        reports.broken(TO, ADDRESS),
        reports.report(TO, [("message/delivery-status", "")]),
        reports.report(TO, [("message/delivery-status", "Action: failed\nStatus: none")]),
        reports.report(TO, [("message/feedback-report", "Version: 1")], report_type="feedback-report"),
        reports.postfix(TO, ADDRESS).replace(b'boundary="=_edge/1"', b"x=1"),
        reports.postfix(TO, ADDRESS).replace(b'boundary="=_edge/1"', b'boundary="' + b"x" * 5000 + b'"'),
    ],
)
def test_what_is_no_report(raw: bytes) -> None:
    """An automatic answer, a broken report, nothing at all."""
    assert read_report(raw) is None


@pytest.mark.parametrize(
    "change",
    [
        (b"charset=us-ascii", b"charset=x-nobody-has-it"),
        (b"charset=us-ascii", b"charset*=no-such-charset'en'%ff"),
        (b"Message-ID: <2026", b"X-Odd: =?no-such-charset?b?//8=?=\r\nMessage-ID: <2026"),
        (b"nobody here", b"\xe0\xa4\xa8 nobody\x00 here\x1b[2J"),
        (b"Delivery failed", "डिलीवरी".encode()),
        (b"message/delivery-status", b"message/delivery-status\r\nContent-Transfer-Encoding: x-unknown"),
    ],
)
def test_odd_octets_in_a_report(change: tuple[bytes, bytes]) -> None:
    """Unknown charsets, NUL and control characters cost neither the report nor a column of the database."""
    report = read_report(reports.postfix(TO, ADDRESS).replace(*change))
    assert report is not None
    assert report.status == "5.1.1"
    for text in (report.words, report.envelopes.replace("\n", ""), *report.addresses):
        assert text.isprintable()
        text.encode()


def test_encoded_parts() -> None:
    """Some servers encode the part that programs read."""
    plain = reports.postfix(TO, ADDRESS)
    encoded = plain.replace(
        b"message/delivery-status", b"message/delivery-status\r\nContent-Transfer-Encoding: quoted-printable"
    )
    encoded = encoded.replace(b"Status: 5.1.1", b"Status: 5=2E1.1")
    assert read_report(encoded) == read_report(plain)


NESTED = b"".join(
    b'Content-Type: multipart/mixed; boundary="b%d"\r\n\r\n--b%d\r\n' % (level, level) for level in range(6000)
)


@pytest.mark.parametrize(
    "raw",
    [
        NESTED,
        b'Content-Type: multipart/report; boundary="a"\r\n\r\n' + b"--a\r\n\r\n" * 60_000,
        reports.report(TO, [("message/delivery-status", "Action: failed\n\n" * 20_000)]),
        reports.report(TO, [("message/delivery-status", "Action: failed\nStatus: 5.1.1\n" + "a:b\n" * 60_000)]),
        b"a:\r\n" * 80_000,
        reports.report(TO, [("message/delivery-status", "Action: failed\nStatus: " + "5.1." * 60_000)]),
        reports.report(TO, [("message/delivery-status", "Original-Recipient: " + "a@" * 100_000)]),
        b"Content-Type: multipart/report" + b";a=b" * 60_000 + b"\r\n\r\n",
        b'Content-Type: multipart/report; boundary="' + b'\\"' * 100_000,
        reports.postfix(TO, ADDRESS)[:1500] + b"x" * 50_000_000,
    ],
    ids=["deep", "parts", "blocks", "fields", "head", "status", "address", "parameters", "quotes", "huge"],
)
def test_hostile_reports_cost_little(raw: bytes) -> None:
    """However many levels, parts, blocks or fields: memory stays small."""
    tracemalloc.start()
    try:
        read_report(raw)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < PEAK_OCTETS


@given(st.binary(max_size=2000), st.integers(0, 1500), st.integers(0, 200))
def test_any_octets(junk: bytes, at: int, cut: int) -> None:
    """Whatever stands anywhere in a report, reading it ends without an error."""
    raw = reports.postfix(TO, ADDRESS)
    for text in (junk, raw[:at] + junk + raw[at + cut :]):
        report = read_report(text)
        assert report is None or report.words.isprintable()
