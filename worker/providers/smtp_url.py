"""SMTP_URL: which server sends the e-mail, and how the connection is protected.

    smtp://user:password@mail.example.com:587     STARTTLS, which must succeed with a valid certificate
    smtps://user:password@mail.example.com:465    TLS from the first byte, with a valid certificate
    smtp://127.0.0.1:2525                         without TLS: on the loopback interface only

``?ca_file=/path/ca.pem`` trusts that certificate authority instead of the system's.
"""

from worker.providers.server_url import ServerUrl, UrlForm, parse_server_url

SmtpUrl = ServerUrl
_FORM = UrlForm("SMTP_URL", "smtp", "smtps", 587, 465, "smtp://user:password@host:587")


def parse_smtp_url(url: str) -> SmtpUrl:
    """The parts of an SMTP_URL; ports default to 587 (smtp) and 465 (smtps). Raises ValueError, which shows none."""
    return parse_server_url(_FORM, url)
