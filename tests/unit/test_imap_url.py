"""BOUNCE_MAILBOX_URL: its valid forms, and that its password is never shown."""

import pytest

from worker.providers.imap_url import ImapUrl, parse_imap_url


@pytest.mark.parametrize(
    ("url", "parsed"),
    [
        ("imaps://u:p@mail.example.com/INBOX", ImapUrl("mail.example.com", 993, "tls", "u", "p", path="INBOX")),
        ("IMAPS://u:p@Mail.Example.com", ImapUrl("mail.example.com", 993, "tls", "u", "p", path="INBOX")),
        ("imaps://a%40b:p%3A%2F%25@h:1/In%20box/", ImapUrl("h", 1, "tls", "a@b", "p:/%", path="In box")),
        ("imap://u:p@mail.example.com", ImapUrl("mail.example.com", 143, "starttls", "u", "p", path="INBOX")),
        ("imap://u:p@127.0.0.1:1143/a/b", ImapUrl("127.0.0.1", 1143, "plaintext", "u", "p", path="a/b")),
        ("imap://u:p@[::1]", ImapUrl("::1", 143, "plaintext", "u", "p", path="INBOX")),
        ("imap://u:p@localhost?ca_file=/c", ImapUrl("localhost", 143, "starttls", "u", "p", "/c", path="INBOX")),
        ("imaps://u:p@h/X?ca_file=/c", ImapUrl("h", 993, "tls", "u", "p", "/c", path="X")),
    ],
)
def test_forms(url: str, parsed: ImapUrl) -> None:
    """The folder is INBOX unless another one is named; without TLS on the loopback interface only."""
    assert parse_imap_url(url) == parsed


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hunter2",
        "http://u:hunter2@h",
        "imaps://h/INBOX",
        "imaps://u:hunter2@",
        "imaps://u:hunter2@h:0",
        "imaps://u:hunter2@h:99999",
        "imaps://u:hunter2/x@h",
        "imaps://u:hunter2#x@h",
        "imaps://u:hunter2?x@h",
        "imaps://u:[hunter2@h",
        "imaps://u:hunter2é@h",
        "imaps://u:hunter2%0d%0aA1%20LOGOUT@h",
        "imaps://u%0a:hunter2@h",
        "imaps://u:hunter2@h/a%0ab",
        "imaps://u:hunter2@h/" + "x" * 300,
        "imaps://u@h",
        "imaps://:hunter2@h",
        "imaps://u:hunter2@h?hunter2=1",
        "imaps://u:hunter2@h?ca_file=",
        "imaps://u:hunter2@h o",
    ],
)
def test_refused_without_showing_the_password(url: str) -> None:
    with pytest.raises(ValueError, match="BOUNCE_MAILBOX_URL") as caught:
        parse_imap_url(url)
    assert "hunter2" not in repr(caught.value) + repr(caught.value.__context__)


def test_repr_shows_no_password() -> None:
    assert "hunter2" not in repr(parse_imap_url("imaps://someone:hunter2@h"))
