"""SMTP_URL: its valid forms, and that its password is never shown."""

import pytest

from worker.providers.smtp import SmtpProvider
from worker.providers.smtp_url import SmtpUrl, parse_smtp_url


@pytest.mark.parametrize(
    ("url", "parsed"),
    [
        ("smtp://u:p@mail.example.com:587", SmtpUrl("mail.example.com", 587, "starttls", "u", "p")),
        ("smtp://mail.example.com", SmtpUrl("mail.example.com", 587, "starttls")),
        ("SMTPS://Mail.Example.com/", SmtpUrl("mail.example.com", 465, "tls")),
        ("smtps://a%40b:p%3A%2F%25@h:1", SmtpUrl("h", 1, "tls", "a@b", "p:/%")),
        ("smtp://127.0.0.1:2525", SmtpUrl("127.0.0.1", 2525, "plaintext")),
        ("smtp://127.8.8.8:25", SmtpUrl("127.8.8.8", 25, "plaintext")),
        ("smtp://[::1]:25", SmtpUrl("::1", 25, "plaintext")),
        ("smtp://localhost:25", SmtpUrl("localhost", 25, "plaintext")),
        ("smtp://127.0.0.1:25?ca_file=/ca.pem", SmtpUrl("127.0.0.1", 25, "starttls", ca_file="/ca.pem")),
        ("smtp://10.0.0.1:25", SmtpUrl("10.0.0.1", 25, "starttls")),
        ("smtp://localhost.example.com:25", SmtpUrl("localhost.example.com", 25, "starttls")),
        ("smtp://127.0.0.1.example.com:25", SmtpUrl("127.0.0.1.example.com", 25, "starttls")),
    ],
)
def test_forms(url: str, parsed: SmtpUrl) -> None:
    assert parse_smtp_url(url) == parsed


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hunter2",
        "http://u:hunter2@h",
        "smtp://",
        "smtp://u:hunter2@",
        "smtp://u:hunter2@h:0",
        "smtp://u:hunter2@h:99999",
        "smtp://u:hunter2@h:x",
        "smtp://u:hunter2/x@h",
        "smtp://u:hunter2#x@h",
        "smtp://u:hunter2?x@h",
        "smtp://u:[hunter2@h",
        "smtp://u:hunter2\u2100@h",
        "smtp://u:hunter2é@h",
        "smtp://u@h",
        "smtp://:hunter2@h",
        "smtp://u:hunter2@h/path",
        "smtp://u:hunter2@h?hunter2=1",
        "smtp://u:hunter2@h?ca_file=",
        "smtp://u:hunter2@h?ca_file=/a&ca_file=/b",
        "smtp://u:hunter2@-h",
        "smtp://u:hunter2@h o",
    ],
)
def test_refused_without_showing_the_password(url: str) -> None:
    with pytest.raises(ValueError, match="SMTP_URL") as caught:
        parse_smtp_url(url)
    assert "hunter2" not in repr(caught.value) + repr(caught.value.__context__)


def test_nothing_shows_the_password() -> None:
    url = "smtps://user:hunter2@mail.example.com"
    assert "hunter2" not in repr(parse_smtp_url(url)) + repr(SmtpProvider(url))


def test_a_missing_ca_file_is_named(tmp_path) -> None:
    (tmp_path / "empty.pem").touch()
    for name in ("none.pem", "empty.pem"):
        with pytest.raises(ValueError, match=name) as caught:
            SmtpProvider(f"smtps://u:hunter2@h?ca_file={tmp_path / name}")
        assert "hunter2" not in str(caught.value)
