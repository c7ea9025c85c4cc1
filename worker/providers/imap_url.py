"""BOUNCE_MAILBOX_URL: the mailbox that delivery reports and complaints arrive in.

    imaps://user:password@mail.example.com/INBOX          TLS from the first byte, with a valid certificate
    imap://user:password@mail.example.com:143/INBOX       STARTTLS, which must succeed with a valid certificate
    imap://user:password@127.0.0.1/INBOX                  without TLS: on the loopback interface only

The path is the folder, INBOX if there is none. ``?ca_file=/path/ca.pem`` trusts that certificate authority instead of
the system's.
"""

import re
from dataclasses import replace

from worker.providers.server_url import ServerUrl, UrlForm, parse_server_url

ImapUrl = ServerUrl
_FORM = UrlForm("BOUNCE_MAILBOX_URL", "imap", "imaps", 143, 993, "imaps://user:password@host/INBOX", has_path=True)
_NO_LINE_END = re.compile(r"[ -~]{1,200}")  # what a command can carry
_FOLDER = re.compile(r"[^\x00-\x1f\x7f]{1,200}")


def parse_imap_url(url: str) -> ImapUrl:
    """The parts of a BOUNCE_MAILBOX_URL; ``path`` is the folder, ports default to 143 (imap) and 993 (imaps).

    Raises ValueError, which shows no part of it.
    """
    parsed = parse_server_url(_FORM, url)
    if not parsed.user:
        raise ValueError("BOUNCE_MAILBOX_URL needs a user and a password: " + _FORM.example)
    folder = parsed.path.rstrip("/") or "INBOX"
    if not (_NO_LINE_END.fullmatch(parsed.user) and _NO_LINE_END.fullmatch(parsed.password)):
        raise ValueError("BOUNCE_MAILBOX_URL: user and password are at most 200 printable ASCII characters each")
    if not _FOLDER.fullmatch(folder):
        raise ValueError("BOUNCE_MAILBOX_URL: the folder has at most 200 characters and no control character")
    return replace(parsed, path=folder)
